"""The methods compared with mindone's scripts: what is said to the script, and what gesso's recipe says."""

from __future__ import annotations

from cases import DREAMBOOTH, FULL, MIN_SNR, PRIOR, TEXT_TO_IMAGE, TOKEN, WITH_PRIOR, WORD, Case

RANK = 4
LORA = {"adapter": {"kind": "lora", "rank": RANK}}
RANKED = ("--lora_rank", str(RANK))
V = {"objective": {"prediction": "v_prediction", "weighting": "min_snr"}}

SD = (
    Case(name="all weights", script=TEXT_TO_IMAGE, recipe=FULL, batch=2, lr=1e-5, speed=True),
    Case(
        name="all weights, Min-SNR",
        script=TEXT_TO_IMAGE,
        flags=("--snr_gamma", "5"),
        recipe={**FULL, **MIN_SNR},
        batch=2,
        lr=1e-5,
    ),
    Case(
        name="all weights, v-prediction, Min-SNR",
        script=TEXT_TO_IMAGE,
        flags=("--prediction_type", "v_prediction", "--snr_gamma", "5"),
        recipe={**FULL, **V},
        batch=2,
        lr=1e-5,
    ),
    Case(name="LoRA", script=f"{TEXT_TO_IMAGE}_lora", flags=RANKED, recipe=LORA, batch=2, speed=True),
    Case(
        name="DreamBooth, prior",
        script=DREAMBOOTH,
        flags=WITH_PRIOR,
        recipe={**FULL, **PRIOR},
        batch=2,
        lr=5e-6,
    ),
    Case(
        name="DreamBooth LoRA, prior",
        script=f"{DREAMBOOTH}_lora",
        flags=(*RANKED, *WITH_PRIOR),
        recipe={**LORA, **PRIOR},
        batch=2,
    ),
    Case(
        name="textual inversion",
        script="textual_inversion/textual_inversion",
        flags=("--placeholder_token", WORD, "--initializer_token", "toy", "--adam_weight_decay", "0"),
        # The script does not clip, and lets weight decay pull on the word.
        recipe={"adapter": {"kind": "ti"}, **TOKEN, "optim": {"clip": 0.0}},
        batch=2,
        lr=5e-3,
        speed=True,
    ),
)

SDXL = (
    Case(
        name="all weights",
        script=f"{TEXT_TO_IMAGE}_sdxl",
        recipe=FULL,
        batch=2,
        lr=1e-5,
        precomputes=True,
        speed=True,
    ),
    Case(
        name="all weights, v-prediction, Min-SNR",
        script=f"{TEXT_TO_IMAGE}_sdxl",
        flags=("--prediction_type", "v_prediction", "--snr_gamma", "5"),
        recipe={**FULL, **V},
        batch=2,
        lr=1e-5,
        precomputes=True,
    ),
    Case(name="LoRA", script=f"{TEXT_TO_IMAGE}_lora_sdxl", flags=RANKED, recipe=LORA, batch=2, speed=True),
    Case(name="DreamBooth LoRA", script=f"{DREAMBOOTH}_lora_sdxl", flags=RANKED, recipe=LORA, batch=2, speed=True),
    Case(
        name="DreamBooth LoRA, prior",
        script=f"{DREAMBOOTH}_lora_sdxl",
        flags=(*RANKED, *WITH_PRIOR),
        recipe={**LORA, **PRIOR},
        batch=2,
        fault="the script repeats [prompt, class prompt] for pictures that lie [all pictures, all class pictures]: "
        "half of the rows get the other's prompt",
    ),
    Case(
        name="DreamBooth LoRA, v-prediction, Min-SNR",
        script=f"{DREAMBOOTH}_lora_sdxl",
        flags=(*RANKED, "--snr_gamma", "5"),
        recipe={**LORA, **MIN_SNR},
        scheduler={"prediction_type": "v_prediction"},
        batch=2,
        fault="the script weighs v by min(SNR, 5)/SNR + 1 instead of min(SNR, 5)/(SNR + 1)",
    ),
)
