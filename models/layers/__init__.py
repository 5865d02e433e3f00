"""Layers with hand-written passes; `layer` says what a layer is."""

from vitalring.models.layers.combine import beside_constants, chain, frozen
from vitalring.models.layers.convolution import conv1d, depthwise_conv1d
from vitalring.models.layers.dense import dense
from vitalring.models.layers.elementwise import flatten, relu
from vitalring.models.layers.fixed import fixed
from vitalring.models.layers.layer import Backward, Block, Layer, Shape, Size, Tape, Tensor
from vitalring.models.layers.normalisation import channel_affine, group_norm
from vitalring.models.layers.pooling import (
    average_pool,
    global_average_pool,
    global_max_pool,
    max_pool,
)
from vitalring.models.layers.quantisation import quantise
from vitalring.models.layers.slices import Padding

__all__ = [
    "Backward",
    "Block",
    "Layer",
    "Padding",
    "Shape",
    "Size",
    "Tape",
    "Tensor",
    "average_pool",
    "beside_constants",
    "chain",
    "channel_affine",
    "conv1d",
    "dense",
    "depthwise_conv1d",
    "fixed",
    "flatten",
    "frozen",
    "global_average_pool",
    "global_max_pool",
    "group_norm",
    "max_pool",
    "quantise",
    "relu",
]
