"""Pictures from latents in float32, where half precision would not do: SDXL's autoencoder overflows in fp16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gesso.engines.torch.models import Models


@contextmanager
def careful(vae: Any, models: Models, notes: list[str]) -> Iterator[None]:
    """While entered, `vae`, which is held in float32, leaves autocast to decode where it has to.

    It has to where its configuration says force_upcast, as diffusers understands it: also where it says nothing; and
    from the first time on that what it decodes is finite in float32 alone, which is put into `notes`.
    """
    own = vae.decode

    def decode(latents: torch.Tensor, *args: Any, **options: Any) -> Any:
        kind = latents.device.type
        if not torch.is_autocast_enabled(kind):
            return own(latents, *args, **options)
        whole = vae.config.force_upcast or models.overflows
        if not whole:
            found = own(latents, *args, **options)
            if torch.isfinite(found[0]).all():
                return found
        with torch.autocast(kind, enabled=False):
            found = own(latents.float(), *args, **options)
        if not whole and torch.isfinite(found[0]).all():
            models.overflows = True
            notes.append(
                f"the autoencoder {_name(models)} gives numbers that are not finite in half precision: "
                "its pictures are decoded in fp32 from now on"
            )
        return found

    vae.decode = decode
    try:
        yield
    finally:
        del vae.decode


def _name(models: Models) -> str:
    """The autoencoder's folder with the one it lies in; behind a link, the one that is meant."""
    folder = (models.folder / "vae").resolve()
    return f"{folder.parent.name}/{folder.name}"
