"""Which devices PyTorch sees here. `python -m gesso.engines.torch.devices` prints them as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from gesso.errors import DeviceError

NPU = "an Ascend NPU needs CANN and the package torch_npu of PyTorch's own version, docs/mindspore.md tells more"


def devices() -> list[dict[str, Any]]:
    """Every device that can train, best first: name, description, total memory in bytes (None: shared), precisions."""
    found: list[dict[str, Any]] = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            found.append(
                {
                    "name": f"cuda:{index}",
                    "description": f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB",
                    "memory": facts.total_memory,
                    "precisions": ["fp32", "fp16", *(["bf16"] if torch.cuda.is_bf16_supported() else [])],
                }
            )
    if torch.backends.mps.is_available():
        found.append({"name": "mps", "description": "Apple GPU", "memory": None, "precisions": ["fp32", "fp16"]})
    found += _npus()
    threads = torch.get_num_threads()
    found.append(
        {
            "name": "cpu",
            "description": f"cpu, {threads} thread{'s' if threads > 1 else ''}",
            "memory": None,
            "precisions": ["fp32", "bf16", "fp16"],
        }
    )
    return found


def choose(device: str, precision: str) -> tuple[torch.device, str, str]:
    """(device, effective precision, description) for what a recipe asks; DeviceError when it is not there."""
    seen = devices()
    wanted = seen[0]["name"] if device == "auto" else device
    wanted = f"{wanted}:0" if wanted in ("cuda", "npu") else wanted
    match = next((each for each in seen if each["name"] == wanted), None)
    if match is None:
        raise DeviceError(
            f'there is no device "{device}" here',
            todo=f"use one of {', '.join(each['name'] for each in seen)} for train.device; "
            + (NPU if wanted.startswith("npu") else "`gesso doctor` tells more"),
        )
    if precision == "auto":
        precision = "fp32" if wanted in ("cpu", "mps") else "bf16" if "bf16" in match["precisions"] else "fp16"
    if precision not in match["precisions"]:
        raise DeviceError(
            f"{match['description']} cannot train in {precision}",
            todo=f"set train.precision to {' or '.join(match['precisions'])}",
        )
    return torch.device(wanted), precision, match["description"]


def _npus() -> list[dict[str, Any]]:
    """Ascend's, which torch_npu adds to PyTorch when that is imported; none where it is not installed."""
    npu = getattr(torch, "npu", None)
    if npu is None or not npu.is_available():
        return []
    return [
        {
            "name": f"npu:{index}",
            "description": f"{npu.get_device_name(index)}, "
            f"{npu.get_device_properties(index).total_memory / 2**30:.0f} GiB",
            "memory": npu.get_device_properties(index).total_memory,
            "precisions": ["fp32", "fp16", *(["bf16"] if npu.is_bf16_supported() else [])],
        }
        for index in range(npu.device_count())
    ]


if __name__ == "__main__":
    json.dump(devices(), sys.stdout)
