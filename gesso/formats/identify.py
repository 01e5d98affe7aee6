"""What a file or folder is, said by its content and never by its name, and without executing anything of it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from gesso.errors import GessoError, StorageError, printable
from gesso.formats import contents, mindspore, pickles, pipeline, tensors, torch_file
from gesso.formats.contents import Facts
from gesso.formats.stored import Tensors, open_safetensors

_WEIGHTS = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")
_HEAD = 64
_SHOWN = 20
"""Names of metadata and tensors that are listed at most."""


def identify(path: Path, *, values: bool = True) -> Facts:
    """What `path` is: "kind", what is known of it, and "problems", a sentence each, empty for a file that is whole.

    values: also look for numbers that are not finite, which reads the whole file, a piece at a time. Raises
    StorageError only where the path cannot be read at all.
    """
    if path.is_dir():
        return _folder(path)
    if path.exists() and not path.is_file():
        raise StorageError("this is neither a file nor a folder", where=str(path))
    try:
        with path.open("rb") as opened:
            head = opened.read(_HEAD)
        size = path.stat().st_size
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    try:
        found = _file(path, head, size, values=values)
    except GessoError as error:
        found = {"kind": "damaged", "problems": [error.what]}
    return {"path": path.name, "file_bytes": size, "problems": [], **found}


def _file(path: Path, head: bytes, size: int, *, values: bool) -> Facts:
    if head[8:9] == b"{":
        header = tensors.header(path)
        return {"container": "safetensors", **_tensors(open_safetensors(path), header.metadata, values=values)}
    if pickles.looks_like(head) or pickles.is_old(path):
        return _pickle(path, values=values)
    if mindspore.looks_like(head):
        return _checkpoint(path, values=values)
    if not size:
        return {"kind": "damaged", "problems": ["it is empty"]}
    what = contents.other(head) or "nothing that gesso knows"
    stands_for = path.suffix.lower() in _WEIGHTS
    return {"kind": "other", "what": what, "problems": [f"a {path.suffix} file should hold tensors"] * stands_for}


def _tensors(arrays: Tensors, metadata: Any, *, values: bool) -> Facts:
    found = {**contents.describe(arrays, metadata), **contents.sizes(arrays)}
    problems = [found.pop("problem")] if "problem" in found else []
    odd = contents.not_finite(arrays) if values else []
    if odd:
        problems.append(f'{len(odd)} tensors hold numbers that are not finite, "{odd[0]}" first')
    if not arrays:
        problems.append("it holds no tensor")
    told = {name: str(value)[:200] for name, value in sorted(metadata.items())[:_SHOWN]}
    return {**found, "metadata": told, "problems": problems}


def _pickle(path: Path, *, values: bool) -> Facts:
    names = pickles.named(path)
    unusual = pickles.unusual(names)
    problems = [f"loading it would import {', '.join(unusual[:_SHOWN])}: it can run any code"] if unusual else []
    facts: Facts = {"kind": "pickle", "problems": []}
    if zipfile.is_zipfile(path) and not torch_file.refused(names):
        facts = {"container": "pytorch", **_tensors(torch_file.read(path), {}, values=values)}
    return {**facts, "imports": names[:_SHOWN], "problems": [*facts["problems"], *problems]}


def _checkpoint(path: Path, *, values: bool) -> Facts:
    found = mindspore.read(path, verify=values)
    texts = {name: text[:200] for name, text in list(found.texts.items())[:_SHOWN]}
    facts = _tensors(found.tensors, texts, values=values)
    return {"container": "mindspore", **facts, "checksum": found.checked}


def _folder(folder: Path) -> Facts:
    """A run, a checkpoint, a pipeline, one part of one, or a folder with files to look at one by one."""
    found: Facts = {"path": folder.name, "kind": "folder", "problems": []}
    files = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    try:
        if {"recipe.toml", "effective.json"} <= files:
            checkpoints = [name.removeprefix("checkpoint-") for name in files if name.startswith("checkpoint-")]
            found |= {"kind": "run", "checkpoints": sorted(int(number) for number in checkpoints if number.isdecimal())}
        elif {"state.json", "manifest.json"} <= files:
            found |= {"kind": "checkpoint", "step": pipeline.read_json(folder / "state.json").get("step")}
        if pipeline.INDEX in files:
            found |= _pipeline(folder) if found["kind"] == "folder" else {"pipeline": _pipeline(folder)}
        elif "config.json" in files and found["kind"] == "folder":
            config = pipeline.read_json(folder / "config.json")
            name = config.get("_class_name") or next(iter(config.get("architectures") or []), None)
            found |= {"kind": "part", "class": name, "tensors": len(pipeline.shapes(folder))}
    except GessoError as error:
        found["problems"] = [error.what]
    weights = sorted(name for name in files if name.endswith(_WEIGHTS))
    return {**found, **({"files": weights[:_SHOWN]} if weights else {})}


def _pipeline(folder: Path) -> Facts:
    index = pipeline.index_of(folder)
    parts: dict[str, Facts] = {}
    problems = []
    for part in (name for name, value in index.items() if pipeline.is_component(value)):
        try:
            shapes = pipeline.shapes(folder / part)
        except GessoError as error:
            problems.append(f"{part}: {error.what}")
            continue
        if shapes:
            parts[part] = {"tensors": len(shapes)}
        elif not (folder / part).is_dir():
            problems.append(f"{part}: the folder is missing")
    return {"kind": "pipeline", "class": index.get("_class_name"), "parts": parts, "problems": problems}


def text(found: Facts) -> str:
    """The findings for people: the kind first, then a line for each fact."""
    kind = " ".join(str(found[key]) for key in ("family", "form", "kind") if found.get(key))
    lines = [f"{found.get('path', '')}: {found.get('what') or kind}"]
    skip = {"path", "kind", "family", "form", "problems", "what"}
    for key, value in found.items():
        if key not in skip and value not in (None, {}, []):
            plain = value if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)
            lines.append(f"  {key.replace('_', ' '):14}{plain}")
    lines += [f"  problem       {problem}" for problem in found["problems"]]
    return printable("\n".join(lines))
