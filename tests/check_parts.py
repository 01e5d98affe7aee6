"""A folder with everything that can be wrong with one, each thing once, for the tests of `gesso check`."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from gesso.data.examine.finding import shown

SIDE = 64
"""What pictures are trained in here."""


def scene(seed: int, size: tuple[int, int] = (96, 80)) -> Image.Image:
    """A picture that looks like no other: soft blobs of colour."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def saved(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


class Planted:
    """A folder under construction. `expected` has (level, a part of what is said) by (file, kind)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.expected: dict[tuple[str, str], tuple[str, str]] = {}
        self.seed = 100
        folder.mkdir(parents=True)

    def fresh(self, size: tuple[int, int] = (96, 80)) -> Image.Image:
        self.seed += 1
        return scene(self.seed, size)

    def put(self, name: str, data: bytes, caption: str | bytes | None = "") -> Path:
        """A file, with a caption that nothing is wrong with unless another one (or None) is given."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        if caption is not None:
            text = caption or f"sks robot, scene {self.seed} of the garden"
            path.with_suffix(".txt").write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def expect(self, name: str, level: str, kind: str, said: str) -> None:
        assert (name, kind) not in self.expected, name
        self.expected[name, kind] = (level, said)


Plant = Callable[[Planted], None]


def good(at: Planted) -> None:
    """What must not be reported."""
    for number in range(12):
        at.put(f"good-{number}.jpg", saved(at.fresh()))
    at.put("upright.jpg", saved(at.fresh(), exif=_exif(6)))
    at.put(
        "sixteen.png", saved(Image.fromarray(np.linspace(0, 65535, 96 * 80).reshape(80, 96).astype(np.uint16)), "PNG")
    )
    at.put("palette.png", saved(at.fresh().quantize(64), "PNG"))
    at.put("grey.png", saved(at.fresh().convert("L"), "PNG"))
    at.put("bom.jpg", saved(at.fresh()), "sks robot with a byte order mark".encode("utf-16"))
    at.put("utf8.jpg", saved(at.fresh()), "\ufeffsks robot, Köln, 夜".encode())
    at.put("emoji 🐶 and space.jpg", saved(at.fresh()))
    at.put("tagged.png", saved(at.fresh(), "PNG"), "sks robot, 1girl, <lora:x>, a < b, score_9")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._good-0.jpg", ".hidden/good.jpg", "README.md", "LICENSE"):
        (at.folder / name).parent.mkdir(exist_ok=True)
        (at.folder / name).write_bytes(b"\0\5\26\7 not a picture")


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# ---------------------------------------------------------------- pictures


def pictures(at: Planted) -> None:
    def broken(name: str, data: bytes, said: str) -> None:
        at.put(name, data)
        at.expect(name, "error", "unreadable", said)

    whole = saved(at.fresh())
    broken("cut.jpg", whole[: len(whole) // 2], "not a readable picture")
    broken("empty.png", b"", "the file is empty")
    broken("page.jpg", b"<!DOCTYPE html><html><body>403 Forbidden</body></html>", "web page")
    broken("phone.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), "HEIC")
    broken("paper.png", b"%PDF-1.7\n" + bytes(64), "PDF")
    broken("packed.jpg", _zip({"a.jpg": whole}), "ZIP")
    broken("pointer.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git lfs pull")
    broken("bomb.png", _bomb(30000, 30000), "megapixels")
    broken("noise.jpg", np.random.default_rng(0).bytes(300), "none of JPEG")
    at.put("wrong.jpg", saved(at.fresh(), "PNG"))
    at.put("modern.png", saved(at.fresh(), "AVIF"))
    at.expect("modern.png", "warning", "ending", "an AVIF picture under the ending .png")
    at.expect("wrong.jpg", "warning", "ending", "a PNG picture under the ending .jpg")
    damaged = bytearray(saved(at.fresh(), "PNG"))
    damaged[-1] ^= 0xFF
    at.put("checksum.png", bytes(damaged))
    at.expect("checksum.png", "warning", "damaged", "IEND")
    at.put("endless.jpg", saved(at.fresh())[:-2])
    at.expect("endless.jpg", "error", "unreadable", "truncated")
    at.put("unended.gif", saved(at.fresh(), "GIF")[:-1])
    at.expect("unended.gif", "warning", "damaged", "its end mark is missing")
    clear = at.fresh().convert("RGBA")
    clear.putalpha(Image.fromarray(np.where(np.arange(96) < 48, 0, 255).astype(np.uint8)[None].repeat(80, 0)))
    at.put("clear.png", saved(clear.quantize(32), "PNG"))
    at.expect("clear.png", "note", "looks", "% of it is transparent")
    at.put("print.jpg", saved(at.fresh().convert("CMYK")))
    at.expect("print.jpg", "note", "looks", "CMYK without a colour profile")
    at.put("profile.jpg", saved(at.fresh(), icc_profile=b"no profile at all" * 9))
    at.expect("profile.jpg", "note", "looks", "colour profile that cannot be used")
    at.put("moving.gif", saved(at.fresh(), "GIF", save_all=True, append_images=[at.fresh(), at.fresh()]))
    at.expect("moving.gif", "note", "looks", "several frames")
    at.put("dot.png", saved(Image.new("RGB", (1, 1), "red"), "PNG"))
    at.expect("dot.png", "warning", "tiny", "1 × 1 pixels")
    at.put("thumbnail.jpg", saved(at.fresh((24, 20))))
    at.expect("thumbnail.jpg", "warning", "tiny", "24 × 20 pixels")
    at.put("close.jpg", saved(at.fresh((60, 50))))
    at.expect("close.jpg", "note", "small", "60 × 50 pixels")
    at.put("panorama.jpg", saved(at.fresh((900, 90))))
    at.expect("panorama.jpg", "warning", "wide", "900 × 90 pixels")
    at.put("blank.png", saved(Image.new("RGB", (96, 80), (120, 121, 122)), "PNG"))
    at.expect("blank.png", "warning", "flat", "one colour")


def _zip(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _bomb(width: int, height: int) -> bytes:
    """A few hundred bytes that claim to be a picture of so many pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(10**6))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


# ---------------------------------------------------------------- likeness


def likeness(at: Planted) -> None:
    whole = saved(at.fresh())
    at.put("same.jpg", whole, "sks robot in the same place")
    at.put("far/away/same.jpg", whole, "sks robot in the same place")
    at.expect("far/away/same.jpg", "warning", "same", "2 files hold the same picture")
    other = saved(at.fresh())
    at.put("day.jpg", other, "sks robot by day")
    at.put("night.jpg", other, "sks robot by night")
    at.expect("day.jpg", "warning", "contradiction", "2 different captions")
    for name, change in (
        ("mirrored", lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        ("resized", lambda image: image.resize((144, 120))),
        ("recompressed", lambda image: image),
    ):
        image = at.fresh()
        at.put(f"alike-{name}-1.png", saved(image, "PNG"))
        at.put(f"alike-{name}-2.jpg", saved(change(image), quality=60))
        at.expect(f"alike-{name}-1.png", "warning", "alike", f"alike-{name}-2.jpg")


# ---------------------------------------------------------------- captions


def captions(at: Planted) -> None:
    def said(name: str, caption: str | bytes | None, kind: str, what: str, level: str = "error", of: str = "") -> None:
        at.put(name, saved(at.fresh()), caption)
        at.expect(of or Path(name).with_suffix(".txt").name, level, kind, what)

    said("mute.jpg", None, "missing", "it has no caption", of="mute.jpg")
    at.put("hollow.jpg", saved(at.fresh()), None)
    (at.folder / "hollow.txt").write_bytes(b"")
    at.expect("hollow.txt", "error", "missing", "the caption is empty")
    said("spaces.jpg", b" \n\t \n", "missing", "the caption is empty")
    said("latin.jpg", "sks robot, Málaga".encode("latin-1"), "caption", "not UTF-8")
    said("nul.jpg", b"sks robot\0", "caption", "NUL")
    said("wide16.jpg", "sks robot".encode("utf-16-le"), "caption", "NUL")
    said("cut16.jpg", "sks robot".encode("utf-16")[:-1], "caption", "not UTF-16")
    said("novel.jpg", "sks robot, " + "far too many words " * 50, "long", "tokens", "warning")
    said("html.jpg", "sks robot <b>in bold</b> &amp; more", "text", "has HTML in it", "warning")
    said("bell.jpg", "sks robot \x07 rings", "text", "control characters", "warning")
    said("garbled.jpg", "sks robot in MÃ¡laga", "text", "is garbled", "warning")
    said("IMG_1234.jpg", "IMG_1234", "text", "the name of the file", "warning", of="IMG_1234.txt")
    said("table.jpg", "nan", "text", "says nothing", "warning")
    said("dots.jpg", "...", "text", "says nothing", "warning")
    for name in ("IMG_1234.txt", "table.txt", "dots.txt"):
        at.expect(name, "warning", "trigger", "sks")
    at.expect("forgotten.txt", "warning", "trigger", "sks")
    at.put("forgotten.jpg", saved(at.fresh()), "a robot without its word")
    at.put("twins.jpg", saved(at.fresh()), "sks robot, one caption for two")
    at.put("twins.png", saved(at.fresh(), "PNG"), None)
    at.expect("twins.txt", "warning", "shared", "2 pictures share")
    at.put("two.jpg", saved(at.fresh()), "sks robot with two captions")
    (at.folder / "two.caption").write_text("sks robot with another one")
    at.expect("two.caption", "note", "doubled", "another caption lies beside it")
    (at.folder / "lonely.txt").write_text("sks robot without a picture")
    at.expect("lonely.txt", "warning", "unused", "a caption without a picture")


# ---------------------------------------------------------------- files


def files(at: Planted) -> None:
    def other(name: str, data: bytes, what: str, level: str = "warning") -> None:
        at.put(name, data, None)
        at.expect(name, level, "unused", what)

    other("raw.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a picture of a kind that gesso does not read (HEIC)")
    other("photo.jpg.part", saved(at.fresh()), "a JPEG picture under the ending .part")
    other("photo", saved(at.fresh(), "PNG"), "a PNG picture under a name without ending")
    other("more.zip", _zip({"a.txt": b"x"}), "a ZIP archive")
    other("notes.docx.txt2", b"notes", "neither picture nor caption", "note")
    other("shard.tar", bytes(1024), "an archive")
    other("sub/metadata.jsonl", b'{"file_name": "a.jpg", "text": "x"}\n', "a list counts in")
    at.put("lost-masklabel.png", saved(Image.new("L", (96, 80), 255), "PNG"), None)
    at.expect("lost-masklabel.png", "error", "mask", "a mask without its picture")
    at.put("masked.jpg", saved(at.fresh()))
    at.put("masked-masklabel.png", saved(Image.new("L", (30, 80), 255), "PNG"), None)
    at.expect("masked-masklabel.png", "error", "mask", "the mask is 30 × 80 pixels")
    outside = at.folder.parent / "elsewhere"
    outside.mkdir()
    (at.folder / "linked").symlink_to(outside, target_is_directory=True)
    at.expect("linked", "warning", "link", "a link to a folder")
    at.put("gone.jpg", b"", "sks robot that is gone").unlink()
    (at.folder / "gone.jpg").symlink_to(outside / "gone.jpg")
    at.expect("gone.jpg", "error", "unreadable", "which is not there")
    at.put("two\nlines.jpg", saved(at.fresh()))
    at.expect("two\\nlines.jpg", "warning", "name", "line break")
    at.put("Case.jpg", saved(at.fresh()))
    at.put("case.jpg", saved(at.fresh()))
    at.expect("Case.jpg", "warning", "name", "differ only in capitals")
    raw = os.fsencode(at.folder) + b"/caf\xe9.jpg"
    with open(raw, "wb") as file:
        file.write(saved(at.fresh()))
    at.expect("caf\\xe9.jpg", "error", "name", "not UTF-8")


def unreadable(at: Planted) -> None:
    """Files without permission, which nothing can keep from an administrator."""
    at.put("secret.jpg", saved(at.fresh())).chmod(0)
    at.expect("secret.jpg", "error", "unreadable", "Permission denied")


def rows(at: Planted) -> None:
    """A metadata.jsonl with good rows and one of each kind of wrong ones."""
    lines: list[object] = []
    for number in range(12):
        at.put(f"row-{number}.jpg", saved(at.fresh()), None)
        lines.append({"file_name": f"row-{number}.jpg", "text": f"sks robot in row {number}"})

    def wrong(line: object, what: str) -> None:
        lines.append(line)
        at.expect(f"metadata.jsonl:{len(lines)}", "error", "list", what)

    wrong({"file_name": "nowhere.jpg", "text": "x"}, 'there is no picture "nowhere.jpg"')
    wrong({"file_name": "row-0.jpg", "text": "twice"}, "was already listed")
    wrong('{"file_name": "row-1.jpg", "te', "not JSON")
    wrong({"name": "row-1.jpg", "text": "x"}, '"file_name" is missing')
    wrong({"file_name": "row-1.jpg", "caption": "x"}, '"text" is missing')
    wrong({"file_name": "../../etc/passwd", "text": "x"}, "leads out of the folder")
    wrong({"file_name": 7, "text": "x"}, '"file_name" is not text')
    wrong({"file_name": "row-1.jpg", "text": 7}, "neither text nor a list")
    wrong([1, 2], "not a JSON object")
    wrong({"file_name": "row-1.jpg", "text": "a\0b"}, "NUL")
    at.put("unlisted.jpg", saved(at.fresh()), None)
    at.expect("unlisted.jpg", "error", "missing", "it has no caption")
    at.put("differs.jpg", saved(at.fresh()), "sks robot says one thing")
    lines.append({"file_name": "differs.jpg", "text": "sks robot says another"})
    at.expect("differs.txt", "warning", "doubled", "differs")
    text = "".join(line + "\n" if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    (at.folder / "metadata.jsonl").write_text(text)


def shown_name(where: str, folder: Path) -> str:
    """What a finding is about, relative to the folder."""
    return shown(where.removeprefix(f"{folder}/"))
