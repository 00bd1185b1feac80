"""Where decoding of H.264 may begin so that every picture shown from there on is right.

Demuxers call a packet a keyframe where it holds a recovery point too. With intra refresh, pictures are right only some
frames after it, and decoders do not always say which. ITU-T H.264 sections 7.3.1, 7.3.3, 7.4.1 and D.2.8.
"""

from __future__ import annotations

from collections.abc import Iterator

_SLICE, _PARTITION_A, _IDR, _SEI = 1, 2, 5, 6
_RECOVERY_POINT = 6
_INTRA_SLICES = {2, 4, 7, 9}  # I and SI, in this slice or in all of the picture's


def is_clean_start(packet: bytes, extradata: bytes | None) -> bool:
    """Whether a packet is an IDR picture, or an intra picture that recovers at once (an open group of pictures).

    Args:
        packet: one picture of a stream.
        extradata: the stream's header; its first byte is 1 where lengths stand before the units, not start codes.
    """
    intra, recovers = False, False
    length_size = (extradata[4] & 3) + 1 if extradata and len(extradata) > 4 and extradata[0] == 1 else 0
    for unit in _by_length(packet, length_size) if length_size else _by_start_code(packet):
        kind = unit[0] & 31
        if kind == _IDR:
            return True
        if kind == _SEI:
            recovers = recovers or _recovers_at_once(unit)
        elif kind in (_SLICE, _PARTITION_A):
            if _slice_type(unit) not in _INTRA_SLICES:
                return False
            intra = True
    return intra and recovers


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


def _recovers_at_once(unit: bytes) -> bool:
    """Whether a supplemental message says: recovery point, after 0 frames."""
    data, position = unit[1:].replace(b"\0\0\3", b"\0\0"), 0
    while position + 2 < len(data):
        kind, position = _sum_of_bytes(data, position)
        size, position = _sum_of_bytes(data, position)
        if kind == _RECOVERY_POINT:
            return position < len(data) and data[position] & 0x80 != 0  # Exp-Golomb: 0 is the bit 1
        position += size
    return False


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
