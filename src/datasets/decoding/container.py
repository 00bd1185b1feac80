"""How long a video file says it is, read from its container's headers alone.

A truncated AVI or WebM decodes without complaint to fewer frames, in every library. The containers themselves carry
their length: ISO media (mp4, mov) as boxes, RIFF (avi) and Matroska (webm, mkv) in their first bytes. ISO/IEC
14496-12 section 4.2, OpenDML AVI 1.02, RFC 8794 (EBML), RFC 9559 (Matroska).
"""

from __future__ import annotations

from typing import BinaryIO

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"moof", b"sidx", b"uuid", b"meta", b"mfra"}
_WITH_PICTURES = {
    b"moov",
    b"mdat",
    b"moof",
    b"styp",
    b"sidx",
}  # they hold pictures or their places, or announce some
_UNKNOWN_RIFF = (
    0,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
)  # what is written where the length was not known, as into a pipe


def missing_bytes(file: BinaryIO, size: int) -> int:
    """Bytes by which a file of `size` bytes falls short of its own header; 0 where it does not or cannot be told."""
    file.seek(0)
    head = file.read(64)
    if head[:4] == b"RIFF" and len(head) >= 12:
        return max(_riff_end(file, size) - size, 0)
    if head[:4] == _EBML:
        return max(_matroska_end(file) - size, 0)
    if head[4:8] in _BOXES:
        return _missing_iso_bytes(file, size)
    return 0


def _riff_end(file: BinaryIO, size: int) -> int:
    """End of the last RIFF chunk: an AVI of more than a gigabyte has several. 0 where its length is not written."""
    end = 0
    while end + 8 <= size:
        file.seek(end)
        header = file.read(8)
        length = int.from_bytes(header[4:], "little")
        if header[:4] != b"RIFF":
            break  # what follows is not part of the video
        if length in _UNKNOWN_RIFF:
            return 0
        end += 8 + length + length % 2
    return end - 1 if end == size + 1 else end  # the byte that makes a length even is often left out at the end


def _missing_iso_bytes(file: BinaryIO, size: int) -> int:
    """Bytes that the last box lacks. What follows the pictures and is cut, or is no box at all, does not count."""
    position, seen = 0, set()
    while position + 8 <= size:
        file.seek(position)
        header = file.read(16)
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length < 8:  # 0: up to the end of the file; 1-7: not a box
            return 0
        position += length
        whole = b"moov" in seen and b"mdat" in seen and kind not in _WITH_PICTURES
        if position > size and whole:
            return 0
        seen.add(kind)
    return max(position - size, 0)


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
