"""Archives as one set: order, labels, damage, and what may not be taken silently."""

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vaegan.config import ConfigError, DataConfig
from vaegan.data import load_data
from vaegan.data.files import open_folder
from vaegan.data.shards import open_files, open_shards, open_tar


def png(value: int, size=(8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size, value).save(buffer, "png")
    return buffer.getvalue()


def tar(path: Path, members: dict[str, bytes], form=tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def pack(path: Path, members: dict[str, bytes]) -> Path:
    if path.suffix == ".tar":
        return tar(path, members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def samples(*values: int, **extensions) -> dict[str, bytes]:
    """Members as webdataset writes them: `000007.png` filled with 7 and, of each extension, what a function gives."""
    members = {}
    for value in values:
        members[f"{value:06d}.png"] = png(value)
        members |= {f"{value:06d}.{extension}": text(value) for extension, text in extensions.items()}
    return members


def cls(value: int) -> bytes:
    return b"%d\n" % (value % 3)


def values(images) -> list[int]:
    return [int(images.native(row)[0, 0, 0]) for row in range(len(images))]


def fails(path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        open_files("source", path)
    line = str(error.value)
    assert line.startswith("source: ") and "\n" not in line
    return line


def test_shards_are_one_set_in_order_of_archive_then_entry(tmp_path):
    tar(tmp_path / "b.tar", {"./5.png": png(5), "4.png": png(4), "note.txt": b"x", "4.json": b"{}"})
    pack(tmp_path / "a.zip", {"x/9.png": png(9), "x/8.png": png(8)})
    tar(tmp_path / ".hidden.tar", {"7.png": png(7)})
    (tmp_path / "index.txt").write_text("x")
    images = open_shards("source", tmp_path)
    assert images.names == ["a.zip/x/8.png", "a.zip/x/9.png", "b.tar/4.png", "b.tar/5.png"]
    assert values(images) == [8, 9, 4, 5] and images.labels is None
    assert images.read("b.tar/5.png") == png(5) and images.stamps[2] == (len(png(4)),)
    assert values(images.subset(torch.tensor([2, 0]))) == [4, 8]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden.tar", "a.zip", "b.tar", "index.txt"]


def test_images_of_a_folder_go_before_its_archives(tmp_path):
    tar(tmp_path / "a.tar", samples(1, 2))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "z.png").write_bytes(png(9))
    images = open_files("source", tmp_path)
    assert images.names == ["deep/z.png"] and images.digest == open_folder("source", tmp_path).digest


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_of_any_form_is_read_whole(tmp_path, form):
    names = ["a.png", "d/" + "n" * 90 + ".png", "d/ümlaut.png"] + ["d/" + "n" * 150 + ".png"] * (form > 0)
    path = tar(tmp_path / "it.TAR", {name: png(i) for i, name in enumerate(names)}, form)
    images = open_files("source", path)
    assert images.names == sorted(names) and sorted(values(images)) == list(range(len(names)))
    assert images.where == f"source: {path}"


def test_training_takes_shards_and_a_tar(tmp_path):
    for shard in range(3):
        tar(tmp_path / f"{shard:03d}.tar", samples(*range(10 * shard, 10 * shard + 10), cls=cls))
    config = DataConfig(source=str(tmp_path), image_size=8, val_fraction=0.2)
    train, val = load_data(config)
    assert len(train) == 24 and len(val) == 6
    for part in (train, val):
        assert (part.pixels[:, 0, 0, 0] % 3).tolist() == part.labels.tolist()
    streamed, _ = load_data(DataConfig(source=str(tmp_path), image_size=8, val_fraction=0.2, storage="stream"))
    sent = pickle.loads(pickle.dumps(streamed))  # as spawned workers receive it
    assert torch.equal(sent.batch(torch.arange(24)), train.pixels) and sent.fingerprint == train.fingerprint
    alone, none = load_data(DataConfig(source=str(tmp_path / "001.tar"), image_size=8, val_fraction=0))
    assert alone.pixels[:, 0, 0, 0].tolist() == list(range(10, 20)) and none is None


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_labels_of_dataset_json_are_joined(tmp_path, kind):
    for shard, classes in ((0, [3, 1]), (1, [2, 0])):
        manifest = {
            "labels": [[f"{10 * shard + i:06d}.png", c] for i, c in enumerate(classes)],
            "classes": list("abcd"),
        }
        members = samples(10 * shard, 10 * shard + 1) | {"dataset.json": json.dumps(manifest).encode()}
        pack(tmp_path / f"{shard}.{kind}", members)
    images = open_shards("source", tmp_path)
    assert images.labels.tolist() == [3, 1, 2, 0] and images.classes == list("abcd")


def test_labels_of_class_folders_count_over_all_shards(tmp_path):
    tar(tmp_path / "0.tar", {"cat/0.png": png(0), "cat/1.png": png(1)})
    pack(tmp_path / "1.zip", {"dog/2.png": png(2), "ant/3.png": png(3)})
    images = open_shards("source", tmp_path)
    assert images.names[2:] == ["1.zip/ant/3.png", "1.zip/dog/2.png"]
    assert images.labels.tolist() == [1, 1, 0, 2] and images.classes == ["ant", "cat", "dog"]


def test_numbers_of_some_images_are_no_labels(tmp_path):
    tar(tmp_path / "0.tar", samples(0, 1, cls=cls))
    assert open_shards("source", tmp_path).labels.tolist() == [0, 1]
    tar(tmp_path / "1.tar", samples(2, cls=cls) | samples(3))
    assert open_shards("source", tmp_path).labels is None
    tar(tmp_path / "1.tar", samples(2, cls=cls) | {"000002.seg.png": png(3)})  # of the same sample, without a number
    assert open_shards("source", tmp_path).labels is None


def test_names_with_dots_keep_their_own_numbers(tmp_path):
    members = {"a.1.png": png(1), "a.1.cls": b"1", "a.2.png": png(2), "a.2.cls": b"2"}
    assert open_tar("source", tar(tmp_path / "it.tar", members)).labels.tolist() == [1, 2]


@pytest.mark.parametrize("text", [b"cat", b"-1", b"1.5", b"", b"9" * 19, b"1 2"])
def test_a_class_that_is_no_number_is_named(tmp_path, text):
    line = fails(tar(tmp_path / "it.tar", samples(4, cls=lambda _: text)))
    assert "it.tar/000004.cls must hold a class's number, got b'" in line and "remove it" in line


@pytest.mark.parametrize("cut", [0, 100, 511, 512, 700, 1024, 1500, 2048, 2560, 2561, 3072, 3073, 3583])
def test_a_truncated_tar_is_refused_wherever_it_ends(tmp_path, cut):
    """Also between two members, and after the last one: 3072 bytes are three headers and three images."""
    path = tar(tmp_path / "it.tar", {f"{i}.png": png(i) for i in range(3)})
    data = path.read_bytes()
    assert len(data) == 10240 and not data[3072:].strip(b"\0")
    path.write_bytes(data[:4096])  # two blocks of zeros are enough
    assert values(open_files("source", path)) == [0, 1, 2]
    path.write_bytes(data[:cut])
    tar(tmp_path / "a.tar", samples(9))
    assert fails(path).startswith(f"source: {path} is truncated, damaged or no tar archive (")
    assert fails(tmp_path).startswith(f"source: {path} is truncated")


def test_a_negative_size_is_no_circle(tmp_path):
    path = tar(tmp_path / "it.tar", {f"{i}.png": png(i) for i in range(3)})
    data = bytearray(path.read_bytes())
    data[1024 + 124 : 1024 + 136] = (-2048).to_bytes(12, "big", signed=True)  # leads to the first header
    data[1024 + 148 : 1024 + 156] = b" " * 8
    data[1024 + 148 : 1024 + 156] = b"%06o\0 " % sum(data[1024:1536])
    path.write_bytes(data)
    assert "it.tar is truncated, damaged or no tar archive (" in fails(path)


def test_a_damaged_header_does_not_end_the_set_early(tmp_path):
    path = tar(tmp_path / "it.tar", {f"{i}.png": png(i) for i in range(3)})
    data = bytearray(path.read_bytes())
    data[1024 + 150] ^= 1  # in the checksum of the second header, where tarfile itself sees the archive's end
    path.write_bytes(data)
    with tarfile.open(path) as archive:
        assert len(archive.getnames()) == 1
    assert "no end of the archive at byte 1024" in fails(path)


def test_what_follows_the_end_is_not_lost_silently(tmp_path):
    first, second = (tar(tmp_path / f"{i}.tar", {f"{i}.png": png(i)}) for i in range(2))
    first.write_bytes(first.read_bytes() + second.read_bytes())
    assert "no end of the archive" in fails(first)
    second.write_bytes(second.read_bytes() + bytes(2 << 20))  # a download into reserved space
    assert "no end of the archive" in fails(second)


def test_random_damage_gives_one_line_or_whole_images(tmp_path):
    rng = np.random.default_rng(0)
    path = tar(tmp_path / "it.tar", samples(*range(4), cls=cls) | {"ü" * 120 + ".png": png(9)})
    whole = path.read_bytes()
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        header = 512 * rng.integers(0, 20)
        for place in header + rng.integers(0, 345, 2):
            data[place] = rng.choice([0, 32, 48, 55, 128, 255, rng.integers(256)])
        if rng.random() < 0.8:  # with a checksum that holds, so that tarfile believes the rest
            data[header + 148 : header + 156] = b" " * 8
            data[header + 148 : header + 156] = b"%06o\0 " % sum(data[header : header + 512])
        path.write_bytes(data)
        try:
            images = open_files("source", path)
            for row in range(len(images)):
                images.native(row)
        except ConfigError as error:
            refused += 1
            assert "\n" not in str(error) and "it.tar" in str(error)
    assert refused > 50


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE]
)
def test_an_image_that_is_no_regular_file_is_refused(tmp_path, kind):
    path = tmp_path / "it.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in samples(1).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        folder, member = tarfile.TarInfo("folder.png"), tarfile.TarInfo("other.png")
        folder.type, member.type, member.linkname = tarfile.DIRTYPE, kind, "/etc/passwd"
        archive.addfile(folder)
        archive.addfile(member)
    assert "it.tar/other.png is a link or no regular file; pack the images themselves" in fails(path)


def test_names_out_of_the_archive_are_refused_and_lead_nowhere(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "0.png").write_bytes(png(200))
    for name in ("../0.png", str(tmp_path / "0.png")):
        path = tar(tmp_path / "set" / "it.tar", {name: png(1), "3.png": png(3)})
        assert f"it.tar has an entry named {name!r}, with .., an absolute path" in fails(path)
        assert fails(path.parent) == fails(path)
    assert (tmp_path / "0.png").read_bytes() == png(200)


@pytest.mark.parametrize("name", ["it.tar.gz", "it.tgz", "it.TAR.BZ2", "it.tar.zst"])
def test_compressed_archives_are_refused_by_name(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(tar(tmp_path / "plain.tar", samples(1)).read_bytes()))
    line = f"source: {path} is a compressed tar archive, of which no image can be read by itself; unpack it"
    assert fails(path).startswith(line) and fails(tmp_path).startswith(line)  # not left out beside plain.tar


def test_compression_under_a_plain_name_and_other_files_are_refused(tmp_path):
    path = tar(tmp_path / "it.tar", samples(1))
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert "it.tar is truncated, damaged or no tar archive (" in fails(path)
    path.write_bytes(pack(tmp_path / "it.zip", samples(1)).read_bytes())
    assert "it.tar is truncated, damaged or no tar archive (" in fails(path)


def test_archives_without_images_are_named(tmp_path):
    tar(tmp_path / "a.tar", samples(1))
    for name in ("b.tar", "b.zip"):
        empty = pack(tmp_path / name, {"note.txt": b"x"})
        assert fails(tmp_path).startswith(f"source: {empty} holds no images (looked for .png")
        empty.unlink()
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.tar").rename(tmp_path / "deep" / "a.tar")
    assert fails(tmp_path).startswith(f"source: {tmp_path} holds no images (looked for .png")


def test_a_damaged_image_is_named_with_its_archive(tmp_path):
    path = tar(tmp_path / "a.tar", samples(1) | {"000002.png": png(2)[:-20]})
    images = open_shards("source", tmp_path)
    reason = f"^source: {tmp_path}/a.tar/000002.png cannot be decoded as an image"
    with pytest.raises(ConfigError, match=reason):
        images.native(1)
    with pytest.raises(ConfigError, match=reason):
        images.images([0, 1], 8, 1, "crop")
    path.write_bytes(path.read_bytes()[:600])  # since it was opened
    with pytest.raises(ConfigError, match=r"a.tar/000002.png cannot be read \(the archive is truncated\)"):
        images.native(1)
    path.unlink()
    with pytest.raises(ConfigError, match=r"a.tar/000001.png cannot be read"):
        images.native(0)
