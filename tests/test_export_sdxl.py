"""An export of Stable Diffusion XL, its UNet and both text encoders trained, in plain diffusers: the same picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import pictures
from sdxl_plain import drawn, pipe
from torch_runs import GUIDANCE, LORA, PROMPT, STEPS, go, pixels, torch_recipe

from gesso.arrays import Picture
from gesso.export import Request, export


@pytest.fixture(scope="module")
def run(blank_xl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("xl")
    pictures(folder / "pictures")
    parts = {"train": ["unet", "text_encoder", "text_encoder_2"]}
    assert go(torch_recipe(folder, blank_xl, adapter=LORA, model=parts, train={"steps": 2})) == 0
    return folder / "out"


def plainly(made: Any) -> Picture:
    made.set_progress_bar_config(disable=True)
    return drawn(made, PROMPT, 7, num_inference_steps=STEPS, guidance_scale=GUIDANCE)


@pytest.mark.parametrize("form", ["kohya", "single"])
def test_plain_diffusers_draws_the_preview(form: str, run: Path, blank_xl: Path, tmp_path: Path) -> None:
    """To the pixel from a LoRA, within one level of 255 where it was merged."""
    out = tmp_path / "x.safetensors"
    export(Request(source=str(run), form=form, out=out))
    made = pipe(blank_xl)
    before = plainly(made)
    if form == "single":
        made = type(made).from_single_file(str(out), config=str(blank_xl), local_files_only=True)
    else:
        made.load_lora_weights(tmp_path, weight_name=out.name)
    wanted = pixels(run / "samples/step-2/p00-s7.png").astype(int)
    assert np.abs(plainly(made) - wanted).max() <= (1 if form == "single" else 0)
    assert np.abs(before - wanted).max() > 5
