"""A hospital's aggregator, or the gateway, dies right after any transaction and any message.

Each round of a long study strikes at the next point, so that all points of a round come up. It
resumes, and no round is released twice; where it dies for long the round ends with a word why.
"""

import pytest
from joint_fixture import JointWorld, federation_of

NORTH, SOUTH, EAST = range(3)


@pytest.fixture(scope="module")
def federation():
    return federation_of()


@pytest.fixture
def world(tmp_path, monkeypatch, federation):
    made = JointWorld(tmp_path, monkeypatch, federation)
    yield made
    made.stop()


def revive(world):
    """Start whoever died, after a moment."""

    def each():
        for party in world.parties:
            if party.service is None:
                world.clock.now += 1.0
                party.start()

    return each


def points_of(world, parties):
    """How many points the first round after this has for each of these parties."""
    before = [party.points for party in parties]
    number = len(world.models())
    world.run_rounds(number + 1)
    return [party.points - start for party, start in zip(parties, before, strict=True)]


def strike_everywhere(world, parties, stride):
    """Kill these parties in each round at the next of their points, until all points came up."""
    world.start()
    world.run_rounds(len(world.models()) + 1)
    most = max(points_of(world, parties))
    number = len(world.models())
    for point in range(1, most + 1, stride):
        number += 1
        for shift, party in enumerate(parties):
            party.dies_at = party.points + 1 + (point - 1 + shift * most // len(parties)) % most
        world.run_rounds(number, each=revive(world))
        assert world.models()[-1].applied, f"a death at point {point} cost the round"
    # A round has fewer points where less goes on at once.
    assert all(party.deaths >= most // stride // 2 for party in parties)
    return number


def test_a_death_after_any_step_costs_nothing(world):
    """All three hospitals die in each round, each at another point."""
    number = strike_everywhere(world, world.hospitals, stride=2)
    assert [h.refusals for h in world.hospitals] == [[]] * 3
    assert (world.hospitals[EAST].state[1] == world.expected([True] * number)).all()
    world.check()


@pytest.mark.long
def test_a_death_after_every_step_of_each_hospital_costs_nothing(world):
    for party in world.hospitals:
        world.stop()
        strike_everywhere(world, [party], stride=1)
    world.check()


def test_a_gateway_that_dies_after_any_step_costs_nothing(world):
    number = strike_everywhere(world, [world.gateway], stride=4)
    assert (world.hospitals[EAST].state[1] == world.expected([True] * number)).all()
    world.check()


def gone_for_the_rest_of_a_round(world, point):
    """South dies at a point of the second round, and is back in the third."""
    world.start()
    world.run_rounds(1)
    south = world.hospitals[SOUTH]
    south.dies_at = south.points + point
    world.run(lambda: len(world.models()) == 2)
    assert south.deaths == 1 or world.models()[1].applied
    if not world.models()[1].applied:
        # The others waited for it, and say so.
        assert set(world.refusals()) == {("north", "silent_hospital"), ("east", "silent_hospital")}
    else:
        assert world.refusals() == []
    before = len(world.refusals())
    south.start()
    world.run_rounds(3)
    # A check that was shown and never judged was this small key's last one (SPEC 5.20).
    after = {reason for _, reason in world.refusals()[before:]}
    assert after <= {"spent_key", "silent_hospital"}
    assert world.models()[2].applied == (not after)
    world.check()


@pytest.mark.parametrize("point", range(1, 40, 6))
def test_a_hospital_that_is_gone_for_the_rest_of_a_round_after_some_steps(world, point):
    gone_for_the_rest_of_a_round(world, point)


@pytest.mark.long
def test_a_hospital_that_is_gone_for_the_rest_of_a_round_after_any_step(
    tmp_path, monkeypatch, federation
):
    for point in range(1, 40):
        world = JointWorld(tmp_path / str(point), monkeypatch, federation)
        gone_for_the_rest_of_a_round(world, point)
        world.stop()
