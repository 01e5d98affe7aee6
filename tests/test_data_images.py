"""Every kind of picture file becomes the same pixels, or an error that names it."""

from __future__ import annotations

import contextlib
import struct
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from gesso.data import images
from gesso.data.images import UPRIGHT, Decoded, Transform, load
from gesso.errors import DataError


def apply(picture: np.ndarray, transform: Transform) -> np.ndarray:
    return images.apply(Decoded.of(picture), transform)


def decode(data: bytes, path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    found = images.decode(data, path)
    return found.pixels, found.notes


def scene(width: int = 24, height: int = 16) -> np.ndarray:
    """A picture that no turn or mirror maps onto itself."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x * y) % 256], axis=-1).astype(np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def png(path: Path, values: np.ndarray, colour: int, *chunks: tuple[bytes, bytes]) -> Path:
    """A 16-bit PNG by hand (Pillow writes only grey ones): `values` big-endian uint16 [h, w] or [h, w, c]."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    return path


@pytest.mark.parametrize("kind", ["png", "tiff", "webp", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_orientations_come_out_upright(tmp_path: Path, orientation: int, kind: str) -> None:
    upright = Image.fromarray(scene())
    undo = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    turn = undo.get(orientation, UPRIGHT.get(orientation))
    stored = upright if turn is None else upright.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(kind, {})
    picture = load(saved(tmp_path / f"a.{kind}", stored, exif=exif, **options))
    assert picture.shape == (16, 24, 3)
    worst = np.abs(picture.astype(int) - scene()).max()
    assert worst <= (12 if kind == "jpg" else 0)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    hidden = np.dstack([scene(), np.zeros((16, 24), np.uint8)])
    hidden[:, 12:, 3] = 255
    hidden[:, 6:12, 3] = 128
    picture = load(saved(tmp_path / "a.png", Image.fromarray(hidden)))
    assert (picture[:, :6] == 255).all()
    assert (picture[:, 12:] == scene()[:, 12:]).all()
    half = np.rint((scene()[:, 6:12] * 128.0 + 255 * 127) / 255)
    assert np.abs(picture[:, 6:12] - half).max() <= 1


@pytest.mark.parametrize("kind", ["png", "gif"])
def test_palette_and_grey_transparency(tmp_path: Path, kind: str) -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((0, 0), 0)
    picture = load(saved(tmp_path / f"a.{kind}", palette, transparency=0))
    assert picture[0, 0].tolist() == [255, 255, 255]
    assert picture[1, 1].tolist() == [0, 0, 255]
    grey = Image.new("L", (4, 4), 90)
    grey.putpixel((0, 0), 7)
    picture = load(saved(tmp_path / f"b.{kind}", grey, transparency=7))
    assert [picture[0, 0, 0], picture[1, 1, 0]] == [255, 90]
    both = load(saved(tmp_path / "c.png", Image.merge("LA", (grey, Image.new("L", (4, 4), 0)))))
    assert (both == 255).all()


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_a_16_bit_ramp_is_scaled_not_clipped(tmp_path: Path, kind: str) -> None:
    ramp = np.tile(np.linspace(0, 65535, 256).round().astype(np.uint16), (4, 1))
    picture = load(saved(tmp_path / f"a.{kind}", Image.fromarray(ramp)))
    assert (picture == np.arange(256)[None, :, None]).all()


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bit_colour_and_alpha(tmp_path: Path, colour: int, channels: int) -> None:
    ramp = np.tile(np.linspace(0, 65535, 256)[None, :, None], (2, 1, channels)).round()
    if channels in (2, 4):
        ramp[..., -1] = 65535
    picture = load(png(tmp_path / "a.png", ramp, colour))
    assert np.abs(picture.astype(int) - np.arange(256)[None, :, None]).max() <= 1


def test_16_bit_grey_with_a_transparent_value(tmp_path: Path) -> None:
    values = np.array([[0, 300, 301, 65535]])
    picture = load(png(tmp_path / "a.png", values, 0, (b"tRNS", struct.pack(">H", 300))))
    assert picture[0, :, 0].tolist() == [0, 255, 1, 255]


def test_floats_and_wide_integers_are_scaled(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(256, dtype=np.float32) / 255, (2, 1))
    assert (load(saved(tmp_path / "a.tif", Image.fromarray(ramp)))[0, :, 0] == np.arange(256)).all()
    for name, values in (("b.tif", ramp * 40 - 20), ("c.tif", (ramp * 1e6).astype(np.int32))):
        path = saved(tmp_path / name, Image.fromarray(values))
        picture, notes = decode(path.read_bytes(), path)
        assert [picture[0, 0, 0], picture[0, -1, 0]] == [0, 255]
        assert "taken as black and white" in notes[0]
    ramp[0, 0] = np.nan
    with pytest.raises(DataError, match="not finite"):
        load(saved(tmp_path / "d.tif", Image.fromarray(ramp)))


def test_cmyk_and_bilevel_become_colour(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.new("CMYK", (16, 16), (0, 255, 255, 0)), quality=100)
    picture, notes = decode(path.read_bytes(), path)
    assert np.abs(picture.astype(int) - [255, 0, 0]).max() <= 3
    assert notes == ("is CMYK without a colour profile; its colours are approximate",)
    assert (load(saved(tmp_path / "b.png", Image.new("1", (4, 4), 1))) == 255).all()


def swapped() -> bytes:
    """A profile in which red and green have exchanged their primaries."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = (slice(at + 4, at + 12) for at in (profile.index(b"rXYZ"), profile.index(b"gXYZ")))
    profile[red], profile[green] = profile[green], profile[red]
    return bytes(profile)


def test_lab_and_profiles_are_converted_to_srgb(tmp_path: Path) -> None:
    lab = load(saved(tmp_path / "a.tif", Image.new("LAB", (4, 4), (128, 128, 128))))
    assert np.abs(lab.astype(int) - 119).max() <= 2  # L* = 50 is 18.4 % of white, 119 in sRGB
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    tagged = load(saved(tmp_path / "b.png", Image.fromarray(scene()), icc_profile=srgb))
    assert np.array_equal(tagged, scene())
    path = saved(tmp_path / "c.png", Image.new("RGB", (4, 4), (255, 0, 0)), icc_profile=swapped())
    assert np.abs(load(path).astype(int) - [0, 255, 0]).max() <= 2
    path = saved(tmp_path / "d.png", Image.fromarray(scene()), icc_profile=b"no profile")
    picture, notes = decode(path.read_bytes(), path)
    assert (picture == scene()).all()
    assert "colour profile that cannot be used" in notes[0]


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff"])
def test_the_first_frame_of_an_animation(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "webp" else {}
    path = saved(tmp_path / f"a.{kind}", frames[0], save_all=True, append_images=frames[1:], **options)
    picture, notes = decode(path.read_bytes(), path)
    assert (picture == [255, 0, 0]).all()
    assert notes == ("has several frames; the first one is used",)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "bmp", "tif", "gif"])
def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = saved(tmp_path / f"whole.{kind}", Image.fromarray(noise)).read_bytes()
    torn = tmp_path / f"torn.{kind}"
    for percent in (0, 1, 5, 10, 30, 50, 70, 90, 95, 98):
        torn.write_bytes(whole[: len(whole) * percent // 100])
        with pytest.raises(DataError) as caught:
            load(torn)
        assert caught.value.where == str(torn)
        assert "not a readable picture: " in caught.value.what


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=4))
def test_damage_never_escapes_as_another_error(at: int, junk: bytes) -> None:
    for kind in ("JPEG", "PNG", "TIFF", "GIF"):
        buffer = BytesIO()
        Image.fromarray(scene()).save(buffer, kind)
        data = bytearray(buffer.getvalue())
        at %= len(data)
        data[at : at + len(junk)] = junk
        with contextlib.suppress(DataError):
            picture, _ = decode(bytes(data), Path("a"))
            assert picture.dtype == np.uint8
            assert picture.shape[2] == 3


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"\n <!DOCTYPE html><html>404</html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"%PDF-1.7", "PDF"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"\x80\x04cposix\nsystem\n", "none of JPEG"),
        (b"8BPS\0\1" + bytes(60), "none of JPEG"),
    ],
)
def test_what_is_no_picture_is_said_to_be_something_else(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    with pytest.raises(DataError, match=reason):
        load(path)


def test_absent_files_and_folders_are_data_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path):
        for verb in (load, images.fingerprint):
            with pytest.raises(DataError, match="cannot be read"):
                verb(path)


@pytest.mark.parametrize("side", [8001, 12000, 16000, 60000])
def test_pictures_over_64_megapixels_are_refused_unread(tmp_path: Path, side: int) -> None:
    small = png(tmp_path / "a.png", np.zeros((1, 1)), 0).read_bytes()
    header = struct.pack(">II", side, side) + small[24:29]
    bomb = small[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + small[33:]
    (tmp_path / "a.png").write_bytes(bomb)
    with pytest.raises(DataError, match="64 megapixels"):
        load(tmp_path / "a.png")


@pytest.mark.parametrize("kind", [*images.FORMATS, "PPM", "TGA", "PCX", "ICO", "EPS", "JPEG2000", "DDS", "SGI"])
def test_only_the_listed_formats_are_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(scene(32, 32)).save(path, kind)
    if kind in images.FORMATS:
        assert load(path).shape == (32, 32, 3)
    else:
        with pytest.raises(DataError, match="none of JPEG, PNG, WEBP, BMP, TIFF, GIF, AVIF"):
            load(path)


def test_the_wrong_ending_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(scene()).save(path, "PNG")
    assert (load(path) == scene()).all()


def test_a_picture_of_the_right_size_is_kept_bit_for_bit() -> None:
    pixels = apply(scene(), Transform(side_width=24, side_height=16))
    assert pixels.dtype == np.float32
    assert pixels.shape == (3, 16, 24)
    assert (np.rint((pixels + 1) * 127.5) == scene().transpose(2, 0, 1)).all()
    assert [pixels.min(), pixels.max() <= 1] == [-1, True]
    extremes = apply(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8), Transform(side_width=2, side_height=1))
    assert extremes[0, 0].tolist() == [-1.0, 1.0]


def test_the_window_is_where_it_was_asked_for() -> None:
    wide = scene(48, 16)
    for left, start in ((0.0, 0), (0.5, 16), (1.0, 32)):
        pixels = apply(wide, Transform(side_width=16, side_height=16, left=left))
        assert (np.rint((pixels + 1) * 127.5) == wide[:, start : start + 16].transpose(2, 0, 1)).all()
    tall = scene(16, 48)
    pixels = apply(tall, Transform(side_width=16, side_height=16, top=1.0))
    assert (np.rint((pixels + 1) * 127.5) == tall[32:].transpose(2, 0, 1)).all()


def test_the_mirror_mirrors_the_finished_picture() -> None:
    plain = Transform(side_width=16, side_height=16, left=0.3)
    mirrored = Transform(side_width=16, side_height=16, left=0.3, flip=True)
    assert (apply(scene(), mirrored) == apply(scene(), plain)[:, :, ::-1]).all()


def test_shrinking_averages_instead_of_skipping() -> None:
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    small = apply(np.dstack([checks] * 3), Transform(side_width=8, side_height=8))
    assert np.abs(small).max() < 0.05


@settings(deadline=None)
@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.booleans(),
)
def test_any_size_and_window_gives_the_target_and_a_flat_colour_stays(
    size: tuple[int, int], target: tuple[int, int], at: tuple[float, float], flip: bool
) -> None:
    flat = np.full((*size, 3), 77, np.uint8)
    transform = Transform(side_width=target[0], side_height=target[1], left=at[0], top=at[1], flip=flip)
    pixels = apply(flat, transform)
    assert pixels.shape == (3, target[1], target[0])
    assert (np.rint((pixels + 1) * 127.5) == 77).all()


def test_tags_tell_transforms_apart() -> None:
    base = {"side_width": 8, "side_height": 16, "left": 0.5, "top": 0.5, "flip": False}
    others = [
        {},
        {"side_width": 16},
        {"side_height": 8},
        {"left": 0.25},
        {"top": 0.1 + 0.2},
        {"top": 0.3},
        {"flip": True},
        {"interpolation": "bilinear"},
        {"interpolation": "bicubic"},
        {"background": "black"},
        {"background": "#000000"},
    ]
    tags = {Transform(**{**base, **other}).tag() for other in others}  # type: ignore[arg-type]
    assert len(tags) == len(others)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_sketch_is_the_picture_in_small(tmp_path: Path, orientation: int) -> None:
    small = np.random.default_rng(2).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    whole = Image.fromarray(small).resize((1600, 1200), Image.Resampling.BICUBIC)
    whole.save(tmp_path / "a.jpg", quality=95, exif=exif)
    whole.save(tmp_path / "a.png", exif=exif)
    sketch, full = images.sketch(tmp_path / "a.jpg"), images.load(tmp_path / "a.jpg")
    assert images.SKETCH <= min(sketch.shape[:2]) <= 150
    assert (sketch.shape[0] > sketch.shape[1]) == (full.shape[0] > full.shape[1])
    shrunk = np.asarray(Image.fromarray(full).resize(sketch.shape[1::-1], Image.Resampling.BOX)).astype(int)
    assert np.abs(shrunk - sketch).max() <= 8
    assert np.array_equal(images.sketch(tmp_path / "a.png"), images.load(tmp_path / "a.png"))


# ---------------------------------------------------------------- interpolation and background


@pytest.mark.parametrize("name", ["lanczos", "bicubic", "bilinear"])
def test_interpolation_is_pillows_of_that_name(name: str) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    found = apply(picture, Transform(side_width=20, side_height=20, interpolation=name))
    wanted = Image.fromarray(picture).resize((20, 20), Image.Resampling[name.upper()], box=(15, 0, 75, 60))
    assert np.array_equal(np.rint((found + 1) * 127.5).transpose(1, 2, 0), np.asarray(wanted))


def test_what_is_transparent_lies_on_the_colour_that_was_asked_for(tmp_path: Path) -> None:
    rgba = np.zeros((4, 6, 4), dtype=np.uint8)
    rgba[:, 3:] = (200, 100, 50, 255)
    rgba[0, 0] = (200, 100, 50, 128)
    path = saved(tmp_path / "a.png", Image.fromarray(rgba))
    whole = Transform(side_width=6, side_height=4)
    seen = {}
    for colour, left in (("white", 255), ("black", 0), ("#0080ff", (0, 128, 255))):
        picture = images.decode(path.read_bytes(), path, [replace(whole, background=colour)]).pixels
        assert (picture[1:, :3] == left).all()
        assert (picture[:, 3:] == (200, 100, 50)).all()
        assert np.abs(picture[0, 0] - np.add(left, (200, 100, 50)) / 2).max() <= 1
        seen[colour] = replace(whole, background=colour).tag()
    assert len(set(seen.values())) == 3
    assert load(path)[1, 0].tolist() == [255, 255, 255]


# ---------------------------------------------------------------- JPEGs in small


def photo(width: int, height: int) -> Image.Image:
    """Detail on every scale, as a photograph has it, and a few hard edges."""
    rng = np.random.default_rng(5)
    layers = np.zeros((height, width, 3))
    for octave in range(3, 11):
        coarse = rng.normal(0, 45 * 0.75**octave, (2 + (height >> (10 - octave)), 2 + (width >> (10 - octave)), 3))
        for channel in range(3):
            one = Image.fromarray(coarse[..., channel].astype(np.float32))
            layers[..., channel] += np.asarray(one.resize((width, height), Image.Resampling.BICUBIC))
    layers[height // 3 : height // 2, width // 3 : width // 2] += 60
    return Image.fromarray(np.clip(layers + 110, 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, orientation: int = 1, **options: object) -> bytes:
    exif, file = Image.Exif(), BytesIO()
    exif[images.ORIENTATION] = orientation
    image.save(file, "JPEG", quality=92, exif=exif, **options)
    return file.getvalue()


PHOTO = photo(1200, 800)
ODD = photo(1203, 797)
CORNERS = [(0.5, 0.5, False), (0.0, 0.0, True), (1.0, 1.0, False), (0.3, 0.8, True)]


@pytest.mark.parametrize(("side", "by"), [(300, 1), (228, 2), (200, 2), (100, 4), (57, 8), (40, 8)])
def test_a_jpeg_is_decoded_no_smaller_than_leaves_pixels_to_spare(side: int, by: int) -> None:
    path, transform = Path("a.jpg"), Transform(side_width=side, side_height=side)
    found = images.decode(jpeg(PHOTO), path, [transform])
    assert (found.shrunk, found.width, found.height) == (by, 1200, 800)
    assert found.image.size == (1200 // by, 800 // by)
    assert by == 1 or min(found.image.size) >= images.SPARE * side
    both = images.decode(jpeg(PHOTO), path, [transform, Transform(side_width=300, side_height=300)])
    assert both.shrunk == 1
    assert images.decode(jpeg(PHOTO), path).shrunk == 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image", [PHOTO, ODD], ids=["even", "odd"])
def test_a_jpeg_in_small_gives_the_pixels_of_the_whole_one(image: Image.Image, orientation: int) -> None:
    """The tolerance that docs/data.md states, in every position of the camera and with every crop."""
    data, path = jpeg(image, orientation), Path("a.jpg")
    whole = images.decode(data, path)
    for left, top, flip in CORNERS:
        for width, height in ((96, 96), (64, 128), (200, 120)):
            transform = Transform(side_width=width, side_height=height, left=left, top=top, flip=flip)
            small = images.decode(data, path, [transform])
            assert (small.width, small.height) == (whole.width, whole.height)
            assert small.shrunk > 1 or (orientation > 1 and image is ODD)
            off = np.abs(images.apply(small, transform) - images.apply(whole, transform)) * 127.5
            assert off.mean() < 0.6
            assert off.max() < 16


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(800, 640), (801, 639), (807, 633)])
def test_nothing_moves_in_a_jpeg_in_small(size: tuple[int, int], orientation: int) -> None:
    """A ramp shows a shift of a tenth of the finished picture's pixel."""
    x, y = np.meshgrid(np.linspace(10, 245, size[0]), np.linspace(10, 245, size[1]))
    data = jpeg(Image.fromarray(np.stack([x, y, x], axis=-1).astype(np.uint8)), orientation, subsampling=0)
    for left, top, flip in CORNERS:
        transform = Transform(side_width=40, side_height=40, left=left, top=top, flip=flip)
        small, whole = (images.decode(data, Path("a"), wanted) for wanted in ([transform], []))
        off = (images.apply(small, transform) - images.apply(whole, transform)) * 127.5
        step = 235 / 51  # of the ramp from pixel to pixel, at the least
        assert np.abs(off.mean((1, 2))).max() < 0.1 * step


def test_colours_are_converted_as_before_though_only_those_that_are_wanted(tmp_path: Path) -> None:
    transform = Transform(side_width=100, side_height=100)
    for image, kind, options in (
        (PHOTO, "JPEG", {"icc_profile": swapped()}),
        (PHOTO, "PNG", {"icc_profile": swapped()}),
        (PHOTO.convert("CMYK"), "JPEG", {}),
        (PHOTO.convert("L"), "JPEG", {}),
        (PHOTO.convert("L"), "PNG", {}),
    ):
        path = saved(tmp_path / "a", image, format=kind, **options)
        small, whole = (images.decode(path.read_bytes(), path, wanted) for wanted in ([transform], []))
        assert (small.shrunk, small.image.mode, small.notes) == (4 if kind == "JPEG" else 1, "RGB", whole.notes)
        off = np.abs(images.apply(small, transform) - images.apply(whole, transform)) * 127.5
        assert off.mean() < 0.6, (image.mode, kind)
        assert off.max() < 16


def test_other_formats_and_cut_jpegs_are_what_they_were(tmp_path: Path) -> None:
    transform, path = Transform(side_width=40, side_height=40), tmp_path / "a"
    for kind in ("PNG", "WEBP", "TIFF"):
        PHOTO.save(path, kind)
        assert images.decode(path.read_bytes(), path, [transform]).shrunk == 1
    data = jpeg(PHOTO)
    assert same(images.decode(data, path, [transform]), images.decode(data, path, [transform]))
    with pytest.raises(DataError, match="not a readable picture"):
        images.decode(data[: len(data) * 3 // 4], path, [transform])


def same(one: Decoded, other: Decoded) -> bool:
    return np.array_equal(one.pixels, other.pixels) and one.shrunk == other.shrunk
