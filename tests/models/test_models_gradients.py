"""Hand-written passes against automatic differentiation."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from vitalring.errors import ModelError  # noqa: E402
from vitalring.models import layers  # noqa: E402
from vitalring.models.network import (  # noqa: E402
    Network,
    clipped_gradient_sum,
    probabilities,
    signatures,
)
from vitalring.models.networks.ecg_cnn import ecg_cnn  # noqa: E402

pytestmark = pytest.mark.tensorflow

ROWS = 6


def small(*, quantised: bool) -> Network:
    """A network that takes the other way to a convolution's norm: few steps, many weights."""
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


NETWORKS = {"ecg_cnn": ecg_cnn, "small": small, "gaps": gaps}


def inputs(network: Network, seed: int = 0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    parts = [
        rng.uniform(-1, 1, block.size) * (block.limit or 0.1) for block in network.layer.blocks
    ]
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
    reduce_max = tf.reduce_max

    def constant_scale(a: Any, *args: Any, **kwargs: Any) -> Any:
        return tf.stop_gradient(reduce_max(a, *args, **kwargs))

    monkeypatch.setattr(tf, "reduce_max", constant_scale)


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


@pytest.mark.parametrize("quantised", [False, True], ids=["float", "int8"])
def test_the_inference_form_computes_the_same(quantised: bool) -> None:
    network = ecg_cnn(quantised=False)
    w, x, _ = inputs(network, 9)
    logits, _ = network.layer.forward(x, w, False)
    deployed = network.layer.deploy(x, w, quantised)
    np.testing.assert_allclose(deployed, logits, atol=0.3 if quantised else 1e-4)


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
