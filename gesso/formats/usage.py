"""The Python lines that load a run's result into diffusers, as the model card and the page of the run show them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from gesso.formats.adapter import LORAS
from gesso.formats.peft import KINDS

VAE = "path/of/the/autoencoder"


def is_hub_id(name: str) -> bool:
    """Whether a model's name is that of the Hub, and nothing on this machine."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name)) and not Path(name).expanduser().exists()


def lines(
    *,
    kind: str,
    parts: Sequence[str],
    base: str,
    folder: str,
    revision: str = "",
    vae: str = "",
    scheduler: Mapping[str, object] | None = None,
    words: str = "",
    alpha: bool = False,
) -> str:
    """Lines that end with the trained pipeline in `pipe`.

    kind: of the adapter, "none" for a whole model. parts: those with an adapter. base, vae: as `from_pretrained` takes
    them; a whole model in `folder` has its own. scheduler: what the run changed in the base's, which no file of an
    adapter can say. words: the lines that load learned words. alpha: whether it is not the rank.
    """
    if kind == "none":
        return f"from diffusers import DiffusionPipeline\n\npipe = DiffusionPipeline.from_pretrained({_text(folder)})\n"
    changes = dict(scheduler or {})
    other = str(changes.pop("_class_name", ""))
    own = sorted(["DiffusionPipeline", *(["AutoencoderKL"] if vae else []), *([other] if other else [])])
    given = f", revision={_text(revision)}" if revision else ""
    made = [f"from diffusers import {', '.join(own)}"]
    made += ["from peft import PeftModel"] if kind in KINDS else []
    made.append("")
    if vae:
        inner = ', subfolder="vae"' if (Path(vae).expanduser() / "vae" / "config.json").is_file() else ""
        made.append(f"vae = AutoencoderKL.from_pretrained({_text(vae)}{inner})")
        given += ", vae=vae"
    made.append(f"pipe = DiffusionPipeline.from_pretrained({_text(base)}{given})")
    if changes or other:
        values = ", ".join(f"{key}={value!r}".replace("'", '"') for key, value in changes.items())
        made.append(f"pipe.scheduler = {other or 'pipe.scheduler'}.from_config(pipe.scheduler.config, {values})")
    if kind in KINDS:
        made += [f"PeftModel.from_pretrained(pipe.{part}, {_text(f'{folder}/{part}')})" for part in parts]
    if kind in LORAS:
        made.append(f"pipe.load_lora_weights({_text(folder)})")
    if kind in LORAS and alpha:
        made.append("# alpha is not the rank: diffusers reads it from the file since 0.34")
    return "\n".join(made) + f"\n{words}"


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
