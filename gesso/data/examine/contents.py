"""What a file is by its first bytes, whatever its name says."""

from __future__ import annotations

import zlib
from typing import Literal

MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (8, b"WEBP", "WEBP"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypavis", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftypmsf1", "HEIC"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL \r\n", "JPEG XL"),
    (4, b"jP  \r\n", "JPEG 2000"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\x00\x00\x01\x00", "icon"),
    (0, b"PK\x03\x04", "ZIP archive"),
    (0, b"Rar!\x1a\x07", "RAR archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "7-Zip archive"),
    (0, b"\x1f\x8b", "compressed archive"),
    (257, b"ustar", "tar archive"),
    (0, b"%PDF", "PDF document"),
)
FIRST = 512
"""So many bytes are enough to tell."""
READ = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF")
"""What gesso reads as a picture."""
OTHERS = ("HEIC", "JPEG XL", "JPEG 2000", "Photoshop", "icon")
"""Pictures that it does not read."""
ENDINGS = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF",
    ".gif": "GIF", ".avif": "AVIF",
}  # fmt: skip
"""The format that each ending stands for."""


def kind(start: bytes) -> str:
    """The format of a file that begins so; "" where it is none of MAGIC's."""
    return next((name for at, magic, name in MAGIC if start[at : at + len(magic)] == magic), "")


def article(kind: str) -> str:
    return "an" if kind[0] in "AEIOaeio" else "a"


def damage(data: bytes) -> str:
    """What is wrong with the structure of a picture whose pixels can be decoded all the same; "" where nothing is.

    Decoders forgive a file that ends early where only its last marks are lost, and PNG's checksums over pixel data.
    """
    found = kind(data[:FIRST])
    if found == "PNG":
        return _png(data)
    if found == "JPEG":
        return _jpeg(data)
    if found == "TIFF" and _circular(data):
        return "its list of pages leads back to itself"
    if found == "GIF" and b";" not in data[-16:]:
        return "its end mark is missing: the last bytes are lost or damaged"
    return ""


def _jpeg(data: bytes) -> str:
    """The segments before the pixels: a mark, and a length that counts itself (ITU-T T.81, B.1.1.4)."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        length = 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4])
        if length in (2, 3):
            return f"its segment at byte {at} has no length: some bytes have changed"
        at += length
    return ""


def _png(data: bytes) -> str:
    """The chunks of a PNG file: length, name, content, CRC-32 over name and content (PNG 1.2, section 3.2)."""
    at = 8
    while at + 12 <= len(data):
        length, name = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        end = at + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(memoryview(data)[at + 4 : end]) != int.from_bytes(data[end : end + 4]):
            return f"the checksum of its chunk {name.decode('latin-1')} at byte {at} is wrong: some bytes have changed"
        if name == b"IEND":
            return ""
        at = end + 4
    return "its end is missing: the last bytes are lost or damaged"


def _circular(data: bytes) -> bool:
    """Whether a TIFF file's directories, each of which ends in the next one's place, are a circle (TIFF 6.0, 2)."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    at, seen = _number(data, 4, 4, order), set[int]()
    while 8 <= at < len(data) and at not in seen:
        seen.add(at)
        at = _number(data, at + 2 + 12 * _number(data, at, 2, order), 4, order)
    return at in seen


def _number(data: bytes, at: int, size: int, order: Literal["little", "big"]) -> int:
    return int.from_bytes(data[at : at + size], order)
