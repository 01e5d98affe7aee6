"""Ascend NPUs on MindSpore, as far as that can be seen without one; and why a CPU has no bf16."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import ops

from gesso.engines.mindspore import devices
from gesso.errors import DeviceError

GIB = 2**30


@pytest.fixture
def npus(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Two NPUs, as MindSpore would tell of them; the devices that are selected."""
    selected: list[tuple[str, int]] = []

    def told(index: int, target: str) -> Any:
        assert target == "Ascend"  # without it MindSpore answers for the device in use
        return SimpleNamespace(total_memory=64 * GIB if index else 0)

    monkeypatch.setattr(devices, "_ascends", lambda: 2)
    monkeypatch.setattr(ms.hal, "get_device_name", lambda index, target: f"Ascend910B {target}")
    monkeypatch.setattr(ms.hal, "get_device_properties", told)
    monkeypatch.setattr(ms, "set_device", lambda target, index: selected.append((target, index)))
    return selected


def test_npus_are_named_and_chosen_as_pytorchs_are(npus: list[tuple[str, int]]) -> None:
    assert [each["name"] for each in devices.devices()] == ["npu:0", "npu:1", "cpu"]
    assert [each["memory"] for each in devices.devices()] == [None, 64 * GIB, None]
    assert devices.choose("auto", "auto") == ("npu:0", "bf16", "Ascend NPU, Ascend910B Ascend")
    assert devices.choose("npu", "fp16")[:2] == ("npu:0", "fp16")
    assert devices.choose("npu:1", "bf16")[:2] == ("npu:1", "bf16")
    assert devices.choose("cpu", "auto")[:2] == ("cpu", "fp32")
    with pytest.raises(DeviceError, match='no device "npu:2"'):
        devices.choose("npu:2", "auto")
    devices.select("npu:1")
    devices.select("npu:0")
    assert npus == [("Ascend", 1), ("Ascend", 0)]


def test_a_cpu_refuses_bf16_for_a_reason_that_holds() -> None:
    with pytest.raises(DeviceError, match="no matrix product in bfloat16"):
        devices.choose("cpu", "bf16")
    matrix = ms.Tensor(np.eye(4, dtype=np.float32)).astype(ms.bfloat16)
    with pytest.raises((RuntimeError, TypeError), match="MatMul"):
        ops.matmul(matrix, matrix).asnumpy()
