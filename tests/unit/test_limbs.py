import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.errors import EncodingRangeError
from vitalring.protocol.limbs import answer_fields, answer_limbs, from_limbs, to_limbs

widths = st.lists(st.integers(1, 16), min_size=1, max_size=6)


@st.composite
def sites(draw: st.DrawFn) -> tuple[list[int], list[list[int]]]:
    sizes = draw(widths)
    row = st.tuples(*(st.integers(0, (1 << 8 * size) - 1) for size in sizes)).map(list)
    return sizes, draw(st.lists(row, min_size=1, max_size=5))


@given(sites())
def test_the_sum_of_limbs_is_the_sum_of_numbers(
    case: tuple[list[int], list[list[int]]],
) -> None:
    sizes, rows = case
    fields = np.sum([answer_fields(to_limbs(row, sizes)) for row in rows], axis=0, dtype=np.uint64)
    totals = from_limbs(answer_limbs(fields, len(rows)), sizes, len(rows))
    assert totals == [sum(column) for column in zip(*rows, strict=True)]


@settings(max_examples=20, deadline=None)
@given(widths, st.integers(1, 10_000))
def test_ten_thousand_of_the_largest_numbers_add_up(sizes: list[int], count: int) -> None:
    largest = [(1 << 8 * size) - 1 for size in sizes]
    sums = to_limbs(largest, sizes) * np.uint64(count)
    assert from_limbs(sums, sizes, count) == [count * number for number in largest]


@pytest.mark.parametrize("value", [-1, 256, 1 << 70])
def test_a_number_that_does_not_fit_is_refused(value: int) -> None:
    with pytest.raises(EncodingRangeError, match="number 1 is"):
        to_limbs([255, value], [1, 1])


def test_sums_that_cannot_be_are_refused() -> None:
    limbs = to_limbs([255, 7], [1, 2])
    with pytest.raises(EncodingRangeError, match="too large for 1 devices"):
        from_limbs(limbs + np.uint64(1), [1, 2], 1)
    with pytest.raises(EncodingRangeError, match=r"shape \(3,\) where \(4,\)"):
        from_limbs(limbs, [2, 2], 1)
    with pytest.raises(EncodingRangeError, match="a sum of 2 answers counts"):
        answer_limbs(answer_fields(limbs), 2)
