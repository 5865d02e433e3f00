"""A privacy budget in a file of its own, for tests that need no agent around it."""

from contextlib import contextmanager
from dataclasses import replace

from vitalring.database import open_database, transaction
from vitalring.edge_agent.budget import SCHEMA, Budget
from vitalring.errors import PrivacyError, StorageError
from vitalring.protocol.guarantee import Allowance
from vitalring.protocol.privacy import Spend

STUDY, OTHER = b"s" * 32, b"o" * 32
SPEND = Spend(0.1, 1.5, 10)
LOUD, QUIET = replace(SPEND, noise_multiplier=2.0), SPEND
SCHEDULE = [Allowance(LOUD, 2), Allowance(QUIET, 3)]


def linear(spends, delta):
    """A stand-in accountant whose figures can be done in the head: one per 10 steps."""
    return sum(spend.steps for spend in spends) / 10


LIMIT = {"limit": 20.0, "delta": 1e-5, "accountant": linear}


class BudgetFile:
    """Opens a file, or makes a new one where `create` says so, and commits what blocks did."""

    def __init__(self, path, *, create=False):
        if create == path.exists():
            state = "exists already" if create else "is missing"
            raise PrivacyError(f"the privacy budget {path} {state}")
        try:
            self._connection = open_database(path, SCHEMA, 1)
        except (StorageError, UnicodeError) as error:  # damaged table names do not decode
            raise PrivacyError(f"the privacy budget {path} cannot be read: {error}") from error
        try:
            self.budget = Budget(self._connection)
        except PrivacyError:
            self._connection.close()
            raise

    @contextmanager
    def transaction(self):
        with transaction(self._connection):
            yield self.budget

    def close(self):
        self._connection.close()


def round_plan(number):
    """The digest of a round's plan, made up."""
    return number.to_bytes(32, "big")


def fill(path, rounds=3):
    """A new budget with a study of ten rounds, so many of them charged."""
    file = BudgetFile(path, create=True)
    with file.transaction() as budget:
        budget.authorise(STUDY, "hearts", [Allowance(SPEND, 10)], **LIMIT)
    for number in range(1, rounds + 1):
        with file.transaction() as budget:
            assert budget.reserve(STUDY, round_plan(number), "hearts", number, SPEND)
    return file
