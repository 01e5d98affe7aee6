"""What mindone's networks need of MindSpore that has no CPU kernel, written with operators that have one.

mindone builds on `mindspore.mint`, most of which exists for Ascend alone. Its networks look the functions up when they
are called, so that replacing them in the module is enough. Nothing here is used on an Ascend NPU.

What a network calls is written in the Python that MindSpore's compiler of graphs takes too (`[mindspore] compile`):
no generators, caches or numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import mindspore as ms
import numpy as np
from mindone.diffusers.models.activations import GEGLU
from mindspore import mint, ops

Pair = Sequence[int] | int


@cache
def install() -> None:
    """Replace the operators, once in a process."""
    mint.nn.Conv2d.construct = _conv2d_cell
    mint.nn.LayerNorm.construct = _layer_norm_cell
    mint.nn.Embedding.construct = _embedding
    mint.nn.GELU.construct = _gelu_cell
    GEGLU.construct = _geglu
    functional = mint.nn.functional
    functional.layer_norm, functional.gelu, functional.pad = _layer_norm, _gelu, _pad
    functional.conv2d, functional.mse_loss = _conv2d, ops.mse_loss
    mint.gelu = _gelu
    mint.arange, mint.linspace, mint.stack, mint.chunk = _arange, _linspace, _stack, _chunk
    mint.zeros_like, mint.ones_like, mint.repeat_interleave = ops.zeros_like, ops.ones_like, ops.repeat_interleave
    mint.baddbmm, mint.outer, mint.nonzero = _baddbmm, _outer, _nonzero
    ms.Tensor.nonzero = _nonzero  # which DDPM's scheduler asks for a tuple


def _conv2d_cell(self: Any, input: ms.Tensor) -> ms.Tensor:
    return _conv2d(input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def _conv2d(
    input: ms.Tensor,
    weight: ms.Tensor,
    bias: ms.Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> ms.Tensor:
    """As a product of matrices: several times as fast as the CPU's own kernel, forward and backward."""
    strides, pads, dilations = _two(stride), _two(padding), _two(dilation)
    if groups != 1 or dilations != (1, 1):
        return ops.conv2d(input, weight, bias, strides, "pad", pads, dilations, groups)
    batch, channels, height, width = input.shape
    out, _, tall, broad = weight.shape
    high = (height + 2 * pads[0] - tall) // strides[0] + 1
    wide = (width + 2 * pads[1] - broad) // strides[1] + 1
    if tall == 1 and broad == 1 and strides == (1, 1) and pads == (0, 0):
        patches = input.reshape(batch, channels, high * wide)
    else:
        patches = ops.unfold(input, (tall, broad), 1, pads, strides)
        patches = patches.reshape(batch, channels * tall * broad, high * wide)
    product = ops.matmul(weight.reshape(out, -1), patches)
    if bias is not None:
        product = product + bias.reshape(1, out, 1)
    return product.reshape(batch, out, high, wide)


def _two(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _layer_norm_cell(self: Any, input: ms.Tensor) -> ms.Tensor:
    return _layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


def _layer_norm(
    input: ms.Tensor,
    normalized_shape: Pair,
    weight: ms.Tensor | None = None,
    bias: ms.Tensor | None = None,
    eps: float = 1e-5,
) -> ms.Tensor:
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    weight = ops.ones(shape, input.dtype) if weight is None else weight
    bias = ops.zeros(shape, input.dtype) if bias is None else bias
    return ops.LayerNorm(-len(shape), -len(shape), eps)(input, weight, bias)[0]


def _embedding(self: Any, input: ms.Tensor) -> ms.Tensor:
    return ops.gather(self.weight, input, 0)


def _gelu(input: ms.Tensor, *, approximate: str = "none") -> ms.Tensor:
    return ops.gelu(input, approximate)


def _geglu(self: Any, hidden_states: ms.Tensor) -> ms.Tensor:
    """As mindone's, whose Tensor.chunk the CPU has in eager mode alone."""
    both = self.proj(hidden_states)
    hidden, gate = ops.split(both, both.shape[-1] // 2, -1)
    return hidden * self.gelu(gate)


def _gelu_cell(self: Any, input: ms.Tensor) -> ms.Tensor:
    return ops.gelu(input, getattr(self, "approximate", "none"))


def _pad(input: ms.Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> ms.Tensor:
    return ops.pad(input, pad, mode, value)


def _arange(start: Any, end: Any = None, step: Any = 1, *, dtype: Any = None) -> ms.Tensor:
    begin, stop = (0, start) if end is None else (start, end)
    return ops.arange(begin, stop, step, dtype=dtype)


def _linspace(start: Any, end: Any, steps: Any, *, dtype: Any = None) -> ms.Tensor:
    found = ms.Tensor(np.linspace(float(start), float(end), int(steps), dtype=np.float32))
    return found if dtype is None else found.astype(dtype)


def _stack(tensors: Sequence[ms.Tensor], dim: int = 0) -> ms.Tensor:
    return ops.stack(tensors, dim)


def _chunk(input: ms.Tensor, chunks: int, dim: int = 0) -> Sequence[ms.Tensor]:
    size = (input.shape[dim] + chunks - 1) // chunks
    return ops.split(input, size, dim)  # type: ignore[no-any-return]


def _baddbmm(input: ms.Tensor, batch1: ms.Tensor, batch2: ms.Tensor, *, beta: Any = 1, alpha: Any = 1) -> ms.Tensor:
    product = ops.bmm(batch1, batch2)
    return alpha * product + beta * input if beta else alpha * product


def _outer(input: ms.Tensor, vec2: ms.Tensor) -> ms.Tensor:
    return ops.expand_dims(input, 1) * ops.expand_dims(vec2, 0)


def _nonzero(input: ms.Tensor, *, as_tuple: bool = False) -> Any:
    found = np.nonzero(input.asnumpy())
    if as_tuple:
        return tuple(ms.Tensor(each) for each in found)
    return ms.Tensor(np.stack(found, axis=1))
