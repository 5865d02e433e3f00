"""What the broker holds retained: all that is needed, whatever was lost, and no leftovers."""

from itertools import pairwise

import pytest
from federation_fixture import Parties, small_federation

from vitalring.errors import TransportError
from vitalring.gateway import log, rounds
from vitalring.gateway.publisher import Publisher
from vitalring.protocol import blobs, topics, trust
from vitalring.protocol.cbor import digest
from vitalring.protocol.tiles import Tile

LIMIT = 2000
# Weights of two pieces, the log's entries of many.
DIMENSION = 1024


class RetainedTopics:
    """A link to a broker that keeps retained messages, and may be away."""

    def __init__(self):
        self.held = {}
        self.connected = True
        self.left = None

    def publish(self, topic, payload, *, retain, timeout_s):
        assert retain
        assert len(payload) <= LIMIT
        if self.left == 0:
            raise TransportError("connection lost")
        self.left = None if self.left is None else self.left - 1
        if payload:
            self.held[topic] = payload
        else:
            self.held.pop(topic, None)

    def read(self, topic):
        return blobs.join(
            self.held[topic], lambda name: blobs.whole(self.held[topics.object_topic("fed", name)])
        )

    def kinds(self):
        return [topics.parse(topic).kind for topic in self.held]


@pytest.fixture(scope="module")
def federation():
    return small_federation(dimension=DIMENSION)


@pytest.fixture
def parties(federation, tmp_path):
    made = Parties(federation, tmp_path)
    yield made
    made.close_databases()


@pytest.fixture
def link():
    return RetainedTopics()


@pytest.fixture
def publisher(parties, federation, link):
    return Publisher(parties.db, federation.files, link, LIMIT)


def play_round(parties, publisher, devices=()):
    """A whole round, published after each step; yields at each."""
    parties.begin(parties.propose())
    publisher.round()
    yield "open"
    parties.submit(devices)
    parties.close()
    publisher.round()
    yield "closed"
    parties.finish(parties.conclude())
    publisher.round()
    yield "done"


def test_a_broker_that_lost_everything_gets_what_one_that_did_not_has(parties, publisher, link):
    for devices in (range(4), (), range(4)):
        for _step in play_round(parties, publisher, devices):
            kept = dict(link.held)
            publisher.all()
            assert link.held.keys() >= kept.keys()
            link.held.clear()
            publisher.all()
            missing = kept.keys() - link.held.keys()
            # Models of earlier rounds have served: the aggregator saw them.
            assert all(topics.parse(topic).kind is topics.Kind.OBJECT for topic in missing)
            for topic in (topics.plan_topic("fed", "ward"), topics.sum_topic("fed")):
                assert link.held.get(topic) == kept.get(topic)


def test_a_model_is_an_object_once_it_is_logged_and_not_before(parties, publisher, link):
    steps = play_round(parties, publisher, range(4))
    assert next(steps) == "open"
    plan = rounds.latest(parties.db).signed_plan
    assert link.read(topics.object_topic("fed", digest(plan))) == plan
    assert next(steps) == "closed"
    model = parties.conclude().record
    assert topics.object_topic("fed", digest(model)) not in link.held
    assert next(steps) == "done"
    assert link.read(topics.object_topic("fed", digest(model))) == model


def test_topics_do_not_pile_up(parties, federation, publisher, link):
    publisher.all()
    counts = []
    for number in range(20):
        for _step in play_round(parties, publisher, range(4) if number % 3 else ()):
            pass
        counts.append(len(link.held))
    assert link.kinds().count(topics.Kind.RECEIPTS) == 16
    assert topics.Kind.SUM not in link.kinds()
    assert topics.Kind.PLAN not in link.kinds()
    # Each round adds a plan and a model, and to the log's first bundle a piece at times; its
    # weights, its sum and the bundle's last pieces as they were do not stay.
    grown = [later - earlier for earlier, later in pairwise(counts[16:])]
    assert max(grown) <= 3
    size = log.size(parties.db)
    assert size < 256
    assert link.read(topics.entries_topic("fed", 0)) == log.tile_bytes(
        parties.db, Tile(None, 0, size)
    )
    start = trust.open_round_plan(rounds.latest(parties.db).signed_plan, federation.study).weights
    assert digest(link.read(topics.object_topic("fed", start))) == start


def test_an_interrupted_publication_is_made_whole_by_the_next(parties, publisher, link):
    for _step in play_round(parties, publisher, range(4)):
        whole = dict(link.held)
        for count in range(0, len(whole), 5):
            link.held.clear()
            link.left = count
            with pytest.raises(TransportError):
                publisher.all()
            link.left = None
            publisher.all()
            assert link.held.get(topics.sum_topic("fed")) == whole.get(topics.sum_topic("fed"))
            assert link.read(topics.checkpoint_topic("fed")) == log.latest_checkpoint(parties.db)


def test_without_a_connection_nothing_waits(publisher, link):
    link.connected = False
    with pytest.raises(TransportError, match="not connected"):
        publisher.all()
    assert not link.held
