"""In place of Hugging Face's datasets where it is not installed: a folder of pictures with a metadata.jsonl.

(datasets needs pyarrow, whose newest versions need numpy 2, with which MindSpore does not run.) Pictures are opened
when they are asked for, as there, and what is mapped is computed once; nothing is cached on disk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from datasets import fingerprint, utils

__all__ = ["Dataset", "disable_caching", "fingerprint", "load_dataset", "utils"]


class Dataset:
    """Rows of an imagefolder; "image" is a Pillow picture, everything else what metadata.jsonl or a map says."""

    def __init__(self, folder: Path, rows: Sequence[Mapping[str, Any]], transform: Callable[..., Any] | None) -> None:
        self.folder, self.rows, self.transform = folder, rows, transform

    @property
    def column_names(self) -> list[str]:
        return ["image", *(name for name in self.rows[0] if name != "file_name")]

    def with_transform(self, transform: Callable[..., Any], output_all_columns: bool = False) -> Dataset:
        return Dataset(self.folder, self.rows, transform)

    def map(
        self,
        function: Callable[..., Mapping[str, Any]],
        *,
        batched: bool,
        batch_size: int = 1000,
        new_fingerprint: str | None = None,
    ) -> Dataset:
        """With the columns that `function` makes of the transformed rows, `batch_size` of them at once, beside its own.

        The transform itself leaves nothing behind, and is there again whenever a row is asked for.
        """
        if not batched:
            raise ValueError("the stand-in for datasets maps batches, not single rows")
        rows: list[dict[str, Any]] = []
        for start in range(0, len(self), batch_size):
            batch = self.rows[start : start + batch_size]
            found = function(self._columns(batch))
            rows += [
                {**row, **dict(zip(found, new, strict=True))} for row, *new in zip(batch, *found.values(), strict=True)
            ]
        return Dataset(self.folder, rows, self.transform)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return {name: values[0] for name, values in self._columns([self.rows[index]]).items()}

    def _columns(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        columns = {name: [row[name] for row in rows] for name in rows[0] if name != "file_name"}
        columns["image"] = [_opened(self.folder / row["file_name"]) for row in rows]
        return dict(self.transform(columns)) if self.transform else columns


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.copy()


def load_dataset(kind: str, *, data_files: Mapping[str, str], **rest: Any) -> dict[str, Dataset]:
    """The training split of `kind` "imagefolder"; `data_files["train"]` is the folder and "/**"."""
    if kind != "imagefolder":
        raise ValueError(f"the stand-in for datasets reads imagefolder, not {kind}")
    folder = Path(data_files["train"]).parent
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return {"train": Dataset(folder, [json.loads(line) for line in lines], None)}


def disable_caching() -> None:
    """There is no cache."""
