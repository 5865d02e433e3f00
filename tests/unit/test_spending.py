"""`vitalring privacy report`: what the chain says, in figures and words; a damaged one says no."""

import json
import math
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest
from audit_fixture import terms_of
from device_fixture import FLOORS, announced, device, linear
from federation_fixture import SOME_PRIVACY, Parties, small_federation

from vitalring.database import transaction
from vitalring.edge_agent.accountant import epsilon
from vitalring.edge_agent.budget import Budget, spent_of
from vitalring.edge_agent.config import AgentConfig
from vitalring.edge_agent.spending import spending
from vitalring.errors import ConfigError, PrivacyError
from vitalring.mqtt import BrokerConfig
from vitalring.protocol.privacy import Spend
from vitalring.tools.cli import main
from vitalring.tools.privacy_text import in_words, spending_lines

SHARED = Spend(1.0, 4.0, 1, epsilon=2.0**-24, delta=1e-15)


def config_of(folder, **options):
    options = {"floors": FLOORS, **options}
    return AgentConfig(
        federation=folder / "federation.cbor",
        authority_key="00" * 32,
        cohort="ward",
        ring_keys=folder / "keys",
        state_dir=folder,
        broker=BrokerConfig(url="mqtt://127.0.0.1:1883"),
        data=folder,
        device="d0",
        **options,
    )


@pytest.fixture
def spent(parties, tmp_path):
    """A device's folder after one round of a study of forty, and ten of another in the log."""
    folder = tmp_path / "device"
    parties.begin(parties.propose())
    agent = device(parties, folder)
    assert agent.consider(announced(parties), parties.now_ms) == "ready"
    with transaction(agent.db):
        for number in range(1, 11):
            digest = number.to_bytes(32, "big")
            Budget(agent.db).charge_unaccounted(b"o" * 32, digest, "lungs", number, SHARED)
    agent.db.close()
    return folder


def test_figures_are_those_of_the_chain(spent):
    found = spending(config_of(spent), linear)
    hearts, lungs = found.studies
    assert (hearts.study, hearts.claim) == ("study", SOME_PRIVACY)
    assert (hearts.rounds_allowed, hearts.rounds_charged, hearts.rounds_left) == (40, 1, 39)
    assert (hearts.epsilon_spent, hearts.epsilon_promised) == (0.1, 4.0)
    assert (lungs.claim, lungs.rounds_allowed, lungs.rounds_from_log) == (None, None, 10)
    assert (lungs.newest_round, lungs.rounds_left, lungs.closed) == (10, 0, False)
    (whole,) = found.classes
    assert (whole.epsilon_spent, whole.epsilon_promised) == (pytest.approx(0.2), 4.1)
    assert whole.epsilon_left == pytest.approx(3.9)


def test_studies_compose_and_do_not_simply_add_up(spent):
    found = spending(config_of(spent), epsilon)
    (whole,), (hearts, lungs) = found.classes, found.studies
    assert hearts.epsilon_spent < whole.epsilon_spent
    assert whole.epsilon_spent < hearts.epsilon_spent + lungs.epsilon_spent
    with closing(sqlite3.connect(spent / "agent.sqlite")) as db:
        assert whole.epsilon_spent == epsilon(spent_of(Budget(db).entries()), FLOORS.delta)


def test_a_closed_study_promises_nothing_more(spent):
    with closing(sqlite3.connect(spent / "agent.sqlite", isolation_level=None)) as db:
        budget = Budget(db)
        with transaction(db):
            budget.close(budget.entries()[0].study_plan)
    found = spending(config_of(spent), linear)
    assert found.studies[0].closed
    assert found.studies[0].rounds_left == 0
    assert found.classes[0].epsilon_promised == found.classes[0].epsilon_spent
    assert "study study: over after 1 of 40 rounds" in list(spending_lines(found))


@pytest.mark.parametrize("change", [lambda data: data[:-1] + b"!", lambda data: b""])
def test_a_plan_is_believed_under_its_digest_alone(spent, change):
    with closing(sqlite3.connect(spent / "agent.sqlite")) as db:
        name = Budget(db).entries()[0].study_plan
    path = spent / "cache" / name.hex()
    path.write_bytes(change(path.read_bytes()))
    assert spending(config_of(spent), linear).studies[0].claim is None
    path.unlink()
    assert spending(config_of(spent), linear).studies[0].claim is None


def test_words_for_a_person(spent):
    text = "\n".join(spending_lines(spending(config_of(spent), linear)))
    for line in (
        "spent     epsilon 0.2000 of 8 at delta 1e-05, over all studies",
        "is at most 1.22 times as likely",
        "left      epsilon 3.9000 for other studies",
        "study study: 1 of 40 rounds, 39 may still come",
        "protects  one record of this device, with epsilon 8 at delta 1e-05",
        "this device adds all of the noise itself",
        "study lungs: 10 rounds, known from the public log alone",
        "its plan is no longer kept",
    ):
        assert line in text
    assert f"{math.exp(8.0):,.0f} times" in in_words(8.0, 1e-5)
    assert "nothing of any record" in in_words(0.0, 1e-5)


@pytest.mark.parametrize(
    ("unit", "words"),
    [("record", "one record of this device"), ("device", "all records of this device together")],
)
def test_the_unit_of_each_study_is_said(tmp_path, unit, words):
    terms = terms_of(unit, "distributed", 8, shares=3, bits=12)
    federation = small_federation(
        privacy=terms.privacy,
        codec=terms.codec,
        training=terms.training,
        secure_sum="single-he",
    )
    parties = Parties(federation, tmp_path / "parties")
    parties.begin(parties.propose())
    floors = replace(FLOORS, allow_shared_noise=True)
    agent = device(parties, tmp_path / "device", floors=floors)
    assert agent.consider(announced(parties), parties.now_ms) == "ready"
    agent.db.close()
    parties.close_databases()
    text = "\n".join(spending_lines(spending(config_of(tmp_path / "device"), linear)))
    assert f"protects  {words}" in text
    assert "the devices of a sum add the noise together" in text


def test_a_device_that_has_not_run_or_spent_nothing(parties, tmp_path):
    with pytest.raises(ConfigError, match="the agent has not run yet"):
        spending(config_of(tmp_path), linear)
    device(parties, tmp_path / "device").db.close()
    found = spending(config_of(tmp_path / "device"), linear)
    (whole,) = found.classes
    assert (found.studies, whole.epsilon_spent, whole.epsilon_left) == ((), 0.0, 8.0)
    assert "no privacy was spent" in "\n".join(spending_lines(found))


def test_a_damaged_chain_is_no_account(spent, tmp_path, capsys):
    with closing(sqlite3.connect(spent / "agent.sqlite")) as db:
        db.execute("DELETE FROM privacy_budget WHERE position = 3")
        db.commit()
    with pytest.raises(PrivacyError, match="is damaged"):
        spending(config_of(spent), linear)
    toml = written(spent, tmp_path)
    assert main(["privacy", "report", "--config", str(toml)]) == 1
    assert "nothing is allowed: no round is trained and nothing is sent" in capsys.readouterr().out
    assert main(["privacy", "report", "--config", str(toml), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["sound"], found["allowed"]) == (False, False)
    assert "damaged" in found["fault"]


def written(state, folder):
    path = folder / "agent.toml"
    path.write_text(
        'federation = "federation.cbor"\ncohort = "ward"\nring_keys = "keys"\n'
        f'authority_key = "{"00" * 32}"\nstate_dir = "{state}"\ndata = "data"\ndevice = "d0"\n'
        '[broker]\nurl = "mqtt://127.0.0.1:1883"\n'
    )
    return path


def test_the_command_speaks_to_machines_too(spent, tmp_path, capsys):
    toml = written(spent, tmp_path)
    assert main(["privacy", "report", "--config", str(toml), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sound"] is True
    assert [study["study"] for study in found["studies"]] == ["study", "lungs"]
    assert found["studies"][0]["claim"]["unit"] == "record"
    assert len(found["studies"][0]["plan"]) == 64
    exact = spending(config_of(spent), epsilon)
    (whole,), (named,) = exact.classes, found["classes"]
    assert named["epsilon_spent"] == whole.epsilon_spent
    assert named["epsilon_left"] == whole.epsilon_left
    assert main(["privacy", "report", "--config", str(toml)]) == 0
    assert capsys.readouterr().out.splitlines() == list(spending_lines(exact))
