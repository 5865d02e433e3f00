"""Intervals by resampling whole devices: known answers, coverage, and what cannot be known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.errors import DataError
from vitalring.models import metrics
from vitalring.models.bootstrap import Bootstrap, bootstrap, numbered


def predictions(predicted: np.ndarray, classes: int) -> np.ndarray:
    """Probabilities of a model that is sure of itself."""
    return np.eye(classes, dtype=np.float32)[predicted]


def fleet(
    generator: np.random.Generator, devices: int, rows: int, classes: int = 3
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Devices with skills of their own: labels, probabilities, device of each row."""
    skill = np.repeat(generator.uniform(0.5, 1.0, devices), rows)
    y = generator.integers(0, classes, devices * rows)
    wrong = (y + generator.integers(1, classes, len(y))) % classes
    predicted = np.where(generator.random(len(y)) < skill, y, wrong)
    return y, predictions(predicted, classes), np.repeat(np.arange(devices), rows)


def test_the_whole_is_what_metrics_say() -> None:
    y, p, cluster = fleet(np.random.default_rng(1), 8, 50)
    found = bootstrap(y, p, cluster, seed=0, draws=50)
    confusion = metrics.confusion_matrix(y, p.argmax(axis=1), 3)
    assert found.clusters == 8
    for name, wanted in (
        ("accuracy", metrics.accuracy(confusion)),
        ("balanced_accuracy", metrics.balanced_accuracy(confusion)),
        ("macro_f1", metrics.macro_f1(confusion)),
        ("auroc", metrics.auroc(y, p)),
        ("recall:2", metrics.recall(confusion)[2]),
        ("precision:1", metrics.precision(confusion)[1]),
    ):
        estimate = found.estimate(name)
        assert estimate.value == pytest.approx(wanted)
        assert estimate.low < estimate.value < estimate.high


def test_every_draw_is_the_figures_of_whole_devices() -> None:
    """Two devices, one all right and one all wrong: a draw has both, or one of them twice."""
    y = np.array([0, 1, 0, 1, 1, 0, 1])
    p = predictions(np.where(np.arange(7) < 3, y, 1 - y), 2)
    found = bootstrap(y, p, np.array([0, 0, 0, 1, 1, 1, 1]), seed=3, draws=400)
    values, counts = np.unique(found.draws[:, found.names.index("accuracy")], return_counts=True)
    np.testing.assert_allclose(values, [0, 3 / 7, 1])
    np.testing.assert_allclose(counts / 400, [1 / 4, 1 / 2, 1 / 4], atol=0.08)
    assert found.estimate("accuracy").low == 0
    assert found.estimate("accuracy").high == 1


def test_rows_of_one_device_are_not_taken_for_independent() -> None:
    y, p, cluster = fleet(np.random.default_rng(2), 12, 300)
    by_device = bootstrap(y, p, cluster, seed=0, draws=300).estimate("accuracy")
    by_row = bootstrap(y, p, np.arange(len(y)), seed=0, draws=300).estimate("accuracy")
    assert by_device.value == by_row.value
    assert by_device.high - by_device.low > 3 * (by_row.high - by_row.low)


def test_rows_as_clusters_agree_with_the_binomial() -> None:
    """With one row a cluster, accuracy's spread is sqrt(p (1 - p) / n)."""
    y = np.zeros(400, np.int64)
    p = predictions(np.array([0] * 300 + [1] * 100), 2)
    estimate = bootstrap(y, p, np.arange(400), seed=0, draws=2000).estimate("accuracy")
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert estimate.low == pytest.approx(0.75 - half, abs=0.006)
    assert estimate.high == pytest.approx(0.75 + half, abs=0.006)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """60 studies of 30 devices drawn from one population, whose true accuracy is 0.75."""
    generator = np.random.default_rng(5)
    inside = 0
    for study in range(60):
        y, p, cluster = fleet(generator, 30, 40)
        estimate = bootstrap(y, p, cluster, seed=study, draws=200).estimate("accuracy")
        inside += estimate.low <= 0.75 <= estimate.high
    # Percentile intervals over 30 clusters cover a little less than 95 %.
    assert 51 <= inside <= 60


def test_a_seed_gives_the_same_draws() -> None:
    y, p, cluster = fleet(np.random.default_rng(1), 6, 30)
    first, again, other = (bootstrap(y, p, cluster, seed, 100) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first.draws, again.draws)
    assert (first.draws != other.draws).any()


def test_two_models_are_compared_draw_by_draw() -> None:
    """Devices differ much and models little: the paired interval tells, the single ones do not."""
    generator = np.random.default_rng(3)
    y, p, cluster = fleet(generator, 10, 200)
    better = p.argmax(axis=1)
    fixed = generator.random(len(y)) < 0.03
    better[fixed] = y[fixed]
    a, b = (bootstrap(y, model, cluster, 0, 300) for model in (predictions(better, 3), p))
    gain = a.difference(b, "accuracy")
    assert 0 < gain.low < gain.value < gain.high
    assert gain.value == pytest.approx(a.estimate("accuracy").value - b.estimate("accuracy").value)
    assert a.estimate("accuracy").low < b.estimate("accuracy").high
    same = a.difference(a, "macro_f1")
    assert (same.low, same.value, same.high) == (0, 0, 0)
    with pytest.raises(DataError, match="cannot be compared"):
        a.difference(bootstrap(y, p, np.arange(len(y)), 0, 300), "accuracy")


def test_a_class_on_one_device_alone() -> None:
    """Draws without that device know nothing of the class; the others know its recall exactly."""
    y = np.array([0] * 30 + [1] * 2)
    predicted = np.array([0] * 25 + [1] * 5 + [1, 0])
    cluster = np.array([*np.repeat(np.arange(10), 3), 9, 9])
    found = bootstrap(y, predictions(predicted, 2), cluster, seed=0, draws=500)
    column = found.draws[:, found.names.index("recall:1")]
    assert 0.25 < np.isnan(column).mean() < 0.45  # (9/10)^10 = 0.35
    assert set(column[~np.isnan(column)]) == {0.5}
    assert np.isnan(found.draws[:, found.names.index("macro_f1")]).sum() == np.isnan(column).sum()
    assert not np.isnan(found.draws[:, found.names.index("accuracy")]).any()
    assert found.estimate("recall:1").low == 0.5


def test_what_cannot_be_known_has_no_interval() -> None:
    y, p = np.array([0, 0, 1]), predictions(np.array([0, 1, 1]), 3)
    one = bootstrap(y, p, np.zeros(3, np.int64), seed=0, draws=20).estimate("accuracy")
    assert one.value == pytest.approx(2 / 3)
    assert one.low is one.high is None
    single = bootstrap(np.array([0, 0]), p[:2], np.array([0, 1]), seed=0, draws=20)
    auroc = single.estimate("auroc")
    assert auroc.value is auroc.low is None


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=30), st.integers(0, 9))
def test_intervals_stay_within_bounds(rows: list[tuple[int, int, int]], seed: int) -> None:
    y, predicted, owner = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    found: Bootstrap = bootstrap(y, predictions(predicted, 4), numbered(owner), seed, 30)
    for name in found.names:
        estimate = found.estimate(name)
        if estimate.low is not None:
            assert 0 <= estimate.low <= estimate.high <= 1
    for draw in found.draws:
        assert 0 <= draw[0] <= 1


@pytest.mark.parametrize(
    ("rows", "cluster"), [(0, []), (2, [0]), (2, [0, 2]), (2, [-1, 0]), (3, [1, 1, 2])]
)
def test_clusters_that_do_not_fit_are_refused(rows: int, cluster: list[int]) -> None:
    y = np.zeros(rows, np.int64)
    with pytest.raises(DataError):
        bootstrap(y, predictions(y, 2), np.array(cluster, np.int64), 0, 2)


def test_clusters_are_numbered_by_name() -> None:
    assert numbered(np.array(["b", "a", "b", "c"])).tolist() == [1, 0, 1, 2]
