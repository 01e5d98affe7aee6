"""Every optimiser on the PyTorch engine: its library's own steps, groups, skipped steps, resume and averages."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import bitsandbytes
import lion_pytorch
import numpy as np
import prodigyopt
import pytest
import schedulefree
import torch
from optimizer_parts import BETAS, EPS, OPTIM, Small, changing, of, same
from torch import nn
from torch_plain import create, rates, rows
from transformers.optimization import Adafactor

from gesso.engines.engine import Optim
from gesso.engines.torch import optimizers
from gesso.errors import DeviceError, GessoError, RecipeError, StorageError
from gesso.objective.objective import Objective

NAMES = list(optimizers.MAKERS)
FUSED = ("adamw", "adam", "sgd")


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# ---------------------------------------------------------------- parity


def plainly(name: str, copies: Mapping[str, nn.Parameter]) -> list[Any]:
    """The library's class over copies of the parameters, as anyone would write it."""
    groups = [
        {"params": [v for k, v in copies.items() if k.startswith("unet.")], "weight_decay": 0.1},
        {"params": [v for k, v in copies.items() if k.startswith("text_encoder.")], "weight_decay": 0.02},
    ]
    if name == "muon":
        hidden = {k for k, v in copies.items() if v.ndim == 2 and not k.endswith("embedding.weight")}
        halves = [
            [
                {**group, "params": [v for v in group["params"] if any(v is copies[k] for k in hidden) == matrix]}
                for group in groups
            ]
            for matrix in (True, False)
        ]
        return [
            torch.optim.Muon(halves[0], adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(halves[1], betas=BETAS, eps=EPS, fused=True),
        ]
    if name == "adamw_schedule_free":
        made = schedulefree.AdamWScheduleFree(groups, betas=BETAS, eps=EPS)
        made.train()
        return [made]
    return [
        {
            "adamw": lambda: torch.optim.AdamW(groups, betas=BETAS, eps=EPS, foreach=False),
            "adam": lambda: torch.optim.Adam(groups, betas=BETAS, eps=EPS, foreach=False),
            "sgd": lambda: torch.optim.SGD(groups, momentum=BETAS[0], foreach=False),
            "adamw_8bit": lambda: bitsandbytes.optim.AdamW8bit(groups, betas=BETAS, eps=EPS),
            "adafactor": lambda: Adafactor(groups, lr=1.0, relative_step=False, scale_parameter=False),
            "lion": lambda: lion_pytorch.Lion(groups, betas=BETAS),
            "prodigy": lambda: prodigyopt.Prodigy(
                groups, betas=BETAS, beta3=0.9, eps=EPS, use_bias_correction=True, safeguard_warmup=True
            ),
        }[name]()
    ]


def test_steps_are_the_librarys_own(blank: Path, name: str) -> None:
    """Three steps with changing rates, other decay for the text encoder and clipping, on the engine's own gradients."""
    engine = create(blank, "both", optim=replace(OPTIM, name=name))
    copies = {key: nn.Parameter(torch.from_numpy(value)) for key, value in engine.read()["weights"].items()}
    own = plainly(name, copies)
    gradients: dict[str, torch.Tensor] = {}

    def keep(*_: object) -> None:
        found = {key: value.grad for key, value in engine.trained.items()}
        gradients.update({key: value.detach().clone() for key, value in found.items() if value is not None})

    engine.optimizer.made[0].register_step_pre_hook(keep)
    batch, c = rows(engine, Objective(), tokens=True)
    for step, lr in enumerate(changing(name)):
        gradients.clear()
        assert engine.step([(batch, c)], lr=lr, ema_decay=0.0, key=step).read().grad_norm > 0.05, "nothing was clipped"
        assert float(torch.nn.utils.get_total_norm(list(gradients.values()))) == pytest.approx(0.05, rel=1e-4)
        for key, copy in copies.items():
            copy.grad = gradients[key].clone()
        for each in own:
            each.param_groups[0]["lr"], each.param_groups[1]["lr"] = lr["unet"], lr["text_encoder"]
            each.step()
    for key, value in engine.read()["weights"].items():
        wanted = copies[key].detach().numpy()
        if name in FUSED:
            np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-7, err_msg=key)
        else:
            assert np.array_equal(value, wanted), key


def test_muon_takes_the_matrices_of_hidden_layers_and_adamw_the_rest() -> None:
    names = ["unet.conv.weight", "unet.to_q.weight", "unet.to_q.bias", "unet.class_embedding.weight"]
    names += ["unet.time_embedding.linear_1.weight", "tokens.text_encoder.word"]
    shapes = [(4, 3, 3, 3), (8, 4), (8,), (10, 4), (8, 4), (2, 4)]
    trained = {name: nn.Parameter(torch.ones(shape)) for name, shape in zip(names, shapes, strict=True)}
    made = optimizers.create(Optim(name="muon"), trained).made
    found = {type(each).__name__: {id(v) for group in each.param_groups for v in group["params"]} for each in made}
    assert found["Muon"] == {id(trained[names[1]]), id(trained[names[4]])}
    assert found["AdamW"] == {id(trained[names[at]]) for at in (0, 2, 3, 5)}


# ---------------------------------------------------------------- groups


def test_a_group_is_a_part_with_its_own_decay() -> None:
    parts = ("unet", "text_encoder", "text_encoder_2", "tokens")
    trained = {f"{part}.{name}": nn.Parameter(torch.ones(2)) for name in "ab" for part in parts}
    groups = optimizers.groups(Optim(weight_decay=0.3, text_weight_decay=0.2), trained)
    assert [(group["name"], group["weight_decay"], len(group["params"])) for group in groups] == [
        ("unet", 0.3, 2),
        ("text_encoder", 0.2, 2),
        ("text_encoder_2", 0.2, 2),
        ("tokens", 0.0, 2),
    ]


@pytest.mark.parametrize(("resting", "other"), [("unet", "text_encoder"), ("text_encoder", "unet")])
def test_a_resting_group_does_not_move(name: str, resting: str, other: str) -> None:
    """Neither its weights nor their moments; and its gradient counts neither in the norm nor in clipping."""
    small, lr = Small(name), changing(name)[0]
    small.step(0, lr)
    before = small.read()
    norm = small.step(1, {group: rate for group, rate in lr.items() if group != resting})
    after = small.read()
    rng = np.random.default_rng(1)
    squares = {key: np.square(rng.standard_normal(shape)).sum() for key, shape in small.SHAPES.items()}
    assert norm == pytest.approx(sum(v for k, v in squares.items() if k.startswith(f"{other}.")) ** 0.5, rel=1e-5)
    assert same(of(before, resting), of(after, resting))
    assert not any(np.array_equal(v, before["weights"][k]) for k, v in of(after, other)["weights"].items())
    if name == "adamw_schedule_free":
        counts = {key: value.item() for key, value in after["optimizer"].items() if key.endswith("/k")}
        assert counts == {f"group/{resting}/k": 1, f"group/{other}/k": 2}
    small.step(2, lr)
    assert not any(np.array_equal(v, small.read()["weights"][k]) for k, v in after["weights"].items())


def test_a_resting_part_stays_as_it_is_in_the_engine(blank: Path) -> None:
    engine = create(blank, "both", optim=replace(OPTIM, name="adamw"))
    batch, c = rows(engine, Objective(), tokens=True)
    before = engine.read()
    engine.step([(batch, c)], lr={"unet": 1e-3}, ema_decay=0.0, key=0).read()
    after = engine.read()
    assert same(of(before, "text_encoder"), of(after, "text_encoder"))
    assert not of(after, "text_encoder")["optimizer"]
    assert not same(of(before, "unet"), of(after, "unet"))


@pytest.mark.parametrize("fp16", [False, True])
def test_where_all_rests_nothing_changes(name: str, fp16: bool) -> None:
    small = Small(name, fp16=fp16)
    small.step(0, changing(name)[0])
    before = small.read()
    assert small.step(1, {}) == 0.0
    assert same(before, small.read())
    small.step(2, changing(name)[1])
    assert not same(before, small.read())


def test_what_has_no_gradient_is_left_alone(name: str) -> None:
    trained = {f"unet.{key}": nn.Parameter(torch.full((4, 4), 2.0)) for key in "ab"}
    stepper = optimizers.create(replace(OPTIM, name=name), trained)
    for _ in range(2):
        trained["unet.a"].grad = torch.eye(4)
        stepper.step({"unet": 0.1}, torch.amp.GradScaler("cpu", enabled=False))
    assert torch.equal(trained["unet.b"], torch.full((4, 4), 2.0))
    assert not torch.equal(trained["unet.a"], torch.full((4, 4), 2.0))


def test_prodigy_has_one_rate_for_all(blank: Path) -> None:
    engine = create(blank, "both", optim=replace(OPTIM, name="prodigy"))
    batch, c = rows(engine, Objective(), tokens=True)
    with pytest.raises(RecipeError, match=r"1 of unet, 0\.5 of text_encoder") as caught:
        engine.step([(batch, c)], lr={"unet": 1.0, "text_encoder": 0.5}, ema_decay=0.0, key=0)
    assert "optim.text_encoder_lr" in str(caught.value)


# ---------------------------------------------------------------- skipped steps and resume


@pytest.mark.parametrize("poison", list(Small.SHAPES))
@pytest.mark.parametrize("fp16", [False, True])
def test_a_step_without_finite_gradient_leaves_no_trace(name: str, fp16: bool, poison: str) -> None:
    """As the very first and between two: what follows is as if it had not been, whichever part it came from."""
    lr = changing(name)[0]
    small, undisturbed = Small(name, fp16=fp16), Small(name, fp16=fp16)
    assert not np.isfinite(small.step(0, lr, poison=poison))
    for each in (small, undisturbed):
        each.step(1, lr)
    before = small.read()
    assert not np.isfinite(small.step(2, lr, poison=poison))
    after = small.read()
    for each in (small, undisturbed):
        each.scaler.load_state_dict(undisturbed.scaler.state_dict())
        each.step(3, lr)
    found, wanted = small.read(), undisturbed.read()
    if fp16:  # the loss scale alone learns from it
        scales = [each["optimizer"].pop("scaler") for each in (before, after, found, wanted)]
        assert scales[1][0] == scales[0][0] / 2
    assert same(before, after)
    assert same(found, wanted)


@pytest.mark.parametrize("name", ["prodigy", "muon", "adamw_8bit"])
def test_the_engine_says_that_it_skipped(blank: Path, name: str) -> None:
    engine = create(blank, "both", optim=replace(OPTIM, name=name))
    batch, c = rows(engine, Objective(), tokens=True)
    poisoned = replace(batch, x0=np.full_like(batch.x0, np.nan))
    engine.step([(batch, c)], lr=rates(1.0), ema_decay=0.0, key=0).read()
    before = engine.read()
    assert engine.step([(poisoned, c)], lr=rates(1.0), ema_decay=0.0, key=1).read().skipped
    assert same(before, engine.read())


@pytest.mark.parametrize("channels_last", [False, True])
def test_state_comes_back_to_the_last_bit(name: str, channels_last: bool) -> None:
    """Three steps straight, and one, then two after reading and writing: into a fresh one, and over another's state."""
    straight, first, second, used = (Small(name, channels_last=channels_last) for _ in range(4))
    plan = list(enumerate(changing(name)))
    for small, steps in ((straight, plan), (first, plan[:1]), (used, plan[1:])):
        for key, lr in steps:
            small.step(key, lr)
    saved = first.read()
    first.step(9, plan[0][1])  # what was read must not change with it
    for small in (second, used):
        small.write(saved)
        for key, lr in plan[1:]:
            small.step(key, lr)
        assert same(straight.read(), small.read())


@pytest.mark.parametrize(
    "name",
    [
        "adamw_8bit",
        "prodigy",
        "adamw_schedule_free",
        pytest.param("adafactor", marks=pytest.mark.slow),
        pytest.param("muon", marks=pytest.mark.slow),
    ],
)
def test_resume_in_bf16_is_the_uninterrupted_run(blank: Path, name: str) -> None:
    """The same on the engine; all that moves is float32, but for the 8-bit states."""
    straight, first, second = (create(blank, "both", optim=replace(OPTIM, name=name), precision="bf16") for _ in "abc")
    batch, c = rows(straight, Objective(), tokens=True)
    plan = list(enumerate(changing(name)))
    for engine, steps in ((straight, plan), (first, plan[:1])):
        for key, lr in steps:
            engine.step([(batch, c)], lr=lr, ema_decay=0.0, key=key).read()
    second.write(first.read())
    for key, lr in plan[1:]:
        second.step([(batch, c)], lr=lr, ema_decay=0.0, key=key).read()
    assert same(straight.read(), second.read())
    kinds = {value.dtype.name for value in straight.read()["optimizer"].values() if value.shape}
    assert kinds == ({"float32", "uint8"} if name == "adamw_8bit" else {"float32"})
    assert {value.dtype for value in straight.trained.values()} == {torch.float32}


def test_states_of_another_optimiser_or_model_are_refused() -> None:
    other = Small("prodigy")
    other.step(0, rates(1.0))
    saved = other.read()["optimizer"]
    adamw = Small("adamw")
    with pytest.raises(StorageError, match="group/unet/d"):
        adamw.write({"weights": other.read()["weights"], "optimizer": saved})
    with pytest.raises(StorageError, match="not being trained"):
        adamw.write({"weights": other.read()["weights"], "optimizer": {"exp_avg/unet.other": np.zeros(1)}})


# ---------------------------------------------------------------- averages


def test_schedule_free_draws_and_ships_its_averages(blank: Path) -> None:
    """x as the library's own eval() has it; training goes on from y as if nobody had looked."""
    optim = replace(OPTIM, name="adamw_schedule_free")
    engine, unseen = (create(blank, "both", optim=optim) for _ in "ab")
    assert engine.averaging
    assert not engine.averages
    batch, c = rows(engine, Objective(), tokens=True)
    assert same({"x": engine.read()["ema"]}, {"x": engine.read()["weights"]})
    for key, lr in enumerate(changing("adamw_schedule_free")):
        for each in (engine, unseen):
            each.step([(batch, c)], lr=lr, ema_decay=0.0, key=key).read()
        engine.evaluate(batch, c, ema=True)
        engine.read()
    found, wanted = engine.read(), unseen.read()
    assert same(found, wanted)
    averaged = engine.evaluate(batch, c, ema=True)
    for each in unseen.optimizer.made:
        each.eval()
    shipped = unseen.read()["weights"]
    assert same({"x": found["ema"]}, {"x": shipped})
    assert not same({"x": found["ema"]}, {"x": found["weights"]})
    assert np.array_equal(averaged, unseen.evaluate(batch, c))
    assert not np.array_equal(averaged, engine.evaluate(batch, c))


def test_offloaded_averages_are_the_same(blank: Path) -> None:
    engines = [create(blank, "both", optim=replace(OPTIM, ema=True, ema_offload=offload)) for offload in (False, True)]
    batch, c = rows(engines[0], Objective(), tokens=True)
    for engine in engines:
        for key, lr in enumerate(changing("adamw")):
            engine.step([(batch, c)], lr=lr, ema_decay=0.6, key=key).read()
        assert engine.averaging
    kept, offloaded = (engine.read() for engine in engines)
    assert same(kept, offloaded)
    assert not same({"x": kept["ema"]}, {"x": kept["weights"]})
    assert {value.device.type for value in engines[1].averages.values()} == {"cpu"}
    assert np.array_equal(*(engine.evaluate(batch, c, ema=True) for engine in engines))


# ---------------------------------------------------------------- what cannot be had


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("adamw_8bit", "bitsandbytes", "bitsandbytes"),
        ("lion", "lion_pytorch", "lion-pytorch"),
        ("prodigy", "prodigyopt", "prodigyopt"),
        ("adamw_schedule_free", "schedulefree", "schedulefree"),
    ],
)
def test_a_missing_package_is_named(name: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RecipeError, match=f"needs the package {package}") as caught:
        optimizers.create(Optim(name=name), {"unet.a": nn.Parameter(torch.ones(2, 2))})
    assert f"pip install {package}" in str(caught.value)


def test_a_device_without_8_bit_optimisers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What bitsandbytes says on a device that it has no such kernel for."""

    def step(_: object) -> None:
        raise NotImplementedError("Could not run 'bitsandbytes::optimizer_update_8bit_blockwise'")

    monkeypatch.setattr(bitsandbytes.optim.AdamW8bit, "step", step)
    with pytest.raises(DeviceError, match="no 8-bit optimiser for cpu"):
        optimizers.create(Optim(name="adamw_8bit"), {"unet.a": nn.Parameter(torch.ones(2, 2))})


@pytest.mark.parametrize(
    ("optim", "said"),
    [
        (Optim(name="rmsprop"), "not known"),
        (Optim(name="muon"), "none is trained"),
        (Optim(name="adamw", betas=(1.0, 0.9)), "cannot be set up"),
        (Optim(name="adamw_schedule_free", betas=(0.0, 0.9)), "above 0"),
        (Optim(name="adamw_schedule_free", ema=True), "averages the weights itself"),
    ],
)
def test_what_cannot_be_is_refused_before_training(optim: Optim, said: str) -> None:
    with pytest.raises(GessoError, match=said):
        optimizers.create(optim, {"unet.bias": nn.Parameter(torch.ones(3))})
