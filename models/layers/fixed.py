"""A trunk that is a formula: constants that anybody can write down, and no weights."""

from collections.abc import Callable

from vitalring.models.layers.layer import Backward, Layer, Shape, Tape, Tensor, no_gradient


def fixed(in_shape: Shape, out_shape: Shape, compute: Callable[[Tensor], Tensor]) -> Layer:
    """Return what `compute` makes of (B, *in_shape): (B, *out_shape), in float32 everywhere.

    `compute` uses operations that TFLite carries and `vitalring.models.trace` knows, and treats
    each example by itself. Nothing below is trained: no gradient is handed down.
    """

    def forward(a: Tensor, _w: Tensor, _quantised: bool) -> tuple[Tensor, Tape]:
        return compute(a), None

    def backward(_delta: Tensor, _tape: Tape) -> Backward:
        return Backward(None, None, None)

    def deploy(a: Tensor, _w: Tensor, _quantised: bool) -> Tensor:
        return compute(a)

    return Layer(in_shape, out_shape, (), forward, backward, no_gradient, deploy)
