"""The seeds' commands as they are printed, `gesso` for `python`, on tiny models by the same names; then what they draw.

Only sizes are changed (seeds_parts.SMALL): resolution, steps, precision, how often is saved, how many are drawn.
"""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from runs import events, pictures
from safetensors.numpy import load_file
from seeds_parts import ONEPIECE, PLAYGROUND, REFINER, SD, VAE, XL, Machine, dog, machine, onepiece, small
from torch_runs import pixels

ONEPIECE_RUN = """\
export MODEL_NAME="CompVis/stable-diffusion-v1-4"
export DATASET_NAME="YaYaB/onepiece-blip-captions"

python train_text_to_image.py \\
  --pretrained_model_name_or_path=$MODEL_NAME \\
  --dataset_name=$DATASET_NAME \\
  --resolution=512 --center_crop --random_flip \\
  --train_batch_size=1 \\
  --max_train_steps=15000 \\
  --learning_rate=1e-05 \\
  --max_grad_norm=1 \\
  --mixed_precision="fp16" \\
  --lr_scheduler="constant" --lr_warmup_steps=0 \\
  --output_dir="sd-onepiece-model-$(date +%Y%m%d%H%M%S)"
"""
FOLDER_RUN = ONEPIECE_RUN.replace('DATASET_NAME="YaYaB/onepiece-blip-captions"', 'TRAIN_DIR="path_to_your_dataset"')
FOLDER_RUN = FOLDER_RUN.replace("--dataset_name=$DATASET_NAME", "--train_data_dir=$TRAIN_DIR")
FOLDER_RUN = FOLDER_RUN.replace("sd-onepiece-model", "sd-your-dataset-model")
DOG_RUN = """\
export MODEL_NAME="stabilityai/stable-diffusion-xl-base-1.0"
export INSTANCE_DIR="dog"
export OUTPUT_DIR="lora-trained-xl"
export VAE_PATH="madebyollin/sdxl-vae-fp16-fix"

python train_dreambooth_lora_sdxl.py \\
  --pretrained_model_name_or_path=$MODEL_NAME  \\
  --pretrained_vae_model_name_or_path=$VAE_PATH \\
  --instance_data_dir=$INSTANCE_DIR \\
  --output_dir=$OUTPUT_DIR \\
  --mixed_precision="fp16" \\
  --instance_prompt="a photo of sks dog" \\
  --resolution=1024 \\
  --train_batch_size=1 \\
  --gradient_accumulation_steps=4 \\
  --learning_rate=1e-5 \\
  --lr_scheduler="constant" \\
  --lr_warmup_steps=0 \\
  --max_train_steps=500 \\
  --validation_prompt="A photo of sks dog in a bucket" \\
  --validation_epochs=25 \\
  --seed="0"
"""
PLAYGROUND_RUN = """\
python train_dreambooth_lora_sdxl.py \\
  --pretrained_model_name_or_path="playgroundai/playground-v2.5-1024px-aesthetic"  \\
  --instance_data_dir="dog" \\
  --output_dir="dog-playground-lora" \\
  --mixed_precision="fp16" \\
  --instance_prompt="a photo of sks dog" \\
  --resolution=1024 \\
  --train_batch_size=1 \\
  --gradient_accumulation_steps=4 \\
  --learning_rate=1e-4 \\
  --lr_scheduler="constant" \\
  --lr_warmup_steps=0 \\
  --max_train_steps=500 \\
  --validation_prompt="A photo of sks dog in a bucket" \\
  --validation_epochs=25 \\
  --seed="0"
"""
VANILLA_XL = """\
export MODEL_NAME="stabilityai/stable-diffusion-xl-base-1.0"
export VAE_NAME="madebyollin/sdxl-vae-fp16-fix"
export DATASET_NAME="YaYaB/onepiece-blip-captions"

python train_text_to_image_sdxl.py \\
  --pretrained_model_name_or_path=$MODEL_NAME \\
  --pretrained_vae_model_name_or_path=$VAE_NAME \\
  --dataset_name=$DATASET_NAME \\
  --enable_xformers_memory_efficient_attention \\
  --resolution=512 --center_crop --random_flip \\
  --proportion_empty_prompts=0.2 \\
  --train_batch_size=1 \\
  --max_train_steps=10000 \\
  --learning_rate=1e-06 --lr_scheduler="constant" --lr_warmup_steps=0 \\
  --mixed_precision="fp16" \\
  --validation_prompt="a man in a green coat" --validation_epochs 5 \\
  --checkpointing_steps=5000 \\
  --output_dir="sdxl-onepiece-model-$(date +%Y%m%d%H%M%S)"
"""
LORA_XL = """\
export MODEL_NAME="stabilityai/stable-diffusion-xl-base-1.0"
export DATASET_NAME="YaYaB/onepiece-blip-captions"

python train_text_to_image_lora_sdxl.py \\
  --pretrained_model_name_or_path=$MODEL_NAME \\
  --dataset_name=$DATASET_NAME --caption_column="text" \\
  --resolution=1024 --center_crop --random_flip \\
  --train_batch_size=1 \\
  --num_train_epochs=2 --checkpointing_steps=500 \\
  --learning_rate=1e-04 --lr_scheduler="constant" --lr_warmup_steps=0 \\
  --mixed_precision="fp16" \\
  --seed=42 \\
  --output_dir="sdxl-onepiece-lora"
"""


INFERENCE = """\
from huggingface_hub.repocard import RepoCard
from mindone.diffusers import DiffusionPipeline, StableDiffusionXLImg2ImgPipeline
import mindspore as ms
import numpy as np

lora_model_id = "me/lora-trained-xl"
card = RepoCard.load(lora_model_id)
base_model_id = card.data.to_dict()["base_model"]

# Load the base pipeline and load the LoRA parameters into it.
pipe = DiffusionPipeline.from_pretrained(base_model_id, mindspore_dtype=ms.float16)
pipe.load_lora_weights(lora_model_id)
image = pipe("A picture of a sks dog in a bucket", num_inference_steps=25)[0][0]
image.save("sks_dog.png")

# Load the refiner.
refiner = StableDiffusionXLImg2ImgPipeline.from_pretrained(
    "stabilityai/stable-diffusion-xl-refiner-1.0", mindspore_dtype=ms.float16, use_safetensors=True, variant="fp16"
)

prompt = "A picture of a sks dog in a bucket"
generator = np.random.Generator(np.random.PCG64(seed=0))

# Run inference.
image = pipe(prompt=prompt, output_type="latent", generator=generator)[0][0]
image = refiner(prompt=prompt, image=image[None, :], generator=generator)[0][0]
image.save("refined_sks_dog.png")
"""


@pytest.fixture(scope="module")
def home(blank: Path, blank_xl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gesso.engines.torch.demo import blank_xl as xl

    folder = tmp_path_factory.mktemp("home")
    made = machine(folder, folder / "work")
    made.publish(SD, blank)
    made.publish(XL, blank_xl)
    made.publish(VAE, blank_xl / "vae")
    made.publish(ONEPIECE, onepiece(tmp_path_factory.mktemp("onepiece")), "datasets")
    for name, kind in ((PLAYGROUND, {"edm": True}), (REFINER, {"refiner": True})):
        other = tmp_path_factory.mktemp("other")
        xl.write(other, **kind)
        if name == REFINER:  # its example asks for the files of half precision
            for path in other.rglob("*.safetensors"):
                path.rename(path.with_suffix(".fp16.safetensors"))
        made.publish(name, other)
    return folder


@pytest.fixture
def here(home: Path, tmp_path: Path) -> Machine:
    made = machine(home, tmp_path / "work")
    dog(made.work / "dog")
    return made


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def quiet(pipe: DiffusionPipeline) -> DiffusionPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def differ(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return any(not torch.equal(value, other[name]) for name, value in one.items())


def test_s0_onepiece(here: Machine) -> None:
    said = here.shell(small(ONEPIECE_RUN)).stdout
    assert "# --learning_rate" in said
    model_path = only(here.work, "sd-onepiece-model-*")
    assert [event["step"] for event in events(model_path, "stepped")] == [1, 2]
    assert only(model_path, "logs/events.out.tfevents.*").stat().st_size > 100
    pipe = quiet(StableDiffusionPipeline.from_pretrained(model_path))
    image = pipe(prompt="a man in a straw hat", num_inference_steps=2).images[0]
    assert np.asarray(image).shape == (64, 64, 3)
    unet = UNet2DConditionModel.from_pretrained(str(model_path) + "/checkpoint-2/unet")
    again = quiet(StableDiffusionPipeline.from_pretrained(here.model(SD), unet=unet))
    assert not differ(pipe.unet.state_dict(), again.unet.state_dict())
    before = UNet2DConditionModel.from_pretrained(here.model(SD) / "unet")
    assert differ(pipe.unet.state_dict(), before.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("more", ["", " --snr_gamma=5.0"])
def test_s0_own_files_and_min_snr(here: Machine, more: str) -> None:
    pictures(here.work / "path_to_your_dataset")
    here.shell(small(FOLDER_RUN).replace(" --center_crop", f" --center_crop{more}"))
    model_path = only(here.work, "sd-your-dataset-model-*")
    recipe = tomllib.loads((model_path / "recipe.toml").read_text("utf-8"))
    assert recipe.get("objective", {}).get("weighting", "uniform") == ("min_snr" if more else "uniform")
    quiet(StableDiffusionPipeline.from_pretrained(model_path))(prompt="a man in a straw hat", num_inference_steps=1)


@pytest.mark.slow
def test_s2_vanilla(here: Machine) -> None:
    here.shell(small(VANILLA_XL).replace(" --center_crop", " --center_crop --num_validation_images=1"))
    model_path = only(here.work, "sdxl-onepiece-model-*")
    assert events(model_path, "sampled")
    here.python(
        "from mindone.diffusers import DiffusionPipeline, EulerAncestralDiscreteScheduler\n"
        "import mindspore as ms\n"
        f"pipe = DiffusionPipeline.from_pretrained({model_path.name!r}, mindspore_dtype=ms.float16)\n"
        'prompt = "The boy rides a horse in space"\n'
        "image = pipe(prompt, num_inference_steps=3, guidance_scale=7.5)[0][0]\n"
        'image.save("The-boy-rides-a-horse-in-space.png")\n'
        "pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)\n"
        "image = pipe(prompt, num_inference_steps=3, guidance_scale=7.5)[0][0]\n"
        'image.save("The-boy-rides-a-horse-in-space.png")\n'
    )
    assert pixels(here.work / "The-boy-rides-a-horse-in-space.png").shape == (64, 64, 3)


@pytest.mark.slow
@pytest.mark.parametrize("more", ["", " --train_text_encoder"])
def test_s2_lora(here: Machine, more: str) -> None:
    here.shell(small(LORA_XL).replace(" --center_crop", f" --center_crop{more}"))
    out = here.work / "sdxl-onepiece-lora"
    parts = {name.partition(".")[0] for name in load_file(out / "pytorch_lora_weights.safetensors")}
    assert parts == ({"unet", "text_encoder", "text_encoder_2"} if more else {"unet"})
    steps = max(event["step"] for event in events(out, "stepped"))
    for folder in (out, out / f"checkpoint-{steps}"):
        pipe = quiet(DiffusionPipeline.from_pretrained(here.model(XL)))
        pipe.load_lora_weights(folder)
        pipe("a lion sitting on the ground", num_inference_steps=1)


def test_s3_dog_and_what_its_card_leads_to(here: Machine) -> None:
    here.shell(small(DOG_RUN).replace("  --seed", "  --num_validation_images=1 --seed"))
    out = here.work / "lora-trained-xl"
    assert events(out, "started")[0]["pictures"] == 4  # .cache, which the download leaves, is none
    assert events(out, "started")[0]["batch"] == 4
    here.publish("me/lora-trained-xl", out)  # the card as the library fetches it, and offline the LoRA beside it
    shutil.copytree(out, here.work / "me" / "lora-trained-xl")
    here.python(INFERENCE)
    assert pixels(here.work / "sks_dog.png").shape == (64, 64, 3)
    assert pixels(here.work / "refined_sks_dog.png").shape == (64, 64, 3)
    pipe = quiet(DiffusionPipeline.from_pretrained(here.model(XL)))
    pipe.load_lora_weights(out / "checkpoint-2")


@pytest.mark.slow
@pytest.mark.parametrize("more", ["--train_text_encoder", "--do_edm_style_training"])
def test_s3_variants(here: Machine, more: str) -> None:
    here.shell(small(DOG_RUN).replace("  --seed", f"  {more} --num_validation_images=1 --seed"))
    out = here.work / "lora-trained-xl"
    parts = {name.partition(".")[0] for name in load_file(out / "pytorch_lora_weights.safetensors")}
    assert parts == ({"unet", "text_encoder", "text_encoder_2"} if "encoder" in more else {"unet"})
    pipe = quiet(DiffusionPipeline.from_pretrained(here.model(XL)))
    pipe.load_lora_weights(out)
    pipe("A picture of a sks dog in a bucket", num_inference_steps=1)


@pytest.mark.slow
def test_s3_playground(here: Machine) -> None:
    here.shell(small(PLAYGROUND_RUN).replace("  --seed", "  --num_validation_images=1 --seed"))
    pipe = quiet(DiffusionPipeline.from_pretrained(here.model(PLAYGROUND)))
    assert "EDM" in type(pipe.scheduler).__name__
    pipe.load_lora_weights(here.work / "dog-playground-lora")
    pipe("A picture of a sks dog in a bucket", num_inference_steps=2)


def test_s3_min_snr_and_edm_do_not_mix(here: Machine) -> None:
    done = here.shell(small(DOG_RUN).replace("  --seed", "  --do_edm_style_training --snr_gamma=5 --seed"), code=2)
    assert "snr_gamma" in done.stderr
    assert not (here.work / "lora-trained-xl").exists()
