"""The gateway's service on a link held in the hand."""

import secrets

import pytest
from federation_fixture import Parties, small_federation
from gateway_fixture import HandLink, gateway_of

from vitalring.gateway import rounds
from vitalring.mqtt import Message
from vitalring.protocol import chunks, topics
from vitalring.protocol.cbor import encode


@pytest.fixture
def parties(tmp_path):
    made = Parties(small_federation(), tmp_path)
    yield made
    made.close_databases()


def test_an_update_left_retained_is_counted_and_cleared(parties):
    link = HandLink()
    gateway = gateway_of(
        parties.federation, parties.db, link, lambda: parties.now_ms, chunks.ChunkLimits()
    )
    proposal = encode(parties.propose())
    gateway.take(Message(topics.propose_topic("fed"), b"\0" + proposal, packet_id=1))
    update = parties.federation.update(rounds.latest(parties.db).signed_plan, 0)
    box = parties.federation.box(update)
    frame = chunks.split(box, 1 << 20, secrets.token_bytes(chunks.TRANSFER_ID_BYTES))[0]
    topic = topics.uplink_topic("fed", parties.federation.study.roster.cohort, 1)
    link.publish(topic, frame, retain=True)
    gateway.take(Message(topic, frame, retained=True, packet_id=2))
    assert topic not in link.retained
    assert rounds.latest(parties.db).admitted == 1
    assert link.acked == 2
