"""Which devices MindSpore sees here, and the choice of one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gesso.errors import DeviceError


def devices() -> list[dict[str, Any]]:
    """Every device that can train, best first: name, description, total memory in bytes (None: shared), precisions."""
    import mindspore as ms

    found: list[dict[str, Any]] = []
    if _has_ascend():
        found.append(
            {
                "name": "npu",
                "description": f"Ascend NPU, {ms.hal.get_device_name(0)}",
                "memory": ms.hal.get_device_properties(0).total_memory,
                "precisions": ["fp32", "fp16", "bf16"],
            }
        )
    # MindSpore's CPU has no product of matrices in bfloat16.
    found.append({"name": "cpu", "description": "cpu", "memory": None, "precisions": ["fp32", "fp16"]})
    return found


def choose(device: str, precision: str) -> tuple[str, str, str]:
    """(device, effective precision, description) for what a recipe asks; DeviceError when it is not there."""
    seen = devices()
    wanted = seen[0]["name"] if device == "auto" else device
    match = next((each for each in seen if each["name"] == wanted), None)
    if match is None:
        raise DeviceError(
            f'MindSpore sees no device "{device}" here',
            todo=f"use one of {', '.join(each['name'] for each in seen)} for train.device; "
            "`gesso doctor --engine mindspore` tells more",
        )
    if precision == "auto":
        precision = "fp32" if wanted == "cpu" else "bf16"
    if precision not in match["precisions"]:
        raise DeviceError(
            f"MindSpore on {match['name']} cannot train in {precision}",
            todo=f"set train.precision to {' or '.join(match['precisions'])}",
        )
    return wanted, precision, match["description"]


def select(device: str) -> None:
    """Make `device` the one that MindSpore works on, eagerly; on a CPU mend what it has no operators for."""
    import mindspore as ms

    ms.set_context(mode=ms.PYNATIVE_MODE)
    ms.set_device("Ascend" if device == "npu" else "CPU")
    if device == "cpu":
        from gesso.engines.mindspore import cpu

        # Left to itself MindSpore hands each operator from thread to thread, at ten times the cost of the operators.
        ms.runtime.launch_blocking()
        if (threads := os.environ.get("OMP_NUM_THREADS", "")).isdigit() and int(threads):
            ms.set_context(runtime_num_threads=int(threads))  # which it does not ask by itself
        cpu.install()


def _has_ascend() -> bool:
    import mindspore as ms

    if next(Path("/dev").glob("davinci[0-9]*"), None) is None:  # MindSpore would complain aloud of missing libraries
        return False
    try:
        return bool(ms.hal.is_available("Ascend")) and ms.hal.device_count("Ascend") > 0
    except (RuntimeError, ValueError):
        return False
