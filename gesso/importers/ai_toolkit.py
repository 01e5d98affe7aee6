"""ai-toolkit's job files (.yaml or .json) for Stable Diffusion 1, 2 and XL, made into a recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from gesso.errors import RecipeError
from gesso.importers import common, kohya_adapter, optimizers
from gesso.importers.ai_toolkit_keys import KEYS
from gesso.importers.draft import Draft, Imported
from gesso.importers.files import flat, mapping

LINEAR = (
    *kohya_adapter.TRANSFORMER, "conv_shortcut", "time_emb_proj", "time_embedding.linear_1", "time_embedding.linear_2",
)  # fmt: skip
LINEAR_XL = ("add_embedding.linear_1", "add_embedding.linear_2")
LARGE = ("conv1", "conv2", "downsamplers.0.conv", "upsamplers.0.conv", "conv_in", "conv_out")
LARGE_MATCH = r"unet\.(.*\.)?(conv1|conv2|conv_in|conv_out|downsamplers\.0\.conv|upsamplers\.0\.conv)"
SHARED = (
    "resolution", "flip_x", "random_crop", "caption_dropout_rate", "square_crop", "buckets", "bucket_tolerance",
)  # fmt: skip
"""What gesso has once for all pictures, in the order in which it is settled."""
KINDS = {"lora": "lora", "locon": "lora", "lokr": "lokr"}


def is_one(content: Any) -> bool:
    """Whether a file's content is a job of ai-toolkit."""
    return isinstance(content, dict) and isinstance(content.get("config"), dict) and "process" in content["config"]


def translate(content: Any, where: str) -> Imported:
    """The recipe of a job; RecipeError where it is not a job of one training process."""
    job = mapping(content, where)
    if not is_one(job):
        raise RecipeError("it has no config with a process", where=where, todo="is it a job file of ai-toolkit?")
    processes = job["config"]["process"]
    if not isinstance(processes, list) or len(processes) != 1 or not isinstance(processes[0], dict):
        raise RecipeError("a recipe is one training process; the job must have one", where=where)
    outer = {"job": job.get("job"), "config": {key: job["config"][key] for key in job["config"] if key != "process"}}
    rest = {key: value for key, value in job.items() if key not in ("job", "config")}
    draft = Draft(where, KEYS, program="ai-toolkit")
    for part in (outer, processes[0], rest):
        draft.take({name: value for name, value in flat(_lists(part)) if name and value != {}})
    draft.defaults()
    _method(draft)
    pace = _length(draft)
    _data(draft)
    _optimizer(draft, pace)
    _objective(draft)
    _output(draft, pace)
    _samples(draft, pace)
    for name in draft.given:
        row = draft.rows.get(name)
        if row is not None and row.action == "joined":
            draft.say(name, "harmless", "asks for nothing, or another key wins over it")
    return draft.finish()


def _lists(value: Any) -> Any:
    """`samples` of plain texts and empty lists stay leaves; so does everything that is no table."""
    return value if isinstance(value, Mapping) else {}


def _method(draft: Draft) -> None:
    values = draft.values
    if not values["model.name_or_path"]:
        draft.stop("which model? give model.name_or_path", "model.name_or_path")
    if values["model.is_v_pred"]:
        draft.put("objective.prediction", "v_prediction", "model.is_v_pred")
    sdxl = bool(values["model.is_xl"]) or values["model.arch"] == "sdxl"
    parts = ["unet"] if values["train.train_unet"] else []
    if values["train.train_text_encoder"]:
        parts += ["text_encoder", "text_encoder_2"] if sdxl else ["text_encoder"]
    draft.put("model.train", parts, "train.train_unet", "train.train_text_encoder")
    if not any(name.startswith("network.") for name in draft.given):
        draft.put("adapter.kind", "none", note="without network the weights themselves are trained")
        return
    kind = KINDS.get(str(values["network.type"]).lower())
    if kind is None:
        draft.say("network.type", "unsupported", f"gesso has no {values['network.type']}; use lora, locon or lokr")
        return
    if kind == "lokr" and values["network.lokr_full_rank"]:
        draft.stop("gesso's lokr has a rank; write lokr_full_rank: false and linear", "network.lokr_full_rank")
    _size(draft, kind, sdxl)


def _size(draft: Draft, kind: str, sdxl: bool) -> None:
    values = draft.values
    name = "network.rank" if values["network.rank"] is not None else "network.linear"
    rank = values[name] if values[name] is not None else 4
    scale = "network.linear_alpha" if values["network.linear_alpha"] is not None else "network.alpha"
    alpha = values[scale]
    draft.put("adapter.kind", kind, "network.type")
    draft.put("adapter.rank", rank, name)
    draft.put("adapter.alpha", alpha, scale)
    targets = [*LINEAR, *(LINEAR_XL if sdxl else ())]
    conv = values["network.conv"]
    if conv:
        targets += LARGE
        larger = values["network.conv_alpha"] if values["network.conv_alpha"] is not None else conv
        draft.put("rules.0.match", LARGE_MATCH, "network.conv")
        draft.put("rules.0.rank", conv, "network.conv")
        draft.put("rules.0.alpha", larger, "network.conv_alpha", "network.conv")
    draft.put("adapter.targets", targets, "network.type", note="the layers that ai-toolkit chooses")
    draft.put("adapter.text_targets", list(kohya_adapter.TEXT), "network.type")


def _length(draft: Draft) -> int:
    """train.steps and train.batch; returns how many of the job's steps are one of gesso's."""
    old, new = "train.gradient_accumulation_steps", "train.gradient_accumulation"
    slow = int(draft.values[old] or 1)
    if slow > 1:
        common.batch(draft, "train.batch_size", old)
        note = "gesso counts optimiser steps; the job counts each of the accumulated ones"
    else:
        common.batch(draft, "train.batch_size", new)
        note = ""
    pace = max(slow, 1)
    draft.put("train.steps", math.ceil(draft.values["train.steps"] / pace), "train.steps", note=note)
    return pace


def _data(draft: Draft) -> None:
    numbers = sorted({int(name.split(".")[1]) for name in draft.given if name.startswith("datasets.")})
    if not numbers:
        draft.stop("where are the pictures? give datasets with a folder_path", "datasets")
    agreed: dict[str, dict[Any, list[str]]] = {}
    own = 0
    for number in numbers:
        at = f"datasets.{number}."

        def value(key: str, at: str = at) -> Any:
            found = draft.values.get(at + key)
            return KEYS[f"datasets.{key}"].default if found is None else found

        path = value("folder_path") or value("dataset_path")
        if not path:
            draft.stop("a data set has no folder_path", at + "folder_path")
            continue
        if value("is_reg"):
            draft.say(
                at + "is_reg", "unsupported", "gesso draws class pictures itself: leave this set out, set [prior]"
            )
            continue
        common.folder(draft, own, path, at + "folder_path", at + "dataset_path")
        _caption(draft, own, at, path)
        draft.put(f"data.{own}.repeats", value("num_repeats"), at + "num_repeats")
        draft.put(f"data.{own}.weight", value("loss_multiplier"), at + "loss_multiplier")
        if value("shuffle_tokens"):
            draft.put(f"data.{own}.shuffle", True, at + "shuffle_tokens")
        if value("token_dropout_rate"):
            draft.put(f"data.{own}.tag_dropout", value("token_dropout_rate"), at + "token_dropout_rate")
        if value("shuffle_tokens") or value("token_dropout_rate"):
            draft.put(f"data.{own}.keep_tokens", value("keep_tokens"), at + "keep_tokens")
        if value("alpha_mask"):
            note = "the job also divides a mask by its mean, so that little masks count more; gesso does not"
            draft.put(f"data.{own}.masks", True, at + "alpha_mask", note=note)
            draft.put(f"data.{own}.unmasked_weight", value("mask_min_value"), at + "mask_min_value")
        own += 1
        for key in SHARED:
            sizes = value(key)
            sizes = sizes[0] if isinstance(sizes, list) and len(sizes) == 1 else sizes
            agreed.setdefault(key, {}).setdefault(str(sizes), [sizes]).append(at + key)
    for key, found in agreed.items():
        _shared(draft, key, found)


def _shared(draft: Draft, key: str, found: Mapping[str, list[Any]]) -> None:
    """What gesso has once for all pictures."""
    names = [name for each in found.values() for name in each[1:]]
    value = next(iter(found.values()))[0]
    if len(found) > 1 or isinstance(value, list):
        for name in names:
            draft.say(
                name, "unsupported", f"gesso has one {key} for all pictures so far; write one, the same everywhere"
            )
        return
    if key == "caption_dropout_rate" and not set(names) & set(draft.given):
        return  # train.prompt_dropout_prob may say it
    target = {"flip_x": "train.flip", "caption_dropout_rate": "train.caption_dropout"}.get(key)
    if target:
        draft.put(target, value, *names)
    elif key == "random_crop":
        draft.put("train.crop", "random" if value else "center", *names)
    elif key == "bucket_tolerance":
        draft.put("train.bucket_step", value, *names)
    elif key == "square_crop":
        if value:
            draft.put("train.buckets", False, *names)
    elif key == "buckets":
        _buckets(draft, value, names)
    else:
        side = common.side(draft, names[0], value)
        if side is not None:
            draft.put("train.resolution", side, *names)


def _buckets(draft: Draft, wanted: bool, names: Sequence[str]) -> None:
    if "train.buckets" in draft.settings:
        for name in names:
            draft.say(name, "harmless", "square_crop wins over it")
        return
    note = "of the sizes of about the same area some are a step longer or shorter than ai-toolkit's" if wanted else ""
    draft.put("train.buckets", wanted, *names, note=note)
    draft.put("train.bucket_enlarge", False, *names)


def _caption(draft: Draft, number: int, at: str, path: str) -> None:
    """data.prompt from default_caption, and data.trigger."""
    caption, word = draft.values.get(at + "default_caption"), draft.values["trigger_word"]
    if draft.values.get(at + "trigger_word"):
        word = draft.values[at + "trigger_word"]
    if caption:
        draft.put(f"data.{number}.prompt", _triggered(caption, word), at + "default_caption")
    if word:
        note = "in captions that do not have it; [trigger] is not replaced in caption files"
        draft.put(f"data.{number}.trigger", word, "trigger_word", at + "trigger_word", note=note)
    ending = str(draft.values.get(at + "caption_ext") or "txt").lstrip(".")
    if ending not in ("txt", "caption"):
        draft.say(at + "caption_ext", "unsupported", f"gesso reads .txt and .caption, not .{ending}; rename the files")


def _triggered(text: str, word: Any) -> str:
    return text.replace("[trigger]", str(word)) if word else text


def _optimizer(draft: Draft, pace: int) -> None:
    values = draft.values
    prefix = "train.optimizer_params."
    arguments = {name[len(prefix) :]: (name, value) for name, value in draft.given.items() if name.startswith(prefix)}
    name = str(values["train.optimizer"])
    if name.lower() == "adafactor":
        # ai-toolkit switches these off itself.
        arguments = {"relative_step": ("", False), "scale_parameter": ("", False), **arguments}
    optimizers.choose(draft, name, "train.optimizer", arguments)
    unet = "train.unet_lr" if values["train.unet_lr"] is not None else "train.lr"
    draft.put("optim.lr", values[unet], unet)
    if values["train.train_text_encoder"]:
        text = "train.text_encoder_lr" if values["train.text_encoder_lr"] is not None else "train.lr"
        draft.put("optim.text_encoder_lr", values[text], text)
    warmup = "train.lr_scheduler_params.num_warmup_steps"
    kind = values["train.lr_scheduler"]
    if kind == "linear":
        draft.say("train.lr_scheduler", "unsupported", "its linear rises at first; use constant or cosine")
        return
    if values[warmup] is None and kind == "constant_with_warmup":
        values[warmup] = 1000
    values[warmup] = math.ceil((values[warmup] or 0) / pace)
    common.schedule(draft, "train.lr_scheduler", warmup, None)
    if values["train.ema_config.use_ema"]:
        draft.put(
            "optim.ema",
            values["train.ema_config.ema_decay"],
            *(f"train.ema_config.{x}" for x in ("use_ema", "ema_decay")),
        )


def _objective(draft: Draft) -> None:
    values = draft.values
    first, second = "train.min_snr_gamma", "train.snr_gamma"
    if values[first] and values[second]:
        draft.say(second, "unsupported", f"is given beside {first}; leave one of the two out")
    common.min_snr(draft, first if values[first] else second)
    begin, end = values["train.min_denoising_steps"] or 0, values["train.max_denoising_steps"]
    if (begin, end) not in ((0, 999), (0, 1000)):
        names = ("train.min_denoising_steps", "train.max_denoising_steps")
        draft.put("objective.times", "only", *names)
        draft.put("objective.times_begin", begin, names[0])
        draft.put("objective.times_end", end, names[1])


def _output(draft: Draft, pace: int) -> None:
    values = draft.values
    named = [str(values[each]) for each in ("training_folder", "config.name") if values[each]]
    if named:
        draft.put("out", PurePosixPath(*named).as_posix(), "training_folder", "config.name")
    draft.put("save.every", math.ceil(values["save.save_every"] / pace), "save.save_every")


def _samples(draft: Draft, pace: int) -> None:
    values = draft.values
    prompts = values["sample.prompts"] or []
    names = ["sample.prompts"]
    if any(name.startswith("sample.samples.") for name in draft.given):
        names = [name for name in draft.given if name.startswith("sample.samples.") and name.endswith(".prompt")]
        prompts = [values[name] for name in names]
    if not prompts or values["train.disable_sampling"]:
        for name in (*names, *(each for each in draft.given if each.startswith("sample."))):
            draft.say(name, "harmless", "nothing is drawn")
        return
    word = values["trigger_word"]
    draft.put("sample.prompts", list(dict.fromkeys(_triggered(each, word) for each in prompts)), *names)
    draft.put("sample.every", math.ceil(values["sample.sample_every"] / pace), "sample.sample_every")
    draft.put("sample.seeds", [values["sample.seed"]], "sample.seed")
    if values["sample.walk_seed"]:
        draft.say("sample.walk_seed", "differs", "gesso draws each prompt with the same seed")
    if isinstance(values["sample.neg"], str) and values["sample.neg"]:
        draft.put("sample.negative", values["sample.neg"], "sample.neg")
