"""Outcomes from a table of health records: dense layers of 128, 64 and 32, then the classes.

For any number of inputs and classes. Inputs are normalised columns and one-hot categories, as
`vitalring.models.dataset` encodes them; what lies further than 4 deviations out is cut off.
"""

from vitalring.models.layers import Layer, Shape, Size, chain, dense, quantise
from vitalring.models.network import Network

INPUT_RANGE = 4.0
RANGE = 8.0  # of activations after a relu
WIDTHS = (128, 64, 32)


def ehr_mlp(
    inputs: int = 64, classes: tuple[str, ...] = ("no", "yes"), *, quantised: bool = True
) -> Network:
    """Return the network; `quantised=False` is for tests against plain float32."""
    layer = _layer((inputs,), len(classes))
    return Network("ehr_mlp", classes, layer, physical_batch=64, quantised=quantised, sized=_layer)


def _layer(in_shape: Shape, classes: Size) -> Layer:
    parts, shape = [quantise(in_shape, INPUT_RANGE, signed=True)], in_shape
    for width in WIDTHS:
        hidden = dense(shape, width, relu=True)
        shape = hidden.out_shape
        parts += [hidden, quantise(shape, RANGE, signed=False)]
    return chain(*parts, dense(shape, classes, relu=False))
