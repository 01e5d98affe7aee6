"""Captioners against the library's own way of asking each kind, one picture at a time."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from caption_parts import MAKERS, pictures
from PIL import Image
from safetensors.torch import load_file, save_file

from gesso.captioning import Asked, asked_of, resolve
from gesso.data import images
from gesso.engines.torch import captioners
from gesso.errors import RecipeError

PROMPTS = {"florence2": "<DETAILED_CAPTION>"}
TOKENS = 8


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = pictures(tmp_path_factory.mktemp("seen"))
    return [images.load(path) for path in sorted(folder.rglob("*.png"))]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("captioners")
    return {kind: maker(folder / kind) for kind, maker in MAKERS.items()}


def ours(kind: str, folder: Path, seen: list[Any], **asked: Any) -> list[str]:
    settings = asked_of(kind, Asked(device="cpu", precision="fp32", tokens=TOKENS, **asked), folder)
    return captioners.create(folder, kind, settings).caption(seen)


def plain(kind: str, folder: Path, picture: Any, prompt: str, **how: Any) -> str:
    """What the model's documentation in transformers says to do, and the answer without the prompt."""
    net = getattr(transformers, captioners.KINDS[kind].net).from_pretrained(folder).eval()
    see = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    words = transformers.AutoTokenizer.from_pretrained(folder)
    image = Image.fromarray(picture)
    if kind == "blip":
        given = transformers.BlipProcessor(see, words)(image, prompt or None, return_tensors="pt")
    elif kind == "blip-2":
        processor = transformers.Blip2Processor(see, words, num_query_tokens=net.config.num_query_tokens)
        given = processor(image, prompt or None, return_tensors="pt")
    elif kind == "vision-encoder-decoder":
        given = see(image, return_tensors="pt")
    elif kind == "florence2":
        given = transformers.Florence2Processor(see, words)(images=image, text=prompt, return_tensors="pt")
    else:
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        text = words.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        given = see(image, return_tensors="pt")
        count = int(given["image_grid_thw"].prod()) // see.merge_size**2
        ids = words(text.replace("<|image_pad|>", "<|image_pad|>" * count), return_tensors="pt")
        given = {**given, **ids, "mm_token_type_ids": (ids["input_ids"] == 5).int()}
    with torch.no_grad():
        said = net.generate(**given, max_new_tokens=TOKENS, do_sample=False, temperature=None, top_k=None, top_p=None,
                            **how)[0]  # fmt: skip
    if kind.startswith("qwen"):
        said = said[given["input_ids"].shape[1] :]
    whole = words.decode(said, skip_special_tokens=True)
    asked = words.decode(words(prompt)["input_ids"], skip_special_tokens=True) if kind.startswith("blip") else ""
    whole = whole.removeprefix("[DEC]").strip() if kind == "blip" else whole
    assert whole.startswith(asked) or kind not in ("blip", "blip-2")
    return whole.removeprefix(asked).strip()


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", MAKERS)
def test_a_batch_is_what_the_library_says_of_each_picture(
    kind: str, beams: int, made: dict[str, Path], seen: list[Any]
) -> None:
    folder = made[kind]
    usual = asked_of(kind, Asked(), folder).prompt or ""
    prompts = [usual] if kind == "vision-encoder-decoder" else [usual, PROMPTS.get(kind, "a photo of")]
    for prompt in prompts:
        given = {} if kind == "vision-encoder-decoder" else {"prompt": prompt}
        found = ours(kind, folder, seen, beams=beams, **given)
        assert found == [plain(kind, folder, picture, prompt, num_beams=beams) for picture in seen]
        assert len(set(found)) > 1


@pytest.mark.parametrize("kind", MAKERS)
def test_a_draw_follows_from_the_seed_and_the_picture(kind: str, made: dict[str, Path], seen: list[Any]) -> None:
    one = ours(kind, made[kind], seen, temperature=1.0, seed=1)
    assert ours(kind, made[kind], seen[::-1], temperature=1.0, seed=1)[::-1] == one
    assert [ours(kind, made[kind], [picture], temperature=1.0, seed=1)[0] for picture in seen[:2]] == one[:2]
    assert ours(kind, made[kind], seen, temperature=1.0, seed=2) != one
    assert ours(kind, made[kind], seen, temperature=1e-6, seed=1) == ours(kind, made[kind], seen, beams=1)


def test_draws_have_the_softmaxs_frequencies() -> None:
    scores = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    draw = [captioners.Draw(seed=0, temperature=0.7, pictures=[n])(torch.zeros(1, 3), scores) for n in range(6000)]
    counts = np.bincount([int(each.argmax()) for each in draw], minlength=4) / len(draw)
    np.testing.assert_allclose(counts, torch.softmax(scores[0] / 0.7, 0), atol=0.02)


def test_an_older_file_of_weights_says_the_same(made: dict[str, Path], seen: list[Any], tmp_path: Path) -> None:
    """ViT-GPT2 and others are published as pytorch_model.bin alone."""
    for kind in ("vision-encoder-decoder", "blip"):
        folder = shutil.copytree(made[kind], tmp_path / kind)
        net = getattr(transformers, captioners.KINDS[kind].net).from_pretrained(folder)
        (folder / "model.safetensors").unlink()
        torch.save(net.state_dict(), folder / "pytorch_model.bin")
        assert ours(kind, folder, seen) == ours(kind, made[kind], seen)


def test_half_precision_speaks(made: dict[str, Path], seen: list[Any]) -> None:
    asked = Asked(device="cpu", precision="bf16", tokens=4)
    for kind in ("blip-2", "qwen2_vl"):
        found = captioners.create(made[kind], kind, asked_of(kind, asked, made[kind])).caption(seen)
        assert all(found)


def test_a_broken_folder_is_named(made: dict[str, Path], tmp_path: Path) -> None:
    for gone in ("model.safetensors", "preprocessor_config.json", "tokenizer.json"):
        folder = shutil.copytree(made["blip-2"], tmp_path / gone)
        (folder / gone).unlink()
        with pytest.raises(RecipeError, match=r"weights|cannot be read"):
            captioners.create(folder, "blip-2", asked_of("blip-2", Asked(device="cpu"), folder))
    folder = shutil.copytree(made["blip"], tmp_path / "part")
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if "crossattention" in name)
    save_file(
        {name: value for name, value in weights.items() if name != gone}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(RecipeError, match=f"1 of the weights are missing, {gone}"):
        captioners.create(folder, "blip", asked_of("blip", Asked(device="cpu"), folder))
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="there is no captioner"):
        resolve(str(tmp_path / "file"))
