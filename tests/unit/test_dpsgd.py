"""Local training on a logistic regression written in numpy."""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.edge_agent import dpsgd
from vitalring.edge_agent.dpsgd import LocalResult, privatise, train
from vitalring.edge_agent.randomness import fresh_generator
from vitalring.errors import ConfigError, DataError, ModelError, PrivacyError
from vitalring.protocol.privacy import CLIP_SLACK, MAX_SAMPLED, Privacy, Training

TRAINING = Training(sampling_rate=0.2, steps=40, rounds=1, learning_rate=0.5, batch=60, records=100)
PRIVATE = Privacy("record", "local", 8.0, 1e-5, 1.0, 1.0)
NONE = Privacy()


@dataclass
class Logistic:
    """Binary logistic regression with per-example clipping; notes each call."""

    physical_batch: int = 16
    sizes: list[int] = field(default_factory=list)

    def gradient_sum(self, weights, x, y, clip):
        assert 0 < len(x) <= self.physical_batch
        self.sizes.append(len(x))
        logits = x @ weights
        chance = 1.0 / (1.0 + np.exp(-logits))
        each = (chance - y)[:, None] * x
        norms = np.linalg.norm(each, axis=1)
        scale = np.minimum(1.0, clip / np.maximum(norms, 1e-12))
        clipped = each * np.where(np.isfinite(norms), scale, 1.0)[:, None]
        loss = np.sum(np.logaddexp(0.0, logits) - y * logits)
        return clipped.sum(0).astype(np.float32), float(loss), norms.astype(np.float32)


def records(count=300, seed=1):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, count).astype(np.float32)
    x = rng.normal(size=(count, 4)).astype(np.float32) + (2 * y - 1)[:, None]
    return x, y


def run(model, *, training=TRAINING, privacy=PRIVATE, data=None, generator=None) -> LocalResult:
    x, y = data or records()
    start = np.zeros(x.shape[1], np.float32)
    return train(model, start, x, y, training, privacy, generator or fresh_generator())


@pytest.mark.parametrize("privacy", [NONE, PRIVATE])
def test_learns(privacy):
    result = run(Logistic(), privacy=privacy)
    x, y = records(seed=2)
    assert np.mean((x @ result.weights > 0) == y) > 0.85
    assert result.weights.dtype == np.float32
    assert 40 * 60 * 0.8 < result.examples_seen < 40 * 60 * 1.2


def test_start_weights_are_left_alone():
    start = np.zeros(4, np.float32)
    train(Logistic(), start, *records(), TRAINING, PRIVATE, fresh_generator())
    assert not start.any()


def test_large_batches_go_in_chunks_and_none_is_lost():
    model = Logistic(physical_batch=16)
    everything = replace(TRAINING, sampling_rate=1.0, steps=3)
    result = run(model, training=everything, privacy=NONE)
    assert result.examples_seen == 3 * 300
    assert model.sizes == ([16] * 18 + [12]) * 3
    private = Logistic(physical_batch=16)
    assert run(private, training=everything).examples_seen == 3 * 300
    assert sum(private.sizes) == 3 * 300


def test_chunks_do_not_change_the_sum():
    generator = np.random.default_rng
    small = run(Logistic(7), privacy=NONE, generator=generator(5))
    large = run(Logistic(300), privacy=NONE, generator=generator(5))
    np.testing.assert_allclose(small.weights, large.weights, rtol=1e-5)


@given(st.integers(1, 400), st.integers(1, 64))
def test_chunks_are_a_partition(count, size):
    chosen = np.arange(count)
    in_order = list(dpsgd._in_order(chosen, size))
    by_coins = list(dpsgd._chunks(chosen, size, fresh_generator()))
    for pieces in (in_order, by_coins):
        assert (
            0 < min(len(piece) for piece in pieces) <= max(len(piece) for piece in pieces) <= size
        )
        np.testing.assert_array_equal(np.sort(np.concatenate(pieces)), chosen)
    np.testing.assert_array_equal(np.concatenate(in_order), chosen)


class _Coins:
    """Gives out coins that are given."""

    def __init__(self, coins):
        self.coins = coins

    def random(self, size):
        assert size == len(self.coins)
        return self.coins


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=80, unique=True), st.data())
def test_one_record_more_changes_one_chunk(coins, data):
    size = data.draw(st.integers(1, 20))
    place = data.draw(st.integers(0, len(coins) - 1))
    with_it = dpsgd._chunks(np.arange(len(coins)), size, _Coins(np.array(coins)))
    others = np.delete(np.arange(len(coins)), place)
    without = dpsgd._chunks(others, size, _Coins(np.delete(np.array(coins), place)))
    more, fewer = {frozenset(piece) for piece in with_it}, {frozenset(piece) for piece in without}
    assert len(fewer - more) <= 1, "one chunk at most loses its records"
    assert len(more - fewer) <= 2, "and its place is taken by one, or by its two halves"
    assert frozenset().union(*(more - fewer)) == {place}.union(*(fewer - more))


def test_coins_that_are_all_the_same_are_refused():
    with pytest.raises(PrivacyError, match="5 coins are the same"):
        list(dpsgd._chunks(np.arange(5), 4, _Coins(np.full(5, 0.3))))


def test_the_order_of_chunks_does_not_show_in_the_sum():
    """Sums are added as whole numbers, so records that cancel leave nothing behind."""

    class Pulls(Logistic):
        def gradient_sum(self, weights, x, y, clip):
            return x.sum(0), 0.0, np.linalg.norm(x, axis=1)

    x = np.random.default_rng(1).normal(size=(501, 4)).astype(np.float32) / 10
    x = np.concatenate([x, -x])
    sums = {
        dpsgd._private_sum(
            Pulls(1), np.zeros(4, np.float32), x, np.zeros(len(x)), np.arange(len(x)),
            TRAINING, PRIVATE, fresh_generator(),
        ).tobytes()
        for _ in range(5)
    }  # fmt: skip
    assert sums == {np.zeros(4).tobytes()}


@pytest.mark.parametrize("privacy", [NONE, PRIVATE])
def test_class_weights_multiply_the_clipped_gradients(privacy):
    class Ones(Logistic):
        def gradient_sum(self, weights, x, y, clip):
            assert len(set(y)) == 1
            return np.eye(4, dtype=np.float32)[int(y[0])] * len(y), 0.0, np.ones(len(y))

    y = np.array([0] * 60 + [1] * 30 + [2] * 10)
    training = replace(TRAINING, sampling_rate=1.0, steps=1, class_weights=(0.1, 1.0, 0.5))
    quiet = replace(privacy, noise_multiplier=0.1) if privacy is PRIVATE else privacy
    found = run(Ones(), training=training, privacy=quiet, data=(np.zeros((100, 4)), y))
    divided = 100 if privacy is NONE else training.batch
    wanted = -0.5 * np.array([6.0, 30.0, 5.0, 0.0]) / divided
    np.testing.assert_allclose(found.weights, wanted, atol=1e-7 if privacy is NONE else 0.01)


def test_every_record_has_its_own_coin():
    """Inclusion counts are binomial, and two records are in together as often as chance says."""
    generator = fresh_generator()
    coins = np.zeros((4000, 50), bool)
    for row in coins:
        row[dpsgd._sample(50, 0.3, generator)] = True
    deviation = (coins.sum(0) - 1200) / math.sqrt(4000 * 0.21)
    assert np.abs(deviation).max() < 6.0
    together = np.mean(coins[:, 0] & coins[:, 1])
    assert abs(together - 0.09) < 5.5 * math.sqrt(0.09 * 0.91 / 4000)
    sizes = coins.sum(1)
    assert abs(sizes.var() - 50 * 0.21) < 2.0, "batches of one size are not Poisson samples"


def test_empty_batches_get_their_noise():
    model = Logistic()
    # Two coins of a millionth each: a record is drawn in one run of half a million.
    rare = replace(TRAINING, sampling_rate=1e-6, steps=1, records=1)
    result = run(model, training=rare, data=records(count=2))
    assert model.sizes == []
    assert result.examples_seen == 0
    assert np.all(result.weights != 0.0)


def test_noise_has_the_promised_width():
    noise = np.concatenate(
        [privatise(np.zeros(1000), PRIVATE, fresh_generator()) for _ in range(99)]
    )
    assert abs(noise.std() - 1.0) < 5.5 / math.sqrt(2 * 99_000)
    wide = replace(PRIVATE, clip=0.25, noise_multiplier=3.0)
    noise = privatise(np.zeros(100_000), wide, fresh_generator())
    assert abs(noise.std() / 0.75 - 1.0) < 5.5 / math.sqrt(2 * 100_000)


@settings(max_examples=50)
@given(
    st.floats(1e-3, 1e3),
    st.lists(st.floats(-50, 50), min_size=1, max_size=20),
)
def test_what_is_released_lies_on_the_lattice(clip, multiples):
    """No output tells by its last bits which sum it came from (Mironov 2012)."""
    total = np.array(multiples) * clip
    released = privatise(total, replace(PRIVATE, clip=clip), fresh_generator())
    steps = released / (clip / 2**20)
    assert np.abs(steps - np.rint(steps)).max() < 1e-6


def test_noise_differs_between_runs():
    first, second = run(Logistic()), run(Logistic())
    assert np.all(first.weights != second.weights)


def test_plain_training_repeats_with_a_seed():
    runs = [run(Logistic(), privacy=NONE, generator=np.random.default_rng(3)) for _ in range(2)]
    np.testing.assert_array_equal(runs[0].weights, runs[1].weights)


def test_seeded_noise_is_refused():
    with pytest.raises(PrivacyError, match="noise from Generator is not private"):
        run(Logistic(), generator=np.random.default_rng(3))


class _Unclipped(Logistic):
    def gradient_sum(self, weights, x, y, clip):
        return super().gradient_sum(weights, x, y, 1e9)


@pytest.fixture
def quiet(monkeypatch):
    """No noise: what leaves is what was made of the records."""
    monkeypatch.setattr(
        dpsgd, "integer_gaussian", lambda _generator, _scale, size: np.zeros(size, np.int64)
    )


@pytest.mark.usefixtures("quiet")
def test_records_that_a_model_does_not_clip_count_as_nothing():
    x, y = records()
    assert not run(_Unclipped(), data=(x * 100, y)).weights.any()
    with pytest.raises(ModelError, match="the model does not clip"):
        run(_Unclipped(), data=(x * 100, y), privacy=replace(NONE, clip=1.0))


class _Fragile(Logistic):
    """Its sums are no numbers, or far too long, where a record has a first value of 50 or more."""

    def gradient_sum(self, weights, x, y, clip):
        fatal = x[:, 0] >= 50.0
        gradient, loss, norms = super().gradient_sum(
            weights, np.where(fatal[:, None], 0, x), y, clip
        )
        for value in x[fatal, 0]:
            gradient[1] += {50.0: np.nan, 51.0: np.inf, 52.0: 1e6}[float(value)]
        return gradient, loss, np.where(fatal, np.nan, norms)


@given(
    st.lists(st.sampled_from([0.0, 50.0, 51.0, 52.0]), min_size=1, max_size=60),
    st.integers(1, 40),
)
def test_a_record_that_breaks_a_sum_takes_no_other_with_it(kinds, size):
    """With such records a step gives what it gives without them (SPEC 7.4)."""
    x, y = records(len(kinds))
    kinds = np.array(kinds)
    x[:, 0] = np.where(kinds > 0, kinds, x[:, 0])
    weights = np.full(4, 0.1, np.float32)

    def total(rows):
        return dpsgd._private_sum(
            _Fragile(size), weights, x, y, rows, TRAINING, PRIVATE, fresh_generator()
        )

    moved = total(np.arange(len(x))) - total(np.flatnonzero(kinds == 0.0))
    assert np.linalg.norm(moved) <= CLIP_SLACK / 2 * PRIVATE.clip


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_gradients_that_are_not_finite_stop_training_without_a_guarantee_alone(value):
    class Broken(Logistic):
        def gradient_sum(self, weights, x, y, clip):
            gradient, loss, norms = super().gradient_sum(weights, x, y, clip)
            gradient[0] = value
            return gradient, loss, norms

    assert not run(Broken(), privacy=PRIVATE).weights.any()
    with pytest.raises(ModelError, match="sum to norm"):
        run(Broken(), privacy=NONE)


@pytest.mark.usefixtures("quiet")
def test_norms_that_lie_change_nothing_that_leaves():
    class Liar(Logistic):
        def gradient_sum(self, weights, x, y, clip):
            gradient, loss, norms = super().gradient_sum(weights, x, y, clip)
            return gradient * 1000, loss, norms * 0

    assert not run(Liar()).weights.any()


def test_wrong_gradient_shape():
    class Short(Logistic):
        def gradient_sum(self, weights, x, y, clip):
            gradient, loss, norms = super().gradient_sum(weights, x, y, clip)
            return gradient[:2], loss, norms

    with pytest.raises(ModelError, match="shape"):
        run(Short())


def test_batches_beyond_the_argued_sensitivity_are_refused():
    data = records(MAX_SAMPLED + 1)
    everything = replace(TRAINING, sampling_rate=1.0, steps=1)
    with pytest.raises(PrivacyError, match=r"lower training\.sampling_rate"):
        run(Logistic(), training=everything, data=data)
    run(Logistic(), training=everything, data=data, privacy=NONE)


def test_records_are_checked():
    x, y = records()
    with pytest.raises(DataError, match="at least 100"):
        run(Logistic(), data=(x[:99], y[:99]))
    with pytest.raises(DataError, match="300 records have 299 labels"):
        run(Logistic(), data=(x, y[:-1]))
    x[17, 2] = np.nan
    with pytest.raises(DataError, match="x of record 17 is not finite"):
        run(Logistic(), data=(x, y))


def test_the_proximal_term_is_that_of_fedprox():
    """Li et al. 2020, algorithm 2: h(w) = F(w) + mu/2 |w - w_start|^2, by gradient descent."""
    x, y = records(20)
    start, mu, rate = np.full(4, 0.3, np.float32), 0.7, 0.5
    everything = Training(1.0, 4, 1, rate, 20, 20, proximal=mu)
    found = train(Logistic(20), start, x, y, everything, NONE, np.random.default_rng(0)).weights
    wanted = start.astype(np.float64)
    for _ in range(4):
        chance = 1.0 / (1.0 + np.exp(-(x @ wanted)))
        gradient = ((chance - y)[:, None] * x).mean(0)
        wanted = wanted - rate * (gradient + mu * (wanted - start))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert not np.allclose(
        found,
        train(
            Logistic(20),
            start,
            x,
            y,
            replace(everything, proximal=0.0),
            NONE,
            np.random.default_rng(0),
        ).weights,
        rtol=1e-3,
    )


@pytest.mark.parametrize("privacy", [NONE, PRIVATE])
def test_the_proximal_term_holds_training_near_its_start(privacy):
    far = run(Logistic(), privacy=privacy)
    near = run(Logistic(), training=replace(TRAINING, proximal=1.5), privacy=privacy)
    assert np.linalg.norm(near.weights) < 0.5 * np.linalg.norm(far.weights)


class Counting(Logistic):
    """Counts how often each label is trained on."""

    def gradient_sum(self, weights, x, y, clip):
        self.labels = [*getattr(self, "labels", []), *y.tolist()]
        return super().gradient_sum(weights, x, y, clip)


def test_oversampling_trains_on_every_class_as_often():
    x, y = records(100)
    y = (np.arange(100) < 10).astype(np.int64)  # ten records of class 1
    everything = Training(1.0, 1, 1, 0.1, 100, 100, balance="oversample")
    plain, balanced = Counting(), Counting()
    start = np.zeros(4, np.float32)
    train(balanced, start, x, y, everything, NONE, np.random.default_rng(0))
    assert sorted(balanced.labels) == [0] * 90 + [1] * 90
    unbalanced = replace(everything, balance="none")
    train(plain, start, x, y, unbalanced, NONE, np.random.default_rng(0))
    assert sorted(plain.labels) == [0] * 90 + [1] * 10


def test_oversampling_with_a_guarantee_for_records_is_refused():
    model = Logistic()
    with pytest.raises(ConfigError, match="balance is oversample with"):
        run(model, training=replace(TRAINING, balance="oversample"))
    assert model.sizes == []


def test_unit_device_trains_without_noise_of_its_own():
    """The whole update is protected afterwards; two trainings with equal coins are equal."""
    device = Privacy("device", "local", 8.0, 1e-5, 0.0, 1.0)
    one, two = (
        run(Logistic(), privacy=device, generator=np.random.default_rng(3)) for _ in range(2)
    )
    assert np.array_equal(one.weights, two.weights)


def test_plans_that_cannot_be_guaranteed_are_refused():
    for change in ({"unit": "none"}, {"noise": "distributed"}, {"noise_multiplier": 0.0}):
        model = Logistic()
        with pytest.raises(ConfigError):
            run(model, privacy=replace(PRIVATE, **change))
        assert model.sizes == []


def test_divergence_is_named():
    x, y = records()
    with (
        pytest.raises(ModelError, match=r"lower training\.learning_rate"),
        np.errstate(over="ignore"),
    ):
        run(Logistic(), privacy=NONE, data=(x * 1e25, y))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 2.0**14 + 1, -1.4e38])
def test_weights_to_start_from_are_refused_whatever_the_records(bad):
    start = np.full(4, bad, np.float32)
    for privacy, generator in ((NONE, np.random.default_rng(0)), (PRIVATE, fresh_generator())):
        model = Logistic()
        with pytest.raises(ModelError, match="weights are beyond 16384"):
            train(model, start, *records(), TRAINING, privacy, generator)
        assert model.sizes == []


def test_weights_are_not_in_the_representation():
    assert "weights" not in repr(run(Logistic()))
