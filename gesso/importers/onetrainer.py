"""OneTrainer's configurations and presets (.json) for Stable Diffusion 1, 2 and XL, made into a recipe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from gesso.errors import GessoError, RecipeError
from gesso.importers import common, kohya_adapter, optimizers
from gesso.importers.draft import Draft, Imported
from gesso.importers.files import flat, mapping, read
from gesso.importers.onetrainer_keys import KEYS, MODELS, SOLVERS, TIMES

WEIGHTINGS = {"MIN_SNR_GAMMA": "min_snr", "DEBIASED_ESTIMATION": "debiased", "P2": "p2"}
SCHEDULES = {"CONSTANT": "constant", "LINEAR": "linear", "COSINE": "cosine"} | {
    "COSINE_WITH_HARD_RESTARTS": "cosine_with_restarts"
}
LAYERS = {"full": (r"unet\..*",), "attn-mlp": kohya_adapter.TRANSFORMER, "attn-only": kohya_adapter.ATTENTION}
"""The denoiser's layers by the form's presets."""
OTHER_FILES = (("concepts", "concept_file_name"), ("samples", "sample_definition_file_name"))


def translate(content: Any, path: Path) -> Imported:
    """The recipe of a configuration; RecipeError for JSON of something else."""
    config = mapping(content, str(path))
    if {"LoRA_type", "network_dim", "train_batch_size"} & set(config):
        raise RecipeError(
            "this is a file of the kohya_ss form",
            where=str(path),
            todo="print the training command there, and import that",
        )
    if not {"training_method", "model_type", "base_model_name", "__version"} & set(config):
        raise RecipeError("it holds no key of OneTrainer", where=str(path), todo="is it the right file?")
    draft = Draft(str(path), KEYS, program="OneTrainer")
    draft.take({name: value for name, value in flat(config) if value != {}})
    _other_files(draft, config, path)
    draft.defaults()
    _method(draft)
    _data(draft)
    _rates(draft)
    _objective(draft)
    _samples(draft)
    _saving(draft)
    for name in draft.given:
        row = draft.rows.get(name)
        if row is not None and row.action == "joined":
            draft.say(name, "harmless", "asks for nothing, or belongs to an option that is off")
    return draft.finish()


def _other_files(draft: Draft, config: dict[str, Any], path: Path) -> None:
    """Concepts and samples in files of their own, named relative to where OneTrainer is started."""
    for table, name in OTHER_FILES:
        if isinstance(config.get(table), list):
            draft.say(name, "harmless", f"{table} are in the configuration itself")
            continue
        if not draft.values[name]:
            continue
        tried = [Path(draft.values[name]).expanduser(), path.parent / draft.values[name]]
        file = next((each for each in tried if each.is_file()), None)
        if file is None:
            if table == "concepts":
                text = f"{draft.values[name]} is not here; import where OneTrainer is started, or save with concepts"
                draft.say(name, "unsupported", text)
                if name not in draft.given:
                    draft.stop(text, name)
            continue
        try:
            listed = read(file)
        except GessoError as error:
            draft.say(name, "unsupported", f"{file}: {error.what}")
            continue
        if not isinstance(listed, list):
            draft.say(name, "unsupported", f"{file} holds no list of {table}")
            continue
        draft.say(name, "harmless", "it is read, and its keys are listed here")
        draft.take({each: value for each, value in flat({table: listed}) if value != {}})


def _method(draft: Draft) -> None:
    values = draft.values
    sdxl = MODELS.get(str(values["model_type"]))
    if sdxl is None:
        draft.say("model_type", "unsupported", f"gesso trains {', '.join(MODELS)}")
    method = values["training_method"]
    if method == "EMBEDDING":
        draft.put("adapter.kind", "ti", "training_method")
        draft.put("tokens.0.name", values["embedding.placeholder"], "embedding.placeholder")
        draft.put("tokens.0.init", values["embedding.initial_embedding_text"], "embedding.initial_embedding_text")
        draft.put("tokens.0.vectors", values["embedding.token_count"], "embedding.token_count")
        return
    if method not in ("LORA", "FINE_TUNE"):
        draft.say("training_method", "unsupported", "gesso has LORA, FINE_TUNE and EMBEDDING")
        return
    parts = ["unet", "text_encoder", *(["text_encoder_2"] if sdxl else [])]
    learning = [part for part in parts if values[f"{part}.train"]]
    for part in learning:
        _to_the_end(draft, part)
    draft.put("model.train", learning, "model_type", *(f"{part}.train" for part in parts))
    draft.put("train.gradient_checkpointing", values["unet.gradient_checkpointing"], "unet.gradient_checkpointing")
    if method == "FINE_TUNE":
        draft.put("adapter.kind", "none", "training_method")
    else:
        _adapter(draft)


def _to_the_end(draft: Draft, part: str) -> None:
    """A text encoder rests after 30 epochs where the configuration does not say otherwise."""
    values, name = draft.values, f"{part}.stop_training_after"
    unit, after = values[f"{name}_unit"], values[name]
    if part != "unet":
        unit, after = (unit or "EPOCH"), (30 if after is None else after)
    if (unit or "NEVER") == "NEVER" or (unit == "EPOCH" and (after or 0) >= values["epochs"]):
        return
    text = (
        f"{part} would rest after {after} {unit}; gesso trains it to the end: set the unit to NEVER, or train to false"
    )
    draft.say(name, "unsupported", text)
    draft.say(f"{name}_unit", "unsupported", text)
    if not {name, f"{name}_unit"} & set(draft.given):
        draft.stop(text, f"{name}_unit")


def _adapter(draft: Draft) -> None:
    values = draft.values
    kind = {"LORA": "lora", "LOHA": "loha"}.get(str(values["peft_type"]))
    if kind is None:
        draft.say("peft_type", "unsupported", f"gesso does not take {values['peft_type']} over; LORA and LOHA it does")
        return
    if values["lora_decompose"]:
        if kind != "lora":
            draft.say("lora_decompose", "unsupported", "gesso has DoRA on LORA alone")
        kind = "dora"
    draft.put("adapter.kind", kind, "training_method", "peft_type", "lora_decompose")
    draft.put("adapter.rank", values["lora_rank"], "lora_rank")
    draft.put("adapter.alpha", values["lora_alpha"], "lora_alpha")
    preset = values["layer_filter_preset"]
    if preset in LAYERS and not (preset == "full" and values["layer_filter"]):
        draft.put("adapter.targets", list(LAYERS[preset]), "layer_filter_preset", note="the layers of that preset")
        draft.put("adapter.text_targets", list(kohya_adapter.TEXT), "layer_filter_preset")
    else:
        draft.say(
            "layer_filter_preset", "unsupported", f"gesso takes {', '.join(LAYERS)}; set adapter.targets for others"
        )
        draft.say("layer_filter", "unsupported", "set adapter.targets in the recipe in its place")


def _data(draft: Draft) -> None:
    numbers = sorted({int(name.split(".")[1]) for name in draft.given if name.startswith("concepts.")})
    own: list[str] = []
    for number in numbers:
        at = f"concepts.{number}."
        if not _concept(draft, at, "enabled"):
            for name in [each for each in draft.given if each.startswith(at)]:
                draft.forgive(name, "its concept is off")
            continue
        if _concept(draft, at, "validation_concept"):
            draft.put("validate.path", _concept(draft, at, "path"), f"{at}path", f"{at}validation_concept")
            continue
        _folder(draft, at, len(own))
        own.append(at)
    if not own and "unsupported" not in draft.fates():
        draft.stop("where are the pictures? the configuration has no concepts", "concepts")
    flips = {bool(_concept(draft, at, "image.enable_random_flip")) for at in own}
    names = [f"{at}image.enable_random_flip" for at in own]
    if len(flips) > 1:
        for name in names:
            draft.say(name, "unsupported", "gesso mirrors all pictures or none; give every concept the same")
    elif flips:
        draft.put("train.flip", flips.pop(), *names)
    side = common.side(draft, "resolution", draft.values["resolution"])
    if side is not None:
        draft.put("train.resolution", side, "resolution")


def _concept(draft: Draft, at: str, key: str) -> Any:
    value = draft.values.get(at + key)
    return KEYS[f"concepts.{key}"].default if value is None else value


def _folder(draft: Draft, at: str, index: int) -> None:
    if not _concept(draft, at, "path"):
        draft.stop("a concept has no path", f"{at}path")
        return
    common.folder(draft, index, str(_concept(draft, at, "path")), f"{at}path")
    _tags(draft, at, index)
    if draft.values["masked_training"]:
        _masks(draft, index)
    old = _concept(draft, at, "repeats")
    repeats, name = (old, f"{at}repeats") if old is not None else (_concept(draft, at, "balancing"), f"{at}balancing")
    if float(repeats).is_integer():
        draft.put(f"data.{index}.repeats", int(repeats), name)
    else:
        draft.say(name, "unsupported", f"is {repeats}; gesso repeats pictures a whole number of times")
    draft.put(f"data.{index}.weight", _concept(draft, at, "loss_weight"), f"{at}loss_weight")
    source, file = _concept(draft, at, "text.prompt_source"), _concept(draft, at, "text.prompt_path")
    if source == "sample":
        draft.say(f"{at}text.prompt_source", "harmless", "gesso reads the .txt beside each picture")
        return
    if source == "concept" and file:
        try:
            lines = [line.strip() for line in str(read(Path(file).expanduser())).splitlines() if line.strip()]
        except GessoError as error:
            draft.say(f"{at}text.prompt_path", "unsupported", f"{file}: {error.what}")
            return
        if len(lines) == 1:
            draft.put(f"data.{index}.prompt", lines[0], f"{at}text.prompt_path", f"{at}text.prompt_source")
            return
        text = "gesso has one prompt for a folder; list several captions of each picture in metadata.jsonl"
        draft.say(f"{at}text.prompt_path", "unsupported", text)
        return
    text = "gesso reads captions from .txt files or metadata.jsonl, not from file names"
    draft.say(f"{at}text.prompt_source", "unsupported", text)


def _tags(draft: Draft, at: str, index: int) -> None:
    """Tags in another order, and some of them left out; RANDOM leaves each out with the same probability."""
    shuffle, drop = (_concept(draft, at, f"text.{key}") for key in ("enable_tag_shuffling", "tag_dropout_enable"))
    if shuffle:
        draft.put(f"data.{index}.shuffle", True, f"{at}text.enable_tag_shuffling")
    if drop:
        for key, only in (("mode", "RANDOM"), ("special_tags_mode", "NONE")):
            name = f"text.tag_dropout_{key}"
            if _concept(draft, at, name) != only:
                text = f"gesso leaves tags out one by one, all alike; set tag_dropout_{key} to {only}"
                draft.say(f"{at}text.tag_dropout_enable", "unsupported", text)
        names = [f"{at}text.tag_dropout_{key}" for key in ("probability", "enable", "mode", "special_tags_mode")]
        draft.put(f"data.{index}.tag_dropout", _concept(draft, at, "text.tag_dropout_probability"), *names)
    for key, target in (("keep_tags_count", "keep_tokens"), ("tag_delimiter", "separator")):
        if shuffle or drop:
            draft.put(f"data.{index}.{target}", _concept(draft, at, f"text.{key}"), f"{at}text.{key}")


def _masks(draft: Draft, index: int) -> None:
    """data.masks; steps without a mask are, on average, a mask that lets more through."""
    values = draft.values
    for name, why in (
        ("normalize_masked_area_loss", "gesso does not divide by the mask's area; set it to false"),
        ("masked_prior_preservation_weight", "gesso asks nothing of what is outside of a mask; set it to 0"),
    ):
        if values[name]:
            draft.say(name, "unsupported", why)
    open_, least = values["unmasked_probability"], values["unmasked_weight"]
    draft.put(f"data.{index}.masks", True, "masked_training")
    note = "unmasked_probability + (1 - unmasked_probability) x unmasked_weight: the same on average" if open_ else ""
    outside = round(open_ + (1 - open_) * least, 8)
    draft.put(f"data.{index}.unmasked_weight", outside, "unmasked_weight", "unmasked_probability", note=note)


def _rates(draft: Draft) -> None:
    values = draft.values
    common.batch(draft, "batch_size", "gradient_accumulation_steps")
    draft.put("train.epochs", values["epochs"], "epochs")
    kept = "optimizer."
    arguments = {
        name[len(kept) :]: (name, value)
        for name, value in draft.given.items()
        if name.startswith(kept) and name != "optimizer.optimizer" and value is not None and value is not False
    }
    for name in [each for each in arguments if each in FORM or arguments[each][1] in ({}, [], "")]:
        draft.say(arguments.pop(name)[0], "harmless", "the form keeps it for every optimiser")
    name = str(values["optimizer.optimizer"])
    optimizer = name.replace("_", "")
    if optimizer == "ADAFACTOR":
        arguments = {"relative_step": ("", False), "scale_parameter": ("", False)} | arguments
    optimizers.choose(draft, optimizer, "optimizer.optimizer", arguments)
    words = values["training_method"] == "EMBEDDING"
    own = "embedding_learning_rate" if words else "unet.learning_rate"
    chosen = own if values[own] is not None else "learning_rate"
    draft.put("optim.lr", values[chosen], chosen)
    for part in ("text_encoder", "text_encoder_2"):
        name = f"{part}.learning_rate"
        given = name if values[name] is not None else "learning_rate"
        draft.put(f"optim.{part}_lr", values[given], given)
    draft.put("optim.clip", values["clip_grad_norm"] or 0.0, "clip_grad_norm")
    _schedule(draft)
    if values["ema"] != "OFF":
        interval = max(int(values["ema_update_step_interval"] or 1), 1)
        # One update every few steps by d is an update every step by its root.
        names = ("ema", "ema_decay", "ema_update_step_interval")
        draft.put("optim.ema", round(values["ema_decay"] ** (1.0 / interval), 8), *names)
        draft.put("optim.ema_offload", values["ema"] == "CPU", "ema")


FORM = ("fused", "foreach", "stochastic_rounding", "fused_back_pass", "min_8bit_size", "quant_block_size", "block_wise",
        "is_paged", "percentile_clipping", "optim_bits", "weight_decay_by_lr", "split_groups", "split_groups_mean",
        "factored", "factored_fp32", "use_stableadamw", "d_limiter", "use_schedulefree", "orthogonal_gradient",
        "rms_rescaling", "centered_wd", "centered_wd_mode", "state_precision", "max_unorm", "log_every",
        "adam_w_mode", "fsdp_in_use")  # fmt: skip
"""Options of speed and memory, and those that belong to optimisers that gesso does not have."""


def _schedule(draft: Draft) -> None:
    values = draft.values
    kind = SCHEDULES.get(str(values["learning_rate_scheduler"]))
    if kind is None:
        text = f"gesso has no {values['learning_rate_scheduler']}; use one of {', '.join(SCHEDULES)}"
        draft.say("learning_rate_scheduler", "unsupported", text)
        return
    draft.put("optim.schedule", kind, "learning_rate_scheduler")
    if float(values["learning_rate_cycles"] or 1).is_integer():
        draft.put("optim.cycles", int(values["learning_rate_cycles"] or 1), "learning_rate_cycles")
    else:
        draft.say("learning_rate_cycles", "unsupported", "gesso restarts a whole number of times")
    warmup = values["learning_rate_warmup_steps"] or 0
    if 0 < warmup <= 1:
        text = "is a share of the steps, which epochs do not tell; give it in steps"
        draft.say("learning_rate_warmup_steps", "unsupported", text)
        return
    steps = int(warmup / (values["gradient_accumulation_steps"] or 1))
    draft.put("optim.warmup", steps, "learning_rate_warmup_steps")


def _objective(draft: Draft) -> None:
    values = draft.values
    weighting = str(values["loss_weight_fn"])
    if weighting in WEIGHTINGS:
        draft.put("objective.weighting", WEIGHTINGS[weighting], "loss_weight_fn")
        draft.put("objective.gamma", values["loss_weight_strength"], "loss_weight_strength")
    elif weighting != "CONSTANT":
        draft.say("loss_weight_fn", "unsupported", f"gesso has CONSTANT, {', '.join(WEIGHTINGS)}")
    for name, prediction in (("force_v_prediction", "v_prediction"), ("force_epsilon_prediction", "epsilon")):
        if values[name]:
            draft.put("objective.prediction", prediction, name)
    zero = "rescale_noise_scheduler_to_zero_terminal_snr"
    if values[zero]:
        draft.put("objective.zero_snr", True, zero)
    begin, end = values["min_noising_strength"], values["max_noising_strength"]
    if values["timestep_distribution"] == "LOGIT_NORMAL" and (begin, end) == (0, 1):
        draft.put("objective.times", "logit_normal", "timestep_distribution")
        draft.put("objective.times_mean", values["noising_bias"], "noising_bias")
        draft.put("objective.times_std", values["noising_weight"] + 1.0, "noising_weight")
    elif values["timestep_distribution"] != "UNIFORM":
        draft.say("timestep_distribution", "unsupported", "gesso has UNIFORM, and LOGIT_NORMAL over all timesteps")
    elif (begin, end) != (0, 1):
        draft.put("objective.times", "only", "min_noising_strength", "max_noising_strength")
        draft.put("objective.times_begin", int(1000 * begin), "min_noising_strength")
        draft.put("objective.times_end", max(int(1000 * end), 1), "max_noising_strength")


def _samples(draft: Draft) -> None:
    numbers = sorted({int(name.split(".")[1]) for name in draft.given if name.startswith("samples.")})

    def value(number: int, key: str) -> Any:
        found = draft.values.get(f"samples.{number}.{key}")
        return KEYS[f"samples.{key}"].default if found is None else found

    drawn = [number for number in numbers if value(number, "enabled") and value(number, "prompt")]
    if not drawn:
        return
    names = [f"samples.{number}.prompt" for number in drawn]
    draft.put("sample.prompts", list(dict.fromkeys(value(number, "prompt") for number in drawn)), *names)
    seeds = list(dict.fromkeys(value(number, "seed") for number in drawn))
    draft.put("sample.seeds", seeds, *(f"samples.{number}.seed" for number in drawn))
    for key, target in (
        ("negative_prompt", "negative"), ("height", "height"), ("width", "width"), ("diffusion_steps", "steps"),
        ("cfg_scale", "guidance"), ("noise_scheduler", "scheduler"),
    ):  # fmt: skip
        found = {value(number, key) for number in drawn}
        names = [f"samples.{number}.{key}" for number in drawn]
        chosen = found.pop()
        if found:
            for name in names:
                draft.say(name, "unsupported", "gesso draws all prompts alike; give every sample the same")
        elif chosen is not None and key == "noise_scheduler" and chosen not in SOLVERS:
            for name in names:
                draft.say(name, "unsupported", f"gesso has no {chosen}; use one of {', '.join(SOLVERS)}")
        elif chosen is not None:
            draft.put(f"sample.{target}", SOLVERS.get(chosen, chosen) if target == "scheduler" else chosen, *names)
    _every(draft, "sample", "sample_after")


def _every(draft: Draft, table: str, name: str) -> None:
    """An interval: in steps or epochs it is gesso's; minutes would make two runs differ."""
    values, unit = draft.values, f"{name}_unit"
    count, kind = values[name], values[unit]
    if kind == "STEP":
        draft.put(f"{table}.every", math.ceil(count / (values["gradient_accumulation_steps"] or 1)), name, unit)
    elif kind == "EPOCH":
        draft.put(f"{table}.every_epochs", count, name, unit)
    elif kind in TIMES:
        for each in (name, unit):
            draft.say(each, "differs", f"gesso counts steps or epochs, not time; set {table}.every")
    elif kind != "NEVER":
        draft.say(unit, "unsupported", "gesso counts STEP or EPOCH")


def _saving(draft: Draft) -> None:
    values = draft.values
    draft.put("out", values["workspace_dir"], "workspace_dir")
    _every(draft, "save", "save_every" if values["save_every_unit"] not in ("NEVER", None) else "backup_after")
    kept = values["rolling_backup_count"] if values["rolling_backup"] else common.ALL_KEPT
    draft.put("save.keep", kept, "rolling_backup", "rolling_backup_count")
