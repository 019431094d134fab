"""Bombs, lies and ways out: each is refused in one line, in under a second and under 200 MB, whatever it claims."""

import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import hostile_data as bad
import numpy as np
import pytest
from hostile_data import entry, zipped
from PIL import Image

from vaegan.config import ConfigError, DataConfig
from vaegan.data import decode_file, load_data
from vaegan.data.decode import decode_array
from vaegan.data.labels import labels_of
from vaegan.data.limits import MOST_BYTES, MOST_PIXELS
from vaegan.data.shards import open_files

GIB, MIB = 1 << 30, 1 << 20
WORKER = Path(__file__).with_name("hostile_data_worker.py")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux counts it")


def attempts(paths: list[Path]) -> list[dict]:
    """What became of each set, loaded in a process of its own."""
    done = subprocess.run([sys.executable, WORKER, *paths], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def require_refused(cases: dict[str, tuple[Path, str]]) -> None:
    """Each path's error begins with the field, is one line, quick and small, and says what was expected."""
    for (name, (_, reason)), found in zip(cases.items(), attempts([path for path, _ in cases.values()]), strict=True):
        assert found["error"] is not None, name
        assert found["error"].startswith("data.source") and "\n" not in found["error"] and reason in found["error"], (
            name, found["error"],
        )  # fmt: skip
        assert found["seconds"] < 1 and found["megabytes"] < 200, (name, found)


def text_bombs() -> dict[str, bytes]:
    packed = bad.zlib_zeros(GIB)
    return {
        "zTXt": bad.png(before=bad.chunk(b"zTXt", b"Comment\0\0" + packed)),
        "iTXt": bad.png(before=bad.chunk(b"iTXt", b"Comment\0\1\0\0\0" + packed)),
        "iCCP": bad.png(before=bad.chunk(b"iCCP", b"profile\0\0" + packed)),
        "many zTXt": bad.png(before=bad.chunk(b"zTXt", b"Comment\0\0" + bad.zlib_zeros(MIB)) * 2000),
    }


PIXELS, DENSE = "pixels, more than 89478485", "a decompression bomb"
TAGS = "(tags of "
IMAGES = {
    "png huge": (lambda: bad.png(bad.HUGE, b"x"), "exceeds limit"),
    "png above": (lambda: bad.png(bad.ABOVE, b"x"), PIXELS),
    "png below": (lambda: bad.png(bad.BELOW), DENSE),
    "png below, colour": (lambda: bad.png(bad.BELOW, bad.zlib_zeros(244 * MIB), colour=2), DENSE),
    "png without data": (lambda: bad.png(bad.BELOW, b"x"), DENSE),
    "png of gigabytes": (lambda: bad.png(pixels=bad.zlib_zeros(4 * GIB)), "bytes for 8 x 8 pixels, " + DENSE),
    "jpeg huge": (lambda: bad.jpeg((65500, 65500)), "exceeds limit"),
    "jpeg above": (lambda: bad.jpeg(bad.ABOVE), PIXELS),
    "jpeg below": (lambda: bad.jpeg(bad.BELOW), DENSE),
    "jpeg of scans": (lambda: bad.jpeg_of_scans((2000, 2000), 20000), "more than 100 scans"),
    "gif huge": (lambda: bad.gif((65535, 65535)), "exceeds limit"),
    "gif above": (lambda: bad.gif(bad.ABOVE), PIXELS),
    "gif below": (lambda: bad.gif(bad.BELOW), DENSE),
    "gif frame": (lambda: bad.gif_frame((65535, 65535)), "exceeds limit"),
    "bmp huge": (lambda: bad.bmp(bad.HUGE), "exceeds limit"),
    "bmp above": (lambda: bad.bmp(bad.ABOVE), PIXELS),
    "bmp below": (lambda: bad.bmp(bad.BELOW), DENSE),
    "bmp run lengths": (lambda: bad.bmp(bad.BELOW, 1, b"\0\2\xff\xff" * 4000), DENSE),
    "tiff huge": (lambda: bad.tiff(bad.grey_tiff(bad.HUGE)), "exceeds limit"),
    "tiff above": (lambda: bad.tiff(bad.grey_tiff(bad.ABOVE)), PIXELS),
    "tiff below": (lambda: bad.tiff(bad.grey_tiff(bad.BELOW)), DENSE),
    "png of chunks": (lambda: bad.png(before=bad.chunk(b"teSt", b"") * 500_000), "more than 50000 chunks"),
    "jpeg tags": (lambda: bad.jpeg_of_tags(5000), TAGS),
    "png tags": (lambda: bad.png(before=bad.chunk(b"eXIf", bad.shared_tags(9000, 1 << 20))), TAGS),
    "png tags behind": (lambda: bad.png(behind=bad.chunk(b"eXIf", bad.shared_tags(9000, 1 << 20))), TAGS),
    "png tags as text": (lambda: bad.png(behind=bad.chunk(b"tEXt", bad.profile(bad.shared_tags(9000, 1 << 18)))), TAGS),
    "webp tags": (lambda: bad.encoded("WEBP", exif=b"Exif\0\0" + bad.shared_tags(9000, 1 << 20)), TAGS),
    "tiff tags": (
        lambda: bad.tiff(bad.grey_tiff((4, 4), 8, 16), more=bad.shared_entries(9000), data=bytes(1 << 20)),
        TAGS,
    ),
    "tiff numbers": (lambda: bad.shared_tags(1, 8 << 20, kind=4), TAGS),
    "tiff tile": (lambda: bad.tiled_tiff(40000, bad.zlib_zeros(1600 * MIB)), ""),
    "tiff dense tile": (lambda: bad.tiled_tiff(9008, bad.zlib_zeros(80 * MIB)), DENSE),
    "tiff strip out of the file": (
        lambda: bad.tiff(bad.grey_tiff((64, 64), 4_000_000_000, 4_000_000_000)),
        "cannot be",
    ),
    "webp huge": (lambda: bad.webp((16383, 16383)), "exceeds limit"),
    "webp above": (lambda: bad.webp(bad.ABOVE), PIXELS),
    "webp below": (lambda: bad.webp(bad.BELOW), DENSE),
    "webp canvas": (lambda: bad.webp_canvas((16383, 16383)), "cannot be decoded"),
}


@needs_linux
def test_image_bombs_are_refused_quickly_and_cheaply(tmp_path):
    makers = {name: (make(), reason) for name, (make, reason) in IMAGES.items()}
    makers |= {name: (data, "cannot be decoded as an image (") for name, data in text_bombs().items()}
    cases = {}
    for place, (name, (data, reason)) in enumerate(makers.items()):
        folder = tmp_path / str(place)
        folder.mkdir()
        (folder / "bomb.png").write_bytes(data)  # the content decides, not the name
        cases[name] = (folder, reason)
    require_refused(cases)


def archive_bombs(root: Path) -> dict[str, tuple[Path, str]]:
    image, gigabyte, less = bad.encoded("PNG"), bad.zeros(GIB), bad.zeros(100 * MIB)
    packed = {"method": 8, "size": GIB, "packed": len(gigabyte)}
    nested = b'{"labels": ' + b"[" * 900_000
    claims = "it claims 5000000 entries in"
    sparse = root / "pax.tar"
    sparse.write_bytes(bad.tar_header("a", 5 * GIB, b"x"))
    os.truncate(sparse, 5 * GIB + 10240)
    large = root / "member.tar"
    large.write_bytes(bad.tar_header("a.png", 3 * GIB))
    os.truncate(large, 3 * GIB + 10240)
    claimed = root / "claimed.tar"
    claimed.write_bytes(bad.tar_header("a.png", 1 << 62) + image + bytes(10240))
    texts = root / "texts.tar"
    texts.write_bytes(bad.tar_header("dataset.json", 3 * GIB))
    os.truncate(texts, 3 * GIB + 512)
    with open(texts, "ab") as file:
        file.write(bad.tar_header("a.png", len(image)) + image.ljust(512, b"\0") + bytes(10240))
    zips = {
        "size": ([entry("a.png", gigabyte, **packed)], f"a.png has {GIB} bytes, above the limit"),
        "ratio": ([entry("a.png", less, method=8, size=100 * MIB, packed=len(less))], "a zip bomb"),
        "claims less": ([entry("a.png", gigabyte, **packed | {"size": 100})], "its CRC does not match"),
        "claims nothing": ([entry("a.png", gigabyte, **packed | {"size": 0})], "its CRC does not match"),
        "claims more": ([entry("a.png", image, size=len(image) + 9)], "its CRC does not match"),
        "beyond the end": ([entry("a.png", image, packed=3 * GIB, size=3 * GIB)], "beyond the archive's end"),
        "labels": ([entry("a.png", image), entry("dataset.json", gigabyte, **packed)], "dataset.json has 1073741824"),
        "labels lie": ([entry("a.png", image), entry("dataset.json", gigabyte, **packed | {"size": 9})], "CRC"),
        "labels nest": ([entry("a.png", image), entry("dataset.json", nested)], "no usable labels"),
        "overlap": (
            [entry("a.png", image + bytes(999))] + [entry(f"{i}.png", image, offset=0) for i in range(9)],
            "overlaps",
        ),
        "few listed": ([entry("a.png", image)] * 2, "it claims 1 entries and lists 2", 1),
        "millions": ([entry("a.png", image)], claims, 5_000_000),
    }
    written = {name: (zipped(root / f"{name}.zip", *rest), reason) for name, (entries, reason, *count) in zips.items()
               for rest in [(entries, *count)]}  # fmt: skip
    return {
        **written,
        "tar header": (sparse, "a header of 5368709120 bytes"),
        "tar member": (large, "a.png has 3221225472 bytes"),
        "tar claim": (claimed, "is truncated, damaged"),
        "tar labels": (texts, "dataset.json has 3221225472 bytes"),
    }


@needs_linux
def test_archive_bombs_are_refused_quickly_and_cheaply(tmp_path):
    require_refused(archive_bombs(tmp_path))


@needs_linux
def test_files_that_are_no_ordinary_images_are_refused_or_passed_over(tmp_path):
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "a.png").touch()
    os.truncate(tmp_path / "large" / "a.png", 100 * GIB)  # it takes no room on disk
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.png").write_bytes(bad.encoded("PNG"))
    (tmp_path / "labels" / "dataset.json").touch()
    os.truncate(tmp_path / "labels" / "dataset.json", 100 * GIB)
    (tmp_path / "zeros").mkdir()
    (tmp_path / "zeros" / "a.png").symlink_to("/dev/zero")
    require_refused({
        "large": (tmp_path / "large", f"a.png has {100 * GIB} bytes, above the limit of {MOST_BYTES}"),
        "labels": (tmp_path / "labels", f"dataset.json has {100 * GIB} bytes"),
        "device": (tmp_path / "zeros", "is a symbolic link"),
    })  # fmt: skip


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        open_files("source", path)
    assert "\n" not in str(error.value) and str(error.value).startswith(f"source: {path}")
    return str(error.value)


NAMES = [
    "../a.png", "x/../../a.png", "x/..", "/a.png", "/etc/a.png", "C:/a.png", "c:a.png", "x\\a.png", "..\\a.png",
    "a\0.png", "a\n.png", "\x1b[2Ja.png",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_lead_out_of_an_archive_are_refused(tmp_path, name, kind):
    """Also of a file that is no image: nothing is extracted, but such an archive was made for no good."""
    image, path = bad.encoded("PNG"), tmp_path / f"it.{kind}"
    for odd in (name, name.replace(".png", ".txt")):
        if kind == "zip":
            zipped(path, [entry("fine.png", image), entry(odd, image)])
        else:
            with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
                for member_name in ("fine.png", odd):
                    member = tarfile.TarInfo(member_name)
                    member.size = len(image)
                    if "\0" in member_name:  # a header's name would end there; that of a pax record does not
                        member.name, member.pax_headers = "x", {"path": member_name}
                    archive.addfile(member, io.BytesIO(image))
        line = refused(path)
        assert f"has an entry named {ascii(odd)}, with" in line and "pack it again" in line


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_ordinary_names_are_taken(tmp_path, kind):
    names = ["..a.png", "a..png", "x/...png", "ü/ö ä.png", "ab:c.png", "x/c:.png", "-rf.png", "~.png"]
    path, image = tmp_path / f"it.{kind}", bad.encoded("PNG")
    if kind == "zip":
        zipped(path, [entry(name, image) for name in names])
    else:
        with tarfile.open(path, "w") as archive:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = len(image)
                archive.addfile(member, io.BytesIO(image))
    visible = sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))
    assert open_files("source", path).names == visible and len(visible) == 6


def test_a_link_in_a_zip_is_refused(tmp_path):
    path = zipped(tmp_path / "it.zip", [entry("a.png", b"/etc/passwd", mode=0o120777)])
    assert "it.zip/a.png is a link; pack the images themselves" in refused(path)


def test_archives_in_archives_are_no_images(tmp_path):
    inner = zipped(tmp_path / "inner.zip", [entry("../bomb.png", bad.zeros(MIB), method=8, size=GIB)])
    image = bad.encoded("PNG")
    path = zipped(tmp_path / "it.zip", [entry("inner.zip", inner.read_bytes()), entry("a.png", image)])
    assert open_files("source", path).names == ["a.png"]


def test_an_archive_of_more_than_65535_entries_is_taken(tmp_path):
    """Written with zip64 records, whose number of entries is compared with those listed."""
    path = zipped(tmp_path / "it.zip", [entry(f"{i}.png", b"") for i in range(65540)], 65540)
    assert len(open_files("source", path)) == 65540
    zipped(path, [entry(f"{i}.png", b"") for i in range(65540)], 65541)
    assert "it claims 65541 entries and lists 65540" in refused(path)


def test_random_damage_to_a_zip_gives_one_line_or_whole_images(tmp_path):
    rng = np.random.default_rng(0)
    images = {f"{i}.png": bad.encoded("PNG", colour=(i, i, i)) for i in range(3)}
    path = zipped(tmp_path / "it.zip", [entry(name, data) for name, data in images.items()])
    whole, taken = path.read_bytes(), 0
    tail = sum(len(data) + 35 for data in images.values())  # before the directory
    for _ in range(600):
        data = bytearray(whole)
        first = tail if rng.random() < 0.7 else 0
        for place in rng.integers(first, len(data), 2):
            data[place] = rng.choice([0, 1, 8, 255, rng.integers(256)])
        path.write_bytes(data if rng.random() < 0.9 else data[: rng.integers(len(data))])
        try:
            found = open_files("source", path)
            read = [found.encoded(row) for row in range(len(found))]
        except ConfigError as error:
            assert "\n" not in str(error) and "it.zip" in str(error)
            continue
        taken += 1
        assert all(data in images.values() for data in read)
    assert 20 < taken < 580


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_not_waited_for(tmp_path):
    (tmp_path / "a.png").write_bytes(bad.encoded("PNG"))
    for name in ("b.png", "dataset.json", "shard.zip"):
        os.mkfifo(tmp_path / name)
    problems = []

    def look() -> None:
        problems.append(len(load_data(DataConfig(source=str(tmp_path), image_size=8, val_fraction=0))[0]))
        for path in (tmp_path / "b.png", tmp_path / "shard.zip"):
            for attempt in (lambda: decode_file(path, 8, 3, "crop"), lambda: load_data(DataConfig(source=str(path)))):
                try:
                    attempt()
                except ConfigError as error:
                    problems.append(str(error))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive() and problems[0] == 1 and len(problems) == 5


FIRST_OF_MANY = [
    lambda: bad.gif((4, 4), 50_000),
    lambda: bad.tiff(bad.grey_tiff((4, 4), 8, 16), copies=50_000),
    lambda: bad.tiff(bad.grey_tiff((4, 4), 8, 16), following=8),
]


@pytest.mark.parametrize("frames", FIRST_OF_MANY)
def test_of_many_frames_only_the_first_is_looked_at(frames, monkeypatch):
    """Their number is no bomb, as nothing follows them: neither the chain of directories nor a circle in it."""
    from PIL import GifImagePlugin, TiffImagePlugin

    for plugin in (GifImagePlugin.GifImageFile, TiffImagePlugin.TiffImageFile):
        monkeypatch.setattr(plugin, "seek", None)
    assert decode_array(frames(), "it").shape[:2] == (4, 4)


def test_large_photographs_are_no_bombs():
    """12 megapixels of noise, and of a drawing, of a few bytes a pixel and some dozen pixels a byte."""
    size = (4000, 3000)
    noise = Image.effect_noise((1000, 750), 30).resize(size)
    for image, kind in ((noise, "JPEG"), (noise.point(lambda value: 255 * (value > 128)), "GIF")):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        assert decode_array(buffer.getvalue(), "it").shape[:2] == size[::-1]


def test_the_limit_of_pixels_is_pillows_and_an_error_here(monkeypatch):
    assert MOST_PIXELS == Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as many programs set it
    for data in (bad.png(bad.HUGE, b"x"), bad.gif((65535, 65535)), bad.bmp(bad.HUGE)):
        with pytest.raises(ConfigError, match="pixels, more than 89478485"):
            decode_array(data, "it")


def test_formats_that_start_programs_are_not_opened(monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("a program would be started"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    assert Image.open(io.BytesIO(eps)).format == "EPS"
    with pytest.raises(ConfigError, match="unknown format"):
        decode_array(eps, "it")


LABELS = [
    "[" * 200_000, '{"labels": {"a.png": %d}}' % 2**70, '{"labels": [["a.png", NaN]]}', '{"labels": {"a.png": true}}',
    '{"labels": {"a.png": 1' + "0" * 5000 + "}}", '{"labels": {"a.png": 0}, "classes": 3}', '{"labels": [[[1], 0]]}',
    '"labels"', "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("text", LABELS)
def test_labels_of_any_kind_are_one_line(text):
    with pytest.raises(ConfigError, match="^it/dataset.json has no usable labels") as error:
        labels_of(["a.png"], text.encode("utf-8", "surrogatepass"), "it")
    assert "\n" not in str(error.value)


def test_a_name_that_would_break_a_line_is_written_out(tmp_path):
    (tmp_path / "a\nerror: b.png").write_bytes(b"x")
    with pytest.raises(ConfigError) as error:
        load_data(DataConfig(source=str(tmp_path), image_size=8, val_fraction=0))
    assert r"a\nerror: b.png cannot be decoded" in str(error.value) and "\n" not in str(error.value)
