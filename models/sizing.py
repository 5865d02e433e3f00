"""Networks of any size: what the weights of one are, once its lengths are known. No TensorFlow.

One TFLite model whose lengths are open serves every size, because its layers read lengths from
what they are given. What differs from size to size is the flat weight vector, and a `Sizing`,
written when the network was built, says how.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from vitalring.errors import ModelError
from vitalring.models.artefact import ArtefactInfo
from vitalring.schema import from_plain

AXES = {1: ("inputs",), 2: ("time", "channels")}  # names of an input's lengths, by their number
CLASSES = "classes"


def first_limits(shapes: Sequence[tuple[Any, ...]]) -> tuple[float, ...]:
    """Return the bound of the first weights of each block of a network with these shapes.

    √(6/inputs) for a kernel (..., outputs) (He et al. 2015), and 0 for one number an output. A
    network with one kernel starts from 0: its loss is convex, and equal weights do not stay equal.
    """
    if sum(len(shape) > 1 for shape in shapes) < 2:
        return (0.0,) * len(shapes)
    return tuple(
        0.0 if len(shape) == 1 else float((6.0 / math.prod(shape[:-1])) ** 0.5) for shape in shapes
    )


@dataclass(frozen=True)
class Sizing:
    """The blocks of a network of any size: their lengths are numbers, or names of lengths.

    `axes` are the names of the input's lengths. Each block is (kernel's lengths..., outputs) or
    (outputs,), numbers in decimal digits.
    """

    axes: tuple[str, ...]
    blocks: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        known = {*self.axes, CLASSES}
        if self.axes not in AXES.values() or not any(len(block) > 1 for block in self.blocks):
            raise ModelError(f"sizing: axes {self.axes!r} or blocks {self.blocks!r} cannot be")
        for length in [length for block in self.blocks for length in block or ("",)]:
            if length not in known and not re.fullmatch("[1-9][0-9]{0,8}", length):
                raise ModelError(f"sizing: {length!r} is no length; there are {sorted(known)}")

    def shapes(
        self, name: str, input_shape: tuple[int, ...], classes: int
    ) -> list[tuple[int, ...]]:
        """Return the blocks' shapes; `name` is for the error.

        Raises:
            ModelError: the input has another number of axes, or there are fewer than two classes.
        """
        if len(input_shape) != len(self.axes) or min(input_shape) < 1:
            raise ModelError(
                f"{name} takes ({', '.join(self.axes)}), but the data has shape {input_shape}; "
                "choose another network"
            )
        if classes < 2:
            raise ModelError(f"{name} tells classes apart, but the data has {classes}; name two")
        lengths = {**dict(zip(self.axes, input_shape, strict=True)), CLASSES: classes}
        return [
            tuple(lengths[one] if one in lengths else int(one) for one in block)
            for block in self.blocks
        ]

    def info(
        self, reference: ArtefactInfo, input_shape: tuple[int, ...], classes: tuple[str, ...]
    ) -> ArtefactInfo:
        """Return what the artefact says of itself at another size than its reference.

        It names no companions.

        Raises:
            ModelError: a size that `shapes` refuses, or too many weights.
        """
        shapes = self.shapes(reference.name, input_shape, len(classes))
        sizes = [math.prod(shape) for shape in shapes]
        last = max(place for place, shape in enumerate(shapes) if len(shape) > 1)
        return replace(
            reference,
            classes=classes,
            input_shape=input_shape,
            dimension=sum(sizes),
            blocks=tuple(zip(sizes, first_limits(shapes), strict=True)),
            head=sum(sizes[last:]),
            initial="",
            export="",
        )

    def to_json(self) -> bytes:
        """Return the one text that stands for this record."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, text: bytes) -> "Sizing":
        """Read what `to_json` wrote, and nothing else. Raises ModelError."""
        try:
            table = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"sizing: the JSON cannot be read ({error})") from error
        sizing = from_plain(cls, table, ModelError, "sizing")
        if sizing.to_json() != text:
            raise ModelError("sizing: the JSON is not in its one encoding; build it again")
        return sizing
