"""One dense layer, from zero: multinomial logistic regression of a table's inputs.

For any number of inputs and classes. With differential privacy and few records it often beats
networks with hidden layers: it has the fewest weights, and so the least noise.
"""

from vitalring.models.layers import Layer, Shape, Size, chain, dense, quantise
from vitalring.models.network import Network

INPUT_RANGE = 4.0


def linear(
    inputs: int = 64, classes: tuple[str, ...] = ("no", "yes"), *, quantised: bool = True
) -> Network:
    """Return the network; `quantised=False` is for tests against plain float32."""
    layer = _layer((inputs,), len(classes))
    return Network("linear", classes, layer, physical_batch=64, quantised=quantised, sized=_layer)


def _layer(in_shape: Shape, classes: Size) -> Layer:
    return chain(quantise(in_shape, INPUT_RANGE, signed=True), dense(in_shape, classes, relu=False))
