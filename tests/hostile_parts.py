"""Files that are made to do harm, or damaged as files get damaged: what `gesso check` and the readers must survive."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from check_parts import chunk, saved, scene
from PIL import Image

PNG = b"\x89PNG\r\n\x1a\n"


def jpeg() -> bytes:
    return saved(scene(1, (400, 300)), quality=90)


def png(**changes: object) -> bytes:
    return saved(scene(2, (200, 160)), "PNG", **changes)


def cuts(whole: bytes, ending: str, places: tuple[float, ...]) -> dict[str, bytes]:
    """The file cut off at shares of its length."""
    return {f"cut-{share:g}.{ending}": whole[: max(int(len(whole) * share), 1)] for share in places}


# ---------------------------------------------------------------- JPEG


def jpegs() -> dict[str, bytes]:
    whole = jpeg()
    sof, sos = whole.index(b"\xff\xc0"), whole.index(b"\xff\xda")

    def sized(height: int, width: int) -> bytes:
        return whole[: sof + 5] + struct.pack(">HH", height, width) + whole[sof + 9 :]

    noise = random.Random(0).randbytes(len(whole) - sos - 14)
    return {
        **cuts(whole, "jpg", (0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.95)),
        "no-end.jpg": whole[:-2],
        "bomb.jpg": sized(65500, 65500),
        "no-width.jpg": sized(300, 0),
        "no-height.jpg": sized(0, 400),
        "no-scan.jpg": whole[:sos] + b"\xff\xd9",
        "lying-length.jpg": whole[:4] + b"\xff\xff" + whole[6:],
        "no-length.jpg": whole[:4] + b"\x00\x00" + whole[6:],
        "twelve-channels.jpg": whole[: sof + 9] + b"\x0c" + whole[sof + 10 :],
        "noise-after.jpg": whole[: sos + 14] + noise[:64] + b"\xff\xd8",
        "twice-the-start.jpg": b"\xff\xd8" * 5000,
    }


# ---------------------------------------------------------------- PNG


def _header(width: int, height: int, *, depth: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))


def pngs() -> dict[str, bytes]:
    whole = png()
    idat = whole.index(b"IDAT")
    end = chunk(b"IEND", b"")
    rows = chunk(b"IDAT", zlib.compress(bytes(301 * 100)))
    body = rows + end
    flipped = bytearray(whole)
    flipped[idat + 200] ^= 0x10
    checksum = bytearray(whole)
    checksum[29] ^= 1
    return {
        **cuts(whole, "png", (0.001, 0.002, 0.1, 0.5, 0.99)),
        "no-end.png": whole[:-12],
        "bit-flip.png": bytes(flipped),
        "header-checksum.png": bytes(checksum),
        "bomb.png": PNG + _header(40000, 40000) + body,
        "bomb-interlaced.png": PNG + _header(40000, 40000, interlace=1) + body,
        "absurd.png": PNG + _header(2**31 - 1, 2**31 - 1) + body,
        "overflow.png": PNG + _header(2**32 - 1, 1) + body,
        "no-size.png": PNG + _header(0, 0) + body,
        "three-bits.png": PNG + _header(100, 100, depth=3) + body,
        "no-colour-type.png": PNG + _header(100, 100, colour=5) + body,
        "no-pixels.png": PNG + _header(100, 100) + end,
        "not-deflated.png": PNG + _header(100, 100) + chunk(b"IDAT", b"no zlib stream at all") + end,
        "few-rows.png": PNG + _header(100, 500) + body,
        "lying-length.png": PNG + _header(100, 100) + b"\x7f\xff\xff\xffIDAT" + bytes(100),
        "text-bomb.png": PNG + _header(100, 100) + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8), 9)) + body,
        "profile-bomb.png": PNG + _header(100, 100) + chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**8), 9)) + body,
        "no-palette.png": PNG + _header(100, 100, colour=3) + chunk(b"IDAT", zlib.compress(bytes(101 * 100))) + end,
        "moving-lies.png": PNG
        + _header(100, 100)
        + chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))
        + chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 2**31 - 1, 2**31 - 1, 9, 9, 0, 0, 0, 0))
        + body,
    }


# ---------------------------------------------------------------- other formats


def gifs() -> dict[str, bytes]:
    whole = saved(scene(3, (120, 90)), "GIF")

    def screen(width: int, height: int) -> bytes:
        return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)

    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 8, 8, 0) + b"\x02\x03\x84\x8f\x05\x00"
    huge = b"\x2c" + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x03\x84\x8f\x05\x00"
    return {
        **cuts(whole, "gif", (0.001, 0.3, 0.7)),
        "no-trailer.gif": whole[:-1],
        "bomb.gif": screen(65535, 65535) + huge + b";",
        "no-size.gif": screen(0, 0) + b";",
        "no-frame.gif": screen(9, 9) + b";",
        "endless.gif": screen(8, 8) + frame * 60000,
        "bad-codes.gif": screen(64, 64)
        + b"\x2c"
        + struct.pack("<HHHHB", 0, 0, 64, 64, 0)
        + b"\x0c\xff"
        + b"\xff" * 255,
    }


def _tiff(*entries: tuple[int, int, int, int], following: int = 0) -> bytes:
    listed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\x00" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + listed + struct.pack("<I", following)


def tiffs() -> dict[str, bytes]:
    whole = saved(scene(4, (120, 90)), "TIFF")
    grey = ((256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1))
    return {
        **cuts(whole, "tif", (0.001, 0.3, 0.9)),
        "recursive.tif": _tiff(*grey, (273, 4, 1, 8), (279, 4, 1, 4096), following=8) + bytes(4096),
        "directory-outside.tif": b"II*\x00" + struct.pack("<I", 2**31),
        "strip-outside.tif": _tiff(*grey, (273, 4, 1, 2**31), (279, 4, 1, 4096)),
        "absurd.tif": _tiff((256, 4, 1, 2**31 - 1), (257, 4, 1, 2**31 - 1), *grey[2:], (273, 4, 1, 8)),
        "many-tags.tif": b"II*\x00"
        + struct.pack("<IH", 8, 65535)
        + b"\x00\x01\x04\x00\xff\xff\xff\xff\x08\x00\x00\x00",
        "tag-of-gigabytes.tif": _tiff(*grey, (273, 4, 2**30, 8), (279, 4, 2**30, 8)),
        "own-child.tif": _tiff(*grey, (330, 4, 1, 8)),
    }


def others() -> dict[str, bytes]:
    bmp = saved(scene(5, (60, 50)), "BMP")
    webp = saved(scene(6, (120, 90)), "WEBP")
    avif = saved(scene(7, (64, 48)), "AVIF")
    return {
        **cuts(bmp, "bmp", (0.002, 0.3, 0.9)),
        "absurd.bmp": bmp[:18] + struct.pack("<ii", 2**31 - 1, 2**31 - 1) + bmp[26:],
        "no-bits.bmp": bmp[:28] + b"\x0d\x00" + bmp[30:],
        "lying-header.bmp": bmp[:14] + b"\xff\xff\xff\x7f" + bmp[18:],
        **cuts(webp, "webp", (0.1, 0.5, 0.9)),
        "absurd.webp": b"RIFF\xff\xff\xff\x7fWEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff" + bytes(99),
        "lying-length.webp": webp[:16] + b"\xff\xff\xff\xff" + webp[20:],
        **cuts(avif, "avif", (0.1, 0.5)),
        "only-head.avif": avif[:32],
        "lying-box.avif": b"\xff\xff\xff\xff" + avif[4:],
    }


def strangers() -> dict[str, bytes]:
    """Whatever else comes under the name of a picture."""
    laughs = b"".join(b'<!ENTITY l%d "%s">' % (n, b"&l%d;" % (n - 1) * 10) for n in range(1, 10))
    return {
        "empty.jpg": b"",
        "nothing.png": bytes(10**6),
        "noise.webp": random.Random(1).randbytes(10**5),
        "login.jpg": b"<html><script>alert(1)</script></html>",
        "laughs.png": b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY l0 "ha">' + laughs + b"]><svg>&l9;</svg>",
        "paper.jpg": b"%PDF-1.4\n" + bytes(99),
        "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(r) file\n",
        "program.jpg": b"\x7fELF" + bytes(999),
        "pickle.png": b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR.",
        "zipped.jpg": gzip.compress(bytes(10**7)),
        "telephone.jpg": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99),
        "pointer.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "portable.png": b"P6\n30000 30000\n255\n" + bytes(99),
        "layers.jpg": b"8BPS\0\1" + bytes(99),
        "icon.png": saved(Image.new("RGB", (16, 16)), "ICO"),
        "film.gif": struct.pack("<IHHHHHH", 128, 0xAF11, 2, 9, 9, 8, 0) + bytes(128),
        "sixteen.png": "a picture in words".encode("utf-16"),
        "number.tif": saved(Image.fromarray(np.full((64, 64), np.nan, np.float32)), "TIFF"),
    }


PICTURES = (jpegs, pngs, gifs, tiffs, others, strangers)


def captions() -> dict[str, bytes]:
    """Captions of pictures of the same stem, with which nothing else is wrong."""
    return {
        "nul.txt": b"a dog\0on a beach",
        "bell.txt": b"a dog \x07\x1b[31m on a beach",
        "backwards.txt": "a dog \u202e on a beach".encode(),
        "latin.txt": "Málaga".encode("cp1252"),
        "half.txt": b"a dog \xed\xa0\x80",
        "odd.txt": "a dog".encode("utf-16")[:-1],
        "mark.txt": b"\xff\xfe",
        "library.txt": b"a word and another one, " * 100_000,
        "garbled.txt": "a dog in MÃ¡laga".encode(),
        "page.txt": b"<p>a dog</p>",
    }


# ---------------------------------------------------------------- lists


def lists() -> dict[str, tuple[str, bytes]]:
    """By a name: the list's file, and what is in it. Each stands in a folder with the picture a.png."""
    row = {"file_name": "a.png", "text": "a dog"}

    def lines(*values: object) -> bytes:
        return "".join(json.dumps(value) + "\n" for value in values).encode()

    return {
        "escapes": ("metadata.jsonl", lines(row, {**row, "file_name": "../../../../etc/passwd"})),
        "absolute": ("metadata.jsonl", lines(row, {**row, "file_name": "/etc/passwd"})),
        "drive": ("metadata.jsonl", lines(row, {**row, "file_name": "C:\\a.png"})),
        "nul": ("metadata.jsonl", lines(row, {**row, "file_name": "a\0.png"})),
        "deep": ("metadata.jsonl", lines(row) + b"[" * 200_000),
        "number": ("metadata.jsonl", lines(row) + b'{"file_name": "a.png", "text": ' + b"9" * 5000 + b"}\n"),
        "twice": ("metadata.jsonl", lines(row, row)),
        "surrogate": ("metadata.jsonl", b'{"file_name": "a.png", "text": "\\ud800"}\n'),
        "binary": ("metadata.jsonl", random.Random(2).randbytes(1000)),
        "weight": ("metadata.jsonl", lines({**row, "text": [["a dog", -1]]})),
        "no columns": ("metadata.csv", b"a,b\n1,2\n"),
        "open quote": ("metadata.csv", b'file_name,text\na.png,"a dog\n'),
        "wide": ("metadata.csv", b"file_name,text\na.png,a,b,c\n"),
        "csv nul": ("metadata.csv", b"file_name,text\na.png,a\0b\n"),
        "csv field": ("metadata.csv", b'file_name,text\na.png,"' + b"x" * 300_000 + b'"\n'),
        "no parquet": ("metadata.parquet", b"PAR1" + bytes(99) + b"PAR1"),
        "half parquet": ("metadata.parquet", b"PAR1" + random.Random(3).randbytes(200)),
        "no object": ("image_captions.json", b"[1, 2]"),
        "deep object": ("image_captions.json", b'{"a":' * 100_000),
        "other pictures": ("image_captions.json", b'{"nowhere.png": "a dog"}'),
        "ambiguous": ("img_txt.csv", b"dir,text\n../a.png,a dog\n"),
    }


# ---------------------------------------------------------------- archives


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for info, data in members:
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    return out.getvalue()


def member(name: str, data: bytes = b"", **changes: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    for key, value in changes.items():
        setattr(info, key, value)
    return info, data


def archives() -> dict[str, bytes]:
    """tar files, and others under that ending; each would be a data set of its own."""
    picture = png()
    good = archive(member("a.png", picture), member("a.txt", b"a dog"))
    sums = bytearray(good)
    sums[148] ^= 1
    claim = bytearray(archive(member("a.png", picture)))
    claim[124:136] = b"77777777777\0"
    claim[148:156] = b"%06o\0 " % (sum(claim[:148]) + 8 * 32 + sum(claim[156:512]))
    return {
        "up.tar": archive(member("../../a.png", picture), member("../../a.txt", b"a dog")),
        "root.tar": archive(member("/etc/a.png", picture)),
        "link.tar": archive(member("a.png", type=tarfile.SYMTYPE, linkname="/etc/passwd")),
        "hard.tar": archive(member("a.png", type=tarfile.LNKTYPE, linkname="../a.png")),
        "device.tar": archive(member("a.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5)),
        "pipe.tar": archive(member("a.png", type=tarfile.FIFOTYPE)),
        "twice.tar": archive(member("a.png", picture), member("a.png", picture)),
        "cut.tar": good[: len(picture) // 2],
        "checksum.tar": bytes(sums),
        "claims.tar": bytes(claim),
        "packed.tar": gzip.compress(good),
        "zip.tar": b"PK\x03\x04" + bytes(999),
        "mute.tar": archive(member("a.png", picture)),
        "no-picture.tar": archive(member("a.txt", b"a dog")),
        "broken-picture.tar": archive(member("a.png", picture[:99]), member("a.txt", b"a dog")),
        "deep.tar": archive(member("a.png", picture), member("a.json", b"[" * 100_000)),
        "nothing.tar": b"",
        "noise.tar": random.Random(4).randbytes(5000),
        "nothing.parquet": b"",
        "noise.parquet": b"PAR1" + random.Random(5).randbytes(500) + b"PAR1",
        "lying-footer.parquet": b"PAR1" + bytes(50) + struct.pack("<I", 2**31 - 1) + b"PAR1",
        "noise.arrow": b"ARROW1\0\0" + random.Random(6).randbytes(500),
        "lying.arrow": struct.pack("<Ii", 0xFFFFFFFF, 2**31 - 1) + bytes(99),
    }


def put(folder: Path, files: dict[str, bytes], caption: str = "a dog on a beach") -> None:
    """The pictures, each with a caption of its own."""
    folder.mkdir(parents=True)
    for number, (name, data) in enumerate(files.items()):
        path = folder / f"{number:03d}-{name}"
        path.write_bytes(data)
        path.with_suffix(".txt").write_text(f"{caption}, number {number}")
