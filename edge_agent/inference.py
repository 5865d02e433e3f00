"""Predictions of a full-int8 model, one window at a time, in the device's TFLite runtime.

The runtime trusts a model's bytes and can crash on malformed ones: only bytes whose digest was
compared with a verified one get here (`model_in_use`). Buffers are set up once, so memory stays
flat however long a device runs.
"""

import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vitalring.errors import DataError, ModelError
from vitalring.models.runtime import interpreter

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """Probabilities (classes,) of one window, and the seconds that it took to compute them."""

    probabilities: Array = field(repr=False)
    latency_s: float

    @property
    def label(self) -> int:
        """Index of the most probable class; of equals the first."""
        return int(np.argmax(self.probabilities))


@dataclass(frozen=True)
class _Scale:
    """How a tensor's int8 levels q stand for numbers: (q - zero) · step."""

    step: float
    zero: int


class Int8Model:
    """A loaded int8 model of windows `input_shape` and as many `classes`.

    Raises:
        ModelError: no runtime is installed, or the model cannot be loaded or is not an int8 model
            of this shape.
    """

    def __init__(self, model: bytes, input_shape: tuple[int, ...], classes: int) -> None:
        self.input_shape = input_shape
        self.classes = classes
        self._interpreter = interpreter(model)
        inputs = self._interpreter.get_input_details()
        outputs = self._interpreter.get_output_details()
        self._input, self._in = _tensor("input", inputs, (1, *input_shape))
        self._output, self._out = _tensor("output", outputs, (1, classes))

    def predict(self, x: Array) -> Prediction:
        """Predict one window x (*input_shape) of finite numbers.

        Numbers beyond the range of the model's input count as its ends. The time is that of a
        monotonic clock and covers quantisation, inference and the way back.

        Raises:
            DataError: the window has another shape, or a number is not finite.
            ModelError: the runtime failed.
        """
        if x.shape != self.input_shape:
            raise DataError(f"the window has shape {x.shape}; the model takes {self.input_shape}")
        finite = np.isfinite(x)
        if not finite.all():
            where = tuple(np.argwhere(~finite)[0].tolist())
            raise DataError(f"the window holds {x[where]} at {list(where)}; remove or repair it")
        began = time.perf_counter()
        with np.errstate(over="ignore"):
            levels = np.rint(x.astype(np.float32) / np.float32(self._in.step)) + self._in.zero
        try:
            self._interpreter.set_tensor(
                self._input, np.clip(levels, -128, 127).astype(np.int8)[np.newaxis]
            )
            self._interpreter.invoke()
            found = self._interpreter.get_tensor(self._output)[0]
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"the runtime failed: {error}") from error
        probabilities = (found.astype(np.float32) - self._out.zero) * np.float32(self._out.step)
        return Prediction(probabilities, time.perf_counter() - began)


def _tensor(
    name: str, found: list[dict[str, object]], shape: tuple[int, ...]
) -> tuple[int, _Scale]:
    """Return the index and scale of a model's one input or output, checked."""
    # 1. There is one.
    if len(found) != 1:
        raise ModelError(f"the int8 model has {len(found)} {name}s, not one; export it again")
    (details,) = found
    # 2. Its shape.
    stated = tuple(int(length) for length in np.asarray(details["shape"]))
    if stated != shape:
        raise ModelError(f"the int8 model's {name} has shape {stated}, not {shape}")
    # 3. int8, with a scale that can be divided by.
    step, zero = np.asarray(details["quantization"], np.float64)
    if details["dtype"] is not np.int8 or not 0 < step < np.inf:
        raise ModelError(f"the model's {name} is not int8 with a scale; use model-int8.tflite")
    return int(np.asarray(details["index"])), _Scale(float(step), int(zero))
