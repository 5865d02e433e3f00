"""The budget's file: nothing leaves that was not charged, whatever happens in between."""

import signal
import sqlite3
import subprocess
import sys
import uuid
from contextlib import closing, suppress
from pathlib import Path

import budget_fixture
import pytest
from budget_fixture import LIMIT, OTHER, SPEND, STUDY, BudgetFile, fill, linear, round_plan
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitalring.database import open_database
from vitalring.edge_agent.budget import (
    SCHEMA,
    Budget,
    committed_of,
    spent_of,
)
from vitalring.errors import PrivacyError, StorageError
from vitalring.protocol.guarantee import Allowance
from vitalring.protocol.privacy import Spend


def test_shares_a_database_and_rolls_back_with_it(tmp_path):
    schema = "CREATE TABLE outbox (body BLOB);" + SCHEMA
    with closing(open_database(tmp_path / "agent.sqlite", schema, 1)) as db:
        budget = Budget(db)
        with pytest.raises(PrivacyError, match="inside a transaction"):
            budget.authorise(STUDY, "hearts", [Allowance(SPEND, 10)], **LIMIT)
        assert budget.entries() == ()
        db.execute("BEGIN")
        budget.authorise(STUDY, "hearts", [Allowance(SPEND, 10)], **LIMIT)
        db.execute("INSERT INTO outbox VALUES (x'00')")
        db.execute("ROLLBACK")
        assert budget.entries() == ()
        db.execute("BEGIN")
        budget.authorise(STUDY, "hearts", [Allowance(SPEND, 10)], **LIMIT)
        budget.reserve(STUDY, round_plan(1), "hearts", 1, SPEND)
        db.execute("COMMIT")
        assert len(Budget(db).entries()) == 2


def test_a_database_that_does_not_wait_for_the_disk_is_refused(tmp_path):
    with closing(open_database(tmp_path / "b", SCHEMA, 1)) as db:
        db.execute("PRAGMA synchronous=NORMAL")
        with pytest.raises(PrivacyError, match="synchronous=FULL"):
            Budget(db)


def test_missing_existing_and_foreign_files(tmp_path):
    with pytest.raises(PrivacyError, match="is missing"):
        BudgetFile(tmp_path / "b")
    fill(tmp_path / "b").close()
    with pytest.raises(PrivacyError, match="exists already"):
        BudgetFile(tmp_path / "b", create=True)
    (tmp_path / "junk").write_bytes(b"not a database" * 100)
    with pytest.raises(PrivacyError, match="cannot be read"):
        BudgetFile(tmp_path / "junk")
    open_database(tmp_path / "other", "CREATE TABLE t (x)", 1).close()
    with pytest.raises(PrivacyError, match="cannot be read"):
        BudgetFile(tmp_path / "other")


@pytest.mark.parametrize(
    "bad",
    [
        {"spend": Spend(float("nan"), 1.5, 10)},
        {"spend": Spend(0.1, float("inf"), 10)},
        {"spend": Spend(0.1, 1.5, 0)},
        {"spend": Spend(0.1, 1.5, 10, epsilon=float("inf"))},
        {"spend": Spend(0.1, 1.5, 10, delta=-1e-9)},
        {"study_plan": b"short"},
        {"study": "h\u00e9arts"},
        {"data_class": "h\u00e9arts"},
        {"data_class": "h" * 256},
        {"rounds": -1},
        {"rounds": 2**63},
    ],
)
def test_entries_are_checked_before_they_are_written(tmp_path, bad):
    values = {"study_plan": STUDY, "study": "hearts", "spend": SPEND, "rounds": 1, **bad}
    with closing(BudgetFile(tmp_path / "b", create=True)) as file:
        allowances = [Allowance(values.pop("spend"), values.pop("rounds"))]
        with pytest.raises(PrivacyError), file.transaction() as budget:
            budget.authorise(
                **values, allowances=allowances, limit=1e300, delta=1e-5, accountant=linear
            )
        assert file.budget.entries() == ()


COLUMNS = (
    "position",
    "kind",
    "study_plan",
    "round_plan",
    "study",
    "data_class",
    "round",
    "sampling_rate",
    "noise_multiplier",
    "steps",
    "epsilon",
    "delta",
    "chain",
)


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("position", [1, 2, 4])
def test_a_changed_value_is_noticed(tmp_path, column, position):
    fill(tmp_path / "b").close()
    with closing(sqlite3.connect(tmp_path / "b")) as db:
        (value,) = db.execute(
            f"SELECT {column} FROM privacy_budget WHERE position = ?", (position,)
        ).fetchone()
        if isinstance(value, bytes):
            value = bytes([value[0] ^ 1]) + value[1:]
        elif isinstance(value, str):
            value = value[:-1] + chr(ord(value[-1]) ^ 1) if value else "steps"
        else:
            value = value * 1.0000001 + 1e-12 if isinstance(value, float) else value + 10
        db.execute(f"UPDATE privacy_budget SET {column} = ? WHERE position = ?", (value, position))
        db.commit()
    with pytest.raises(PrivacyError):
        BudgetFile(tmp_path / "b")


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM privacy_budget WHERE position = 4",
        "DELETE FROM privacy_budget WHERE position = 2",
        "DELETE FROM privacy_budget",
        "DELETE FROM privacy_budget_head",
        "UPDATE privacy_budget_head SET entries = 3",
        "UPDATE privacy_budget_head SET chain = zeroblob(32)",
        "INSERT INTO privacy_budget_head VALUES (0, zeroblob(32))",
        "DROP TABLE privacy_budget",
        "UPDATE privacy_budget SET steps = 'ten' WHERE position = 2",
        "UPDATE privacy_budget SET steps = 10.5 WHERE position = 2",
        "UPDATE privacy_budget SET kind = 'free' WHERE position = 2",
        "UPDATE privacy_budget SET study = x'ff' WHERE position = 2",
    ],
)
def test_missing_or_foreign_entries_are_noticed(tmp_path, statement):
    fill(tmp_path / "b").close()
    with closing(sqlite3.connect(tmp_path / "b")) as db:
        db.execute(statement)
        db.commit()
    with pytest.raises(PrivacyError):
        BudgetFile(tmp_path / "b")


def test_damage_is_noticed_while_the_file_is_open(tmp_path):
    with closing(fill(tmp_path / "b")) as file:
        with closing(sqlite3.connect(tmp_path / "b")) as db:
            db.execute("UPDATE privacy_budget SET steps = 1 WHERE position = 3")
            db.commit()
        with pytest.raises(PrivacyError, match="entry 3"), file.transaction() as budget:
            budget.reserve(STUDY, round_plan(4), "hearts", 4, SPEND)


class WholeFile:
    """A file's bytes and entries; no dataclass, since failures would print every byte."""

    def __init__(self, content, entries):
        self.content = content
        self.entries = entries


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("budget") / "b"
    with closing(fill(path)) as file:
        entries = file.budget.entries()
    return WholeFile(path.read_bytes(), entries)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_flipped_byte_is_noticed_or_harmless(tmp_path, whole_file, data):
    place = data.draw(st.integers(0, len(whole_file.content) - 1))
    flip = data.draw(st.integers(1, 255))
    changed = bytearray(whole_file.content)
    changed[place] ^= flip
    path = tmp_path / f"{uuid.uuid4()}"
    path.write_bytes(bytes(changed))
    try:
        file = BudgetFile(path)
    except PrivacyError:
        return
    with closing(file):
        assert file.budget.entries() == whole_file.entries


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["charge", "abort", "reopen", "recover", "close"]),
            st.integers(0, 1),
            st.integers(1, 6),
        ),
        max_size=30,
    )
)
def test_what_left_was_always_charged(tmp_path, actions):
    """Any interleaving: what is spent covers what left, each release once, within the limit."""
    path = tmp_path / f"{uuid.uuid4()}"
    studies = [(STUDY, "hearts"), (OTHER, "lungs")]
    file = BudgetFile(path, create=True)
    for study_plan, name in studies:
        with file.transaction() as budget:
            budget.authorise(study_plan, name, [Allowance(SPEND, 4)], **LIMIT)
    left, closed = set(), set()
    for action, index, number in actions:
        study_plan, name = studies[index]
        release = (index, number)
        args = (study_plan, round_plan(number), name, number, SPEND)
        if action == "reopen":
            file.close()
            file = BudgetFile(path)
        elif action == "close":
            with file.transaction() as budget:
                budget.close(study_plan)
            closed.add(index)
        elif action == "recover":
            with file.transaction() as budget:
                budget.charge_unaccounted(*args)
            left.add(release)
        elif action == "abort":
            # The process dies before the commit: nothing was charged, so nothing may leave.
            with suppress(KeyboardInterrupt, PrivacyError), file.transaction() as budget:
                budget.reserve(*args)
                raise KeyboardInterrupt
        else:
            try:
                with file.transaction() as budget:
                    fresh = budget.reserve(*args)
            except PrivacyError:
                used = sum(i == index for i, _ in left)
                assert release not in left
                assert index in closed or used >= 4
            else:
                assert fresh == (release not in left)
                left.add(release)
        spent = sum(spend.steps for spend in spent_of(file.budget.entries()))
        assert spent == 10 * len(left)
        assert sum(spend.steps for spend in committed_of(file.budget.entries())) >= spent
    file.close()


CHARGING_LOOP = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[2])
from budget_fixture import BudgetFile
from vitalring.protocol.guarantee import Allowance
from vitalring.protocol.privacy import Spend

spend = Spend(0.1, 1.5, 10)
file = BudgetFile(Path(sys.argv[1]), create=True)
with file.transaction() as budget:
    budget.authorise(b"s" * 32, "hearts", [Allowance(spend, 100_000)], limit=1e9, delta=1e-5,
                     accountant=lambda spends, delta: 0.0)
for number in range(1, 100_000):
    with file.transaction() as budget:
        budget.reserve(b"s" * 32, number.to_bytes(32, "big"), "hearts", number, spend)
    print(number, flush=True)
"""


@pytest.mark.parametrize("acknowledged", [1, 7, 40])
def test_every_acknowledged_charge_survives_kill_9(tmp_path, acknowledged):
    path = tmp_path / "b"
    process = subprocess.Popen(
        [sys.executable, "-c", CHARGING_LOOP, str(path), str(Path(budget_fixture.__file__).parent)],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        last = [int(process.stdout.readline()) for _ in range(acknowledged)][-1]
        process.send_signal(signal.SIGKILL)
        last = max([last, *map(int, process.stdout.read().split())])
    assert process.returncode == -signal.SIGKILL
    with closing(BudgetFile(path)) as file:
        charged = [entry.round for entry in file.budget.entries() if entry.kind == "charged"]
        # One more may be committed than was acknowledged, never one fewer.
        assert charged in (list(range(1, last + 1)), list(range(1, last + 2)))


def test_a_full_disk_charges_nothing(tmp_path):
    with closing(fill(tmp_path / "b")) as file:
        pages = file._connection.execute("PRAGMA page_count").fetchone()[0]
        file._connection.execute(f"PRAGMA max_page_count={pages}")
        with pytest.raises((PrivacyError, StorageError)):
            for number in range(4, 10_000):
                with file.transaction() as budget:
                    budget.charge_unaccounted(OTHER, round_plan(number), "lungs", number, SPEND)
        entries = file.budget.entries()
    with closing(BudgetFile(tmp_path / "b")) as file:
        assert file.budget.entries() == entries
