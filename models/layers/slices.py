"""Slices of a signal that convolutions and pools look at.

Slice t of a padded signal (B, time, channels) starts at stride · t. Its samples are reached tap
by tap: tap j is sample j of every slice, one strided slice of the signal.
"""

from dataclasses import dataclass
from typing import Literal

import tensorflow as tf

from vitalring.errors import ModelError
from vitalring.models.layers.layer import Size, Tensor

Padding = Literal["valid", "same"] | tuple[int, int]


@dataclass(frozen=True)
class Slices:
    """`steps` slices of `width` samples, of a signal padded by (left, right) samples."""

    time: Size
    steps: Size
    width: int
    stride: int
    left: Size
    right: Size

    @property
    def padded(self) -> bool:
        """Whether there may be samples beyond the signal's ends."""
        return not (isinstance(self.left, int) and self.left == self.right == 0)

    def pad(self, a: Tensor, value: float = 0.0) -> Tensor:
        """Return a (B, time, channels) with `value` before and after it."""
        if not self.padded:
            return a
        return tf.pad(a, [[0, 0], [self.left, self.right], [0, 0]], constant_values=value)

    def gather(self, padded: Tensor) -> Tensor:
        """Return all samples (B, steps · width, channels), slice by slice."""
        if self.width == self.stride == 1:
            return padded
        places = tf.range(self.steps)[:, None] * self.stride + tf.range(self.width)
        return tf.gather(padded, tf.reshape(places, [-1]), axis=1)

    def taps(self, padded: Tensor) -> list[Tensor]:
        """Return `width` tensors (B, steps, channels): sample j of every slice."""
        reach = (self.steps - 1) * self.stride + 1
        return [padded[:, j : j + reach : self.stride] for j in range(self.width)]

    def back(self, taps: list[Tensor]) -> Tensor:
        """Return (B, time, channels): for each sample the sum of what its taps were given.

        The transpose of `taps` after `pad`.
        """
        channels = taps[0].shape[2] or tf.shape(taps[0])[2]
        total: Tensor = 0.0
        for j, tap in enumerate(taps):
            spread = tap
            if self.stride > 1:
                spread = tf.pad(tap[:, :, None], [[0, 0], [0, 0], [0, self.stride - 1], [0, 0]])
                spread = tf.reshape(spread, [-1, self.steps * self.stride, channels])
            total += tf.pad(spread, [[0, 0], [j, self.width - 1 - j], [0, 0]])
        # One stride past the last slice's start is never short of the padded signal's end.
        return total[:, self.left : self.left + self.time]


def slices_of(time: Size, width: int, stride: int, padding: Padding) -> Slices:
    """Return the slices; "same" gives time/stride steps, rounded up, as TensorFlow does.

    Raises:
        ModelError: the signal is shorter than one slice, or a number is impossible.
    """
    if width < 1 or stride < 1:
        raise ModelError(f"width is {width} and stride {stride}; both must be at least 1")
    left: Size
    right: Size
    if padding == "same":
        steps = (time + stride - 1) // stride
        total = (steps - 1) * stride + width - time
        total = max(total, 0) if isinstance(time, int) else tf.maximum(total, 0)
        left, right = total // 2, total - total // 2
    else:
        left, right = (0, 0) if padding == "valid" else padding
        if min(left, right) < 0:
            raise ModelError(f"padding is {padding}; no sample can be taken away")
        steps = (left + time + right - width) // stride + 1
    if isinstance(time, int) and steps < 1:
        raise ModelError(
            f"a signal of {time} samples is shorter than a slice of {width}; use longer windows "
            "or a narrower layer"
        )
    return Slices(time, steps, width, stride, left, right)
