"""The privacy budget: what is authorised, charged and refused."""

import os
import shutil
import signal
import sqlite3
import uuid
from contextlib import closing, suppress
from dataclasses import replace

import pytest
from budget_fixture import (
    LIMIT,
    LOUD,
    OTHER,
    QUIET,
    SCHEDULE,
    SPEND,
    STUDY,
    BudgetFile,
    fill,
    linear,
    round_plan,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitalring.edge_agent.accountant import epsilon
from vitalring.edge_agent.budget import (
    CHARGED,
    Budget,
    Entry,
    against,
    committed_of,
    spent_of,
)
from vitalring.errors import PrivacyError
from vitalring.protocol.guarantee import Allowance
from vitalring.protocol.privacy import Spend


def test_charges_add_up_and_survive_reopening(tmp_path):
    path = tmp_path / "budget.sqlite"
    fill(path).close()
    with closing(BudgetFile(path)) as file:
        assert spent_of(file.budget.entries()) == (replace(SPEND, steps=30),)
        assert committed_of(file.budget.entries()) == (replace(SPEND, steps=100),)
        assert LIMIT["accountant"](committed_of(file.budget.entries()), LIMIT["delta"]) == 10.0
        assert file.budget.is_authorised(STUDY)
        assert not file.budget.is_authorised(OTHER)


def test_a_round_is_charged_once(tmp_path):
    with closing(fill(tmp_path / "b")) as file:
        with file.transaction() as budget:
            assert budget.reserve(STUDY, round_plan(2), "hearts", 2, SPEND) is False
        assert spent_of(file.budget.entries()) == (replace(SPEND, steps=30),)


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
        assert spent_of(file.budget.entries()) == (replace(SPEND, steps=30),)


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
        assert (
            committed_of(file.budget.entries())
            == spent_of(file.budget.entries())
            == (replace(SPEND, steps=30),)
        )
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
        assert set(spent_of(file.budget.entries())) == {
            replace(LOUD, steps=20),
            replace(QUIET, steps=20),
        }
        assert set(committed_of(file.budget.entries())) == {
            replace(LOUD, steps=20),
            replace(QUIET, steps=30),
        }
        # Announced again, it is a repetition; held against the limit again, it is not written.
        assert charge(file, 1, LOUD) is False
        with file.transaction() as budget:
            assert budget.authorise(STUDY, "hearts", SCHEDULE, **LIMIT) == 5.0
            budget.close(STUDY)
        assert committed_of(file.budget.entries()) == spent_of(file.budget.entries())


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
        assert set(committed_of(file.budget.entries())) == {
            replace(LOUD, steps=20),
            replace(QUIET, steps=30),
        }
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
            before = spent_of(file.budget.entries())
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
            assert linear(spent_of(file.budget.entries()), 1e-5) >= linear(before, 1e-5)


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
        assert spent_of(file.budget.entries()) == (shared,)
        assert set(committed_of(file.budget.entries())) == {
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
        assert spent_of(file.budget.entries()) == (replace(SPEND, steps=20),)
        with file.transaction() as budget:
            found = [
                budget.charge_unaccounted(STUDY, round_plan(n), "hearts", n, SPEND)
                for n in range(1, 5)
            ]
        assert found == [False, False, True, True]
        assert spent_of(file.budget.entries()) == (replace(SPEND, steps=40),)
        # They also count against what the study was allowed.
        assert committed_of(file.budget.entries()) == (replace(SPEND, steps=100),)
        # A study this backup never heard of is charged as well.
        with file.transaction() as budget:
            assert budget.charge_unaccounted(OTHER, round_plan(1), "lungs", 1, SPEND)
        assert committed_of(file.budget.entries()) == (replace(SPEND, steps=110),)
