"""Jobs of ai-toolkit and configurations of OneTrainer as recipes, and files that are refused."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from importers_parts import fates, folder, recipe, stops

from gesso import cli
from gesso.errors import RecipeError
from gesso.importers import translate

JOB = """
---
job: extension
config:
  name: dog_v1
  process:
    - type: sd_trainer
      training_folder: output
      device: cuda:0
      trigger_word: sks
      network:
        type: lora
        linear: 16
        linear_alpha: 8
        conv: 8
        conv_alpha: 4
      save:
        dtype: float16
        save_every: 250
        max_step_saves_to_keep: 4
        push_to_hub: false
      datasets:
        - folder_path: pictures
          default_caption: "a photo of [trigger] dog"
          caption_ext: txt
          caption_dropout_rate: 0.05
          shuffle_tokens: false
          cache_latents_to_disk: true
          resolution: [ 1024 ]
          num_repeats: 2
          flip_x: true
      train:
        batch_size: 1
        steps: 2000
        gradient_accumulation: 2
        train_unet: true
        train_text_encoder: false
        gradient_checkpointing: false
        noise_scheduler: ddpm
        optimizer: adamw8bit
        optimizer_params:
          weight_decay: 1e-4
        lr: 1e-4
        min_snr_gamma: 5.0
        ema_config:
          use_ema: true
          ema_decay: 0.99
        dtype: bf16
      model:
        name_or_path: stabilityai/stable-diffusion-xl-base-1.0
        is_xl: true
      sample:
        sampler: ddim
        sample_every: 250
        width: 1024
        height: 768
        prompts:
          - "[trigger] dog on a beach"
          - a cat
        neg: blurry
        seed: 42
        walk_seed: true
        guidance_scale: 6
        sample_steps: 20
meta:
  name: "[name]"
  version: '1.0'
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def job(text: str = JOB) -> str:
    Path("job.yaml").write_text(text, encoding="utf-8")
    return "job.yaml"


def test_a_job_of_ai_toolkit() -> None:
    imported = translate([job()])
    found = recipe(imported)
    assert (found.out, found.model.base, found.model.train) == (
        "output/dog_v1",
        "stabilityai/stable-diffusion-xl-base-1.0",
        ("unet",),
    )
    assert (found.adapter.rank, found.adapter.alpha, found.rules[0].rank, found.rules[0].alpha) == (16, 8, 8, 4)
    data = found.data[0]
    assert (data.prompt, data.trigger, data.repeats, data.shuffle) == ("a photo of sks dog", "sks", 2, False)
    assert found.train.flip
    assert (found.train.batch, found.train.micro_batch, found.train.steps, found.train.resolution) == (2, 1, 2000, 1024)
    assert (found.optim.name, found.optim.lr, found.optim.weight_decay, found.optim.ema) == (
        "adamw_8bit",
        1e-4,
        1e-4,
        0.99,
    )
    assert (found.objective.gamma, found.train.precision, found.train.caption_dropout) == (5, "bf16", 0.05)
    assert (found.sample.prompts, found.sample.negative) == (("sks dog on a beach", "a cat"), "blurry")
    assert (found.sample.seeds, found.sample.height, found.sample.guidance, found.save.keep) == ((42,), 768, 6, 4)
    said = fates(imported)
    assert (said["sample.walk_seed"], said["save.dtype"], said["meta.name"]) == ("differs", "differs", "harmless")
    assert "lr = 0.0001  # train.lr" in imported.text


def test_buckets_of_a_job() -> None:
    train = recipe(translate([job()])).train
    assert (train.buckets, train.bucket_step, train.bucket_enlarge) == (True, 64, False)
    named = job(JOB.replace("flip_x: true", "flip_x: true\n          bucket_tolerance: 32"))
    assert recipe(translate([named])).train.bucket_step == 32
    for off in ("square_crop: true", "buckets: false", "buckets: true\n          square_crop: true"):
        train = recipe(translate([job(JOB.replace("flip_x: true", f"flip_x: true\n          {off}"))])).train
        assert (train.buckets, train.bucket_step, train.bucket_enlarge) == (False, None, True)


def test_a_date_is_no_obstacle(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["import", job(JOB.replace("version: '1.0'", "version: 2026-01-01")), "--json"]) == 0
    assert "2026-01-01" in capsys.readouterr().out


def test_accumulated_steps_are_not_optimiser_steps() -> None:
    found = recipe(translate([job(JOB.replace("gradient_accumulation:", "gradient_accumulation_steps:"))]))
    assert (found.train.batch, found.train.steps, found.save.every, found.sample.every) == (2, 1000, 125, 125)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("is_xl: true", "is_flux: true", "model.is_flux"),
        ("shuffle_tokens: false", "mask_path: masks", "datasets.0.mask_path"),
        ("shuffle_tokens: false", "random_triggers: [a]", "datasets.0.random_triggers"),
        ("resolution: [ 1024 ]", "resolution: [512, 768]", "datasets.0.resolution"),
        ("optimizer: adamw8bit", "optimizer: automagic", "train.optimizer"),
        ("noise_scheduler: ddpm", "noise_scheduler: flowmatch", "train.noise_scheduler"),
        ("lr: 1e-4", "learning_rat: 1e-4", "train.learning_rat"),
        ("steps: 2000", "step: 2000", "train.step"),
        ("linear: 16", "linear: many", "network.linear"),
        ("type: sd_trainer", "type: concept_slider", "type"),
        ("flip_x: true", "is_reg: true", "datasets.0.is_reg"),
    ],
)
def test_what_ai_toolkit_asks_for_beyond_gesso_stops(old: str, new: str, key: str) -> None:
    assert old in JOB
    assert key in stops(job(JOB.replace(old, new)))


def test_a_misspelt_key_of_a_job_gets_the_nearest_name() -> None:
    assert stops(job(JOB.replace("steps: 2000", "step: 2000")))["train.step"].endswith("did you mean train.steps?")


TRAINER: dict[str, Any] = {
    "__version": 12,
    "training_method": "LORA",
    "model_type": "STABLE_DIFFUSION_15",
    "base_model_name": "owner/base",
    "workspace_dir": "workspace/run",
    "output_model_format": "KOHYA_LORA",
    "layer_filter_preset": "attn-mlp",
    "learning_rate": 3e-4,
    "learning_rate_warmup_steps": 200,
    "learning_rate_scheduler": "COSINE",
    "epochs": 10,
    "batch_size": 4,
    "gradient_accumulation_steps": 2,
    "resolution": "512",
    "aspect_ratio_bucketing": True,
    "lora_rank": 32,
    "lora_alpha": 16.0,
    "lora_decompose": True,
    "ema": "CPU",
    "ema_decay": 0.99,
    "ema_update_step_interval": 1,
    "loss_weight_fn": "MIN_SNR_GAMMA",
    "loss_weight_strength": 5.0,
    "offset_noise_weight": 0.05,
    "max_noising_strength": 0.9,
    "train_dtype": "BFLOAT_16",
    "unet": {"train": True, "learning_rate": 1e-4, "weight_dtype": "FLOAT_32"},
    "text_encoder": {"train": True, "learning_rate": 5e-5, "stop_training_after_unit": "NEVER"},
    "transformer": {"train": True},
    "optimizer": {"optimizer": "ADAMW", "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "fused": True, "weight_decay": 0.02},
    "optimizer_defaults": {"ADAMW": {"beta1": 0.9}},
    "secrets": {"huggingface_token": "hf_secret"},
    "concepts": [
        {
            "name": "dog",
            "path": "dog",
            "balancing": 3.0,
            "loss_weight": 0.5,
            "image": {"enable_random_flip": False, "enable_crop_jitter": True},
            "text": {"prompt_source": "sample", "enable_tag_shuffling": True},
        },
        {"name": "off", "path": "x", "enabled": False, "text": {"enable_tag_shuffling": True}},
    ],
    "samples": [
        {"prompt": "a dog", "seed": 1, "width": 512, "height": 512, "cfg_scale": 6.0, "noise_scheduler": "EULER_A"},
        {"prompt": "a cat", "seed": 1, "width": 512, "height": 512, "cfg_scale": 6.0, "noise_scheduler": "EULER_A"},
    ],
    "sample_after": 2,
    "sample_after_unit": "EPOCH",
    "save_every": 100,
    "save_every_unit": "STEP",
    "rolling_backup": True,
    "rolling_backup_count": 2,
}


def trainer(**changes: Any) -> str:
    Path("config.json").write_text(json.dumps({**TRAINER, **changes}), encoding="utf-8")
    return "config.json"


def test_a_configuration_of_onetrainer() -> None:
    imported = translate([trainer()])
    found = recipe(imported)
    assert (found.adapter.kind, found.adapter.rank, found.adapter.alpha) == ("dora", 32, 16)
    assert (found.model.train, found.optim.lr, found.optim.text_encoder_lr) == (("unet", "text_encoder"), 1e-4, 5e-5)
    assert (found.optim.schedule, found.optim.warmup, found.optim.betas) == ("cosine", 100, (0.9, 0.99))
    assert (found.optim.ema, found.optim.ema_offload, found.optim.weight_decay) == (0.99, True, 0.02)
    assert (found.train.batch, found.train.micro_batch, found.train.epochs) == (8, 4, 10)
    assert (found.train.precision, found.train.flip, found.train.gradient_checkpointing) == ("bf16", False, True)
    objective = found.objective
    assert (objective.weighting, objective.gamma, objective.noise_offset) == ("min_snr", 5, 0.05)
    assert (objective.times, objective.times_begin, objective.times_end) == ("only", 0, 900)
    assert [(each.path, each.repeats, each.weight) for each in found.data] == [("dog", 3, 0.5)]
    assert (found.data[0].shuffle, found.data[0].keep_tokens) == (True, 1)
    assert (found.sample.prompts, found.sample.seeds, found.sample.every_epochs) == (("a dog", "a cat"), (1,), 2)
    assert (found.save.every, found.save.keep) == (50, 2)
    said = fates(imported)
    assert (said["aspect_ratio_bucketing"], found.train.buckets) == ("mapped", True)
    assert said["concepts.1.text.enable_tag_shuffling"] == "harmless"
    assert "hf_secret" not in json.dumps(imported.as_json())


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"model_type": "FLUX_DEV_1"}, "model_type"),
        ({"training_method": "FINE_TUNE_VAE"}, "training_method"),
        ({"text_encoder": {"train": True}, "epochs": 100}, "text_encoder.stop_training_after_unit"),
        ({"optimizer": {"optimizer": "CAME"}}, "optimizer.optimizer"),
        ({"optimizer": "ADAMW"}, "optimizer"),
        ({"mae_strength": 1.0}, "mae_strength"),
        ({"learning_rate_scheduler": "REX"}, "learning_rate_scheduler"),
        ({"learning_rate_warmup_steps": 0.1}, "learning_rate_warmup_steps"),
        ({"resolution": "512,768"}, "resolution"),
        ({"masked_training": True, "normalize_masked_area_loss": True}, "normalize_masked_area_loss"),
        ({"masked_training": True, "masked_prior_preservation_weight": 0.5}, "masked_prior_preservation_weight"),
        ({"concepts": [{"path": "a", "text": {"tag_dropout_enable": True}}]}, "concepts.0.text.tag_dropout_enable"),
        ({"concepts": None}, "concept_file_name"),
        ({"concepts": [{"path": "a", "balancing": 1.5}]}, "concepts.0.balancing"),
        ({"concepts": [{"path": "a", "text": {"prompt_source": "filename"}}]}, "concepts.0.text.prompt_source"),
        ({"learning_rat": 1}, "learning_rat"),
        ({"train_unet": True}, "train_unet"),
        ({"cloud": {"enabled": True}}, "cloud.enabled"),
        ({"timestep_distribution": "SIGMOID"}, "timestep_distribution"),
        ({"layer_filter_preset": "custom", "layer_filter": "attn"}, "layer_filter"),
    ],
)
def test_what_onetrainer_asks_for_beyond_gesso_stops(changes: dict[str, Any], key: str) -> None:
    found = stops(trainer(**changes))
    assert key in found
    assert found[key]


def test_masks_and_tags_of_onetrainer() -> None:
    text = {"tag_dropout_enable": True, "tag_dropout_mode": "RANDOM", "tag_dropout_probability": 0.2}
    concept = {"path": "dog", "text": {**text, "keep_tags_count": 2}}
    found = recipe(translate([trainer(masked_training=True, unmasked_weight=0.2, concepts=[concept])])).data[0]
    assert (found.masks, found.unmasked_weight) == (True, 0.28)  # 0.1 + 0.9 x 0.2: a tenth of the steps has no mask
    assert (found.tag_dropout, found.keep_tokens, found.shuffle) == (0.2, 2, False)
    imported = translate([trainer(masked_training=True, unmasked_probability=0.0)])
    assert recipe(imported).data[0].unmasked_weight == 0.1
    off = fates(translate([trainer(masked_training=False, unmasked_weight=0.2, normalize_masked_area_loss=True)]))
    assert {off[key] for key in ("masked_training", "unmasked_weight", "normalize_masked_area_loss")} == {"harmless"}


def test_masks_and_tags_of_ai_toolkit() -> None:
    new = "alpha_mask: true\n          mask_min_value: 0.1\n          token_dropout_rate: 0.3"
    text = JOB.replace("shuffle_tokens: false", new)
    imported = translate([job(text)])
    found = recipe(imported).data[0]
    assert (found.masks, found.unmasked_weight, found.tag_dropout) == (True, 0.1, 0.3)
    notes = {entry.key: entry.note for entry in imported.entries}
    assert "divides a mask by its mean" in notes["datasets.0.alpha_mask"]


def test_concepts_and_samples_in_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "training_concepts").mkdir()
    folder(tmp_path / "dog", 1)
    Path("prompt.txt").write_text("a photo of sks dog\n", encoding="utf-8")
    concept = {"path": "dog", "text": {"prompt_source": "concept", "prompt_path": "prompt.txt"}}
    Path("training_concepts/concepts.json").write_text(json.dumps([concept]), encoding="utf-8")
    plain = {key: value for key, value in TRAINER.items() if key not in ("concepts", "samples")}
    Path("config.json").write_text(json.dumps(plain), encoding="utf-8")
    found = recipe(translate(["config.json"]))
    assert (found.data[0].prompt, found.train.flip) == ("a photo of sks dog", True)


def test_an_embedding_and_a_whole_model() -> None:
    words = {"placeholder": "<dog>", "token_count": 2, "initial_embedding_text": "dog"}
    found = recipe(translate([trainer(training_method="EMBEDDING", embedding=words, embedding_learning_rate=1e-3)]))
    assert (found.adapter.kind, found.tokens[0].name, found.tokens[0].vectors) == ("ti", "<dog>", 2)
    assert found.optim.lr == 1e-3
    assert recipe(translate([trainer(training_method="FINE_TUNE")])).adapter.kind == "none"


def test_a_file_of_the_kohya_form_is_told_apart() -> None:
    Path("form.json").write_text(json.dumps({"LoRA_type": "Standard", "network_dim": 8}), encoding="utf-8")
    with pytest.raises(RecipeError, match="kohya_ss form"):
        translate(["form.json"])


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.yaml", BOMB, "an anchor"),
        ("a.yaml", "a: !!python/object/apply:os.system ['touch canary']\n", "the tag"),
        ("a.yaml", "a: !thing 1\n", "the tag"),
        ("a.yaml", "a: [1, 2\nb: 3\n", "not YAML"),
        ("a.yaml", "[" * 200 + "]" * 200, "nested too deeply"),
        ("a.yaml", "just text", "holds no keys"),
        ("a.yaml", "a: 1\n", "no config with a process"),
        ("a.yaml", "config: {process: [1]}\n", "one training process"),
        ("a.yaml", "a: 2026-99-99\n", "not YAML"),
        ("a.json", '{"a": 1,}', "not JSON"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.json", "[1, 2]", "holds no keys"),
        ("a.json", '{"a": 1}', "no key of OneTrainer"),
        ("a.json", '{"a": ' + "9" * 5000 + "}", "JSON"),
        ("a.toml", "a = [1,", "not TOML"),
        ("a.toml", "a = 1\na = 2\n", "not TOML"),
        ("a.exe", "MZ", "does not know"),
    ],
)
def test_broken_and_hostile_files_are_refused_at_once(name: str, content: str, what: str) -> None:
    Path(name).write_text(content, encoding="utf-8")
    began = time.perf_counter()
    with pytest.raises(RecipeError, match=what):
        translate([name])
    assert time.perf_counter() - began < 2.0
    assert not Path("canary").exists()


def test_bytes_that_are_no_text_and_files_too_large_are_refused() -> None:
    Path("a.toml").write_bytes(b"a = '\xff\xfe'")
    with pytest.raises(RecipeError, match="UTF-8"):
        translate(["a.toml"])
    with Path("b.yaml").open("wb") as file:
        file.truncate(2**23)
    with pytest.raises(RecipeError, match="4 MiB"):
        translate(["b.yaml"])
    with pytest.raises(RecipeError, match="no such file"):
        translate(["c.yaml"])
