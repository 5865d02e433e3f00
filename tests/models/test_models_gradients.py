"""Hand-written passes against automatic differentiation."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from hostile_weights_fixture import SLACK, hostile_inputs, hostile_weights  # noqa: E402

from vitalring.errors import ModelError  # noqa: E402
from vitalring.models import layers  # noqa: E402
from vitalring.models.convert import to_tflite  # noqa: E402
from vitalring.models.network import (  # noqa: E402
    LONGEST,
    Network,
    clipped_gradient_sum,
    probabilities,
    signatures,
)
from vitalring.models.networks.ecg_bank import ecg_bank  # noqa: E402
from vitalring.models.networks.ecg_cnn import ecg_cnn  # noqa: E402
from vitalring.models.networks.har_bank import har_bank  # noqa: E402

pytestmark = pytest.mark.tensorflow

ROWS = 6


def small(*, quantised: bool) -> Network:
    """A network whose second convolution has few steps and many weights."""
    first = layers.conv1d((20, 2), 3, width=6, stride=3)
    second = layers.conv1d(first.out_shape, 8, width=3, stride=1)
    layer = layers.chain(
        layers.quantise(first.in_shape, 2.0, signed=True),
        first,
        layers.quantise(first.out_shape, 4.0, signed=False),
        second,
        layers.global_average_pool(second.out_shape),
        layers.dense((8,), 5, relu=True),
        layers.dense((5,), 4, relu=False),
    )
    return Network("small", ("a", "b", "c", "d"), layer, 8, quantised)


def gaps(*, quantised: bool) -> Network:
    """A stride wider than the slice leaves samples that no slice takes."""
    first = layers.conv1d((17, 1), 4, width=2, stride=3)
    second = layers.conv1d(first.out_shape, 3, width=3, stride=2)
    layer = layers.chain(
        first,
        second,
        layers.global_average_pool(second.out_shape),
        layers.dense((3,), 2, relu=False),
    )
    return Network("gaps", ("a", "b"), layer, 8, quantised)


def classifier(name: str, *parts: layers.Layer, classes: int = 3) -> Callable[..., Network]:
    """Layers, then a dense head."""
    trunk = layers.chain(*parts)
    head = layers.dense(trunk.out_shape, classes, relu=False)
    names = tuple("abcdefgh"[:classes])
    return lambda *, quantised: Network(name, names, layers.chain(trunk, head), 8, quantised)


def weights_of(layer: layers.Layer, seed: int = 11) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.4, layer.dimension).astype(np.float32)


def same_and_plain(stride: int) -> Callable[..., Network]:
    first = layers.conv1d((11, 2), 4, width=4, stride=stride, padding="same", relu=False)
    second = layers.conv1d(first.out_shape, 3, width=3, padding=(2, 1), bias=False)
    return classifier(
        "same", first, layers.relu(first.out_shape), second, layers.flatten(second.out_shape)
    )


def separable(stride: int, padding: layers.Padding) -> Callable[..., Network]:
    first = layers.depthwise_conv1d((13, 4), width=3, stride=stride, padding=padding)
    second = layers.depthwise_conv1d(first.out_shape, width=2, relu=False, bias=False)
    across = layers.conv1d(second.out_shape, 5, width=1)
    return classifier("separable", first, second, across, layers.global_max_pool(across.out_shape))


def pools(padding: layers.Padding) -> Callable[..., Network]:
    below = layers.conv1d((19, 2), 3, width=2, relu=False)
    first = layers.max_pool(below.out_shape, width=3, stride=2, padding=padding)
    second = layers.average_pool(first.out_shape, width=3, padding=padding)
    return classifier("pools", below, first, second, layers.flatten(second.out_shape))


def normalised() -> Callable[..., Network]:
    first = layers.conv1d((9, 2), 6, width=3, relu=False)
    norm = layers.group_norm(first.out_shape, 3)
    mean, variance = (
        np.linspace(-1, 1, 6, dtype=np.float32),
        np.linspace(0.2, 2, 6, dtype=np.float32),
    )
    affine = layers.channel_affine(norm.out_shape, mean, variance, epsilon=1e-3)
    pool = layers.global_average_pool(affine.out_shape)
    again = layers.channel_affine(pool.out_shape, mean, variance, epsilon=1e-3)
    hidden = layers.dense(again.out_shape, 5, relu=True)
    return classifier("normalised", first, norm, affine, pool, again, hidden)


def with_frozen_trunk() -> Callable[..., Network]:
    first = layers.conv1d((16, 2), 4, width=3, stride=2)
    trunk = layers.frozen(first, weights_of(first))
    both = layers.beside_constants(
        layers.chain(trunk, layers.global_average_pool(trunk.out_shape)), 1
    )
    quantise = layers.quantise(both.in_shape, 4.0, signed=True)
    return classifier("frozen", quantise, both, layers.dense(both.out_shape, 5, relu=True))


NETWORKS = {
    "ecg_cnn": ecg_cnn,
    "ecg_bank": ecg_bank,
    "har_bank": har_bank,
    "small": small,
    "gaps": gaps,
    "same padding": same_and_plain(1),
    "same padding, stride 3": same_and_plain(3),
    "separable": separable(1, "valid"),
    "separable, stride 2": separable(2, "same"),
    "separable, stride 3": separable(3, (0, 3)),
    "pools": pools("valid"),
    "pools, same padding": pools("same"),
    "normalised": normalised(),
    "frozen trunk": with_frozen_trunk(),
}


def inputs(network: Network, seed: int = 0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    parts = [rng.uniform(-1, 1, size) * (limit or 0.1) for size, limit in network.first_blocks]
    x = rng.normal(0, 0.7, (ROWS, *network.layer.in_shape))
    y = np.eye(len(network.classes))[rng.integers(0, len(network.classes), ROWS)]
    return tuple(tf.constant(a, tf.float32) for a in (np.concatenate(parts), x, y))


def straight_through(exact: Any, rounded: Any) -> Any:
    return exact + tf.stop_gradient(rounded - exact)


def losses_by_tape(network: Network, w: Any, x: Any, y: Any) -> Any:
    """The forward pass alone, with a straight-through estimator instead of written gradients."""
    logits, _ = network.layer.forward(x, w, network.quantised)
    return tf.nn.softmax_cross_entropy_with_logits(y, logits)


@pytest.fixture(autouse=True)
def differentiable_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tape see rounding as the identity; what it sees elsewhere stays TensorFlow's own."""
    rounding = tf.round
    monkeypatch.setattr(tf, "round", lambda a: straight_through(a, rounding(a)))


def gradients_by_tape(network: Network, w: Any, x: Any, y: Any) -> np.ndarray:
    with tf.GradientTape() as tape:
        tape.watch(w)
        losses = losses_by_tape(network, w, x, y)
    return tape.jacobian(losses, w).numpy()


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("quantised", [False, True], ids=["float", "int8"])
def test_each_example_has_the_gradient_of_the_tape(
    build: Callable[..., Network], quantised: bool
) -> None:
    network = build(quantised=quantised)
    w, x, y = inputs(network)
    wanted = gradients_by_tape(network, w, x, y)
    for row in range(ROWS):
        mask = np.zeros(ROWS, np.float32)
        mask[row] = 1
        grad, loss, norms = clipped_gradient_sum(network, w, x, y, tf.constant(mask), 1e9)
        np.testing.assert_allclose(grad, wanted[row], atol=1e-5, rtol=1e-4)
        np.testing.assert_allclose(norms[row], np.linalg.norm(wanted[row]), rtol=1e-4)
        np.testing.assert_allclose(
            loss, losses_by_tape(network, w, x[row : row + 1], y[row : row + 1])[0], rtol=1e-5
        )


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("quantised", [False, True], ids=["float", "int8"])
def test_a_tflite_runtime_computes_the_same(build: Callable[..., Network], quantised: bool) -> None:
    network = replace(build(quantised=quantised), physical_batch=ROWS)
    w, x, y = inputs(network, 2)
    mask, clip = tf.constant([1.0, 0, 1, 1, 0, 1]), tf.constant(1.5)
    loaded = tf.lite.Interpreter(model_content=to_tflite(signatures(network)), num_threads=1)
    grads, infer = (loaded.get_signature_runner(name) for name in ("grads", "infer"))
    wanted = clipped_gradient_sum(network, w, x, y, mask, clip)
    found = grads(w=w, x=x, y=y, mask=mask, clip=clip)
    for key, value in zip(("grad_sum", "loss_sum", "norms"), wanted, strict=True):
        np.testing.assert_allclose(found[key], value, rtol=1e-3, atol=1e-4)
    probs = infer(w=w, x=x)["probs"]
    np.testing.assert_allclose(probs, probabilities(network, w, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_the_inference_form_computes_the_same(build: Callable[..., Network]) -> None:
    network = build(quantised=False)
    w, x, _ = inputs(network, 9)
    logits, _ = network.layer.forward(x, w, False)
    np.testing.assert_allclose(network.layer.deploy(x, w, False), logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_the_sum_is_that_of_clipped_gradients(build: Callable[..., Network]) -> None:
    network = build(quantised=True)
    w, x, y = inputs(network, 3)
    each = gradients_by_tape(network, w, x, y)
    norms = np.linalg.norm(each, axis=1)
    clip = float(np.median(norms))
    assert (norms > clip).any()
    assert (norms < clip).any()
    wanted = (each * np.minimum(1, clip / norms)[:, None]).sum(0)
    grad, _, _ = clipped_gradient_sum(network, w, x, y, tf.ones(ROWS), clip)
    np.testing.assert_allclose(grad, wanted, atol=1e-5, rtol=1e-4)


def test_one_example_changes_the_sum_by_no_more_than_the_clip() -> None:
    network = ecg_cnn()
    w, x, y = inputs(network, 5)
    whole, _, norms = clipped_gradient_sum(network, w, x, y, tf.ones(ROWS), 0.01)
    wild = tf.concat([x[:1] * 1e6, x[1:]], 0)
    other, _, wild_norms = clipped_gradient_sum(network, w, wild, y, tf.ones(ROWS), 0.01)
    assert np.linalg.norm(whole - other) <= 2 * 0.01 * (1 + 1e-5)
    # Fixed ranges: the neighbours' gradients do not feel the wild example.
    np.testing.assert_array_equal(norms[1:], wild_norms[1:])


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("quantised", [False, True], ids=["float", "int8"])
def test_no_weights_make_an_example_count_more_than_the_clip(
    build: Callable[..., Network], quantised: bool
) -> None:
    network = build(quantised=quantised)
    counted = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        w = tf.constant(hostile_weights(network.first_blocks, rng))
        x = tf.constant(hostile_inputs((1, *network.layer.in_shape), rng))
        y = tf.one_hot(rng.integers(0, len(network.classes), 1), len(network.classes))
        clip = float(rng.choice([1e-6, 1.0, 1e6]))
        grad, _, norms = clipped_gradient_sum(network, w, x, y, tf.ones(1), clip)
        free, _, _ = clipped_gradient_sum(network, w, x, y, tf.ones(1), 3e38)
        if not np.isfinite(free).all():
            continue  # where no ranges bound activations; a device counts no such record
        exact = np.linalg.norm(free.numpy().astype(np.float64))
        assert np.linalg.norm(grad.numpy().astype(np.float64)) <= clip * (1 + SLACK)
        if norms[0] <= LONGEST:
            np.testing.assert_allclose(norms[0], exact, rtol=SLACK, atol=1e-15)
            counted += 1
    assert counted >= 5


@pytest.mark.parametrize(("a_size", "delta_size"), [
    (1e25, 1e-25), (1e-25, 1e25), (3e36, 1e-36), (1e-36, 3e36), (1.0, 1.0), (1e38, 0.0),
    (0.0, 1e30), (0.0, 0.0), (1e-30, 1e-30),
])  # fmt: skip
@pytest.mark.parametrize("bias", [False, True])
def test_a_dense_layers_norm_is_that_of_its_gradient(
    a_size: float, delta_size: float, bias: bool
) -> None:
    """Where squares of the two sides are infinite or 0 by themselves."""
    layer = layers.dense((7,), 5, relu=False, bias=bias)
    rng = np.random.default_rng(4)
    a = (a_size * rng.uniform(0.5, 1, (3, 7))).astype(np.float32)
    delta = (delta_size * rng.uniform(0.5, 1, (3, 5))).astype(np.float32)
    _, tape = layer.forward(tf.constant(a), tf.zeros(layer.dimension), False)
    below = layer.backward(tf.constant(delta), tape)
    wide_a, wide_delta = a.astype(np.float64), delta.astype(np.float64)
    each = (wide_a[:, :, None] * wide_delta[:, None, :]).reshape(3, -1)
    each = np.concatenate([each, wide_delta], 1) if bias else each
    norms = np.linalg.norm(each, axis=1)
    # Beyond float32's squares the norm is infinite, and below them it is 0: neither is NaN.
    wanted = np.where(norms > 1e19, np.inf, norms)
    np.testing.assert_allclose(tf.sqrt(below.squared_norm), wanted, rtol=1e-5, atol=1e-18)
    for row, one in enumerate(each):
        weight = np.zeros(3, np.float32)
        weight[row] = 1 / max(norms[row], 1e-12)
        found = layer.gradient(below.tape, tf.constant(weight))
        np.testing.assert_allclose(found, one * weight[row], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("spoilt", [np.nan, -1.0, -np.inf, np.inf, 3.4e38])
@pytest.mark.parametrize("in_tflite", [False, True])
def test_a_norm_that_is_no_number_counts_nothing(spoilt: float, in_tflite: bool) -> None:
    """Whatever minimum and maximum make of NaN, here and in a TFLite runtime."""
    honest = layers.dense((4,), 3, relu=False)

    def backward(delta: Any, tape: Any) -> layers.Backward:
        below = honest.backward(delta, tape)
        broken = tape[0][:, 0] > 0.0
        return below._replace(squared_norm=tf.where(broken, spoilt, below.squared_norm))

    network = Network("broken", ("a", "b", "c"), replace(honest, backward=backward), ROWS)
    w, x, y = inputs(network)
    signs = np.array([1, -1, 1, 1, -1, -1], np.float32)
    x = tf.concat([tf.abs(x[:, :1]) * signs[:, None], x[:, 1:]], 1)
    given = {"w": w, "x": x, "y": y, "mask": tf.ones(ROWS), "clip": tf.constant(0.1)}
    if in_tflite:
        model = tf.lite.Interpreter(model_content=to_tflite(signatures(network)), num_threads=1)
        grad = model.get_signature_runner("grads")(**given)["grad_sum"]
    else:
        grad, _, _ = clipped_gradient_sum(network, **given)
    given["mask"] = tf.constant(np.float32(signs < 0))
    wanted, _, _ = clipped_gradient_sum(replace(network, layer=honest), **given)
    np.testing.assert_allclose(grad, wanted, atol=1e-7)


def test_masked_rows_count_nothing_even_when_they_are_nan() -> None:
    network = ecg_cnn()
    w, x, y = inputs(network, 7)
    some = np.array([1, 1, 0, 1, 0, 0], np.float32)
    spoilt = x.numpy()
    spoilt[some == 0] = np.nan
    grad, loss, _ = clipped_gradient_sum(network, w, tf.constant(spoilt), y, tf.constant(some), 1.0)
    wanted, wanted_loss, _ = clipped_gradient_sum(
        network, w, tf.boolean_mask(x, some), tf.boolean_mask(y, some), tf.ones(3), 1.0
    )
    np.testing.assert_allclose(grad, wanted, atol=1e-6)
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-5)
    grad, loss, _ = clipped_gradient_sum(network, w, x, y, tf.zeros(ROWS), 1.0)
    assert not np.any(grad)
    assert float(loss) == 0


def test_quantised_values_are_levels_of_int8() -> None:
    signed = layers.quantise((50,), 4.0, signed=True)
    unsigned = layers.quantise((50,), 8.0, signed=False)
    a = tf.constant(np.random.default_rng(1).normal(0, 5, (3, 50)), tf.float32)
    for layer, step, low, high in ((signed, 4 / 128, -128, 127), (unsigned, 8 / 255, 0, 255)):
        out, inside = layer.forward(a, tf.zeros(0), True)
        levels = out.numpy() / step
        np.testing.assert_allclose(levels, np.rint(levels), atol=1e-3)
        assert np.rint(levels).min() == low
        assert np.rint(levels).max() == high
        np.testing.assert_allclose(out, layer.deploy(a, tf.zeros(0), True), atol=step * 0.51)
        passed = layer.backward(tf.ones_like(a), inside).delta.numpy()
        np.testing.assert_array_equal(passed, (a >= low * step) & (a <= high * step))
        same, _ = layer.forward(a, tf.zeros(0), False)
        np.testing.assert_array_equal(same, a)


def test_marked_ranges_change_little() -> None:
    network = ecg_cnn(quantised=False)
    w, x, _ = inputs(network, 9)
    logits, _ = network.layer.forward(x, w, False)
    np.testing.assert_allclose(network.layer.deploy(x, w, True), logits, atol=0.3)


@pytest.mark.parametrize(("width", "stride", "time"), [(3, 1, 8), (3, 2, 9), (4, 3, 11), (2, 4, 7)])
def test_same_padding_is_that_of_tensorflow(width: int, stride: int, time: int) -> None:
    x = tf.constant(np.random.default_rng(time).normal(size=(2, time, 2)), tf.float32)
    sides = {"width": width, "stride": stride, "padding": "same"}
    conv = layers.conv1d((time, 2), 3, **sides, relu=False, bias=False)
    w = weights_of(conv)
    out, _ = conv.forward(x, tf.constant(w), False)
    np.testing.assert_allclose(
        out, tf.nn.conv1d(x, w.reshape(width, 2, 3), stride, "SAME"), atol=1e-5
    )
    for layer, reference in (
        (layers.max_pool, tf.nn.max_pool1d),
        (layers.average_pool, tf.nn.avg_pool1d),
    ):
        out, _ = layer((time, 2), **sides).forward(x, tf.zeros(0), False)
        np.testing.assert_allclose(out, reference(x, width, stride, "SAME"), atol=1e-6)


def test_group_norm_is_that_of_the_paper() -> None:
    x = np.random.default_rng(0).normal(3, 2, (4, 7, 6)).astype(np.float32)
    w = weights_of(layers.group_norm((7, 6), 2))
    out, _ = layers.group_norm((7, 6), 2).forward(tf.constant(x), tf.constant(w), False)
    groups = x.reshape(4, 7, 2, 3)
    mean, spread = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
    unit = ((groups - mean) / np.sqrt(spread + 1e-5)).reshape(x.shape)
    np.testing.assert_allclose(out, unit * (1 + w[:6]) + w[6:], atol=1e-4)


def test_frozen_weights_are_not_among_the_trained() -> None:
    network = with_frozen_trunk()(quantised=True)
    first = layers.conv1d((16, 2), 4, width=3, stride=2)
    assert network.layer.dimension == (4 + 1) * 5 + 5 + 5 * 3 + 3
    assert network.head == 5 * 3 + 3
    with pytest.raises(ModelError, match=r"shape \(3,\); the layer has \(28,\)"):
        layers.frozen(first, np.zeros(3, np.float32))


def test_trained_layers_below_frozen_ones_are_refused() -> None:
    first = layers.dense((4,), 5, relu=True)
    trunk = layers.frozen(layers.dense((5,), 3, relu=True), np.zeros(18, np.float32))
    layer = layers.chain(first, trunk, layers.dense((3,), 2, relu=False))
    with pytest.raises(ModelError, match="a layer above one with weights is frozen"):
        signatures(Network("below", ("a", "b"), layer, 8))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: layers.conv1d((4, 1), 2, width=5), "4 samples is shorter than a slice of 5"),
        (lambda: layers.conv1d((4, 1), 2, width=0), "width is 0"),
        (lambda: layers.max_pool((4, 1), width=2, stride=-1), "stride -1"),
        (lambda: layers.conv1d((4, 1), 2, width=2, padding=(-1, 0)), "no sample can be taken away"),
        (lambda: layers.group_norm((4, 5), 2), "5 channels do not make 2 equal groups"),
        (
            lambda: layers.channel_affine((4, 2), np.zeros(3), np.ones(2), epsilon=0.0),
            r"2 channels need \(2,\) each",
        ),
        (
            lambda: layers.channel_affine((4, 2), np.zeros(2), np.zeros(2), epsilon=0.0),
            "a variance is not above 0",
        ),
    ],
)
def test_impossible_layers_are_named(make: Callable[[], layers.Layer], match: str) -> None:
    with pytest.raises(ModelError, match=match):
        make()


def test_probabilities_sum_to_one() -> None:
    network = ecg_cnn()
    w, x, _ = inputs(network)
    probs = probabilities(network, w * 100, x).numpy()
    np.testing.assert_allclose(probs.sum(1), 1, rtol=1e-5)
    assert np.isfinite(probs).all()


def test_layers_that_do_not_fit_are_named() -> None:
    with pytest.raises(ModelError, match=r"layer 0 gives shape \(5,\), but layer 1 takes \(4,\)"):
        layers.chain(layers.dense((3,), 5, relu=True), layers.dense((4,), 2, relu=False))
    with pytest.raises(ModelError, match="at least one layer"):
        layers.chain()


def test_signatures_have_the_shapes_of_the_physical_batch() -> None:
    functions = signatures(ecg_cnn())
    shapes = {tensor.name: tuple(tensor.shape) for tensor in functions["grads"].inputs}
    assert shapes == {
        "w:0": (4096,),
        "x:0": (64, 216, 4),
        "y:0": (64, 3),
        "mask:0": (64,),
        "clip:0": (),
    }
