"""The commands of the seeds that are not diffusers': captions to LoRA, DreamBooth from a MindSpore checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from caption_parts import blip2
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from export_parts import second
from runs import events
from safetensors.numpy import load_file
from seeds_parts import OLDER, SECOND, Machine, drawings, machine
from torch_runs import pixels

from gesso.formats.convert import Request, convert

LORA_SH = """\
export MODEL_NAME="runwayml/stable-diffusion-v1-5"
export DATASET_DISK_PATH="datasets/Text2Image_example"
export OUTPUT_DIR="txt2img-finetune-lora"

accelerate launch --mixed_precision="no" train_text_to_image_lora.py \\
  --pretrained_model_name_or_path=$MODEL_NAME \\
  --dataset_from_disk \\
  --dataset_disk_path=$DATASET_DISK_PATH \\
  --validation_prompts_dir="validation_prompts.txt" \\
  --num_validation_images=1 --validation_epochs=50 \\
  --resolution=64 --random_flip \\
  --train_batch_size=1 \\
  --num_train_epochs=100 --max_train_steps=2 \\
  --gradient_accumulation_steps=8 --checkpointing_steps=2 \\
  --learning_rate=1e-04 --lr_scheduler="constant" --lr_warmup_steps=0 \\
  --use_8bit_adam \\
  --seed=42 \\
  --output_dir=$OUTPUT_DIR
"""
DREAMBOOTH = """\
export GLOG_v=3
export SD_VERSION="2.0"
device_id=0
export RANK_SIZE=1
export DEVICE_ID=$device_id

output_path=output/
task_name=txt2img
rm -rf ${output_path:?}/${task_name:?}
mkdir -p ${output_path:?}/${task_name:?}
export MS_COMPILER_CACHE_PATH=${output_path:?}/${task_name:?}; \\

instance_data_dir=dreambooth/dataset/dog
instance_prompt="a photo of sks dog"
class_data_dir=temp_class_images/dog
class_prompt="a photo of a dog"

pretrained_model_path=models/
pretrained_model_file=sd_v2_base-57526ee4.ckpt
train_config_file=configs/train_dreambooth_sd_v2.json

image_size=64
train_batch_size=1

python train_dreambooth.py \\
    --mode=0 \\
    --use_parallel=False \\
    --instance_data_dir=$instance_data_dir \\
    --instance_prompt="$instance_prompt"  \\
    --class_data_dir=$class_data_dir \\
    --class_prompt="$class_prompt" \\
    --num_class_images=2 --sampling_steps=2 --train_data_repeats=1 \\
    --train_config=$train_config_file \\
    --output_path=$output_path/$task_name \\
    --pretrained_model_path=$pretrained_model_path \\
    --pretrained_model_file=$pretrained_model_file \\
    --image_size=$image_size \\
    --train_batch_size=$train_batch_size \\
    --epochs=1 \\
    --start_learning_rate=2e-6 \\
    --train_text_encoder=True \\
    # --train_text_encoder=False \\
"""
DRAWING = """\
python text_to_image.py \\
    --prompt "a sks dog on the hill" \\
    --output_path vis/output/dir \\
    --H 64 --W 64 --n_iter 1 --n_samples 2 --sampling_steps 8 \\
    --config configs/train_dreambooth_sd_v2.yaml \\
    --ckpt_path output/txt2img
"""


@pytest.fixture(scope="module")
def home(blank: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    made = machine(folder, folder / "work")
    made.publish(OLDER, blank)
    made.publish(SECOND, second(blank, tmp_path_factory.mktemp("second") / "sd2"))
    made.publish("Salesforce/blip2-opt-6.7b", blip2(tmp_path_factory.mktemp("blip2") / "blip2"))
    return folder


@pytest.fixture
def here(home: Path, tmp_path: Path) -> Machine:
    return machine(home, tmp_path / "work")


def data_set(here: Machine) -> None:
    pictures = drawings(here.work / "images")
    told = {str(path): f"a man {path.stem}" for path in pictures}  # absolute, as the script writes them
    (here.work / "image_captions.json").write_text(json.dumps(told, indent=4), encoding="utf-8")
    here.shell("python create_dataset.py")


@pytest.mark.slow
def test_s1_a_data_set(here: Machine) -> None:
    data_set(here)
    folder = here.work / "datasets" / "Text2Image_example"
    listed = here.shell(f"gesso check {folder} --data.format save_to_disk --model.base {here.model(OLDER)} || true")
    assert "4 pictures" in listed.stdout


@pytest.mark.slow
def test_s1_captions(here: Machine) -> None:
    pictures = drawings(here.work / "images")
    here.shell("python generate_captions.py")
    told = json.loads((here.work / "image_captions.json").read_text("utf-8"))
    assert len(told) == len(pictures)
    assert all("\n" not in caption for caption in told.values())


@pytest.mark.slow
def test_s1_the_shell_file_and_the_notebook(here: Machine) -> None:
    data_set(here)
    (here.work / "validation_prompts.txt").write_text("a man with glasses\na man in red\n", encoding="utf-8")
    (here.work / "train_text_to_image_lora.sh").write_text(LORA_SH, encoding="utf-8")
    here.shell("gesso sh train_text_to_image_lora.sh")
    out = here.work / "txt2img-finetune-lora"
    assert events(out, "started")[0]["batch"] == 8
    assert {sample["prompt"] for event in events(out, "sampled") for sample in event["samples"]} == {
        "a man with glasses", "a man in red",
    }  # fmt: skip
    for folder in (out, out / "checkpoint-2"):
        pipe = StableDiffusionPipeline.from_pretrained(here.model(OLDER))
        pipe.set_progress_bar_config(disable=True)
        pipe.load_lora_weights(folder)
        image = pipe("a man", num_inference_steps=2, guidance_scale=7.5).images[0]
        assert image.size == (64, 64)


@pytest.mark.slow
def test_s4_dreambooth_from_a_mindspore_checkpoint_and_its_pictures(here: Machine) -> None:
    drawings(here.work / "dreambooth" / "dataset" / "dog", 2)
    (here.work / "models").mkdir()
    convert(Request(source=here.model(SECOND), target=here.work / "models" / "sd_v2_base-57526ee4.ckpt"))
    (here.work / "configs").mkdir()
    told = {"random_crop": True, "betas": [0.9, 0.98], "epochs": 4, "start_learning_rate": 5e-6}
    (here.work / "configs" / "train_dreambooth_sd_v2.json").write_text(json.dumps(told), encoding="utf-8")
    (here.work / "configs" / "train_dreambooth_sd_v2.yaml").write_text("model: {}\n", encoding="utf-8")
    here.shell(DREAMBOOTH)
    out = here.work / "output" / "txt2img"
    started = events(out, "started")[0]
    assert (started["pictures"], started["class_pictures"]) == (2, 2)
    assert {event["lr"] for event in events(out, "stepped")} == {2e-6}  # the command wins over the file
    assert "betas = [0.9, 0.98]" in (out / "recipe.toml").read_text("utf-8")
    for part, name in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        before = load_file(here.model(SECOND) / part / f"{name}.safetensors")
        after = load_file(out / part / f"{name}.safetensors")
        assert any(not np.array_equal(value, after[key]) for key, value in before.items())
    here.shell(DRAWING)
    drawn = sorted((here.work / "vis" / "output" / "dir" / "samples").glob("*.png"))
    assert len(drawn) == 2
    assert pixels(drawn[0]).shape == (64, 64, 3)
    DiffusionPipeline.from_pretrained(out)
