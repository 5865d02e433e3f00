"""Limits by class of data: what the device's owner says decides, never what a plan says."""

import shutil
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from device_fixture import FLOORS, announce_round, announced, catch_up, charges, device, linear
from federation_fixture import FOLLOWING, NO_PRIVACY, SOME_PRIVACY, Parties, small_federation

from vitalring.config import load_config
from vitalring.database import open_database, transaction
from vitalring.edge_agent import agent as agent_module
from vitalring.edge_agent import state
from vitalring.edge_agent.budget import (
    AUTHORISED,
    CHARGED,
    UNACCOUNTED,
    Budget,
    against,
    committed_of,
    spent_of,
)
from vitalring.edge_agent.config import AgentConfig, Floors
from vitalring.edge_agent.main import _records
from vitalring.edge_agent.records import DataSetRecords, StreamRecords
from vitalring.edge_agent.spending import spending
from vitalring.errors import ConfigError, DataError, PrivacyError, StorageError
from vitalring.gateway import rounds
from vitalring.models.dataset import load_dataset
from vitalring.protocol.cbor import decode
from vitalring.protocol.guarantee import budget_spend
from vitalring.protocol.records import SealedUpdate
from vitalring.tools.commands.federation import _check_held_out
from vitalring.tools.privacy_text import spending_lines
from vitalring.tools.simulate.layout import SHIPPED_DATA

HEART, STEPS = "heart-rhythm", "step-count"
EVERY_ROUND = 4.0
"""What the forty rounds of a small federation's study come to by the linear accountant."""


def study_of(folder, data_class, **options):
    options = {"privacy": SOME_PRIVACY, "name": data_class or "nothing", **options}
    return Parties(small_federation(data_class=data_class, **options), folder / options["name"])


@pytest.fixture
def studies(tmp_path):
    """Two studies of one federation, each of a class, and one of none."""
    made = {name: study_of(tmp_path / "parties", name) for name in (HEART, STEPS, "")}
    for parties in made.values():
        parties.begin(parties.propose())
    yield made
    for parties in made.values():
        parties.close_databases()


def kinds(agent):
    return [(entry.kind, entry.data_class) for entry in Budget(agent.db).entries()]


def considered(parties, folder, *data_classes, **options):
    """What a device with records of these classes says to the open round, and its budget."""
    agent = device(parties, folder, data_classes=data_classes, **options)
    with closing(agent.db):
        return agent.consider(announced(parties), parties.now_ms), kinds(agent)


@pytest.mark.parametrize(
    ("have", "named", "words"),
    [
        (HEART, STEPS, "the study is about step-count and this device's records are heart-rhythm"),
        (HEART, "", "the study is about data of no class and this device's records are heart"),
        ("", HEART, "the study is about heart-rhythm and this device's records are of no class"),
    ],
)
def test_a_plan_that_calls_records_something_else_is_refused(studies, tmp_path, have, named, words):
    said, entries = considered(studies[named], tmp_path / "device", have)
    assert said.startswith(words)
    assert entries == []


@pytest.mark.parametrize("named", [HEART, STEPS, ""])
def test_a_plan_that_says_the_same_is_charged_to_its_class(studies, tmp_path, named):
    said, entries = considered(studies[named], tmp_path / "device", named)
    assert said == "ready"
    assert entries == [(AUTHORISED, named), (CHARGED, named)]


def test_one_class_reaches_its_limit_and_the_other_goes_on(studies, tmp_path):
    """One budget, full of heart rhythm: studies of steps go on as if there were nothing."""
    floors = replace(FLOORS, epsilon=EVERY_ROUND)
    for named, said in ((HEART, "refused"), (STEPS, "ready")):
        agent = device(studies[named], tmp_path / named, data_classes=(HEART, STEPS), floors=floors)
        spend = budget_spend(studies[HEART].federation.study.plan.terms, 1)
        with transaction(agent.db):
            agent._budget.charge_unaccounted(
                b"o" * 32, bytes(32), "other", 1, spend, data_class=HEART
            )
        if said == "ready":
            assert agent.consider(announced(studies[named]), studies[named].now_ms) == "ready"
        else:
            with pytest.raises(PrivacyError, match=r"its heart-rhythm records to epsilon 4\.1"):
                agent.consider(announced(studies[named]), studies[named].now_ms)
        agent.db.close()


def test_records_that_are_called_something_else_have_spent_the_same(studies, tmp_path):
    """One data set, named only after its first study: the next finds what that one took."""
    parties, floors = studies[HEART], replace(FLOORS, epsilon=EVERY_ROUND)
    spend = budget_spend(parties.federation.study.plan.terms, 1)
    for earlier in ("", STEPS):
        folder = tmp_path / (earlier or "none")
        agent = device(parties, folder, data_classes=(HEART,), floors=floors)
        with closing(agent.db):
            with transaction(agent.db):
                agent._budget.charge_unaccounted(
                    b"o" * 32, bytes(32), "other", 1, spend, data_class=earlier
                )
            with pytest.raises(PrivacyError, match=r"its heart-rhythm records to epsilon 4\.1"):
                agent.consider(announced(parties), parties.now_ms)


def test_a_class_may_have_a_limit_of_its_own(studies, tmp_path):
    floors = replace(FLOORS, classes={HEART: 0.9 * EVERY_ROUND})
    with pytest.raises(PrivacyError, match=r"its limit is 3\.6"):
        considered(studies[HEART], tmp_path / "one", HEART, STEPS, floors=floors)
    said, _ = considered(studies[STEPS], tmp_path / "other", HEART, STEPS, floors=floors)
    assert said == "ready"


def test_a_class_without_a_limit_of_its_own_has_that_of_all():
    floors = Floors(epsilon=8.0, classes={HEART: 1.0})
    assert [floors.limit(name) for name in (HEART, STEPS, "")] == [1.0, 8.0, 8.0]


def test_what_a_restored_folder_finds_counts_for_the_class_of_its_study(tmp_path):
    terms = replace(SOME_PRIVACY, schedule=(1.5, 1.0))
    parties = study_of(tmp_path / "parties", HEART, privacy=terms, study_rounds=2)
    folder = tmp_path / "device"
    shutil.copytree(folder_of(parties, folder), tmp_path / "backup")
    for _ in range(2):
        parties.begin(parties.propose())
        agent = device(parties, folder, data_classes=(HEART,))
        assert agent.consider(announced(parties), parties.now_ms) == "ready"
        (pending,) = state.outbox(agent.db)
        parties.admit(parties.federation.box(decoded(pending)))
        parties.end_round((1, 2, 3, 4))
        assert agent.receipts(rounds.latest(parties.db).receipts)
        agent.db.close()
    # Its owner has called the records something else since; the entry keeps the study's class,
    # and counts for any name that the records have now.
    restored = device(parties, tmp_path / "backup", data_classes=(STEPS,), caught_up=False)
    catch_up(restored, parties)
    assert charges(restored) == [(UNACCOUNTED, 1), (UNACCOUNTED, 2)]
    entries = Budget(restored.db).entries()
    assert {entry.data_class for entry in entries} == {HEART}
    assert against(entries, STEPS, (STEPS,)) == entries
    # Each round for what it spent by its number.
    plan = parties.federation.study.plan
    assert [entry.spend for entry in entries] == [budget_spend(plan.terms, n) for n in (1, 2)]
    assert entries[0].spend.noise_multiplier > entries[1].spend.noise_multiplier
    restored.db.close()
    parties.close_databases()


def folder_of(parties, folder):
    device(parties, folder, data_classes=(HEART,)).db.close()
    return folder


def decoded(pending):
    return decode(SealedUpdate, pending.update)


def test_a_schedule_is_trained_and_charged_by_the_number_of_the_round(tmp_path, monkeypatch):
    """The noise of a round is that of its charge, and another number's is not taken."""
    used = []
    learn = agent_module.learn
    monkeypatch.setattr(
        agent_module,
        "learn",
        lambda model, start, rows, terms, coins, factor: (
            used.append(terms.privacy) or learn(model, start, rows, terms, coins, factor)
        ),
    )
    terms = replace(SOME_PRIVACY, schedule=(2.0, 1.0))
    parties = study_of(tmp_path / "parties", "", privacy=terms, study_rounds=2)
    agent = device(parties, tmp_path / "device")
    for number in (1, 2):
        assert agent.consider(announce_round(parties), parties.now_ms) == "ready"
        parties.end_round((1, 2, 3, 4))
        agent.receipts(rounds.latest(parties.db).receipts)
        assert charges(agent) == [(CHARGED, n) for n in range(1, number + 1)]
    assert [each.noise_multiplier for each in used] == [4.0, 2.0]
    assert [each.schedule for each in used] == [(), ()]
    plan = parties.federation.study.plan
    spends = [entry.spend for entry in Budget(agent.db).entries() if entry.kind == CHARGED]
    assert spends == [budget_spend(plan.terms, number) for number in (1, 2)]
    assert committed_of(agent._budget.entries()) == spent_of(agent._budget.entries())
    agent.db.close()
    parties.close_databases()


def test_a_device_that_counts_rounds_wrongly_is_stopped_by_its_budget(tmp_path, monkeypatch):
    """Off by one, every round of the second stretch would be free in the first or refused."""
    monkeypatch.setattr(agent_module, "budget_spend", lambda terms, number: budget_spend(terms, 2))
    terms = replace(SOME_PRIVACY, schedule=(2.0, 1.0))
    parties = study_of(tmp_path / "parties", "", privacy=terms, study_rounds=2)
    agent = device(parties, tmp_path / "device")
    assert agent.consider(announce_round(parties), parties.now_ms) == "ready"
    parties.end_round((1, 2, 3, 4))
    agent.receipts(rounds.latest(parties.db).receipts)
    parties.begin(parties.propose())
    with pytest.raises(PrivacyError, match="all are spent"):
        agent.consider(announced(parties), parties.now_ms)
    agent.db.close()
    parties.close_databases()


# Where the records come from, and what the owner's file says of them.


def data_set(folder, *, data_class=None, x=0.0):
    (folder / "devices").mkdir(parents=True)
    rows = np.full((12, 4, 1), x, np.float32)
    np.savez(folder / "devices" / "d0.npz", x=rows, y=np.arange(12) % 2)
    said = f'data_class = "{data_class}"\n' if data_class is not None else ""
    (folder / "dataset.toml").write_text(
        f'name = "n"\nkind = "windows"\nclasses = ["no", "yes"]\nsampling_hz = 1\n{said}'
        "test_devices = []\n"
    )
    return folder


@pytest.mark.parametrize(
    ("file", "owner", "wanted"),
    [(None, "", ""), (HEART, "", HEART), (None, HEART, HEART), (HEART, HEART, HEART)],
)
def test_data_set_and_owner_may_both_say_the_class(tmp_path, file, owner, wanted):
    folder = data_set(tmp_path / "data", data_class=file)
    assert DataSetRecords(folder, "d0", {}.__getitem__, owner).data_classes == (wanted,)


def test_where_both_say_it_they_agree(tmp_path):
    folder = data_set(tmp_path / "data", data_class=HEART)
    with pytest.raises(DataError, match=r"dataset\.toml says data_class heart-rhythm.* step-count"):
        DataSetRecords(folder, "d0", {}.__getitem__, STEPS)


@pytest.mark.parametrize("name", ["Heart", "-heart", "a" * 33, "a b", 7, ["heart"]])
def test_a_data_sets_class_is_a_name(tmp_path, name):
    folder = data_set(tmp_path / "data")
    path = folder / "dataset.toml"
    path.write_text(f"data_class = {name!r}\n" + path.read_text())
    with pytest.raises(DataError, match="data_class is"):
        load_dataset(folder)


def test_the_shipped_heartbeats_are_heart_rhythm():
    assert load_dataset(SHIPPED_DATA).data_class == HEART


def test_who_founds_a_study_is_told_that_devices_would_refuse_it(studies, tmp_path):
    folder = data_set(tmp_path / "data", data_class=HEART)
    plans = {name: parties.federation.study.plan for name, parties in studies.items()}
    _check_held_out(folder, plans[HEART])
    _check_held_out(data_set(tmp_path / "unsaid"), plans[HEART])
    for name, words in ((STEPS, "the study step-count"), ("", "the study none")):
        with pytest.raises(ConfigError, match=f"says data_class heart-rhythm, {words}"):
            _check_held_out(folder, plans[name])


def streams_of(tmp_path):
    return StreamRecords(
        {
            name: DataSetRecords(
                data_set(tmp_path / name, x=float(place)), "d0", {}.__getitem__, name
            )
            for place, name in enumerate((HEART, STEPS))
        }
    )


def test_a_study_gets_the_records_of_its_class_and_no_others(studies, tmp_path):
    source = streams_of(tmp_path)
    assert source.data_classes == (HEART, STEPS)
    for place, name in enumerate((HEART, STEPS)):
        found = source.records(studies[name].federation.study)
        assert set(found.x.ravel()) == {float(place)}
    with pytest.raises(DataError, match="is about no class of data, this device has heart-rhythm"):
        source.records(studies[""].federation.study)
    with pytest.raises(DataError, match="no table to take statistics of"):
        source.answer(studies[HEART].federation.study)


def test_windows_held_out_by_place_serve_no_study_of_unit_record(tmp_path):
    folder = data_set(tmp_path / "data")
    toml = folder / "dataset.toml"
    by_devices = toml.read_text()
    toml.write_text(by_devices.replace("test_devices = []", "test_fraction = 0.25"))
    source = DataSetRecords(folder, "d0", {}.__getitem__)
    for terms in ({"privacy": NO_PRIVACY}, FOLLOWING):  # units none and device
        assert len(source.records(small_federation(**terms).study)) == 9
    study = small_federation(privacy=SOME_PRIVACY).study
    with pytest.raises(DataError, match=r"data/dataset\.toml: test_fraction of windows") as refused:
        source.records(study)
    for cure in ("with test_devices", "a file of their own", "test_devices = []", "unit device"):
        assert cure in str(refused.value)
    # The cure that it names for a device's own folder is one.
    toml.write_text(by_devices)
    assert len(DataSetRecords(folder, "d0", {}.__getitem__).records(study)) == 12


AGENT = """
federation = "federation.cbor"
authority_key = "{key}"
cohort = "ward"
ring_keys = "keys"
state_dir = "state"
{said}
[broker]
url = "mqtt://127.0.0.1:1883"
"""
TWO = """
[streams.heart-rhythm]
data = "heart-rhythm"
device = "d0"
[streams.step-count]
data = "step-count"
device = "d0"
[floors.classes]
heart-rhythm = 2.0
"""


def config_of(folder, said="", tables=""):
    path = folder / "agent.toml"
    path.write_text(AGENT.format(key="00" * 32, said=said) + tables)
    return load_config(AgentConfig, path)


def test_streams_of_a_configuration_are_found_beside_it(tmp_path, studies):
    for name in (HEART, STEPS):
        data_set(tmp_path / name)
    config = config_of(tmp_path, "keep_model = false", TWO)
    assert config.data_classes == (HEART, STEPS)
    assert config.streams[HEART].data == tmp_path / HEART
    assert [config.floors.limit(name) for name in (HEART, STEPS)] == [2.0, 8.0]

    class NoObjects:
        object = {}.__getitem__

    source = _records(config, NoObjects())
    assert source.data_classes == (HEART, STEPS)
    assert len(source.records(studies[HEART].federation.study)) == 12


@pytest.mark.parametrize(
    ("said", "tables", "words"),
    [
        ("", TWO, r"\[streams\] needs keep_model = false"),
        ('keep_model = false\npersonalise = "head"', TWO, "needs keep_model = false and personal"),
        (
            'keep_model = false\ndata = "d"\ndevice = "d0"',
            TWO,
            "more than one of the three is given",
        ),
        (f'keep_model = false\ndata_class = "{HEART}"', TWO, "a stream's name is its class"),
        (
            "keep_model = false",
            TWO.replace('data = "step-count"', 'data = "heart-rhythm"'),
            "the same data and device: a record belongs to one class",
        ),
        (
            "keep_model = false",
            TWO.replace('data = "step-count"', 'data = "elsewhere/../heart-rhythm"'),
            "the same data and device: a record belongs to one class",
        ),
        (
            "keep_model = false",
            TWO.replace("heart-rhythm = 2.0", "heart-rythm = 2.0"),
            r"limits heart-rythm, and this device's records are heart-rhythm, step-count",
        ),
        ("", "", "none of the three is given"),
        ("keep_model = false", TWO.replace("step-count]", "Step_Count]"), "streams key is"),
        ("keep_model = false", TWO.replace("2.0", "101.0"), "heart-rhythm is 101.0, must lie"),
        ('data = "d"\ndevice = "d0"\ndata_class = "Heart"', "", "data_class is 'Heart'"),
    ],
)
def test_configurations_that_do_not_fit_are_refused_by_name(tmp_path, said, tables, words):
    with pytest.raises(ConfigError, match=words):
        config_of(tmp_path, said, tables)


def test_one_folder_under_two_names_is_no_second_class(tmp_path):
    data_set(tmp_path / HEART)
    (tmp_path / STEPS).symlink_to(HEART, target_is_directory=True)
    with pytest.raises(ConfigError, match="the same data and device"):
        config_of(tmp_path, "keep_model = false", TWO)


@pytest.mark.parametrize("have", ["", STEPS])
def test_a_limit_of_a_class_that_a_device_has_not_stops_its_start(studies, tmp_path, have):
    floors = replace(FLOORS, classes={HEART: 2.0})
    said = f"limits heart-rhythm, and this device's records are {have or 'of no class'}"
    with pytest.raises(ConfigError, match=said):
        device(studies[HEART], tmp_path, data_classes=(have,), floors=floors)


def test_a_class_with_a_limit_takes_part_in_nothing_without_a_guarantee(tmp_path):
    """Studies without one are allowed, for steps: heart rhythm has a limit that they would pass."""
    floors = replace(FLOORS, allow_no_privacy=True, classes={HEART: 2.0})
    for named, words in (
        (HEART, "no privacy and this device insists on it for heart"),
        (STEPS, ""),
    ):
        parties = study_of(tmp_path / "parties", named, privacy=NO_PRIVACY)
        parties.begin(parties.propose())
        said, entries = considered(parties, tmp_path / named, HEART, STEPS, floors=floors)
        assert (words in said) if words else said == "ready"
        assert entries == []
        parties.close_databases()


def test_a_report_says_what_each_class_spent_and_has_left(studies, tmp_path):
    folder = tmp_path / "state"
    floors = replace(FLOORS, classes={HEART: 5.0})
    considered(studies[HEART], folder, HEART, STEPS, floors=floors)
    config = replace(
        config_of(tmp_path, f'data = "d"\ndevice = "d0"\ndata_class = "{STEPS}"'), floors=floors
    )
    found = spending(config, linear)
    heart, steps = found.classes
    assert (heart.data_class, heart.epsilon_spent, heart.epsilon_promised) == (HEART, 0.1, 4.0)
    assert (heart.epsilon_limit, heart.epsilon_left) == (5.0, 1.0)
    # This file knows the steps alone, which may be the same records under another name.
    assert (steps.data_class, steps.epsilon_spent, steps.epsilon_left) == (STEPS, 0.1, 4.0)
    assert [study.data_class for study in found.studies] == [HEART]
    text = "\n".join(spending_lines(found))
    assert "0.1000 of 5 at delta 1e-05, over all studies that count for heart-rhythm" in text
    assert "left      epsilon 4.0000 for other studies of step-count; one" in text
    assert "  data      heart-rhythm" in text


def test_a_schedules_study_counts_all_its_rounds_in_the_report(tmp_path):
    terms = replace(SOME_PRIVACY, schedule=(2.0, 1.0, 1.5))
    parties = study_of(tmp_path / "parties", HEART, privacy=terms)
    parties.begin(parties.propose())
    assert considered(parties, tmp_path / "state", HEART)[0] == "ready"
    parties.close_databases()
    (study,) = spending(config_of(tmp_path, 'data = "d"\ndevice = "d0"'), linear).studies
    assert (study.rounds_allowed, study.rounds_charged, study.rounds_left) == (40, 1, 39)
    assert (study.epsilon_spent, study.epsilon_promised) == (0.1, EVERY_ROUND)


def test_a_folder_of_an_older_layout_names_the_cure(tmp_path):
    open_database(tmp_path / "agent.sqlite", "CREATE TABLE t (x)", state.LAYOUT - 1).close()
    with pytest.raises(StorageError, match=r"reads layout 4: .* found the federation anew"):
        state.open_state(tmp_path)
