"""Networks of others: the same numbers before training, a lower loss after, and clear refusals."""

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
tf2onnx = pytest.importorskip("tf2onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from vitalring.errors import ModelError  # noqa: E402
from vitalring.models.artefact import initial_weights  # noqa: E402
from vitalring.models.export import export  # noqa: E402
from vitalring.models.imported.assemble import assemble  # noqa: E402
from vitalring.models.imported.keras_model import read_keras  # noqa: E402
from vitalring.models.imported.onnx_graph import read_onnx  # noqa: E402
from vitalring.models.imported.parts import Imported  # noqa: E402
from vitalring.models.network import clipped_gradient_sum  # noqa: E402

pytestmark = pytest.mark.tensorflow

K = tf.keras.layers
RNG = np.random.default_rng(3)
ABC = ("a", "b", "c")


def windows(shape: tuple[int, ...], rows: int = 12, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.8, (rows, *shape)).astype(np.float32)


def randomised(model: Any) -> Any:
    """Give every weight, biases and statistics among them, a value of its own."""
    rng = np.random.default_rng(5)
    for layer in model.layers:
        new = []
        for weight in layer.weights:
            values = rng.normal(0, 0.3, weight.shape)
            if "variance" in weight.name:
                values = rng.uniform(0.3, 2, weight.shape)
            elif "gamma" in weight.name:
                values = rng.uniform(0.5, 1.5, weight.shape)
            new.append(values)
        layer.set_weights(new)
    return model


def float_logits(imported: Any, x: np.ndarray, **options: Any) -> np.ndarray:
    made = assemble(imported, "net", ABC, quantised=False, **options)
    logits, _ = made.network.layer.forward(tf.constant(x), tf.constant(made.weights), False)
    return np.asarray(logits)


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.asarray(tf.nn.softmax(logits))


def row(*stages: Any, shape: tuple[int, ...] = (40, 4)) -> Any:
    return randomised(tf.keras.Sequential([K.InputLayer(input_shape=shape), *stages]))


def end() -> list[Any]:
    return [K.Dense(3, activation="softmax")]


KERAS: dict[str, Callable[[], Any]] = {
    "cnn": lambda: row(
        K.Conv1D(8, 5, strides=2, activation="relu"),
        K.MaxPooling1D(2),
        K.Conv1D(6, 3, padding="same"),
        K.BatchNormalization(),
        K.ReLU(),
        K.Flatten(),
        K.Dropout(0.5),
        K.Dense(10, activation="relu"),
        *end(),
    ),
    "separable": lambda: row(
        K.BatchNormalization(),
        K.SeparableConv1D(8, 3, strides=2, padding="same", activation="relu"),
        K.DepthwiseConv1D(3, padding="same", use_bias=False),
        K.BatchNormalization(scale=False),
        K.Activation("relu"),
        K.AveragePooling1D(3, strides=2, padding="same"),
        K.GlobalAveragePooling1D(),
        K.Dense(3),
        K.Softmax(),
    ),
    "norms": lambda: row(
        K.Rescaling(0.5, offset=0.1),
        K.ZeroPadding1D((2, 1)),
        K.Conv1D(8, 4),
        K.GroupNormalization(groups=4, axis=-1),
        K.ReLU(),
        K.Conv1D(6, 3, padding="causal"),
        K.GroupNormalization(groups=-1, axis=-1, center=False),
        K.Dense(5, activation="relu"),
        K.LayerNormalization(axis=[1, 2], center=False, scale=False),
        K.MaxPooling1D(3, padding="same"),
        K.GlobalMaxPooling1D(),
        K.Dense(3),
    ),
    "mlp": lambda: row(
        K.Dense(16, activation="relu"),
        K.BatchNormalization(),
        K.Dense(8, use_bias=False),
        K.BatchNormalization(),
        K.ReLU(),
        *end(),
        shape=(21,),
    ),
}


@pytest.mark.parametrize("ending", [".keras", ".h5"])
@pytest.mark.parametrize("name", KERAS)
def test_a_keras_network_computes_what_it_did(name: str, ending: str, tmp_path: Path) -> None:
    model = KERAS[name]()
    model.save(tmp_path / f"net{ending}")
    imported = read_keras(tmp_path / f"net{ending}")
    assert imported.input_shape == model.input_shape[1:]
    x = windows(imported.input_shape)
    wanted = model.predict(x, verbose=0)
    found = float_logits(imported, x)
    if name != "norms":
        found = softmax(found)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("name", KERAS)
def test_what_tf2onnx_makes_of_it_computes_the_same(name: str, tmp_path: Path) -> None:
    model = KERAS[name]()
    spec = [tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="x")]
    proto, _ = tf2onnx.convert.from_keras(model, input_signature=spec, opset=13)
    onnx.save(proto, tmp_path / "net.onnx")
    if name == "norms":  # TensorFlow writes a group norm as a dozen operations that branch
        with pytest.raises(ModelError, match="ONNX node"):
            read_onnx(tmp_path / "net.onnx")
        return
    imported = read_onnx(tmp_path / "net.onnx")
    x = windows(imported.input_shape)
    np.testing.assert_allclose(
        softmax(float_logits(imported, x)), model.predict(x, verbose=0), atol=1e-5
    )


class Graph:
    """A chain of nodes as exporters write them."""

    def __init__(self, shape: tuple[Any, ...], opset: int = 17) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.opset = opset
        self.value = "input"
        self.input = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", *shape])

    def constant(self, values: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def weights(self, *shape: int, low: float | None = None) -> str:
        values = RNG.normal(0, 0.4, shape) if low is None else RNG.uniform(low, low + 1, shape)
        return self.constant(values.astype(np.float32))

    def add(self, kind: str, *more: str, **settings: Any) -> "Graph":
        result = f"v{len(self.nodes)}"
        name = f"/{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [self.value, *more], [result], name, **settings))
        self.value = result
        return self

    def save(self, path: Path) -> Path:
        output = helper.make_tensor_value_info(self.value, TensorProto.FLOAT, [None, None])
        graph = helper.make_graph(self.nodes, "g", [self.input], [output], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        model.ir_version = 8
        onnx.save(model, path)
        return path


def torch_cnn(g: Graph) -> Graph:
    """Conv1d, BatchNorm1d, ReLU, MaxPool1d, depthwise Conv1d, pool, flatten, Linear."""
    g.add("Conv", g.weights(8, 4, 5), g.weights(8), strides=[2], pads=[2, 2], kernel_shape=[5])
    stats = [g.weights(8), g.weights(8), g.weights(8), g.weights(8, low=0.5)]
    g.add("BatchNormalization", *stats, epsilon=1e-5).add("Relu")
    g.add("MaxPool", kernel_shape=[3], strides=[2], pads=[1, 1])
    g.add("Conv", g.weights(8, 1, 3), g.weights(8), group=8, pads=[1, 1], kernel_shape=[3])
    g.add("Relu")
    g.add("Flatten", axis=1)
    g.add("Gemm", g.weights(10, 80), g.weights(10), transB=1).add("Relu")
    return g.add("Gemm", g.weights(3, 10), g.weights(3), transB=1)


def torch_pooled(g: Graph) -> Graph:
    """AdaptiveAvgPool1d(1), which some versions squeeze and some reshape."""
    g.add("Conv", g.weights(6, 4, 4), kernel_shape=[4]).add("Clip", g.constant(np.float32(0)))
    g.add("AveragePool", kernel_shape=[2], strides=[2])
    g.add("GlobalAveragePool").add("Squeeze", g.constant(np.array([-1])))
    g.add("MatMul", g.weights(6, 3)).add("Add", g.weights(3))
    return g.add("Softmax", axis=-1)


def torch_group_norm(g: Graph) -> Graph:
    """torch.onnx writes GroupNorm as an InstanceNormalization of reshaped channels."""
    g.add("Conv", g.weights(6, 4, 3), g.weights(6), kernel_shape=[3])
    conv = g.value
    g.nodes.append(helper.make_node("Shape", [conv], ["shape"], "/Shape"))
    g.add("Reshape", g.constant(np.array([0, 3, -1])))
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    g.add("InstanceNormalization", g.constant(ones), g.constant(zeros), epsilon=1e-4)
    g.add("Reshape", "shape")
    g.add("Mul", g.weights(6, 1)).add("Add", g.weights(6, 1)).add("Relu")
    g.add("ReduceMax", axes=[2], keepdims=0)
    return g.add("Gemm", g.weights(6, 3), g.weights(3))


def group_normalisation(g: Graph) -> Graph:
    g.add("Transpose", perm=[0, 2, 1])
    g.add("Conv", g.weights(6, 4, 3), g.weights(6), kernel_shape=[3], auto_pad="SAME_UPPER")
    g.add("InstanceNormalization", g.weights(6), g.weights(6))
    g.add("Relu").add("Transpose", perm=[0, 2, 1])
    g.add("MatMul", g.weights(6, 5)).add("Add", g.weights(5)).add("Relu")
    g.add("ReduceMean", axes=[1], keepdims=1)
    g.nodes.append(helper.make_node("Shape", [g.value], ["whole"], "/Shape"))
    g.nodes.append(
        helper.make_node("Gather", ["whole", g.constant(np.array([0]))], ["batch"], "/Gather")
    )
    g.nodes.append(
        helper.make_node("Concat", ["batch", g.constant(np.array([-1]))], ["to"], "/C", axis=0)
    )
    g.add("Reshape", "to")
    return g.add("Gemm", g.weights(5, 3), g.weights(3))


def layer_norm(g: Graph) -> Graph:
    g.add("Conv", g.weights(6, 4, 3), g.weights(6), kernel_shape=[3])
    scale = np.repeat(RNG.uniform(0.5, 1.5, (6, 1)), 38, axis=1).astype(np.float32)
    g.add("LayerNormalization", g.constant(scale), axis=1).add("Relu")
    g.add("Conv", g.weights(4, 6, 2), kernel_shape=[2], strides=[3]).add("Mul", g.weights(4, 1))
    g.add("Sub", g.weights(1, 4, 1)).add("GlobalMaxPool").add("Flatten")
    return g.add("Gemm", g.weights(4, 3), beta=1.0)


def pictures(g: Graph) -> Graph:
    """What TensorFlow's converters make of Conv1D: pictures of one row."""
    g.add("Unsqueeze", g.constant(np.array([1]))).add("Transpose", perm=[0, 3, 1, 2])
    g.add("Conv", g.weights(6, 4, 1, 3), strides=[1, 2], pads=[0, 0, 0, 1])
    g.add("Add", g.weights(1, 6, 1, 1)).add("Relu")
    g.add("MaxPool", kernel_shape=[1, 2], strides=[1, 2])
    g.add("Transpose", perm=[0, 2, 3, 1]).add("Squeeze", g.constant(np.array([1])))
    g.add("Reshape", g.constant(np.array([-1, 60])))
    g.add("MatMul", g.weights(60, 3)).add("Add", g.weights(3))
    return g.add("Softmax", axis=1)


ONNX = {
    "torch cnn": (torch_cnn, (4, 40), True),
    "torch pooled": (torch_pooled, (4, 40), True),
    "torch group norm": (torch_group_norm, (4, 40), True),
    "layer norm": (layer_norm, (4, 40), True),
    "group norm": (group_normalisation, (40, 4), False),
    "pictures": (pictures, (40, 4), False),
}


@pytest.mark.parametrize("name", ONNX)
def test_an_onnx_network_computes_what_it_did(name: str, tmp_path: Path) -> None:
    make, shape, channels_first = ONNX[name]
    path = make(Graph(shape)).save(tmp_path / "net.onnx")
    imported = read_onnx(path)
    assert imported.input_shape == (40, 4)
    x = windows((40, 4))
    given = x.transpose(0, 2, 1) if channels_first else x
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted = np.concatenate([session.run(None, {"input": one[None]})[0] for one in given])
    found = float_logits(imported, x)
    found = softmax(found) if session.get_outputs() and wanted.min() >= 0 else found
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@cache
def imported_cnn() -> Imported:
    with tempfile.TemporaryDirectory() as folder:
        KERAS["cnn"]().save(Path(folder) / "net.keras")
        return read_keras(Path(folder) / "net.keras")


@pytest.mark.parametrize("train", ["all", "head"])
@pytest.mark.parametrize("quantised", [True, False], ids=["int8", "float"])
def test_training_from_it_lowers_the_loss(train: str, quantised: bool) -> None:
    imported = imported_cnn()
    x = windows((40, 4), 30)
    made = assemble(imported, "net", ABC, train=train, quantised=quantised, windows=x)
    w, y = tf.constant(made.weights), tf.one_hot(np.argmax(x.sum(1)[:, :3], 1), 3)
    losses = []
    for _ in range(40):
        grad, loss, _ = clipped_gradient_sum(made.network, w, tf.constant(x), y, tf.ones(30), 1.0)
        losses.append(float(loss))
        w = w - 0.05 * grad
    assert losses[-1] < 0.8 * losses[0]
    if train == "head":
        assert made.network.layer.dimension == made.network.head == 10 * 3 + 3


def test_a_head_is_trained_on_an_untouched_trunk() -> None:
    imported = imported_cnn()
    x = windows((40, 4))
    whole = assemble(imported, "net", ABC, quantised=False)
    head = assemble(imported, "net", ABC, quantised=False, train="head")
    before = whole.weights[: -head.weights.size]
    other = np.random.default_rng(0).normal(0, 0.5, head.weights.shape).astype(np.float32)
    found, _ = head.network.layer.forward(tf.constant(x), tf.constant(other), False)
    both = tf.constant(np.concatenate([before, other]))
    wanted, _ = whole.network.layer.forward(tf.constant(x), both, False)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("train", ["all", "head"])
def test_the_artefact_starts_from_the_file_and_exports(train: str) -> None:
    x = windows((40, 4), 20)
    made = assemble(imported_cnn(), "net", ABC, train=train, windows=x)
    artefact = made.artefact()
    np.testing.assert_array_equal(initial_weights(artefact, b"any seed"), made.weights)
    files = export(artefact, made.weights)
    logits, _ = made.network.layer.forward(tf.constant(x), tf.constant(made.weights), False)
    session = onnxruntime.InferenceSession(files["model.onnx"], providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x})[0], softmax(logits), atol=1e-5)
    loaded = tf.lite.Interpreter(model_content=files["model-int8.tflite"], num_threads=1)
    loaded.allocate_tensors()
    scale, zero = loaded.get_input_details()[0]["quantization"]
    infer = loaded.get_signature_runner("infer")
    rounded, _ = made.network.layer.forward(tf.constant(x), tf.constant(made.weights), True)
    for one, wanted in zip(x, softmax(rounded), strict=True):
        levels = np.clip(np.rint(one[None] / scale) + zero, -128, 127).astype(np.int8)
        found = (infer(x=levels)["probs"][0].astype(float) + 128) / 256
        np.testing.assert_allclose(found, wanted, atol=0.08)


def test_ranges_come_from_the_windows() -> None:
    x = windows((40, 4))

    def limits(given: np.ndarray | None) -> list[float]:
        return [limit for _, limit in assemble(imported_cnn(), "net", ABC, windows=given).ranges]

    small, large = limits(x * 0.1), limits(x * 10)
    assert small[0] < 0.6 < np.abs(x * 10).max() <= large[0]
    assert all(one < other for one, other in zip(small, large, strict=True))
    # Without, as the shipped networks have them.
    assert set(limits(None)) == {4.0, 8.0}


@pytest.mark.parametrize(
    ("stages", "match"),
    [
        ([K.LSTM(4), K.Dense(3)], "'lstm.*' of type LSTM cannot be imported; recurrent"),
        ([K.Lambda(lambda a: a), K.Flatten(), K.Dense(3)], "type Lambda .* Python code"),
        ([K.Conv1D(4, 3, activation="tanh"), K.Flatten(), K.Dense(3)], "Conv1D has the activation"),
        ([K.Conv1D(4, 3, dilation_rate=2), K.Flatten(), K.Dense(3)], "Conv1D is dilated"),
        ([K.Flatten(), K.Dense(3, activation="softmax"), K.Dense(3)], "follows the softmax"),
        ([K.Reshape((40, 4, 1)), K.Conv2D(4, 3), K.Flatten(), K.Dense(3)], "type Reshape cannot"),
        ([K.ReLU(max_value=6), K.Flatten(), K.Dense(3)], "type ReLU is no plain relu"),
        ([K.LayerNormalization(), K.Flatten(), K.Dense(3)], "GroupNormalization, or axis"),
        ([K.Flatten(), K.Dense(1, activation="sigmoid")], "activation sigmoid; use relu inside"),
        ([K.ZeroPadding1D(1), K.MaxPooling1D(2), K.Flatten(), K.Dense(3)], "pad right before"),
    ],
)
def test_a_keras_layer_that_cannot_be_imported_is_named(
    stages: list[Any], match: str, tmp_path: Path
) -> None:
    model = tf.keras.Sequential([K.InputLayer(input_shape=(40, 4)), *stages])
    model.save(tmp_path / "net.keras")
    with pytest.raises(ModelError, match=match):
        read_keras(tmp_path / "net.keras")


def test_a_keras_network_that_branches_is_refused(tmp_path: Path) -> None:
    x = tf.keras.Input((40, 4))
    a = K.Conv1D(4, 3, padding="same")(x)
    model = tf.keras.Model(x, K.Dense(3)(K.Flatten()(K.Add()([a, x]))))
    model.save(tmp_path / "net.keras")
    with pytest.raises(ModelError, match="type Add cannot be imported; networks that branch"):
        read_keras(tmp_path / "net.keras")


def test_a_lambda_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading would run it."""
    model = tf.keras.Sequential(
        [K.InputLayer(input_shape=(4,)), K.Lambda(lambda a: a * 2), K.Dense(3)]
    )
    loaded: list[Any] = []
    for ending in (".h5", ".keras"):
        model.save(tmp_path / f"net{ending}")
    monkeypatch.setattr(tf.keras.models, "load_model", lambda *args, **_: loaded.append(args))
    for ending in (".h5", ".keras"):
        with pytest.raises(ModelError, match="Lambda"):
            read_keras(tmp_path / f"net{ending}")
    assert not loaded


def refuse(make: Callable[[Graph], Any], match: str, path: Path, shape: Any = (4, 40)) -> None:
    graph = Graph(shape)
    make(graph)
    with pytest.raises(ModelError, match=match):
        read_onnx(graph.save(path / "net.onnx"))


def two_takers(g: Graph) -> None:
    g.add("Conv", g.weights(4, 4, 3), pads=[1, 1], kernel_shape=[3])
    before = g.value
    g.add("Relu").add("Add", before)


ODD: dict[str, tuple[Callable[[Graph], Any], str]] = {
    "recurrent": (
        lambda g: g.add("LSTM", g.weights(1, 8, 4), g.weights(1, 8, 2), hidden_size=2),
        "'/LSTM_0' of type LSTM cannot be imported; recurrent networks",
    ),
    "skip": (two_takers, "type Add .*branches; use a chain"),
    "picture": (
        lambda g: g.add("Unsqueeze", g.constant(np.array([1]))).add("Conv", g.weights(3, 1, 3, 3)),
        "type Conv .*one-dimensional",
    ),
    "activation": (lambda g: g.add("Tanh"), "'/Tanh_0' of type Tanh .* use a relu"),
    "dilated": (
        lambda g: g.add("Conv", g.weights(4, 4, 3), dilations=[2], kernel_shape=[3]),
        "type Conv is dilated",
    ),
    "groups": (
        lambda g: g.add("Conv", g.weights(4, 2, 3), group=2, kernel_shape=[3]),
        "type Conv has 2 groups",
    ),
    "after softmax": (
        lambda g: (
            g.add("Flatten").add("Gemm", g.weights(160, 3)).add("Softmax", axis=-1).add("Relu")
        ),
        "type Relu follows the softmax '/Softmax_2'",
    ),
    "softmax inside": (lambda g: g.add("Softmax", axis=-1), "type Softmax is not over the classes"),
    "padded mean": (
        lambda g: g.add("AveragePool", kernel_shape=[3], pads=[1, 1], count_include_pad=1),
        "type AveragePool counts its padding",
    ),
    "mixed axes": (
        lambda g: g.add("Relu").add("Reshape", g.constant(np.array([0, 8, 20]))).add("Relu"),
        r"type Reshape makes \[8, 20\] of \[4, 40\]",
    ),
    "relu of groups": (
        lambda g: (
            g.add("Conv", g.weights(6, 4, 3), kernel_shape=[3])
            .add("Reshape", g.constant(np.array([0, 2, -1])))
            .add("Relu")
        ),
        "type Relu works on channels in groups",
    ),
    "relu6": (
        lambda g: g.add("Clip", g.constant(np.float32(0)), g.constant(np.float32(6))),
        "type Clip cuts off at 0.0 and 6.0; use a plain relu",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_an_onnx_node_that_cannot_be_imported_is_named(name: str, tmp_path: Path) -> None:
    refuse(*ODD[name], tmp_path)


def test_open_lengths_are_asked_for(tmp_path: Path) -> None:
    def make(g: Graph) -> Graph:
        g.add("Conv", g.weights(5, 4, 3), g.weights(5), kernel_shape=[3]).add("Relu")
        g.add("GlobalMaxPool").add("Flatten")
        return g.add("Gemm", g.weights(5, 3), g.weights(3))

    refuse(make, r"open lengths \(batch, 4, \?\); give its shape with --input", tmp_path, (4, "t"))
    path = make(Graph((4, "t"))).save(tmp_path / "open.onnx")
    assert read_onnx(path, (25, 4)).input_shape == (25, 4)
    with pytest.raises(ModelError, match="open lengths"):
        read_onnx(path, (25, 5))


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"not a network")
    with pytest.raises(ModelError, match="cannot be read as ONNX"):
        read_onnx(path)
    with pytest.raises(ModelError, match="no Keras model"):
        read_keras(path)
    with pytest.raises(ModelError, match="cannot be read as ONNX"):
        read_onnx(tmp_path / "none.onnx")


def test_classes_and_windows_must_fit() -> None:
    with pytest.raises(ModelError, match=r"3 outputs, but 2 classes are named: a, b; name one"):
        assemble(imported_cnn(), "net", ("a", "b"))
    with pytest.raises(ModelError, match="windows to calibrate with have shape"):
        assemble(imported_cnn(), "net", ABC, windows=windows((41, 4)))


def test_a_network_must_end_in_a_dense_layer(tmp_path: Path) -> None:
    graph = Graph((4, 40))
    graph.add("Conv", graph.weights(3, 4, 3), kernel_shape=[3]).add("GlobalMaxPool").add("Flatten")
    imported = read_onnx(graph.save(tmp_path / "net.onnx"))
    with pytest.raises(ModelError, match=r"ends in '/GlobalMaxPool_1' .*not in a dense layer"):
        assemble(imported, "net", ABC)
