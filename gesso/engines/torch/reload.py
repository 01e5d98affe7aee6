"""What a model's networks answer to fixed inputs: as gesso computes it, and as an exported file's own reader does.

A file is good when both answer alike. All is float32 on the CPU; inputs are drawn by numpy, the same for every reader.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from safetensors.torch import load_file

from gesso import keys
from gesso.arrays import Array, Float32
from gesso.engines.engine import Token
from gesso.engines.torch import loras, state, words
from gesso.engines.torch.models import Models
from gesso.errors import StorageError
from gesso.families import find
from gesso.formats import embeddings, pipeline

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()

Answers = dict[str, Float32]
"""By component: what it answers."""
PROMPT = "a photo of a thing"
ENCODERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
_SIDE = 32
"""Latents are that wide at the most: enough for every layer to take part."""
_WORDS = 7


def own(
    folder: Path, *, adapter: Path | None = None, tokens: Mapping[str, Array] | None = None, whole: bool = False
) -> tuple[Answers, Answers]:
    """What the model in `folder` answers alone, and with an adapter and learned words, as gesso computes it.

    tokens: vectors by `tokens.<encoder>.<word>`. whole: the autoencoder is asked too.
    """
    models = Models(folder, torch.device("cpu"), {}, {})
    family = find(str(models.index["_class_name"]))
    prompt = _prompt(tokens or {})
    before = _answers(models.get, models.index, prompt, whole=whole)
    if not tokens and adapter is None:
        return before, before
    if tokens:
        counts = embeddings.vectors(tokens)
        made = words.attach(models, family.encoders, [Token(name=word, vectors=n) for word, n in counts.items()])
        state.write_values(made, tokens, "weights")
    if adapter is not None:
        loras.add(models, family, adapter, name="exported", strength=1.0)
    return before, _answers(models.get, models.index, prompt, whole=whole)


def assigned(folder: Path, weights: Mapping[str, Mapping[str, Array]]) -> Answers:
    """What the model in `folder` answers with other weights: by part and by parameter, in any reader's names.

    StorageError unless each parameter of a part that is named is there in its shape, and no other.
    """
    models = Models(folder, torch.device("cpu"), {}, {})
    for part, arrays in weights.items():
        net = models.get(part)
        plain = {_short(name): array for name, array in arrays.items() if not name.endswith("position_ids")}
        for name, parameter in net.named_parameters():
            array = plain.pop(_short(name), None)
            if array is None or array.shape != tuple(parameter.shape):
                raise StorageError(f'the file does not give the {part}\'s "{name}" in its shape')
            parameter.data = torch.from_numpy(np.array(array, dtype=np.float32))
        if plain:
            raise StorageError(f'the file gives the {part} a "{min(plain)}", which it does not have')
    return _answers(models.get, models.index, PROMPT, whole="vae" in weights)


def reloaded(
    form: str, path: Path, folder: Path, *, files: Sequence[Path] = (), tokens: Mapping[str, Array] | None = None
) -> Answers:
    """What diffusers' own loader makes of an exported file or folder.

    form: "folder", "single", "lora" (also kohya's names) or "words". folder: the base model, which lends what the file
    does not hold. files: of the learned words, in the order of `tokens`.
    """
    kind: Any = getattr(diffusers, str(pipeline.index_of(folder)["_class_name"]))
    given: dict[str, Any] = {"local_files_only": True}
    if form == "single":
        pipe = kind.from_single_file(str(path), config=str(folder), **given)
    else:
        pipe = kind.from_pretrained(path if form == "folder" else folder, **given)
    if form == "lora":
        pipe.load_lora_weights(path.parent, weight_name=path.name)
    if tokens:
        _learn(pipe, files, tokens)
    # Not asked for while loading: the word for it changes from one version of diffusers to the next.
    pipe.to(torch.float32)
    prompt = _prompt(tokens or {})

    def get(name: str) -> Any:
        found = getattr(pipe, name)
        return found.eval() if isinstance(found, torch.nn.Module) else found

    return _answers(get, pipe.config, prompt, whole=form in ("folder", "single"))


def _learn(pipe: Any, files: Sequence[Path], tokens: Mapping[str, Array]) -> None:
    """Load the files of learned words as their readers do: each encoder its own vectors, by the word."""
    for word, file in zip(embeddings.vectors(tokens), files, strict=True):
        arrays = load_file(file)
        for encoder, tokenizer in ENCODERS.items():
            if getattr(pipe, encoder, None) is None:
                continue
            key = embeddings.KEYS[encoder]
            vectors = arrays[key] if key in arrays and len(arrays) > 1 else next(iter(arrays.values()))
            pipe.load_textual_inversion(
                {word: vectors}, token=word, text_encoder=getattr(pipe, encoder), tokenizer=getattr(pipe, tokenizer)
            )


@torch.no_grad()
def _answers(get: Any, index: Mapping[str, Any], prompt: str, *, whole: bool) -> Answers:
    unet = get("unet").eval()
    config = unet.config
    side = min(int(config.sample_size or _SIDE), _SIDE)
    x = _drawn("x", 1, config.in_channels, side, side)
    cond: dict[str, Any] = {"encoder_hidden_states": _drawn("words", 1, _WORDS, config.cross_attention_dim)}
    if config.addition_embed_type == "text_time":
        width = get("text_encoder_2").config.projection_dim
        added = {"text_embeds": _drawn("text", 1, width), "time_ids": torch.full((1, 6), 8.0 * side)}
        cond["added_cond_kwargs"] = added
    found = {"unet": unet(x, torch.tensor([501]), **cond, return_dict=False)[0]}
    for encoder, name in ENCODERS.items():
        if isinstance(index.get(encoder), list | tuple) and index[encoder][0]:
            tokenizer = get(name)
            text = words.expanded([prompt], tokenizer)[0]
            ids = tokenizer(text, padding="max_length", truncation=True, max_length=tokenizer.model_max_length)
            answer = get(encoder).eval()(torch.tensor([ids.input_ids]), output_hidden_states=True)
            seen = [
                answer.last_hidden_state,
                answer.hidden_states[-2],
                *([answer.text_embeds] if "text_embeds" in answer else []),
            ]
            found[encoder] = torch.cat([each.flatten() for each in seen])
    if whole:
        vae = get("vae").eval()
        latents = _drawn("z", 1, vae.config.latent_channels, 8, 8)
        found["vae"] = vae.decode(latents, return_dict=False)[0]
    return {name: np.asarray(value.float().numpy(), dtype=np.float32) for name, value in found.items()}


def _drawn(what: str, *shape: int) -> torch.Tensor:
    return torch.from_numpy(keys.generator(0, f"reload {what}").standard_normal(shape, dtype=np.float32))


def _prompt(tokens: Mapping[str, Array]) -> str:
    return " ".join([PROMPT, *dict.fromkeys(name.split(".", 2)[2] for name in tokens)])


def _short(name: str) -> str:
    return name.removeprefix("text_model.")
