"""A study as a hospital runs it: every step a command, every party a process, Mosquitto with TLS.

The tests share one run; each looks at another promise.
"""

import json
import sqlite3
from contextlib import closing

import pytest
from services_fixture import (
    COHORT,
    FEDERATION,
    Hospital,
    vitalring,
    wait_for,
)

from vitalring.edge_agent import budget
from vitalring.protocol import blobs, topics
from vitalring.protocol.cbor import decode, type_of
from vitalring.protocol.records import GlobalModel
from vitalring.protocol.signing import Signed

pytestmark = pytest.mark.mosquitto

ROUNDS = 3
DEVICES = 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study that has run to its final model; broker, gateway and agents are still at work."""
    hospital = Hospital(
        tmp_path_factory.mktemp("hospital") / "study",
        rounds=ROUNDS,
        devices=DEVICES,
        timeout_s=300,
        retry_s=5,
        # One device accounts as shipped, in a process of its own; the others save the time.
        in_process=slice(1, None),
        agents=None,
    )
    with hospital:
        try:
            wait_for("the aggregator ends", lambda: hospital.aggregator.code is not None)
            wait_for("all receipts are read", lambda: not hospital.unsettled())
        except AssertionError as error:
            error.add_note(hospital.tail())
            raise
        yield hospital


@pytest.fixture(scope="module")
def outcome(finished):
    return finished.export()


def test_the_aggregator_ends_by_itself_once_the_final_model_is_logged(finished):
    assert finished.aggregator.code == 0
    assert finished.standing() == (ROUNDS, "done", DEVICES)


def test_status_tells_where_the_study_stands(finished):
    status = json.loads(vitalring("gateway", "status", "--config", finished.gateway_toml))
    assert status["federation"] == FEDERATION
    assert status["round"] == {
        "number": ROUNDS,
        "status": "done",
        "admitted": DEVICES,
        "expected": DEVICES,
    }
    assert status["log_entries"] == 4 + ROUNDS * (DEVICES + 3)
    assert status["checkpoint"].splitlines()[1] == str(status["log_entries"])
    assert status["refused_in_last_report"] == {}


def test_the_log_holds_what_every_device_was_told(outcome):
    outcome.check(ROUNDS, min_cohort=3)
    assert outcome.updates == ROUNDS * DEVICES
    assert outcome.refused == {}
    assert f"{ROUNDS} with {ROUNDS * DEVICES} updates" in outcome.verdict


def test_models_are_evaluated_on_the_held_out_devices(outcome):
    for logged in outcome.rounds:
        assert logged.model.evaluation is not None
        assert sum(map(sum, logged.model.evaluation.confusion)) > 1000


def test_every_device_spent_one_round_of_budget_a_round(finished):
    for name in finished.devices:
        with closing(sqlite3.connect(finished.device(name) / "state" / "agent.sqlite")) as db:
            entries = budget.Budget(db).entries()
        charged = [entry.round for entry in entries if entry.kind == budget.CHARGED]
        assert charged == list(range(1, ROUNDS + 1))


def test_secrets_are_nowhere_but_in_their_files(finished, outcome):
    names = ("*.seed", "*.key", "*.secret", "session")
    secrets = [
        path
        for folder in ("federation", "broker")
        for name in names
        for path in (finished.folder / folder).rglob(name)
    ]
    # Ring keys, seeds of authority, hospital, log and aggregator, sealing key, sum secret,
    # session, TLS keys.
    assert len(secrets) >= DEVICES + 7
    said = [path.read_bytes() for path in finished.logs.iterdir()]
    said += [finished.broker.log.read_bytes()]
    said += [path.read_bytes() for path in outcome.folder.rglob("*") if path.is_file()]
    said += list(finished.retained().values())
    for path in secrets:
        for form in forms(path.read_bytes()):
            assert not any(form in text for text in said), path.name


def forms(secret):
    """How a secret could appear: as it is, as hexadecimal digits, as Python shows it."""
    # Any part will do, and this one is secret in every kind of file: the sum's has the public
    # key behind it, a PEM file its algorithm in front.
    core = secret[len(secret) * 3 // 10 :][:32]
    return [core, core.hex().encode(), repr(core).encode()[2:-1]]


def test_devices_that_come_late_find_the_model_that_ended_the_study(finished, outcome):
    topic = topics.plan_topic(FEDERATION, COHORT)

    def last():
        return blobs.whole(finished.retained()[topic])

    wait_for("the announcement gives way to the model", lambda: type_of(last()) == Signed.TYPE)
    model = decode(GlobalModel, decode(Signed, last()).payload)
    assert model.final
    assert model == outcome.rounds[-1].model


def test_the_broker_keeps_the_topics_of_the_specification_and_no_others(finished):
    # Clearing it is the last thing that the gateway does in a round.
    total = topics.sum_topic(FEDERATION)
    wait_for("the sum is cleared", lambda: total not in finished.retained())
    held = finished.retained()
    kinds = {}
    for topic in held:
        kinds.setdefault(topics.parse(topic).kind, []).append(topic)
    assert topics.Kind.UPLINK not in kinds
    # The round is over, its sum has served.
    assert topics.Kind.SUM not in kinds
    assert len(kinds[topics.Kind.PLAN]) == 1
    assert len(kinds[topics.Kind.RECEIPTS]) == ROUNDS
    assert topics.checkpoint_topic(FEDERATION) in held
    # Records; key, artefact with its description and export table; plans and models; the last
    # plan's weights and the final model's.
    assert len(kinds[topics.Kind.OBJECT]) <= 4 + 4 + 2 * ROUNDS + 2


def test_every_service_ends_cleanly_when_told_to(finished, outcome):
    ended = [*finished.agents, finished.gateway, finished.broker]
    for process in ended:
        assert process.code is None, process.name
        assert process.end() == 0, finished.tail()
    for path in finished.logs.iterdir():
        assert "Traceback" not in path.read_text(errors="replace"), path.name
    # A worker that takes over what another one has left may run the tests above after this one.
    for process in reversed(ended):
        process.start()
