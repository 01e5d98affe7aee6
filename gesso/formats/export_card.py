"""The model card of an export: how to use that very form, what it is of, and under which licence.

No path of the machine is written, and no caption but the recipe's own prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gesso import __version__
from gesso.formats import card, embeddings, kohya_facts, usage
from gesso.formats.exporting import WHOLE, Trained
from gesso.formats.lora import FILE as LORA
from gesso.formats.single_file import NAMES
from gesso.schema import Recipe

_HERE = "path/of/this/folder"
_TAGS = {"sd1": "stable-diffusion", "sd2": "stable-diffusion", "sdxl": "stable-diffusion-xl"}
_PIPELINES = {"sd1": "StableDiffusionPipeline", "sd2": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}


def text(
    trained: Trained,
    form: str,
    files: Sequence[str],
    *,
    recipe: Recipe | None,
    base: str,
    licence: Mapping[str, str],
    shown: Sequence[tuple[str, str]],
    apart: float,
) -> str:
    """The card's text. `files` are relative to it, `shown` pairs of a prompt and a picture; `apart` is the check's."""
    instance = kohya_facts.phrases(recipe)[0] if recipe else ""
    whole = instance if recipe and any(table.prompt for table in recipe.data) else ""
    prompt = next((each for each in (whole, *(text for text, _ in shown), instance) if each), "…")
    parts = [
        "---\n" + _front(trained, form, base, licence, shown, instance) + "---",
        f"# {trained.about.title}",
        *(["<Gallery />"] if shown else []),
        _what(trained, form, base, learned=recipe is not None),
        *([trained.about.description] if trained.about.description else []),
        "## Use\n\n" + _use(trained, form, files, base or "path/of/the/base/model", prompt),
        *(["## Training\n\n" + card.training(recipe)] if recipe else []),
        "## Check\n\nRead again by its reader, its networks answered as they were trained: "
        f"at most {apart:.1g} of an answer's size apart.",
    ]
    if not licence:
        parts.append(
            "## Licence\n\nThe base model's folder states no licence, so none is given here. "
            "The base model's terms apply to this model too: look them up before you share it."
        )
    by = f" by {trained.about.author}" if trained.about.author else ""
    when = f" on {trained.about.date}" if trained.about.date else ""
    return "\n\n".join([*parts, f"Made{by}{when} with gesso {__version__}."]) + "\n"


def _front(
    trained: Trained,
    form: str,
    base: str,
    licence: Mapping[str, str],
    shown: Sequence[tuple[str, str]],
    instance: str,
) -> str:
    kind = {"none": "full", "ti": "textual_inversion"}.get(trained.kind, trained.kind)
    template = ["lora", "template:sd-lora"] if form in ("lora", "kohya") else []
    tags = ["text-to-image", _TAGS[trained.about.family], "diffusers-training", kind, *template]
    relation = "adapter" if form not in WHOLE else "finetune" if trained.kind == "none" else "merge"
    lines = [f"{key}: {card.quoted(value)}" for key, value in licence.items()]
    if base:
        lines += [f"base_model: {card.quoted(base)}", f"base_model_relation: {relation}"]
    if form != "mindspore":
        lines.append("library_name: diffusers")
    lines += ["pipeline_tag: text-to-image", "tags:", *(f"  - {tag}" for tag in dict.fromkeys(tags))]
    if instance:
        lines.append(f"instance_prompt: {card.quoted(instance)}")
    lines += ["widget:"] if shown else []
    for text, file in shown:
        lines += [f"  - text: {card.quoted(text)}", "    output:", f"      url: {card.quoted(file)}"]
    return "\n".join(lines) + "\n"


def _what(trained: Trained, form: str, base: str, *, learned: bool) -> str:
    whole = "A full fine-tuning" if learned else "A model"
    kind = {"none": whole, "ti": "Learned words"}.get(trained.kind) or card.NAMES[trained.kind]
    merged = " merged into its base" if trained.config is not None and form in WHOLE else ""
    of = f"[{base}](https://huggingface.co/{base})" if base else NAMES[trained.about.family]
    return f"{kind}{merged} {'of' if trained.kind == 'none' else 'for'} {of}."


def _use(trained: Trained, form: str, files: Sequence[str], base: str, prompt: str) -> str:
    draw = f"picture = pipe({card.quoted(prompt)}).images[0]\n```"
    file = files[0] if files else ""
    if form == "folder":
        return "```python\n" + usage.lines(kind="none", parts=(), base=base, folder=_HERE) + draw
    if form == "single":
        kind = _PIPELINES[trained.about.family]
        load = f'from diffusers import {kind}\n\npipe = {kind}.from_single_file("{_HERE}/{file}")\n'
        return f"A1111 and Forge: models/Stable-diffusion; ComfyUI: models/checkpoints.\n\n```python\n{load}{draw}"
    if form == "mindspore":
        return f"A checkpoint for MindSpore: mindone's stable_diffusion_v2 loads `{file}` as its pretrained model."
    if form == "a1111":
        words = ", ".join(f"`{Path(name).stem}`" for name in files)
        return (
            f"A1111 and Forge: embeddings; ComfyUI: models/embeddings. In a prompt a word is its file's name: {words}."
        )
    if form == "words":
        named = ", ".join(f"`{each}`" for each in embeddings.vectors(trained.words))
        any_ = "DiffusionPipeline"
        load = f"from diffusers import {any_}\n\npipe = {any_}.from_pretrained({card.quoted(base)})\n"
        return f"The words are {named}.\n\n```python\n{load}{_words(trained, files)}{draw}"
    alpha = any(rank != own for rank, own in trained.sizes.values())
    lines = usage.lines(
        kind="lora" if form == "kohya" else trained.kind,
        parts=(),
        base=base,
        folder=_HERE,
        scheduler=trained.scheduler,
        alpha=alpha and form == "lora",
    )
    named = lines.replace(f'"{_HERE}")', f'"{_HERE}", weight_name={card.quoted(file)})')
    if form == "lora":
        return "```python\n" + (lines if file == LORA else named) + draw
    where = f"A1111 and Forge: models/Lora, `<lora:{Path(file).stem}:1>`; ComfyUI: models/loras."
    if trained.kind == "dora":
        only = "ComfyUI and Forge compute" if trained.reader == "comfyui" else "LyCORIS computes"
        return f"{where}\n\nOnly {only} this DoRA as it was trained."
    if trained.kind != "lora":
        return where
    return f"{where}\n\n```python\n{named}{draw}"


def _words(trained: Trained, files: Sequence[str]) -> str:
    if all(name.startswith("tokens.text_encoder.") for name in trained.words):
        return (
            f"pipe.load_textual_inversion({card.quoted(_HERE)})\n"
            if len(files) == 1
            else "".join(f"pipe.load_textual_inversion({card.quoted(f'{_HERE}/{name}')})\n" for name in files)
        )
    made = "from safetensors.torch import load_file\n\n"
    for word, name in zip(embeddings.vectors(trained.words), files, strict=True):
        made += f"vectors = load_file({card.quoted(f'{_HERE}/{name}')})\n"
        for encoder, key in embeddings.KEYS.items():
            number = encoder.removeprefix("text_encoder")
            made += (
                f'pipe.load_textual_inversion(vectors["{key}"], token={card.quoted(word)}, '
                f"text_encoder=pipe.{encoder}, tokenizer=pipe.tokenizer{number})\n"
            )
    return made
