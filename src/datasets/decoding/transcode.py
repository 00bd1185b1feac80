"""Re-encoding a video so that clips of it are cheap to read: small pictures, a keyframe every few frames."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial

from src.datasets.decoding.decode import open_video
from src.datasets.decoding.errors import DecodeError, first_line
from src.datasets.decoding.pyav_reader import PyAVVideo


@dataclass(frozen=True)
class Recipe:
    """How videos are written.

    Attributes:
        short_side: pixels of the shorter side; smaller videos keep their size.
        gop: frames from one keyframe to the next.
        crf: x264's quality, lower is better.
        preset: x264's effort.
    """

    short_side: int = 256
    gop: int = 16
    crf: int = 23
    preset: str = "medium"

    def as_dict(self) -> dict[str, int | str]:
        """Plain values for a manifest."""
        return asdict(self)


@dataclass(frozen=True)
class Transcoded:
    """The bytes of an mp4 file, and what is in it."""

    data: bytes
    frames: int
    fps: float
    width: int
    height: int


# What is written says so (ITU-T H.273): BT.601 with video range, as readers that do not look assume.
_BT601, _VIDEO_RANGE = 6, 1


def transcode(path: str, recipe: Recipe) -> Transcoded:
    """A video as H.264 in mp4: every frame as it is shown, at the mean rate, without sound. Raises DecodeError.

    Frames go through the RGB that reading gives, so that what is written reads like its source: upright, with square
    pixels, in the same colours. Primaries and transfer function are handed on (HDR stays HDR).
    """
    import av

    source = open_video(path, "pyav")
    assert isinstance(source, PyAVVideo)
    buffer = io.BytesIO()
    count = 0
    width = height = 0
    try:
        rate = rational_rate(source.fps)
        to_rgb = source.converter(partial(fitted, short_side=recipe.short_side))
        with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as target:
            stream = target.add_stream("libx264", rate=rate)
            to_yuv = av.video.reformatter.VideoReformatter()
            for frame in source.frames():
                rgb = av.VideoFrame.from_ndarray(to_rgb(frame), format="rgb24")
                if count == 0:
                    width, height = rgb.width, rgb.height
                    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                    stream.thread_count = 1
                    stream.options = {
                        "crf": str(recipe.crf),
                        "g": str(recipe.gop),
                        "preset": recipe.preset,
                        "bf": "0",
                        "refs": "1",
                        "coder": "0",  # CAVLC decodes a quarter faster than CABAC, for a sixth more bytes
                        "threads": "1",
                    }
                    context = stream.codec_context
                    context.colorspace, context.color_range = _BT601, _VIDEO_RANGE
                    context.color_primaries, context.color_trc = frame.color_primaries, frame.color_trc
                picture = to_yuv.reformat(
                    rgb, format="yuv420p", dst_colorspace=_BT601, dst_color_range=_VIDEO_RANGE, interpolation="AREA"
                )
                picture.pts, picture.time_base = count, 1 / rate
                picture.pict_type = av.video.frame.PictureType.NONE
                target.mux(stream.encode(picture))
                count += 1
            target.mux(stream.encode(None))
    except (av.FFmpegError, ValueError, ArithmeticError) as error:
        raise DecodeError(path, "unreadable", f"cannot be written again: {first_line(error)}") from None
    finally:
        source.close()
    if count != source.n_frames:
        raise DecodeError(path, "short", f"{source.n_frames} frames announced, {count} came")
    return Transcoded(buffer.getvalue(), count, float(rate), width, height)


def rational_rate(fps: float) -> Fraction:
    """Frames per second as a fraction of small numbers: 30000/1001, or 1/3600 for a frame an hour."""
    return Fraction(fps).limit_denominator(1001) if fps > 1 else 1 / Fraction(1 / fps).limit_denominator(1001)


def fitted(width: int, height: int, short_side: int) -> tuple[int, int]:
    """(width, height), scaled down to the short side if larger, rounded to even numbers, as 4:2:0 colour needs."""
    scale = min(short_side / min(width, height), 1.0)
    return max(round(width * scale / 2) * 2, 2), max(round(height * scale / 2) * 2, 2)
