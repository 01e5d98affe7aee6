"""Makes the embedded base model "tiny" again, from nothing but a font: `python -m gesso.demo.pretrain FOLDER`.

    1 pictures      emoji glyphs on coloured grounds, with captions       FOLDER/pictures
    2 autoencoder   64 × 64 pixels ↔ 16 × 16 latents, trained by itself   FOLDER/autoencoder
    3 blank         a Stable Diffusion folder with a random UNet          FOLDER/blank
    4 training      gesso's own loop on recipes/pretrain.toml             FOLDER/run
    5 oracle        the judge that names what a picture shows             FOLDER/oracle.safetensors
    6 measures      100 held-out prompts, judged                          FOLDER/figures.json, grid.png
    7 shipping      half-precision weights into the package               --ship

Every stage is seeded, goes on where it was interrupted, and is skipped when its result is there. It needs the font
NotoColorEmoji.ttf (Debian and Ubuntu: `apt install fonts-noto-color-emoji`) and, on one core of its own, about an
hour and three quarters: autoencoder 21 minutes, training 58, judge 12, measures 3.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from gesso import run
from gesso.demo.glyphs import caption, pairs
from gesso.demo.measure import Judged, judge
from gesso.demo.oracle import Oracle
from gesso.demo.pictures import write_training_set
from gesso.engines.engine import SampleRequest
from gesso.families import find
from gesso.formats import tensors
from gesso.job import create_engine
from gesso.models import resolve
from gesso.recipe import load
from gesso.report.contact import sheet
from gesso.schema import Recipe

PICTURES = 10_000
SEED = 1
AUTOENCODER_STEPS = 6900
ORACLE_STEPS = 1800
STEPS, GUIDANCE = 20, 4.0
"""How the held-out prompts are drawn."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m gesso.demo.pretrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ship", action="store_true", help="put the result into the package, in half precision")
    given, flags = parser.parse_known_args(arguments)
    folder: Path = given.folder
    torch_side = "gesso.engines.torch.demo"

    if not (folder / "pictures" / "metadata.jsonl").is_file():
        print("1 pictures")
        write_training_set(folder / "pictures", SEED, PICTURES)

    print("2 autoencoder")
    import_module(f"{torch_side}.autoencoder").train(folder / "autoencoder", steps=AUTOENCODER_STEPS, seed=SEED)

    if not (folder / "blank" / "model_index.json").is_file():
        print("3 blank")
        import_module(f"{torch_side}.blank").write(
            folder / "blank", trained_autoencoder=folder / "autoencoder" / "vae", seed=SEED
        )

    print("4 training")
    code = run.train(load(Path(str(files("gesso.demo") / "recipes" / "pretrain.toml")), flags, defaults(folder)))
    if code:
        return code

    oracle = folder / "oracle.safetensors"
    if not oracle.is_file():
        print("5 oracle")
        import_module(f"{torch_side}.oracle").main(
            [str(folder / "autoencoder" / "vae"), str(oracle), "--steps", str(ORACLE_STEPS)]
        )

    print("6 measures")
    measures = measure(folder / "run", Oracle(oracle), grid=folder / "grid.png")
    untrained = measure(folder / "blank", Oracle(oracle), grid=folder / "grid-untrained.png")
    figures = {"trained": measures, "untrained": untrained}
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))

    if given.ship:
        print("7 shipping")
        assets = Path(str(files("gesso.demo") / "assets"))
        ship(folder / "run", assets / "tiny")
        shutil.copyfile(oracle, assets / "oracle.safetensors")
    return 0


def defaults(folder: Path) -> dict[str, Any]:
    """What the recipe leaves open because it depends on the folder."""
    return {
        "out": str(folder / "run"),
        "model": {"base": str(folder / "blank")},
        "data": [{"path": str(folder / "pictures")}],
        "cache": {"path": str(folder / "cache")},
    }


def measure(model: Path, oracle: Oracle, *, grid: Path) -> dict[str, float]:
    """Share of 100 held-out prompts whose thing and whose ground the judge recognises; draws them all into `grid`."""
    engine = create_engine(Recipe())
    engine.load(model, find(resolve(str(model)).pipeline))
    asked = [(thing.name, ground, lead) for lead in ("", "a photo of ") for thing, ground in pairs(held_out=True)]
    requests = [
        SampleRequest(
            prompt=lead + caption(name, ground), seed=number, width=64, height=64, steps=STEPS, guidance=GUIDANCE
        )
        for number, (name, ground, lead) in enumerate(asked)
    ]
    pictures = engine.sample(requests)
    found: list[Judged] = judge(oracle, pictures)
    from PIL import Image

    Image.fromarray(sheet(pictures, columns=10, labels=[request.prompt for request in requests], scale=2)).save(grid)
    return {
        "thing": float(np.mean([each.name == name for each, (name, _, _) in zip(found, asked, strict=True)])),
        "ground": float(np.mean([each.ground == ground for each, (_, ground, _) in zip(found, asked, strict=True)])),
        "pictures": len(pictures),
    }


def ship(run_folder: Path, to: Path) -> None:
    """The pipeline of `run_folder` in half precision, about a third of what training needs."""
    shutil.rmtree(to, ignore_errors=True)
    for part in ("scheduler", "tokenizer"):
        shutil.copytree(run_folder / part, to / part)
    shutil.copyfile(run_folder / "model_index.json", to / "model_index.json")
    for part in ("unet", "text_encoder", "vae"):
        for file in sorted((run_folder / part).iterdir()):
            (to / part).mkdir(parents=True, exist_ok=True)
            if file.suffix != ".safetensors":
                # diffusers notes where a part was read from, which is nobody's business.
                config = json.loads(file.read_text(encoding="utf-8"))
                config.pop("_name_or_path", None)
                (to / part / file.name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
                continue
            arrays = {
                name: value.astype(np.float16) if value.dtype == np.float32 else value
                for name, value in tensors.load(file).items()
            }
            tensors.save(to / part / file.name, arrays, tensors.header(file).metadata)


if __name__ == "__main__":
    raise SystemExit(main())
