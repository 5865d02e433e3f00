"""Activities of daily living from 265 features of a window of a smartphone at the waist.

The features are those of UCI HAR and HAPT (Anguita et al. 2013) that both have, in [-1, 1].
"""

from vitalring.models.layers import chain, dense, quantise
from vitalring.models.network import Network

FEATURES = 265
ACTIVITIES = ("walking", "walking_upstairs", "walking_downstairs", "sitting", "standing", "laying")
INPUT_RANGE = 1.0
RANGE = 8.0  # of activations after a relu


def har_mlp(*, quantised: bool = True) -> Network:
    """Return the network; `quantised=False` is for tests against plain float32."""
    hidden = dense((FEATURES,), 30, relu=True)
    layer = chain(
        quantise(hidden.in_shape, INPUT_RANGE, signed=True),
        hidden,
        quantise(hidden.out_shape, RANGE, signed=False),
        dense(hidden.out_shape, len(ACTIVITIES), relu=False),
    )
    return Network("har_mlp", ACTIVITIES, layer, physical_batch=64, quantised=quantised)
