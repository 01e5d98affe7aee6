"""What can be exported as what: each cell of the table in docs/export.md is tried, or refused for its reason.

`GESSO_WRITE_DOCS=1 pytest tests/test_export_matrix.py` writes the table anew.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from export_parts import FAMILIES, second, trained

from gesso.errors import RecipeError
from gesso.export import Request, export
from gesso.formats import merge, parts
from gesso.formats.exporting import FORMS, KINDS, why_not

PAGE = Path(__file__).parent.parent / "docs" / "export.md"
BEGIN, END = "<!-- table: tests/test_export_matrix.py -->", "<!-- end of the table -->"
NAMES = {
    "none": "whole model",
    "lora": "LoRA",
    "dora": "DoRA",
    "loha": "LoHa",
    "lokr": "LoKr",
    "oft": "OFT",
    "ti": "words",
}
SUFFIXES = {"single": "m.safetensors", "mindspore": "m.ckpt", "kohya": "m.safetensors"}


@pytest.fixture(scope="module")
def bases(blank: Path, blank_xl: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"sd1": blank, "sd2": second(blank, tmp_path_factory.mktemp("two") / "sd2"), "sdxl": blank_xl}


@pytest.fixture(scope="module")
def runs(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """An adapter of each kind on each family, made when first asked for."""
    place = tmp_path_factory.mktemp("runs")

    class Made(dict[tuple[str, str], Path]):
        def __missing__(self, key: tuple[str, str]) -> Path:
            kind, family = key
            self[key] = bases[family] if kind == "none" else trained(kind, bases[family], place / f"{kind}-{family}")
            return self[key]

    return Made()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_each_cell(
    kind: str, family: str, form: str, bases: dict[str, Path], runs: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    source, base = runs[kind, family], bases[family]
    out = tmp_path / SUFFIXES.get(form, "out")
    request = Request(source=str(source), form=form, out=out, base="" if kind == "none" else str(base))
    reason = why_not(kind, family, form)
    if reason:
        with pytest.raises(RecipeError, match=re.escape(reason)):
            export(request)
        assert list(tmp_path.iterdir()) == []
        return
    done = export(request)
    assert done.apart < 1e-5
    assert out.exists()
    assert all(path.exists() for path in done.files)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("kind", KINDS)
def test_the_check_would_see_a_base_without_the_adapter(
    kind: str, bases: dict[str, Path], runs: dict[tuple[str, str], Path]
) -> None:
    """Each of these adapters moves the answers of every part by far more than the check allows."""
    from gesso.engines.torch import reload
    from gesso.formats import adapter, embeddings

    if kind == "none":
        return
    folder = runs[kind, "sd1"]
    tokens = embeddings.read(embeddings.files(folder)) if kind == "ti" else {}
    before, after = reload.own(bases["sd1"], adapter=adapter.place(folder), tokens=tokens)
    for part in ("text_encoder",) if kind == "ti" else before:
        assert np.linalg.norm(after[part] - before[part]) > 0.01 * np.linalg.norm(before[part])


@pytest.mark.parametrize("kind", ["loha", "lokr", "oft", "dora"])
def test_merging_is_what_peft_merges(kind: str, bases: dict[str, Path], runs: dict[tuple[str, str], Path]) -> None:
    """Weight by weight, against peft's own merge in float32."""
    from gesso.engines.torch import loras
    from gesso.engines.torch.models import Models
    from gesso.families import sd
    from gesso.formats import adapter

    base, folder = bases["sd1"], runs[kind, "sd1"]
    place = adapter.place(folder)
    assert place is not None
    models = Models(base, torch.device("cpu"), {}, {})
    loras.add(models, sd, place, name="x", strength=1.0)
    made = merge.merged(parts.read(base)[1], *adapter.read(place))
    seen = 0
    for part in ("unet", "text_encoder"):
        for name, layer in models.get(part).named_modules():
            if hasattr(layer, "merge") and hasattr(layer, "base_layer"):
                layer.merge()
                own = made[part].get(f"{name}.weight") or made[part][f"text_model.{name}.weight"]
                np.testing.assert_allclose(layer.base_layer.weight.detach(), own.read(), rtol=1e-4, atol=2e-6)
                seen += 1
    assert seen > 20


def table() -> str:
    """The cells, a row for each kind and family; a number stands for the reason below."""
    reasons: list[str] = []
    lines = [
        "| trained | family | " + " | ".join(f"`{form}`" for form in FORMS) + " |",
        "| --- " * (2 + len(FORMS)) + "|",
    ]
    for kind in KINDS:
        for family in FAMILIES:
            cells = []
            for form in FORMS:
                reason = why_not(kind, family, form)
                if reason and reason not in reasons:
                    reasons.append(reason)
                cells.append(f"no ({reasons.index(reason) + 1})" if reason else "yes")
            lines.append(f"| {NAMES[kind]} | {family} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1))])


def test_the_page_shows_the_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    wanted = f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"
    if os.environ.get("GESSO_WRITE_DOCS"):
        PAGE.write_text(wanted, encoding="utf-8")
    assert text == wanted or os.environ.get("GESSO_WRITE_DOCS")
