"""The parts of a pipeline folder as stored tensors, and a folder made anew from parts: what the converters share.

A single file or a MindSpore checkpoint holds weights alone. Configurations, tokenizer and scheduler of a folder come
from another folder of the same family, whose shapes, or whose configurations where it has no weights, must fit.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gesso.errors import RecipeError, StorageError
from gesso.formats import layout, mindspore_names, openclip, pipeline
from gesso.formats.single_file import FLAGS, NAMES, TEXT, Unpacked
from gesso.formats.stored import Stored, Tensors, nbytes, open_safetensors, save_safetensors
from gesso.storage import copy, fsync_tree, guard, hidden, publish, require, write_json

_TYPES = {"F16": "float16", "BF16": "bfloat16"}


def read(folder: Path) -> tuple[str, dict[str, dict[str, Stored]]]:
    """(family, parts) of a Stable Diffusion pipeline folder, no tensor read.

    Raises RecipeError for a folder of another kind, StorageError for damaged weights.
    """
    family = family_of(folder)
    parts = {}
    for part in ("unet", "vae", *TEXT[family]):
        found: dict[str, Stored] = {}
        for path in pipeline.weights_of(folder / part).values():
            if path.suffix == ".safetensors":
                found |= open_safetensors(path)
        if not found:
            raise RecipeError(f'the model has no weights of its "{part}"', where=str(folder))
        found = {mindspore_names.plain(name): tensor for name, tensor in found.items()}
        parts[part] = openclip.legacy(found) if part in TEXT[family] else found
    return family, parts


def family_of(folder: Path) -> str:
    """ "sd1", "sd2", "sdxl" or "sdxl-refiner"; RecipeError for another kind of pipeline.

    SD 1 and 2 have pipelines of one name; they differ in the text encoder's activation (quick_gelu is OpenAI's CLIP).
    """
    index = pipeline.index_of(folder)
    kind = str(index.get("_class_name", ""))
    if kind.startswith("StableDiffusionXL"):
        first = index.get("text_encoder")
        return "sdxl" if isinstance(first, list) and None not in first else "sdxl-refiner"
    if kind.startswith("StableDiffusion") and not kind.startswith("StableDiffusion3"):
        config = pipeline.read_json(folder / "text_encoder" / "config.json")
        return "sd1" if config.get("hidden_act", "quick_gelu") == "quick_gelu" else "sd2"
    raise RecipeError(
        f"this pipeline is a {kind or 'nameless one'}; only those of Stable Diffusion 1, 2 and XL are converted",
        where=str(folder / pipeline.INDEX),
    )


def flags(folder: Path, family: str, changes: Mapping[str, object] | None = None) -> tuple[str, ...]:
    """The flags by which a single file of SDXL says what this folder's scheduler says; other families have none.

    `changes` are keys of the scheduler's configuration that are to have other values.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    if family != "sdxl" or not path.is_file():
        return ()
    config = {**pipeline.read_json(path), **(changes or {})}
    said = (config.get("prediction_type") == "v_prediction", bool(config.get("rescale_betas_zero_snr")))
    return tuple(flag for flag, yes in zip(FLAGS, said, strict=True) if yes)


def geometry(folder: Path) -> layout.Geometry:
    """The arrangement of the UNet in a pipeline folder, by its weights or, without them, by its configuration."""
    shapes = pipeline.shapes(folder / "unet") if any((folder / "unet").glob("*.safetensors")) else {}
    if shapes:
        return layout.unet_geometry(shapes)
    config = pipeline.read_json(folder / "unet" / "config.json")
    ups = config.get("up_block_types") or []
    return layout.Geometry(
        levels=len(ups),
        layers=int(config.get("layers_per_block", 2)),
        attention=frozenset(level for level, kind in enumerate(ups) if "CrossAttn" in str(kind)),
    )


def write(found: Unpacked, like: Path, out: Path, scheduler: Mapping[str, Any] | None = None) -> None:
    """Make `out`, which must not exist, a pipeline folder of these parts, with all else as in the folder `like`.

    scheduler: keys of its configuration with other values; "_class_name" is another scheduler. The folder appears
    whole. Raises RecipeError for a `like` of another family or size, StorageError when the disk refuses.
    """
    if out.exists():
        raise RecipeError("this is there already", where=str(out), todo="name a folder that does not exist yet")
    family = family_of(like)
    if family != found.family:
        raise RecipeError(
            f"the file is of {NAMES[found.family]}, the folder to take configurations from of {NAMES[family]}",
            where=str(like),
            todo="name a folder of the same family with --like",
        )
    configs = {part: _config(like, part, own) for part, own in found.parts.items()}
    index = pipeline.index_of(like)
    changes = {**_scheduler(found), **(scheduler or {})}
    out.parent.mkdir(parents=True, exist_ok=True)
    require(out.parent, sum(nbytes(own) for own in found.parts.values()), what=out.name)
    temporary = hidden(out)
    try:
        with guard(out, what="the converted model"):
            for name in (name for name, value in index.items() if pipeline.is_component(value)):
                (temporary / name).mkdir(parents=True)
                if name in found.parts:
                    stem = "model" if name.startswith("text_encoder") else "diffusion_pytorch_model"
                    write_json(temporary / name / "config.json", configs[name])
                    path = temporary / name / f"{stem}.safetensors"
                    save_safetensors(path, found.parts[name], {"format": "pt"})
                else:
                    _copied(like, name, temporary / name, changes if name == "scheduler" else {})
            if "_class_name" in changes:
                index["scheduler"] = [index["scheduler"][0], changes["_class_name"]]
            write_json(temporary / pipeline.INDEX, index)
            fsync_tree(temporary)
            publish(temporary, out)
    except BaseException:
        with suppress(OSError):  # the reason for being here matters more
            shutil.rmtree(temporary)
        raise


def _copied(like: Path, name: str, target: Path, changes: Mapping[str, Any]) -> None:
    for file, path in pipeline.files_of(like, name).items():
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        if changes and file == "scheduler_config.json":
            write_json(target / file, {**pipeline.read_json(path), **changes})
        else:
            copy(path, target / file)


def _scheduler(found: Unpacked) -> dict[str, Any]:
    """What a single file itself says of the scheduler."""
    changes: dict[str, Any] = {"prediction_type": "v_prediction"} if "v_pred" in found.flags else {}
    return {**changes, "rescale_betas_zero_snr": True} if "ztsnr" in found.flags else changes


def _config(like: Path, part: str, own: Tensors) -> dict[str, Any]:
    """The part's configuration, its type that of the weights; RecipeError where it is of another model."""
    config = pipeline.read_json(like / part / "config.json")
    known: dict[str, tuple[int, ...]] = {}
    if any((like / part).glob("*.safetensors")):
        there = pipeline.shapes(like / part).items()
        known = {layout.modern(mindspore_names.plain(name)): shape for name, shape in there}
    if part.startswith("text_encoder"):
        kept = ("text_model.", "text_projection.")
        known = {name if name.startswith(kept) else f"text_model.{name}": shape for name, shape in known.items()}
        known = {name: shape for name, shape in known.items() if not name.endswith("position_ids")}
    wrong = [f'"{name}" is missing' for name in sorted(known.keys() - own.keys())]
    if known:
        wrong += [
            f'"{name}" has the shape {list(tensor.shape)}, there {list(known[name]) if name in known else "is none"}'
            for name, tensor in sorted(own.items())
            if known.get(name) != tensor.shape
        ]
    else:
        wrong += [
            f"{what} is {is_}, there {should}" for what, is_, should in _facts(part, config, own) if is_ != should
        ]
    if wrong:
        raise RecipeError(
            f"the file's {part} is not of the kind in that folder: {wrong[0]}",
            where=str(like / part),
            todo="name a folder of the same family and size with --like",
        )
    codes = {tensor.code for tensor in own.values()}
    plain = _TYPES.get(next(iter(codes)), "float32") if len(codes) == 1 else "float32"
    return {**config, **{key: plain for key in ("dtype", "torch_dtype") if key in config}}


def _facts(part: str, config: Mapping[str, Any], own: Tensors) -> list[tuple[str, Any, Any]]:
    """(what, its value in the file, in the configuration) of the numbers that tell models of one kind apart."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in own:
            raise StorageError(f'the {part} has no "{name}"')
        return own[name].shape

    channels = list(config.get("block_out_channels") or [])
    if part == "unet":
        geometry = layout.unet_geometry(own)
        words = {tensor.shape[-1] for name, tensor in own.items() if name.endswith("attn2.to_k.weight")}
        return [
            ("the number of levels", geometry.levels, len(channels)),
            ("the number of layers", geometry.layers, config.get("layers_per_block", 2)),
            ("conv_in", shape("conv_in.weight")[:2], (channels[0], config.get("in_channels", 4))),
            ("the text's width", words, {config.get("cross_attention_dim", 1280)}),
        ]
    if part == "vae":
        return [
            ("encoder.conv_in", shape("encoder.conv_in.weight")[0], channels[0]),
            ("decoder.conv_in", shape("decoder.conv_in.weight")[:2], (channels[-1], config.get("latent_channels", 4))),
        ]
    table = shape("text_model.embeddings.token_embedding.weight")
    return [
        ("the table of words", table, (config.get("vocab_size", 49408), config.get("hidden_size", 512))),
        ("the number of layers", openclip.layers(own), config.get("num_hidden_layers", 12)),
    ]
