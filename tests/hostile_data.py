"""Images and archives that are made to take all memory or time, written by hand in their formats."""

import io
import struct
import zlib
from pathlib import Path

from PIL import Image

HUGE, ABOVE, BELOW = (60000, 60000), (10000, 9000), (9000, 9000)  # BELOW: 81 megapixels, below the limit of 89


def zeros(size: int) -> bytes:
    """`size` zeros (whole MiB) as raw deflate, a thousandth as long, made by repeating one block."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * (size >> 20) + b"\x03\x00"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(size=(8, 8), pixels: bytes | None = None, before: bytes = b"", behind: bytes = b"", colour=0) -> bytes:
    """Grey by default. `pixels`: what IDAT holds, the right zeros if None. `before`, `behind`: chunks around it."""
    if pixels is None:
        pixels = zlib.compress(bytes((size[0] * (3 if colour == 2 else 1) + 1) * size[1]))
    header = struct.pack(">IIBBBBB", *size, 8, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", pixels) + behind + chunk(b"IEND", b"")
    )  # fmt: skip


def zlib_zeros(size: int) -> bytes:
    return b"\x78\x9c" + zeros(size) + struct.pack(">HH", size % 65521, 1)  # Adler's sum of zeros


def encoded(kind: str, size=(16, 16), colour=(9, 99, 199), **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(size: tuple[int, int]) -> bytes:
    data = bytearray(encoded("JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", size[1], size[0])
    return bytes(data)


def jpeg_of_scans(size: tuple[int, int], scans: int) -> bytes:
    """A progressive file whose last scan stands there again and again."""
    data = encoded("JPEG", size, progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * scans + data[-2:]


def gif(screen: tuple[int, int], frames=1) -> bytes:
    """Frames of 1 x 1 black pixel."""
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes(3) + b"\xff" * 3
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return head + frame * frames + b";"


def gif_frame(size: tuple[int, int]) -> bytes:
    """A frame far larger than its screen."""
    head = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + bytes(6)
    return head + b"," + struct.pack("<HHHHB", 0, 0, *size, 0) + b"\x02\x02\x44\x01\x00;"


def bmp(size: tuple[int, int], compression=0, data: bytes = b"") -> bytes:
    """Eight bits a pixel; compression 1 is run lengths."""
    head = struct.pack("<IiiHHIIiiII", 40, *size, 1, 8, compression, len(data), 2835, 2835, 256, 0)
    offset = 14 + len(head) + 1024
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + head + bytes(1024) + data


def tiff(tags: dict[int, int], data: bytes = b"", following=0, copies=1, more: bytes = b"") -> bytes:
    """Little-endian, all tags LONG; `following` is the place of the next directory, `copies` a chain of so many.
    `more`: entries behind those of the tags."""
    count = len(tags) + len(more) // 12
    size = 2 + 12 * count + 4
    directories = bytearray()
    for copy in range(copies):
        after = following if copy + 1 == copies else 8 + size * (copy + 1)
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items())) + more
        directories += struct.pack("<H", count) + entries + struct.pack("<I", after)
    return b"II*\0" + struct.pack("<I", 8) + bytes(directories) + data


def grey_tiff(size: tuple[int, int], offset=1000, count=1 << 20, **more: int) -> dict[int, int]:
    """The tags of an image in one strip, uncompressed."""
    return {256: size[0], 257: size[1], 258: 8, 259: 1, 262: 1, 273: offset, 277: 1, 278: size[1], 279: count, **more}


def shared_entries(count: int, size: int = 1 << 20, kind=7) -> bytes:
    """Entries of a directory that all point to the first `size` bytes of the file."""
    width = {4: 4, 7: 1}[kind]
    return b"".join(struct.pack("<HHII", 40000 + i, kind, size // width, 0) for i in range(count))


def shared_tags(count: int, size: int, kind=7) -> bytes:
    """A TIFF file, or an EXIF block, of nothing else."""
    entries = shared_entries(count, size - 8, kind)  # not all of it, or the bytes would not be copied
    head = b"II*\0" + struct.pack("<IH", 8, count) + entries + bytes(4)
    return head + bytes(max(0, size - len(head)))


def profile(block: bytes) -> bytes:
    """An EXIF block as text of a PNG."""
    return b"Raw profile type exif\0\nexif\n%d\n" % len(block) + block.hex().encode()


def jpeg_of_tags(count: int) -> bytes:
    block = b"Exif\0\0" + shared_tags(count, 65000)
    data = encoded("JPEG")
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]


def tiled_tiff(tile: int, packed: bytes) -> bytes:
    """8 x 8 pixels in one deflated tile of tile x tile."""
    tags = {256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 324: 0, 325: len(packed)}
    tags[324] = len(tiff(tags))
    return tiff(tags, packed)


def webp(size: tuple[int, int]) -> bytes:
    """Of one colour, which takes no bits a pixel, whatever the size."""
    data = bytearray(encoded("WEBP", lossless=True))
    place = data.index(b"VP8L") + 9
    bits = int.from_bytes(data[place : place + 4], "little") >> 28 << 28
    data[place : place + 4] = struct.pack("<I", bits | (size[1] - 1) << 14 | (size[0] - 1))
    return bytes(data)


def webp_canvas(size: tuple[int, int]) -> bytes:
    inner = encoded("WEBP", lossless=True)[12:]
    extended = (
        b"VP8X" + struct.pack("<II", 10, 0) + struct.pack("<I", size[0] - 1)[:3] + struct.pack("<I", size[1] - 1)[:3]
    )
    return b"RIFF" + struct.pack("<I", 4 + len(extended) + len(inner)) + b"WEBP" + extended + inner


def entry(name: str | bytes, data: bytes, **lies: int) -> dict:
    """Of a zip archive. Without lies it is stored; method, size (unpacked), packed, crc, offset, mode tell others."""
    honest = {"method": 0, "size": len(data), "packed": len(data), "crc": zlib.crc32(data), "mode": 0o100644}
    return {"name": name.encode() if isinstance(name, str) else name, "data": data, **honest, **lies}


def zipped(path: Path, entries: list[dict], count: int | None = None) -> Path:
    """Write a zip archive of `entry`s, true or not. `count`: what its end claims, as zip64 where it is large."""
    body, directory = bytearray(), bytearray()
    for e in entries:
        shared = struct.pack(
            "<HHHHHIIIHH", 20, 0x800, e["method"], 0, 33, e["crc"], e["packed"], e["size"], len(e["name"]), 0
        )
        offset = e.get("offset", len(body))
        directory += (
            b"PK\1\2" + struct.pack("<H", 0x314) + shared + struct.pack("<HHHII", 0, 0, 0, e["mode"] << 16, offset)
        )
        directory += e["name"]
        if "offset" not in e:
            body += b"PK\3\4" + shared + e["name"] + e["data"]
    n = len(entries) if count is None else count
    end, small = b"", min(n, 0xFFFF)
    if n > 0xFFFF:
        end += b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, n, n, len(directory), len(body))
        end += b"PK\6\7" + struct.pack("<IQI", 0, len(body) + len(directory), 1)
    end += b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, small, small, len(directory), len(body), 0)
    path.write_bytes(body + directory + end)
    return path


def tar_header(name: str, size: int, kind: bytes = b"0") -> bytes:
    """Any size: above 8 GiB as base 256."""
    number = b"%011o\0" % size if size < 8**11 else b"\x80" + size.to_bytes(11, "big")
    fields = [name.encode().ljust(100, b"\0"), b"0000644\0", bytes(8), bytes(8), number, b"%011o\0" % 0, b" " * 8, kind]
    header = b"".join(fields).ljust(257, b"\0") + b"ustar\00000"
    header = header.ljust(512, b"\0")
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]
