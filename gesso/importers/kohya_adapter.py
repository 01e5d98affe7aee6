"""Networks of kohya's scripts and of LyCORIS as gesso's adapters: kind, size, and the layers that they sit on."""

from __future__ import annotations

from typing import Any

from gesso.importers.draft import Draft
from gesso.importers.kohya_flags import Script
from gesso.importers.rows import read

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TRANSFORMER = (*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
"""Every linear layer and 1 x 1 convolution of the denoiser's transformer blocks."""
RESNET = ("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv")
LARGE = r"unet\..*\.(conv1|conv2|downsamplers\.0\.conv|upsamplers\.0\.conv)"
"""The 3 x 3 convolutions among them."""
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
MODULES = {"networks.lora": "lora", "networks.loha": "loha", "networks.lokr": "lokr", "lycoris.kohya": "lycoris"}
ALGORITHMS = {"lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr"}
PRESETS = {
    "full": ((*TRANSFORMER, *RESNET), TEXT),
    "attn-mlp": (TRANSFORMER, TEXT),
    "attn-only": (ATTENTION, TEXT[:4]),
}
"""LyCORIS' presets: layers of the denoiser, layers of the text encoders."""
ALONE = ("network_module", "network_dim", "network_alpha", "network_args")


def put(draft: Draft, script: Script) -> None:
    """[adapter], [[rules]] and [[tokens]]."""
    if script.method == "full":
        draft.put("adapter.kind", "none", note=f"{draft.source} trains the weights themselves")
        return
    if script.method == "words":
        _word(draft)
        return
    values = draft.values
    module = str(values["network_module"] or "networks.lora")
    options = _options(draft)
    kind = MODULES.get(module)
    if kind is None:
        draft.say("network_module", "unsupported", f"gesso has no {module}; use one of {', '.join(MODULES)}")
        for name in ALONE:
            draft.say(name, "harmless", "belongs to a network that gesso does not have")
        return
    preset = ""
    if kind == "lycoris":
        algorithm = str(options.pop("algo", "lora")).lower()
        preset = str(options.pop("preset", "full"))
        kind = ALGORITHMS.get(algorithm, "")
        if not kind or preset not in PRESETS:
            wrong = f"algo={algorithm}" if not kind else f"preset={preset}"
            known = ", ".join(PRESETS if kind else ALGORITHMS)
            draft.say("network_args", "unsupported", f"gesso has no {wrong}; use one of {known}")
            kind = kind or "lora"
    if _on(options.pop("dora_wd", False)):
        if kind != "lora":
            draft.say("network_args", "unsupported", f"gesso has DoRA on lora, not on {kind}; leave dora_wd out")
        kind = "dora" if kind == "lora" else kind
    draft.put("adapter.kind", kind, "network_module", "network_args")
    draft.put("adapter.rank", values["network_dim"], "network_dim")
    # sd-scripts takes an alpha of 0 for the rank.
    draft.put("adapter.alpha", values["network_alpha"] or values["network_dim"], "network_alpha")
    _layers(draft, kind, preset, options)
    for option, value in options.items():
        if value not in ("0", "0.0", "False", "false", "None", ""):
            draft.say("network_args", "unsupported", f"gesso has no {option} of a network; leave {option}={value} out")
    draft.say("network_args", "harmless", "asks for nothing")


def _options(draft: Draft) -> dict[str, str]:
    pairs = (each.partition("=") for each in draft.values["network_args"] or ())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _on(value: Any) -> bool:
    try:
        return bool(read("switch", value))
    except ValueError:
        return False


def _layers(draft: Draft, kind: str, preset: str, options: dict[str, str]) -> None:
    values = draft.values
    targets, text = PRESETS.get(preset, (TRANSFORMER, TEXT))
    names = ("network_module", "network_args")
    rank, alpha = options.pop("conv_dim", None), options.pop("conv_alpha", None)
    convolutions = preset == "full" or (not preset and rank is not None)
    if convolutions and not preset:
        targets = (*targets, *RESNET)
    draft.put("adapter.targets", list(targets), *names, note="the layers that sd-scripts chooses")
    draft.put("adapter.text_targets", list(text), *names)
    if kind == "lokr" and "factor" in options:
        factor = options.pop("factor")
        draft.put("adapter.factor", _number(draft, factor, -1), "network_args")
    if not convolutions or (rank is None and alpha is None):
        return
    rank_number = _number(draft, rank, values["network_dim"])
    # Without conv_alpha sd-scripts takes 1, LyCORIS the network's.
    alpha_number = _number(draft, alpha, values["network_alpha"] if preset else 1.0)
    if rank_number == 0:
        draft.put("rules.0.match", LARGE, "network_args")
        draft.put("rules.0.skip", True, "network_args")
    elif (rank_number, alpha_number) != (values["network_dim"], values["network_alpha"]):
        draft.put("rules.0.match", LARGE, "network_args")
        draft.put("rules.0.rank", rank_number, "network_args")
        draft.put("rules.0.alpha", alpha_number or rank_number, "network_args")


def _number(draft: Draft, text: Any, other: Any) -> Any:
    try:
        return other if text is None else read("number", text)
    except ValueError as error:
        draft.say("network_args", "unsupported", f"{text} {error}")
        return other


def _word(draft: Draft) -> None:
    values = draft.values
    draft.put("adapter.kind", "ti", note=f"{draft.source} trains a word")
    if not values["token_string"]:
        draft.stop("which word is to be learned? give token_string", "token_string")
        return
    draft.put("tokens.0.name", values["token_string"], "token_string")
    draft.put("tokens.0.init", values["init_word"] or "", "init_word")
    draft.put("tokens.0.vectors", values["num_vectors_per_token"], "num_vectors_per_token")
