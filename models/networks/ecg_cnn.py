"""Heartbeat classes from one ECG lead and three RR numbers.

Two convolutions see the beat (216 samples at 360 Hz, in mV), their mean over time is joined with
the RR numbers that `vitalring.models.dataset` gives as constant channels, and two dense layers
decide between N, S and V. It is small on purpose: noise of differential privacy grows with the
number of weights, and so does the update. There are 4,096, one whole Hadamard block.
"""

from vitalring.models.layers import (
    beside_constants,
    chain,
    conv1d,
    dense,
    global_average_pool,
    quantise,
)
from vitalring.models.network import Network

SAMPLES = 216
RR_NUMBERS = 3
INPUT_RANGE = 4.0  # of the signal in mV, and of the RR numbers
RANGE = 8.0  # of activations after a relu


def ecg_cnn(*, quantised: bool = True) -> Network:
    """Return the network; `quantised=False` is for tests against plain float32."""
    first = conv1d((SAMPLES, 1), 16, width=15, stride=5)
    second = conv1d(first.out_shape, 32, width=5, stride=2)
    pool = global_average_pool(second.out_shape)
    trunk = chain(
        first,
        quantise(first.out_shape, RANGE, signed=False),
        second,
        quantise(second.out_shape, RANGE, signed=False),
        pool,
        quantise(pool.out_shape, INPUT_RANGE, signed=True),
    )
    both = beside_constants(trunk, RR_NUMBERS)
    hidden = dense(both.out_shape, 32, relu=True)
    layer = chain(
        quantise(both.in_shape, INPUT_RANGE, signed=True),
        both,
        hidden,
        quantise(hidden.out_shape, RANGE, signed=False),
        dense(hidden.out_shape, 3, relu=False, bias=False),
    )
    return Network("ecg_cnn", ("N", "S", "V"), layer, physical_batch=64, quantised=quantised)
