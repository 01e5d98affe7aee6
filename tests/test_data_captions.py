"""How a caption is rendered: choice, wildcards, tags, words around it; the same at every place, whoever asks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from data_parts import Averages, batches, dataset, made, quiet, same
from hypothesis import given
from hypothesis import strategies as st

from gesso.data import check
from gesso.data.captions import MOST, Style, choose, plain, render, renderings
from gesso.data.plan import Slot
from gesso.data.record import Record

TAGS = "1girl, red hair, smile, outdoors"


def drawn(caption: str, style: Style, count: int = 400) -> Counter[str]:
    return Counter(render(caption, style, 7, epoch, 0) for epoch in range(count))


def styled(folder: Path, style: Style, captions: tuple[str, ...] = (TAGS,)) -> list[Record]:
    return [replace(record, captions=captions, style=style) for record in made(folder)]


def test_without_a_style_a_caption_stays_as_it_is() -> None:
    assert drawn("  {a|b}, c ,, d", Style(), 3) == {"{a|b}, c ,, d": 3}


def test_a_trigger_stands_in_front_unless_it_is_there() -> None:
    style = Style(trigger=" sks ")
    assert plain("a dog", style) == "sks, a dog"
    assert plain("a dog named sks.", style) == "a dog named sks."
    assert plain("asks nobody", style) == "sks, asks nobody"
    assert plain("", style) == "sks"
    assert plain("a <dog>", Style(trigger="<dog>")) == "a <dog>"


def test_prefix_and_suffix_are_put_as_they_are() -> None:
    assert plain("a dog", Style(prefix="photo of ", suffix=", 4k", trigger="sks")) == "photo of sks, a dog, 4k"


def test_a_shuffle_keeps_the_first_tags_and_loses_none() -> None:
    found = drawn(TAGS, Style(shuffle=True, keep=1))
    assert set(found) == {f"1girl, {rest}" for rest in _orders(["red hair", "smile", "outdoors"])}
    # Each of the 6 orders 67 times of 400, give or take five standard deviations.
    assert all(abs(count - 400 / 6) < 5 * (400 / 6 * 5 / 6) ** 0.5 for count in found.values())
    assert set(drawn("a|b|c", Style(shuffle=True, separator="|"))) == {
        o.replace(", ", "| ") for o in _orders(["a", "b", "c"])
    }
    assert drawn("a ,, b, ", Style(shuffle=True, keep=9), 3) == {"a, b": 3}


def test_tags_behind_the_kept_ones_are_dropped_by_chance() -> None:
    found = drawn(TAGS, Style(drop=0.25, keep=1))
    assert all(caption.split(", ")[0] == "1girl" for caption in found)
    # Each of the three others is there 3 times of 4: 300 of 400, give or take five standard deviations.
    for tag in ("red hair", "smile", "outdoors"):
        there = sum(count for caption, count in found.items() if tag in caption)
        assert abs(there - 300) < 5 * (400 * 0.25 * 0.75) ** 0.5
    assert set(found) == {
        ", ".join(["1girl", *(t for t, k in zip(("red hair", "smile", "outdoors"), kept, strict=True) if k)])
        for kept in product((True, False), repeat=3)
    }
    both = drawn(TAGS, Style(drop=0.25, keep=1, shuffle=True), 2000)
    assert len(both) == 1 + 3 + 6 + 6, "no tag, one of three, two in order, three in order"
    assert renderings("one, two", Style(drop=0.5, keep=1)) is None
    assert renderings("one, two", Style(drop=0.5, keep=2)) == ("one, two",)


def test_a_shuffle_of_one_tag_is_written_as_any_other() -> None:
    assert renderings("one,two", Style(shuffle=True, keep=1)) == ("one, two",)
    assert drawn("one,two", Style(shuffle=True, keep=1), 3) == {"one, two": 3}


def test_wildcards_choose_equally_and_may_nest() -> None:
    style = Style(wildcards=True)
    found = drawn("a {red|{dark|light} blue} {car|bike}", style, 2000)
    assert len(found) == 6
    assert sum(count for text, count in found.items() if "red" in text) == pytest.approx(1000, abs=112)
    assert plain("a {red|blue} {car}{|s}", style) == "a red car"
    assert plain("open { brace } }", style) == "open  brace  }"
    assert plain("a {red|blue} car", Style()) == "a {red|blue} car"


@given(st.text("ab{|}, ", max_size=12))
def test_all_that_is_drawn_is_among_the_renderings(caption: str) -> None:
    for style in (Style(wildcards=True), Style(wildcards=True, trigger="b", prefix=" p"), Style(shuffle=True)):
        known = renderings(caption, style)
        seen = {render(caption, style, 1, epoch, 2) for epoch in range(20)}
        assert known is None or (seen <= set(known) and plain(caption, style) in known) or style.shuffle
        assert "  p" not in "".join(seen)


def test_renderings_are_counted_or_endless() -> None:
    style = Style(wildcards=True)
    assert renderings("{a|b} {c|d}", style) == ("a c", "a d", "b c", "b d")
    assert set(renderings("{a|{b|c}}", style) or ()) == {"a", "b", "c"}
    assert len(renderings("{a|b}" * 6, style) or ()) == MOST
    assert renderings("{a|b}" * 7, style) is None
    assert renderings("{a|b}" * 40, style) is None
    assert renderings(TAGS, Style(shuffle=True)) is None
    assert renderings("one, two", Style(shuffle=True, keep=1)) == ("one, two",)


def test_choices_follow_their_weights() -> None:
    draws = (np.arange(1000) + 0.5) / 1000
    assert Counter(choose((3.0, 1.0), 2, draw) for draw in draws) == {0: 750, 1: 250}
    assert Counter(choose((), 4, draw) for draw in draws) == dict.fromkeys(range(4), 250)
    assert choose((1e-300, 1e300), 2, np.nextafter(1.0, 0.0)) == 1


def test_each_picture_and_epoch_has_a_drawing_of_its_own(tmp_path: Path) -> None:
    data = dataset(styled(tmp_path / "p", Style(shuffle=True)), tmp_path / "c")
    captions = [[data.caption(Slot(row=row, epoch=epoch)) for epoch in range(20)] for row in range(5)]
    assert len({tuple(each) for each in captions}) == 5
    other = dataset(styled(tmp_path / "p", Style(shuffle=True)), tmp_path / "c")
    assert captions[3][11] == other.caption(Slot(row=3, epoch=11))
    assert captions != [[dataset(data.records, tmp_path / "c", seed=8).caption(Slot(r, e)) for e in range(20)]
                        for r in range(5)]  # fmt: skip


def test_weights_of_captions_reach_the_drawing(tmp_path: Path) -> None:
    (record,) = made(tmp_path / "p", 1)
    data = dataset([replace(record, captions=("often", "rare"), shares=(9.0, 1.0))], tmp_path / "c")
    found = Counter(data.caption(Slot(row=0, epoch=epoch)) for epoch in range(1000))
    assert found["rare"] == pytest.approx(100, abs=48)


def test_bounded_renderings_are_encoded_once_and_beforehand(tmp_path: Path) -> None:
    style = Style(wildcards=True, trigger="sks")
    encoder = Averages()
    data = dataset(styled(tmp_path / "p", style, ("a {red|blue} car",)), tmp_path / "c", encoder, caption_dropout=0.2)
    prepared = data.prepare(quiet)
    assert (prepared.captions_encoded, prepared.notes) == (3, ())
    assert sorted(encoder.captions) == ["", "sks, a blue car", "sks, a red car"]
    for step in range(9):
        batches(data).step(step)
    assert len(encoder.captions) == 3
    again = dataset(data.records, tmp_path / "c", caption_dropout=0.2).prepare(quiet)
    assert (again.captions_encoded, again.captions_reused) == (0, 3)


def test_endless_renderings_are_encoded_when_seen_and_not_kept(tmp_path: Path) -> None:
    records = styled(tmp_path / "p", Style(shuffle=True, keep=1))
    records[0] = replace(records[0], style=Style())
    encoder = Averages()
    data = dataset(records, tmp_path / "c", encoder)
    prepared = data.prepare(quiet)
    assert encoder.captions == [TAGS]
    assert prepared.notes[-1].startswith("the captions of 4 of 5 pictures are shuffled")
    files = sorted((tmp_path / "c").rglob("*.safetensors"))
    steps = [batches(data).step(step) for step in range(8)]
    assert sorted((tmp_path / "c").rglob("*.safetensors")) == files
    assert len(set(encoder.captions)) > 4
    plainly = dataset(records, tmp_path / "other", None)
    assert all(same(batches(plainly).step(step), steps[step]) for step in range(8))


def test_held_out_captions_and_token_counts_are_as_written(tmp_path: Path) -> None:
    style = Style(shuffle=True, trigger="sks", wildcards=True)
    data = dataset(styled(tmp_path / "p", style, ("a, {b|c}, d", "other")), tmp_path / "c")
    assert {data.plain_caption(row) for row in range(5)} == {"sks, a, b, d"}
    seen: list[str] = []

    def count(texts: object) -> tuple[list[int], int]:
        seen.extend(texts)  # type: ignore[arg-type]
        return [1] * len(seen), 77

    assert check.cut(data.records, count) == []
    assert seen == ["sks, a, b, d", "sks, other"]


def _orders(tags: list[str]) -> list[str]:
    return [", ".join(order) for order in permutations(tags)]


def test_many_captions_that_are_cut_are_one_sentence(tmp_path: Path) -> None:
    record = made(tmp_path / "p")[0]
    few, many = ([replace(record, captions=tuple(f"{'x ' * n}end" for n in range(count)))] for count in (4, 30))

    def count(captions: object) -> tuple[list[int], int]:
        return [len(caption.split()) for caption in captions], 3  # type: ignore[attr-defined]

    assert len(check.cut(few, count)) == 1
    (said,) = check.cut(many, count)
    assert said.startswith("27 of 30 captions have more tokens than the 3")
    assert "(30)" in said
    assert "caption_chunks" in said
