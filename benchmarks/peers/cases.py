"""The methods compared: what diffusers' script is told, and what gesso's recipe says, for the same training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PROMPT, CLASS_PROMPT, WORD = "a photo of a sks toy", "a photo of a toy", "<sks>"
RANK = 16

TEXT_TO_IMAGE, DREAMBOOTH = "text_to_image/train_text_to_image", "dreambooth/train_dreambooth"
LORA = {"adapter": {"kind": "lora", "rank": RANK}}
FULL = {"adapter": {"kind": "none"}}
RANKED = ("--rank", str(RANK))
PRIOR = {"prior": {"prompt": CLASS_PROMPT}}
WITH_PRIOR = ("--with_prior_preservation", "--class_prompt", CLASS_PROMPT)
TOKEN = {"tokens": [{"name": WORD, "init": "toy"}]}
MIN_SNR = {"objective": {"weighting": "min_snr"}}
BOTH = {"model": {"train": ["unet", "text_encoder"]}}
ALL_THREE = {"model": {"train": ["unet", "text_encoder", "text_encoder_2"]}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One training. `recipe` and `flags` hold what is said of it besides model, pictures, batch, steps and rate."""

    name: str
    script: str
    """Below examples/, without .py."""
    flags: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    """What is changed in the model's scheduler configuration."""
    batch: int = 4
    lr: float = 1e-4
    precomputes: bool = False
    """The script encodes every picture before it begins, once."""
    speed: bool = False
    """Whether its speed is measured too."""
    fault: str = ""
    """Why the losses are not equal: what the script does wrong. "" where they must be."""

    @property
    def model(self) -> str:
        return "sdxl" if self.script.endswith("_sdxl") else "sd"

    @property
    def captioned(self) -> bool:
        return self.script.startswith(TEXT_TO_IMAGE)

    @property
    def prior(self) -> bool:
        return "prior" in self.recipe


SD = (
    Case(name="all weights", script=TEXT_TO_IMAGE, recipe=FULL, lr=1e-5, speed=True),
    Case(
        name="all weights, Min-SNR",
        script=TEXT_TO_IMAGE,
        flags=("--snr_gamma", "5"),
        recipe={**FULL, **MIN_SNR},
        lr=1e-5,
    ),
    Case(
        name="all weights, v-prediction, Min-SNR",
        script=TEXT_TO_IMAGE,
        flags=("--prediction_type", "v_prediction", "--snr_gamma", "5"),
        recipe={**FULL, "objective": {"prediction": "v_prediction", "weighting": "min_snr"}},
        lr=1e-5,
    ),
    Case(
        name="all weights, DREAM",
        script=TEXT_TO_IMAGE,
        flags=("--dream_training",),
        recipe={**FULL, "objective": {"dream": True}},
        lr=1e-5,
    ),
    Case(name="LoRA", script=f"{TEXT_TO_IMAGE}_lora", flags=RANKED, recipe=LORA, speed=True),
    Case(
        name="LoRA, Min-SNR",
        script=f"{TEXT_TO_IMAGE}_lora",
        flags=(*RANKED, "--snr_gamma", "5"),
        recipe={**LORA, **MIN_SNR},
    ),
    Case(name="DreamBooth", script=DREAMBOOTH, recipe=FULL, lr=5e-6),
    Case(name="DreamBooth, prior", script=DREAMBOOTH, flags=WITH_PRIOR, recipe={**FULL, **PRIOR}, lr=5e-6, speed=True),
    Case(
        name="DreamBooth, prior, text encoder",
        script=DREAMBOOTH,
        flags=(*WITH_PRIOR, "--train_text_encoder"),
        recipe={**FULL, **PRIOR, **BOTH},
        lr=2e-6,
        speed=True,
    ),
    Case(
        name="DreamBooth, prior, Min-SNR",
        script=DREAMBOOTH,
        flags=(*WITH_PRIOR, "--snr_gamma", "5"),
        recipe={**FULL, **PRIOR, **MIN_SNR},
        lr=5e-6,
        fault="the script weighs the pictures by the SNR of the class pictures' timesteps too: 2B weights for B losses",
    ),
    Case(
        name="DreamBooth, prior, Min-SNR, batch 1",
        script=DREAMBOOTH,
        flags=(*WITH_PRIOR, "--snr_gamma", "5"),
        recipe={**FULL, **PRIOR, **MIN_SNR},
        lr=5e-6,
        batch=1,
        fault="the same fault; with one picture it goes unnoticed: the picture's loss counts the mean of both weights",
    ),
    Case(
        name="DreamBooth LoRA, prior",
        script=f"{DREAMBOOTH}_lora",
        flags=(*RANKED, *WITH_PRIOR),
        recipe={**LORA, **PRIOR},
        speed=True,
    ),
    Case(
        name="DreamBooth LoRA, prior, text encoder",
        script=f"{DREAMBOOTH}_lora",
        flags=(*RANKED, *WITH_PRIOR, "--train_text_encoder"),
        recipe={**LORA, **PRIOR, **BOTH},
        speed=True,
    ),
    Case(
        name="textual inversion",
        script="textual_inversion/textual_inversion",
        flags=("--placeholder_token", WORD, "--initializer_token", "toy", "--adam_weight_decay", "0"),
        # The script does not clip, and lets weight decay pull on the word.
        recipe={"adapter": {"kind": "ti"}, **TOKEN, "optim": {"clip": 0.0}},
        lr=5e-3,
        speed=True,
    ),
)

SDXL = (
    Case(
        name="all weights",
        script=f"{TEXT_TO_IMAGE}_sdxl",
        recipe=FULL,
        lr=1e-5,
        precomputes=True,
        speed=True,
    ),
    Case(
        name="all weights, v-prediction, Min-SNR",
        script=f"{TEXT_TO_IMAGE}_sdxl",
        flags=("--prediction_type", "v_prediction", "--snr_gamma", "5"),
        recipe={**FULL, "objective": {"prediction": "v_prediction", "weighting": "min_snr"}},
        lr=1e-5,
        precomputes=True,
    ),
    Case(name="LoRA", script=f"{TEXT_TO_IMAGE}_lora_sdxl", flags=RANKED, recipe=LORA, speed=True),
    Case(
        name="LoRA, text encoders",
        script=f"{TEXT_TO_IMAGE}_lora_sdxl",
        flags=(*RANKED, "--train_text_encoder"),
        recipe={**LORA, **ALL_THREE},
        speed=True,
    ),
    Case(
        name="DreamBooth LoRA",
        script=f"{DREAMBOOTH}_lora_sdxl",
        flags=RANKED,
        recipe=LORA,
        speed=True,
    ),
    Case(
        name="DreamBooth LoRA, EDM-style",
        script=f"{DREAMBOOTH}_lora_sdxl",
        flags=(*RANKED, "--do_edm_style_training"),
        recipe={**LORA, "objective": {"edm_style": True}},
    ),
    Case(
        name="DreamBooth LoRA, text encoders",
        script=f"{DREAMBOOTH}_lora_sdxl",
        flags=(*RANKED, "--train_text_encoder", "--text_encoder_lr", "1e-4"),
        recipe={**LORA, **ALL_THREE},
    ),
    Case(
        name="DreamBooth LoRA, prior, batch 1",
        script=f"{DREAMBOOTH}_lora_sdxl",
        flags=(*RANKED, *WITH_PRIOR),
        recipe={**LORA, **PRIOR},
        batch=1,
    ),
    Case(
        name="DreamBooth LoRA, prior",
        script=f"{DREAMBOOTH}_lora_sdxl",
        flags=(*RANKED, *WITH_PRIOR),
        recipe={**LORA, **PRIOR},
        speed=True,
        fault="the script repeats [prompt, class prompt] for pictures that lie [all pictures, all class pictures]: "
        "half of the rows get the other's prompt (with batch 1 the losses are equal)",
    ),
    Case(
        name="DreamBooth LoRA, v-prediction, Min-SNR",
        script=f"{DREAMBOOTH}_lora_sdxl",
        flags=(*RANKED, "--snr_gamma", "5"),
        recipe={**LORA, **MIN_SNR},
        scheduler={"prediction_type": "v_prediction"},
        fault="the script weighs v by min(SNR, 5)/SNR + 1 instead of min(SNR, 5)/(SNR + 1)",
    ),
)
