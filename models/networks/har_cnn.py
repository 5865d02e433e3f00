"""Activities of daily living from a smartphone at the waist: 128 samples at 50 Hz, 6 channels.

Acceleration with gravity in g and angular rate in rad/s, three axes each. Three convolutions see
half a second at most each time they are moved; what counts of a filter is where it fits best in
the window. The 8,058 weights fit one Hadamard block of 8,192.
"""

from vitalring.models.layers import chain, conv1d, dense, global_max_pool, quantise
from vitalring.models.network import Network

SAMPLES = 128
CHANNELS = 6
ACTIVITIES = ("walking", "walking_upstairs", "walking_downstairs", "sitting", "standing", "laying")
INPUT_RANGE = 4.0
RANGE = 8.0  # of activations after a relu


def har_cnn(*, quantised: bool = True) -> Network:
    """Return the network; `quantised=False` is for tests against plain float32."""
    first = conv1d((SAMPLES, CHANNELS), 16, width=8, stride=2)
    second = conv1d(first.out_shape, 32, width=5, stride=2)
    third = conv1d(second.out_shape, 28, width=5, stride=2)
    peak = global_max_pool(third.out_shape)
    layer = chain(
        quantise(first.in_shape, INPUT_RANGE, signed=True),
        first,
        quantise(first.out_shape, RANGE, signed=False),
        second,
        quantise(second.out_shape, RANGE, signed=False),
        third,
        quantise(third.out_shape, RANGE, signed=False),
        peak,
        dense(peak.out_shape, len(ACTIVITIES), relu=False),
    )
    return Network("har_cnn", ACTIVITIES, layer, physical_batch=64, quantised=quantised)
