"""The value on its way through an ONNX graph: its axes by name, the constants, the parts so far.

ONNX's convolutions want channels before time, and exporters turn axes about to suit them. So the
axes are followed by name, and a window's are called `a` and `b` until a node shows which of them
is time.
"""

from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import onnx
from onnx.reference import ReferenceEvaluator

from vitalring.errors import ModelError
from vitalring.models.imported.parts import Array, Padding, Part, refused

CURE = (
    "use dense layers, one-dimensional convolutions, pools, normalisations, flatten, relu and a "
    "softmax at the end"
)
WINDOW = ("a", "b")
ONE = "1"  # the name of an axis of length 1 that only tools need


@dataclass(frozen=True)
class Axis:
    """An axis of the value on its way: `n`, `t`ime, `c`hannels, `f`eatures, `a`, `b`, `1`."""

    name: str
    length: int


class Chain:
    """What is known while the nodes are read one after the other."""

    def __init__(self, graph: Any, input_shape: tuple[int, ...] | None) -> None:  # noqa: ANN401
        self.constants: dict[str, npt.NDArray[Any]] = {
            one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer
        }
        self.graph = graph
        self.parts: list[Part] = []
        self.axes: list[Axis] = []
        self.value = ""
        self.ended = ""
        self.ungrouped: list[Axis] = []
        self.known: dict[str, int] = {}
        self._start(input_shape)

    def _start(self, input_shape: tuple[int, ...] | None) -> None:
        inputs = [one for one in self.graph.input if one.name not in self.constants]
        if len(inputs) != 1:
            raise ModelError(
                f"the ONNX graph has inputs {[one.name for one in inputs]}; a network of one "
                "input can be imported"
            )
        (given,) = inputs
        self.value = given.name
        lengths = [dim.dim_value for dim in given.type.tensor_type.shape.dim][1:]
        if len(lengths) not in (1, 2):
            raise ModelError(
                f"ONNX input {given.name!r} has {len(lengths) + 1} axes; windows (batch, time, "
                "channels) or (batch, channels, time), or vectors (batch, features), can be "
                "imported"
            )
        if 0 in lengths:
            lengths = self._filled(given.name, lengths, input_shape)
        names = ("f",) if len(lengths) == 1 else WINDOW
        pairs = zip(names, lengths, strict=True)
        self.axes = [Axis("n", 1), *(Axis(name, length) for name, length in pairs)]

    def _filled(
        self, name: str, lengths: list[int], input_shape: tuple[int, ...] | None
    ) -> list[int]:
        """Return lengths with those that the file leaves open, in whichever order they fit."""
        if input_shape is not None and len(input_shape) == len(lengths):
            for order in (input_shape, input_shape[::-1]):
                if all(here in (0, there) for here, there in zip(lengths, order, strict=True)):
                    return list(order)
        raise ModelError(
            f"ONNX input {name!r} has open lengths (batch, "
            f"{', '.join(str(one) if one else '?' for one in lengths)}); give its shape with "
            "--input, such as 128x6, or export the network with fixed lengths"
        )

    def constant(self, node: Any) -> npt.NDArray[Any] | None:  # noqa: ANN401
        """Return the value of a node that depends on constants alone, or None."""
        if node.op_type == "Constant":
            settings = settings_of(node)
            if "value" not in settings:
                self.refuse(node, "holds no tensor", "export the network again, simplified")
            return np.asarray(onnx.numpy_helper.to_array(settings["value"]))
        if node.op_type == "Shape" and node.input[0] == self.value:
            return np.array([0, *(axis.length for axis in self.axes[1:])])  # 0: the batch as it is
        if not node.input or any(name and name not in self.constants for name in node.input):
            return None
        given = {name: self.constants[name] for name in node.input if name}
        try:
            (result,) = ReferenceEvaluator(node).run(None, given)
        except Exception as error:  # of whichever operation it is
            self.refuse(node, f"cannot be computed beforehand ({error})", "simplify the graph")
        return np.asarray(result)

    def settle(self) -> None:
        """Call what is left of a window whose time is gone features."""
        if [axis.name for axis in self.axes] == ["n", "c"]:
            self.axes[1] = Axis("f", self.axes[1].length)

    def resolve(self, name: str, meaning: str) -> None:
        """Find out that axis `a` or `b` of the window is time or channels; so the other is not."""
        other = {"t": "c", "c": "t"}[meaning]
        names = {name: meaning, ({*WINDOW} - {name}).pop(): other}
        self.axes = [replace(axis, name=names.get(axis.name, axis.name)) for axis in self.axes]
        self.known |= {axis.name: axis.length for axis in self.axes if axis.name in ("t", "c")}

    def named(self, place: int, meaning: str) -> bool:
        """Tell whether an axis has this meaning, or take it to have it while nothing is known."""
        if place >= len(self.axes):
            return False
        if self.axes[place].name in WINDOW:
            self.resolve(self.axes[place].name, meaning)
        return self.axes[place].name == meaning

    def time(self, node: Any) -> int:  # noqa: ANN401
        """Return where among a picture-like node's spatial axes time is: channels come first."""
        names = [axis.name for axis in self.axes]
        if self.named(1, "c"):
            spatial = [axis.name for axis in self.axes[2:]]
            if sorted(spatial) in (["t"], [ONE, "t"]):
                return spatial.index("t")
        return self.refuse(
            node,
            f"works on axes {names} of lengths {[axis.length for axis in self.axes]}",
            "only one-dimensional ones, over time, can be imported",
        )

    def windows(self, node: Any, at: int, width: int) -> tuple[int, Padding]:  # noqa: ANN401
        """Return stride and padding over time."""
        settings = settings_of(node)
        count = len(self.axes) - 2
        strides = settings.get("strides", [1] * count)
        stride, time = strides[at], self.axes[2 + at].length
        automatic = settings.get("auto_pad", b"NOTSET").decode()
        pads = settings.get("pads", [0] * (2 * count))
        total = max((-(-time // stride) - 1) * stride + width - time, 0)
        if automatic in ("SAME_UPPER", "SAME_LOWER"):
            if automatic == "SAME_LOWER" and total % 2:
                return stride, (total - total // 2, total // 2)
            return stride, "same"
        if automatic == "VALID":
            return stride, "valid"
        before, after = pads[at], pads[count + at]
        if sum(pads) != before + after:
            self.refuse(node, "pads another axis than time", "pad time alone")
        if before == after == 0:
            return stride, "valid"
        if (before, after) == (total // 2, total - total // 2):
            return stride, "same"
        return stride, (before, after)

    def shorten(self, at: int, width: int, stride: int, padding: Padding) -> None:
        """Note that time has as many steps as a convolution or pool makes."""
        time = self.axes[2 + at].length
        if padding == "same":
            steps = -(-time // stride)
        else:
            more = 0 if padding == "valid" else sum(padding)
            steps = (time + more - width) // stride + 1
        self.axes[2 + at] = Axis("t", steps)

    def weights(self, node: Any, place: int) -> Array:  # noqa: ANN401
        """Return an input that must be a constant."""
        name = node.input[place]
        if name not in self.constants:
            self.refuse(node, f"takes {name!r}, which is no constant", "freeze the network")
        return self.constants[name].astype(np.float32)

    def given_axes(self, node: Any) -> list[int]:  # noqa: ANN401
        """Return axes, which older operator sets have as a setting."""
        axes = settings_of(node).get("axes")
        if axes is None and len(node.input) > 1 and node.input[1]:
            axes = self.constants[node.input[1]].reshape(-1).tolist()
        return [int(axis) for axis in axes or []]

    def refuse(self, node: Any, complaint: str, cure: str) -> NoReturn:  # noqa: ANN401
        """Raise the error that names the node, its type and the cure."""
        raise refused("ONNX node", called(node), node.op_type, complaint, cure)


def settings_of(node: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return a node's attributes."""
    return {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}


def called(node: Any) -> str:  # noqa: ANN401
    """Return a node's name, or that of its result."""
    return node.name or (node.output[0] if node.output else "?")
