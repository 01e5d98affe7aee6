"""The model card: README.md of a finished run, with the front matter that the Hub reads.

Front matter: https://huggingface.co/docs/hub/model-cards. Strings are written as JSON, which YAML contains, so no
prompt can break out of its quotes. No path of the machine is written, and no caption but the recipe's own prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from gesso import __version__
from gesso.formats import embeddings, kohya_facts, usage
from gesso.schema import Recipe
from gesso.storage import write_bytes

NAMES = {"lora": "A LoRA", "dora": "A DoRA", "loha": "A LoHa", "lokr": "A LoKr", "oft": "An OFT"}
"""The kinds of adapters, for people."""
_HERE = "path/of/this/folder"
_LICENCE = ("license", "license_name", "license_link")


def write(
    out: Path,
    recipe: Recipe,
    files: Sequence[str],
    *,
    base: Path | None = None,
    pictures: int = 0,
    scheduler: Mapping[str, object] | None = None,
) -> Path:
    """Write `out`/README.md and give its path.

    files: the result, relative to `out` ("pytorch_lora_weights.safetensors", "model_index.json", files of learned
    words). base: the base model's folder, whose own card states the licence. pictures: how many were learned from; 0
    where it is not known. scheduler: what the run changed in the base's scheduler configuration.
    """
    licence = licence_of(base / "README.md") if base else {}
    path = out / "README.md"
    words = embeddings.usage([place for place in embeddings.files(out) if place.name in files], _HERE)
    samples = newest_samples(out)
    use = _use(recipe, words, scheduler or {})
    text = card(recipe, files, name=out.name, licence=licence, samples=samples, pictures=pictures, use=use)
    write_bytes(path, text.encode())
    return path


def card(
    recipe: Recipe,
    files: Sequence[str],
    *,
    name: str,
    licence: Mapping[str, str],
    samples: Sequence[str],
    pictures: int,
    use: str,
) -> str:
    """The card's text; `samples` are pictures' names relative to the card ("samples/step-8/p00-s0.png").

    `use`: the Python lines that draw with the result.
    """
    shown = [(_prompt(recipe, sample), sample) for sample in samples]
    parts = [
        "---\n" + _front(recipe, licence, shown) + "---",
        f"# {name}",
        _what(recipe),
        f"## Use\n\n```python\n{use}```",
        "## Training\n\n" + training(recipe, pictures),
    ]
    if shown:
        parts.append("## Samples\n\n" + "\n".join(f"![{plain(text)}]({file})" for text, file in shown))
    if not licence:
        parts.append(
            "## Licence\n\nThe base model's folder states no licence, so none is given here. "
            "The base model's terms apply to this model too: look them up before you share it."
        )
    parts.append("Files: " + ", ".join(f"`{file}`" for file in files) + f". Made with gesso {__version__}.")
    return "\n\n".join(parts) + "\n"


def licence_of(readme: Path) -> dict[str, str]:
    """`license`, and `license_name` and `license_link` where given, of a model card; empty when it states none."""
    if not readme.is_file():
        return {}
    front = re.match(r"---\r?\n(.*?)\r?\n---", readme.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    found = re.findall(r"^(\w+):[ \t]*(\S[^\r\n]*?)[ \t]*\r?$", front[1], re.MULTILINE) if front else []
    return {key: value.strip("\"'") for key, value in found if key in _LICENCE}


def newest_samples(out: Path, until: int | None = None) -> list[str]:
    """The pictures of the latest step sampled, relative to `out`; `until` a step, of the latest up to it."""
    steps = {}
    for folder in (out / "samples").glob("step-*"):
        number = folder.name.removeprefix("step-")
        if number.isdecimal() and folder.is_dir() and (until is None or int(number) <= until):
            steps[int(number)] = folder
    if not steps:
        return []
    return [file.relative_to(out).as_posix() for file in sorted(steps[max(steps)].glob("p*-s*.png"))]


def _front(recipe: Recipe, licence: Mapping[str, str], shown: Sequence[tuple[str, str]]) -> str:
    tags = ["text-to-image", "stable-diffusion", "diffusers", "diffusers-training", _kind(recipe)]
    lines = [f"{key}: {quoted(value)}" for key, value in licence.items()]
    # A card that goes to the Hub names no folder of this machine; beside the run, it is what loads the base again.
    if _is_hub_id(recipe) or not (recipe.hub.push or recipe.model.base == "tiny"):
        lines.append(f"base_model: {quoted(recipe.model.base)}")
    lines += ["library_name: diffusers", "pipeline_tag: text-to-image", "tags:", *(f"  - {tag}" for tag in tags)]
    if prompt := kohya_facts.phrases(recipe)[0]:
        lines.append(f"instance_prompt: {quoted(prompt)}")
    if shown:
        lines.append("widget:")
    for text, file in shown:
        lines += [f"  - text: {quoted(text)}", "    output:", f"      url: {quoted(file)}"]
    return "\n".join(lines) + "\n"


def _what(recipe: Recipe) -> str:
    kinds = {"none": "A full fine-tuning of", "ti": f"The learned words {_spelled(recipe)} for"}
    kind = kinds.get(recipe.adapter.kind, f"{NAMES.get(recipe.adapter.kind)} for")
    return f"{kind} {_base(recipe)}, made with [diffusers](https://github.com/huggingface/diffusers)' model format."


def _use(recipe: Recipe, words: str, scheduler: Mapping[str, object]) -> str:
    prompt = next(iter(recipe.sample.prompts), kohya_facts.phrases(recipe)[0]) or "…"
    model, adapter = recipe.model, recipe.adapter
    load = usage.lines(
        kind=adapter.kind,
        parts=model.train,
        base=model.base if _is_hub_id(recipe) else "path/of/the/base/model",
        folder=_HERE,
        revision=model.revision,
        vae=(model.vae if usage.is_hub_id(model.vae) else usage.VAE) if model.vae else "",
        scheduler=scheduler,
        words=words,
        alpha=adapter.alpha not in (None, float(adapter.rank)),
    )
    return f"{load}picture = pipe({quoted(prompt)}).images[0]\n"


def training(recipe: Recipe, pictures: int = 0) -> str:
    """How a run learned, a line each; `pictures`: from how many, 0 where it is not known."""
    train, optim, adapter = recipe.train, recipe.optim, recipe.adapter
    told = recipe.objective.prediction
    predicted = "the base's own prediction" if told == "auto" else f"{told} prediction"
    facts = [
        *([f"{pictures} pictures"] if pictures else []),
        f"{train.steps} steps of {train.batch} pictures",
        f"{optim.name}, learning rate {optim.lr:g}, {optim.schedule}, {optim.warmup} warm-up steps",
        *_text_rates(recipe),
        f"objective: {predicted}, {recipe.objective.weighting} weighting, {recipe.objective.loss} loss",
        f"seed {recipe.seed}",
    ]
    if adapter.kind == "none":
        facts.append("trained: " + ", ".join(recipe.model.train))
    elif adapter.kind != "ti":
        of = " and ".join(recipe.model.train)
        others = ", others in some layers" if any(rule.rank or rule.alpha for rule in recipe.rules) else ""
        facts.append(f"{adapter.kind} of {of}, rank {adapter.rank}, alpha {adapter.alpha or adapter.rank:g}{others}")
    if recipe.tokens:
        facts.append(f"learned words: {_spelled(recipe)}, learning rate {optim.token_lr or optim.lr:g}")
    if optim.ema:
        facts.append(f"averaged weights, decay {optim.ema:g}")
    own = any(table.group == "class" for table in recipe.data)
    if recipe.prior.prompt or own:
        drawn = "class pictures of its own" if own else f"{recipe.prior.pictures} class pictures"
        by = "the base model as teacher" if recipe.prior.kind == "teacher" else drawn
        facts.append(f"prior preservation with {by}, weight {recipe.prior.weight:g}")
    return "\n".join(f"- {fact}" for fact in facts)


def _text_rates(recipe: Recipe) -> list[str]:
    """What the text encoders learn at, where they do and it was said."""
    optim = recipe.optim
    rates = {
        "text_encoder": optim.text_encoder_lr,
        "text_encoder_2": optim.text_encoder_2_lr or optim.text_encoder_lr,
    }
    learn = recipe.model.train if recipe.adapter.kind != "ti" else ()
    return [f"learning rate of {part}: {rate:g}" for part, rate in rates.items() if part in learn and rate]


def _spelled(recipe: Recipe) -> str:
    """The new words; in code's quotes, which keep Markdown from reading them."""
    return ", ".join(f"`{token.name.replace('`', ' ')}`" for token in recipe.tokens)


def _prompt(recipe: Recipe, sample: str) -> str:
    """The prompt behind samples/step-N/pPP-sSEED.png: PP counts the different prompts."""
    prompts = list(dict.fromkeys(recipe.sample.prompts))
    number = re.fullmatch(r"p(\d+)-s\d+\.png", Path(sample).name)
    return prompts[int(number[1])] if number and int(number[1]) < len(prompts) else ""


def _kind(recipe: Recipe) -> str:
    return {"none": "full", "ti": "textual_inversion"}.get(recipe.adapter.kind, recipe.adapter.kind)


def _is_hub_id(recipe: Recipe) -> bool:
    return usage.is_hub_id(recipe.model.base)


def _base(recipe: Recipe) -> str:
    if _is_hub_id(recipe):
        return f"[{recipe.model.base}](https://huggingface.co/{recipe.model.base})"
    if recipe.model.base == "tiny":
        return "tiny, gesso's embedded base model"
    return f'a local model, "{plain(Path(recipe.model.base).name)}"'


def quoted(text: str) -> str:
    """Text as a string of JSON, and so of YAML and Python."""
    return json.dumps(text, ensure_ascii=False)


def plain(text: str) -> str:
    """Text without the characters that mean something in Markdown or HTML."""
    return re.sub(r"[\[\]()<>`*_\r\n!|\\]", " ", text)
