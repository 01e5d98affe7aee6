"""The pages in a real browser: nothing asked of any network, everything drawn, readable, and in reach of any hand."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser_parts import MISSING, Browser, Page, find
from made_run import GROUNDS, PROMPTS, STEPS, kite, make_run
from PIL import Image
from test_report import MEASURED

from gesso.data.buckets import Bucket
from gesso.data.examine.finding import Finding
from gesso.events import Saved, Validated
from gesso.formats import png
from gesso.pick import file
from gesso.pick.choice import Measured, choose
from gesso.pick.reasons import reasons
from gesso.report import check, comparison, page
from gesso.trackers.jsonl import Jsonl

PROGRAM = find()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason=MISSING)

PHONE, DESK = 360, 1100
LONG = "x" * 300  # no page may grow wider than the screen for a word that cannot be broken
PAGES = ("run", "picked", "compare", "check")
ENTER, ESCAPE, LEFT, RIGHT = ("Enter", 13, "\r"), ("Escape", 27), ("ArrowLeft", 37), ("ArrowRight", 39)
CELLS = ".grid tbody tr:nth-child(2) td:nth-of-type({}) button"

# Text whose contrast with what is behind it is below the ratio, by WCAG 2.2 (1.4.3): colours as they are computed, all
# backgrounds and opacities up to the root mixed as the browser mixes them.
UNREADABLE = """(least) => {
  const numbers = (colour) => { const n = colour.match(/[\\d.]+/g).map(Number); return [...n.slice(0, 3), n[3] ?? 1]; };
  const over = (top, under) => under.map((value, at) => top[3] * top[at] + (1 - top[3]) * value);
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    const own = numbers(getComputedStyle(node).backgroundColor);
    if (own[3] === 1) return own.slice(0, 3);
    return over(own, node.parentElement ? behind(node.parentElement) : [255, 255, 255]);
  };
  const clear = (node) => Number(getComputedStyle(node).opacity) * (node.parentElement ? clear(node.parentElement) : 1);
  const found = [];
  let seen = 0;
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = walk.nextNode(); text; text = walk.nextNode()) {
    const range = document.createRange();
    range.selectNodeContents(text);
    if (!text.data.trim() || !range.getClientRects().length) continue;
    const parent = text.parentElement;
    if (parent.closest("style, script, title")) continue;
    seen += 1;
    const style = getComputedStyle(parent);
    const ground = behind(parent);
    const [r, g, b, a] = numbers(parent.closest("svg") ? style.fill : style.color);
    const [one, two] = [light(over([r, g, b, a * clear(parent)], ground)), light(ground)].sort((x, y) => y - x);
    const ratio = (one + 0.05) / (two + 0.05);
    if (ratio < least) found.push(`${ratio.toFixed(2)} ${parent.outerHTML.slice(0, 60)} ${text.data.slice(0, 40)}`);
  }
  return { seen, found };
}"""

CURVES = """[...document.querySelectorAll("svg.curve")]
  .filter((svg) => svg.getBoundingClientRect().width)
  .map((svg) => {
    const each = (name, told) => [...svg.querySelectorAll(name)].map(told);
    return {
      ticks: each(".tick-y", (tick) => [Number(tick.textContent), tick.y.baseVal[0].value]),
      across: each(".tick-x", (tick) => [Number(tick.textContent), tick.x.baseVal[0].value]),
      raw: [...svg.querySelector(".raw").points].map((point) => [point.x, point.y]),
      held: each(".held", (dot) => [dot.cx.baseVal.value, dot.cy.baseVal.value]),
      bars: each(".error", (bar) => [bar.getBBox().y, bar.getBBox().height]),
      seen: each(".error", (bar) => bar.getBoundingClientRect().height),
      units: each(".unit", (unit) => unit.textContent),
      inside: svg.getBoundingClientRect().right <= innerWidth,
    };
  })"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    running = Browser(PROGRAM, tmp_path_factory.mktemp("profile"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind, with every part that it can have."""
    folder = tmp_path_factory.mktemp("pages")
    run = make_run(folder / f"kite-{LONG[:100]}")
    tracker = Jsonl(run / "events.jsonl")
    for step, factor in ((0, 1.0), (20, 0.6)):  # the same measurements with their noise levels
        by, errors = {62: 0.7 * factor, 937: 0.0053}, {62: 0.049, 937: 0.0016}
        loss = 0.213 * factor
        tracker.handle(
            Validated(
                step=step,
                loss=loss,
                error=0.006,
                pictures=4,
                by_timestep=by,
                error_by_timestep=errors,
                by_picture=[loss - 0.01, loss, loss, loss + 0.01],
            )
        )
    tracker.close()
    (run / "checkpoint-20").mkdir()
    made = {"run": page.write(run, extra=[MEASURED]), "picked": picked(folder)}

    rows = [(prompt, seed) for prompt in (*PROMPTS, LONG) for seed in (0, 1)]
    numbered = [(at, prompt, seed) for at, prompt in enumerate(PROMPTS) for seed in (0, 1)]
    cells = [
        {(prompt, seed): run / f"samples/step-{step}/p{at:02d}-s{seed}.png" for at, prompt, seed in numbered}
        for step in STEPS
    ]
    made["compare"] = folder / "compare.html"
    names = [f"runs/kite step {step}" for step in STEPS[:-1]] + [LONG]
    made["compare"].write_text(comparison.page("kites", "20 steps, guidance 4", rows, names, cells), encoding="utf-8")

    Image.fromarray(kite(GROUNDS[0], 1.0, 1, side=600)).save(folder / "large.jpg")
    places = [folder / "large.jpg", *sorted((folder / "photos").glob("*.png"))]
    findings = [
        Finding(level="error", kind="unreadable", where=f"a/{LONG}.png", what="not a picture", todo="leave it out"),
        Finding(level="warning", kind="same", where="", what=f"the same: {LONG}", pictures=tuple(places)),
        Finding(level="note", kind="small", where="0.png", what="48 by 48 pixels", pictures=(places[1],)),
    ]
    content = check.Content(
        name=f"/somewhere/{LONG}",
        verdict="1 problem stops the run.",
        good=False,
        findings=findings,
        facts=[("Pictures", "6"), ("Captions", LONG)],
        buckets=[Bucket(size=(64, 128), pictures=3, rows=30, enlarged=1, cut=0.1, mixed=2)],
        forecast=[check.Forecast(name="Memory", value="about 40.3 MB", how="an estimate")],
        sheet=[(place, f"a photo of sks kite {LONG}") for place in places],
        pictures=len(places),
    )
    made["check"] = folder / "check.html"
    made["check"].write_text(check.page(content), encoding="utf-8")
    return made


def picked(folder: Path) -> Path:
    """The page of a run of which a checkpoint was picked, with all that there can be to say."""
    run, steps = make_run(folder / "picked" / "kite"), (0, 500, 1000, 1500, 12000)
    tracker = Jsonl(run / "events.jsonl")
    for step in steps[1:]:
        (run / f"checkpoint-{step}").mkdir()
        tracker.handle(Saved(step=step, folder=f"checkpoint-{step}"))
    tracker.close()
    measured = [
        Measured(
            step=step,
            held_out=tuple(loss * hard for hard in (0.7, 0.9, 1.0, 1.1)),
            distance=tuple(distance + shift for shift in (0.0, 0.02, 0.05)),
            copies=(step == steps[-1],) * 3,
            drift=(step * 1e-5, step * 2e-5),
        )
        for step, loss, distance in zip(steps, (0.2, 0.1, 0.05, 0.08, 0.15), (0.9, 0.7, 0.6, 0.5, 0.2), strict=True)
    ]
    for step in steps:
        for number, ground in enumerate(GROUNDS):
            png.write(run / f"pick/step-{step}/{number:05d}.png", kite(ground, step / steps[-1], number), {})
    notes = [f"checkpoint-40 is damaged and left out: {LONG}"]
    file.write(run, reasons(choose(measured[0], measured[1:]), 0.4, notes), measured)
    return page.write(run)


def becomes(page: Page, **wanted: object) -> None:
    """Whether a picture is enlarged, which, and the label of what has the focus: so, or so in a moment."""
    script = "({ open: dialog.open, alt: large.alt, focus: document.activeElement.ariaLabel })"
    for _ in range(100):
        found = page.run(script)
        if found.items() >= wanted.items():
            return
        time.sleep(0.05)
    assert {name: found[name] for name in wanted} == wanted


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_it_asks_nothing_fits_and_shows_every_picture(
    browser: Browser, files: dict[str, Path], name: str, width: int
) -> None:
    with browser.page(files[name], width=width) as opened:
        opened.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        # A phone would make its own screen wider for a page that is too wide, and innerWidth with it.
        assert opened.run("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
        pictures = opened.run(
            """Promise.all([...document.images].filter((each) => !each.closest("dialog")).map(async (each) => {
                await each.decode();
                return [each.naturalWidth, each.getBoundingClientRect().width, each.alt];
            }))"""
        )
        assert len(pictures) == files[name].read_text(encoding="utf-8").count("data:image/")
        assert len(pictures) >= 9
        assert all(natural > 0 and shown >= 20 and alt for natural, shown, alt in pictures)
        opened.click("button.zoom")
        assert opened.asked == []
        assert opened.complaints == []


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_its_text_can_be_read_in_light_and_dark(
    browser: Browser, files: dict[str, Path], name: str, dark: bool
) -> None:
    for width in (PHONE, DESK):
        with browser.page(files[name], width=width, dark=dark) as opened:
            ground = opened.run("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", ground))) < 3 * 128) == dark
            opened.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
            opened.run("document.querySelector('button.zoom').click()")
            told = opened.run(f"({UNREADABLE})(4.5)")
            assert told["found"] == []
            assert told["seen"] > 30


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_the_curve_has_a_point_for_each_event_and_bars_as_long_as_the_errors(
    browser: Browser, files: dict[str, Path], width: int
) -> None:
    written = (files["run"].parent / "events.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in written]
    steps = {event["step"]: event["loss"] for event in events if event["event"] == "stepped"}
    held = {event["step"]: event for event in events if event["event"] == "validated"}
    with browser.page(files["run"], width=width) as opened:
        drawn = opened.run(CURVES)
    assert len(drawn) == 1, "one drawing for wide screens, one for phones, never both"
    (drawn,) = drawn
    assert drawn["inside"]
    assert drawn["units"] == ["optimiser steps", "mean squared error"]
    (low, bottom), (high, top) = drawn["ticks"][0], drawn["ticks"][-1]
    pixels = (bottom - top) / (high - low)
    (first, left), (last, right) = drawn["across"][0], drawn["across"][-1]

    def places(values: dict[int, float]) -> list[list[float]]:
        across = (right - left) / (last - first)
        return [[left + across * (step - first), bottom - pixels * (loss - low)] for step, loss in values.items()]

    assert drawn["raw"] == [pytest.approx(place, abs=0.2) for place in places(steps)]
    assert drawn["held"] == [pytest.approx(at, abs=0.2) for at in places({s: e["loss"] for s, e in held.items()})]
    assert len(drawn["bars"]) == len(held) == len(STEPS)
    for (bar, height), event in zip(drawn["bars"], held.values(), strict=True):
        assert height == pytest.approx(2 * pixels * event["error"], abs=0.2)
        assert bar + height / 2 == pytest.approx(bottom - pixels * (event["loss"] - low), abs=0.2)
    assert min(drawn["seen"]) > 6, "pixels of the screen"


@pytest.mark.parametrize("name", ["run", "compare"])
def test_pictures_grow_by_mouse_and_keyboard(browser: Browser, files: dict[str, Path], name: str) -> None:
    with browser.page(files[name], width=DESK) as opened:
        row = opened.run("[...document.querySelectorAll('.grid tbody tr:nth-child(2) img')].map((each) => each.alt)")
        assert len(row) == len(STEPS)
        assert len({re.sub(r"[^,]+$", "", alt) for alt in row}) == 1, "the same prompt and seed"
        opened.click(CELLS.format(2))
        becomes(opened, open=True, alt=row[1])
        small = opened.run(f"document.querySelector({CELLS.format(2)!r}).getBoundingClientRect().width")
        assert opened.run("large.getBoundingClientRect().width") > 1.5 * small
        opened.key(*RIGHT)
        opened.click("dialog .on")
        becomes(opened, open=True, alt=row[3])
        opened.key(*LEFT)
        becomes(opened, open=True, alt=row[2])
        for _ in row:
            opened.key(*RIGHT)
        becomes(opened, open=True, alt=row[-1])  # it ends with the row
        opened.key(*ESCAPE)
        becomes(opened, open=False, focus=f"Enlarge: {row[-1]}")
        opened.key(*ENTER)
        becomes(opened, open=True, alt=row[-1])
        opened.click("dialog .close")
        becomes(opened, open=False)
        opened.click(CELLS.format(1))
        becomes(opened, open=True, alt=row[0])
        opened.click("dialog img")
        becomes(opened, open=False)
        assert opened.complaints == []


def test_pictures_grow_under_a_finger(browser: Browser, files: dict[str, Path]) -> None:
    with browser.page(files["run"], width=PHONE, height=740) as opened:
        row = opened.run("[...document.querySelectorAll('.grid tbody tr:nth-child(2) img')].map((each) => each.alt)")
        opened.tap(CELLS.format(1))
        becomes(opened, open=True, alt=row[0])
        opened.tap("dialog img", moved=-120)
        becomes(opened, open=True, alt=row[1])
        opened.tap("dialog img", moved=120)
        becomes(opened, open=True, alt=row[0])
        sizes = opened.run("[...dialog.querySelectorAll('button')].map((each) => each.getBoundingClientRect().height)")
        assert min(sizes) >= 40, "a finger's width"
        opened.tap("dialog .close")
        becomes(opened, open=False)


def test_the_findings_of_a_check_grow_too(browser: Browser, files: dict[str, Path]) -> None:
    with browser.page(files["check"], width=DESK) as opened:
        opened.click(".strip button")
        becomes(opened, open=True, alt=(files["check"].parent / "large.jpg").as_posix())
        assert opened.run("large.naturalWidth") == check.LARGEST
        opened.key(*ESCAPE)
        becomes(opened, open=False)


def test_the_browser_sees_what_is_wrong(browser: Browser, tmp_path: Path) -> None:
    """The instruments themselves: a page with every fault that is looked for above."""
    broken = tmp_path / "broken.html"
    broken.write_text(
        "<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<body><img src='http://127.0.0.1:9/far.png'><p style='color:#999;background:#fff'>pale</p>"
        "<p style='color:#000;opacity:.3'>thin</p><p style='width:500px'>wide</p><script>throw Error('no')</script>"
    )
    with browser.page(broken, width=PHONE) as opened:
        assert opened.asked == ["http://127.0.0.1:9/far.png"]
        assert any("Error: no" in line for line in opened.complaints)
        assert opened.run("document.documentElement.scrollWidth") > PHONE
        assert opened.run("document.images[0].naturalWidth") == 0
        told = opened.run(f"({UNREADABLE})(4.5)")
        assert [line.split()[-1] for line in told["found"]] == ["pale", "thin"]
        assert told["seen"] == 3
