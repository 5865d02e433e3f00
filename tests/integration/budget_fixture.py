"""A privacy budget in a file of its own, for tests that need no agent around it."""

from contextlib import contextmanager

from vitalring.database import open_database, transaction
from vitalring.edge_agent.budget import SCHEMA, Budget
from vitalring.errors import PrivacyError, StorageError


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
