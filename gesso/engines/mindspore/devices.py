"""Which devices MindSpore sees here, and the choice of one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gesso.errors import DeviceError

ASCEND = "Ascend"
NO_BF16 = "it has no matrix product in bfloat16 there, nor much else"
"""Of its CPU; every other device has every precision."""


def devices() -> list[dict[str, Any]]:
    """Every device that can train, best first: name, description, total memory in bytes (None: shared), precisions."""
    import mindspore as ms

    found: list[dict[str, Any]] = []
    for index in range(_ascends()):
        # Asked of Ascend by name: what is asked of no device is asked of the one in use, which may be the CPU.
        found.append(
            {
                "name": f"npu:{index}",
                "description": f"Ascend NPU, {ms.hal.get_device_name(index, ASCEND)}",
                "memory": ms.hal.get_device_properties(index, ASCEND).total_memory or None,  # 0 until it is in use
                "precisions": ["fp32", "fp16", "bf16"],
            }
        )
    found.append({"name": "cpu", "description": "cpu", "memory": None, "precisions": ["fp32", "fp16"]})
    return found


def choose(device: str, precision: str) -> tuple[str, str, str]:
    """(device, effective precision, description) for what a recipe asks; DeviceError when it is not there."""
    seen = devices()
    wanted = seen[0]["name"] if device == "auto" else device
    wanted = "npu:0" if wanted == "npu" else wanted
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
            f"MindSpore on {match['name']} cannot train in {precision}: {NO_BF16}",
            todo=f"set train.precision to {' or '.join(match['precisions'])}",
        )
    return wanted, precision, match["description"]


def select(device: str) -> None:
    """Make `device` the one that MindSpore works on, eagerly; on a CPU mend what it has no operators for."""
    import mindspore as ms

    ms.set_context(mode=ms.PYNATIVE_MODE)
    kind, _, index = device.partition(":")
    ms.set_device("CPU" if kind == "cpu" else ASCEND, int(index or 0))
    if device == "cpu":
        from gesso.engines.mindspore import cpu

        # Left to itself MindSpore hands each operator from thread to thread, at ten times the cost of the operators.
        ms.runtime.launch_blocking()
        if (threads := os.environ.get("OMP_NUM_THREADS", "")).isdigit() and int(threads):
            ms.set_context(runtime_num_threads=int(threads))  # which it does not ask by itself
        cpu.install()


def _ascends() -> int:
    """How many NPUs there are."""
    import mindspore as ms

    if next(Path("/dev").glob("davinci[0-9]*"), None) is None:  # MindSpore would complain aloud of missing libraries
        return 0
    try:
        return int(ms.hal.device_count(ASCEND)) if ms.hal.is_available(ASCEND) else 0
    except (RuntimeError, ValueError):
        return 0
