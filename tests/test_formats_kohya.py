"""kohya's LoRA names against the architectures and diffusers' reader, and the older forms of LoRA files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_formats_single_file import TEXTS, network

from gesso.errors import RecipeError, StorageError
from gesso.formats import kohya, layout, lora, lora_forms, tensors
from gesso.formats.adapter import Config
from gesso.formats.kohya import MAGNITUDE, A, B

RANKS, ALPHAS = (2, 3, 4), (1.0, 2.5, 6.0, 0.75)
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")


def layers(net: Any, inside: str = "") -> dict[str, tuple[int, ...]]:
    """The weight of each matrix and convolution, by module; only those inside of a class where one is named."""
    found = {}
    for name, module in net.named_modules():
        if inside and type(module).__name__ != inside:
            continue
        for inner, layer in module.named_modules() if inside else [("", module)]:
            if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
                full = f"{name}.{inner}".strip(".")
                found[full.removeprefix("text_model.")] = tuple(layer.weight.shape)
    return found


def draw(
    shapes: dict[str, tuple[int, ...]], *, dora: bool = False, alpha: float = 0.0
) -> tuple[dict[str, np.ndarray], dict[str, tuple[int, float]]]:
    """A random LoRA on these layers, ranks (and without an alpha for all, alphas) changing from one to the next."""
    rng = np.random.default_rng(7)
    arrays, sizes = {}, {}
    for number, (name, shape) in enumerate(sorted(shapes.items())):
        rank = RANKS[number % 3]
        sizes[name] = (rank, alpha or ALPHAS[number % 4])
        assert sizes[name][1] != rank
        arrays[f"{name}.{A}"] = rng.normal(0, 0.2, (rank, *shape[1:])).astype(np.float32)
        arrays[f"{name}.{B}"] = rng.normal(0, 0.2, (shape[0], rank, *[1] * (len(shape) - 2))).astype(np.float32)
        if dora:
            flat = (1, -1, 1, 1) if len(shape) == 4 else (-1,)
            arrays[f"{name}.{MAGNITUDE}"] = rng.uniform(0.5, 2, shape[0]).astype(np.float32).reshape(flat)
    return arrays, sizes


def equal(one: Any, two: Any) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def real() -> dict[str, dict[str, tuple[int, ...]]]:
    """Every layer of the real models, each with a first axis of 2 in place of its size."""
    return {
        family: {
            f"{part}.{name}": (2, 2, *shape[2:])
            for part in ("unet", *TEXTS[family])
            for name, shape in layers(network(family, part)).items()
        }
        for family in kohya.FAMILIES
    }


GOLDEN = {
    "sd1": {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "lora_unet_down_blocks_1_attentions_1_transformer_blocks_0_attn2_to_out_0",
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj",
        "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_2",
        "lora_unet_up_blocks_1_attentions_0_proj_in",
        "lora_unet_down_blocks_0_resnets_1_time_emb_proj",
        "lora_unet_down_blocks_1_resnets_0_conv_shortcut",
        "lora_unet_down_blocks_0_downsamplers_0_conv",
        "lora_unet_time_embedding_linear_1",
        "lora_unet_conv_in",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te_text_model_encoder_layers_11_mlp_fc2",
    },
    "sdxl": {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_input_blocks_8_1_transformer_blocks_9_attn2_to_out_0",
        "lora_unet_middle_block_1_transformer_blocks_3_ff_net_0_proj",
        "lora_unet_output_blocks_0_1_transformer_blocks_9_ff_net_2",
        "lora_unet_output_blocks_5_1_proj_in",
        "lora_unet_input_blocks_1_0_in_layers_2",
        "lora_unet_input_blocks_1_0_emb_layers_1",
        "lora_unet_input_blocks_4_0_skip_connection",
        "lora_unet_output_blocks_8_0_out_layers_3",
        "lora_unet_input_blocks_3_0_op",
        "lora_unet_output_blocks_2_2_conv",
        "lora_unet_time_embed_0",
        "lora_unet_label_emb_0_2",
        "lora_unet_input_blocks_0_0",
        "lora_unet_out_2",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "lora_te2_text_model_encoder_layers_31_self_attn_out_proj",
        "lora_te2_text_projection",
    },
}
COUNTS = {"sd1": (192, 72, 0), "sd2": (192, 138, 0), "sdxl": (722, 72, 192)}
"""Modules that kohya's script says it makes LoRA for: below Transformer2DModel, and CLIPAttention and CLIPMLP."""


@pytest.mark.parametrize("family", kohya.FAMILIES)
def test_every_layer_of_the_real_models_has_a_name_of_its_own(family: str, real: Any) -> None:
    arrays, sizes = draw(real[family])
    packed = kohya.pack(arrays, sizes, family)
    modules = {name.split(".")[0] for name in packed}
    assert len(modules) == len(sizes)
    assert len(packed) == 3 * len(sizes)
    assert modules >= GOLDEN.get(family, set())
    back, found = kohya.unpack(packed)
    assert equal(back, arrays)
    assert found == sizes


@pytest.mark.parametrize("family", kohya.FAMILIES)
def test_the_usual_modules_are_as_many_as_kohyas_script_counts(family: str) -> None:
    counts = [len(layers(network(family, "unet"), "Transformer2DModel"))]
    for part in ("text_encoder", "text_encoder_2"):
        net = network(family, part) if part in TEXTS[family] else None
        counts.append(sum(len(layers(net, kind)) for kind in ("CLIPAttention", "CLIPMLP")) if net else 0)
    assert tuple(counts) == COUNTS[family]


def test_diffusers_rules_give_the_same_names(real: Any) -> None:
    """Its own map from the original code's block names, and its own spelling of attention, give back each module."""
    from diffusers.loaders import lora_conversion_utils as theirs

    shapes = {n: s for n, s in real["sdxl"].items() if ".attentions." in n}
    arrays, sizes = draw(shapes)
    packed = {name: torch.from_numpy(array) for name, array in kohya.pack(arrays, sizes, "sdxl").items()}
    unet_config = type("Config", (), {"layers_per_block": 2})
    mapped = theirs._maybe_map_sgm_blocks_to_diffusers(packed, unet_config)
    found, alphas = theirs._convert_non_diffusers_lora_to_diffusers(mapped)
    assert len(alphas) == len(sizes)
    for name, value in found.items():
        form = "processor" if "_lora." in name else "diffusers"
        own = lora_forms.own_name(name, form)
        assert np.array_equal(arrays[own], value.numpy())
    assert len(found) == len(arrays)


def pipe_of(folder: Path) -> Any:
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(folder, local_files_only=True, safety_checker=None)


def answers(pipe: Any) -> list[np.ndarray]:
    """Of the UNet and of each text encoder."""
    seed = torch.Generator().manual_seed(5)
    unet = pipe.unet
    x = torch.randn(2, 4, 16, 16, generator=seed)
    words = torch.randn(2, 7, unet.config.cross_attention_dim, generator=seed)
    extra = {}
    if unet.config.addition_embed_type:
        extra = {"text_embeds": torch.randn(2, 40, generator=seed), "time_ids": torch.ones(2, 6)}
    with torch.no_grad():
        made = [unet(x, torch.tensor([10, 700]), words, added_cond_kwargs=extra).sample]
        for part in ("text_encoder", "text_encoder_2"):
            if getattr(pipe, part, None) is not None:
                made.append(getattr(pipe, part)(torch.arange(1, 9)[None])[0])
    return [value.numpy() for value in made]


def targets(pipe: Any, usual: bool) -> dict[str, tuple[int, ...]]:
    """Attention and feed-forward of all parts; or every layer of the UNet that both readers know."""
    found = {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        net = getattr(pipe, part, None)
        for name, shape in layers(net).items() if net is not None else ():
            inside = ".attn" in name or ".ff." in name or "self_attn" in name or ".mlp." in name
            if inside or (not usual and ("proj_in" in name or "resnets" in name or "samplers" in name)):
                found[f"{part}.{name}"] = shape
    return found


@pytest.fixture(params=["sd1", "sdxl"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(family: str, blank: Path, blank_xl: Path) -> Path:
    return blank if family == "sd1" else blank_xl


def geometry_of(pipe: Any) -> layout.Geometry:
    return layout.unet_geometry(dict(pipe.unet.named_parameters()))


@pytest.mark.parametrize("usual", [True, False])
def test_diffusers_loads_the_file_as_it_loads_its_own(folder: Path, family: str, usual: bool, tmp_path: Path) -> None:
    plain, kohyas, own = pipe_of(folder), pipe_of(folder), pipe_of(folder)
    arrays, sizes = draw(targets(plain, usual), alpha=2.5)
    packed = kohya.pack(arrays, sizes, family, geometry_of(plain))
    tensors.save(tmp_path / "kohya.safetensors", packed, kohya.metadata(sizes, family, "x"))
    kohyas.load_lora_weights(tmp_path, weight_name="kohya.safetensors")
    lora.write(tmp_path / "own.safetensors", arrays, Config.of(sizes))
    own.load_lora_weights(tmp_path, weight_name="own.safetensors")
    before, one, two = answers(plain), answers(kohyas), answers(own)
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert all(np.abs(a - b).max() > 0.01 for a, b in zip(before, one, strict=True))
    merge(plain, arrays, sizes)
    for merged, loaded in zip(answers(plain), one, strict=True):
        np.testing.assert_allclose(merged, loaded, rtol=1e-4, atol=1e-4)


def merge(pipe: Any, arrays: Any, sizes: Any) -> None:
    """W + alpha/rank·B·A by hand."""
    for name, (rank, alpha) in sizes.items():
        part, _, module = name.partition(".")
        known = dict(getattr(pipe, part).named_modules())
        weight = (known.get(module) or known[f"text_model.{module}"]).weight
        down, up = (torch.from_numpy(arrays[f"{name}.{side}"]) for side in (A, B))
        weight.data += alpha / rank * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)


def test_alphas_that_differ_are_made_one_for_readers_that_take_one(folder: Path, family: str, tmp_path: Path) -> None:
    """diffusers finds no attention layer by its alpha's name, and would scale each by one alpha."""
    plain, loaded = pipe_of(folder), pipe_of(folder)
    arrays, sizes = draw(targets(plain, usual=True))
    evened, one = kohya.evened(arrays, sizes)
    assert len({alpha for _, alpha in one.values()}) == 1
    packed = kohya.pack(evened, one, family, geometry_of(plain))
    tensors.save(tmp_path / "kohya.safetensors", packed)
    loaded.load_lora_weights(tmp_path, weight_name="kohya.safetensors")
    merge(plain, arrays, sizes)
    for merged, found in zip(answers(plain), answers(loaded), strict=True):
        np.testing.assert_allclose(merged, found, rtol=1e-4, atol=1e-4)
    assert equal(kohya.evened(evened, one)[0], evened)


def test_dora_scales_are_columns_and_come_back(blank: Path) -> None:
    pipe = pipe_of(blank)
    shapes = targets(pipe, usual=False)
    arrays, sizes = draw(shapes, dora=True)
    packed = kohya.pack(arrays, sizes, "sd1")
    for name, shape in shapes.items():
        flat = f"lora_{'unet' if name.startswith('unet') else 'te'}_"
        flat += name.split(".", 1)[1].replace(".", "_") if "unet" in flat else ""
        if "unet" in flat:
            assert packed[f"{flat}.dora_scale"].shape == (shape[0], *[1] * (len(shape) - 1))
    back, found = kohya.unpack(packed)
    assert equal(back, arrays)
    assert found == sizes
    columns = {**packed}
    name = next(name for name in packed if name.endswith("to_q.dora_scale"))
    columns[name] = columns[name].T
    with pytest.raises(StorageError, match="scales the columns of the weight"):
        kohya.unpack(columns)


def old_name(name: str, form: str) -> str:
    """A name of an engine's in the forms that diffusers wrote in 2023."""
    side = "down" if name.endswith(A) else "up"
    module = name.removesuffix(f".{A}").removesuffix(f".{B}")
    if form == "diffusers":
        middle = "lora_linear_layer" if module.startswith("text") else "lora"
        return f"{module.replace('text_encoder.', 'text_encoder.text_model.')}.{middle}.{side}.weight"
    block, _, layer = module.removesuffix(".0").rpartition(".")
    plain = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}.get(layer, layer)
    inner = "" if module.startswith("text") else ".processor"
    return f"{block.replace('text_encoder.', 'text_encoder.text_model.')}{inner}.{plain}_lora.{side}.weight"


@pytest.mark.parametrize("form", ["diffusers", "processor", "bare"])
def test_the_forms_of_2023_are_read(blank: Path, tmp_path: Path, form: str) -> None:
    pipe = pipe_of(blank)
    shapes = {
        n: s for n, s in targets(pipe, usual=True).items() if n.endswith(ATTENTION) and (form != "bare" or "unet" in n)
    }
    arrays, sizes = draw(shapes)
    named = {old_name(name, form.replace("bare", "processor")): array for name, array in arrays.items()}
    if form == "bare":
        named = {name.removeprefix("unet."): array for name, array in named.items()}
    found = lora_forms.standard(named)
    assert found.form == form.replace("bare", "processor")
    assert found.kind == "lora"
    assert equal(found.arrays, arrays)
    assert found.sizes == {name: (rank, float(rank)) for name, (rank, _) in sizes.items()}


def test_peft_files_keep_their_alphas(blank: Path, tmp_path: Path) -> None:
    arrays, sizes = draw(targets(pipe_of(blank), usual=True), dora=True)
    lora.write(tmp_path / "x.safetensors", arrays, Config.of(sizes, kind="dora"))
    path = tmp_path / "x.safetensors"
    found = lora_forms.standard(tensors.load(path), tensors.header(path).metadata, path=path)
    assert (found.form, found.kind) == ("peft", "dora")
    assert equal(found.arrays, arrays)
    assert found.sizes == sizes
    prefixed = {f"base_model.model.{name}": array for name, array in tensors.load(path).items()}
    assert equal(lora_forms.standard(prefixed).arrays, arrays)


def test_sdxl_files_in_diffusers_names_are_read_too(blank_xl: Path) -> None:
    arrays, sizes = draw({n: s for n, s in targets(pipe_of(blank_xl), usual=True).items() if n.startswith("unet")})
    assert equal(kohya.unpack(kohya.pack(arrays, sizes, "sd1"))[0], arrays)


def test_the_family_is_told_by_the_width_of_the_text() -> None:
    name = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight"
    families = {768: "sd1", 1024: "sd2", 2048: "sdxl", 999: None}
    assert {width: kohya.family_of({name: (4, width)}) for width in families} == families
    assert kohya.family_of({"text_encoder_2.encoder.layers.0.mlp.fc1.lora_A.weight": (4, 9)}) == "sdxl"
    assert kohya.family_of({"unet.conv_in.lora_A.weight": (4, 4, 3, 3)}) is None


def test_metadata_says_rank_and_alpha_and_no_path() -> None:
    one = kohya.metadata({"unet.a": (4, 2.5), "unet.b": (4, 2.5)}, "sd2", "dog")
    assert (one["ss_network_dim"], one["ss_network_alpha"], one["ss_v2"]) == ("4", "2.5", "True")
    two = kohya.metadata({"unet.a": (4, 2.5), "unet.b": (8, 2.5)}, "sdxl", "dog")
    assert (two["ss_network_dim"], two["ss_network_alpha"], two["ss_v2"]) == ("Dynamic", "2.5", "False")
    assert two["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"


def small() -> dict[str, np.ndarray]:
    base = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    matrix = np.ones((2, 8), np.float32)
    return {f"{base}.lora_down.weight": matrix, f"{base}.lora_up.weight": matrix.T, f"{base}.alpha": np.float32(1)}


BAD = {
    "no up": (lambda f: {n: a for n, a in f.items() if "up" not in n}, "has no lora_B"),
    "no down": (lambda f: {n: a for n, a in f.items() if "down" not in n}, "has no lora_A"),
    "alpha alone": (lambda f: {n: a for n, a in f.items() if "alpha" in n}, "has an alpha, but no matrices"),
    "ranks": (lambda f: {n: a[:1] if "down" in n else a for n, a in f.items()}, "of no one rank"),
    "alpha": (lambda f: {n: np.array([np.nan]) if "alpha" in n else a for n, a in f.items()}, "is not one number"),
    "loha": (lambda f: {**f, "lora_unet_conv_in.hada_w1_a": np.ones(3)}, "is LoHa, which cannot be carried over"),
    "lokr": (lambda f: {**f, "lora_unet_conv_in.lokr_w1": np.ones(3)}, "is LoKr, which cannot be carried over"),
    "mid": (lambda f: {**f, "lora_unet_conv_in.lora_mid.weight": np.ones(3)}, "is a CP decomposition"),
    "module": (lambda f: {n.replace("mid", "Mid"): a for n, a in f.items()}, "is not kohya's|no LoRA in|not a LoRA"),
    "block": (lambda f: {n.replace("mid_block", "input_blocks_99_1"): a for n, a in f.items()}, "has no"),
    "mixed": (lambda f: {**f, "unet.a.lora_A.weight": np.ones((1, 1))}, "is not kohya's"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_whole_or_no_lora_is_refused(case: str) -> None:
    change, reason = BAD[case]
    assert lora_forms.standard(small()).sizes == {
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q": (2, 1.0)
    }
    with pytest.raises(StorageError, match=reason):
        lora_forms.standard(change(small()))


def test_what_the_form_has_no_name_for_is_refused() -> None:
    arrays, sizes = draw({"unet.other.to_q": (4, 4)})
    with pytest.raises(RecipeError, match="has no name in kohya's form"):
        kohya.pack(arrays, sizes, "sdxl")
    arrays, sizes = draw({"text_encoder_2.encoder.layers.0.mlp.fc1": (4, 4)})
    with pytest.raises(RecipeError, match='no "text_encoder_2" of sd1'):
        kohya.pack(arrays, sizes, "sd1")
    with pytest.raises(RecipeError, match="no names for sd3"):
        kohya.pack(arrays, sizes, "sd3")


def test_diffusers_says_that_it_leaves_dora_scales_out(
    blank: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What docs/formats.md says of this form; once diffusers reads them, that changes and this test with it."""
    pipe, plain = pipe_of(blank), pipe_of(blank)
    arrays, sizes = draw(targets(pipe, usual=True), dora=True, alpha=2.5)
    tensors.save(tmp_path / "dora.safetensors", kohya.pack(arrays, sizes, "sd1"))
    with caplog.at_level(logging.WARNING, logger="diffusers"):  # gesso's engine has it quiet
        pipe.load_lora_weights(tmp_path, weight_name="dora.safetensors")
    assert "not compatible in Diffusers" in caplog.text
    without = {name: array for name, array in arrays.items() if not name.endswith(MAGNITUDE)}
    tensors.save(tmp_path / "lora.safetensors", kohya.pack(without, sizes, "sd1"))
    plain.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    assert all(np.array_equal(a, b) for a, b in zip(answers(pipe), answers(plain), strict=True))
