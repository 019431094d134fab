"""The tags of TIFF files and EXIF blocks: refused where so many share the same bytes that they would fill the memory.

5 000 tags in an EXIF block of 64 KB can all point to the whole of it. Older versions of Pillow copy what each one
points to, newer ones write a warning for each.
"""

import re
import struct
from collections.abc import Iterator

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TEXT = (1, 2, 6, 7)  # kinds that stay bytes; of the others, each value becomes a Python number
_SHARED = 1 << 16  # bytes that honest tags may share: resolutions, empty texts
_MOST_NUMBERS = 1 << 22  # bytes of numbers: half a million strips
_DIRECTORIES = (0x8769, 0x8825, 0xA005)  # tags that point to more tags: EXIF, GPS, interoperability
_MOST_DIRECTORIES = 8
_IN_JPEG = re.compile(rb"\xff[\xe1\xe2](..)(Exif\0\0|MPF\0)", re.DOTALL)


def require_few_tags(block: bytes) -> None:
    """ValueError if the tags of a TIFF file or EXIF block claim more bytes together than it has."""
    block = block.removeprefix(b"Exif\0\0")
    claimed = numbers = 0
    for kind, count in _tags(block):
        size = min(_SIZES.get(kind, 0) * count, len(block))
        claimed += size
        numbers += 0 if kind in _TEXT else size
    if claimed > len(block) + _SHARED or numbers > _MOST_NUMBERS:
        raise ValueError(f"tags of {claimed} bytes in {len(block)}, a decompression bomb")


def block_of_info(info: dict) -> bytes:
    """The EXIF block that Pillow will look for an orientation in, given its `info`; ValueError if it is no good."""
    text = info.get("Raw profile type exif")  # in older PNG files: three lines, then hexadecimal
    if "exif" not in info and isinstance(text, str):
        return bytes.fromhex("".join(text.split("\n")[3:]))
    return info.get("exif") or b""


def blocks_in_jpeg(data: bytes) -> list[bytes]:
    """The EXIF block, whose segments are put together, and those of tags of other kinds."""
    exif, others = b"", []
    for found in _IN_JPEG.finditer(data):
        segment = data[found.end() : found.start() + 2 + int.from_bytes(found[1], "big")]
        if found[2] == b"MPF\0":
            others.append(segment)
        else:
            exif += segment
    return [exif, *others]


def _tags(block: bytes) -> Iterator[tuple[int, int]]:
    """Kind and number of values of each tag in the first directory and those that it points to."""
    order, large = "<" if block[:2] == b"II" else ">", 43 in block[2:4]  # 43: BigTIFF
    length, entry = (order + "Q", order + "HHQQ") if large else (order + "H", order + "HHII")
    try:
        waiting, seen = [struct.unpack_from(order + ("Q" if large else "I"), block, 8 if large else 4)[0]], set()
        while waiting and len(seen) < _MOST_DIRECTORIES:
            place = waiting.pop()
            if place in seen:
                continue
            seen.add(place)
            start = place + struct.calcsize(length)
            count = min(struct.unpack_from(length, block, place)[0], (len(block) - start) // struct.calcsize(entry))
            for tag, kind, values, pointer in struct.iter_unpack(
                entry, block[start : start + max(count, 0) * struct.calcsize(entry)]
            ):
                yield kind, values
                if tag in _DIRECTORIES:
                    waiting.append(pointer)
    except (struct.error, OverflowError):  # cut off, or pointing out of the block: what follows cannot be read at all
        return
