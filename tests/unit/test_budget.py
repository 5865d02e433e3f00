"""The privacy budget: nothing leaves that was not charged, whatever happens in between."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import uuid
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import budget_fixture
import pytest
from budget_fixture import BudgetFile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitalring.database import open_database
from vitalring.edge_agent.accountant import epsilon
from vitalring.edge_agent.budget import (
    CHARGED,
    SCHEMA,
    Budget,
    Entry,
    against,
    committed_of,
    spent_of,
)
from vitalring.errors import PrivacyError, StorageError
from vitalring.protocol.guarantee import Allowance
from vitalring.protocol.privacy import Spend

STUDY, OTHER = b"s" * 32, b"o" * 32
SPEND = Spend(0.1, 1.5, 10)


def linear(spends, delta):
    """A stand-in accountant whose figures can be done in the head: one per 10 steps."""
    return sum(spend.steps for spend in spends) / 10


LOUD, QUIET = replace(SPEND, noise_multiplier=2.0), SPEND
SCHEDULE = [Allowance(LOUD, 2), Allowance(QUIET, 3)]
LIMIT = {"limit": 20.0, "delta": 1e-5, "accountant": linear}


def round_plan(number: int) -> bytes:
    return number.to_bytes(32, "big")


def fill(path, rounds=3):
    file = BudgetFile(path, create=True)
    with file.transaction() as budget:
        budget.authorise(STUDY, "hearts", [Allowance(SPEND, 10)], **LIMIT)
    for number in range(1, rounds + 1):
        with file.transaction() as budget:
            assert budget.reserve(STUDY, round_plan(number), "hearts", number, SPEND)
    return file


def test_charges_add_up_and_survive_reopening(tmp_path):
    path = tmp_path / "budget.sqlite"
    fill(path).close()
    with closing(BudgetFile(path)) as file:
        assert file.budget.spent() == (replace(SPEND, steps=30),)
        assert file.budget.committed() == (replace(SPEND, steps=100),)
        assert LIMIT["accountant"](file.budget.committed(), LIMIT["delta"]) == 10.0
        assert file.budget.is_authorised(STUDY)
        assert not file.budget.is_authorised(OTHER)


def test_a_round_is_charged_once(tmp_path):
    with closing(fill(tmp_path / "b")) as file:
        with file.transaction() as budget:
            assert budget.reserve(STUDY, round_plan(2), "hearts", 2, SPEND) is False
        assert file.budget.spent() == (replace(SPEND, steps=30),)


def test_rounds_need_authorisation_with_the_same_numbers(tmp_path):
    with closing(fill(tmp_path / "b")) as file:
        for study_plan, spend, message in (
            (OTHER, SPEND, "not authorised"),
            (STUDY, replace(SPEND, steps=11), "was authorised for"),
            (STUDY, replace(SPEND, noise_multiplier=0.7), "was authorised for"),
        ):
            with pytest.raises(PrivacyError, match=message), file.transaction() as budget:
                budget.reserve(study_plan, round_plan(9), "hearts", 9, spend)
        with pytest.raises(PrivacyError, match="other numbers"), file.transaction() as budget:
            budget.authorise(STUDY, "hearts", [Allowance(SPEND, 11)], **LIMIT)
        assert file.budget.spent() == (replace(SPEND, steps=30),)


def test_no_more_rounds_than_authorised(tmp_path):
    with closing(fill(tmp_path / "b", rounds=10)) as file:
        with pytest.raises(PrivacyError, match="all are spent"), file.transaction() as budget:
            budget.reserve(STUDY, round_plan(11), "hearts", 11, SPEND)
        # A repeated announcement of a charged round is still only a repetition.
        with file.transaction() as budget:
            assert budget.reserve(STUDY, round_plan(10), "hearts", 10, SPEND) is False


def test_the_limit_spans_studies_and_names_its_numbers(tmp_path):
    with closing(fill(tmp_path / "b")) as file:
        expected = r"epsilon 21\.0000 at delta 1e-05, its limit is 20"
        with pytest.raises(PrivacyError, match=expected), file.transaction() as budget:
            budget.authorise(OTHER, "lungs", [Allowance(SPEND, 11)], **LIMIT)
        assert not file.budget.is_authorised(OTHER)
        with file.transaction() as budget:
            assert budget.authorise(OTHER, "lungs", [Allowance(SPEND, 10)], **LIMIT) == 20.0


def test_a_lowered_limit_stops_a_study_that_was_authorised(tmp_path):
    with closing(fill(tmp_path / "b")) as file:
        with file.transaction() as budget:
            assert budget.authorise(STUDY, "hearts", [Allowance(SPEND, 10)], **LIMIT) == 10.0
        assert len(file.budget.entries()) == 4
        with pytest.raises(PrivacyError, match="its limit is 9"), file.transaction() as budget:
            budget.authorise(STUDY, "hearts", [Allowance(SPEND, 10)], **{**LIMIT, "limit": 9.0})


def test_closing_frees_what_was_not_spent_and_only_that(tmp_path):
    with closing(fill(tmp_path / "b")) as file:
        with file.transaction() as budget:
            budget.close(STUDY)
            budget.close(STUDY)
        assert file.budget.committed() == file.budget.spent() == (replace(SPEND, steps=30),)
        for act in (
            lambda budget: budget.reserve(STUDY, round_plan(7), "hearts", 7, SPEND),
            lambda budget: budget.authorise(STUDY, "hearts", [Allowance(SPEND, 10)], **LIMIT),
        ):
            with pytest.raises(PrivacyError, match="closed"), file.transaction() as budget:
                act(budget)
        with pytest.raises(PrivacyError, match="never authorised"), file.transaction() as budget:
            budget.close(OTHER)


def test_real_accountant_holds_the_limit(tmp_path):
    real = {"limit": 3.0, "delta": 1e-5, "accountant": epsilon}
    with closing(BudgetFile(tmp_path / "b", create=True)) as file:
        with file.transaction() as budget:
            total = budget.authorise(STUDY, "hearts", [Allowance(SPEND, 3)], **real)
        assert total == epsilon([replace(SPEND, steps=30)], 1e-5)
        with pytest.raises(PrivacyError, match="its limit is 3"), file.transaction() as budget:
            budget.authorise(OTHER, "lungs", [Allowance(Spend(0.5, 1.0, 20), 1)], **real)


def scheduled(path):
    """A file with a study of five rounds, the first two of which have more noise."""
    file = BudgetFile(path, create=True)
    with file.transaction() as budget:
        assert budget.authorise(STUDY, "hearts", SCHEDULE, **LIMIT) == 5.0
    return file


def charge(file, number, spend, study=STUDY, **said):
    with file.transaction() as budget:
        return budget.reserve(study, round_plan(number), "hearts", number, spend, **said)


def test_a_schedule_is_authorised_as_a_whole_and_charged_by_stretches(tmp_path):
    with closing(scheduled(tmp_path / "b")) as file:
        assert [e.round for e in file.budget.entries()] == [2, 3]
        assert all(charge(file, n, LOUD if n < 3 else QUIET) for n in range(1, 5))
        assert set(file.budget.spent()) == {replace(LOUD, steps=20), replace(QUIET, steps=20)}
        assert set(file.budget.committed()) == {replace(LOUD, steps=20), replace(QUIET, steps=30)}
        # Announced again, it is a repetition; held against the limit again, it is not written.
        assert charge(file, 1, LOUD) is False
        with file.transaction() as budget:
            assert budget.authorise(STUDY, "hearts", SCHEDULE, **LIMIT) == 5.0
            budget.close(STUDY)
        assert file.budget.committed() == file.budget.spent()


def test_rounds_cannot_all_be_charged_under_the_cheaper_stretch(tmp_path):
    with closing(scheduled(tmp_path / "b")) as file:
        assert charge(file, 1, LOUD) and charge(file, 2, LOUD)
        with pytest.raises(PrivacyError, match="authorised for 2 rounds like round 3"):
            charge(file, 3, LOUD)
        with pytest.raises(PrivacyError, match="was authorised for"):
            charge(file, 3, replace(SPEND, noise_multiplier=3.0))
        assert charge(file, 3, QUIET)


def test_what_the_log_shows_takes_from_its_own_stretch(tmp_path):
    with closing(scheduled(tmp_path / "b")) as file:
        with file.transaction() as budget:
            assert budget.charge_unaccounted(STUDY, round_plan(3), "hearts", 3, QUIET)
        assert set(file.budget.committed()) == {replace(LOUD, steps=20), replace(QUIET, steps=30)}
        assert charge(file, 4, QUIET) and charge(file, 5, QUIET)
        with pytest.raises(PrivacyError, match="all are spent"):
            charge(file, 6, QUIET)
        assert charge(file, 1, LOUD)


@pytest.mark.parametrize(
    "other",
    [
        SCHEDULE[::-1],
        SCHEDULE[:1],
        [Allowance(LOUD, 3), Allowance(QUIET, 2)],
        [*SCHEDULE, Allowance(replace(SPEND, steps=1), 1)],
    ],
)
def test_a_study_keeps_the_schedule_that_was_authorised(tmp_path, other):
    with (
        closing(scheduled(tmp_path / "b")) as file,
        pytest.raises(PrivacyError, match="other numbers"),
        file.transaction() as budget,
    ):
        budget.authorise(STUDY, "hearts", other, **LIMIT)


@pytest.mark.parametrize("allowances", [[], [Allowance(SPEND, 1), Allowance(SPEND, 2)]])
def test_an_authorisation_names_each_spend_once(tmp_path, allowances):
    with closing(BudgetFile(tmp_path / "b", create=True)) as file:
        with pytest.raises(PrivacyError, match="one allowance"), file.transaction() as budget:
            budget.authorise(STUDY, "hearts", allowances, **LIMIT)
        assert file.budget.entries() == ()


def test_death_between_the_entries_of_an_authorisation_leaves_none(tmp_path):
    BudgetFile(tmp_path / "b", create=True).close()
    child = os.fork()
    if child == 0:
        try:
            file, append = BudgetFile(tmp_path / "b"), Budget._append

            def first_alone(budget, entry):
                append(budget, entry)
                os.kill(os.getpid(), signal.SIGKILL)

            Budget._append = first_alone
            with file.transaction() as budget:
                budget.authorise(STUDY, "hearts", SCHEDULE, **LIMIT)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    with closing(BudgetFile(tmp_path / "b")) as file:
        assert file.budget.entries() == ()
        with file.transaction() as budget:
            budget.authorise(STUDY, "hearts", SCHEDULE, **LIMIT)
        assert len(file.budget.entries()) == 2


HEART, STEPS = {"data_class": "heart-rhythm"}, {"data_class": "step-count"}
BOTH = {"classes": ("heart-rhythm", "step-count")}


def test_each_class_of_data_has_the_limit_to_itself(tmp_path):
    allowed = [Allowance(SPEND, 20)]
    with closing(BudgetFile(tmp_path / "b", create=True)) as file:
        with file.transaction() as budget:
            assert budget.authorise(STUDY, "hearts", allowed, **LIMIT, **HEART, **BOTH) == 20.0
        # The class is full, for one round more of another study.
        full = "its heart-rhythm records to epsilon 21"
        with pytest.raises(PrivacyError, match=full), file.transaction() as budget:
            budget.authorise(OTHER, "lungs", [Allowance(SPEND, 1)], **LIMIT, **HEART, **BOTH)
        # The other goes on as if there were nothing.
        with file.transaction() as budget:
            assert budget.authorise(OTHER, "walks", allowed, **LIMIT, **STEPS, **BOTH) == 20.0
            assert budget.reserve(OTHER, round_plan(1), "walks", 1, SPEND, **STEPS)
        assert charge(file, 1, SPEND, **HEART)
        entries = file.budget.entries()
        assert [e.data_class for e in entries] == [
            "heart-rhythm",
            "step-count",
            "step-count",
            "heart-rhythm",
        ]
        assert spent_of(against(entries, "step-count", BOTH["classes"])) == (SPEND,)
        hearts = committed_of(against(entries, "heart-rhythm", BOTH["classes"]))
        assert hearts == (replace(SPEND, steps=200),)


def test_a_new_name_for_the_same_records_frees_nothing(tmp_path):
    """Three studies of the same records, each under another name, have one limit together."""
    first, second, third = ({"data_class": name} for name in ("", "heart-rhythm", "ecg"))
    with closing(BudgetFile(tmp_path / "b", create=True)) as file:
        for name, said, total in ((STUDY, first, 10.0), (OTHER, second, 20.0)):
            with file.transaction() as budget:
                allowed = [Allowance(SPEND, 10)]
                now = {**said, "classes": (said["data_class"],)}
                assert budget.authorise(name, "study", allowed, **LIMIT, **now) == total
        for said in (third, second, first):
            now = {**said, "classes": (said["data_class"],)}
            with pytest.raises(PrivacyError, match="to epsilon 21"), file.transaction() as budget:
                budget.authorise(b"x" * 32, "ecgs", [Allowance(SPEND, 1)], **LIMIT, **now)


@pytest.mark.parametrize(
    ("name", "classes", "wanted"),
    [
        ("heart", ("heart", "steps"), {"heart", "", "gone"}),
        ("steps", ("heart", "steps"), {"steps", "", "gone"}),
        ("heart", ("heart",), {"heart", "steps", "", "gone"}),
        ("", ("", "heart", "steps"), {"heart", "steps", "", "gone"}),
        ("heart", ("", "heart", "steps"), {"heart", "", "gone"}),
        ("heart", (), {"heart", "steps", "", "gone"}),
    ],
)
def test_only_another_class_of_the_device_does_not_count(name, classes, wanted):
    entries = [
        Entry(CHARGED, STUDY, round_plan(1), "study", 1, SPEND, each)
        for each in ("heart", "steps", "", "gone")
    ]
    assert {entry.data_class for entry in against(entries, name, classes)} == wanted


def test_a_study_does_not_change_its_class(tmp_path):
    with closing(BudgetFile(tmp_path / "b", create=True)) as file:
        with file.transaction() as budget:
            budget.authorise(STUDY, "hearts", [Allowance(SPEND, 2)], **LIMIT, **HEART)
        for said in (STEPS, {}):
            with pytest.raises(PrivacyError, match="authorised for"):
                charge(file, 1, SPEND, **said)
            with pytest.raises(PrivacyError, match="other numbers"), file.transaction() as budget:
                budget.authorise(STUDY, "hearts", [Allowance(SPEND, 2)], **LIMIT, **said)
        with file.transaction() as budget:
            budget.close(STUDY)
        assert {e.data_class for e in file.budget.entries()} == {"heart-rhythm"}


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE privacy_budget SET data_class = 'step-count'",
        "UPDATE privacy_budget SET data_class = '' WHERE position = 2",
        # The same letters, cut elsewhere: lengths are hashed too.
        "UPDATE privacy_budget SET data_class = 'heart', study = '-rhythmhearts'",
    ],
)
def test_a_changed_class_is_noticed(tmp_path, change):
    with closing(BudgetFile(tmp_path / "b", create=True)) as file:
        with file.transaction() as budget:
            budget.authorise(STUDY, "hearts", [Allowance(SPEND, 2)], **LIMIT, **HEART)
        assert charge(file, 1, SPEND, **HEART)
    with closing(sqlite3.connect(tmp_path / "b")) as db:
        db.execute(change)
        db.commit()
    with pytest.raises(PrivacyError, match="is damaged"):
        BudgetFile(tmp_path / "b")


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["authorise", "charge", "recover", "close"]),
            st.integers(0, 3),
            st.sampled_from(["heart-rhythm", "step-count"]),
            st.integers(1, 5),
        ),
        max_size=40,
    )
)
def test_no_class_is_ever_committed_beyond_its_limit_by_authorisation(tmp_path, actions):
    """Whatever studies do: what was authorised fits its class, and only the log adds to it."""
    tight = {"limit": 9.0, "delta": 1e-5, "accountant": linear}
    recovered = dict.fromkeys(("heart-rhythm", "step-count"), 0.0)
    with closing(BudgetFile(tmp_path / f"{uuid.uuid4()}", create=True)) as file:
        for action, study, kind, number in actions:
            name = bytes([study]) * 32
            spend = LOUD if number < 3 else QUIET
            args = (name, bytes([study, number]) * 16, f"study-{study}", number, spend)
            before = file.budget.spent()
            with suppress(PrivacyError), file.transaction() as budget:
                if action == "authorise":
                    budget.authorise(name, args[2], SCHEDULE, **tight, **BOTH, data_class=kind)
                elif action == "charge":
                    budget.reserve(*args, data_class=kind)
                elif action == "close":
                    budget.close(name)
                elif budget.charge_unaccounted(*args, data_class=kind):
                    recovered[kind] += 1.0
            entries = file.budget.entries()
            for each, found in recovered.items():
                counted = against(entries, each, BOTH["classes"])
                assert linear(committed_of(counted), 1e-5) <= 9.0 + found
            assert linear(file.budget.spent(), 1e-5) >= linear(before, 1e-5)


def test_studies_of_all_units_add_up(tmp_path):
    """What rounds are charged beside their Gaussian part is kept, and composed."""
    shared = Spend(1.0, 20.0, 1, epsilon=2.0**-24, delta=1e-15)
    real = {"limit": 8.0, "delta": 1e-5, "accountant": epsilon}
    with closing(BudgetFile(tmp_path / "b", create=True)) as file:
        with file.transaction() as budget:
            alone = budget.authorise(STUDY, "hearts", [Allowance(SPEND, 3)], **real)
            together = budget.authorise(OTHER, "lungs", [Allowance(shared, 20)], **real)
            budget.reserve(OTHER, round_plan(1), "lungs", 1, shared)
        assert (
            alone < together == epsilon([replace(SPEND, steps=30), replace(shared, steps=20)], 1e-5)
        )
        assert file.budget.spent() == (shared,)
        assert set(file.budget.committed()) == {
            replace(SPEND, steps=30),
            replace(shared, steps=20),
        }


def test_an_accountant_without_a_number_allows_nothing(tmp_path):
    broken = {**LIMIT, "accountant": lambda spends, delta: float("nan")}
    with closing(BudgetFile(tmp_path / "b", create=True)) as file:
        with pytest.raises(PrivacyError), file.transaction() as budget:
            budget.authorise(STUDY, "hearts", [Allowance(SPEND, 1)], **broken)
        assert file.budget.entries() == ()


def test_a_restored_backup_is_charged_from_the_log(tmp_path):
    path, backup = tmp_path / "b", tmp_path / "backup"
    fill(path, rounds=2).close()
    shutil.copy(path, backup)
    with closing(BudgetFile(path)) as file:
        for number in (3, 4):
            with file.transaction() as budget:
                budget.reserve(STUDY, round_plan(number), "hearts", number, SPEND)
    for leftover in tmp_path.glob("b-*"):
        leftover.unlink()
    shutil.copy(backup, path)
    with closing(BudgetFile(path)) as file:
        assert file.budget.spent() == (replace(SPEND, steps=20),)
        with file.transaction() as budget:
            found = [
                budget.charge_unaccounted(STUDY, round_plan(n), "hearts", n, SPEND)
                for n in range(1, 5)
            ]
        assert found == [False, False, True, True]
        assert file.budget.spent() == (replace(SPEND, steps=40),)
        # They also count against what the study was allowed.
        assert file.budget.committed() == (replace(SPEND, steps=100),)
        # A study this backup never heard of is charged as well.
        with file.transaction() as budget:
            assert budget.charge_unaccounted(OTHER, round_plan(1), "lungs", 1, SPEND)
        assert file.budget.committed() == (replace(SPEND, steps=110),)


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
        spent = sum(spend.steps for spend in file.budget.spent())
        assert spent == 10 * len(left)
        assert sum(spend.steps for spend in file.budget.committed()) >= spent
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
