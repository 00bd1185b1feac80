"""How long a video file says it is, read from its container's headers alone.

A truncated AVI or WebM decodes without complaint to fewer frames, in every library. The containers themselves carry
their length: ISO media (mp4, mov) as boxes, RIFF (avi) and Matroska (webm, mkv) in their first bytes. ISO/IEC
14496-12 section 4.2, RFC 8794 (EBML), RFC 9559 (Matroska).
"""

from __future__ import annotations

from typing import BinaryIO

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"moof", b"sidx", b"uuid", b"meta", b"mfra"}


def missing_bytes(file: BinaryIO, size: int) -> int:
    """Bytes by which a file of `size` bytes falls short of its own header; 0 where it does not or cannot be told."""
    file.seek(0)
    head = file.read(64)
    if head[:4] == b"RIFF" and len(head) >= 12:
        return _past_end(8 + int.from_bytes(head[4:8], "little"), size)
    if head[:4] == _EBML:
        return _past_end(_matroska_end(file), size)
    if head[4:8] in _BOXES:
        return _past_end(_iso_end(file, size), size)
    return 0


def _past_end(end: int, size: int) -> int:
    return max(end - size, 0)


def _iso_end(file: BinaryIO, size: int) -> int:
    position = 0
    while position + 8 <= size:
        file.seek(position)
        header = file.read(16)
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length < 8:  # 0: up to the end of the file; 1-7: not a box
            break
        position += length
    return position


def _matroska_end(file: BinaryIO) -> int:
    """End of the first segment; 0 where its length is not written (a live recording)."""
    file.seek(4)
    header = _variable_int(file)
    if header is None:
        return 0
    file.seek(header, 1)
    if file.read(4) != _SEGMENT:
        return 0
    length = _variable_int(file)
    return 0 if length is None else file.tell() + length


def _variable_int(file: BinaryIO) -> int | None:
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    width = 9 - first[0].bit_length()
    mask = (1 << (7 * width)) - 1
    value = int.from_bytes(first + file.read(width - 1), "big") & mask
    return None if value == mask else value
