"""Any window of a signal in few weights: depthwise-separable convolutions (Howard et al. 2017).

For any number of samples, channels and classes. Inputs are cut off at ±4, so a data set's `scale`
should bring its signals there.
"""

from vitalring.models.layers import (
    Layer,
    Shape,
    Size,
    chain,
    conv1d,
    dense,
    depthwise_conv1d,
    global_average_pool,
    quantise,
)
from vitalring.models.network import Network

INPUT_RANGE = 4.0
RANGE = 8.0  # of activations after a relu
FILTERS = (32, 64)  # of the separable convolutions


def cnn1d_small(
    time: int = 128,
    channels: int = 3,
    classes: tuple[str, ...] = ("no", "yes"),
    *,
    quantised: bool = True,
) -> Network:
    """Return the network; `quantised=False` is for tests against plain float32."""
    layer = _layer((time, channels), len(classes))
    return Network(
        "cnn1d_small", classes, layer, physical_batch=64, quantised=quantised, sized=_layer
    )


def _layer(in_shape: Shape, classes: Size) -> Layer:
    first = conv1d(in_shape, 16, width=8, stride=4, padding="same")
    parts = [quantise(in_shape, INPUT_RANGE, signed=True), *_ranged(first)]
    shape = first.out_shape
    for filters in FILTERS:
        each = depthwise_conv1d(shape, width=5, stride=2, padding="same")
        across = conv1d(each.out_shape, filters, width=1)
        parts += [*_ranged(each), *_ranged(across)]
        shape = across.out_shape
    pool = global_average_pool(shape)
    return chain(*parts, *_ranged(pool), dense(pool.out_shape, classes, relu=False))


def _ranged(layer: Layer) -> tuple[Layer, Layer]:
    return layer, quantise(layer.out_shape, RANGE, signed=False)
