"""kohya's dataset TOML: [general], [[datasets]] and [[datasets.subsets]], each a folder with its own captions.

(github.com/kohya-ss/sd-scripts, docs/config_README-en.) What a subset says of its pictures is done; what belongs to
the whole run is the recipe's, and refused here with the key that says it; the rest is refused too.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gesso.data.record import Record
from gesso.data.sources import loose, text
from gesso.data.sources.folder import scan
from gesso.errors import DataError
from gesso.schema import DataTable

READER = "kohya dataset TOML"
TEXT, NUMBER, SWITCH = (str, "text"), (int, "a whole number"), (bool, "true or false")
SHARE = (float, "a share below 1")
KNOWN: dict[str, tuple[type, str]] = {
    "image_dir": TEXT,
    "num_repeats": NUMBER,
    "class_tokens": TEXT,
    "caption_extension": TEXT,
    "shuffle_caption": SWITCH,
    "keep_tokens": NUMBER,
    "caption_prefix": TEXT,
    "caption_suffix": TEXT,
    "caption_separator": TEXT,
    "enable_wildcard": SWITCH,
    "alpha_mask": SWITCH,
    "is_reg": SWITCH,
    "caption_tag_dropout_rate": SHARE,
}
"""What a subset may say, with what it must be."""
ELSEWHERE = {
    "resolution": "train.resolution",
    "batch_size": "train.batch",
    "random_crop": 'train.crop = "random"',
    "flip_aug": "train.flip",
    "caption_dropout_rate": "train.caption_dropout",
    "resize_interpolation": "train.interpolation",
    "validation_split": "validate.holdout",
}
"""What the recipe says for the whole run; 0 and false ask for nothing."""
BUCKETS = ("enable_bucket", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps", "bucket_no_upscale")
"""What the recipe's train.buckets decides; a note says so."""
IDLE = ("cache_info", "token_warmup_min", "validation_seed", "custom_attributes", "skip_image_resolution")
"""What changes nothing here, or belongs to a key that is refused."""
NOT_DONE = {
    "color_aug": "gesso does not change colours",
    "face_crop_aug_range": "gesso does not look for faces",
    "caption_dropout_every_n_epochs": "captions are dropped by a share: train.caption_dropout in the recipe",
    "keep_tokens_separator": "the tags that stay in front are counted: keep_tokens",
    "secondary_separator": "tags have one separator: caption_separator",
    "token_warmup_step": "captions have all of their tags from the first step on",
    "metadata_file": "captions stand beside the pictures, or in metadata.jsonl in their folder",
    "conditioning_data_dir": "pictures that condition others belong to ControlNet, which gesso does not train",
    "network_multiplier": "an adapter acts in full",
}
"""What gesso does not do, and why or what else there is; 0 and false ask for nothing."""


def read(path: Path, table: DataTable, group: str, key: str) -> list[Record]:
    """The pictures of all subsets. Raises DataError for a file that is no such TOML, and for what gesso does not do."""
    found: list[Record] = []
    for inner in tables(path, table):
        each = loose.read(scan(inner.path, key), inner, "class" if inner.group == "class" else group, key)
        found += [replace(record, reader=READER) for record in each] * inner.repeats
    return found


def tables(path: Path, table: DataTable) -> list[DataTable]:
    """The subsets as tables of a recipe."""
    name = Path(table.path).as_posix()
    subsets = enumerate(_subsets(path, name), 1)
    return [_table(subset, table, f"{name}, subset {number}") for number, subset in subsets]


def notes(path: Path, table: DataTable) -> list[str]:
    """What the file says and the recipe decides, one sentence each."""
    name = Path(table.path).as_posix()
    said = [word for word in BUCKETS if any(subset.get(word) for subset in _subsets(path, name))]
    return [f"{name}: {', '.join(said)}: train.buckets of the recipe decides"] if said else []


def _subsets(path: Path, name: str) -> list[dict[str, Any]]:
    """Each subset with what its data set and [general] say for all of theirs."""
    try:
        whole = tomllib.loads(text.read(path, name))
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"this is not TOML: {error}", where=name, todo="mend the file") from error
    general, datasets = whole.get("general", {}), whole.get("datasets", [])
    tables = [general, *datasets] if isinstance(datasets, list) else [None]
    found: list[dict[str, Any]] = []
    for each in datasets if all(isinstance(one, dict) for one in tables) else ():
        own = {word: value for word, value in each.items() if word != "subsets"}
        subsets = each.get("subsets", [])
        if isinstance(subsets, list) and all(isinstance(one, dict) for one in subsets):
            found += [{**general, **own, **one} for one in subsets]
    if not found:
        raise DataError(
            "it has no [[datasets.subsets]]",
            where=name,
            todo='a data set looks like [[datasets]], [[datasets.subsets]], image_dir = "photos"',
        )
    return found


def _fits(value: Any, kind: type) -> bool:
    if kind in (int, float) and (isinstance(value, bool) or not isinstance(value, int | kind) or value < 0):
        return False
    return value < 1 if kind is float else isinstance(value, kind)


def _table(subset: Mapping[str, Any], table: DataTable, where: str) -> DataTable:
    """The subset as a table of a recipe."""
    for word, value in subset.items():
        if word in (*IDLE, *BUCKETS) or (word in (*ELSEWHERE, *NOT_DONE) and not value):
            continue
        if word in ELSEWHERE:
            raise DataError(f"{word} is for the whole run", where=where, todo=f"set {ELSEWHERE[word]} in the recipe")
        if word not in KNOWN:
            why = f": {NOT_DONE[word]}" if word in NOT_DONE else ""
            raise DataError(f'gesso does not do "{word}"{why}', where=where, todo="take the line out")
        kind, what = KNOWN[word]
        if not _fits(value, kind):
            raise DataError(f"{word} must be {what}, but is {value!r}", where=where)
    if not subset.get("image_dir"):
        raise DataError("image_dir is missing", where=where, todo='write image_dir = "photos"')
    if subset.get("num_repeats", 1) < 1:
        raise DataError("num_repeats must be at least 1", where=where, todo="take the subset out")
    if subset.get("caption_extension", ".txt") not in (".txt", ".caption"):
        raise DataError(
            f'caption_extension is "{subset["caption_extension"]}"', where=where, todo="gesso reads .txt and .caption"
        )
    said: dict[str, Any] = {
        "path": subset["image_dir"],
        "group": "class" if subset.get("is_reg") else table.group,
        "format": "folder",
        "prompt": subset.get("class_tokens", table.prompt),
        "repeats": subset.get("num_repeats", 1),
        "shuffle": subset.get("shuffle_caption", table.shuffle),
        "keep_tokens": subset.get("keep_tokens", table.keep_tokens),
        "tag_dropout": subset.get("caption_tag_dropout_rate", table.tag_dropout),
        "separator": subset.get("caption_separator", table.separator),
        "wildcards": subset.get("enable_wildcard", table.wildcards),
        "masks": subset.get("alpha_mask", table.masks),
    }
    # kohya puts a space between the caption and these.
    if subset.get("caption_prefix"):
        said["prefix"] = f"{subset['caption_prefix']} "
    if subset.get("caption_suffix"):
        said["suffix"] = f" {subset['caption_suffix']}"
    return table.model_copy(update=said)
