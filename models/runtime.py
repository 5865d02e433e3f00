"""Training steps and predictions of an artefact in the TFLite runtime, without TensorFlow.

The runtime is `tflite_runtime` or `ai_edge_litert`, whichever is installed, on one thread: these
networks are so small that a second thread only costs time.

The runtime trusts a model's bytes and can crash on malformed ones. So only an `Artefact`, whose
bytes match the SHA-256 of its info, gets here; a device that fetched it has compared its digest
with the one in a signed plan.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vitalring.errors import DivergenceError, ModelError
from vitalring.models.artefact import Artefact

Array = npt.NDArray[np.float32]
Shapes = dict[str, tuple[int, ...]]
Signatures = dict[str, tuple[Shapes, Shapes]]  # by name: shapes of inputs, and of outputs

_OPEN = -1  # a length that a model leaves open


class TrainableModel:
    """An artefact, loaded. It keeps no weights: every call is given them.

    Raises:
        ModelError: no runtime is installed, or the model cannot be loaded or does not have the
            signatures and shapes that its info states.
    """

    def __init__(self, artefact: Artefact) -> None:
        self.info = artefact.info
        self._interpreter = interpreter(artefact.model)
        _check_signatures(artefact, self._interpreter)
        self._grads = self._interpreter.get_signature_runner("grads")
        self._infer = self._interpreter.get_signature_runner("infer")

    def gradient_sum(
        self, weights: Array, x: Array, y: npt.NDArray[np.int64], clip: float
    ) -> tuple[Array, float, Array]:
        """Return Σ of clipped gradients (d,), Σ of losses, and norms before clipping (n,).

        x (n, *input_shape) and y (n,) may have any n ≤ `info.physical_batch`, 0 included. Each
        example's gradient g counts as g · min(1, clip/‖g‖) (Abadi et al. 2016, algorithm 1).

        Raises:
            ModelError: a shape, label or clip is wrong, or a number is not finite.
            DivergenceError: the sum of gradients is not finite. Losses and norms may be so.
        """
        info = self.info
        self._check(weights, x)
        n = len(x)
        if n > info.physical_batch:
            raise ModelError(
                f"{n} rows are more than the physical batch of {info.physical_batch}; pass them "
                "in parts and add the sums"
            )
        if y.shape != (n,) or y.dtype.kind not in "iu" or not np.isin(y, self._labels).all():
            raise ModelError(
                f"y has shape {y.shape} and type {y.dtype}; it must be {n} integers below "
                f"{len(info.classes)}"
            )
        if not 0 < clip < np.inf:
            raise ModelError(f"clip is {clip}; it must be a finite number above 0")
        one_hot = np.zeros((info.physical_batch, len(info.classes)), np.float32)
        one_hot[np.arange(n), y] = 1
        mask = np.zeros(info.physical_batch, np.float32)
        mask[:n] = 1
        out = self._run(
            self._grads, w=weights, x=self._padded(x), y=one_hot, mask=mask, clip=np.float32(clip)
        )
        grad_sum = out["grad_sum"]
        if not np.isfinite(grad_sum).all():
            raise DivergenceError(
                "the gradient is not finite: the weights have diverged; lower the learning rate"
            )
        return grad_sum, float(out["loss_sum"]), out["norms"][:n]

    def probabilities(self, weights: Array, x: Array) -> Array:
        """Return class probabilities (n, classes) of x (n, *input_shape), for any n.

        Raises:
            ModelError: a shape is wrong, or a number is not finite.
        """
        self._check(weights, x)
        batch = self.info.physical_batch
        out = np.empty((len(x), len(self.info.classes)), np.float32)
        for start in range(0, len(x), batch):
            part = x[start : start + batch]
            probs = self._run(self._infer, w=weights, x=self._padded(part))["probs"]
            out[start : start + batch] = probs[: len(part)]
        return out

    @property
    def physical_batch(self) -> int:
        """Most rows that `gradient_sum` takes at once."""
        return self.info.physical_batch

    @property
    def _labels(self) -> npt.NDArray[np.int64]:
        return np.arange(len(self.info.classes))

    def _check(self, weights: Array, x: Array) -> None:
        info = self.info
        # 1. Weights.
        if weights.shape != (info.dimension,) or weights.dtype != np.float32:
            raise ModelError(
                f"weights have shape {weights.shape} and type {weights.dtype}; {info.name} has "
                f"({info.dimension},) of float32"
            )
        # 2. Windows.
        if x.ndim != 1 + len(info.input_shape) or x.shape[1:] != info.input_shape:
            raise ModelError(
                f"x has shape {x.shape}; {info.name} takes (n, "
                f"{', '.join(map(str, info.input_shape))})"
            )
        if x.dtype != np.float32:
            raise ModelError(f"x has type {x.dtype}; convert it to float32")
        # 3. One number that is not finite would spoil the sum of its whole batch.
        for name, array in (("weights", weights), ("x", x)):
            if not np.isfinite(array).all():
                where = np.argwhere(~np.isfinite(array))[0].tolist()
                raise ModelError(f"{name} holds {array[tuple(where)]} at {where}; remove it")

    def _padded(self, x: Array) -> Array:
        padded = np.zeros((self.info.physical_batch, *self.info.input_shape), np.float32)
        padded[: len(x)] = x
        return padded

    @staticmethod
    def _run(runner: Any, **inputs: object) -> Mapping[str, Array]:  # noqa: ANN401
        try:
            out: Mapping[str, Array] = runner(**inputs)
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"the runtime failed: {error}") from error
        return out


def interpreter(model: bytes) -> Any:  # noqa: ANN401
    """Return an interpreter of a TFLite model, on one thread, with memory allocated.

    Raises:
        ModelError: no runtime is installed, or the bytes are not a model that it can run.
    """
    try:
        from tflite_runtime.interpreter import Interpreter  # noqa: PLC0415
    except ImportError:
        try:
            from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415
        except ImportError as error:
            raise ModelError(
                "no TFLite runtime is installed; install tflite-runtime or ai-edge-litert"
            ) from error
    try:
        loaded = Interpreter(model_content=model, num_threads=1)
        loaded.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"the TFLite model cannot be loaded: {error}") from error
    return loaded


def _check_signatures(artefact: Artefact, loaded: Any) -> None:  # noqa: ANN401
    """Compare the model's signatures and shapes with what its info states."""
    info = artefact.info
    batch, classes = info.physical_batch, len(info.classes)
    window = (batch, *info.input_shape)
    wanted: Signatures = {
        "grads": (
            {
                "w": (info.dimension,),
                "x": window,
                "y": (batch, classes),
                "mask": (batch,),
                "clip": (),
            },
            {"grad_sum": (info.dimension,), "loss_sum": (), "norms": (batch,)},
        ),
        "infer": ({"w": (info.dimension,), "x": window}, {"probs": (batch, classes)}),
    }
    if set(loaded.get_signature_list()) != set(wanted):
        raise ModelError(
            f"artefact {info.name!r} has signatures {sorted(loaded.get_signature_list())}, not "
            f"{sorted(wanted)}; build it with vitalring.models.convert"
        )
    open_lengths = False
    for name, sides in wanted.items():
        runner = loaded.get_signature_runner(name)
        details = runner.get_input_details(), runner.get_output_details()
        for kind, stated, found in zip(("input", "output"), sides, details, strict=True):
            shapes = {
                key: tuple(int(length) for length in tensor["shape_signature"])
                for key, tensor in found.items()
                if tensor["dtype"] is np.float32
            }
            if set(shapes) != set(stated) or not all(
                _covers(shape, stated[key]) for key, shape in shapes.items()
            ):
                raise ModelError(
                    f"artefact {info.name!r}: {kind}s of {name!r} are {shapes}, but its info says "
                    f"{stated}; build the artefact again"
                )
            open_lengths |= any(_OPEN in shape for shape in shapes.values())
    if open_lengths:
        _check_results(artefact, loaded, wanted)


def _covers(shape: tuple[int, ...], stated: tuple[int, ...]) -> bool:
    """Say whether a tensor's shape, with lengths left open or not, can be the stated one."""
    return len(shape) == len(stated) and all(
        length in (_OPEN, wanted) for length, wanted in zip(shape, stated, strict=True)
    )


def _check_results(artefact: Artefact, loaded: Any, wanted: Signatures) -> None:  # noqa: ANN401
    """Run a model that leaves lengths open once, on zeros, and compare what it gives."""
    for name, (inputs, stated) in wanted.items():
        runner = loaded.get_signature_runner(name)
        try:
            out = runner(**{key: np.zeros(shape, np.float32) for key, shape in inputs.items()})
        except (ValueError, RuntimeError) as error:
            raise ModelError(
                f"artefact {artefact.info.name!r}: {name!r} does not run at the size that its "
                f"info states ({error}); build the artefact again"
            ) from error
        shapes = {key: array.shape for key, array in out.items()}
        if shapes != stated:
            raise ModelError(
                f"artefact {artefact.info.name!r}: {name!r} gives {shapes}, but its info says "
                f"{stated}; build the artefact again"
            )
