"""Damaged images: never silently wrong where a format can tell, and replaced alike wherever they are decoded."""

import io
import pickle
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from vaegan.config import ConfigError, DataConfig
from vaegan.data import load_data, training_batches
from vaegan.data.decode import decode_array

KINDS = {
    "png": ("PNG", {}),
    "png in chunks": ("PNG", {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"}),  # it takes Pillow's own way
    "jpeg": ("JPEG", {}),
    "jpeg progressive": ("JPEG", {"progressive": True}),
    "webp": ("WEBP", {}),
    "webp lossless": ("WEBP", {"lossless": True}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
    "tiff deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
}
DAMAGES = ("flip", "truncate", "overwrite", "insert", "delete")


def encoded(kind: str, height=24, width=20, seed=0) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    name, options = KINDS[kind]
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(buffer, name, **options)
    return buffer.getvalue()


def mutant(rng: np.random.Generator, data: bytes, damage: str) -> bytes:
    changed, place = bytearray(data), int(rng.integers(len(data)))
    run = int(rng.integers(1, 33))
    if damage == "flip":
        for bit in rng.integers(8 * len(data), size=rng.integers(1, 5)):
            changed[bit // 8] ^= 1 << bit % 8
    elif damage == "truncate":
        del changed[place:]
    elif damage == "overwrite":
        filler = rng.bytes(run) if rng.random() < 0.5 else bytes([rng.choice([0, 255])]) * run
        changed[place : place + run] = filler[: len(data) - place]
    elif damage == "insert":
        changed[place:place] = rng.bytes(run)
    else:
        del changed[place : place + run]
    return bytes(changed)


def reference(data: bytes) -> np.ndarray:
    """The whole of the file by Pillow alone: upright, on white, 8 bits."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return ((np.array(image).astype(np.int64) + 128) // 257).astype(np.uint8)[..., None]
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    array = np.array(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    return array[..., None] if array.ndim == 2 else array


def outcomes(kind: str, count: int) -> Counter:
    """Of so many mutants, how many were refused, gave the original pixels, or gave others."""
    rng, files = np.random.default_rng(0), [encoded(kind, seed=seed) for seed in range(4)]
    originals, counts = [decode_array(data, "it") for data in files], Counter()
    for i in range(count):
        which = int(rng.integers(len(files)))
        damaged = mutant(rng, files[which], DAMAGES[i % len(DAMAGES)])
        try:
            pixels = decode_array(damaged, "it")
        except ConfigError as error:
            assert "\n" not in str(error)
            counts["refused"] += 1
            continue
        assert np.array_equal(pixels, reference(damaged)), f"mutant {i} is not decoded as Pillow does"
        same = np.array_equal(pixels, originals[which])
        counts["same" if same else "other"] += 1
    return counts


@pytest.mark.filterwarnings("ignore")  # Pillow's, about damaged tags
@pytest.mark.parametrize("count", [1000, pytest.param(20000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("kind", KINDS)
def test_mutants_are_refused_or_what_pillow_makes_of_them(kind, count, record_property):
    """PNG has check sums: its mutants are refused, or have the original pixels. The others hide some damage."""
    found = outcomes(kind, count)
    record_property("outcomes", dict(found))
    assert found["refused"] > count / 4
    if kind.startswith("png"):
        assert found["other"] == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_refused_or_has_lost_no_pixel(kind):
    data = encoded(kind)
    whole, accepted = decode_array(data, "it"), 0
    for cut in [*range(0, len(data), 5), *range(len(data) - 40, len(data))]:
        try:
            assert np.array_equal(decode_array(data[:cut], "it"), whole), f"half an image of {cut} bytes"
            accepted += 1
        except ConfigError:
            pass
    assert accepted <= 4  # an end marker or padding


def test_any_bit_of_a_png_counts():
    """Each bit of header, chunks and pixels, by both ways to decode."""
    for kind in ("png", "png in chunks"):
        data = encoded(kind, 6, 5)
        assert decode_array(data, "it").shape == (6, 5, 3)
        for bit in range(8 * len(data)):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            with pytest.raises(ConfigError, match="cannot be decoded"):
                decode_array(bytes(changed), "it")


# Substitution.
N, SIZE = 60, 8
BAD = (5, 6, 59)  # what stands in for them: 7, 7 and, around the end, 0
STANDING_IN = {5: 7, 6: 7, 59: 0}


def value(row: int) -> int:
    return 4 * row + 3


def write(folder: Path, bad=BAD, count=N) -> Path:
    """Images filled with a value each, some without their end; the first half in class a, the others in b."""
    for row in range(count):
        path = folder / ("a" if row < count // 2 else "b") / f"{row:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (SIZE, SIZE), value(row)).save(path)
        if row in bad:
            path.write_bytes(path.read_bytes()[:-30])
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "set")


def config(source, **settings) -> DataConfig:
    defaults = {"image_size": SIZE, "val_fraction": 0, "damaged": "substitute", "damaged_limit": 0.05}
    return DataConfig(source=str(source), **defaults | settings)


def steps(images, config, start=0, stop=8, rank=0, world_size=1) -> torch.Tensor:
    batches = training_batches(
        images, config, start_step=start, stop_step=stop, batch_size=20, accumulate=1, rank=rank, world_size=world_size,
        seed=0, device=torch.device("cpu"),
    )  # fmt: skip
    return torch.stack([batch for (batch,) in batches])


def test_the_next_image_stands_in_and_labels_stay(folder):
    expected = [value(STANDING_IN.get(row, row)) for row in range(N)]
    images, _ = load_data(config(folder))
    assert images.in_memory and images.pixels[:, 0, 0, 0].tolist() == expected
    assert images.labels.tolist() == [0] * 30 + [1] * 30
    streamed, _ = load_data(config(folder, storage="stream"))
    rows = torch.tensor([59, 3, 6, 5, 6])
    assert streamed.batch(rows)[:, 0, 0, 0].tolist() == [expected[row] for row in rows]
    sent = pickle.loads(pickle.dumps(streamed))
    assert torch.equal(sent.decode(list(range(N))), images.pixels)


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_ranks_and_resumed_runs_see_the_same(folder, workers):
    augmented = {"horizontal_flip": True, "crop_padding": 2}
    memory, stream = config(folder, **augmented), config(folder, storage="stream", workers=workers, **augmented)
    whole = steps(load_data(memory)[0], memory)
    assert torch.equal(steps(load_data(stream)[0], stream), whole)
    assert torch.equal(steps(load_data(stream)[0], stream, start=4, stop=6), whole[4:6])
    halves = [steps(load_data(stream)[0], stream, stop=2, rank=rank, world_size=2) for rank in (0, 1)]
    assert torch.equal(torch.cat(halves, 1), whole[:2])


@pytest.mark.parametrize(("storage", "workers"), [("memory", 0), ("stream", 0), ("stream", 2)])
def test_each_damaged_file_is_named_once(folder, caplog, storage, workers):
    settings = config(folder, storage=storage, workers=workers)
    images, _ = load_data(settings)
    for _ in range(2):
        steps(images, settings, stop=9)  # three epochs
    images.batch(torch.arange(N))
    lines = [record.getMessage() for record in caplog.records if record.name == "vaegan"]
    assert len(lines) == 3 and [line.split("of at most")[0][-4:] for line in lines] == ["(1, ", "(2, ", "(3, "]
    for row in BAD:
        (line,) = [line for line in lines if f"{row:03d}.png" in line]
        assert "of at most 3 in 60" in line and "cannot be decoded as an image (truncated PNG)" in line


def test_only_the_first_files_are_named(tmp_path, caplog):
    load_data(config(write(tmp_path, bad=range(0, 30, 2)), damaged_limit=0.5))
    lines = [record.getMessage() for record in caplog.records if record.name == "vaegan"]
    assert len(lines) == 11 and "scripts/check_data.py names all" in lines[-1]


def too_many(settings: DataConfig) -> str:
    with pytest.raises(ConfigError) as error:
        steps(load_data(settings)[0], settings, stop=3)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("limit", "most"), [(0.0, 0), (0.02, 1), (0.049, 2)])
def test_more_than_the_limit_is_an_error_that_counts(folder, limit, most):
    line = too_many(config(folder, damaged_limit=limit))
    assert line.startswith(
        f"data.source: {folder}: 3 of 60 images are damaged, and data.damaged_limit {limit:g} allows"
    )
    assert f"allows {most}: a/005.png, a/006.png, b/059.png (scripts/check_data.py" in line


@pytest.mark.parametrize("workers", [0, 2])
def test_more_than_the_limit_is_an_error_while_streaming(tmp_path, workers):
    """Within an epoch, whichever worker has found which; and where all images of a batch are damaged."""
    settings = config(write(tmp_path / "few"), storage="stream", workers=workers, damaged_limit=0.04)
    assert "3 of 60 images are damaged" in too_many(settings)
    settings = config(write(tmp_path / "most", bad=range(1, N)), storage="stream", workers=workers, damaged_limit=0.1)
    assert "of 60 images are damaged, and data.damaged_limit 0.1 allows 6: " in too_many(settings)


def test_the_limit_is_exact(tmp_path):
    write(tmp_path, bad=range(29), count=100)
    assert len(load_data(config(tmp_path, damaged_limit=0.29))[0]) == 100  # 0.29 * 100 is a little less than 29
    assert "29 of 100" in too_many(config(tmp_path, damaged_limit=0.28))
    none = write(tmp_path / "none", bad=range(20), count=20)
    for storage in ("memory", "stream"):
        line = too_many(config(none, damaged_limit=1.0, storage=storage))
        assert "has no image that can be decoded: " in line and "truncated PNG" in line
    assert len(load_data(config(write(tmp_path / "one", bad=range(9), count=10), damaged_limit=0.9))[0]) == 10


def test_parts_of_a_split_stand_in_for_themselves(folder):
    """No validation image gets into training: what stands in is of the same part."""
    for storage in ("memory", "stream"):
        for part in load_data(config(folder, val_fraction=0.4, storage=storage, damaged_limit=0.2)):
            rows = [int(name[-7:-4]) for name in part._source.names]
            seen = set(part.batch(torch.arange(len(part)))[:, 0, 0, 0].tolist())
            assert seen == {value(row) for row in rows if row not in BAD}


def test_entries_of_archives_and_files_that_vanish_are_replaced_too(tmp_path):
    folder, archive = write(tmp_path / "set", bad=()), tmp_path / "it.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(folder.rglob("*.png")):
            packed.write(path, path.relative_to(folder))
    data = bytearray(archive.read_bytes())
    data[data.index(b"IDAT") + 6] ^= 1
    archive.write_bytes(data)
    assert load_data(config(archive))[0].pixels[0, 0, 0, 0] == value(1)
    images, _ = load_data(config(folder, storage="stream"))
    (folder / "a" / "004.png").unlink()
    assert images.batch(torch.tensor([4]))[0, 0, 0, 0] == value(5)


def test_an_error_is_the_default_and_arrays_have_no_damage(folder):
    assert DataConfig().damaged == "error" and DataConfig().damaged_limit == 0.01
    with pytest.raises(ConfigError, match=r"a/005.png cannot be decoded as an image \(truncated PNG\); remove"):
        load_data(config(folder, damaged="error"))
    assert len(load_data(config("mnist", image_size=4, val_fraction=0))[1]) == 10000
    for limit in (-0.1, 1.1):
        with pytest.raises(ConfigError, match="data.damaged_limit must be a share from 0 to 1, got"):
            DataConfig(damaged_limit=limit)
