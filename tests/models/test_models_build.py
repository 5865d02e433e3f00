"""What is shipped is what the code builds, and what TensorFlow computes is what devices compute."""

from pathlib import Path

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from vitalring.errors import ModelError  # noqa: E402
from vitalring.models import layers, templates  # noqa: E402
from vitalring.models.artefact import initial_weights, load_artefact  # noqa: E402
from vitalring.models.convert import build_artefact, to_tflite, write_artefact  # noqa: E402
from vitalring.models.export import fill, load_template  # noqa: E402
from vitalring.models.network import (  # noqa: E402
    Network,
    clipped_gradient_sum,
    probabilities,
)
from vitalring.models.registry import NETWORKS, build  # noqa: E402

pytestmark = pytest.mark.tensorflow

VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "ecg_cnn.npz"
BUILT_WITH = "2.15.1"


def interpreter(model: bytes) -> "tf.lite.Interpreter":
    loaded = tf.lite.Interpreter(model_content=model, num_threads=1)
    loaded.allocate_tensors()
    return loaded


def windows(rows: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    beat = np.cumsum(rng.normal(0, 0.15, (rows, 216, 1)), axis=1)
    side = np.broadcast_to(rng.normal(0, 1.5, (rows, 1, 3)), (rows, 216, 3))
    return np.concatenate([beat, side], axis=2).astype(np.float32)


def trained_weights(seed: int = 4) -> np.ndarray:
    """Weights unlike the placeholder's: other sizes in each channel, biases other than 0."""
    rng = np.random.default_rng(seed)
    w = initial_weights(load_artefact("ecg_cnn"), bytes([seed]))
    return (w * rng.uniform(0.5, 1.5, w.shape) + rng.normal(0, 0.02, w.shape)).astype(np.float32)


@pytest.fixture(scope="module")
def built() -> dict[str, templates.Template]:
    return templates.build_templates(build("ecg_cnn"))


@pytest.mark.parametrize("name", NETWORKS)
def test_building_again_gives_the_shipped_artefact(name: str, tmp_path: Path) -> None:
    shipped, again = load_artefact(name), build_artefact(build(name))
    if tf.__version__ == BUILT_WITH:
        assert again.model == shipped.model
    x, y = windows(64), np.eye(3, dtype=np.float32)[np.arange(64) % 3]
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
    x = windows(5)
    w = trained_weights()
    y = np.array([0, 1, 2, 2, 0])
    clip = np.float32(1.5)
    grad, loss, norms = clipped_gradient_sum(
        network, *map(tf.constant, (w, x)), tf.one_hot(y, 3), tf.ones(5), clip
    )
    made = {
        "w": w,
        "x": x,
        "y": y,
        "clip": clip,
        "grad_sum": grad.numpy(),
        "loss_sum": loss.numpy(),
        "norms": norms.numpy(),
        "probs": probabilities(network, tf.constant(w), tf.constant(x)).numpy(),
    }
    if not VECTORS.exists():
        np.savez_compressed(VECTORS, **made)
        pytest.fail("vectors were missing and have been written; commit them and run again")
    with np.load(VECTORS) as kept:
        assert set(kept.files) == set(made)
        for key, value in made.items():
            np.testing.assert_allclose(value, kept[key], rtol=1e-4, atol=1e-5)


def test_the_artefact_has_no_operation_from_outside_tflite() -> None:
    for model in (load_artefact("ecg_cnn").model, load_template("ecg_cnn", "int8").model):
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


@pytest.mark.parametrize("kind", ["float", "int8", "onnx"])
def test_building_again_gives_the_shipped_templates(
    built: dict[str, templates.Template], kind: str
) -> None:
    shipped = load_template("ecg_cnn", kind)
    if tf.__version__ == BUILT_WITH:
        # tf2onnx names nodes by a counter of its process: only the weights' places can be compared.
        same = [slot.start for slot in shipped.slots] == [slot.start for slot in built[kind].slots]
        assert same if kind == "onnx" else shipped == built[kind]
    assert shipped.dimension == built[kind].dimension


def test_filled_float_model_is_what_the_converter_makes() -> None:
    network, w = build("ecg_cnn"), trained_weights()
    filled = fill(load_template("ecg_cnn", "float"), w)
    wanted = interpreter(templates.float_model(network, w)).get_signature_runner("infer")
    found = interpreter(filled).get_signature_runner("infer")
    plain = probabilities(
        Network(network.name, network.classes, network.layer, 64, quantised=False),
        tf.constant(w),
        tf.constant(windows(20)),
    )
    for row, probs in zip(windows(20), plain, strict=True):
        out = found(x=row[None])["probs"]
        np.testing.assert_array_equal(out, wanted(x=row[None])["probs"])
        np.testing.assert_allclose(out[0], probs, atol=1e-5)


def test_filled_int8_model_is_what_the_converter_makes() -> None:
    network, w = build("ecg_cnn"), trained_weights()
    filled = interpreter(fill(load_template("ecg_cnn", "int8"), w))
    wanted = interpreter(templates.int8_model(network, w))
    # 1. The same tensors, to the last level and scale.
    pairs = zip(filled.get_tensor_details(), wanted.get_tensor_details(), strict=True)
    for tensor, other in pairs:
        assert tensor["name"] == other["name"]
        np.testing.assert_allclose(
            tensor["quantization_parameters"]["scales"],
            other["quantization_parameters"]["scales"],
            rtol=1e-6,
        )
        assert tensor["dtype"] is other["dtype"]
        assert tensor["dtype"] is not np.float32
    # 2. The same answers.
    assert filled.get_input_details()[0]["dtype"] is np.int8
    runners = [model.get_signature_runner("infer") for model in (filled, wanted)]
    for row in windows(50):
        x = np.clip(np.rint(row[None] / (4 / 128)), -128, 127).astype(np.int8)
        found, expected = (runner(x=x)["probs"].astype(int) for runner in runners)
        assert np.abs(found - expected).max() <= 1


def test_int8_model_decides_as_the_quantised_training_pass() -> None:
    network, w = build("ecg_cnn"), trained_weights()
    x = windows(300)
    trained = probabilities(network, tf.constant(w), tf.constant(x)).numpy()
    runner = interpreter(fill(load_template("ecg_cnn", "int8"), w)).get_signature_runner("infer")
    levels = np.clip(np.rint(x / (4 / 128)), -128, 127).astype(np.int8)
    deployed = np.concatenate([runner(x=row[None])["probs"] for row in levels])
    deployed = (deployed.astype(np.float64) + 128) / 256
    assert np.abs(deployed - trained).mean() < 0.02
    assert (deployed.argmax(1) == trained.argmax(1)).mean() > 0.95


def test_filled_onnx_model_agrees() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    w, x = trained_weights(), windows(20)
    session = onnxruntime.InferenceSession(
        fill(load_template("ecg_cnn", "onnx"), w), providers=["CPUExecutionProvider"]
    )
    network = build("ecg_cnn")
    plain = Network(network.name, network.classes, network.layer, 64, quantised=False)
    wanted = probabilities(plain, tf.constant(w), tf.constant(x)).numpy()
    (probs,) = session.run(None, {session.get_inputs()[0].name: x})
    np.testing.assert_allclose(probs, wanted, atol=1e-5)


def test_weights_that_cannot_be_found_again_are_named() -> None:
    layer = layers.chain(
        layers.conv1d((8, 1), 2, width=3, stride=1),
        layers.global_average_pool((6, 2)),
        layers.dense((2,), 2, relu=False),
    )
    network = Network("twice", ("a", "b"), layer, 4)
    model = b"".join(
        [np.zeros(4, np.float32).tobytes(), templates._placeholder(network).tobytes() * 2]
    )
    with pytest.raises(ModelError, match="occur 2 times"):
        templates._float_slots(network, model, templates._placeholder(network))


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(ModelError, match="no network is called 'ecg'; there are ecg_cnn"):
        build("ecg")
