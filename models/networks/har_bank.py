"""Activities from fixed filters and one dense layer: 366 parameters, for training with much noise.

The noise of differential privacy grows with the number of weights, so what needs no training is
not trained. A window of a smartphone at the waist (acceleration in g, angular rate in rad/s, 50 Hz)
becomes 60 numbers: the mean of each channel, upwards and downwards, and in eight bands the
logarithm of each channel's energy, as Gabor filters see it. One dense layer from zero decides.

Every constant follows from the sampling rate, the units and the int8 input; none was fitted:

- Bands: from the swing of a slow walk (1 Hz) to 16 Hz, half an octave to an octave apart; a filter
  is as long as a few periods, and no longer than half a window.
- Means: gravity, 1 g, may point anywhere. Then each axis is uniform on [-1, 1] (Archimedes), and
  its positive part has mean 1/4 and variance 1/6 - 1/16.
- Energies: from the rounding of the int8 input, step/√12, to a sine of 1 g or 1 rad/s at the
  filter's frequency; their logarithm is centred and scaled as if uniform between the two.
"""

import math
from functools import partial

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from vitalring.models.layers import Tensor, chain, dense, fixed, quantise
from vitalring.models.network import Network
from vitalring.models.networks.har_mlp import ACTIVITIES

SAMPLES = 128
CHANNELS = 6
RATE_HZ = 50.0
INPUT_RANGE = 4.0
FEATURE_RANGE = 4.0
BANDS = ((64, 1.0), (64, 1.6), (64, 2.4), (48, 3.5), (32, 5.0), (24, 7.5), (16, 11.0), (12, 16.0))
"""Width in samples and frequency in Hz of each filter."""
STRIDE = 2
FEATURES = CHANNELS * (2 + len(BANDS))

FLOOR = INPUT_RANGE / 128 / math.sqrt(12)
MEAN, DEVIATION = 1 / 4, math.sqrt(1 / 6 - 1 / 16)

Array = npt.NDArray[np.float32]


def har_bank(*, quantised: bool = True) -> Network:
    """Return the network; `quantised=False` is for tests against plain float32."""
    shape = SAMPLES, CHANNELS
    scale, shift = _scales()
    trunk = fixed(shape, (FEATURES,), partial(_features, scale=scale, shift=shift))
    layer = chain(
        quantise(shape, INPUT_RANGE, signed=True),
        trunk,
        quantise(trunk.out_shape, FEATURE_RANGE, signed=True),
        dense(trunk.out_shape, len(ACTIVITIES), relu=False),
    )
    return Network("har_bank", ACTIVITIES, layer, physical_batch=64, quantised=quantised)


def gabor(width: int, hertz: float) -> Array:
    """Return a cosine under a Hann window, blind to a constant, of norm 1 (width,)."""
    window = np.hanning(width + 2)[1:-1]
    wave = window * _cosine(width, hertz)
    wave -= window * (wave.sum() / window.sum())
    return (wave / np.linalg.norm(wave)).astype(np.float32)


def _features(x: Tensor, scale: Array, shift: Array) -> Tensor:
    """Return the features (B, 60) of windows (B, 128, 6)."""
    mean = tf.reduce_mean(x, 1)
    energies = []
    for width, hertz in BANDS:
        kernel = np.repeat(gabor(width, hertz)[None, :, None, None], CHANNELS, 2)
        strides = [1, STRIDE, STRIDE, 1]
        filtered = tf.nn.depthwise_conv2d(x[:, None], kernel, strides, "VALID")
        energies.append(tf.reduce_mean(tf.nn.relu(filtered)[:, 0], 1))
    logs = tf.math.log(tf.concat(energies, 1) + np.full(CHANNELS * len(BANDS), FLOOR, np.float32))
    upwards, downwards = tf.nn.relu(mean), tf.nn.relu(mean * -np.ones(CHANNELS, np.float32))
    return tf.concat([upwards, downwards, logs], 1) * scale + shift


def _scales() -> tuple[Array, Array]:
    """Return what features are multiplied with, and what is then added."""
    centres, deviations = [MEAN] * 2, [DEVIATION] * 2
    for width, hertz in BANDS:
        # Half of a sine is positive, and the mean of that half is 1/π over the whole.
        most = float(np.abs(gabor(width, hertz) @ _cosine(width, hertz))) / math.pi
        low, high = math.log(FLOOR), math.log(most)
        centres.append((low + high) / 2)
        deviations.append((high - low) / math.sqrt(12))
    scale = 1 / np.repeat(deviations, CHANNELS)
    return scale.astype(np.float32), (-np.repeat(centres, CHANNELS) * scale).astype(np.float32)


def _cosine(width: int, hertz: float) -> npt.NDArray[np.float64]:
    times = (np.arange(width) - (width - 1) / 2) / RATE_HZ
    return np.asarray(np.cos(2 * math.pi * hertz * times))
