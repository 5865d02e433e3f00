"""Heartbeat classes from one ECG lead and three RR numbers.

Two convolutions see the beat (216 samples at 360 Hz, in mV), their mean over time is joined with
the RR numbers that `vitalring.models.dataset` gives as constant channels, and two dense layers
decide between N, S and V. It is small on purpose: noise of differential privacy grows with the
number of weights, and so does the update.
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
RANGE = 8.0  # mV of the signal, and the largest activation that int8 keeps


def ecg_cnn(*, quantised: bool = True) -> Network:
    """Return the network; `quantised=False` is for tests against plain float32."""
    first = conv1d((SAMPLES, 1), 12, width=15, stride=5)
    second = conv1d(first.out_shape, 24, width=5, stride=2)
    trunk = chain(
        quantise(first.in_shape, RANGE, signed=True),
        first,
        quantise(first.out_shape, RANGE, signed=False),
        second,
        quantise(second.out_shape, RANGE, signed=False),
        global_average_pool(second.out_shape),
    )
    both = beside_constants(trunk, RR_NUMBERS)
    hidden = dense(both.out_shape, 32, relu=True)
    layer = chain(
        both,
        quantise(both.out_shape, RANGE, signed=True),
        hidden,
        quantise(hidden.out_shape, RANGE, signed=False),
        dense(hidden.out_shape, 3, relu=False),
    )
    return Network("ecg_cnn", ("N", "S", "V"), layer, physical_batch=64, quantised=quantised)
