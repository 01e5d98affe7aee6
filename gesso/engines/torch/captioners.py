"""Models that say in words what is in a picture, through transformers.

A kind is two functions: what its network is fed, and which of the tokens that come back are the caption. All are
decoded alike: the likeliest word or beams, or, with a temperature, a draw that follows from the seed, the picture and
the place in the caption alone (Gumbel noise on the scores, whose argmax is a draw from their softmax: Maddison et al.
2014, "A* sampling"), so that neither the batch nor a stop changes what is said.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor

from gesso.arrays import Picture
from gesso.captioning import Asked
from gesso.engines.torch.devices import choose
from gesso.engines.torch.models import DTYPES
from gesso.errors import DeviceError, RecipeError
from gesso.formats import torch_file
from gesso.keys import generator

# What the library says of missing extras and of each file it reads is not about the user's pictures.
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

Inputs = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A captioner's network and what prepares its input."""

    net: Any
    pictures: Any
    words: Any


def blip(parts: Parts, images: list[Image.Image], prompt: str) -> Inputs:
    """BLIP (Li et al. 2022): the prompt begins the caption."""
    return dict(parts.pictures(images, return_tensors="pt")) | _encoded(parts, [prompt] * len(images))


def blip2(parts: Parts, images: list[Image.Image], prompt: str) -> Inputs:
    """BLIP-2 (Li et al. 2023): queries of the picture, then the prompt, which the language model continues."""
    count = parts.net.config.num_query_tokens
    found = dict(parts.pictures(images, return_tensors="pt"))
    if not prompt:
        return found
    text = _encoded(parts, [prompt] * len(images))
    head = torch.full((len(images), count), parts.net.config.image_token_id, dtype=torch.long)
    text["input_ids"] = torch.cat((head, text["input_ids"]), 1)
    text["attention_mask"] = torch.cat((torch.ones_like(head), text["attention_mask"]), 1)
    return found | text


def encoder_decoder(parts: Parts, images: list[Image.Image], prompt: str) -> Inputs:
    """A picture encoder with a text decoder that looks at it, as ViT-GPT2."""
    return dict(parts.pictures(images, return_tensors="pt"))


def florence(parts: Parts, images: list[Image.Image], prompt: str) -> Inputs:
    """Florence-2 (Xiao et al. 2023): the task, <CAPTION> or another, becomes the sentence it was trained with."""
    processor = transformers.Florence2Processor(parts.pictures, parts.words)
    return dict(processor(images=images, text=[prompt] * len(images), return_tensors="pt", padding=True))


def qwen(parts: Parts, images: list[Image.Image], prompt: str) -> Inputs:
    """Qwen-VL: a chat of one turn, with as many places for a picture as its size asks for."""
    found = dict(parts.pictures(images, return_tensors="pt"))
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    chat = parts.words.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    place = parts.words.convert_ids_to_tokens(parts.net.config.image_token_id)
    counts = (found["image_grid_thw"].prod(1) // parts.pictures.merge_size**2).tolist()
    found |= _encoded(parts, [chat.replace(place, place * count) for count in counts])
    return found | {"mm_token_type_ids": (found["input_ids"] == parts.net.config.image_token_id).long()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """The network's class, what it is fed, and how many of so many tokens fed its answer begins with."""

    net: str
    inputs: Callable[[Parts, list[Image.Image], str], Inputs]
    echo: Callable[[Parts, int], int]


def _nothing(parts: Parts, fed: int) -> int:
    return 0


def _all(parts: Parts, fed: int) -> int:
    return fed


def _but_the_last(parts: Parts, fed: int) -> int:
    return fed - 1  # the library takes the end mark off the prompt before it is continued


def _of_decoders(parts: Parts, fed: int) -> int:
    config = parts.net.config
    return 0 if config.text_config.is_encoder_decoder else fed or config.num_query_tokens + 1  # and the beginning mark


KINDS: Mapping[str, Kind] = {
    "blip": Kind(net="BlipForConditionalGeneration", inputs=blip, echo=_but_the_last),
    "blip-2": Kind(net="Blip2ForConditionalGeneration", inputs=blip2, echo=_of_decoders),
    "vision-encoder-decoder": Kind(net="VisionEncoderDecoderModel", inputs=encoder_decoder, echo=_nothing),
    "florence2": Kind(net="Florence2ForConditionalGeneration", inputs=florence, echo=_nothing),
    "qwen2_vl": Kind(net="Qwen2VLForConditionalGeneration", inputs=qwen, echo=_all),
    "qwen2_5_vl": Kind(net="Qwen2_5_VLForConditionalGeneration", inputs=qwen, echo=_all),
}
"""By the model_type of config.json; gesso/captioning.py says what each can be asked."""


def create(folder: Path, kind: str, asked: Asked) -> Captioner:
    """The model of that kind in `folder`, on its device. Raises RecipeError where it cannot be read."""
    device, precision, description = choose(asked.device, asked.precision)
    try:
        parts = load(folder, KINDS[kind], DTYPES[precision])
    except Exception as error:  # a broken folder ends in whatever the library stumbles over first
        if isinstance(error, RecipeError | MemoryError):
            raise
        raise RecipeError(
            f"the captioner cannot be read: {(str(error).strip().splitlines() or [type(error).__name__])[0]}",
            where=str(folder),
            todo="check that the folder is whole, as its makers published it",
        ) from error
    parts.net.eval().requires_grad_(False).to(device)
    return Captioner(KINDS[kind], parts, asked, device, description)


def load(folder: Path, kind: Kind, dtype: torch.dtype) -> Parts:
    """The network and its preprocessing, from files alone, none of which can run code."""
    net = getattr(transformers, kind.net)
    if any(folder.glob("*.safetensors")):
        made, found = net.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    else:
        config = net.config_class.from_pretrained(folder, local_files_only=True)
        made, found = net.from_pretrained(
            None, config=config, state_dict=_older(folder), dtype=dtype, output_loading_info=True
        )
        if (folder / "generation_config.json").is_file():
            made.generation_config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    # The library would draw what is missing by lot, and the model would then speak nonsense. No captioner uses poolers.
    missing = sorted(name for name in found["missing_keys"] if ".pooler." not in name)
    if missing:
        raise RecipeError(
            f"{len(missing)} of the weights are missing, {missing[0]} among them",
            where=str(folder),
            todo="use the version of the model that transformers reads itself, such as florence-community's Florence-2",
        )
    # The library has each preprocessing twice, and the two differ by rounding: this one needs no more than Pillow.
    pictures = transformers.AutoImageProcessor.from_pretrained(
        folder, backend="pil", local_files_only=True, trust_remote_code=False
    )
    words = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    words.padding_side = "left"
    if words.pad_token is None:
        words.pad_token = words.eos_token
    return Parts(net=made, pictures=pictures, words=words)


class Captioner:
    """One model on one device; see gesso/captioning.py for what it promises."""

    def __init__(self, kind: Kind, parts: Parts, asked: Asked, device: torch.device, description: str) -> None:
        self.kind, self.parts, self.asked, self.torch_device, self.device = kind, parts, asked, device, description

    def caption(self, pictures: Sequence[Picture]) -> list[str]:
        """The caption of each picture, uint8 [height, width, 3] each, without the prompt."""
        try:
            with torch.inference_mode():
                return self._caption(pictures)
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"{self.device} has too little memory for {len(pictures)} pictures at once",
                todo="lower --batch, or take --dtype bf16; what was captioned is kept",
            ) from error

    def _caption(self, pictures: Sequence[Picture]) -> list[str]:
        images = [Image.fromarray(picture) for picture in pictures]
        inputs = {
            name: value.to(self.torch_device, self.parts.net.dtype if value.is_floating_point() else None)
            for name, value in self.kind.inputs(self.parts, images, self.asked.prompt or "").items()
        }
        said = self.parts.net.generate(**inputs, **self._how(pictures))
        fed = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
        answer = said[:, self.kind.echo(self.parts, fed) :]
        found: list[str] = self.parts.words.batch_decode(answer, skip_special_tokens=True)
        return [each.strip() for each in found]

    def _how(self, pictures: Sequence[Picture]) -> Inputs:
        """How words are chosen; what a model's own configuration says of drawing by lot does not count."""
        asked = self.asked
        how: Inputs = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
        how["max_new_tokens"] = asked.tokens
        if asked.beams or asked.temperature:
            how["num_beams"] = asked.beams or 1
        if how.get("num_beams") == 1:
            how |= {"early_stopping": False, "length_penalty": 1.0}
        if asked.temperature:
            keys = [int.from_bytes(hashlib.blake2b(each.tobytes(), digest_size=8).digest()) for each in pictures]
            how["logits_processor"] = transformers.LogitsProcessorList(
                [Draw(seed=asked.seed or 0, temperature=asked.temperature, pictures=keys)]
            )
        return how


class Draw(transformers.LogitsProcessor):  # type: ignore[misc]
    """Scores whose largest is a draw from the softmax of score / temperature, keyed by seed, picture and place."""

    def __init__(self, *, seed: int, temperature: float, pictures: Sequence[int]) -> None:
        self.temperature, self._first = temperature, -1
        self._noise = [partial(generator, seed, "caption", picture) for picture in pictures]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._first < 0:
            self._first = input_ids.shape[1]
        place = input_ids.shape[1] - self._first
        drawn = [torch.from_numpy(noise(place).gumbel(size=scores.shape[1])) for noise in self._noise]
        return scores.double() / self.temperature + torch.stack(drawn).to(scores.device)


def _encoded(parts: Parts, texts: list[str]) -> Inputs:
    found = parts.words(texts, return_tensors="pt", padding=True)
    return {name: found[name] for name in ("input_ids", "attention_mask")}


def _older(folder: Path) -> dict[str, Tensor]:
    """The weights of a model that is only there as PyTorch's own files, read as tensors and as nothing else."""
    files = sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise RecipeError("there are no weights", where=str(folder), todo="fetch the model again")
    found: dict[str, Tensor] = {}
    for path in files:
        for name, stored in torch_file.read(path).items():
            whole = stored.widened() if stored.code in ("BF16", "F16") else stored.read().copy()
            found[name] = torch.from_numpy(whole)
    return found
