"""Ascend NPUs through PyTorch, as far as that can be seen without one: torch_npu is played by what PyTorch has."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from gesso.engines.engine import Optim
from gesso.engines.torch import devices, optimizers
from gesso.errors import DeviceError

GIB = 2**30


@pytest.fixture
def npus(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch_npu adds to PyTorch, of two NPUs."""
    made = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 2,
        get_device_name=lambda index: "Ascend910B",
        get_device_properties=lambda index: SimpleNamespace(total_memory=64 * GIB),
        is_bf16_supported=lambda: True,
    )
    monkeypatch.setattr(torch, "npu", made, raising=False)
    monkeypatch.setattr(torch, "device", lambda name: name)  # PyTorch itself knows the name from torch_npu alone


@pytest.mark.usefixtures("npus")
def test_an_npu_is_chosen_like_any_other_device() -> None:
    seen = [each["name"] for each in devices.devices()]
    assert seen[-3:] == ["npu:0", "npu:1", "cpu"]
    assert devices.choose("npu", "auto") == ("npu:0", "bf16", "Ascend910B, 64 GiB")
    assert devices.choose("npu:1", "fp16")[0] == "npu:1"
    assert devices.choose("cpu", "auto")[0] == "cpu"


def test_without_torch_npu_its_absence_is_said() -> None:
    with pytest.raises(DeviceError) as caught:
        devices.choose("npu", "auto")
    assert 'there is no device "npu" here' in str(caught.value)
    assert "torch_npu" in str(caught.value)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_optimisers_that_are_not_fused_move_alike(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an NPU; a gradient that is not finite moves nothing either."""
    ends = []
    for fused in (optimizers.FUSED, ()):
        monkeypatch.setattr(optimizers, "FUSED", fused)
        torch.manual_seed(0)
        value = nn.Parameter(torch.randn(8, 4))
        stepper = optimizers.create(Optim(name=name), {"unet.weight": value})
        assert stepper.waits == (not fused)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        for number in range(5):
            value.grad = torch.randn(8, 4) * (float("nan") if number == 3 else 1.0)
            stepper.step({"unet": 1e-2}, scaler)
        ends.append(value.detach().numpy())
    assert np.isfinite(ends[0]).all()
    assert np.abs(ends[0] - ends[1]).max() < 1e-6
