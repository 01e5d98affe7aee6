"""The same prompts and seeds drawn by several models, side by side on one page.

OUT/index.html              a row for each prompt and seed, a column for each model and strength
OUT/<column>/00000.png …    the pictures, each of which says how it was made
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gesso import gallery, models
from gesso.errors import RecipeError
from gesso.generate import Prepared, Request, drawn, prepare
from gesso.recipe import load
from gesso.report import comparison
from gesso.storage import guard, write_bytes

PAGE = "index.html"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """What one column was drawn with: its name on the page, and the model; `strength` is None where nothing has one."""

    name: str
    model: str
    like: str = ""
    lora: Path | None = None
    """A LoRA on top of the model."""
    strength: float | None = None


def columns(names: Sequence[str], strengths: Sequence[float], loras: Sequence[Path] = ()) -> list[Column]:
    """The columns that models stand for, from left to right.

    A run stands for its base and each of its checkpoints, the newest last; anything else for itself. Each of `loras` is
    put on top of the first model, beside it. `strengths` gives a column to each of them where a model has a LoRA.
    RecipeError for names that are no model.
    """
    found: list[Column] = []
    for name in names:
        path = Path(name).expanduser()
        checkpoints = _checkpoints(path)
        if checkpoints:
            base, like = models.base_of(path)
            found.append(Column(name=f"base {base}", model=base, like=like))
        for place in checkpoints or [Path(name)]:
            label = f"{path.name} step {str(place).rpartition('-')[2]}" if checkpoints else name
            found += _strengths(Column(name=label, model=str(place) if checkpoints else name), strengths)
        if loras and name == names[0]:
            if checkpoints:
                raise RecipeError(
                    f"--lora goes on top of the first model, and {name} is a run", todo="name a base first"
                )
            found += [
                each for file in loras for each in _strengths(Column(name=str(file), model=name, lora=file), strengths)
            ]
    named = [column.name for column in found]
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        raise RecipeError(f"{twice} is compared with itself", todo="name each model once")
    return found


def compare(request: Request, wanted: Sequence[Column], progress: Progress) -> Path:
    """Draw `request` with each column's model in place of its own, and write the page; its path.

    All columns are checked before the first picture. What is in the folder already is not drawn again.
    """
    ready = [_prepared(request, column, number) for number, column in enumerate(wanted)]
    total = sum(len(each.wanted) for each in ready)
    done = 0
    for each in ready:
        for _ in drawn(each):
            done += 1
            progress("pictures", done, total)
    cells = [_cells(each) for each in ready]
    rows = [(prompt, seed) for prompt in dict.fromkeys(request.prompts) for seed in request.seeds]
    names = [column.name for column in wanted]
    page = comparison.page(request.out.resolve().name, _how(request), rows, names, cells)
    path = request.out / PAGE
    with guard(request.out, what="the page", needed=len(page.encode())):
        write_bytes(path, page.encode())
    return path


def prompts_of(names: Sequence[str]) -> tuple[str, ...]:
    """The prompts that the first run among the models drew its samples with; none where there is no run."""
    for name in names:
        path = Path(name).expanduser()
        run = path.parent if path.name.startswith("checkpoint-") else path
        if (run / "effective.json").is_file():
            return load(run).recipe.sample.prompts
    return ()


def _checkpoints(path: Path) -> list[Path]:
    """A run's checkpoints by step; none for anything else."""
    if not (path / "effective.json").is_file():
        return []
    steps = {
        int(match[1]): place for place in path.iterdir() if (match := re.fullmatch(r"checkpoint-(\d+)", place.name))
    }
    return [steps[step] for step in sorted(steps)]


def _strengths(column: Column, strengths: Sequence[float]) -> list[Column]:
    if not strengths or (column.lora is None and models.resolve(column.model).lora is None):
        return [column]
    return [replace(column, name=f"{column.name}, strength {s:g}", strength=s) for s in strengths]


def _folder(request: Request, column: Column, number: int) -> Path:
    return request.out / f"{number:02d} {re.sub(r'[^A-Za-z0-9._-]+', '-', column.name).strip('-')[-60:]}"


def _request(request: Request, column: Column, number: int) -> Request:
    strengths = () if column.strength is None else (column.strength,)
    loras = () if column.lora is None else (column.lora,)
    own = replace(request, model=column.model, like=column.like or request.like, loras=loras, strengths=strengths)
    return replace(own, out=_folder(request, column, number), resume=True)


def _prepared(request: Request, column: Column, number: int) -> Prepared:
    try:
        return prepare(_request(request, column, number))
    except RecipeError as error:
        raise RecipeError(f"{column.name}: {error.what}", where=error.where, todo=error.todo) from error


def _cells(ready: Prepared) -> dict[tuple[str, int], Path]:
    """The pictures of a column by prompt and seed: those drawn as asked now, whatever else lies in its folder."""
    files = gallery.found(ready.request.out, ready.asked, ready.notes)
    return {(each.prompt, each.seed): file for each, file in zip(ready.asked, files, strict=True) if file is not None}


def _how(request: Request) -> str:
    told = [f"{request.steps} steps", f"guidance {request.guidance:g}"]
    told += [request.scheduler] if request.scheduler else []
    told += [f"without “{request.negative}”"] if request.negative else []
    return ", ".join(told)
