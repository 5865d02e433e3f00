"""How much a rebuilt record is like the true one, and what a first dense layer gives away."""

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

MEASURES: Final = ("correlation", "psnr")


def correlation(true: Array, other: Array, mean: Array) -> float:
    """Return how another record correlates with the true one; 0 where one of them is flat.

    Of windows (time, channels) each channel without its own mean: what counts is the course of a
    signal, not where gravity points. Channels that do not move in the true window are left out.
    Of rows (inputs,) what is left without the `mean` row.
    """
    if true.ndim == 1:
        a, b = (true - mean).astype(np.float64), (other - mean).astype(np.float64)
    else:
        moves = np.ptp(true, axis=0) > 0
        a, b = (
            (each - each.mean(axis=0))[:, moves].astype(np.float64).ravel()
            for each in (true, other)
        )
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length > 1e-12 else 0.0


def psnr(one: Array, other: Array, peak: float) -> float:
    """Return the peak signal-to-noise ratio in dB, 60 at most; `peak` is the data's range."""
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return float(10.0 * np.log10(peak**2 / max(error, peak**2 * 1e-6)))


def closest(true: Array, candidates: Array, mean: Array, peak: float) -> Mapping[str, float]:
    """Return by measure how like the true record the best of the candidates (k, ...) is.

    The best by each measure: an attacker with k guesses is compared with k others, not with one.
    """
    return {
        "correlation": max((correlation(true, each, mean) for each in candidates), default=0.0),
        "psnr": max((psnr(true, each, peak) for each in candidates), default=0.0),
    }


def first_dense_inputs(gradient: Floats, inputs: int, outputs: int) -> Array:
    """Return what each unit of a first dense layer with a bias had as its input (k, inputs).

    The gradient (d,) begins with the kernel's (inputs, outputs), then the bias's (outputs,). A
    unit's kernel gradient is its input times its bias's gradient (Phong et al. 2017, section 3):
    of one record it is the record itself, of several a mixture, and the record where it alone
    made the unit fire. Units that nothing made fire are left out.
    """
    kernel = gradient[: inputs * outputs].reshape(inputs, outputs)
    bias = gradient[inputs * outputs : (inputs + 1) * outputs]
    fired = np.abs(bias) > 1e-12 * max(1e-300, float(np.abs(bias).max()))
    found: Array = (kernel[:, fired] / bias[fired]).T.astype(np.float32)
    return found
