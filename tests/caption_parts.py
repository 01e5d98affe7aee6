"""Tiny captioners of every kind with random weights, built from configurations as their makers publish them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    Florence2Config,
    Florence2ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTImageProcessorPil,
)

WORDS = [
    "a",
    "an",
    "the",
    "red",
    "green",
    "blue",
    "white",
    "black",
    "cat",
    "dog",
    "sun",
    "apple",
    "on",
    "in",
    "of",
    "photo",
    "beach",
    "picture",
    "with",
    "and",
    "small",
    "big",
    "two",
    "one",
    "what",
    "does",
    "image",
    "describe",
    "?",
    ".",
    ",",
    "this",
    "sentence",
    "detail",
    "shown",
    "is",
    "<",
    ">",
    "caption",
    "describe",
    "briefly",
]
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VISION: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip


def bytewise(special: Sequence[str], **names: Any) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, as GPT-2's, of single bytes and a few words."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {each: at for at, each in enumerate([*special, *alphabet])}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, additional_special_tokens=list(special), **names)


def blip(folder: Path) -> Path:
    folder.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *dict.fromkeys(WORDS)]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer(vocab=str(folder / "vocab.txt"))
    text = {
        "vocab_size": len(words), "hidden_size": 16, "encoder_hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
        "bos_token_id": 5, "eos_token_id": 2, "sep_token_id": 3, "projection_dim": 16,
    }  # fmt: skip
    torch.manual_seed(1)
    config = BlipConfig(text_config=text, vision_config={**VISION, "projection_dim": 16}, projection_dim=16)
    _save(BlipForConditionalGeneration(config), folder)
    tokenizer.save_pretrained(folder)
    BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def blip2(folder: Path) -> Path:
    tokenizer = bytewise(["<pad>", "</s>", "<unk>", "<image>"], pad_token="<pad>", bos_token="</s>", eos_token="</s>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", 1)]
    )
    former = {
        "vocab_size": 40, "hidden_size": 16, "encoder_hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32,
    }  # fmt: skip
    text = {
        "model_type": "opt", "vocab_size": len(tokenizer), "hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 128, "word_embed_proj_dim": 16, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 1,
    }  # fmt: skip
    torch.manual_seed(2)
    config = Blip2Config(
        vision_config=VISION, qformer_config=former, text_config=text, num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    _save(Blip2ForConditionalGeneration(config), folder)
    tokenizer.save_pretrained(folder)
    BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def vit_gpt2(folder: Path) -> Path:
    from transformers import GPT2Config, ViTConfig

    tokenizer = bytewise(["<|endoftext|>"], bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    decoder = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0,
        add_cross_attention=True, is_decoder=True,
    )  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**VISION), decoder)
    config.decoder_start_token_id = config.pad_token_id = config.eos_token_id = 0
    torch.manual_seed(3)
    net = VisionEncoderDecoderModel(config=config)
    net.generation_config.decoder_start_token_id = net.generation_config.pad_token_id = 0
    _save(net, folder)
    tokenizer.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def florence(folder: Path) -> Path:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<image>"]
    tokenizer = bytewise(
        special, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    vision = {
        "embed_dim": [8, 16], "depths": [1, 1], "num_heads": [2, 2], "num_groups": [2, 2], "patch_size": [7, 3],
        "patch_stride": [4, 2], "patch_padding": [3, 1], "patch_prenorm": [False, True], "projection_dim": 16,
        "window_size": 2, "max_temporal_embeddings": 4, "max_position_embeddings": 8,
    }  # fmt: skip
    text = {
        "vocab_size": len(tokenizer), "d_model": 16, "encoder_layers": 1, "decoder_layers": 2,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
        "max_position_embeddings": 128, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
        "decoder_start_token_id": 2, "forced_eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(4)
    config = Florence2Config(vision_config=vision, text_config=text, image_token_id=4)
    _save(Florence2ForConditionalGeneration(config), folder)
    tokenizer.save_pretrained(folder)
    found = CLIPImageProcessorPil(
        size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}, do_center_crop=False
    )
    found.image_seq_length = 17
    found.save_pretrained(folder)
    return folder


def qwen(folder: Path, version: str = "2") -> Path:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
               "<|video_pad|>"]  # fmt: skip
    tokenizer = bytewise(special, pad_token="<|endoftext|>", eos_token="<|im_end|>")
    tokenizer.chat_template = CHAT
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256, "bos_token_id": 0,
        "eos_token_id": 2, "pad_token_id": 0,
        "rope_parameters": {"type": "mrope", "rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
    }  # fmt: skip
    vision = {"depth": 2, "in_channels": 3, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2}
    ids = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 3, "vision_end_token_id": 4}
    if version == "2":
        vision |= {"embed_dim": 16, "hidden_size": 16, "mlp_ratio": 2, "num_heads": 2}
        kind, config = Qwen2VLForConditionalGeneration, Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
    else:
        vision |= {"hidden_size": 16, "out_hidden_size": 16, "intermediate_size": 32, "num_heads": 2,
                   "window_size": 32, "fullatt_block_indexes": [1]}  # fmt: skip
        kind = Qwen2_5_VLForConditionalGeneration
        config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    torch.manual_seed(5)
    net = kind(config)
    # As published: these models ask to be sampled from, and repeat themselves less than they would.
    net.generation_config.update(do_sample=True, temperature=0.01, top_k=1, top_p=0.001, repetition_penalty=1.05)
    _save(net, folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=2, temporal_patch_size=2,
        size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64},
    ).save_pretrained(folder)  # fmt: skip
    return folder


MAKERS: dict[str, Callable[[Path], Path]] = {
    "blip": blip,
    "blip-2": blip2,
    "vision-encoder-decoder": vit_gpt2,
    "florence2": florence,
    "qwen2_vl": qwen,
    "qwen2_5_vl": lambda folder: qwen(folder, "2.5"),
}


def pictures(folder: Path, count: int = 5) -> Path:
    """So many pictures of tinted noise and of several sizes, some of them in a folder below."""
    rng = np.random.default_rng(7)
    for number in range(count):
        path = folder / ("b" if number % 3 == 2 else "") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (32 + 16 * (number % 2), 32, 3)
        tint = rng.integers(0, 256, 3)
        Image.fromarray(((rng.integers(0, 256, size) + tint) // 2).astype(np.uint8)).save(path)
    return folder


def _save(net: Any, folder: Path) -> None:
    """Larger weights than a beginning network has, so that what it says depends on what it sees."""
    with torch.no_grad():
        for name, value in net.named_parameters():
            if value.ndim > 1 and "embed_positions" not in name:
                value.normal_(0.0, 0.4)
    net.save_pretrained(folder)


def tagger(folder: Path, side: int = 16, batch: int | None = None) -> Path:
    """A WD-like tagger: the mean of each channel, scaled and shifted into logits of eight tags, then a sigmoid."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(9)
    weights = rng.normal(0, 0.01, (3, len(TAGS))).astype(np.float32)
    constants = [
        numpy_helper.from_array(weights, "w"),
        numpy_helper.from_array(np.linspace(-2, 2, len(TAGS)).astype(np.float32), "b"),
        numpy_helper.from_array(np.array([1, 2], dtype=np.int64), "axes"),
    ]
    nodes = [
        helper.make_node("ReduceMean", ["pictures", "axes"], ["means"], keepdims=0),
        helper.make_node("Gemm", ["means", "w", "b"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["shares"]),
    ]
    graph = helper.make_graph(
        nodes, "tagger",
        [helper.make_tensor_value_info("pictures", TensorProto.FLOAT, [batch or "batch", side, side, 3])],
        [helper.make_tensor_value_info("shares", TensorProto.FLOAT, [batch or "batch", len(TAGS)])],
        constants,
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(made, folder / "model.onnx")
    rows = [f"{at},{name},{category},100" for at, (name, category) in enumerate(TAGS)]
    (folder / "selected_tags.csv").write_text("\n".join(["tag_id,name,category,count", *rows]) + "\n")
    (folder / "config.json").write_text('{"architecture": "vit_base_patch16_224"}')
    return folder


TAGS = (
    ("general", 9), ("explicit", 9), ("1girl", 0), ("red_hair", 0), ("^_^", 0), ("looking_at_viewer", 0),
    ("hatsune_miku", 4), ("mona_(game)", 4),
)  # fmt: skip
