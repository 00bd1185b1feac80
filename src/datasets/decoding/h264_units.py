"""What the units of H.264 and HEVC say that demuxers do not: where a clean start is, and which messages turn pictures.

Demuxers call a packet a keyframe where it holds a recovery point too. With intra refresh, pictures are right only some
frames after it, and decoders do not always say which. ITU-T H.264 sections 7.3.1, 7.3.3, 7.4.1, D.2.8 and D.2.27;
H.265 sections 7.3.1 and D.2.17.
"""

from __future__ import annotations

from collections.abc import Iterator

_SLICE, _PARTITION_A, _IDR, _SEI = 1, 2, 5, 6
_HEVC_SEI = 39
_RECOVERY_POINT, _DISPLAY_ORIENTATION = 6, 47  # kinds of messages
_INTRA_SLICES = {2, 4, 7, 9}  # I and SI, in this slice or in all of the picture's


def is_clean_start(packet: bytes, extradata: bytes | None) -> bool:
    """Whether an H.264 packet is an IDR picture, or an intra picture that recovers at once (an open group of pictures).

    Args:
        packet: one picture of a stream.
        extradata: the stream's header; its first byte is 1 where lengths stand before the units, not start codes.
    """
    intra, recovers = False, False
    for unit in _units(packet, extradata, 4):
        kind = unit[0] & 31
        if kind == _IDR:
            return True
        if kind == _SEI:  # after 0 frames, in Exp-Golomb: the first bit is 1
            recovers = recovers or any(m and m[0] & 0x80 for kind, m in _messages(unit[1:]) if kind == _RECOVERY_POINT)
        elif kind in (_SLICE, _PARTITION_A):
            if _slice_type(unit) not in _INTRA_SLICES:
                return False
            intra = True
    return intra and recovers


def turns_by_message(codec: str, packet: object, extradata: bytes | None) -> bool:
    """Whether a stream's first packet says how to turn the pictures, which decoders tell of that one picture only."""
    if codec not in ("h264", "hevc"):
        return False
    hevc = codec == "hevc"
    for unit in _units(bytes(packet), extradata, 21 if hevc else 4):  # type: ignore[call-overload]
        is_message = (unit[0] >> 1 & 63) == _HEVC_SEI if hevc else (unit[0] & 31) == _SEI
        if is_message and any(kind == _DISPLAY_ORIENTATION for kind, _ in _messages(unit[2 if hevc else 1 :])):
            return True
    return False


def _units(packet: bytes, extradata: bytes | None, place: int) -> Iterator[bytes]:
    """A packet's units; `place`: of the byte in the header that ends in the size of lengths."""
    with_lengths = extradata is not None and len(extradata) > place and extradata[0] == 1
    return _by_length(packet, (extradata[place] & 3) + 1) if extradata and with_lengths else _by_start_code(packet)


def _by_length(packet: bytes, length_size: int) -> Iterator[bytes]:
    position = 0
    while position + length_size < len(packet):
        length = int.from_bytes(packet[position : position + length_size], "big")
        position += length_size
        if length:
            yield packet[position : position + length]
        position += length


def _by_start_code(packet: bytes) -> Iterator[bytes]:
    start = packet.find(b"\0\0\1")
    while start >= 0:
        end = packet.find(b"\0\0\1", start + 3)
        if unit := packet[start + 3 : end if end >= 0 else len(packet)]:
            yield unit
        start = end


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kinds and contents of a unit of supplemental messages, less its header."""
    data, position = data.replace(b"\0\0\3", b"\0\0"), 0
    while position + 2 < len(data):
        kind, position = _sum_of_bytes(data, position)
        size, position = _sum_of_bytes(data, position)
        yield kind, data[position : position + size]
        position += size


def _sum_of_bytes(data: bytes, position: int) -> tuple[int, int]:
    """A number written as bytes of 255 and a last one, and the place after it."""
    value = 0
    while position < len(data):
        value += data[position]
        position += 1
        if data[position - 1] != 255:
            break
    return value, position


def _slice_type(unit: bytes) -> int:
    """The second number of a slice's header; -1 where the unit is too short to say."""
    data = unit[1:17].replace(b"\0\0\3", b"\0\0")
    bits = format(int.from_bytes(data, "big"), f"0{8 * len(data)}b") if data else ""
    position = value = 0
    for _ in ("first macroblock", "slice type"):
        zeros = bits.find("1", position) - position
        if zeros < 0 or position + 2 * zeros + 1 > len(bits):
            return -1
        value = int(bits[position + zeros : position + 2 * zeros + 1], 2) - 1
        position += 2 * zeros + 1
    return value
