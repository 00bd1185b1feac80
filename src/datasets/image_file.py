"""An image file as RGB: upright, on white, and scaled to 8 bits where it holds more."""

from __future__ import annotations

import struct

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from src.datasets.decoding.decode import DecodeError, check_source
from src.datasets.decoding.errors import first_line

# What Pillow's readers raise on damaged files, UnidentifiedImageError and every other OSError among them.
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, LookupError, TypeError, ArithmeticError, AttributeError, EOFError),
    *(RuntimeError, struct.error, Image.DecompressionBombError),
)
_PHOTOMETRIC, _SAMPLE_FORMAT = 262, 339  # TIFF 6.0: whether zero is white or black; 1 is unsigned
_SCALES = (1.0, 255.0, 65535.0)  # white, in the kinds of pixels that mode F and I are used for


def read_image(path: str) -> np.ndarray:
    """An image file as RGB uint8 (H, W, 3), its first frame if it has several.

    It is turned as its EXIF orientation says. What is transparent is laid on white. 16-bit grey is scaled from
    0..65535. 32-bit pixels, int or float, do not say what is white: it is the least of 1 (floats only), 255 and 65535
    that no pixel exceeds, with 0 as black; an image with pixels below 0 or above 65535 is stretched from its least to
    its greatest. Pixels that are not finite are black.

    Raises:
        DecodeError: no such file, not an image, or a damaged one.
    """
    check_source(path, path, allow_truncated=False)
    try:
        with Image.open(path) as image:
            image.load()
            return np.array(_rgb(_upright(image), image.format in ("PNG", "PPM")))
    except UnidentifiedImageError:
        raise DecodeError(path, "unreadable", "not an image of a known format") from None
    except PermissionError:
        raise DecodeError(path, "permission", "may not be read") from None
    except _DAMAGE as error:
        raise DecodeError(path, "corrupt", first_line(error)) from None


def _upright(image: Image.Image) -> Image.Image:
    """As its EXIF orientation says it is to be shown."""
    if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


def _rgb(image: Image.Image, at_most_16_bits: bool) -> Image.Image:
    """In 8 bits, by the rules of `read_image`; some versions of Pillow give 16-bit grey as mode I."""
    if image.mode.startswith("I;16") or (image.mode == "I" and at_most_16_bits):
        values = np.asarray(image)
        grey = values / 65535
        if _tiff(image, _PHOTOMETRIC) == 0:  # white is zero, which Pillow heeds for 8 bits only
            grey = 1 - grey
        return _grey(np.where(values == image.info.get("transparency", -1), 1.0, grey))
    if image.mode in ("I", "F"):
        stored = np.asarray(image)
        if image.mode == "I" and _tiff(image, _SAMPLE_FORMAT) == 1:
            stored = stored.view(np.uint32)  # Pillow takes unsigned numbers for signed ones
        return _grey(_in_unit_range(stored.astype(np.float64), image.mode == "F"))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _tiff(image: Image.Image, tag: int) -> object:
    """A TIFF's tag; None for what it has not, and for other formats."""
    value = getattr(image, "tag_v2", {}).get(tag)
    return value[0] if isinstance(value, tuple) and value else value


def _grey(values: np.ndarray) -> Image.Image:
    """Values (H, W) in 0..1 as grey RGB."""
    return Image.fromarray(np.round(values * 255).astype(np.uint8)).convert("RGB")


def _in_unit_range(values: np.ndarray, is_float: bool) -> np.ndarray:
    """Values (H, W) of mode I or F in 0..1, by the rule of `read_image`."""
    finite = np.isfinite(values)
    low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 0.0)
    white = next((scale for scale in _SCALES[0 if is_float else 1 :] if high <= scale), None)
    if low >= 0 and white is not None:
        return np.where(finite, values, 0.0) / white
    return (np.where(finite, values, low) - low) / (high - low or 1.0)
