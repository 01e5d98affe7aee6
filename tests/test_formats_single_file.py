"""Names in diffusers, single files and MindSpore, against diffusers' own converters, at real and tiny sizes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gesso.errors import RecipeError, StorageError
from gesso.formats import layout, mindspore, mindspore_names, parts, single_file, stored
from gesso.formats.stored import Stored, open_safetensors, save_safetensors

SD = {
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
}
UNETS: dict[str, dict[str, Any]] = {
    "sd1": {**SD, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd2": {
        **SD,
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    },
    "sdxl": {
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [320, 640, 1280],
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "sdxl-refiner": {
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [384, 768, 1536, 1536],
        "transformer_layers_per_block": 4,
        "attention_head_dim": [6, 12, 24, 24],
        "cross_attention_dim": 1280,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2560,
    },
}
VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
}
TEXTS = {
    "sd1": {"text_encoder": (768, 12, None)},
    "sd2": {"text_encoder": (1024, 23, None)},
    "sdxl": {"text_encoder": (768, 12, None), "text_encoder_2": (1280, 32, 1280)},
    "sdxl-refiner": {"text_encoder_2": (1280, 32, 1280)},
}
TENSORS = {"sd1": 1130, "sd2": 1214, "sdxl": 2513}
"""Of the published files, without what is computed: position_ids and logit_scale; SD 2's without its unused layer."""


def network(family: str, part: str) -> Any:
    """A real network's parameters, names and shapes only."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        if part == "unet":
            return UNet2DConditionModel(**UNETS[family])
        if part == "vae":
            return AutoencoderKL(**VAE)
        width, layers, projection = TEXTS[family][part]
        config = CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            projection_dim=projection or 512,
        )
        return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def named(net: Any, text: bool) -> dict[str, Stored]:
    """Float32 tensors that would fail if they were read."""

    def read() -> Any:
        raise AssertionError("names and shapes are enough")

    found = {name: Stored(code="F32", shape=tuple(value.shape), read=read) for name, value in net.named_parameters()}
    return parts.openclip.legacy(found) if text else found


@pytest.fixture(scope="module")
def real() -> dict[str, dict[str, dict[str, Stored]]]:
    return {
        family: {part: named(network(family, part), part in texts) for part in ("unet", "vae", *texts)}
        for family, texts in TEXTS.items()
    }


def shapes(tensors: Any) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in tensors.items()}


@pytest.mark.parametrize("family", TEXTS)
def test_the_map_of_a_real_model_goes_there_and_back(family: str, real: Any) -> None:
    packed = single_file.pack(real[family], family)
    assert single_file.family_of(packed) == family
    assert len(packed) == TENSORS.get(family, len(packed))
    found = single_file.unpack(packed)
    assert (found.family, found.dropped, found.flags) == (family, (), ())
    assert {part: shapes(own) for part, own in found.parts.items()} == {
        part: shapes(own) for part, own in real[family].items()
    }


@pytest.mark.parametrize("family", TEXTS)
def test_diffusers_converters_read_the_same_from_it(family: str, real: Any) -> None:
    """Each tensor must reach, under diffusers' own rules, the name that it had."""
    from diffusers.loaders import single_file_utils as theirs

    packed = single_file.pack(real[family], family)
    marked = {name: torch.empty(tensor.shape, device="meta") for name, tensor in packed.items()}
    ours = layout.unet(layout.unet_geometry(real[family]["unet"]))
    config = {"layers_per_block": 2, **UNETS[family]}
    unet = theirs.convert_ldm_unet_checkpoint(dict(marked), config)
    assert unet.keys() == real[family]["unet"].keys()
    for name, value in unet.items():
        assert value is marked[single_file.UNET + str(layout.translate(name, ours))]
    vae = theirs.convert_ldm_vae_checkpoint(dict(marked), VAE)
    table = layout.vae_table(real[family]["vae"])
    assert {name: tuple(value.shape) for name, value in vae.items()} == shapes(real[family]["vae"])
    for name, value in vae.items():
        source = marked[single_file.VAE + str(layout.translate(name, table))]
        assert value is source or tuple(source.shape) == (*value.shape, 1, 1)


@pytest.mark.parametrize(("family", "count"), [("sd1", 1082), ("sd2", 1214)])
def test_the_map_to_mindspore_has_every_name_once(family: str, count: int, real: Any) -> None:
    packed = mindspore_names.pack(real[family], family)
    assert len(packed) == count
    found = mindspore_names.unpack(packed)
    assert found.family == family
    assert {part: shapes(own) for part, own in found.parts.items()} == {
        part: shapes(own) for part, own in real[family].items()
    }
    newer = {
        name.replace(".gamma", ".weight").replace(".beta", ".bias") if name.startswith("first_stage") else name: tensor
        for name, tensor in packed.items()
    }
    assert newer.keys() != packed.keys()
    assert shapes(mindspore_names.unpack(newer).parts["vae"]) == shapes(real[family]["vae"])


MINDSPORE = {  # of each kind of name one, with the shape that SD 2's file has
    "cond_stage_model.transformer.embedding_table": (49408, 1024),
    "cond_stage_model.transformer.positional_embedding": (77, 1024),
    "cond_stage_model.transformer.ln_final.gamma": (1024,),
    "cond_stage_model.transformer.transformer_layer.resblocks.22.attn.attn.in_proj.weight": (3072, 1024),
    "cond_stage_model.transformer.transformer_layer.resblocks.0.attn.attn.in_proj.bias": (3072,),
    "cond_stage_model.transformer.transformer_layer.resblocks.0.attn.attn.out_proj.weight": (1024, 1024),
    "cond_stage_model.transformer.transformer_layer.resblocks.0.c_fc.weight": (4096, 1024),
    "cond_stage_model.transformer.transformer_layer.resblocks.0.c_proj.weight": (1024, 4096),
    "cond_stage_model.transformer.transformer_layer.resblocks.0.ln_1.beta": (1024,),
    "first_stage_model.decoder.mid.attn_1.q.weight": (512, 512, 1, 1),
    "first_stage_model.decoder.mid.attn_1.norm.gamma": (512,),
    "first_stage_model.decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
    "first_stage_model.encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
    "first_stage_model.encoder.norm_out.beta": (512,),
    "first_stage_model.quant_conv.weight": (8, 8, 1, 1),
    "model.diffusion_model.input_blocks.0.0.conv.weight": (320, 4, 3, 3),
    "model.diffusion_model.input_blocks.1.0.in_layers_norm.gamma": (320,),
    "model.diffusion_model.input_blocks.1.0.in_layers_conv.conv.weight": (320, 320, 3, 3),
    "model.diffusion_model.input_blocks.1.0.emb_layers.1.weight": (320, 1280),
    "model.diffusion_model.input_blocks.1.0.out_layers_norm.beta": (320,),
    "model.diffusion_model.input_blocks.1.0.out_layers_conv.conv.bias": (320,),
    "model.diffusion_model.input_blocks.1.1.norm.gamma": (320,),
    "model.diffusion_model.input_blocks.1.1.proj_in.weight": (320, 320),
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.weight": (320, 320),
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.norm3.beta": (320,),
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.ff.net.0.proj.weight": (2560, 320),
    "model.diffusion_model.input_blocks.3.0.op.conv.weight": (320, 320, 3, 3),
    "model.diffusion_model.output_blocks.2.1.conv.conv.weight": (1280, 1280, 3, 3),
    "model.diffusion_model.output_blocks.8.2.conv.conv.bias": (640,),
    "model.diffusion_model.output_blocks.8.0.skip_connection.conv.weight": (640, 960, 1, 1),
    "model.diffusion_model.out.0.gamma": (320,),
    "model.diffusion_model.out.2.conv.weight": (4, 320, 3, 3),
    "model.diffusion_model.time_embed.2.weight": (1280, 1280),
}


def test_mindspores_names_and_shapes_are_those_of_its_file(real: Any) -> None:
    packed = shapes(mindspore_names.pack(real["sd2"], "sd2"))
    assert {name: packed.get(name) for name in MINDSPORE} == MINDSPORE
    counts = {"cond_stage_model.": 280, "first_stage_model.": 248, "model.diffusion_model.": 686}
    assert {each: sum(name.startswith(each) for name in packed) for each in counts} == counts


@pytest.fixture(scope="module")
def blank_2(blank: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Stable Diffusion as version 2 is arranged: matrices before attention, OpenCLIP's activation.

    The autoencoder has attention in its middle, as all of the real sizes have.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    folder = tmp_path_factory.mktemp("blank_2") / "model"
    shutil.copytree(blank, folder)
    torch.manual_seed(2)
    config = UNet2DConditionModel.load_config(folder / "unet")
    UNet2DConditionModel.from_config({**config, "use_linear_projection": True}).save_pretrained(folder / "unet")
    config = AutoencoderKL.load_config(folder / "vae")
    AutoencoderKL.from_config({**config, "mid_block_add_attention": True}).save_pretrained(folder / "vae")
    path = folder / "text_encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_act": "gelu"}))
    return folder


@pytest.fixture(params=["sd1", "sd2", "sdxl"])
def folder(request: pytest.FixtureRequest, blank: Path, blank_2: Path, blank_xl: Path) -> Path:
    return {"sd1": blank, "sd2": blank_2, "sdxl": blank_xl}[request.param]


def pipe_of(folder: Path) -> Any:
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(folder, local_files_only=True, safety_checker=None)


def draw(pipe: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    seed = torch.Generator().manual_seed(0)
    done = pipe("a red apple", num_inference_steps=2, generator=seed, output_type="np", height=64, width=64)
    return np.asarray(done.images)


def same_weights(one: Any, two: Any) -> None:
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if getattr(one, part, None) is None:
            continue
        first, second = (dict(getattr(pipe, part).named_parameters()) for pipe in (one, two))
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_diffusers_loads_the_single_file_and_draws_the_same(folder: Path, tmp_path: Path) -> None:
    family, own = parts.read(folder)
    file = tmp_path / "model.safetensors"
    save_safetensors(file, single_file.pack(own, family), {"format": "pt"})
    plain = pipe_of(folder)
    loaded = type(plain).from_single_file(str(file), config=str(folder), local_files_only=True, safety_checker=None)
    same_weights(plain, loaded)
    assert np.array_equal(draw(plain), draw(loaded))


def test_a_single_file_becomes_the_folder_it_came_from(folder: Path, tmp_path: Path) -> None:
    family, own = parts.read(folder)
    file = tmp_path / "model.safetensors"
    packed = single_file.pack(own, family)
    save_safetensors(file, packed)
    found = single_file.unpack(open_safetensors(file))
    parts.write(found, folder, tmp_path / "out")
    same_weights(pipe_of(folder), pipe_of(tmp_path / "out"))
    again_family, again = parts.read(tmp_path / "out")
    repacked = single_file.pack(again, again_family)
    assert again_family == family
    assert repacked.keys() == packed.keys()
    assert all(stored.data(repacked[name], name) == stored.data(packed[name], name) for name in packed)
    with pytest.raises(RecipeError, match="this is there already"):
        parts.write(found, folder, tmp_path / "out")


def test_through_mindspore_and_back_no_bit_changes(blank: Path, blank_2: Path, blank_xl: Path, tmp_path: Path) -> None:
    for folder in (blank, blank_2):
        family, own = parts.read(folder)
        file = tmp_path / f"{family}.ckpt"
        mindspore.write(file, mindspore_names.pack(own, family), checksum=True)
        found = mindspore_names.unpack(mindspore.read(file).tensors)
        assert found.family == family
        for part, tensors in own.items():
            back = found.parts[part]
            assert back.keys() == tensors.keys()
            assert all(stored.data(back[name], name) == stored.data(each, name) for name, each in tensors.items())
    family, own = parts.read(blank_xl)
    with pytest.raises(RecipeError, match="1 and 2 alone, not of SDXL"):
        mindspore_names.pack(own, family)


def test_what_is_computed_is_left_out_and_what_is_unknown_refused(blank_xl: Path) -> None:
    family, own = parts.read(blank_xl)
    packed = single_file.pack(own, family)
    one = stored.of(np.zeros(1, np.float32))
    extra = [
        "alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_mean_coef1", "model_ema.decay", "denoiser.sigmas",
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids",
        "conditioner.embedders.1.model.logit_scale", "first_stage_model.loss.logvar",
    ]  # fmt: skip
    found = single_file.unpack({**packed, **dict.fromkeys(extra, one), "v_pred": stored.of(np.zeros(0, np.float32))})
    assert found.dropped == tuple(sorted(extra))
    assert found.flags == ("v_pred",)
    for name in ("model.diffusion_model.extra.weight", "conditioner.embedders.1.model.visual.proj", "lora.x"):
        with pytest.raises(StorageError, match=r"is no parameter of|are in no part of"):
            single_file.unpack({**packed, name: one})
    with pytest.raises(StorageError, match="this is not a single file of"):
        single_file.unpack(
            {name: each for name, each in packed.items() if "embedders.1" not in name and "embedders.0" not in name}
        )
    with pytest.raises(StorageError, match="text_encoder_2 is missing"):
        single_file.pack({part: each for part, each in own.items() if part != "text_encoder_2"}, "sdxl")


def test_sd2_files_last_layer_is_left_out() -> None:
    def text(layers: int) -> dict[str, Stored]:
        net = {
            f"text_model.encoder.layers.{n}.layer_norm1.weight": stored.of(np.full(4, float(n))) for n in range(layers)
        }
        return {**net, "text_projection.weight": stored.of(np.zeros((4, 4)))}

    packed = parts.openclip.pack(text(24))
    prefix = single_file.TEXT["sd2"]["text_encoder"]
    body = {single_file.UNET + "input_blocks.0.0.weight": stored.of(np.zeros(1))}
    body[single_file.UNET + "input_blocks.1.0.in_layers.0.weight"] = stored.of(np.zeros(1))
    found = single_file.unpack({**body, **{prefix + name: each for name, each in packed.items()}})
    assert parts.openclip.layers(found.parts["text_encoder"]) == 23
    assert found.dropped == (prefix + "text_projection", prefix + "transformer.resblocks.23.ln_1.weight")


def test_older_names_are_read(blank: Path, blank_2: Path) -> None:
    """An autoencoder's attention before diffusers 0.15, and a text encoder without `text_model.`."""
    family, own = parts.read(blank_2)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    vae = {
        next(
            (n.replace(new, before) for new, before in old.items() if f".{new}." in n and ".attentions." in n), n
        ): each
        for n, each in own["vae"].items()
    }
    assert vae.keys() != own["vae"].keys()
    packed = single_file.pack(own, family)
    assert single_file.pack({**own, "vae": vae}, family).keys() == packed.keys()
    family, own = parts.read(blank)
    packed = single_file.pack(own, family)
    bare = {name.replace(".text_model.", ".", 1): each for name, each in packed.items()}
    assert bare.keys() != packed.keys()
    assert single_file.unpack(bare).parts["text_encoder"].keys() == own["text_encoder"].keys()


def test_a_folder_of_another_model_lends_no_configuration(blank: Path, blank_xl: Path, tmp_path: Path) -> None:
    family, own = parts.read(blank)
    found = single_file.unpack(single_file.pack(own, family))
    with pytest.raises(RecipeError, match=r"the file is of Stable Diffusion 1, the folder .* of SDXL"):
        parts.write(found, blank_xl, tmp_path / "out")
    bare = tmp_path / "bare"
    shutil.copytree(blank, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    parts.write(found, bare, tmp_path / "fits")
    same_weights(pipe_of(blank), pipe_of(tmp_path / "fits"))
    for part, key, value in (
        ("unet", "layers_per_block", 2), ("unet", "cross_attention_dim", 64), ("unet", "in_channels", 9),
        ("text_encoder", "num_hidden_layers", 12), ("text_encoder", "vocab_size", 9), ("vae", "latent_channels", 16),
    ):  # fmt: skip
        path = bare / part / "config.json"
        before = path.read_text()
        path.write_text(json.dumps({**json.loads(before), key: value}))
        with pytest.raises(RecipeError, match=f"the file's {part} is not of the kind in that folder"):
            parts.write(found, bare, tmp_path / "out")
        path.write_text(before)
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_half_precision_stays_as_it_is(blank_xl: Path, tmp_path: Path) -> None:
    family, own = parts.read(blank_xl)

    def half(tensor: Stored, code: str) -> Stored:
        wide = np.ascontiguousarray(tensor.widened())
        bits = (wide.view(np.uint32) >> 16).astype("<u2") if code == "BF16" else wide.astype("<f2")
        return Stored(code=code, shape=tensor.shape, read=lambda: bits.reshape(tensor.shape))

    for code, kind in (("F16", torch.float16), ("BF16", torch.bfloat16)):
        small = {part: {name: half(each, code) for name, each in tensors.items()} for part, tensors in own.items()}
        file = tmp_path / f"{code}.safetensors"
        save_safetensors(file, single_file.pack(small, family))
        parts.write(single_file.unpack(open_safetensors(file)), blank_xl, tmp_path / code)
        text = pipe_of(tmp_path / code).text_encoder
        assert {value.dtype for value in text.parameters()} == {kind}
        back = parts.read(tmp_path / code)[1]
        for part, tensors in small.items():
            assert all(stored.data(back[part][name], name) == stored.data(each, name) for name, each in tensors.items())


@pytest.mark.parametrize("case", ["size", "overlap", "negative", "type"])
def test_a_safetensors_header_that_lies_is_refused(tmp_path: Path, case: str) -> None:
    entries: dict[str, dict[str, Any]] = {
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
    }
    changes: dict[str, dict[str, Any]] = {
        "size": {"shape": [1 << 60]},
        "overlap": {"data_offsets": [4, 12]},
        "negative": {"shape": [-2]},
        "type": {"dtype": "F4"},
    }
    entries["b"] |= changes[case]
    head = json.dumps(entries).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head + bytes(16))
    with pytest.raises(StorageError, match='tensor "b"'):
        open_safetensors(path)
