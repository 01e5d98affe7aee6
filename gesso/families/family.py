"""A model family: facts about it, and what differs from one to another in four small functions.

One file a family. The functions are framework-blind: they touch arrays and networks only by calling them and by
attributes that diffusers, transformers and mindone name alike, so that every engine runs the same lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Family(Protocol):
    """What gesso must know to train a family."""

    name: str
    pipelines: tuple[str, ...]
    """Pipeline classes in model_index.json that belong to it."""
    denoiser: str
    """Component that is trained to remove noise."""
    autoencoder: str
    encoders: tuple[tuple[str, str], ...]
    """(text encoder, its tokenizer) components in order."""
    lora_targets: tuple[str, ...]
    """Modules that get an adapter when the recipe names none."""

    def scale(self, vae: Mapping[str, Any]) -> tuple[float, float]:
        """(scale, shift) of the latents, from the autoencoder's configuration: x0 = (z − shift)·scale."""
        ...

    def side(self, denoiser: Mapping[str, Any], vae: Mapping[str, Any]) -> int:
        """The model's own resolution in pixels, from the two configurations."""
        ...

    def condition(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """What the denoiser is given, by name, from each text encoder's output."""
        ...

    def predict(self, denoiser: Any, x: Any, c_noise: Any, cond: Mapping[str, Any]) -> Any:
        """The network's answer to c_in·x_t at conditioning time c_noise."""
        ...
