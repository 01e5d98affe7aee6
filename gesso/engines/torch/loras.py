"""LoRAs and other adapters from files, put into the loaded networks for drawing."""

from __future__ import annotations

from pathlib import Path

from gesso.engines.torch import adapters
from gesso.engines.torch.models import Models
from gesso.errors import RecipeError
from gesso.families.family import Family
from gesso.formats import adapter as files
from gesso.formats import lora


def add(models: Models, family: Family, path: Path, *, name: str, strength: float) -> None:
    """Put adapters (a LoRA file, or a run's folder) into the parts they are for, beside those already there.

    `strength` multiplies alpha, as diffusers' set_adapters does. RecipeError where they fit no part of the model, which
    `adapter.fit` finds out before, and for an OFT with another strength than 1.
    """
    arrays, config = files.read(path)
    if config.kind == "oft" and strength != 1.0:
        raise RecipeError(files.UNSCALABLE, where=str(path), todo="leave its strength at 1")
    parts = {key.split(".", 1)[0] for key in arrays}
    foreign = sorted(parts - {family.denoiser, *(encoder for encoder, _ in family.encoders)})
    if foreign:
        raise RecipeError(
            f"the adapter is also for {', '.join(foreign)}, which this model does not have", where=str(path)
        )
    for part in sorted(parts):
        net = models.get(part)
        wrapped = hasattr(net, "text_model")  # transformers 5 has dropped this level of names, LoRA files keep it
        own = {
            lora.named(part, key.removeprefix(f"{part}."), wrapped=wrapped): value
            for key, value in arrays.items()
            if key.startswith(f"{part}.")
        }
        sizes = {
            lora.named(part, module.removeprefix(f"{part}."), wrapped=wrapped): (rank, alpha * strength)
            for module, (rank, alpha) in files.sizes(arrays, config).items()
            if module.startswith(f"{part}.")
        }
        adapters.load(net, own, sizes, kind=config.kind, factor=config.factor, name=name)
