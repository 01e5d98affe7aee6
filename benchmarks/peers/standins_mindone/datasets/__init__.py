"""In place of Hugging Face's datasets where it is not installed: a folder of pictures with a metadata.jsonl.

(datasets needs pyarrow, whose newest versions need numpy 2, with which MindSpore does not run.) Pictures are opened
when they are asked for, as there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from datasets import utils

__all__ = ["Dataset", "disable_caching", "load_dataset", "utils"]


class Dataset:
    """Rows of an imagefolder; "image" is a Pillow picture, everything else what metadata.jsonl says."""

    def __init__(self, folder: Path, rows: Sequence[Mapping[str, Any]], transform: Callable[..., Any] | None) -> None:
        self.folder, self.rows, self.transform = folder, rows, transform

    @property
    def column_names(self) -> list[str]:
        return ["image", *(name for name in self.rows[0] if name != "file_name")]

    def with_transform(self, transform: Callable[..., Any], output_all_columns: bool = False) -> Dataset:
        return Dataset(self.folder, self.rows, transform)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        row = self.rows[index]
        columns = {name: [value] for name, value in row.items() if name != "file_name"}
        with Image.open(self.folder / row["file_name"]) as picture:
            columns["image"] = [picture.copy()]
        found = self.transform(columns) if self.transform else columns
        return {name: values[0] for name, values in found.items()}


def load_dataset(kind: str, *, data_files: Mapping[str, str], **rest: Any) -> dict[str, Dataset]:
    """The training split of `kind` "imagefolder"; `data_files["train"]` is the folder and "/**"."""
    if kind != "imagefolder":
        raise ValueError(f"the stand-in for datasets reads imagefolder, not {kind}")
    folder = Path(data_files["train"]).parent
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return {"train": Dataset(folder, [json.loads(line) for line in lines], None)}


def disable_caching() -> None:
    """There is no cache."""
