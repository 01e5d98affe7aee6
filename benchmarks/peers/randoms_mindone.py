"""Random numbers as mindone's scripts ask the module mint for them, which has kernels of them for Ascend alone.

A module of its own, because MindSpore's compiler of graphs looks the names in a function up in the function's module.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import ops


def randn_like(input: ms.Tensor, dtype: Any = None) -> ms.Tensor:
    return ops.standard_normal(input.shape)


def randn(size: tuple[int, ...], dtype: Any = None) -> ms.Tensor:
    return ops.standard_normal(size)


def randint(low: int, high: int, size: tuple[int, ...], dtype: Any = None) -> ms.Tensor:
    return ops.randint(low, high, size)
