import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitalring.models.metrics import (
    accuracy,
    confusion_matrix,
    f1,
    log_loss,
    macro_f1,
    recall,
)


def test_by_hand() -> None:
    y = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 0, 2])
    confusion = confusion_matrix(y, predicted, 3)
    assert confusion.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert accuracy(confusion) == pytest.approx(4 / 6)
    np.testing.assert_allclose(recall(confusion), [2 / 3, 1 / 2, 1])
    np.testing.assert_allclose(f1(confusion), [2 / 3, 1 / 2, 1])
    assert macro_f1(confusion) == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)


def test_classes_that_never_occur_count_as_zero() -> None:
    confusion = confusion_matrix(np.array([0, 0]), np.array([0, 1]), 4)
    assert confusion.shape == (4, 4)
    assert recall(confusion).tolist() == [0.5, 0, 0, 0]
    assert f1(confusion).tolist() == [pytest.approx(2 / 3), 0, 0, 0]
    empty = confusion_matrix(np.zeros(0, int), np.zeros(0, int), 3)
    assert (accuracy(empty), macro_f1(empty)) == (0, 0)


def test_log_loss_is_bounded() -> None:
    probabilities = np.array([[1.0, 0.0], [0.5, 0.5]], np.float32)
    assert log_loss(np.array([0, 1]), probabilities) == pytest.approx(np.log(2) / 2)
    assert log_loss(np.array([1, 1]), probabilities) == pytest.approx((np.log(1e7) + np.log(2)) / 2)
    assert log_loss(np.zeros(0, int), probabilities[:0]) == 0
    poisoned = np.full((2, 2), np.nan, np.float32)
    assert log_loss(np.array([0, 1]), poisoned) == pytest.approx(np.log(1e7))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=50))
def test_counts_and_bounds(pairs: list[tuple[int, int]]) -> None:
    y, predicted = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    confusion = confusion_matrix(y, predicted, 5)
    assert confusion.sum() == len(pairs)
    assert 0 <= macro_f1(confusion) <= 1
    assert accuracy(confusion) == (np.mean(y == predicted) if pairs else 0)
    if pairs and (y == predicted).all():
        assert accuracy(confusion) == 1
        assert f1(confusion)[np.unique(y)].tolist() == [1] * len(np.unique(y))
