"""Adapters of every kind: where they go, what they change, and that peft itself would do the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from gesso.arrays import Array
from gesso.data.batch import Batch
from gesso.engines.engine import Adapter, Optim, Rule
from gesso.engines.layers import choose
from gesso.engines.torch import adapters
from gesso.engines.torch.engine import Engine, create
from gesso.errors import RecipeError
from gesso.families import find
from gesso.objective.coefficients import Coefficients
from gesso.objective.objective import Objective
from gesso.schema import TorchEngine

KINDS = ("lora", "dora", "loha", "lokr", "oft")
FAMILY = find("StableDiffusionPipeline")
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")
RATES = {"unet": 1e-2, "text_encoder": 1e-2}
CAPTIONS = ["a cat", "an apple on a red background", "", "a toy"]


def both(kind: str, **more: Any) -> Adapter:
    size = {"rank": 4, "alpha": 4.0 if kind == "oft" else 6.0}
    return Adapter(kind=kind, targets={"unet": ATTENTION, "text_encoder": TEXT}, **{**size, **more})


def made(blank: Path, adapter: Adapter | None, precision: str = "fp32", **options: Any) -> Engine:
    engine = create(TorchEngine(), device="cpu", precision=precision, **options)
    engine.load(blank, FAMILY, parts=() if adapter else ("unet",))
    engine.attach(adapter, Optim(clip=0.0))
    return engine


def rows(engine: Engine) -> tuple[Batch, Coefficients]:
    x0, eps = np.random.default_rng(5).standard_normal((2, 4, 4, 16, 16)).astype(np.float32)
    share = np.full(4, 0.25, dtype=np.float32)
    batch = Batch(x0=x0, eps_in=eps, eps_target=eps, cond=engine.tokens(CAPTIONS), weight=share, ids=np.arange(4))
    return batch, Objective().at(np.array([10, 300, 600, 990]))


def filled(weights: Mapping[str, Array]) -> dict[str, Array]:
    """The same names with values none of which is 0, so that every gradient is there."""
    rng = np.random.default_rng(7)
    return {
        name: (value if "magnitude" in name else 0) + rng.normal(0, 0.1, value.shape).astype(np.float32)
        for name, value in sorted(weights.items())
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_at_first_an_adapter_changes_nothing(kind: str, precision: str, blank: Path) -> None:
    adapted = made(blank, both(kind), precision)
    found = adapted.evaluate(*rows(adapted))
    with adapters.switched_off([adapted.models.get(part) for part in ("unet", "text_encoder")]):
        np.testing.assert_array_equal(adapted.evaluate(*rows(adapted)), found)
    if precision == "fp32":
        plain = made(blank, None)
        np.testing.assert_array_equal(plain.evaluate(*rows(plain)), found)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_steps_move_every_adapter_and_nothing_else(kind: str, precision: str, blank: Path) -> None:
    engine = made(blank, both(kind), precision, checkpointing=True)
    nets = {part: engine.models.get(part) for part in ("unet", "text_encoder")}
    trained = {id(value) for value in engine.trained.values()}
    assert {value.dtype for value in engine.trained.values()} == {torch.float32}
    assert all(value.requires_grad == (id(value) in trained) for net in nets.values() for value in net.parameters())
    frozen = [value for net in nets.values() for value in net.parameters() if id(value) not in trained]
    kept, before = [value.clone() for value in frozen], engine.read()["weights"]
    for key in range(2):
        engine.step([rows(engine)], lr=RATES, ema_decay=0.0, key=key).read()
    after = engine.read()["weights"]
    assert [name for name in before if np.array_equal(before[name], after[name])] == []
    assert {name.split(".")[0] for name in after} == {"unet", "text_encoder"}
    assert all(torch.equal(value, other) for value, other in zip(frozen, kept, strict=True))


def peft_config(kind: str, adapter: Adapter, targets: tuple[str, ...]) -> Any:
    """The configuration as one would write it by hand."""
    common: dict[str, Any] = {"r": adapter.rank, "target_modules": list(targets)}
    makers: dict[str, Callable[[], Any]] = {
        "lora": lambda: LoraConfig(lora_alpha=adapter.alpha, **common),
        "dora": lambda: LoraConfig(lora_alpha=adapter.alpha, use_dora=True, **common),
        "loha": lambda: LoHaConfig(alpha=adapter.alpha, **common),
        "lokr": lambda: LoKrConfig(alpha=adapter.alpha, decompose_factor=adapter.factor, **common),
        "oft": lambda: OFTConfig(oft_block_size=0, **common),
    }
    return makers[kind]()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_plain_peft(kind: str, blank: Path) -> None:
    adapter = both(kind, factor=4)
    engine = made(blank, adapter)
    weights = filled(engine.read()["weights"])
    engine.write({"weights": weights})
    batch, c = rows(engine)

    nets: dict[str, Any] = {
        "unet": UNet2DConditionModel.from_pretrained(blank / "unet"),
        "text_encoder": CLIPTextModel.from_pretrained(blank / "text_encoder"),
    }
    parameters: dict[str, nn.Parameter] = {}
    for part, net in nets.items():
        net.requires_grad_(False)
        inject_adapter_in_model(peft_config(kind, adapter, adapter.targets[part]), net)
        for name, value in net.named_parameters():
            if value.requires_grad:
                plain = f"{part}.{name}.".replace(".default.", ".").strip(".")
                parameters[plain.removesuffix(".weight") if "magnitude" in plain else plain] = value
    assert parameters.keys() == weights.keys()
    for name, value in parameters.items():
        value.data = torch.from_numpy(weights[name])
    x0, eps = (torch.from_numpy(value) for value in (batch.x0, batch.eps_in))
    column = {name: torch.from_numpy(getattr(c, name).astype(np.float32)).view(-1, 1, 1, 1) for name in "ab"}
    text = nets["text_encoder"](torch.from_numpy(batch.cond["text_encoder"])).last_hidden_state
    times = torch.from_numpy(c.c_noise.astype(np.float32))
    answer = nets["unet"](column["a"] * x0 + column["b"] * eps, times, text).sample
    loss = nn.functional.mse_loss(answer, eps)
    loss.backward()  # type: ignore[no-untyped-call]

    result = engine.step([(batch, c)], lr=RATES, ema_decay=0.0, key=0).read()
    assert result.loss == pytest.approx(loss.item(), rel=1e-6)
    moments = engine.read()["optimizer"]
    for name, value in parameters.items():
        assert value.grad is not None
        expected = 0.1 * value.grad.numpy()  # the first moment is (1 − beta1) times the first gradient
        found = moments[f"exp_avg/{name}"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * float(np.abs(expected).max() + 1e-9))


@pytest.mark.parametrize("kind", KINDS)
def test_any_kind_goes_on_as_if_it_had_not_stopped(kind: str, blank: Path) -> None:
    adapter = both(kind, dropout=0.0 if kind == "oft" else 0.25)
    straight, first, second = (made(blank, adapter) for _ in range(3))
    for key in range(3):
        straight.step([rows(straight)], lr=RATES, ema_decay=0.0, key=key).read()
    first.step([rows(first)], lr=RATES, ema_decay=0.0, key=0).read()
    second.write(first.read())
    for key in (1, 2):
        second.step([rows(second)], lr=RATES, ema_decay=0.0, key=key).read()
    one, other = straight.read(), second.read()
    assert one.keys() == other.keys()
    for file in one:
        assert one[file].keys() == other[file].keys()
        assert [name for name in one[file] if not np.array_equal(one[file][name], other[file][name])] == []


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_dropout_acts_in_training_alone_and_by_the_key(kind: str, blank: Path) -> None:
    engine = made(blank, both(kind, dropout=0.5))
    engine.write({"weights": filled(engine.read()["weights"])})
    still = {"unet": 0.0, "text_encoder": 0.0}
    losses = [engine.step([rows(engine)], lr=still, ema_decay=0.0, key=key).read().loss for key in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    plain = made(blank, both(kind))
    plain.write({"weights": engine.read()["weights"]})
    np.testing.assert_array_equal(engine.evaluate(*rows(engine)), plain.evaluate(*rows(plain)))


# ---------------------------------------------------------------- rules


def unet_of(blank: Path) -> Any:
    return UNet2DConditionModel.from_pretrained(blank / "unet")


RULES = (
    Rule(match="mid_block.*", rank=8),
    Rule(match="text_encoder.*q_proj", rank=2, alpha=5.0),
    Rule(match="unet.mid_block.*to_k", alpha=3.0, dropout=0.5),
    Rule(match="up_blocks.*", skip=True),
)


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_rules_give_layers_their_own_sizes(kind: str, blank: Path) -> None:
    nets = {"unet": unet_of(blank), "text_encoder": CLIPTextModel.from_pretrained(blank / "text_encoder")}
    adapters.attach(nets, both(kind, rules=RULES))
    seen = set()
    for part, net in nets.items():
        for name, layer in net.named_modules():
            if not isinstance(layer, BaseTunerLayer):
                assert not name.endswith(ATTENTION) or name.startswith("up_blocks") or "base_layer" in name
                continue
            middle, key, query = "mid_block" in name, name.endswith("to_k"), name.endswith("q_proj")
            rank = 8 if middle else 2 if query else 4
            alpha = 3.0 if middle and key else 8.0 if middle else 5.0 if query else 6.0
            assert layer.r["default"] == rank
            assert layer.scaling["default"] == pytest.approx(alpha / rank)
            assert not name.startswith("up_blocks")
            if kind in ("lora", "dora"):
                assert layer.lora_A["default"].weight.shape[0] == rank
                assert getattr(layer.lora_dropout["default"], "p", 0.0) == (0.5 if middle and key else 0.0)
            else:
                assert layer.rank_dropout["default"] == (0.5 if middle and key else 0.0)
            seen.add((part, rank, alpha))
    assert seen == {
        ("unet", 8, 8.0),
        ("unet", 8, 3.0),
        ("unet", 4, 6.0),
        ("text_encoder", 2, 5.0),
        ("text_encoder", 4, 6.0),
    }


def test_a_parts_name_in_front_means_that_part_alone() -> None:
    layers = {part: ["text_model.encoder.layers.0.self_attn.q_proj"] for part in ("text_encoder", "text_encoder_2")}
    adapter = Adapter(
        targets=dict.fromkeys(layers, ("q_proj",)),
        rules=(Rule(match="text_encoder.*", rank=2), Rule(match=r"encoder\.layers\.0.*", dropout=0.25)),
    )
    found = choose(adapter, layers)
    assert [next(iter(found[part].values())).rank for part in layers] == [2, 16]
    assert {next(iter(own.values())).dropout for own in found.values()} == {0.25}


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ((Rule(match="nowhere", rank=2),), r'\[\[rules\]\]: "nowhere" matches no layer that has an adapter.*to_q'),
        ((Rule(match="conv_in", rank=2),), "matches no layer that has an adapter"),
        ((Rule(match="("),), "is not a regular expression"),
        ((Rule(match="mid_block.*", skip=True), Rule(match="mid_block.*", rank=2)), "no layer that has an adapter"),
        ((Rule(match="text_encoder.*", skip=True),), r"leave no layer of text_encoder with an adapter"),
        (
            (Rule(match="mid_block.*", rank=400),),
            r"rank 400 is more than the layer unet.mid_block.* has: its weight is",
        ),
    ],
)
def test_rules_that_cannot_be_are_refused(rules: tuple[Rule, ...], said: str, blank: Path) -> None:
    with pytest.raises(RecipeError, match="(?s)" + said):
        made(blank, both("lora", rules=rules))


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        (replace(both("lora"), targets={"unet": ("to_q", "nope")}), r'adapter.targets: "nope" matches no layer'),
        (replace(both("lora"), targets={"text_encoder": ("nope",)}), r'adapter.text_targets: "nope" matches no layer'),
        (both("lora", rank=1000, alpha=1.0), r"rank 1000 is more than the layer unet\..* has: its weight is \d+ × \d+"),
        (both("loha", rank=1000, alpha=1.0), r"rank 1000 is more than"),
        (both("oft", rank=5, alpha=5.0), r"cannot cut the \d+ inputs of the layer .* into 5 blocks"),
        (both("oft", alpha=2.0), "adapter.alpha has no meaning for oft"),
        (both("oft", dropout=0.5), "OFT applies no dropout"),
        (both("oft", rules=(Rule(match="to_q", rank=2),)), "one number of blocks for all layers"),
        (replace(both("oft"), targets={"unet": ("conv1",)}), "oft cannot go on the layer unet.*conv1"),
        (replace(both("loha", dropout=0.5), targets={"unet": ("conv_out",)}), "leave out all 4 rows of the layer"),
    ],
)
def test_sizes_that_cannot_be_are_refused(adapter: Adapter, said: str, blank: Path) -> None:
    with pytest.raises(RecipeError, match="(?s)" + said):
        made(blank, adapter)


# ---------------------------------------------------------------- sizes of the real models


def sd_unet(width: int, heads: Any, *, linear: bool = False) -> UNet2DConditionModel:
    return UNet2DConditionModel(cross_attention_dim=width, attention_head_dim=heads, use_linear_projection=linear)


def sdxl_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def text(width: int, layers: int, *, projected: bool = False) -> Any:
    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=width // 64
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


@pytest.mark.parametrize(
    ("part", "build", "count"),
    [
        ("unet", lambda: sd_unet(768, 8), 797_184),
        ("unet", lambda: sd_unet(1024, (5, 10, 20, 20), linear=True), 829_952),
        ("unet", sdxl_unet, 5_806_080),
        ("text_encoder", lambda: text(768, 12), 294_912),
        ("text_encoder_2", lambda: text(1280, 32, projected=True), 1_310_720),
        ("text_encoder", lambda: text(1024, 23), 753_664),
    ],
    ids=["SD 1.5", "SD 2.x", "SDXL", "CLIP-L", "bigG", "OpenCLIP-H"],
)
def test_a_lora_of_rank_4_is_as_large_as_it_should_be(part: str, build: Callable[[], Any], count: int) -> None:
    with torch.device("meta"):
        net = build()
        adapters.attach({part: net}, Adapter(rank=4, alpha=4.0, targets={part: ATTENTION if part == "unet" else TEXT}))
    assert sum(value.numel() for value in net.parameters() if value.requires_grad) == count
