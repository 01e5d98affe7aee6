"""Commands of mindone's stable_diffusion_v2: train_dreambooth.py as a recipe, text_to_image.py as `gesso generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gesso import base_file
from gesso.data.sources import text as texts
from gesso.errors import DataError
from gesso.importers import common, diffusers_flags
from gesso.importers.draft import Draft, Imported
from gesso.importers.files import flat, mapping, read
from gesso.importers.mindone_sd_flags import (
    DRAW,
    DRAW_LATER,
    DRAW_LEAST,
    DRAW_OWN,
    LATER,
    LEAST,
    LIKE,
    NAME,
    TRAIN,
    TRAIN_LATER,
)
from gesso.importers.shell import Command, flags, spoken
from gesso.importers.verbs import Wish

DREAMBOOTH, DRAWING = "train_dreambooth.py", "text_to_image.py"
CONFIG = "configs/train_config.json"
"""What the script reads where no --train_config is given."""
EMA_DECAY = 0.9999
DECAY, DECAY_LATER = 1e-6, 1e-2
KEPT = 10
"""Checkpoints that the script keeps."""
PREDICTIONS = {"v": "v_prediction", "velocity": "v_prediction", "eps": "epsilon", "x0": "sample"}
FILES = (".ckpt", ".safetensors", ".pt", ".pth", ".bin")


def is_dreambooth(command: Command) -> bool:
    """Whether a train_dreambooth.py is mindone's of 2023, told by the flags that diffusers' script does not have."""
    marks = {*TRAIN, *TRAIN_LATER} - set(diffusers_flags.rows(DREAMBOOTH))
    return command.script == DREAMBOOTH and bool(spoken(command.words) & marks)


def dreambooth(command: Command) -> Imported:
    """The recipe of a train_dreambooth.py with the values of its JSON file under the flags of the command."""
    table = {**TRAIN, **TRAIN_LATER}
    draft = Draft(command.script, table, dashes=True)
    given = draft.own(flags(command.words, table))
    draft.take({**_config(given), **given})
    theirs = diffusers_flags.rows(DREAMBOOTH)
    common.mixed(draft, {name for name in table if name not in theirs}, "diffusers", theirs)
    draft.defaults()
    common.least(draft, LEAST)
    for flag in command.stops:
        draft.stop(f"gesso has no {flag[2:]}; leave it out of the launcher", flag)
    _base(draft)
    _method(draft)
    _pictures(draft)
    _prior(draft)
    common.batch(draft, "train_batch_size", "gradient_accumulation_steps", command.devices)
    _optimizer(draft)
    draft.put("save.keep", KEPT, note="the script keeps as many")
    return draft.finish()


def _config(given: dict[str, Any]) -> dict[str, Any]:
    """The values of the JSON file; of the one that the script takes by itself, only where it is there."""
    named = given.get("train_config")
    path = Path(str(named or CONFIG)).expanduser()
    if not named and not path.is_file():
        return {}
    return mapping(read(path), str(path))


def _base(draft: Draft) -> None:
    """model.base from a folder and a file, and model.like where it is a file of weights alone."""
    folder, file = (str(draft.values[f"pretrained_model_{part}"] or "") for part in ("path", "file"))
    names = ("pretrained_model_path", "pretrained_model_file")
    if not folder and not file:
        draft.stop("which model? give --pretrained_model_path and --pretrained_model_file", f"--{names[0]}")
        return
    base = (Path(folder) / file).as_posix() if folder and file else folder or file
    draft.put("model.base", base, *names)
    prediction = _prediction(draft, "model_config")
    if prediction:
        draft.put("objective.prediction", prediction, "model_config")
    if Path(base).suffix.lower() in FILES and not Path(base).expanduser().is_file():
        for name in names:
            draft.say(name, "unsupported", f"there is no file {base}")
    elif Path(base).suffix.lower() in FILES:
        like = LIKE[_kind(base, prediction)]
        draft.put("model.like", like, note="lends what a file of weights lacks; --model.like=FOLDER names another")


def _kind(base: str, prediction: str = "", version: str = "") -> str:
    """Which of LIKE fits a file of weights: by its content where it is there, else by the version that is said."""
    path = Path(base).expanduser()
    first = base_file.family(path) == "sd1" if path.is_file() else version.startswith("1")
    velocity = prediction == "v_prediction" or version.startswith("2.1") or version.endswith("-v")
    return "sd1" if first else "sd2-v" if velocity else "sd2"


def _prediction(draft: Draft, name: str) -> str:
    """What a model's YAML file says that it predicts; "" where it says nothing, or there is none."""
    place = draft.values[name]
    if not place:
        return ""
    path = Path(str(place)).expanduser()
    content = mapping(read(path), str(path))
    said = [str(value) for key, value in flat(content) if key.rpartition(".")[2] == "parameterization"]
    if said and said[0] not in PREDICTIONS:
        draft.say(name, "unsupported", f"its parameterization is {said[0]}, must be one of {', '.join(PREDICTIONS)}")
    elif not said:
        draft.say(name, "harmless", "it has no parameterization, and all else is the base model's own")
    return PREDICTIONS.get(said[0], "") if said else ""


def _method(draft: Draft) -> None:
    values = draft.values
    parts = ["unet", *(["text_encoder"] if values["train_text_encoder"] else [])]
    lora = ("lora_rank", "lora_scale", "lora_ft_unet", "lora_ft_text_encoder")
    if not values["use_lora"]:
        draft.put("adapter.kind", "none", "use_lora", note=f"{draft.source} trains the weights themselves")
        draft.put("model.train", parts, "train_text_encoder")
        for name in lora:
            draft.say(name, "harmless", "it does nothing without --use_lora")
        return
    if values["train_text_encoder"] and "train_text_encoder" in draft.given:
        text = "does not go with --use_lora, as in the script; --lora_ft_text_encoder=True gives it a LoRA"
        draft.say("train_text_encoder", "unsupported", text)
    draft.put("adapter.kind", "lora", "use_lora")
    draft.put("adapter.rank", values["lora_rank"], "lora_rank")
    if values["lora_scale"] != 1 and values["lora_scale"] > 0:
        draft.put("adapter.alpha", values["lora_scale"] * values["lora_rank"], "lora_scale")
    draft.say("lora_scale", "harmless", "1 is what gesso takes")
    chosen = {"unet": values["lora_ft_unet"], "text_encoder": values["lora_ft_text_encoder"]}
    learning = [part for part, learns in chosen.items() if learns]
    if learning:
        draft.put("model.train", learning, "lora_ft_unet", "lora_ft_text_encoder", "train_text_encoder")
    else:
        draft.say("lora_ft_unet", "unsupported", "is off, as is lora_ft_text_encoder: nothing would learn")


def _pictures(draft: Draft) -> None:
    values = draft.values
    for name, what in (("instance_data_dir", "where are the pictures"), ("instance_prompt", "what is on the pictures")):
        if not values[name]:
            draft.stop(f"{what}? give --{name}", f"--{name}")
    if values["instance_data_dir"]:
        common.folder(draft, 0, values["instance_data_dir"], "instance_data_dir")
    if values["instance_prompt"]:
        draft.put("data.0.prompt", values["instance_prompt"], "instance_prompt", note=TRAIN["instance_prompt"].why)
    draft.put("train.crop", "random" if values["random_crop"] else "center", "random_crop")
    draft.put("train.flip", bool(values["random_crop"]), "random_crop")
    draft.put("train.interpolation", "bilinear", note="the script knows no other")


def _prior(draft: Draft) -> None:
    values = draft.values
    names = ("class_prompt", "class_data_dir")
    others = ("prior_loss_weight", "num_class_images", "sampling_steps", "scale")
    if not values["with_prior_preservation"]:
        for name in ("with_prior_preservation", *names, *others):
            draft.say(name, "harmless", "it does nothing without --with_prior_preservation")
        return
    missing = [name for name in names if not values[name]]
    for name in missing:
        text = f"the class is kept unless told otherwise: give --{name}, or --with_prior_preservation=False"
        draft.stop(text, f"--{name}")
    if missing:
        return
    draft.put("prior.prompt", values["class_prompt"], "class_prompt", "with_prior_preservation")
    draft.put("prior.weight", values["prior_loss_weight"], "prior_loss_weight")
    draft.put("prior.pictures", values["num_class_images"], "num_class_images")
    draft.put("prior.sampling_steps", values["sampling_steps"], "sampling_steps")
    draft.put("prior.guidance", values["scale"], "scale")
    common.class_folder(draft, "class_data_dir")


def _optimizer(draft: Draft) -> None:
    values = draft.values
    later = any(name in draft.given for name in TRAIN_LATER)
    decay = values["weight_decay"]
    note = "" if decay is not None else f"as in {NAME}; on all weights, where it leaves out norms and biases"
    decay = (DECAY_LATER if later else DECAY) if decay is None else decay
    draft.put("optim.weight_decay", decay, "weight_decay", note=note)
    if values["clip_grad"]:
        draft.put("optim.clip", values["max_grad_norm"], "max_grad_norm", "clip_grad")
    else:
        draft.put("optim.clip", 0, "clip_grad", note="the script does not clip unless told --clip_grad=True")
        draft.say("max_grad_norm", "harmless", "it does nothing without --clip_grad")
    if values["use_ema"]:
        draft.put("optim.ema", EMA_DECAY, "use_ema")


def drawing(command: Command) -> Imported:
    """The words of `gesso generate` that draw what text_to_image.py would have drawn."""
    later = bool(spoken(command.words) & set(DRAW_LATER))
    wish = Wish(command.script, {**DRAW, **DRAW_LATER, **DRAW_OWN}, ("generate",))
    values = wish.values
    values.update(LATER if later else {})
    wish.take(flags(command.words, wish.rows))
    common.least(wish, DRAW_LEAST)
    _prompt(wish)
    _model(wish)
    _lora(wish)
    wish.put("--steps", values["sampling_steps"], "sampling_steps")
    wish.put("--height", values["H"], "H")
    wish.put("--width", values["W"], "W")
    usual = 7.5 if str(values["version"]).startswith("1") else 9.0
    wish.put("--guidance", usual if values["scale"] is None else values["scale"], "scale", "version")
    _sampler(wish, later=later)
    turns = 1 if values["fixed_code"] else values["n_iter"]
    wish.put("--count", int(turns * values["n_samples"]), "n_iter", "n_samples", "fixed_code")
    wish.put("--batch", int(values["n_samples"]), "n_samples")
    wish.put("--seed", int(values["seed"]), "seed")
    wish.put("--out", (Path(str(values["output_path"])) / "samples").as_posix(), "output_path")
    return wish.finish()


def _prompt(wish: Wish) -> None:
    values = wish.values
    if values["data_path"]:
        wish.say("prompt", "harmless", "--data_path wins over it")
    else:
        wish.put("--prompt", values["prompt"], "prompt")
    if not values["negative_data_path"]:
        return
    path = Path(str(values["negative_data_path"])).expanduser()
    name = "negative_data_path"
    try:
        lines = list(dict.fromkeys(line.strip() for line in texts.read(path, str(path)).splitlines() if line.strip()))
    except DataError as error:
        wish.say(name, "unsupported", f"{path}: {error.what}")
        return
    if len(lines) == 1:
        wish.put("--negative", lines[0], name)
        wish.say("negative_prompt", "harmless", f"--{name} wins over it")
    else:
        text = f"has {len(lines)} different lines, and gesso takes one for all prompts; give --negative_prompt instead"
        wish.say(name, "unsupported", text)


def _model(wish: Wish) -> None:
    path = str(wish.values["ckpt_path"])
    wish.put("--model", path, "ckpt_path")
    alone = Path(path).suffix.lower() in FILES
    if alone:
        kind = _kind(path, _prediction(wish, "config"), str(wish.values["version"]))
        note = "lends what a file of weights lacks; --like=FOLDER names another"
        wish.put("--like", wish.values["like"] or LIKE[kind], "like", "config", "version", note=note)
    for name in () if alone else ("like", "config", "version"):
        wish.say(name, "harmless", "the model's folder says all of it")


def _lora(wish: Wish) -> None:
    values = wish.values
    if not values["use_lora"]:
        for name in ("use_lora", "lora_ckpt_path", "lora_scale"):
            wish.say(name, "harmless", "it does nothing without --use_lora")
    elif not values["lora_ckpt_path"]:
        wish.stop("which LoRA? give --lora_ckpt_path", "--lora_ckpt_path")
    elif Path(str(values["lora_ckpt_path"])).suffix.lower() == ".ckpt":
        text = "gesso reads no LoRA in MindSpore's form; name a .safetensors file, or the folder of a run"
        wish.say("lora_ckpt_path", "unsupported", text)
    else:
        wish.put("--lora", values["lora_ckpt_path"], "lora_ckpt_path", "use_lora")
        wish.put("--strength", values["lora_scale"], "lora_scale")
    if str(values["ti_ckpt_path"] or "").endswith(".safetensors"):
        wish.put("--words", values["ti_ckpt_path"], "ti_ckpt_path")
    elif values["ti_ckpt_path"]:
        wish.say("ti_ckpt_path", "unsupported", "gesso reads learned words from .safetensors files alone; convert it")


SAMPLERS = {
    "ddim": "DDIM", "dpm_solver": "DPM++ 2M", "dpm_solver_pp": "DPM++ 2M", "uni_pc": "UniPC", "plms": "PLMS",
}  # fmt: skip


def _sampler(wish: Wish, *, later: bool) -> None:
    asked = [name for name in SAMPLERS if wish.values[name]]
    for name in asked[1:]:
        wish.say(name, "unsupported", f"is given beside --{asked[0]}; leave one of them out")
    chosen = SAMPLERS[asked[0]] if asked else "DPM++ 2M" if later else "PLMS"
    wish.put("--scheduler", chosen, *asked[:1])
