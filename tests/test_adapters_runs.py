"""Whole runs with adapters of every kind: what they leave is what plain libraries load, and they resume bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from runs import pictures
from torch_runs import GUIDANCE, PROMPT, STEPS, go, pixels, plain, torch_recipe

from gesso.errors import Exit
from gesso.formats import tensors
from gesso.generate import Request, generate
from gesso.models import resolve

PARTS = ["unet", "text_encoder"]
FILES = {
    "lora": ["pytorch_lora_weights.safetensors"],
    "loha": [f"{part}/{name}" for part in PARTS for name in ("adapter_config.json", "adapter_model.safetensors")],
}
FILES |= {"dora": FILES["lora"], "lokr": FILES["loha"], "oft": FILES["loha"]}


def recipe_of(folder: Path, blank: Path, kind: str, **tables: Any) -> Path:
    pictures(folder / "pictures")
    rules: Any = [{"match": "mid_block.*", "skip": True}] + ([] if kind == "oft" else [{"match": "to_k", "rank": 2}])
    return torch_recipe(
        folder,
        blank,
        adapter={"kind": kind, "rank": 4, **({} if kind == "oft" else {"alpha": 6.0})},
        rules=rules,
        model={"train": PARTS},
        **tables,
    )


def drawn(pipe: Any) -> Any:
    with torch.no_grad():
        image = pipe(
            PROMPT,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=torch.Generator("cpu").manual_seed(7),
            output_type="np",
        ).images[0]
    return np.round(image * 255.0).astype(np.uint8)


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr", "oft"])
def test_a_run_leaves_what_others_load_and_goes_on_exactly(kind: str, blank: Path, tmp_path: Path) -> None:
    saved = {"every": 3, "keep": 3}
    straight, parted = (recipe_of(tmp_path / name, blank, kind, save=saved) for name in ("straight", "parted"))
    assert go(straight) == Exit.DONE
    out, other = straight.parent / "out", parted.parent / "out"
    assert all((out / name).is_file() for name in FILES[kind])

    # Stopped after half of its steps, and started again.
    assert go(parted, "--train.steps", "3") == Exit.DONE
    assert go(parted, "--train.steps", "6") == Exit.DONE
    for name in FILES[kind]:
        assert (out / name).read_bytes() == (other / name).read_bytes(), name

    pipe = plain(blank)
    if kind in ("lora", "dora"):
        pipe.load_lora_weights(out)
    else:
        for part in PARTS:
            PeftModel.from_pretrained(getattr(pipe, part), str(out / part))
    expected = drawn(pipe)
    sample = next((out / "samples" / "step-6").glob("*.png"))
    assert np.array_equal(pixels(sample), expected)
    assert not np.array_equal(expected, drawn(plain(blank)))

    asked: dict[str, Any] = {"prompts": (PROMPT,), "seeds": (7,), "steps": STEPS, "guidance": GUIDANCE}
    asked |= {"device": "cpu", "precision": "fp32"}
    for model in (out, out / "checkpoint-6"):
        assert resolve(str(model)).lora is not None
        (file,) = generate(Request(model=str(model), out=tmp_path / model.name, **asked))
        assert np.array_equal(pixels(file), expected)
    (file,) = generate(Request(model=str(blank), loras=(out,), out=tmp_path / "beside", **asked))
    assert np.array_equal(pixels(file), expected)
    if kind in ("loha", "lokr", "oft"):
        described = json.loads((out / "unet" / "adapter_config.json").read_text())
        assert described["peft_type"] == kind.upper()
        assert not any(
            "mid_block" in name for name in tensors.header(out / "unet" / "adapter_model.safetensors").tensors
        )
    card = (out / "README.md").read_text()
    report = (out / "report.html").read_text()
    assert ("pipe.load_lora_weights" in card) == ("pipe.load_lora_weights" in report) == (kind in ("lora", "dora"))
    assert ("PeftModel.from_pretrained(pipe.unet" in card) == (kind not in ("lora", "dora"))
    assert ("PeftModel.from_pretrained(pipe.text_encoder" in report) == (kind not in ("lora", "dora"))
