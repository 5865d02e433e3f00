"""What a device keeps of public things: nothing that it did not ask for, and nothing too large."""

import dataclasses

import pytest
from federation_fixture import Parties, small_federation

from vitalring.edge_agent.workshop import Workshop
from vitalring.errors import RecordError, TransportError
from vitalring.gateway import rounds
from vitalring.protocol import trust
from vitalring.protocol.cbor import digest


@pytest.fixture
def plan(tmp_path):
    parties = Parties(small_federation(), tmp_path / "parties")
    parties.begin(parties.propose())
    signed = rounds.latest(parties.db).signed_plan
    parties.close_databases()
    return trust.open_round_plan(signed, parties.federation.study)


@pytest.mark.parametrize("asked", ["study", "weights", "record"])
def test_what_is_too_large_for_what_it_should_be_is_not_kept(tmp_path, plan, asked):
    junk = bytes(2**20 + 1)
    folder = tmp_path / "cache"
    workshop = Workshop(small_federation().study.federation, folder, lambda _: junk)
    named = dataclasses.replace(plan, study_plan=digest(junk), weights=digest(junk))
    with pytest.raises(RecordError, match="has 1048577 bytes"):
        {
            "study": lambda: workshop.study(named),
            "weights": lambda: workshop.weights(named, 8),
            "record": lambda: workshop.record(digest(junk)),
        }[asked]()
    assert not list(folder.rglob("*"))
    # As an object that a study names it may be as large.
    assert workshop.object(digest(junk)) == junk


def test_other_bytes_than_the_named_are_not_kept(tmp_path):
    workshop = Workshop(small_federation().study.federation, tmp_path / "c", lambda _: b"other")
    with pytest.raises(TransportError, match="other bytes"):
        workshop.object(digest(b"this"))
    assert not (tmp_path / "c").exists()
