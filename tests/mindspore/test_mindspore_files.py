"""MindSpore's own checkpoint files: what gesso writes MindSpore reads, and the reverse."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from gesso.formats import mindspore
from gesso.formats.stored import of


@pytest.mark.parametrize("checksum", [False, True])
def test_mindspore_reads_what_gesso_writes(tmp_path: Path, checksum: bool) -> None:
    rng = np.random.default_rng(3)
    arrays = {
        "model.diffusion_model.input_blocks.0.0.conv.weight": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "cond_stage_model.transformer.ln_final.gamma": rng.standard_normal(7).astype(np.float16),
        "steps": np.array([3, 2**40], dtype=np.int64),
    }
    mindspore.write(tmp_path / "a.ckpt", {name: of(value) for name, value in arrays.items()}, checksum=checksum)
    found = ms.load_checkpoint(str(tmp_path / "a.ckpt"), crc_check=checksum)
    assert found.keys() == arrays.keys()
    for name, value in arrays.items():
        assert found[name].asnumpy().dtype == value.dtype
        assert np.array_equal(found[name].asnumpy(), value)


@pytest.mark.parametrize("checksum", [False, True])
def test_gesso_reads_what_mindspore_writes(tmp_path: Path, checksum: bool) -> None:
    rng = np.random.default_rng(4)
    arrays = {"a.weight": rng.standard_normal((5, 2)), "b": rng.standard_normal(3)}
    listed = [{"name": name, "data": ms.Tensor(value.astype(np.float32))} for name, value in arrays.items()] + [
        {"name": "half", "data": ms.Tensor(arrays["b"].astype(np.float32)).astype(ms.bfloat16)}
    ]
    ms.save_checkpoint(listed, str(tmp_path / "b.ckpt"), crc_check=checksum)
    found = mindspore.read(tmp_path / "b.ckpt").tensors
    for name, value in arrays.items():
        assert np.array_equal(found[name].widened(), value.astype(np.float32))
    assert np.abs(found["half"].widened() - arrays["b"]).max() < 2**-7 * np.abs(arrays["b"]).max()
