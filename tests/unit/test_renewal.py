"""The wearer's model follows verified plans; whatever goes wrong with it, learning goes on."""

import dataclasses
import logging

import numpy as np
import pytest
from device_fixture import FLOORS, FixedRecords, announce, announced, catch_up, keyring, linear
from federation_fixture import Parties
from wearer_fixture import NETWORK, beats, int8_of, real_federation

from vitalring.edge_agent import model_in_use, personal_files, state
from vitalring.edge_agent.agent import Agent
from vitalring.edge_agent.budget import Budget
from vitalring.edge_agent.personal import PersonalSettings, keep_back, keep_rule, with_head
from vitalring.edge_agent.renewal import Renewal
from vitalring.edge_agent.workshop import Workshop
from vitalring.errors import DataError, RecordError, TransportError
from vitalring.gateway import rounds, store
from vitalring.models.artefact import initial_weights, load_artefact
from vitalring.models.runtime import TrainableModel
from vitalring.protocol import trust
from vitalring.protocol.cbor import digest
from vitalring.protocol.signing import sign
from vitalring.protocol.weights import pack_weights

FLOORS_OPEN = dataclasses.replace(FLOORS, allow_no_privacy=True)


@pytest.fixture(scope="module")
def real():
    return real_federation()


@pytest.fixture
def parties(real, tmp_path):
    parties = Parties(real, tmp_path / "parties")
    yield parties
    parties.close_databases()


class Fetch:
    """Reads objects where the gateway keeps them; those in `missing` nobody has."""

    def __init__(self, parties):
        self.parties = parties
        self.missing = set()

    def __call__(self, name):
        content = store.get_object(self.parties.db, name)
        if name in self.missing or content is None:
            raise TransportError(f"nobody has {name.hex()}")
        return content


@pytest.fixture
def make(parties, tmp_path):
    """Make a device that keeps a model; returns the agent, its state folder and its fetching."""
    databases = []

    def make(participation=1.0, personal=None, records=None):
        folder = tmp_path / "device"
        fetch = Fetch(parties)
        workshop = Workshop(parties.federation.study.federation, folder / "cache", fetch)
        db = state.open_state(folder)
        databases.append(db)
        pair = parties.federation.devices[0]
        agent = Agent(
            db,
            Budget(db),
            keyring(folder / "keys", pair),
            FixedRecords(beats() if records is None else records),
            FLOORS_OPEN,
            participation,
            workshop,
            linear,
            Renewal(folder, workshop, personal),
        )
        catch_up(agent, parties)
        return agent, folder, fetch

    yield make
    for db in databases:
        db.close()


def begin_second_round(parties):
    parties.run_round(range(5))
    parties.begin(parties.propose())


def weights_named(parties, name):
    return np.frombuffer(store.get_object(parties.db, name), "<f4")


def test_fresh_weights_are_no_model(parties, make):
    parties.begin(parties.propose())
    agent, folder, _ = make()
    assert agent.consider(announced(parties), parties.now_ms) == "ready"
    assert model_in_use.load(folder) is None


def test_a_verified_plan_and_the_final_model_renew_the_model_in_use(parties, make):
    begin_second_round(parties)
    agent, folder, _ = make()
    assert agent.consider(announced(parties), parties.now_ms) == "ready"
    first = model_in_use.load(folder)
    signed = rounds.latest(parties.db).signed_plan
    plan = trust.open_round_plan(signed, parties.federation.study)
    weights = weights_named(parties, plan.weights)
    assert np.array_equal(first.weights, weights)
    assert first.int8 == int8_of(weights)
    about = first.about
    assert (about.study, about.round, about.final, about.head) == ("study", 1, False, "global")
    assert about.record == digest(signed).hex()
    assert (about.signatures, about.quorum) == (1, 1)
    assert about.log_entries == state.known_checkpoint(agent.db).size
    # The last round ends, and with it the study.
    parties.end_round(range(1, 6))
    final = rounds.last_model(parties.db)
    agent.end_study(final)
    last = model_in_use.load(folder)
    assert (last.about.round, last.about.final, last.about.log_entries) == (2, True, 0)
    assert last.about.record == digest(final).hex()
    assert last.int8 == int8_of(last.weights) != first.int8


def test_a_device_that_sits_out_has_the_newest_model_too(parties, make):
    begin_second_round(parties)
    agent, folder, _ = make(participation=0.0)
    assert agent.consider(announced(parties), parties.now_ms) == "sits this round out"
    assert model_in_use.load(folder).about.round == 1


def test_a_device_without_records_has_the_newest_model_too(parties, make, monkeypatch):
    begin_second_round(parties)
    agent, folder, _ = make()

    def nothing(_study):
        raise DataError("no labelled window yet")

    monkeypatch.setattr(agent._source, "records", nothing)
    with pytest.raises(DataError):
        agent.consider(announced(parties), parties.now_ms)
    assert model_in_use.load(folder).about.round == 1


def test_a_companion_that_nobody_has_stops_no_training(parties, make, caplog):
    begin_second_round(parties)
    agent, folder, fetch = make()
    fetch.missing = set(parties.federation.study.plan.model.companions)
    with caplog.at_level(logging.WARNING):
        assert agent.consider(announced(parties), parties.now_ms) == "ready"
    assert "is not put in use" in caplog.text
    assert model_in_use.load(folder) is None
    # It is made up for when the round is announced again.
    fetch.missing = set()
    assert agent.consider(announced(parties), parties.now_ms) == "already ready"
    assert model_in_use.load(folder).about.round == 1


def test_a_failed_renewal_leaves_the_older_model(parties, make, caplog):
    begin_second_round(parties)
    agent, folder, fetch = make()
    agent.consider(announced(parties), parties.now_ms)
    before = model_in_use.load(folder).about
    parties.end_round(range(1, 6))
    final = rounds.last_model(parties.db)
    model = trust.open_model(final, parties.federation.study.federation, agent_plan(parties))
    fetch.missing = {model.weights}
    agent.end_study(final)
    assert "is not put in use" in caplog.text
    assert model_in_use.load(folder).about == before


def agent_plan(parties):
    return parties.federation.study.plan


def test_a_second_plan_for_the_same_round_changes_nothing(parties, make):
    begin_second_round(parties)
    agent, folder, _ = make()
    agent.consider(announced(parties), parties.now_ms)
    before = model_in_use.load(folder).about
    signed = rounds.latest(parties.db).signed_plan
    plan = trust.open_round_plan(signed, parties.federation.study)
    start = initial_weights(load_artefact(NETWORK), bytes(32))
    other = dataclasses.replace(
        plan, opens_ms=plan.opens_ms + 1, weights=digest(pack_weights(start))
    )
    forged = sign(other, [parties.federation.aggregator_seed])
    store.put_object(parties.db, digest(pack_weights(start)), pack_weights(start))
    with pytest.raises(RecordError, match="another plan"):
        agent.consider(announce(parties, forged), parties.now_ms)
    assert model_in_use.load(folder).about == before


SETTINGS = PersonalSettings(least_records=10)


def finish_study(parties, agent):
    """The second round, which ends the study, and the agent sees its model."""
    agent.consider(announced(parties), parties.now_ms)
    parties.end_round(range(1, 6))
    final = rounds.last_model(parties.db)
    agent.end_study(final)
    return trust.open_model(final, parties.federation.study.federation, agent_plan(parties))


def test_no_head_is_fitted_to_weights_that_the_next_round_replaces(parties, make):
    begin_second_round(parties)
    agent, folder, _ = make(personal=SETTINGS)
    assert agent.consider(announced(parties), parties.now_ms) == "ready"
    assert personal_files.load_result(folder) is None
    assert model_in_use.load(folder).about.head == "global"


def test_a_personal_head_takes_the_place_of_the_global_one_and_is_named(parties, make):
    begin_second_round(parties)
    agent, folder, _ = make(personal=SETTINGS)
    model = finish_study(parties, agent)
    loaded = model_in_use.load(folder)
    assert personal_files.load_result(folder).used
    assert loaded.about.head == "personal"
    head = personal_files.load_head(folder, loaded.weights)
    own = with_head(loaded.weights, head)
    assert loaded.about.personal == digest(pack_weights(own)).hex()
    assert loaded.int8 == int8_of(own) != int8_of(loaded.weights)
    # The weights that are kept are everybody's.
    assert loaded.about.weights == model.weights.hex()


def test_a_head_that_cannot_be_judged_leaves_the_global_one(parties, make):
    begin_second_round(parties)
    agent, folder, _ = make(personal=PersonalSettings(least_records=10_000))
    finish_study(parties, agent)
    loaded = model_in_use.load(folder)
    assert loaded.about.head == "global"
    assert loaded.int8 == int8_of(loaded.weights)


def test_learning_does_not_see_what_judges_the_head(parties, make, monkeypatch):
    begin_second_round(parties)
    agent, _, _ = make(personal=SETTINGS)
    seen = []
    real_sum = TrainableModel.gradient_sum

    def gradient_sum(self, weights, x, y, clip):
        seen.extend(row.tobytes() for row in x)
        return real_sum(self, weights, x, y, clip)

    monkeypatch.setattr(TrainableModel, "gradient_sum", gradient_sum)
    agent.consider(announced(parties), parties.now_ms)
    parts = keep_back(beats(), keep_rule(agent_plan(parties).privacy.unit))
    assert {row.tobytes() for row in parts.train.x} & set(seen)
    assert not {row.tobytes() for row in (*parts.judge.x, *parts.choose.x)} & set(seen)
