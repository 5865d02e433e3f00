import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitalring.models.metrics import (
    RankedScores,
    accuracy,
    auroc,
    balanced_accuracy,
    confusion_matrix,
    f1,
    log_loss,
    macro_f1,
    precision,
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


def test_precision_and_balanced_accuracy_by_hand() -> None:
    confusion = np.array([[2, 1, 0], [1, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(precision(confusion), [2 / 3, 1 / 2, 0])
    # The third class has no examples, so it has no say.
    assert balanced_accuracy(confusion) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert balanced_accuracy(np.zeros((3, 3), np.int64)) == 0
    assert not precision(np.zeros((3, 3), np.int64)).any()


def by_pairs(positive: np.ndarray, scores: np.ndarray) -> float:
    """The definition, pair by pair: wins and half the ties (Hanley and McNeil 1982)."""
    ahead = scores[positive][:, None] - scores[~positive][None, :]
    return float(np.mean((ahead > 0) + 0.5 * (ahead == 0)))


def by_trapezia(positive: np.ndarray, scores: np.ndarray) -> float:
    """The area under the curve, threshold by threshold."""
    thresholds = [np.inf, *np.unique(scores)[::-1]]
    hits = [np.mean(scores[positive] >= t) for t in thresholds]
    false_alarms = [np.mean(scores[~positive] >= t) for t in thresholds]
    return float(np.trapz(hits, false_alarms))


rankings = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=60).filter(
    lambda rows: len({label for label, _ in rows}) == 2
)


@given(rankings)
def test_auroc_of_two_classes_is_the_share_of_ordered_pairs(rows: list[tuple[bool, int]]) -> None:
    y = np.array([label for label, _ in rows], np.int64)
    scores = np.array([score for _, score in rows], np.float32) / 8
    found = auroc(y, np.stack([1 - scores, scores], axis=1))
    assert found == pytest.approx(by_pairs(y == 1, scores), abs=1e-12)
    assert found == pytest.approx(by_trapezia(y == 1, scores), abs=1e-12)
    assert auroc(1 - y, np.stack([1 - scores, scores], axis=1)) == pytest.approx(1 - found)


@given(rankings, st.data())
def test_auroc_with_weights_is_that_of_repeated_rows(
    rows: list[tuple[bool, int]], data: st.DataObject
) -> None:
    y = np.array([label for label, _ in rows], np.int64)
    scores = np.array([score for _, score in rows], np.float32)
    probabilities = np.stack([-scores, scores], axis=1)
    counts = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(y), max_size=len(y))))
    found = RankedScores(y, probabilities).auroc(counts.astype(float))
    again = auroc(np.repeat(y, counts), np.repeat(probabilities, counts, axis=0))
    assert found == pytest.approx(again, nan_ok=True)


def test_auroc_of_many_classes_is_the_mean_against_the_rest() -> None:
    generator = np.random.default_rng(0)
    y = generator.integers(0, 3, 200)
    p = generator.random((200, 4)).astype(np.float32).round(1)
    # The fourth class has no rows, so there is nothing to rank.
    wanted = np.mean([by_pairs(y == k, p[:, k]) for k in range(3)])
    assert auroc(y, p) == pytest.approx(wanted)


def test_auroc_where_it_is_not_defined_or_the_model_is_poisoned() -> None:
    p = np.array([[0.4, 0.6], [0.9, 0.1]], np.float32)
    assert np.isnan(auroc(np.array([1, 1]), p))
    assert np.isnan(auroc(np.zeros(0, int), p[:0]))
    assert auroc(np.array([0, 1]), np.full((2, 2), np.nan, np.float32)) == 0.5
