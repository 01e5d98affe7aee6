"""Adapters through peft: where they go, what they are called, what becomes trainable."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, PeftConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from gesso.arrays import Array
from gesso.engines.engine import Adapter
from gesso.engines.layers import Layer, choose
from gesso.errors import RecipeError
from gesso.formats.peft import FIXED

ADAPTER = "default"
MAGNITUDE = (".lora_magnitude_vector.weight", ".lora_magnitude_vector")
"""A parameter of DoRA as it is called inside of peft and in files."""
WRAPPED = ".base_layer"
"""What peft puts behind the name of a layer that has an adapter."""


def attach(nets: Mapping[str, nn.Module], adapter: Adapter) -> None:
    """Put adapters into the networks, by part; their values are float32, drawn from `adapter.init`, and alone learn.

    A network computes at first what it did before. RecipeError for targets and rules that mean nothing, and for sizes
    that a layer cannot have.
    """
    layers = {
        part: {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
        for part, net in nets.items()
    }
    chosen = choose(adapter, layers)
    _can_be(adapter)
    for part, own in chosen.items():
        for name, layer in own.items():
            _fits(adapter.kind, f"{part}.{name}", layers[part][name], layer)
    for part, net in nets.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(adapter.init)
            inject_adapter_in_model(_config(adapter.kind, chosen[part], adapter.factor), net, adapter_name=ADAPTER)
        net.requires_grad_(False)
        for parameter in _parameters(net, ADAPTER).values():
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        if adapter.kind == "dora":
            _measure(net)
        _drop(net, {name: layer.dropout for name, layer in chosen[part].items()})


def load(
    net: nn.Module,
    arrays: Mapping[str, Array],
    sizes: Mapping[str, tuple[int, float]],
    *,
    kind: str,
    factor: int = -1,
    name: str,
) -> None:
    """Add a trained adapter under `name`, beside those that are there, in float32.

    `arrays` has peft's names without prefix (`<module>.lora_A.weight`), `sizes` (rank, alpha) of each module.
    RecipeError where a tensor has no layer of its shape.
    """
    layers = {module: Layer(rank, alpha) for module, (rank, alpha) in sizes.items()}
    unknown = sorted(layers.keys() - {each for each, _ in net.named_modules()})
    if unknown:
        raise RecipeError(f"the adapter is for {len(unknown)} layers that this model does not have: {unknown[0]}, …")
    for layer in _tuned(net):
        if isinstance(base := layer.get_base_layer(), nn.Conv2d):
            layer.groups = base.groups  # peft asks it of what it wraps, which now is an adapter of another kind
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")  # several adapters are meant
        inject_adapter_in_model(_config(kind, layers, factor), net, adapter_name=name)
    own = _parameters(net, name)
    wrong = own.keys() ^ arrays.keys() or {each for each in own if own[each].shape != arrays[each].shape}
    if wrong:
        raise RecipeError(f"the adapter has {len(wrong)} tensors that fit no layer of this model: {min(wrong)}, …")
    for each, parameter in own.items():
        parameter.data = torch.from_numpy(arrays[each]).to(parameter.device, torch.float32, copy=True)
    for layer in _tuned(net):
        layer.set_adapter(list(layer.r))
    net.requires_grad_(False)


@contextmanager
def switched_off(nets: Iterable[nn.Module]) -> Iterator[None]:
    """The networks without any of their adapters."""
    layers = [module for net in nets for module in _tuned(net)]
    before = [layer.disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, off in zip(layers, before, strict=True):
            layer._disable_adapters = off


def public_name(name: str) -> str:
    """A parameter's name as files have it: without the adapter's own name."""
    name = f"{name}.".replace(f".{ADAPTER}.", ".").removesuffix(".")
    return name.replace(*MAGNITUDE)


def _config(kind: str, layers: Mapping[str, Layer], factor: int) -> PeftConfig:
    """peft's configuration for exactly these layers, each with its own rank and alpha."""
    first = next(iter(layers.values()))
    common: dict[str, Any] = {"r": first.rank, "target_modules": "|".join(map(re.escape, layers))}
    ranks = {f"^{re.escape(name)}": layer.rank for name, layer in layers.items() if layer.rank != first.rank}
    alphas = {f"^{re.escape(name)}": layer.alpha for name, layer in layers.items() if layer.alpha != first.alpha}
    if kind == "oft":
        return OFTConfig(**common, **FIXED[kind])
    common |= {"rank_pattern": ranks, "alpha_pattern": alphas}
    if kind == "loha":
        return LoHaConfig(alpha=first.alpha, **common, **FIXED[kind])
    if kind == "lokr":
        return LoKrConfig(alpha=first.alpha, decompose_factor=factor, rank_dropout_scale=True, **common, **FIXED[kind])
    return LoraConfig(lora_alpha=first.alpha, init_lora_weights="gaussian", use_dora=kind == "dora", **common)


def _can_be(adapter: Adapter) -> None:
    """RecipeError for settings that a kind does not have."""
    if adapter.kind != "oft":
        return
    sizes = [name for rule in adapter.rules for name in ("rank", "alpha") if getattr(rule, name) is not None]
    if sizes:
        raise RecipeError(
            f"[[rules]] give {sizes[0]}, but peft's OFT has one number of blocks for all layers",
            todo="rules of an oft may only skip layers",
        )
    if adapter.alpha != adapter.rank:
        raise RecipeError("adapter.alpha has no meaning for oft: a rotation cannot be scaled", todo="leave it out")
    if adapter.dropout or any(rule.dropout for rule in adapter.rules):
        raise RecipeError("peft's OFT applies no dropout", todo="set adapter.dropout = 0")


def _fits(kind: str, name: str, module: nn.Linear | nn.Conv2d, layer: Layer) -> None:
    """RecipeError for a size that the layer cannot have."""
    out, width = module.weight.shape[0], math.prod(module.weight.shape[1:])
    if kind == "oft":
        _turns(name, module, width, layer.rank)
    elif kind != "lokr" and layer.rank > min(out, width):
        raise RecipeError(
            f"rank {layer.rank} is more than the layer {name} has: its weight is {out} × {width}",
            todo=f"lower adapter.rank, or add a rule that gives this layer a rank of {min(out, width)} at the most",
        )
    # peft's rows are scaled up by the share that is kept, which must not be none of them.
    if kind in ("loha", "lokr") and layer.dropout**out > 1e-9:
        raise RecipeError(
            f"dropout {layer.dropout:g} would at times leave out all {out} rows of the layer {name}",
            todo="lower the dropout, or add a rule that gives this layer none",
        )


def _turns(name: str, module: nn.Linear | nn.Conv2d, width: int, blocks: int) -> None:
    if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
        raise RecipeError(
            f"oft cannot go on the layer {name}: peft turns the patches of a convolution of "
            f"{module.kernel_size[0]} × {module.kernel_size[1]} so that they no longer make up the picture",
            todo="choose layers that are linear or 1 × 1, or another kind of adapter",
        )
    if width % blocks or width == blocks:
        fitting = [count for count in range(1, width) if width % count == 0]
        near = sorted(sorted(fitting, key=lambda count: abs(count - blocks))[:2])
        raise RecipeError(
            f"oft cannot cut the {width} inputs of the layer {name} into {blocks} blocks of more than one",
            todo=f"set adapter.rank to a number that divides the width of every layer; for this one {near} are near",
        )


def _measure(net: nn.Module) -> None:
    """DoRA's magnitudes from float32 weights, as its forward pass measures them; peft's own are as coarse as bf16."""
    for layer in _tuned(net):
        weight = layer.get_base_layer().weight.float()
        magnitude = layer.lora_magnitude_vector[ADAPTER]
        magnitude.weight.data = magnitude.get_weight_norm(weight, torch.zeros_like(weight), 1.0)


def _drop(net: nn.Module, dropout: Mapping[str, float]) -> None:
    """Dropout of each layer: of a LoRA's inputs, of the rows of the others' product."""
    for name, share in dropout.items():
        layer: Any = net.get_submodule(name)
        if share and hasattr(layer, "lora_dropout"):
            layer.lora_dropout[ADAPTER] = nn.Dropout(share)
        elif share:
            layer.rank_dropout[ADAPTER] = share


def _tuned(net: nn.Module) -> list[Any]:
    return [module for module in net.modules() if isinstance(module, BaseTunerLayer)]


def _parameters(net: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """The parameters of one adapter, by peft's names without the adapter's."""
    found: dict[str, nn.Parameter] = {}
    for name, layer in net.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        for side in layer.adapter_layer_names:
            own = getattr(layer, side)
            if adapter not in own:
                continue
            plain = f"{name.replace(WRAPPED, '')}.{side}"
            if isinstance(own[adapter], nn.Parameter):
                found[plain] = own[adapter]
            else:
                found |= {f"{plain}.{inner}": value for inner, value in own[adapter].named_parameters()}
    return {name.replace(*MAGNITUDE): value for name, value in found.items()}
