"""The search for bad signatures, on residues that are known multiples of the base point."""

import math
import secrets

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vitalring.protocol import group
from vitalring.protocol.rings.sifting import sift


class Batch:
    """Residues of so many signatures, those at `bad` places not the identity."""

    def __init__(self, count, bad):
        self.count, self.bad, self.sums = count, set(bad), 0
        self.residues = {place: 1 + secrets.randbelow(group.ORDER - 1) for place in bad}

    def total(self, places, power):
        self.sums += 1
        assert len(places) > 0
        scalar = sum(self.residues.get(place, 0) * place**power for place in places)
        reduced = scalar % group.ORDER
        return group.base_mul(reduced.to_bytes(32, "little")) if reduced else group.IDENTITY

    def sift(self, most):
        return sift(self.count, self.total, most)


@st.composite
def batches(draw):
    count = draw(st.integers(0, 70))
    return count, draw(st.sets(st.integers(1, count))) if count else set()


@given(batches())
@example((1, {1}))
@example((2, {1, 2}))
@example((3, {1, 2, 3}))
@example((5, {4, 5}))
@example((64, set(range(1, 65))))
@example((65, set(range(1, 66))))
@settings(max_examples=80, deadline=None)
def test_every_bad_one_is_found_by_no_more_sums_than_signatures(case):
    batch = Batch(*case)
    found = batch.sift(batch.count)
    assert set(found.bad) == batch.bad
    assert set(found.valid) == set(range(1, batch.count + 1)) - batch.bad
    assert len(found.bad) + len(found.valid) == batch.count
    assert batch.sums <= batch.count


@given(batches().filter(lambda case: case[1]))
@example((64, {1, 64}))
@example((64, {1, 2}))
@settings(max_examples=60, deadline=None)
def test_a_bad_one_costs_no_more_than_the_specification_says(case):
    batch = Batch(*case)
    batch.sift(batch.count)
    halvings = max(0, math.ceil(math.log2(batch.count)) - 1)
    assert batch.sums <= 2 + 2 * (len(batch.bad) // 2) * halvings


@pytest.mark.parametrize("place", [1, 2, 37, 64])
def test_one_bad_signature_takes_two_sums(place):
    batch = Batch(64, {place})
    found = batch.sift(64)
    assert found.bad == (place,)
    assert batch.sums == 2


def test_a_batch_without_bad_ones_takes_one_sum_and_an_empty_one_none():
    good, empty = Batch(64, ()), Batch(0, ())
    assert good.sift(1).valid == tuple(range(1, 65))
    assert empty.sift(1) == sift(0, empty.total, 0)
    assert (good.sums, empty.sums) == (1, 0)


@given(batches(), st.integers(0, 20))
@settings(max_examples=80, deadline=None)
def test_what_is_said_before_the_sums_are_used_up_is_right(case, most):
    batch = Batch(*case)
    found = batch.sift(most)
    assert batch.sums <= most
    assert set(found.bad) <= batch.bad
    assert not set(found.valid) & batch.bad
    assert len({*found.valid, *found.bad}) == len(found.valid) + len(found.bad)


def test_residues_that_cancel_are_found_by_their_places():
    # Their sum over the left half vanishes; with weights that nobody foresees it would not.
    batch = Batch(8, {1, 2, 7})
    batch.residues[2] = -batch.residues[1]
    found = batch.sift(8)
    assert 7 in found.bad
    assert {1, 2} & set(found.valid), "why signatures need weights: sums alone see nothing here"
