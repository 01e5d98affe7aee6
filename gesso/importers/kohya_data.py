"""Pictures as kohya's scripts are told of them: folders by name, or a data set file of three levels."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gesso.importers import common
from gesso.importers.draft import Draft
from gesso.importers.kohya_flags import SET_FILE

LEVELS = ("general", "datasets", "datasets.subsets")
FLAG_OF = {"batch_size": "train_batch_size"}
"""What a flag calls what the file calls otherwise."""
ALPHA = "gesso takes dog-masklabel.png beside dog.png before the transparency of dog.png"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """One folder of pictures; `levels` are prefixes of names, the nearest first; `own` came from a folder's name."""

    levels: tuple[str, ...]
    own: dict[str, Any] = field(default_factory=dict)
    origin: str = ""

    def get(self, draft: Draft, key: str) -> tuple[Any, str]:
        """(value, the source's key): of the nearest level that gives it, else the default and ""."""
        if key in self.own:
            return self.own[key], self.origin
        for level in self.levels:
            name = level + (FLAG_OF.get(key, key) if not level else key)
            if name in draft.given and draft.values.get(name) is not None:
                return draft.values[name], name
        return SET_FILE[key].default, ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """What was found: how many pictures an epoch has, if they can be counted, and whether there are class pictures."""

    rows: int | None
    batch: tuple[Any, str]
    regular: bool


def put(draft: Draft) -> Pictures:
    """Write [[data]], [prior] and what [train] says of pictures into the draft."""
    subsets = _subsets(draft)
    own = [each for each in subsets if not each.get(draft, "is_reg")[0]]
    regular = [each for each in subsets if each.get(draft, "is_reg")[0]]
    for each in (*own, *regular):
        _captions(draft, each)
    if not own and not any(fate == "unsupported" for fate in draft.fates()):
        draft.stop("where are the pictures? give train_data_dir, or dataset_config", "train_data_dir")
    counts: list[int | None] = []
    for index, subset in enumerate(own):
        path, source = subset.get(draft, "image_dir")
        if not path:
            draft.stop("a subset has no image_dir", subset.levels[0].rstrip("."))
            continue
        common.folder(draft, index, path, source)
        _tags(draft, index, subset)
        words, source = subset.get(draft, "class_tokens")
        if words:
            draft.put(f"data.{index}.prompt", words, source)
        repeats, source = subset.get(draft, "num_repeats")
        draft.put(f"data.{index}.repeats", repeats, source)
        masked, source = subset.get(draft, "alpha_mask")
        if masked:
            draft.put(f"data.{index}.masks", True, source, note=ALPHA)
        found = common.pictures(path)
        counts.append(found * repeats if found else None)
    if regular:
        _regular(draft, regular)
    agreed = own or regular
    for key, target in (("flip_aug", "train.flip"), ("caption_dropout_rate", "train.caption_dropout")):
        value, names = _agreed(draft, agreed, key)
        draft.put(target, value, *names)
    crop, names = _agreed(draft, agreed, "random_crop")
    draft.put("train.crop", "random" if crop else "center", *names)
    resized, names = _agreed(draft, agreed, "resize_interpolation")
    if resized in common.RESIZED:
        draft.put("train.interpolation", common.RESIZED[resized], *names)
    elif resized:
        for name in names:
            draft.say(name, "differs", "gesso resizes by lanczos, bicubic or bilinear; the first is taken")
    _resolution(draft, agreed)
    _buckets(draft, agreed)
    held, names = _agreed(draft, agreed, "validation_split")
    if held:
        draft.put("validate.holdout", held, *names)
    for name in draft.given:
        if name.endswith(".validation_split") and not draft.values[name]:
            draft.say(name, "harmless", "asks for nothing")
    batch, names = _agreed(draft, agreed, "batch_size")
    total = sum(each or 0 for each in counts) if counts and None not in counts else None
    _leftover(draft)
    return Pictures(rows=total, batch=(batch, names[0] if names else ""), regular=bool(regular))


def _subsets(draft: Draft) -> list[Subset]:
    if any(name.startswith("datasets") for name in draft.given):
        return _of_file(draft)
    return [*_of_folder(draft, "train_data_dir", regular=False), *_of_folder(draft, "reg_data_dir", regular=True)]


def _of_file(draft: Draft) -> list[Subset]:
    for name in ("train_data_dir", "reg_data_dir"):
        draft.say(name, "harmless", "dataset_config wins over it")
    numbers = sorted(
        {
            (int(match[1]), int(match[2]))
            for name in draft.given
            if (match := re.match(r"datasets\.(\d+)\.subsets\.(\d+)\.", name))
        }
    )
    return [
        Subset(levels=(f"datasets.{first}.subsets.{second}.", f"datasets.{first}.", "general.", ""))
        for first, second in numbers
    ]


def _of_folder(draft: Draft, name: str, *, regular: bool) -> list[Subset]:
    """The folders in `name` that are called after their repeats and prompt, such as "10_sks dog"."""
    root = draft.values.get(name)
    if not root:
        return []
    folder = Path(root).expanduser()
    try:
        inside = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except OSError as error:
        draft.say(name, "unsupported", f"{root} cannot be read here ({error.strerror}); import where the pictures are")
        return []
    found = []
    for each in inside:
        number, line, words = each.partition("_")
        if number.isdigit() and int(number) > 0:
            path = f"{str(root).rstrip('/')}/{each}"
            own = {"image_dir": path, "num_repeats": int(number), "is_reg": regular}
            if line and words:
                own["class_tokens"] = words
            found.append(Subset(levels=("",), own=own, origin=name))
    if not found:
        text = f'{root} has no folder called after repeats and prompt, such as "10_sks dog"'
        draft.say(name, "unsupported", text)
    return found


def _captions(draft: Draft, subset: Subset) -> None:
    ending, source = subset.get(draft, "caption_extension")
    if not source and draft.values.get("caption_extention"):
        ending, source = draft.values["caption_extention"], "caption_extention"
    if ending in (".txt", ".caption"):
        draft.say(source, "harmless", "gesso reads .txt, then .caption, beside each picture")
    else:
        draft.say(source, "unsupported", f"gesso reads captions from .txt and .caption, not from {ending}; rename them")


def _tags(draft: Draft, index: int, subset: Subset) -> None:
    """How captions are changed while training."""
    shuffle, source = subset.get(draft, "shuffle_caption")
    draft.put(f"data.{index}.shuffle", shuffle, source)
    dropped, source = subset.get(draft, "caption_tag_dropout_rate")
    draft.put(f"data.{index}.tag_dropout", dropped, source)
    for key, target in (("keep_tokens", "keep_tokens"), ("caption_separator", "separator")):
        value, source = subset.get(draft, key)
        if shuffle or dropped:
            draft.put(f"data.{index}.{target}", value, source)
    wild, source = subset.get(draft, "enable_wildcard")
    draft.put(f"data.{index}.wildcards", wild, source)
    for key, pattern in (("caption_prefix", "{} "), ("caption_suffix", " {}")):
        value, source = subset.get(draft, key)
        if value:
            draft.put(f"data.{index}.{key.removeprefix('caption_')}", pattern.format(value), source)


def _regular(draft: Draft, subsets: list[Subset]) -> None:
    path, source = subsets[0].get(draft, "image_dir")
    words, told = subsets[0].get(draft, "class_tokens")
    if len(subsets) > 1:
        other = subsets[1].get(draft, "image_dir")[1]
        draft.say(other, "unsupported", "gesso has one folder of class pictures; put them together")
        return
    if not words:
        draft.say(source, "unsupported", 'class pictures need the class in words: class_tokens, or a folder "1_dog"')
        return
    count = common.pictures(path)
    if count is None:
        draft.say(source, "unsupported", f"no class pictures can be counted in {path}; import where they are")
        return
    flag = next((each for each in draft.given if each.endswith("is_reg") and draft.values[each]), source)
    draft.put("prior.prompt", words, told, flag)
    draft.put("prior.path", path, source)
    draft.put("prior.pictures", count, source)
    repeats = subsets[0].get(draft, "num_repeats")[1]
    draft.say(repeats, "harmless", "gesso pairs class pictures with yours one to one, whatever their repeats")


def _agreed(draft: Draft, subsets: list[Subset], key: str) -> tuple[Any, tuple[str, ...]]:
    """The one value that all subsets have, and the keys that say it; a stop where they have several."""
    found = [each.get(draft, key) for each in subsets] or [(SET_FILE[key].default, "")]
    names = tuple(dict.fromkeys(name for _, name in found if name))
    if any(value != found[0][0] for value, _ in found):
        for name in names:
            draft.say(name, "unsupported", f"gesso has one {key} for all pictures; give every subset the same")
    return found[0][0], names


def _resolution(draft: Draft, subsets: list[Subset]) -> None:
    value, names = _agreed(draft, subsets, "resolution")
    if value is None:
        draft.stop("at what resolution? kohya's scripts have no default; give resolution", "resolution")
        return
    for name in names:
        side = common.side(draft, name, value)
        if side is not None:
            draft.put("train.resolution", side, *names)


def _buckets(draft: Draft, subsets: list[Subset]) -> None:
    """train.buckets and what belongs to it; without it the draft drops the rest as idle."""
    wanted, names = _agreed(draft, subsets, "enable_bucket")
    draft.put("train.buckets", bool(wanted), *names)
    kept, names = _agreed(draft, subsets, "bucket_no_upscale")
    draft.put("train.bucket_enlarge", not kept, *names)
    step, names = _agreed(draft, subsets, "bucket_reso_steps")
    draft.put("train.bucket_step", step, *names)
    step = max(step, 1)
    for key, target, more in (("min_bucket_reso", "bucket_min", 0), ("max_bucket_reso", "bucket_max", step - 1)):
        value, names = _agreed(draft, subsets, key)
        draft.put(f"train.{target}", (value + more) // step * step, *names)


def _leftover(draft: Draft) -> None:
    """Keys that a nearer level overrides, or that ask for nothing."""
    known = (*(key for key in SET_FILE), "caption_extention", "train_batch_size", "train_data_dir", "reg_data_dir")
    for name in draft.given:
        if name.rpartition(".")[2] in known:
            draft.say(name, "harmless", "another level or flag wins over it, or it asks for nothing")
