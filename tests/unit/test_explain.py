"""Occlusion and permutation importance: where the signal's place is known they must find it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.aggregator.evaluate import HeldOut
from vitalring.errors import ConfigError, DataError
from vitalring.models import metrics
from vitalring.models.artefact import load_artefact
from vitalring.models.catalogue import find_artefact
from vitalring.models.dataset import FeatureSchema, load_dataset
from vitalring.models.dataset.features import Buckets, Category, Number
from vitalring.models.runtime import TrainableModel
from vitalring.protocol.privacy import Training
from vitalring.protocol.records import ServerOptimiser
from vitalring.tools.explain import occlusion
from vitalring.tools.explain.channels import Channel, channels_of, parse_channels
from vitalring.tools.explain.examples import spread, typical
from vitalring.tools.explain.occlusion import OVERLAP, Patch, likeness, log_odds, occlude, patch_for
from vitalring.tools.explain.permutation import Column, columns_of, permute
from vitalring.tools.explain.windows import explain_windows, shuffled_weights
from vitalring.tools.simulate.layout import SHIPPED_DATA
from vitalring.tools.simulate.one_place import Recipe, train_rounds

CLASSES = ("up", "down", "fast")
HEART = tuple(Channel(name) for name in ("ECG", "before", "after", "relative"))


def logistic(score: Callable[[np.ndarray], np.ndarray]) -> occlusion.Predict:
    """A model of two classes that says exactly what a score says."""

    def predict(x: np.ndarray) -> np.ndarray:
        p = 1 / (1 + np.exp(-score(x.astype(np.float64))))
        return np.stack([1 - p, p], axis=1).astype(np.float32)

    return predict


@given(time=st.integers(1, 300), stride=st.integers(1, 40))
def test_each_sample_is_hidden_as_often(time: int, stride: int) -> None:
    patch, times = Patch(stride), np.zeros(time, int)
    for start in patch.starts(time):
        assert start < time < start + patch.width + time
        times[max(start, 0) : start + patch.width] += 1
    assert (times == OVERLAP).all()


def test_a_patch_is_counted_in_samples_of_the_data_set() -> None:
    # The shipped heartbeats: 0.6 s at 360 Hz, a twelfth of which is 50 ms.
    assert (patch_for(216, 360).width, patch_for(216, 360).stride) == (18, 6)
    assert patch_for(216, 360, 0.1).width == 36
    assert patch_for(128, 50).width == 12
    assert patch_for(2, 50).width == 3
    for seconds in (0.0, -1.0, 0.7, float("nan")):
        with pytest.raises(ConfigError, match=r"0\.6 s"):
            patch_for(216, 360, seconds)


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(0, 29), st.integers(1, 40),
    st.integers(1, 8),
)  # fmt: skip
def test_hiding_a_patch_leaves_the_rest_and_stays_between_its_neighbours(
    seed: int, time: int, start: int, width: int, margin: int
) -> None:
    start %= time
    x = np.random.default_rng(seed).normal(size=(3, time, 2)).astype(np.float32)
    span = slice(start, start + width)
    hidden = occlusion.without_patch(x, 1, span, margin)
    inside = np.zeros(time, bool)
    inside[span] = True
    assert (hidden[:, :, 0] == x[:, :, 0]).all()
    assert (hidden[:, ~inside] == x[:, ~inside]).all()
    steps = np.diff(hidden[:, inside, 1], 2)
    assert np.abs(steps).max(initial=0) < 1e-5  # a straight line
    assert hidden[:, :, 1].min() >= x[:, :, 1].min() - 1e-6
    assert hidden[:, :, 1].max() <= x[:, :, 1].max() + 1e-6


def test_log_odds_are_exact_where_a_probability_is_rounded_to_one() -> None:
    found = log_odds(
        np.array([[1.0, 1e-6], [0.5, 0.5], [0.0, 1.0]], np.float32), np.array([0, 0, 0])
    )
    assert found == pytest.approx([np.log(1e6), 0.0, np.log(1e-9)], rel=1e-6)


def test_importance_lies_where_the_model_looks_and_nowhere_else() -> None:
    generator = np.random.default_rng(3)
    x = generator.normal(0, 0.1, (8, 120, 3)).astype(np.float32)
    x[:, 60:72, 1] += 1.0
    predict = logistic(lambda rows: 3 * rows[:, 60:72, 1].mean(axis=1))
    donors = np.zeros((2, 120, 3), np.float32)
    patch = Patch(4)
    found = occlude(predict, x, np.ones(8, int), patch, (0, 1), donors)
    assert (found.patches[:, :, [0, 2]] == 0).all()
    outside = np.ones(120, bool)
    outside[60 - patch.width : 72 + patch.width] = False
    assert np.abs(found.patches[:, outside, 1]).max() < 1e-6
    assert (found.patches[:, :, 1].argmax(axis=1) // 12 == 5).all()
    # One patch hides all of the bump, two leave a ramp over two thirds of it.
    assert found.patches[:, 66, 1] == pytest.approx((3 + 2 * 0.69) / 3, abs=0.2)
    assert found.channels[:, 1] == pytest.approx(3 * x[:, 60:72, 1].mean(axis=1), abs=1e-3)
    assert np.abs(found.channels[:, [0, 2]]).max() < 1e-6
    # What speaks for one class speaks against the other.
    other = occlude(predict, x, np.zeros(8, int), patch, (0, 1), donors)
    assert other.patches == pytest.approx(-found.patches, abs=1e-6)


def test_a_channel_is_judged_by_what_other_windows_have_there() -> None:
    predict = logistic(lambda rows: rows[:, 0, 0])
    x = np.full((1, 6, 1), 2.0, np.float32)
    donors = np.array([0.0, 1.0, -1.0, 4.0], np.float32)[:, None, None].repeat(6, axis=1)
    found = occlude(predict, x, np.array([1]), Patch(1), (), donors)
    assert found.channels[0, 0] == pytest.approx(2.0 - 1.0, abs=1e-4)


@dataclass(frozen=True)
class Waves:
    """A real network that tells three waves apart, wherever one lies in a window; rows to explain.

    `inside` (n, time) is where each row's wave is.
    """

    trained: occlusion.Predict
    random: occlusion.Predict
    rows: HeldOut
    inside: np.ndarray


@pytest.fixture(scope="module")
def waves() -> Waves:
    artefact = load_artefact("ecg_cnn")
    generator = np.random.default_rng(4)
    y = generator.integers(0, 3, 400)
    x = generator.normal(0, 0.02, (400, *artefact.info.input_shape)).astype(np.float32)
    x[:, :, 1:] = 10 * x[:, :1, 1:]  # constant, and tell nothing
    inside = np.zeros((400, 216), bool)
    shapes = (np.ones(40), -np.ones(40), np.sin(np.arange(40) * np.pi / 4))
    for row, (label, start) in enumerate(zip(y, generator.integers(20, 150, 400), strict=True)):
        inside[row, start : start + 40] = True
        x[row, inside[row], 0] += shapes[label].astype(np.float32)
    training = Training(
        sampling_rate=0.2, steps=5, rounds=30, learning_rate=0.5, batch=64, records=320
    )
    server = ServerOptimiser(name="fedavg", learning_rate=1.0, momentum=0.0)
    recipe = Recipe(artefact, bytes(32), training, 1.0, server)
    weights = train_rounds(recipe, x[:320], y[:320], 1).weights.astype(np.float32)
    model, shuffled = TrainableModel(artefact), shuffled_weights(artefact, weights, 0)
    rows = HeldOut(x[320:], y[320:], np.arange(80) % 4, None, ("a", "b", "c", "d"))
    found = Waves(
        lambda batch: model.probabilities(weights, batch),
        lambda batch: model.probabilities(shuffled, batch),
        rows,
        inside[320:],
    )
    assert (found.trained(rows.x).argmax(axis=1) == rows.y).mean() > 0.95
    return found


def maps_of(waves: Waves, predict: occlusion.Predict) -> np.ndarray:
    """How much each sample (n, time) matters to each row's own class."""
    x, y = waves.rows.x, waves.rows.y
    return occlude(predict, x, y, Patch(4), (0,), x[:6]).patches[:, :, 0]


def test_a_trained_network_looks_where_the_wave_is(waves: Waves) -> None:
    maps = np.abs(maps_of(waves, waves.trained))
    # A patch beside the wave reaches into it.
    near = np.array([np.convolve(row, np.ones(25), "same") > 0 for row in waves.inside])
    assert near[np.arange(len(maps)), maps.argmax(axis=1)].mean() > 0.95
    assert maps[near].mean() > 5 * maps[~near].mean()


def test_maps_of_a_network_with_random_weights_are_others(waves: Waves) -> None:
    """Adebayo et al. 2018: what does not depend on the weights does not explain the model."""
    trained, random = maps_of(waves, waves.trained), maps_of(waves, waves.random)
    assert likeness(trained, trained) == pytest.approx(1.0)
    assert abs(likeness(trained, random)) < 0.5
    assert np.abs(random).max() < 0.5 * np.abs(trained).max()


def test_windows_are_explained_by_example_and_on_the_average(waves: Waves) -> None:
    rows, shares = waves.rows, []
    found = explain_windows(
        waves.trained, waves.random, rows, CLASSES, HEART, 360.0, Patch(8), 12,
        shares.append,
    )  # fmt: skip
    assert (found.searched, found.rows, found.time) == ((0,), 80, 216)
    assert found.donors == 12
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    said = waves.trained(rows.x).argmax(axis=1)
    for label, (right, wrong) in enumerate(found.examples):
        assert right.example.label == right.example.said == label
        assert right.device == rows.devices[rows.owner[right.example.row]]
        assert (right.x == rows.x[right.example.row]).all()
        again = occlude(
            waves.trained, right.x[None], np.array([label]), Patch(8), (0,), right.x[None]
        )
        assert right.patches == pytest.approx(again.patches[0], abs=1e-4)
        assert (wrong is None) == (said[rows.y == label] == label).all()
    for average in found.averages:
        assert average.rows == min(12, (rows.y == average.label).sum())
        mean, low, high = average.channels
        assert (low <= high).all()
        # The wave is the class; constant channels tell nothing.
        assert mean[0] > 5 * np.abs(mean[1:]).max()
    assert abs(found.likeness) < 0.5


def test_shuffled_weights_are_the_same_numbers_in_each_block() -> None:
    artefact = load_artefact("ecg_cnn")
    weights = np.arange(artefact.info.dimension, dtype=np.float32)
    shuffled, start = shuffled_weights(artefact, weights, 5), 0
    assert (shuffled != weights).mean() > 0.9
    for size, _ in artefact.info.blocks:
        assert set(shuffled[start : start + size]) == set(weights[start : start + size])
        start += size


def test_likeness_is_spearmans_with_ties() -> None:
    one = np.array([[1.0, 2.0, 2.0, 9.0]])
    assert likeness(one, np.array([[3.0, 5.0, 5.0, 6.0]])) == pytest.approx(1.0)
    assert likeness(one, -one) == pytest.approx(-1.0)
    # scipy.stats.spearmanr([1, 2, 2, 9], [4, 1, 3, 2])
    assert likeness(one, np.array([[4.0, 1.0, 3.0, 2.0]])) == pytest.approx(-0.632455532)
    assert likeness(one, np.zeros((1, 4))) is None


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(2, 4))
def test_examples_are_the_median_ones_of_their_kind(seed: int, n: int, classes: int) -> None:
    generator = np.random.default_rng(seed)
    y = generator.integers(0, classes, n)
    p = generator.integers(1, 9, (n, classes)).astype(np.float32)  # with ties
    said, sure = p.argmax(axis=1), p.max(axis=1)
    pairs = typical(y, p, classes)
    assert len(pairs) == classes
    for label, (right, wrong) in enumerate(pairs):
        for example, rows in (
            (right, np.flatnonzero((y == label) & (said == label))),
            (wrong, np.flatnonzero((y == label) & (said != label))),
        ):
            if example is None:
                assert not len(rows)
                continue
            assert example.of == len(rows)
            assert example.row in rows
            assert (example.label, example.said) == (label, said[example.row])
            assert (sure[rows] < example.probability).sum() <= (len(rows) - 1) // 2
            assert (sure[rows] > example.probability).sum() <= len(rows) // 2
    assert typical(y, p, classes) == pairs


@given(st.integers(0, 500), st.integers(1, 500))
def test_a_choice_is_spread_over_all_rows(n: int, most: int) -> None:
    places = spread(n, most)
    assert len(places) == min(n, most)
    assert (np.diff(places) > 0).all()
    if n:
        assert places[0] == 0
        assert most == 1 or places[-1] == n - 1


def test_channels_have_the_names_that_the_data_set_or_the_user_gives() -> None:
    info = load_dataset(SHIPPED_DATA)
    known = channels_of(info, 4)
    assert known[0].label == "ECG lead, mV"
    # Channel 1 is 8 · (RR / local mean - 1): eighths.
    assert known[1].shown(-2.4) == "−2.40 × 12.5 %"
    without = replace(info, units=())
    assert channels_of(without, 4)[0] == Channel("ECG lead")
    nameless = replace(without, channels=())
    assert channels_of(nameless, 2) == (Channel("channel 0"), Channel("channel 1"))
    assert parse_channels(["ECG:mV", "RR before"], 2) == (
        Channel("ECG", "mV"),
        Channel("RR before"),
    )
    for texts in (["a"], ["a", ":mV"], ["a", "b", "c"]):
        with pytest.raises(ConfigError, match="--channels"):
            parse_channels(texts, 2)


SCHEMA = FeatureSchema(
    (
        Number("age", 60.0, 10.0),
        Buckets("drug", 256, (3, 9, 200), None),
        Category("ward", ("a", "b"), "a"),
        Number("weight", 70.0, 10.0),
    )
)


def table(n: int) -> np.ndarray:
    """Rows as the schema encodes them: age, four inputs of drug, three of ward, weight."""
    generator = np.random.default_rng(8)
    x = np.zeros((n, SCHEMA.inputs), np.float32)
    x[:, 0], x[:, 8] = generator.normal(size=(2, n))
    x[np.arange(n), 1 + generator.integers(0, 4, n)] = 1
    x[np.arange(n), 5 + generator.integers(0, 3, n)] = 1
    return x


def test_columns_are_all_the_inputs_that_come_from_them() -> None:
    assert columns_of(SCHEMA, 9) == (
        Column("age", slice(0, 1)),
        Column("drug", slice(1, 5)),
        Column("ward", slice(5, 8)),
        Column("weight", slice(8, 9)),
    )
    assert [column.name for column in columns_of(None, 3)] == ["input 0", "input 1", "input 2"]
    assert columns_of(None, 2, ("mean", "spread")) == (
        Column("mean", slice(0, 1)),
        Column("spread", slice(1, 2)),
    )
    with pytest.raises(DataError, match="9 inputs, the rows have 8"):
        columns_of(SCHEMA, 8)


def test_reliance_is_on_the_column_that_decides_and_moves_its_inputs_together() -> None:
    x = table(400)
    y = x[:, 2].astype(np.int64)  # one bucket of drug is the whole label
    seen = []

    def predict(rows: np.ndarray) -> np.ndarray:
        # A shuffled category is still one category.
        assert (rows[:, 1:5].sum(axis=1) == 1).all()
        assert (rows[:, 5:8].sum(axis=1) == 1).all()
        seen.append(len(rows))
        return logistic(lambda r: 6 * r[:, 2] - 3 + 0.1 * r[:, 0])(rows)

    shares = []
    found = permute(predict, x, y, columns_of(SCHEMA, 9), 1, 6, shares.append)
    assert (found.rows, found.repeats, found.auroc, found.macro_f1) == (400, 6, 1.0, 1.0)
    first, *others = found.columns
    assert first.column == "drug"
    # AUROC of a label that one column decides falls to a half, up to chance.
    assert first.auroc.mean == pytest.approx(0.5, abs=0.06)
    assert first.auroc.low < first.auroc.mean < first.auroc.high
    assert first.macro_f1.mean > 0.4
    for other in others:
        assert other.auroc.high == other.macro_f1.high == 0.0
    assert shares[-1] == 1.0
    # Rows that a shuffle leaves as they were are not predicted again.
    assert sum(seen) < 400 * (1 + 6 * 4)


def test_predicting_changed_rows_alone_changes_nothing() -> None:
    x = table(60)
    generator = np.random.default_rng(2)
    y = generator.integers(0, 2, 60)
    predict = logistic(lambda rows: rows @ generator_weights)
    generator_weights = generator.normal(size=9)
    columns = columns_of(SCHEMA, 9)
    found = {one.column: one for one in permute(predict, x, y, columns, 7, 3).columns}
    for column in columns:
        drops = []
        for k in range(3):
            order = np.random.default_rng([7, k]).permutation(60)
            moved = x.copy()
            moved[:, column.inputs] = x[order, column.inputs]
            drops.append(metrics.auroc(y, predict(x)) - metrics.auroc(y, predict(moved)))
        drop = found[column.name].auroc
        assert (drop.mean, drop.low, drop.high) == pytest.approx(
            (np.mean(drops), min(drops), max(drops)), abs=1e-12
        )


def test_rows_of_one_class_have_no_auroc_and_still_an_order() -> None:
    found = permute(
        logistic(lambda r: r[:, 0]), table(20), np.zeros(20, int), columns_of(SCHEMA, 9), 1
    )
    assert np.isnan(found.auroc)
    assert len(found.columns) == 4


def test_a_trained_table_network_relies_on_the_column_that_decides() -> None:
    x = table(600)
    y = (x[:, 0] + 0.1 * np.random.default_rng(1).normal(size=600) > 0).astype(np.int64)
    artefact = find_artefact("ehr_mlp", (9,), ("no", "yes"))
    training = Training(
        sampling_rate=0.2, steps=5, rounds=8, learning_rate=0.3, batch=80, records=400
    )
    server = ServerOptimiser(name="fedavg", learning_rate=1.0, momentum=0.0)
    recipe = Recipe(artefact, bytes(32), training, 1.0, server)
    weights = train_rounds(recipe, x[:400], y[:400], 1).weights.astype(np.float32)
    model = TrainableModel(artefact)

    def reliance(of: np.ndarray) -> dict[str, float]:
        predict = lambda rows: model.probabilities(of, rows)  # noqa: E731
        found = permute(predict, x[400:], y[400:], columns_of(SCHEMA, 9), 1, 5)
        return {one.column: one.auroc.mean for one in found.columns}

    trained = reliance(weights)
    assert trained["age"] > 0.35
    assert max(trained[name] for name in ("drug", "ward", "weight")) < 0.05
    # Random weights rely on nothing that helps, but by chance (Adebayo et al. 2018).
    random = [reliance(shuffled_weights(artefact, weights, seed))["age"] for seed in range(8)]
    assert abs(np.mean(random)) < 0.5 * trained["age"]
