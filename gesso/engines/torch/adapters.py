"""Adapters through peft: where they go, what they are called, what becomes trainable."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from torch import nn

from gesso.arrays import Array
from gesso.engines.engine import Adapter
from gesso.errors import RecipeError

ADAPTER = "default"


def attach(net: nn.Module, adapter: Adapter) -> None:
    """Put the adapter into `net`, its values drawn from `adapter.init` and float32."""
    layers = [name for name, module in net.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    chosen = sorted({name for target in adapter.targets for name in matching(target, layers)})
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=chosen,
        init_lora_weights="gaussian",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(adapter.init)
        inject_adapter_in_model(config, net, adapter_name=ADAPTER)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def matching(target: str, layers: Iterable[str]) -> list[str]:
    """The layers that a target means: those whose name ends with it, or matches it whole as a regular expression."""
    layers = list(layers)
    found = [name for name in layers if name == target or name.endswith("." + target)]
    if not found:
        try:
            found = [name for name in layers if re.fullmatch(target, name)]
        except re.error as error:
            raise RecipeError(f'adapter.targets: "{target}" is not a regular expression: {error}') from error
    if not found:
        endings = sorted({re.sub(r"^.*?([a-z_]+(?:\.\d+)?)$", r"\1", name) for name in layers})
        raise RecipeError(
            f'adapter.targets: "{target}" matches no layer of the denoiser',
            todo="layers end in " + ", ".join(endings[:20]),
        )
    return found


def load(net: nn.Module, arrays: dict[str, Array], *, rank: int, alpha: float, targets: list[str], name: str) -> None:
    """Add a trained adapter under `name`; `arrays` has peft's names without prefix (`<module>.lora_A.weight`)."""
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets)
    inject_adapter_in_model(config, net, adapter_name=name)
    report = set_peft_model_state_dict(net, {key: torch.from_numpy(value) for key, value in arrays.items()}, name)
    if report.unexpected_keys:
        raise RecipeError(f"the adapter has {len(report.unexpected_keys)} tensors that fit no layer of this model")


def public_name(name: str) -> str:
    """A parameter's name as files have it: without the adapter's own name."""
    return name.replace(f".{ADAPTER}.", ".")
