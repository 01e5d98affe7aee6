"""What is told of a run before it starts, against what the run then does."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import gesso, pictures, recipe

from gesso import models, settings
from gesso.data.cache import default_folder
from gesso.families import find
from gesso.forecast import disk, memory, pace
from gesso.forecast.sizes import factors, numbers, sizes
from gesso.recipe import load
from gesso.schema import Recipe

KINDS: dict[str, list[str]] = {
    "lora": ["--model.train", "unet", "--model.train", "text_encoder"],
    "lora of rules": ["--rules.0.match", "to_q", "--rules.0.rank", "3", "--rules.1.match", "to_k", "--rules.1.skip"],
    "dora": ["--adapter.targets", "to_v", "--adapter.targets", "conv1", "--adapter.targets", "conv_shortcut"],
    "loha": ["--adapter.targets", "to_v", "--adapter.targets", "conv1", "--adapter.targets", "ff.net.2"],
    "lokr": ["--adapter.targets", "to_v", "--adapter.targets", "conv1", "--adapter.rank", "2"],
    "lokr whole": ["--adapter.factor", "4", "--adapter.rank", "64"],
    "oft": ["--adapter.rank", "4"],
    "none": ["--model.train", "unet", "--model.train", "text_encoder"],
    "ti": ["--tokens.0.name", "<x>", "--tokens.0.vectors", "3", "--tokens.1.name", "<y>"],
}


def asked(*flags: str) -> Recipe:
    return load(None, ["--data.path", "photos", *flags]).recipe


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("family", ["blank", "blank_xl"])
def test_what_trains_is_counted_as_the_engine_makes_it(name: str, family: str, request: pytest.FixtureRequest) -> None:
    from gesso.engines.torch import engine as torch_engine

    base: Path = request.getfixturevalue(family)
    wanted = asked("--model.base", str(base), "--adapter.kind", name.split()[0], *KINDS[name])
    source = models.resolve(str(base))
    own = find(source.pipeline)
    engine = torch_engine.create(wanted.torch, device="cpu", precision="fp32")
    engine.load(source.folder, own, parts=settings.whole_parts(wanted))
    made = engine.attach(settings.adapter(wanted, own), settings.optim(wanted), settings.tokens(wanted))
    told = sizes(wanted, source, own)
    assert told.total == made.total
    shapes = sorted((tuple(value.shape), name.rpartition(".")[2]) for name, value in engine.trained.items())
    assert sorted((shape, name.rpartition(".")[2]) for name, shape in told.trained.items()) == shapes


@pytest.mark.parametrize("name", [
    "adamw", "adam", "sgd", "adafactor", "lion", "prodigy", "adamw_schedule_free", "muon", "adamw_8bit"
])  # fmt: skip
def test_an_optimisers_file_is_as_large_as_told(name: str, tmp_path: Path) -> None:
    import torch

    from gesso.engines.torch import optimizers, state
    from gesso.formats import tensors

    wanted = asked("--optim.name", name, *(["--optim.lr", "1"] if name == "prodigy" else []))
    shapes = {"unet.a.weight": (128, 320), "unet.b.weight": (64, 32, 3, 3), "unet.c.bias": (320,), "unet.d": (64, 64)}
    trained = {each: torch.nn.Parameter(torch.ones(shape)) for each, shape in shapes.items()}
    for value in trained.values():
        value.grad = torch.ones_like(value)
    stepper = optimizers.create(settings.optim(wanted), trained)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    stepper.step({"unet": 1e-3}, scaler)
    tensors.save(tmp_path / "o", state.read_optimizer(stepper.made, trained, scaler), {"format": "pt"})
    assert disk.state_bytes(wanted, shapes) == pytest.approx((tmp_path / "o").stat().st_size, rel=0.01)


@pytest.mark.parametrize(("side", "factor"), [(320, -1), (1280, -1), (127, -1), (320, 8), (320, 7), (48, 4), (1, -1)])
def test_lokrs_factors_are_the_librarys(side: int, factor: int) -> None:
    from peft.tuners.lokr.layer import factorization

    assert factors(side, factor) == factorization(side, factor)


def told(path: Path, *flags: str) -> dict[str, Any]:
    done = gesso("check", path, "--json", "--no-html", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["forecast"]
    return found


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_the_disk_is_told_within_a_few_percent_of_a_real_run(adapter: str, tmp_path: Path, linear: Path) -> None:
    """Checkpoints and cache; the reference engine's network is small, so what is not tensors counts for much."""
    pictures(tmp_path / "pictures", 20)
    targets = {"targets": ["linear"]} if adapter == "lora" else {}
    path = recipe(tmp_path, linear, adapter={"kind": adapter, **targets}, train={"flip": True, "caption_dropout": 0.1})
    forecast = told(path)
    time.sleep(2.2)  # hashes of files are kept from then on
    assert gesso("train", path).returncode == 0
    out = tmp_path / "out"
    assert forecast["cache_bytes"] == pytest.approx(size(default_folder()), rel=0.05)
    checkpoint = out / "checkpoint-12"
    arrays = sum(file.stat().st_size for file in checkpoint.rglob("*.safetensors"))
    assert forecast["checkpoint_bytes"] - 2048 == pytest.approx(arrays, rel=0.25, abs=600)
    assert size(out) < forecast["out_bytes"] + 200_000


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [["--optim.ema", "0.9"], ["--adapter.kind", "lokr"], ["--adapter.kind", "none", "--optim.name", "sgd"]],
    ids=lambda flags: "-".join(flags[1::2]),
)
def test_a_torch_checkpoint_is_as_large_as_told(flags: list[str], tmp_path: Path, blank: Path) -> None:
    pictures(tmp_path / "pictures", 4)
    path = recipe(tmp_path, blank, engine="torch", adapter={"rank": 4}, train={"steps": 2, "batch": 2})
    flags = [*flags, "--sample.prompts", "a thing", "--sample.steps", "2"]
    forecast = told(path, *flags)
    done = gesso("train", path, *flags)
    assert done.returncode == 0, done.stderr
    assert forecast["checkpoint_bytes"] == pytest.approx(size(tmp_path / "out" / "checkpoint-2"), rel=0.03)
    written = size(tmp_path / "out") - size(tmp_path / "out" / "report.html")
    assert written * 0.5 < forecast["out_bytes"] < written * 2
    assert size(default_folder()) == pytest.approx(forecast["cache_bytes"], rel=0.05)


def size(folder: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    return folder.stat().st_size if folder.is_file() else sum(size(each) for each in folder.iterdir())


def test_room_on_the_disk_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = disk.Disk(checkpoint=10**9, checkpoints=4, result=10**8, samples=10**6, page=0, cache=10**9)
    free = [0]
    monkeypatch.setattr("gesso.forecast.disk.free_bytes", lambda _: free[0])

    def judged(count: float) -> str:
        free[0] = int(count)
        found = disk.room(tmp_path / "out", tmp_path / "cache", wanted)
        return "" if found is None else "stop" if found.certain else "warn"

    assert [judged(1.0e9), judged(1.2e9), judged(4.9e9), judged(5.2e9)] == ["stop", "warn", "warn", ""]
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / "checkpoint").open("wb") as file:
        file.truncate(10**9)
    assert judged(1.0e9) == "warn"


SD: dict[str, Any] = {"block_out_channels": (32, 64, 128, 128), "cross_attention_dim": 64, "attention_head_dim": 8}
XL: dict[str, Any] = {
    "block_out_channels": (32, 64, 128),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [2, 4, 8],
    "cross_attention_dim": 64,
    "use_linear_projection": True,
}


@pytest.mark.parametrize("whole", [True, False], ids=["full", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("config", [SD, XL], ids=["sd", "xl"])
def test_activations_are_told_within_the_margin(whole: bool, checkpointing: bool, config: dict[str, Any]) -> None:
    """Against every tensor that PyTorch keeps for the backward pass of a network of this shape, counted once."""
    import torch
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig, inject_adapter_in_model

    side = 32
    net = UNet2DConditionModel(**config).train()
    if not whole:
        net.requires_grad_(False)
        inject_adapter_in_model(LoraConfig(r=4, target_modules=r".*(to_q|to_k|to_v|to_out\.0)"), net)
    if checkpointing:
        net.enable_gradient_checkpointing()
    weights = {value.untyped_storage().data_ptr() for value in net.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        kept[value.untyped_storage().data_ptr()] = value
        return value

    states = torch.zeros(1, 77, 64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        net(torch.zeros(1, 4, side, side), torch.tensor([5]), encoder_hidden_states=states)
    measured = sum(value.untyped_storage().nbytes() for at, value in kept.items() if at not in weights) / 4
    estimate = memory.activations(net.config, side, side, whole=whole, checkpointing=checkpointing)
    if checkpointing:  # the forward pass does not hold the one block that is computed again
        estimate -= (1.0 if whole else memory.ADAPTED) * max(b.kept for b in memory.blocks(net.config, side, side))
    assert measured == pytest.approx(estimate, rel=memory.MARGIN)


def test_memory_follows_the_recipe(blank: Path) -> None:
    source = models.resolve(str(blank))
    family, config = find(source.pipeline), source.config("unet")

    def bytes_of(*flags: str) -> memory.Memory:
        wanted = asked("--model.base", str(blank), *flags)
        return memory.memory(wanted, family, sizes(wanted, source, family), config, (16, 16))

    lora, full = bytes_of(), bytes_of("--adapter.kind", "none")
    assert full.training > 3 * 4 * numbers(sizes(asked(), source, family).base["unet"]) * 0.99
    assert lora.training < full.training / 5
    assert bytes_of("--train.batch", "8").activations == 2 * lora.activations
    assert bytes_of("--train.batch", "8", "--train.micro-batch", "4").activations == lora.activations
    assert bytes_of("--train.gradient-checkpointing").activations < lora.activations / 2
    assert bytes_of("--train.precision", "bf16").weights < lora.weights
    assert bytes_of("--optim.ema", "0.9").training > lora.training
    assert lora.total == lora.weights + lora.training + lora.activations


def test_time_is_that_of_an_earlier_run_of_the_same_kind(tmp_path: Path, linear: Path) -> None:
    pictures(tmp_path / "pictures", 5)
    path = recipe(tmp_path, linear, adapter={"targets": ["linear"]})
    assert "seconds" not in told(path)
    assert gesso("train", path).returncode == 0
    other = [str(tmp_path / "out2")]
    forecast = told(path, "--out", *other, "--train.steps", "500")
    assert forecast["seconds"] == pytest.approx(500 * forecast["seconds_a_step"])
    steps = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    took = [each["seconds"] for each in steps if each["event"] == "stepped"][1:]
    assert forecast["seconds_a_step"] == pytest.approx(float(np.median(took)))
    assert "seconds" not in told(path, "--out", *other, "--train.batch", "2")
    assert pace.earlier(load(path, []).recipe) is not None


def test_time_is_measured_where_it_is_asked_for(tmp_path: Path, linear: Path) -> None:
    pictures(tmp_path / "pictures", 5)
    path = recipe(tmp_path, linear, adapter={"targets": ["linear"]})
    before = sorted(tmp_path.rglob("*"))
    forecast = told(path, "--time")
    assert forecast["seconds_a_step"] > 0
    assert told(path, "--time", "--prior.prompt", "a thing")["seconds_a_step"] > 0
    assert sorted(tmp_path.rglob("*")) == before
    assert not list(default_folder().rglob("*.pack"))
