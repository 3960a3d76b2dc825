"""Which modules and functions of torch, timm and torchvision each rule holds for."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import AvgPool2dSame, DropBlock2d, DropPath
from timm.layers.pool2d_same import MaxPool2dSame
from torch import fx, nn
from torchvision.ops import StochasticDepth

NOTHING_IN_INFERENCE = (
    *(nn.Identity, nn.modules.dropout._DropoutNd, DropPath, DropBlock2d, StochasticDepth),
)
SPATIAL = (
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample),
    *(MaxPool2dSame, AvgPool2dSame, nn.ZeroPad2d, nn.ConstantPad2d),
    *(nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d),
)
PERMUTATIONS = (torch.permute, "permute")
TRANSPOSITIONS = (
    *(torch.transpose, torch.swapaxes, torch.swapdims),
    *("transpose", "swapaxes", "swapdims"),
)
SPLITS = (torch.split, torch.chunk, torch.tensor_split, "split", "chunk", "tensor_split")
UNBINDS = (torch.unbind, "unbind")
NARROWS = (torch.narrow, "narrow")
PIXEL_SHUFFLES = {torch.pixel_shuffle: True, torch.pixel_unshuffle: False}
"""Functions -> whether they put channels side by side, as positions, or positions apart."""
JOINS = (torch.cat, torch.concat, torch.concatenate, torch.stack)
POOLS = (F.max_pool2d, F.avg_pool2d, torch.max_pool2d)
ADAPTIVE_POOLS = (F.adaptive_avg_pool2d, F.adaptive_max_pool2d)
REDUCTIONS = {
    **dict.fromkeys((torch.mean, torch.sum, torch.amax, torch.amin, torch.var, torch.std), 1),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "var", "std"), 1),
    **dict.fromkeys((torch.norm, torch.linalg.vector_norm, "norm"), 2),
}
"""Averages and the like -> which of their arguments, counted from 0, is the dimensions."""
NOT_ELEMENTWISE = (
    *(nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin, nn.GLU, nn.PReLU),
    nn.MultiheadAttention,
)
PRODUCTS = (torch.matmul, operator.matmul, torch.bmm, "matmul", "bmm")
SOFTMAX = (
    *(F.softmax, F.log_softmax, F.softmin, torch.softmax, torch.log_softmax),
    *("softmax", "log_softmax"),
)
ELEMENTWISE_FUNCTIONS = (
    *(F.relu, F.relu6, F.silu, F.hardswish, F.hardsigmoid, F.sigmoid, F.gelu, F.leaky_relu),
    *(F.elu, F.mish, F.hardtanh, F.softplus, F.tanh, F.selu, F.celu, F.softsign, F.logsigmoid),
    *(torch.relu, torch.relu_, torch.sigmoid, torch.tanh, torch.abs, torch.neg, torch.exp),
    *(torch.sqrt, torch.rsqrt, torch.square, torch.pow, torch.clamp, torch.clip, torch.clone),
    *("relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "abs", "neg", "exp", "sqrt"),
    *("rsqrt", "square", "pow", "clamp", "clamp_", "clip", "clip_"),
    *("contiguous", "clone", "float"),
    *(operator.add, operator.iadd, operator.mul, operator.imul, operator.sub, operator.isub),
    *(operator.truediv, operator.itruediv, operator.neg, operator.pow),
    *(torch.add, torch.mul, torch.sub, torch.div, torch.maximum, torch.minimum),
    *(torch.addcmul, torch.addcdiv, torch.lerp, "addcmul", "addcdiv", "lerp"),
    *("add", "add_", "mul", "mul_", "sub", "sub_", "div", "div_", "maximum", "minimum"),
)
_IN_PLACE = (*(operator.iadd, operator.imul, operator.isub, operator.itruediv), torch.relu_)


def in_place(node: fx.Node) -> bool:
    """Return whether the operation changes its first argument."""
    named = isinstance(node.target, str) and node.target.endswith("_")
    return named or node.target in _IN_PLACE


def elementwise_module(module: nn.Module) -> bool:
    """Return whether the module acts on each element alone (and so keeps the channels)."""
    source = type(module).__module__
    active = source == "torch.nn.modules.activation" or source.startswith("timm.layers.activations")
    return active and not isinstance(module, NOT_ELEMENTWISE)


def is_one(output_size: Any) -> bool:
    """Return whether an adaptive pooling puts out one position, whatever the image's size."""
    return output_size == 1 or output_size in ((1, 1), [1, 1])
