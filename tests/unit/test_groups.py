"""Groups of a round's updates: disjoint, large enough, the same for everybody, unforeseeable."""

import hashlib
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitalring.aggregator.groups import assign
from vitalring.errors import ConfigError, RecordError

SEED = bytes(range(32))
tag_lists = st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=120, unique=True)
seeds = st.binary(min_size=32, max_size=32)


def tags(count):
    return [hashlib.sha256(i.to_bytes(2, "big")).digest() for i in range(count)]


def by_tag(names, made):
    return [{names[place] for place in group} for group in made]


@given(tag_lists, seeds, st.integers(1, 64), st.integers(1, 40))
def test_each_update_is_in_one_group_that_is_large_enough(names, seed, groups, least):
    if len(names) < least:
        with pytest.raises(RecordError, match=f"none below {least}"):
            assign(names, seed, groups, least)
        return
    made = assign(names, seed, groups, least)
    assert sorted(place for group in made for place in group) == list(range(len(names)))
    sizes = [len(group) for group in made]
    assert min(sizes) >= least
    assert max(sizes) - min(sizes) <= 1
    # As many as were asked for, or one more would have been too small.
    assert len(made) == groups or (len(made) < groups and len(names) < (len(made) + 1) * least)


@given(st.data(), tag_lists, seeds, st.integers(1, 64))
def test_order_of_arrival_changes_no_group(data, names, seed, groups):
    other = data.draw(st.permutations(names))
    assert by_tag(names, assign(names, seed, groups, 1)) == by_tag(
        other, assign(other, seed, groups, 1)
    )


def test_groups_are_those_of_the_clause():
    names = tags(7)
    order = sorted(
        names, key=lambda tag: hashlib.sha256(b"vitalring/group/1\x00" + SEED + tag).digest()
    )
    made = by_tag(names, assign(names, SEED, 3, 2))
    assert made == [set(order[:3]), set(order[3:5]), set(order[5:])]


def test_another_seed_mixes_anew_and_pairs_meet_as_often_as_by_chance():
    names, met = tags(30), 0
    for number in range(300):
        seed = hashlib.sha256(b"round %d" % number).digest()
        met += sum({0, 1} <= set(group) for group in assign(names, seed, 10, 3))
    # Two of 30 share a group of 3 with probability 2/29: 20.7 times of 300, deviation 4.4.
    assert 5 <= met <= 40
    one, two = (by_tag(names, assign(names, bytes([b]) * 32, 10, 3)) for b in (1, 2))
    pairs = [
        {frozenset(p) for g in made for p in combinations(sorted(g), 2)} for made in (one, two)
    ]
    assert len(pairs[0] & pairs[1]) < 15


def test_a_tag_that_occurs_twice_is_refused():
    names = tags(5)
    with pytest.raises(RecordError, match="occurs twice"):
        assign([*names, names[2]], SEED, 2, 2)


@pytest.mark.parametrize(
    ("seed", "groups", "least"), [(bytes(31), 2, 2), (SEED, 0, 2), (SEED, 2, 0), (SEED, -1, 2)]
)
def test_what_cannot_be_is_refused(seed, groups, least):
    with pytest.raises(ConfigError):
        assign(tags(6), seed, groups, least)
