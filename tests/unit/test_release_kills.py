"""Hospitals that are killed at any step, or cut off from one another, release a round once."""

import random
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from release_fixture import Network, Node, opened_record, opens, world

from vitalring.aggregator import release as release_module
from vitalring.aggregator import release_messages, release_sessions
from vitalring.database import transaction
from vitalring.protocol.cbor import digest
from vitalring.protocol.release import PartPromise, commitments_needed, member_sets
from vitalring.protocol.threshold.decryption import key_share
from vitalring.protocol.threshold.pieces import Access


class Killed(Exception):
    pass


@contextmanager
def killing(monkeypatch, target, at, *, after):
    """Kill hospital `target` at its transaction number `at`, before or after it is durable."""
    count = [0]

    @contextmanager
    def fatal(db):
        mine = str(target) == db.execute("PRAGMA database_list").fetchone()[2].split("/")[-1][0]
        count[0] += mine
        with transaction(db) as opened:
            yield opened
            if mine and count[0] == at and not after:
                raise Killed
        if mine and count[0] == at and after:
            raise Killed

    with monkeypatch.context() as patch:
        for module in (release_module, release_messages, release_sessions):
            patch.setattr(module, "transaction", fatal)
        yield count


@pytest.fixture
def drawn(monkeypatch):
    """Every share that is made to decrypt with, by hospital and members."""
    shares = []

    def counted(hospital, pieces, members, params):
        shares.append((hospital, members))
        return key_share(hospital, pieces, members, params)

    monkeypatch.setattr(release_sessions, "key_share", counted)
    return shares


class FragileNetwork(Network):
    """Starts a hospital again when it dies, and brings it what stands."""

    def __init__(self, *arguments, drawn):
        super().__init__(*arguments)
        self.deaths, self.drawn = 0, drawn

    def advance(self, node):
        self.survive(node, lambda: node.release.advance(self.now_ms))

    def deliver(self, message):
        self.survive(message[1], lambda: super(FragileNetwork, self).deliver(message))

    def survive(self, node, act):
        before = dict(node.ever_said)
        drawn = len(self.drawn)
        try:
            act()
        except Killed:
            self.deaths += 1
            node.restart()
            self.replay_to(node)
        # No noise is drawn for what was promised.
        for hospital, members in self.drawn[drawn:]:
            attempt = member_sets(node.world.access).index(members)
            assert hospital == node.hospital
            assert ("promise", attempt) not in before


@pytest.mark.parametrize("after", [False, True], ids=["before commit", "after commit"])
@pytest.mark.parametrize("target", [0, 2])
def test_a_hospital_killed_at_any_step_resumes_to_the_same_sum(
    tmp_path, monkeypatch, drawn, after, target
):
    there = world(3, 2) if target == 0 else world(3, 3)
    at = deaths = 0
    while deaths == at:
        at += 1
        with killing(monkeypatch, target, at, after=after):
            folder = tmp_path / str(at)
            nodes = []
            for h in range(3):
                path = folder / f"{h}.sqlite"
                try:
                    nodes.append(Node(there, h, path, there.sets[0]))
                except Killed:
                    deaths += 1
                    nodes.append(Node(there, h, path, there.sets[0]))
            network = FragileNetwork(nodes, random.Random(at), drawn=drawn)
            network.run(pauses=1)
            deaths += network.deaths
        assert all(opens(nodes)), f"killed at transaction {at}"
        assert not any(node.complaints for node in nodes)
        for node in nodes:
            node.db.close()
    assert at > 15


# No two sets of a round.


def split_run(tmp_path, there, rng, corrupt, same_set=False):
    """Hostile hospitals live twice, once for each side; honest ones are split between sides.

    Each side sees one set (or the same one, with other nonces of the hostile), and messages
    between honest hospitals of different sides are lost at random.
    """
    honest = [h for h in range(there.access.hospitals) if h not in corrupt]
    side = {h: rng.randrange(2) for h in honest}
    nodes, sides = [], {}
    for h in range(there.access.hospitals):
        for s in (0, 1) if h in corrupt else (side[h],):
            chosen = there.sets[0 if same_set else s]
            node = Node(there, h, tmp_path / f"{h}-{s}.sqlite", chosen)
            nodes.append(node)
            sides[id(node)] = s
    loss = rng.choice([0.0, 0.5, 1.0])
    network = Network(nodes, rng)

    def send(node, step, attempt, content):
        for other in nodes:
            if other is node or other.hospital == node.hospital:
                continue
            across = sides[id(other)] != sides[id(node)]
            if across and (node.hospital in corrupt or rng.random() < loss):
                continue
            network.queue.append((node.hospital, other, step, attempt, content))

    network.send = send
    network.run(pauses=rng.randint(1, 4))
    return [node for node in nodes if node.hospital in honest]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 2**32), st.sampled_from([(3, 2), (5, 3), (4, 3), (3, 3)]))
def test_no_two_sets_of_a_round_are_ever_both_opened(tmp_path_factory, number, kind):
    rng, there = random.Random(number), world(*kind)
    corrupt = set(rng.sample(range(kind[0]), kind[1] - 1))
    honest = split_run(tmp_path_factory.mktemp("split"), there, rng, corrupt)
    used = {
        opened_record(PartPromise, content).set
        for node in honest
        for (step, _), content in node.said().items()
        if step == "promise"
    }
    # Not only is no second set opened: no honest hospital gives anything of it away.
    assert len(used) <= 1
    opened = {digest(b"".join(n.chosen.digests)) for n in honest if any(opens([n]))}
    assert len(opened) <= 1


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 2**32))
def test_no_two_groupings_of_a_round_are_ever_both_opened(tmp_path_factory, number):
    rng, there = random.Random(number), world(3, 2, 2)
    honest = split_run(tmp_path_factory.mktemp("groups"), there, rng, {2}, same_set=True)
    seeds = {node.release._sessions._sums[0] for node in honest if node.release._sessions._sums}
    assert len(seeds) <= 1


def test_the_quorum_of_commitments_cannot_be_met_twice():
    for hospitals in range(2, 65):
        for threshold in range(2, hospitals + 1):
            access = Access(hospitals, threshold)
            needed, corrupt = commitments_needed(access), threshold - 1
            honest = hospitals - corrupt
            assert needed <= hospitals
            assert 2 * needed > honest + 2 * corrupt
            assert 2 * (needed - 1) <= honest + 2 * corrupt
            assert commitments_needed(access, 2) == hospitals
