"""What is shipped is what the code builds, and exports compute what the training graph computes."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from vitalring.errors import ModelError  # noqa: E402
from vitalring.models import layers  # noqa: E402
from vitalring.models.artefact import Artefact, initial_weights, load_artefact  # noqa: E402
from vitalring.models.convert import build_artefact, sizing_of, to_tflite, write_artefact  # noqa: E402
from vitalring.models.export import export, export_table_at  # noqa: E402
from vitalring.models.inference_graph import InferenceGraph  # noqa: E402
from vitalring.models.network import (  # noqa: E402
    Network,
    clipped_gradient_sum,
    probabilities,
)
from vitalring.models.registry import NETWORKS, build  # noqa: E402
from vitalring.models.trace import trace  # noqa: E402
from vitalring.models.write_onnx import write_onnx  # noqa: E402
from vitalring.models.write_tflite import write_tflite  # noqa: E402

pytestmark = pytest.mark.tensorflow

ROOT = Path(__file__).resolve().parents[2]
VECTORS = ROOT / "tests" / "vectors" / "ecg_cnn.npz"
BUILT_WITH = "2.15.1"


def interpreter(model: bytes) -> "tf.lite.Interpreter":
    loaded = tf.lite.Interpreter(model_content=model, num_threads=1)
    loaded.allocate_tensors()
    return loaded


def run(model: bytes, x: np.ndarray) -> np.ndarray:
    """Probabilities of windows, one at a time, through whatever levels the model wants."""
    loaded = interpreter(model)
    infer = loaded.get_signature_runner("infer")
    (source,), (result,) = loaded.get_input_details(), loaded.get_output_details()
    out = []
    for row in x:
        given = row[None]
        if source["dtype"] is np.int8:
            scale, zero = source["quantization"]
            given = np.clip(np.rint(given / scale) + zero, -128, 127).astype(np.int8)
        probs = infer(x=given)["probs"][0].astype(np.float64)
        if result["dtype"] is np.int8:
            probs = (probs - result["quantization"][1]) * result["quantization"][0]
        out.append(probs)
    return np.array(out)


def windows(network: Network, rows: int, seed: int = 1) -> np.ndarray:
    """Signals that wander as real ones do; the RR numbers of ecg_cnn are constant over time."""
    rng = np.random.default_rng(seed)
    shape = network.layer.in_shape
    if len(shape) == 1:
        return np.clip(rng.normal(0, 0.6, (rows, *shape)), -4, 4).astype(np.float32)
    x = np.cumsum(rng.normal(0, 0.15, (rows, *shape)), axis=1)
    if network.name == "ecg_cnn":
        x[:, :, 1:] = rng.normal(0, 1.5, (rows, 1, 3))
    return x.astype(np.float32)


def real_beats(rows: int) -> np.ndarray:
    with np.load(ROOT / "tools" / "datasets" / "mitbih" / "devices" / "r208.npz") as device:
        x = device["x"]
    return x[np.linspace(0, len(x) - 1, rows).astype(int)]


def trained_weights(network: Network, seed: int = 4) -> np.ndarray:
    """Weights unlike the initial ones: other sizes in each channel, biases, a head that decides."""
    rng = np.random.default_rng(seed)
    w = [rng.uniform(-1, 1, size) * (limit or 0.1) for size, limit in network.first_blocks]
    w = np.concatenate(w)
    w[-network.head :] *= 3
    return (w * rng.uniform(0.5, 1.5, w.shape) + rng.normal(0, 0.02, w.shape)).astype(np.float32)


def everything(*, quantised: bool = True) -> Network:
    """One of each layer, among them what int8 must do in float32."""
    rng = np.random.default_rng(8)
    parts = [layers.quantise((40, 4), 4.0, signed=True)]

    def add(
        make: Any, *args: Any, ranged: float = 0.0, signed: bool = False, **kwargs: Any
    ) -> None:
        shape = parts[-1].out_shape
        parts.append(make(shape, *args, **kwargs))
        if ranged:
            parts.append(layers.quantise(parts[-1].out_shape, ranged, signed=signed))

    add(layers.conv1d, 8, width=5, padding="same", relu=False)
    add(layers.group_norm, 2, ranged=4.0, signed=True)
    add(layers.relu, ranged=4.0)
    add(layers.depthwise_conv1d, width=3, padding=(1, 1), ranged=6.0)
    add(layers.max_pool, width=3, stride=2, padding=(1, 1))
    add(layers.conv1d, 6, width=1, relu=False)
    add(
        layers.channel_affine,
        rng.normal(0, 0.3, 6).astype(np.float32),
        rng.uniform(0.5, 2, 6).astype(np.float32),
        epsilon=1e-3,
    )
    add(layers.relu, ranged=8.0)
    add(layers.average_pool, width=2, ranged=8.0)
    add(
        layers.channel_affine,
        rng.normal(0, 0.3, 6).astype(np.float32),
        rng.uniform(0.5, 2, 6).astype(np.float32),
        epsilon=1e-3,
        ranged=8.0,
        signed=True,
    )
    trunk = layers.conv1d(parts[-1].out_shape, 5, width=2, stride=1)
    parts.append(layers.frozen(trunk, rng.normal(0, 0.4, trunk.dimension).astype(np.float32)))
    parts.append(layers.quantise(parts[-1].out_shape, 8.0, signed=False))
    add(layers.max_pool, width=2, padding="same")
    add(layers.flatten)
    add(layers.dense, 4, relu=False)
    return Network("everything", ("a", "b", "c", "d"), layers.chain(*parts), 8, quantised)


def pooled(pool: Any) -> Any:
    def make(*, quantised: bool = True) -> Network:
        first = layers.conv1d((30, 3), 6, width=4, stride=2)
        last = pool(first.out_shape)
        layer = layers.chain(
            layers.quantise(first.in_shape, 4.0, signed=True),
            first,
            layers.quantise(first.out_shape, 8.0, signed=False),
            last,
            layers.quantise(last.out_shape, 8.0, signed=False),
            layers.dense(last.out_shape, 3, relu=False),
        )
        return Network("pooled", ("a", "b", "c"), layer, 8, quantised)

    return make


BUILDERS = {
    **NETWORKS,
    "everything": everything,
    "global max": pooled(layers.global_max_pool),
    "global mean": pooled(layers.global_average_pool),
}


@pytest.fixture(params=BUILDERS)
def network(request: pytest.FixtureRequest) -> Network:
    return BUILDERS[request.param]()


@pytest.mark.parametrize("name", NETWORKS)
def test_building_again_gives_the_shipped_artefact(name: str, tmp_path: Path) -> None:
    network, shipped = build(name), load_artefact(name)
    again = build_artefact(network, export=trace(network).to_json())
    if tf.__version__ == BUILT_WITH:
        assert again.model == shipped.model
    assert again.companion(again.info.export) == shipped.companion(shipped.info.export)
    x, classes = windows(network, 64), len(network.classes)
    y = np.eye(classes, dtype=np.float32)[np.arange(64) % classes]
    inputs = {
        "w": initial_weights(shipped, b"seed"),
        "x": x,
        "y": y,
        "mask": np.ones(64, np.float32),
        "clip": np.float32(1),
    }
    old, new = (
        interpreter(one.model).get_signature_runner("grads")(**inputs) for one in (shipped, again)
    )
    for key, value in old.items():
        np.testing.assert_allclose(new[key], value, rtol=1e-4, atol=1e-5)
    write_artefact(again, tmp_path)
    assert (tmp_path / f"{name}.json").read_bytes() == again.info.to_json()


def test_the_vectors_are_what_tensorflow_computes() -> None:
    network = build("ecg_cnn")
    with np.load(VECTORS) as kept:
        x, w, y, clip = (kept[key] for key in ("x", "w", "y", "clip"))
        grad, loss, norms = clipped_gradient_sum(
            network, *map(tf.constant, (w, x)), tf.one_hot(y, 3), tf.ones(len(x)), clip
        )
        probs = probabilities(network, tf.constant(w), tf.constant(x))
        made = {"grad_sum": grad, "loss_sum": loss, "norms": norms, "probs": probs}
        assert set(kept.files) == {*made, "x", "w", "y", "clip"}
        for key, value in made.items():
            np.testing.assert_allclose(value, kept[key], rtol=1e-4, atol=1e-5)


def test_no_operation_is_from_outside_tflite(network: Network) -> None:
    graph, w = trace(network), trained_weights(network)
    for model in (write_tflite(graph, w, int8=False), write_tflite(graph, w, int8=True)):
        names = {op["op_name"] for op in interpreter(model)._get_ops_details()}
        assert "CUSTOM" not in names
        assert not [name for name in names if name.startswith("Flex")]


def test_a_signature_made_with_the_tape_is_refused_by_name() -> None:
    kernel = tf.constant(np.ones((3, 1, 4)), tf.float32)

    @tf.function(input_signature=[tf.TensorSpec((2, 16, 1), tf.float32, name="x")])
    def grads(x: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            loss = tf.reduce_sum(tf.nn.relu(tf.nn.conv1d(x, kernel, 1, "VALID")))
        return {"grad": tape.gradient(loss, kernel)}

    with pytest.raises(ModelError) as caught:
        to_tflite({"grads": grads.get_concrete_function()})
    message = str(caught.value)
    assert "needs Flex operations" in message
    assert "ReluGrad" in message
    assert "Conv2DBackpropFilter" in message
    assert "vitalring.models.layers" in message


def float_probabilities(network: Network, w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """What the network computes with its ranges, but without rounding."""

    def clipped(a: tf.Tensor, low: float, high: float, num_bits: int) -> tf.Tensor:
        assert num_bits == 8
        return tf.clip_by_value(a, low, high)

    with mock.patch.object(tf.quantization, "fake_quant_with_min_max_args", clipped):
        return tf.nn.softmax(network.layer.deploy(tf.constant(x), tf.constant(w), True)).numpy()


def test_the_float_model_computes_the_network(network: Network) -> None:
    w, x = trained_weights(network), windows(network, 20)
    found = run(write_tflite(trace(network), w, int8=False), x)
    np.testing.assert_allclose(found, float_probabilities(network, w, x), atol=1e-5)


def test_the_onnx_model_computes_the_network(network: Network) -> None:
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    w, x = trained_weights(network), windows(network, 20)
    model = write_onnx(trace(network), w)
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (probs,) = session.run(None, {"x": x})
    np.testing.assert_allclose(probs, float_probabilities(network, w, x), atol=1e-5)


def test_the_int8_model_computes_the_quantised_training_pass(network: Network) -> None:
    w, x = trained_weights(network), windows(network, 200)
    if network.name == "ecg_cnn":
        x = np.concatenate([x, real_beats(200)])
    trained = probabilities(network, tf.constant(w), tf.constant(x)).numpy()
    model = write_tflite(trace(network), w, int8=True)
    deployed = run(model, x)
    # Activations are off by a level here and there.
    assert np.abs(deployed - trained).mean() < 0.01
    assert np.quantile(np.abs(deployed - trained).max(1), 0.98) < 0.1
    sure = np.sort(trained, axis=1)[:, -1] - np.sort(trained, axis=1)[:, -2] > 0.1
    assert sure.mean() > 0.3
    assert (deployed.argmax(1) == trained.argmax(1))[sure].all()


FORMULAS = ("ecg_bank", "har_bank")  # their trunks are computed in float32


@pytest.mark.parametrize("name", NETWORKS)
def test_int8_models_of_shipped_networks_hold_whole_numbers_alone(name: str) -> None:
    """Of 8 bits; the logits, what they are made of and the softmax have 16, sums more."""
    network = build(name)
    model = interpreter(write_tflite(trace(network), trained_weights(network), int8=True))
    tensors = model.get_tensor_details()
    whole = {np.int8, np.int16, np.int32, np.int64}
    found = {tensor["dtype"] for tensor in tensors}
    assert found <= whole if name not in FORMULAS else found - whole == {np.float32}
    assert {t["dtype"] for t in tensors if t["name"].startswith("logits_kernel")} == {np.int8}
    wide = {tensor["name"] for tensor in tensors if tensor["dtype"] is np.int16}
    assert wide == {"given", "logits", "probs_wide"}
    (source,) = model.get_input_details()
    assert source["dtype"] is np.int8


def converted(network: Network, w: np.ndarray) -> bytes:
    """What TensorFlow's own converter makes of the network in int8, as a second opinion."""

    def infer(x: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = network.layer.deploy(x, tf.constant(w), True)
        logits = tf.quantization.fake_quant_with_min_max_args(logits, -16, 16 - 1 / 8)
        return {"probs": tf.nn.softmax(logits)}

    spec = tf.TensorSpec((1, *network.layer.in_shape), tf.float32, name="x")
    function = tf.function(infer, input_signature=[spec]).get_concrete_function()
    rows = windows(network, 4)
    return to_tflite({"infer": function}, lambda: ([row[None]] for row in rows))


@pytest.mark.parametrize("name", ["ecg_cnn", "cnn1d_small"])
def test_the_int8_model_decides_as_the_one_of_tensorflows_converter(name: str) -> None:
    network = build(name)
    w, x = trained_weights(network), windows(network, 60)
    found = run(write_tflite(trace(network), w, int8=True), x)
    wanted = run(converted(network, w), x)
    # The converter rounds more often on the way.
    assert np.abs(found - wanted).mean() < 0.01
    assert np.abs(found - wanted).max() < 0.1


@cache
def reference_of(name: str) -> Artefact:
    network = build(name)
    return build_artefact(network, export=trace(network).to_json())


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("ehr_mlp", (21,), 3),
        ("ehr_mlp", (1,), 2),
        ("ehr_mlp", (300,), 100),
        ("cnn1d_small", (64, 1), 2),
        ("cnn1d_small", (216, 4), 3),
        ("cnn1d_small", (1000, 12), 5),
    ],
)
def test_a_sizeable_network_has_the_export_table_of_each_size(
    name: str, shape: tuple[int, ...], classes: int
) -> None:
    network = build(name)
    table = export_table_at(reference_of(name), sizing_of(network), shape, classes)
    names = tuple(f"class {i}" for i in range(classes))
    other = replace(network, layer=network.sized(shape, classes), classes=names)
    assert InferenceGraph.from_json(table) == trace(other)
    w, x = trained_weights(other), windows(other, 10)
    graph = InferenceGraph.from_json(table)
    probs = run(write_tflite(graph, w, int8=False), x)
    np.testing.assert_allclose(probs, float_probabilities(other, w, x), atol=1e-5)


def test_a_layer_that_cannot_be_exported_is_named() -> None:
    odd = layers.relu((4,))
    odd = replace(odd, deploy=lambda a, _w, _quantised: tf.math.sinh(a))
    layer = layers.chain(odd, layers.dense((4,), 2, relu=False))
    with pytest.raises(ModelError, match=r"odd: operation Sinh \(.*has no place"):
        trace(Network("odd", ("a", "b"), layer, 4))


LITERT = """
import json, sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter
model = Interpreter(model_path=sys.argv[1], num_threads=1)
model.allocate_tensors()
infer = model.get_signature_runner("infer")
print(json.dumps([infer(x=row[None])["probs"][0].tolist() for row in np.load(sys.argv[2])]))
"""


def test_ai_edge_litert_computes_the_same(network: Network, tmp_path: Path) -> None:
    """In a process of its own: runtimes in one process do not get on."""
    pytest.importorskip("ai_edge_litert", reason="LEFT OUT: ai-edge-litert is not installed")
    w, x = trained_weights(network), windows(network, 20)
    (tmp_path / "model.tflite").write_bytes(write_tflite(trace(network), w, int8=False))
    np.save(tmp_path / "x.npy", x)
    out = subprocess.run(
        [sys.executable, "-c", LITERT, str(tmp_path / "model.tflite"), str(tmp_path / "x.npy")],
        check=True,
        capture_output=True,
    )
    found = np.array(json.loads(out.stdout))
    np.testing.assert_allclose(found, float_probabilities(network, w, x), atol=1e-5)


def test_exports_come_from_the_artefact_alone() -> None:
    network, artefact = build("ehr_mlp"), reference_of("ehr_mlp")
    w, x = trained_weights(network), windows(network, 5)
    files = export(artefact, w)
    assert set(files) == {"model.tflite", "model-int8.tflite", "model.onnx"}
    np.testing.assert_allclose(
        run(files["model.tflite"], x), float_probabilities(network, w, x), atol=1e-5
    )


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(ModelError, match="no network is called 'ecg'; there are cnn1d_small, ecg_"):
        build("ecg")
