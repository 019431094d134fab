"""Sources: what is found in folders, archives and named sets, how it is split, and what a mistake answers."""

import gzip
import http.client
import json
import pickle
import urllib.error
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from vaegan.config import ConfigError, DataConfig
from vaegan.data import load_data
from vaegan.data import named as named_module
from vaegan.data.decode import to_square
from vaegan.data.files import open_folder
from vaegan.data.images import open_splits

PARTS = (("cat/", ".png"), ("dog/deep/", ".PNG"))  # of class_folders
CIFAR = Path(__file__).parents[1].parent / "shared" / "data" / "cifar10-jpeg-train.zip"


def write(path: Path, value: int, size=(8, 8), mode="L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value,) * 3).save(path)


def class_folders(root: Path, per_class=3) -> Path:
    """Images 0, 1, 2 … in cat/ and 10, 11, 12 … in dog/, each filled with its number."""
    for i in range(per_class):
        write(root / "cat" / f"{i}.png", i)
        write(root / "dog" / "deep" / f"{i}.PNG", 10 + i)
    return root


def pack(folder: Path, path: Path, compression=zipfile.ZIP_STORED, manifest=None) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, file.relative_to(folder).as_posix())
        if manifest is not None:
            archive.writestr("dataset.json", manifest if isinstance(manifest, str) else json.dumps(manifest))
    return path


def config(source, **values) -> DataConfig:
    return DataConfig(**{"source": str(source), "image_size": 8, "val_fraction": 0, **values})


def values(images) -> list[int]:
    """The number that each image is filled with."""
    batch = images.batch(torch.arange(len(images)))
    assert (batch == batch[:, :1, :1, :1]).all()
    return batch[:, 0, 0, 0].tolist()


def fails(source, **settings) -> str:
    with pytest.raises(ConfigError) as error:
        load_data(config(source, **settings))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_class_subfolders_become_labels(tmp_path):
    images, val = load_data(config(class_folders(tmp_path)))
    assert values(images) == [0, 1, 2, 10, 11, 12] and val is None
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1] and images.labels.dtype == torch.int64
    assert images.classes == ["cat", "dog"] and images.in_memory


def test_flat_folder_is_sorted_and_skips_what_is_no_image(tmp_path):
    for i, name in enumerate(["b.png", "a.BMP", "c.gif"]):
        write(tmp_path / name, 10 * i)
    (tmp_path / "readme.txt").write_text("x")
    write(tmp_path / ".hidden.png", 200)
    write(tmp_path / ".cache" / "d.png", 201)
    images, _ = load_data(config(tmp_path))
    assert values(images) == [10, 0, 20] and images.labels is None and images.classes is None


def test_a_folder_around_the_classes_is_no_class(tmp_path):
    class_folders(tmp_path / "train")
    images, _ = load_data(config(tmp_path))
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1] and images.classes == ["cat", "dog"]
    write(tmp_path / "stray.png", 99)
    assert load_data(config(tmp_path))[0].labels is None


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_zip_equals_its_folder(tmp_path, compression, storage):
    folder = class_folders(tmp_path / "folder")
    write(folder / "__MACOSX" / "cat" / "0.png", 99)
    archive = pack(folder, tmp_path / "it.zip", compression)
    (folder / "__MACOSX" / "cat" / "0.png").unlink()
    images, _ = load_data(config(archive, storage=storage))
    assert values(images) == values(load_data(config(folder))[0]) == [0, 1, 2, 10, 11, 12]
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1] and images.in_memory == (storage == "memory")


@pytest.mark.parametrize("as_dict", [False, True])
def test_dataset_json_gives_labels(tmp_path, as_dict):
    folder = class_folders(tmp_path / "folder", per_class=2)
    labels = {"cat/0.png": 4, "cat/1.png": 0, "dog/deep/0.PNG": 2, "dog/deep/1.PNG": 4}
    manifest = {"labels": labels if as_dict else [list(pair) for pair in labels.items()], "classes": list("abcde")}
    images, _ = load_data(config(pack(folder, tmp_path / "it.zip", manifest=manifest)))
    assert images.labels.tolist() == [4, 0, 2, 4] and images.classes == list("abcde")
    (folder / "dataset.json").write_text(json.dumps(manifest))
    assert load_data(config(folder))[0].labels.tolist() == [4, 0, 2, 4]


def test_dataset_json_without_labels_overrides_folders(tmp_path):
    archive = pack(class_folders(tmp_path / "folder"), tmp_path / "it.zip", manifest={"labels": None})
    assert load_data(config(archive))[0].labels is None


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ("{", "Expecting"),
        ({"labels": [["cat/0.png", 1]]}, "no label for 'cat/1.png'"),
        ({"labels": {f"{c}{i}{e}": 0.5 for c, e in PARTS for i in range(3)}}, "must be whole numbers from 0"),
        ({"labels": {f"{c}{i}{e}": -1 for c, e in PARTS for i in range(3)}}, "must be whole numbers from 0"),
        ({"labels": {f"{c}{i}{e}": 2 for c, e in PARTS for i in range(3)}, "classes": ["a"]}, "2 for 1 classes"),
        ([1, 2], "no usable labels"),
    ],
)
def test_bad_dataset_json_is_named(tmp_path, manifest, reason):
    line = fails(pack(class_folders(tmp_path / "folder"), tmp_path / "it.zip", manifest=manifest))
    assert line.startswith("data.source: ") and "it.zip/dataset.json" in line and reason in line and "remove" in line


def test_missing_source_names_it_and_a_near_name(tmp_path):
    assert "did you mean cifar10?" in fails("cifar-10") and "'cifar-10'" in fails("cifar-10")
    assert "did you mean mnist?" in fails("MNIST")
    line = fails(tmp_path / "nowhere")
    assert line.startswith("data.source") and "nowhere" in line and "flowers102" in line
    write(tmp_path / "a" / "a.png", 1)
    assert fails(tmp_path / "a", val_source="nope").startswith("data.val_source 'nope'")


def test_empty_folder_and_archive_name_the_extensions(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("x")
    archive = pack(tmp_path / "empty", tmp_path / "it.zip")
    for source in (tmp_path / "empty", archive):
        line = fails(source)
        assert str(source) in line and ".png .jpg .jpeg" in line and ".tiff" in line


def test_a_file_that_is_no_zip(tmp_path):
    (tmp_path / "data.npz").write_bytes(b"something else")
    assert "data.npz is damaged or no zip archive" in fails(tmp_path / "data.npz")


def test_a_damaged_archive_entry_is_named(tmp_path):
    archive = pack(class_folders(tmp_path / "folder"), tmp_path / "it.zip")
    data = bytearray(archive.read_bytes())
    data[data.index(b"IDAT") + 6] ^= 1
    archive.write_bytes(data)
    assert "it.zip/cat/0.png" in fails(archive) and "CRC" in fails(archive)


def test_an_unusual_archive_is_refused(tmp_path):
    archive = pack(class_folders(tmp_path / "folder"), tmp_path / "it.zip", zipfile.ZIP_LZMA)
    assert "it.zip/cat/0.png is encrypted or packed unusually" in fails(archive)


def test_a_truncated_archive_is_refused(tmp_path):
    archive = pack(class_folders(tmp_path / "folder"), tmp_path / "it.zip")
    archive.write_bytes(archive.read_bytes()[:-100])
    assert "it.zip is damaged or no zip archive" in fails(archive)


def test_a_file_that_vanishes_from_a_streaming_set_is_named(tmp_path):
    images, _ = load_data(config(many(tmp_path), storage="stream"))
    (tmp_path / "07.png").unlink()
    with pytest.raises(ConfigError, match="07.png cannot be read"):
        images.batch(torch.tensor([7]))


@pytest.mark.parametrize("packed", [False, True])
def test_a_streaming_set_can_be_sent_to_a_process(tmp_path, packed):
    folder = class_folders(tmp_path / "folder")
    images, _ = load_data(config(pack(folder, tmp_path / "it.zip") if packed else folder, storage="stream"))
    assert values(pickle.loads(pickle.dumps(images))) == [0, 1, 2, 10, 11, 12]  # as spawned workers receive it


def test_an_undecodable_file_is_named(tmp_path):
    class_folders(tmp_path)
    (tmp_path / "cat" / "1.png").write_text("text")
    reason = "cannot be decoded as an image (unknown format); remove or replace the file"
    assert fails(tmp_path) == f"data.source: {tmp_path}/cat/1.png {reason}"
    whole = (tmp_path / "cat" / "2.png").read_bytes()
    (tmp_path / "cat" / "1.png").write_bytes(whole[: len(whole) // 2])
    assert "cat/1.png cannot be decoded" in fails(tmp_path)


def test_images_at_their_own_sizes(tmp_path):
    for i, size in enumerate([(8, 8), (5, 9), (30, 3)]):
        write(tmp_path / f"{i}.png", i, size, mode="RGB" if i else "L")
    write(tmp_path / "3.png", 3)
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:-20])
    images = open_folder("images", tmp_path)
    shapes = [tuple(images.native(row).shape) for row in range(3)]
    assert shapes == [(1, 8, 8), (3, 9, 5), (3, 3, 30)] and images.native(2).unique().tolist() == [2]
    assert torch.equal(images.images([1, 0], 8, 3, "pad")[0], to_square(images.native(1), 8, "pad"))
    with pytest.raises(ConfigError, match=f"^images: {tmp_path}/3.png cannot be decoded as an image"):
        images.native(3)
    (tmp_path / "2.png").unlink()
    with pytest.raises(ConfigError, match="2.png cannot be read"):
        images.native(2)
    pixels = torch.arange(40, dtype=torch.uint8).view(2, 1, 4, 5)
    assert torch.equal(named_module.ArrayImages(pixels, None, None).native(1), pixels[1])


def test_opening_apart_from_decoding_gives_the_same_images(tmp_path):
    many(tmp_path / "set")
    settings = config(tmp_path / "set", val_fraction=0.25)
    for opened, decoded in zip(open_splits(settings), load_data(settings), strict=True):
        assert torch.equal(opened.images(range(len(opened)), 8, 1, "crop"), decoded.pixels)
    assert open_splits(config(tmp_path / "set"))[1] is None
    train, val = open_splits(config("mnist"))
    assert (len(train), len(val)) == (60000, 10000)
    assert len(open_splits(config("mnist", val_source=str(tmp_path / "set")))[1]) == 20


def test_links_inside_are_followed_and_links_out_refused(tmp_path):
    write(tmp_path / "set" / "a.png", 1)
    (tmp_path / "set" / "b.png").symlink_to("a.png")
    assert values(load_data(config(tmp_path / "set"))[0]) == [1, 1]
    (tmp_path / "link").symlink_to("set")  # the source itself may be a link
    assert values(load_data(config(tmp_path / "link"))[0]) == [1, 1]
    write(tmp_path / "other" / "c.png", 2)
    for name, target in (("c.png", "../other/c.png"), ("more", "../other"), ("loop", "."), ("gone.png", "gone")):
        (tmp_path / "set" / name).symlink_to(target)
        assert f"set/{name} is a symbolic link" in fails(tmp_path / "set")
        (tmp_path / "set" / name).unlink()


def many(root: Path, count=20) -> Path:
    for i in range(count):
        write(root / f"{i:02d}.png", i)
    return root


def test_split_is_disjoint_complete_sorted_and_seeded(tmp_path):
    def parts(**settings):
        train, val = load_data(config(many(tmp_path), **settings))
        return values(train), values(val)

    train, val = parts(val_fraction=0.25)
    assert len(val) == 5 and sorted(train + val) == list(range(20))
    assert train == sorted(train) and val == sorted(val)
    assert parts(val_fraction=0.25) == (train, val)
    assert parts(val_fraction=0.25, split_seed=1)[1] != val
    assert parts(val_fraction=0.25, storage="stream") == (train, val)


def test_split_keeps_labels_with_images(tmp_path):
    train, val = load_data(config(class_folders(tmp_path, per_class=8), val_fraction=0.5))
    for part in (train, val):
        assert part.labels.tolist() == [int(value >= 10) for value in values(part)]


def test_no_validation_images_where_the_share_rounds_to_none(tmp_path):
    assert load_data(config(many(tmp_path), val_fraction=0.02))[1] is None
    train, val = load_data(config(many(tmp_path), val_fraction=0.99))
    assert len(train) == 1 and len(val) == 19


def test_val_source_is_taken_whole(tmp_path):
    many(tmp_path / "a")
    class_folders(tmp_path / "b")
    train, val = load_data(config(tmp_path / "a", val_source=str(tmp_path / "b"), val_fraction=0.5))
    assert len(train) == 20 and values(val) == [0, 1, 2, 10, 11, 12]


def test_storage_follows_the_limit(tmp_path):
    def in_memory(gib):
        return load_data(config(many(tmp_path), memory_limit=gib))[0].in_memory

    assert in_memory(20 * 64 / 2**30) and not in_memory(19 * 64 / 2**30)


def test_fingerprint_says_what_the_set_is(tmp_path):
    def fingerprint(source, **settings):
        return load_data(config(source, **settings))[0].fingerprint

    many(tmp_path / "a")
    many(tmp_path / "b")
    first = fingerprint(tmp_path / "a")
    assert len(first) == 64 and first == fingerprint(tmp_path / "b", storage="stream")  # where it lies is no part
    changes = [{"image_size": 4}, {"channels": 3}, {"fit": "pad"}, {"val_fraction": 0.5}]
    prints = [fingerprint(tmp_path / "a", **change) for change in changes]
    (tmp_path / "b" / "00.png").rename(tmp_path / "b" / "new.png")
    prints.append(fingerprint(tmp_path / "b"))
    assert len({first, *prints}) == 6
    archive = pack(tmp_path / "a", tmp_path / "a.zip")
    write(tmp_path / "a" / "03.png", 99)  # same size of file, other pixels: an archive's CRC tells
    assert fingerprint(archive) != fingerprint(pack(tmp_path / "a", tmp_path / "b.zip"))


def test_fingerprints_of_a_split_follow_their_own_files(tmp_path):
    train, val = load_data(config(many(tmp_path), val_fraction=0.5))
    changed = tmp_path / f"{values(val)[-1]:02d}.png"
    changed.write_bytes(changed.read_bytes() + b"more")
    train_after, val_after = load_data(config(tmp_path, val_fraction=0.5))
    assert train_after.fingerprint == train.fingerprint and val_after.fingerprint != val.fingerprint


def test_embedded_mnist():
    train, val = load_data(DataConfig(fit="pad"))
    assert (len(train), len(val)) == (60000, 10000)
    assert train.labels[:3].tolist() == [5, 0, 4] and val.labels[:3].tolist() == [7, 2, 1]
    assert train.labels.bincount().tolist()[:2] == [5923, 6742] and train.classes == list("0123456789")
    batch = train.batch(torch.arange(1000))
    assert batch.shape == (1000, 1, 32, 32) and batch.dtype == torch.uint8
    inside = batch[..., 2:30, 2:30]
    assert batch.sum() == inside.sum() and inside.max() == 255  # a border of two black pixels
    pixels = named_module.read_idx(named_module.EMBEDDED_MNIST / "train-images-idx3-ubyte.gz", 3)
    assert torch.equal(inside[:, 0], pixels[:1000])
    assert abs(pixels.float().mean() / 255 - 0.1307) < 1e-4  # the mean that is known of MNIST
    assert train.fingerprint != val.fingerprint


def test_streamed_mnist_equals_mnist_in_memory():
    memory, _ = load_data(DataConfig(image_size=16))
    stream, _ = load_data(DataConfig(image_size=16, storage="stream"))
    rows = torch.tensor([59999, 0, 31415, 0])
    assert memory.in_memory and not stream.in_memory
    assert torch.equal(memory.batch(rows), stream.batch(rows))


def test_damaged_idx_files_are_named(tmp_path):
    path = tmp_path / "x.gz"
    header = b"\0\0\x08\x01\0\0\0\x04"
    for data, reason in [
        (gzip.compress(header + b"abc"), "3 bytes of data, not 4"),
        (gzip.compress(b"\0\0\x08\x03" + header[4:] + b"abcd"), "magic number 0x803, not 0x801"),
        (gzip.compress(header + b"abcd")[:-9], "x.gz is no good IDX file"),
        (b"plain", "x.gz is no good IDX file"),
    ]:
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=reason):
            named_module.read_idx(path, 1)
    path.write_bytes(gzip.compress(header + b"abcd"))
    assert bytes(named_module.read_idx(path, 1).numpy()) == b"abcd"


class FakeCifar:
    """Stands in for torchvision.datasets.CIFAR10."""

    classes = ("zero", "one")

    def __init__(self, root, train, download):
        assert download and Path(root).is_dir()
        count = 6 if train else 2
        self.data = np.arange(count * 8 * 8 * 3, dtype=np.uint8).reshape(count, 8, 8, 3)
        self.targets = [i % 2 for i in range(count)]


def test_named_arrays(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", FakeCifar)
    train, val = load_data(config("cifar10", channels=3, root=str(tmp_path / "new" / "root")))
    assert (len(train), len(val)) == (6, 2) and train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert train.classes == ["zero", "one"]
    assert train.batch(torch.tensor([0]))[0, :, 0, 1].tolist() == [3, 4, 5]
    many(tmp_path / "folder")
    assert len(load_data(config(tmp_path / "folder", val_source="cifar10", root=str(tmp_path)))[1]) == 2


def test_celeba_is_read_from_its_files(tmp_path, monkeypatch):
    class FakeCelebA:
        def __init__(self, root, split, download):
            self.filename = ["2.png", "1.png"] if split == "train" else ["3.png"]

    monkeypatch.setattr(torchvision.datasets, "CelebA", FakeCelebA)
    for i in (1, 2, 3):
        write(tmp_path / "celeba" / "img_align_celeba" / f"{i}.png", i, size=(8, 10))
    train, val = load_data(config("celeba", root=str(tmp_path), storage="stream"))
    assert values(train) == [2, 1] and values(val) == [3] and train.labels is None


@pytest.mark.parametrize(
    "error",
    [urllib.error.URLError("no route"), RuntimeError("not found\nor corrupted"), http.client.IncompleteRead(b"x")],
)
def test_failed_download_is_one_line(tmp_path, monkeypatch, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(torchvision.datasets, "SVHN", refuse)
    line = fails("svhn", root=str(tmp_path))
    assert line.startswith("data.source svhn was not found in ") and str(tmp_path) in line
    assert "could not be downloaded" in line and "folder or zip" in line


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    def needs_scipy(*_, **__):
        raise ModuleNotFoundError("No module named 'scipy'", name="scipy")

    monkeypatch.setattr(torchvision.datasets, "Flowers102", needs_scipy)
    assert "data.source flowers102 needs the package scipy" in fails("flowers102", root=str(tmp_path))


@pytest.mark.skipif(not CIFAR.is_file(), reason="the CIFAR-10 archive is not at ../shared/data")
def test_cifar_archive():
    images, _ = load_data(config(CIFAR, image_size=32, channels=3, storage="stream"))
    assert len(images) == 50000 and images.labels.bincount().tolist() == [5000] * 10
    assert images.classes[0] == "airplane" and images.classes[9] == "truck"
    batch = images.batch(torch.arange(0, 50000, 100)).float()
    assert 100 < batch.mean() < 140 and 50 < batch.std() < 80  # CIFAR-10: 121 and 64


def test_an_idx_file_that_unpacks_without_end_is_refused(tmp_path):
    from vaegan.data.named import read_idx

    with gzip.open(tmp_path / "bomb.gz", "wb") as file:
        for _ in range(80):
            file.write(bytes(1 << 20))
    with pytest.raises(ConfigError, match="bomb.gz.*more than 67108864 bytes"):
        read_idx(tmp_path / "bomb.gz", 3)


def test_pickles_of_an_old_torchvision_are_not_opened(tmp_path):
    (tmp_path / "FashionMNIST" / "processed").mkdir(parents=True)
    with pytest.raises(ConfigError, match="FashionMNIST/processed is of an old torchvision; remove it"):
        load_data(DataConfig(source="fashion_mnist", root=str(tmp_path)))
