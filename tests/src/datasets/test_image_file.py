"""Pixels of image files of every kind: their range, their orientation, their transparency, their damage."""

from __future__ import annotations

import contextlib
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from src.datasets.decoding.errors import DecodeError
from src.datasets.image_file import read_image

LEVELS = np.linspace(0, 1, 32).reshape(2, 16)  # what every grey ramp below shows, black to white
RAMP = np.round(LEVELS * 255)


def _grey(scale, dtype):
    return Image.fromarray(np.round(LEVELS * scale).astype(dtype))


def _float(values):
    return Image.fromarray(values.astype(np.float32))


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("l.png", _grey(255, np.uint8)),
        ("16.png", _grey(65535, np.uint16)),
        ("16.tif", _grey(65535, np.uint16)),
        ("big endian.tif", _grey(65535, ">u2")),
        ("16.pgm", _grey(65535, np.uint16)),
        ("16.jp2", _grey(65535, np.uint16)),
        ("i 16.tif", _grey(65535, np.int32)),
        ("i 8.tif", _grey(255, np.int32)),
        ("i 31.tif", _grey(2**31 - 1, np.int32)),
        ("i signed.tif", Image.fromarray((np.round(LEVELS * 2000) - 1000).astype(np.int32))),
        ("f 1.tif", _float(LEVELS)),
        ("f 255.tif", _float(LEVELS * 255)),
        ("f 16.tif", _float(LEVELS * 65535)),
        ("f signed.tif", _float(LEVELS * 2 - 1)),
        ("f large.tif", _float(LEVELS * 1e9)),
        ("f nan.tif", _float(np.where(LEVELS == 0, np.nan, LEVELS))),
        ("f infinite.tif", _float(np.where(LEVELS == 0, -np.inf, LEVELS * 255))),
    ],
)
def test_every_range_of_grey_ends_at_black_and_white(tmp_path, name, image):
    image.save(tmp_path / name)
    pixels = read_image(str(tmp_path / name))
    assert pixels.shape == (2, 16, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels - RAMP[..., None]).max() <= 1


def test_dark_images_stay_dark(tmp_path):
    for name, image, expected in (
        ("dark.png", _grey(6553.5, np.uint16), 25.5),
        ("dark.tif", _float(LEVELS / 2), 127.5),
        ("constant.tif", _float(LEVELS * 0 + 51), 51),
    ):
        image.save(tmp_path / name)
        assert abs(int(read_image(str(tmp_path / name)).max()) - expected) <= 1


COLOUR = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("rgb.png", COLOUR),
        ("rgba.png", COLOUR.convert("RGBA")),
        ("p.png", COLOUR.quantize(64)),
        ("p.gif", COLOUR.quantize(64)),
        ("1.png", COLOUR.convert("1")),
        ("la.png", COLOUR.convert("LA")),
        ("cmyk.tif", COLOUR.convert("CMYK")),
        ("cmyk.jpg", COLOUR.resize((60, 100)).convert("CMYK")),
        ("ycc.tif", COLOUR.convert("YCbCr")),
    ],
)
def test_every_mode_is_the_colour_it_was(tmp_path, name, image):
    image.save(tmp_path / name)
    expected = np.asarray(image.convert("RGB")).astype(int)
    pixels = read_image(str(tmp_path / name))
    assert pixels.shape == expected.shape and np.abs(pixels - expected).mean() < (6 if name.endswith("jpg") else 2)


def test_16_bits_of_colour_are_8(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    colour = np.asarray(COLOUR)
    rows = b"".join(b"\0" + row.tobytes() for row in colour.astype(">u2") * 257)
    header = struct.pack(">IIBBBBB", 10, 6, 16, 2, 0, 0, 0)  # width, height, bits, RGB; Pillow cannot write it
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    (tmp_path / "16.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert np.abs(read_image(str(tmp_path / "16.png")).astype(int) - colour).max() <= 1


def test_what_is_transparent_is_white(tmp_path):
    alpha = np.zeros((6, 10), np.uint8)
    alpha[:, 5:] = 255
    alpha[0, 0] = 128
    see_through = COLOUR.copy()
    see_through.putalpha(Image.fromarray(alpha))
    grey = COLOUR.convert("LA")
    grey.putalpha(Image.fromarray(alpha))
    see_through.save(tmp_path / "rgba.png")
    see_through.save(tmp_path / "rgba.webp", lossless=True)
    grey.save(tmp_path / "la.png")
    for name, whole in (("rgba.png", COLOUR), ("rgba.webp", COLOUR), ("la.png", COLOUR.convert("L").convert("RGB"))):
        pixels, colour = read_image(str(tmp_path / name)).astype(int), np.asarray(whole).astype(int)
        assert (pixels[1:, :5] == 255).all() and (pixels[:, 5:] == colour[:, 5:]).all()
        assert np.abs(pixels[0, 0] - (255 + colour[0, 0]) / 2).max() <= 1.5
    two = Image.new("P", (2, 1))
    two.putpalette([10, 20, 30, 40, 50, 60])
    two.putpixel((1, 0), 1)
    two.save(tmp_path / "p.png", transparency=0)
    assert read_image(str(tmp_path / "p.png")).tolist() == [[[255, 255, 255], [40, 50, 60]]]
    Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)).save(tmp_path / "key.png", transparency=(1, 2, 3))
    assert read_image(str(tmp_path / "key.png")).tolist() == [[[255, 255, 255], [4, 5, 6]]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_orientation_is_honoured(tmp_path, orientation, suffix):
    shown = np.zeros((16, 24, 3), np.uint8)  # a white corner at the top left of the picture as it is to be shown
    shown[:8, :8] = 255
    stored = {
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.transpose(1, 0, 2),
        6: shown.transpose(1, 0, 2)[::-1],
        7: shown.transpose(1, 0, 2)[::-1, ::-1],
        8: shown.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"a.{suffix}", exif=exif)
    pixels = read_image(str(tmp_path / f"a.{suffix}")).astype(int)
    assert pixels.shape == shown.shape and np.abs(pixels - shown).mean() < 4


def _tiff(path, values, bits, photometric, sample_format=1):
    """A TIFF of one strip, tag by tag."""
    data = values.tobytes()
    height, width = values.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height)]
    tags += [(279, len(data)), (339, sample_format)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    place = struct.pack("<I", 8 + len(data))
    path.write_bytes(b"II*\0" + place + data + struct.pack("<H", len(tags)) + entries + bytes(4))
    return path


def test_tiffs_whose_numbers_mean_something_else(tmp_path):
    ramp = np.tile(np.linspace(0, 1, 64), (4, 1))
    grey = np.round(ramp * 255).astype(int)
    sixteen, thirty_two = (np.round(ramp * (2**bits - 1)).astype(f"<u{bits // 8}") for bits in (16, 32))
    for photometric, values in ((1, sixteen), (0, 65535 - sixteen)):  # black is zero; white is zero
        found = read_image(str(_tiff(tmp_path / "a.tif", values, 16, photometric)))
        assert np.abs(found[..., 0] - grey).max() <= 1, photometric
    found = read_image(str(_tiff(tmp_path / "a.tif", thirty_two, 32, 1)))
    assert np.abs(found[..., 0] - grey).max() <= 1


def test_the_transparent_grey_of_a_16_bit_png_is_white(tmp_path):
    values = np.full((4, 8), 30_000, np.uint16)
    values[:, :4] = 7
    Image.fromarray(values).save(tmp_path / "a.png", transparency=7)
    assert read_image(str(tmp_path / "a.png"))[0, :, 0].tolist() == [255] * 4 + [117] * 4


def test_an_orientation_of_16_bit_grey(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    _grey(65535, np.uint16).save(tmp_path / "a.png", exif=exif)
    assert np.abs(read_image(str(tmp_path / "a.png"))[..., 0] - RAMP[::-1, ::-1]).max() <= 1


def test_a_damaged_image_is_a_decode_error(tmp_path):
    def kind(name):
        with pytest.raises(DecodeError) as caught:
            read_image(str(tmp_path / name))
        assert "\n" not in str(caught.value)
        return caught.value.kind

    (tmp_path / "empty.jpg").touch()
    (tmp_path / "words.jpg").write_text("words")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    kinds = [kind(f"{name}.jpg") for name in ("empty", "words", "folder", "pipe", "absent")]
    assert kinds == ["empty", "unreadable", "directory", "unreadable", "missing"]
    large = ImageOps.expand(COLOUR.resize((200, 160)), 4)
    for suffix in ("jpg", "png", "tif", "webp", "gif", "bmp"):
        large.save(tmp_path / f"a.{suffix}")
        data = (tmp_path / f"a.{suffix}").read_bytes()
        (tmp_path / f"a.{suffix}").write_bytes(data[: len(data) // 2])
        assert kind(f"a.{suffix}") in ("corrupt", "truncated", "unreadable"), suffix


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of tags that make no sense
def test_any_bytes_are_an_image_or_a_decode_error(tmp_path):
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    for suffix in ("jpg", "png", "tif", "webp", "gif"):
        COLOUR.save(tmp_path / f"a.{suffix}", exif=exif)
        whole = np.fromfile(tmp_path / f"a.{suffix}", np.uint8)
        for _ in range(40):
            damaged = whole.copy()
            damaged[rng.integers(0, min(len(whole), 200), 4)] = rng.integers(0, 256, 4)
            damaged.tofile(tmp_path / f"b.{suffix}")
            with contextlib.suppress(DecodeError):
                assert read_image(str(tmp_path / f"b.{suffix}")).shape[2] == 3
