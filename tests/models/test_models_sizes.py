"""Networks of any size: one TFLite model computes at each size what TensorFlow does."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from vitalring.errors import ModelError  # noqa: E402
from vitalring.models import layers  # noqa: E402
from vitalring.models.artefact import (  # noqa: E402
    SHIPPED,
    Artefact,
    initial_weights,
    load_artefact,
)
from vitalring.models.catalogue import find_artefact, read_sizing  # noqa: E402
from vitalring.models.convert import sizing_of, to_tflite  # noqa: E402
from vitalring.models.network import (  # noqa: E402
    Network,
    clipped_gradient_sum,
    probabilities,
    signatures,
)
from vitalring.models.networks.cnn1d_small import cnn1d_small  # noqa: E402
from vitalring.models.networks.ehr_mlp import ehr_mlp  # noqa: E402
from vitalring.models.networks.linear import linear  # noqa: E402
from vitalring.models.registry import NETWORKS, build  # noqa: E402

pytestmark = pytest.mark.tensorflow

VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "networks.npz"
BATCH = 64
CLIP = 1.0
BUILDERS: dict[str, Callable[..., Network]] = {
    "ehr_mlp": ehr_mlp,
    "cnn1d_small": cnn1d_small,
    "linear": linear,
}
SIZES = [
    ("ehr_mlp", (1,), 2),
    ("ehr_mlp", (265,), 6),
    ("ehr_mlp", (64,), 3),
    ("cnn1d_small", (1, 1), 2),
    ("cnn1d_small", (3, 2), 3),
    ("cnn1d_small", (50, 1), 2),
    ("cnn1d_small", (128, 6), 6),
    ("cnn1d_small", (217, 4), 3),
    ("linear", (1,), 2),
    ("linear", (861,), 2),
    ("linear", (265,), 6),
]
IN_VECTORS = [("har_mlp", (265,), 6), ("har_cnn", (128, 6), 6), *SIZES[:1], *SIZES[4:5]]


def at(name: str, shape: tuple[int, ...], classes: int) -> tuple[Artefact, Network]:
    names = tuple("abcdefgh"[:classes])
    artefact = find_artefact(name, shape, names)
    builder = BUILDERS.get(name)
    return artefact, builder(*shape, names) if builder else build(name)


def example(artefact: Artefact, rows: int, seed: int = 3) -> tuple[np.ndarray, ...]:
    """Weights unlike the first ones, inputs and labels."""
    rng = np.random.default_rng(seed)
    w = initial_weights(artefact, b"vector")
    w += np.resize(np.linspace(-0.1, 0.1, 101, dtype=np.float32), w.shape)
    x = rng.normal(0, 1, (rows, *artefact.info.input_shape)).astype(np.float32)
    return w, x, rng.integers(0, len(artefact.info.classes), rows)


@pytest.fixture(scope="module")
def plain() -> dict[str, bytes]:
    """The networks without int8 in the forward pass."""
    return {
        name: to_tflite(signatures(builder(quantised=False))) for name, builder in BUILDERS.items()
    }


def by_tflite(model: bytes, w: Any, x: Any, y: Any, classes: int) -> dict[str, np.ndarray]:
    loaded = tf.lite.Interpreter(model_content=model, num_threads=1)
    inputs = {"w": w, "x": x, "y": np.eye(classes, dtype=np.float32)[y]}
    mask, clip = np.ones(BATCH, np.float32), np.float32(CLIP)
    found = loaded.get_signature_runner("grads")(**inputs, mask=mask, clip=clip)
    found |= loaded.get_signature_runner("infer")(w=w, x=x)
    return found


def by_tensorflow(network: Network, w: Any, x: Any, y: Any) -> dict[str, np.ndarray]:
    one_hot = tf.one_hot(y, len(network.classes))
    tensors = tf.constant(w), tf.constant(x), one_hot, tf.ones(len(y))
    grad, loss, norms = clipped_gradient_sum(network, *tensors, tf.constant(CLIP))
    probs = probabilities(network, tf.constant(w), tf.constant(x))
    found = {"grad_sum": grad, "loss_sum": loss, "norms": norms, "probs": probs}
    return {key: value.numpy() for key, value in found.items()}


@pytest.mark.parametrize(("name", "shape", "classes"), SIZES)
def test_one_model_computes_every_size(name: str, shape: tuple[int, ...], classes: int) -> None:
    artefact, network = at(name, shape, classes)
    info = artefact.info
    assert info.blocks == network.first_blocks
    assert (info.dimension, info.head) == (network.layer.dimension, network.head)
    given = example(artefact, BATCH)
    wanted, found = by_tensorflow(network, *given), by_tflite(artefact.model, *given, classes)
    # An activation on the edge between two levels may fall to either side, and then its example
    # differs by a level's worth.
    np.testing.assert_allclose(found["probs"], wanted["probs"], atol=0.02)
    np.testing.assert_allclose(found["norms"], wanted["norms"], rtol=0.05)
    gap = np.linalg.norm(found["grad_sum"] - wanted["grad_sum"])
    assert gap < 0.02 * np.linalg.norm(wanted["grad_sum"])


@pytest.mark.parametrize(("name", "shape", "classes"), SIZES)
def test_without_rounding_every_size_is_exact(
    plain: dict[str, bytes], name: str, shape: tuple[int, ...], classes: int
) -> None:
    artefact, network = at(name, shape, classes)
    given = example(artefact, BATCH)
    wanted = by_tensorflow(replace(network, quantised=False), *given)
    found = by_tflite(plain[name], *given, classes)
    for key, value in wanted.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", NETWORKS)
def test_shipped_sizings_are_those_of_the_networks(name: str) -> None:
    network, shipped = build(name), read_sizing(SHIPPED, name)
    assert (shipped is None) == (network.sized is None)
    if shipped is None:
        with pytest.raises(ModelError, match="has one size"):
            sizing_of(network)
    else:
        assert shipped == sizing_of(network)


def test_a_length_that_is_no_input_length_is_refused() -> None:
    def sized(shape: layers.Shape, classes: layers.Size) -> layers.Layer:
        hidden = layers.dense(shape, shape[0] // 2, relu=True)
        return layers.chain(hidden, layers.dense(hidden.out_shape, classes, relu=False))

    network = Network("halves", ("a", "b"), sized((8,), 2), 4, sized=sized)
    with pytest.raises(ModelError, match="only these lengths themselves may vary"):
        sizing_of(network)


def test_the_vectors_are_what_tensorflow_computes() -> None:
    made = {}
    for name, shape, classes in IN_VECTORS:
        artefact, network = at(name, shape, classes)
        w, x, y = example(artefact, 5)
        made |= {f"{name}.x": x, f"{name}.y": y}
        found = by_tensorflow(network, w, x, y)
        made |= {f"{name}.{key}": value for key, value in found.items()}
    if not VECTORS.exists():
        np.savez_compressed(VECTORS, **made)
        pytest.fail("vectors were missing and have been written; commit them and run again")
    with np.load(VECTORS) as kept:
        assert set(kept.files) == set(made)
        for key, value in made.items():
            np.testing.assert_allclose(value, kept[key], rtol=1e-4, atol=1e-5, err_msg=key)


def test_reference_sizes_are_the_shipped_ones() -> None:
    for name, builder in BUILDERS.items():
        reference = load_artefact(name).info
        assert find_artefact(name, reference.input_shape, reference.classes).info == reference
        assert builder().layer.in_shape == reference.input_shape
