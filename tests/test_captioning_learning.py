"""A captioner that has learned something: trained on the embedded emoji pictures, asked by `gesso caption`."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import gesso
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessorPil,
)

from gesso.data.sources import read
from gesso.demo.glyphs import GROUNDS, KNOWN
from gesso.demo.glyphs import caption as worded
from gesso.schema import DataTable

STEPS, BATCH, SIDE = 450, 32, 64
WIDTH: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def embedded() -> dict[str, tuple[np.ndarray, str, str]]:
    """The pictures that come with gesso, each with its thing and ground."""
    found = {}
    for path in sorted(Path(str(files("gesso.demo") / "assets")).glob("*/*.png")):
        said = re.fullmatch(r"an? (.+) on an? (\w+) background", path.with_suffix(".txt").read_text().strip())
        if said:
            with Image.open(path) as image:
                found[path.stem] = (np.asarray(image.convert("RGB").resize((SIDE, SIDE))), said[1], said[2])
    return found


def varied(picture: np.ndarray, ground: str, rng: np.random.Generator, to: str) -> np.ndarray:
    """The picture on another ground, moved by up to four pixels, a little lighter or darker."""
    pixels = picture.astype(np.float64)
    old, new = (np.array(GROUNDS[name], dtype=np.float64) for name in (ground, to))
    near = np.clip(1.5 - np.abs(pixels - old).sum(2, keepdims=True) / 60.0, 0.0, 1.0)
    pixels = np.pad(pixels + near * (new - old), ((4, 4), (4, 4), (0, 0)), mode="edge")
    down, right = rng.integers(0, 9, 2)
    pixels = pixels[down : down + SIDE, right : right + SIDE] * rng.uniform(0.97, 1.03)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    words = ["<end>", "<start>", "<unk>", *sorted({word for text in texts for word in text.split()})]
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<start>", eos_token="<end>", pad_token="<end>", unk_token="<unk>"
    )


def trained(folder: Path, things: dict[str, tuple[np.ndarray, str, str]]) -> None:
    """A ViT-GPT2 in small, taught with teacher forcing, as its makers publish one."""
    words = tokenizer([worded(thing, ground) for _, thing, _ in things.values() for ground in GROUNDS])
    see = ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})
    vision = ViTConfig(
        **WIDTH, image_size=SIDE, patch_size=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    text = GPT2Config(
        vocab_size=len(words), n_embd=64, n_layer=2, n_head=4, n_positions=16, bos_token_id=1, eos_token_id=0,
        add_cross_attention=True, is_decoder=True, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 0
    net = VisionEncoderDecoderModel(config=config).train()
    net.generation_config.update(decoder_start_token_id=1, pad_token_id=0, eos_token_id=0, bos_token_id=1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    rng, all_, grounds = np.random.default_rng(0), list(things.values()), list(GROUNDS)
    for _ in range(STEPS):
        batch, texts = [], []
        for picture, thing, ground in (all_[at] for at in rng.integers(len(all_), size=BATCH)):
            to = grounds[int(rng.integers(len(grounds)))]
            batch.append(Image.fromarray(varied(picture, ground, rng, to)))
            texts.append(f"{worded(thing, to)} <end>")
        ids = words(texts, return_tensors="pt", padding=True)
        # The end's mark also pads: what follows the first one is not learned.
        labels = ids["input_ids"].masked_fill(ids["attention_mask"] == 0, -100)
        loss = net(pixel_values=see(batch, return_tensors="pt")["pixel_values"], labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    for part in (net, words, see):
        part.save_pretrained(folder)


@pytest.mark.slow
def test_a_trained_captioner_names_what_it_sees(tmp_path: Path) -> None:
    """Some of what it is shown it has not seen: one picture of each of the four things of which there are several."""
    things = embedded()
    held = {name for name in things if name.endswith("-5")}
    assert len(held) == 4
    trained(tmp_path / "model", {name: each for name, each in things.items() if name not in held})
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, (picture, _, _) in things.items():
        Image.fromarray(picture).save(photos / f"{name}.png")
    done = gesso("caption", photos, "--model", tmp_path / "model", "--to", "image_captions.json", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    said = {Path(record.path).stem: record.captions[0] for record in read(DataTable(path=str(photos)))}
    right = {name for name, (_, thing, ground) in things.items() if said[name] == worded(thing, ground)}
    assert held <= right
    assert len(right) >= 0.9 * len(things)
    assert {thing.name for thing in KNOWN} <= {things[name][1] for name in things}
