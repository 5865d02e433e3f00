"""Heartbeat classes from fixed formulas and one dense layer: 63 parameters.

As `har_bank`, for the beats of `ecg_cnn`: one lead (216 samples at 360 Hz, in mV) and three RR
numbers, each eight times how far an interval is from the usual one. Twenty features:

- the RR numbers; early before late, twice, as products of how early and how late; and by how much
  the beat is late against its record's median but not against its surroundings;
- of the beat less its mean, in its own standard deviations, around the R peak (0.19 s): how far it
  and its slope exceed five and four thresholds, after a smoothing of five samples;
- the logarithm of that standard deviation, and of the energies in bands at 8, 15, 25 and 45 Hz,
  which cover the QRS complex (Thakor et al. 1984).

So a gain of the electrode changes one feature alone. Each feature is centred and scaled by its mean
and standard deviation over the 22 records of MIT-BIH's DS1, which train, rounded to two digits; no
held-out record had a part in that.
"""

import math

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from vitalring.models.layers import Tensor, chain, dense, fixed, quantise
from vitalring.models.network import Network

SAMPLES = 216
RR_NUMBERS = 3
RATE_HZ = 360.0
INPUT_RANGE = 4.0
FEATURE_RANGE = 4.0

FIRST, STEPS = 60, 70
"""Samples around the R peak, which is the 90th."""
SMOOTHING = 5
LEVELS = (0.0, 0.7, 1.4, 2.2, 3.0)
SLOPES = (0.0, 0.1, 0.3, 0.6)
BANDS = ((61, 8.0), (41, 15.0), (25, 25.0), (15, 45.0))
"""Width in samples and frequency in Hz of each filter."""
WIDEST = 61

NOISE = INPUT_RANGE / 128
"""A step of the int8 input, in mV: a beat that is flatter has no shape."""
FLOOR = 0.01
"""Of energies, in standard deviations of the beat."""

CENTRES = (
    *(0.0, 0.0, 0.0, 0.44, 0.45, 0.23),
    *(1.0, 0.54, 0.34, 0.18, 0.085),
    *(0.17, 0.12, 0.065, 0.026),
    *(-1.1, 1.3, 0.86, 0.19, -0.81),
)
DEVIATIONS = (
    *(1.1, 1.1, 1.3, 1.9, 1.9, 0.47),
    *(0.12, 0.097, 0.062, 0.065, 0.054),
    *(0.042, 0.045, 0.041, 0.025),
    *(0.39, 0.19, 0.26, 0.39, 0.45),
)

Array = npt.NDArray[np.float32]


def ecg_bank(*, quantised: bool = True) -> Network:
    """Return the network; `quantised=False` is for tests against plain float32."""
    shape = SAMPLES, 1 + RR_NUMBERS
    trunk = fixed(shape, (len(CENTRES),), _features)
    layer = chain(
        quantise(shape, INPUT_RANGE, signed=True),
        trunk,
        quantise(trunk.out_shape, FEATURE_RANGE, signed=True),
        dense(trunk.out_shape, 3, relu=False),
    )
    return Network("ecg_bank", ("N", "S", "V"), layer, physical_batch=64, quantised=quantised)


def _features(x: Tensor) -> Tensor:
    """Return the features (B, 20) of beats (B, 216, 4)."""
    scale = 1 / np.array(DEVIATIONS, np.float32)
    shift = -np.array(CENTRES, np.float32) * scale
    return tf.concat([_rhythm(x[:, 0, 1:]), *_shape(x[:, :, :1])], 1) * scale + shift


def _rhythm(rr: Tensor) -> Tensor:
    """Return six features of the RR numbers (B, 3): before, after, before against the median."""
    early = tf.nn.relu(tf.matmul(rr, _columns([-1, 0, 0], [0, 0, -1])))
    late = tf.nn.relu(tf.matmul(rr, _columns([0, 1, 0], [0, 1, 0])))
    apart = tf.nn.relu(tf.matmul(rr, _columns([1, 0, -1])))
    return tf.concat([rr, early * late, apart], 1)


def _shape(e: Tensor) -> list[Tensor]:
    """Return features of the lead (B, 216, 1): levels, slopes, size, bands."""
    centred = e - tf.reduce_mean(e, 1, keepdims=True)
    variance = tf.reduce_mean(centred * centred, 1, keepdims=True) + _row(NOISE**2)
    unit = centred * tf.math.rsqrt(variance)
    # |a| > t where a > t or -a > t: each filter comes with both signs, and their means are added.
    near = unit[:, FIRST - SMOOTHING // 2 : FIRST + STEPS + SMOOTHING // 2 + 1]
    over = _means(near, _edges(), -np.repeat(LEVELS + SLOPES, 2).astype(np.float32))
    wide = unit[:, FIRST - WIDEST // 2 : FIRST + STEPS + WIDEST // 2]
    bands = _means(wide, _bands(), np.zeros(2 * len(BANDS), np.float32))
    size = tf.math.log(variance[:, 0]) * _row(0.5)
    return [over, size, tf.math.log(bands + np.full(len(BANDS), FLOOR, np.float32))]


def _means(signal: Tensor, filters: list[Array], bias: Array) -> Tensor:
    """Return the mean over time of |filtered| beyond a threshold, for each filter."""
    signed = np.stack([sign * one for one in filters for sign in (1, -1)], 1)
    kernel = signed.astype(np.float32)[None, :, None]
    found = tf.nn.conv2d(signal[:, None], kernel, 1, "VALID") + bias
    means = tf.reduce_mean(tf.nn.relu(found)[:, 0], 1)
    return tf.matmul(means, np.repeat(np.eye(len(filters), dtype=np.float32), 2, axis=0))


def _edges() -> list[Array]:
    """Return the smoothing, once for each level, and its difference, once for each slope."""
    window = np.hanning(SMOOTHING + 2)[1:-1]
    window /= window.sum()
    now, then = np.append(window, 0.0), np.append(0.0, window)
    return [now] * len(LEVELS) + [then - now] * len(SLOPES)


def _bands() -> list[Array]:
    """Return cosines under Hann windows, blind to a constant, of norm 1, all padded alike."""
    out = []
    for width, hertz in BANDS:
        times = (np.arange(width) - width // 2) / RATE_HZ
        window = np.hanning(width + 2)[1:-1]
        wave = window * np.cos(2 * math.pi * hertz * times)
        wave -= window * (wave.sum() / window.sum())
        out.append(np.pad(wave / np.linalg.norm(wave), (WIDEST - width) // 2))
    return out


def _row(value: float) -> Array:
    return np.array([value], np.float32)


def _columns(*columns: list[int]) -> Array:
    return np.array(columns, np.float32).T
