"""What PyTorch does with a whole model of the tiny Stable Diffusion, for the tests of the other environment.

`python whole.py train RECIPE` carries a recipe out; `python whole.py draw FOLDER FILE` draws cases.REQUEST by gesso's
engine and by plain diffusers, int64 [64, 64, 3] each, into a .safetensors file.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import cases

from gesso.formats import tensors
from gesso.recipe import load
from gesso.run import train


def draw(folder: Path, file: Path) -> None:
    import torch
    from diffusers import StableDiffusionPipeline

    ours = cases.loaded("torch", "sd", folder).sample([cases.REQUEST])[0].astype("int64")
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    theirs = cases.plainly(pipe, torch.Generator("cpu").manual_seed(cases.REQUEST.seed))
    tensors.save(file, {"gesso": ours, "diffusers": theirs}, {})


if __name__ == "__main__":
    verb, *paths = sys.argv[1:]
    sys.exit(train(load(Path(paths[0]))) if verb == "train" else draw(*map(Path, paths)))
