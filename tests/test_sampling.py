"""Grids in closed form, PNG files exact, folders and archives that appear whole or not at all."""

import io
import os
import stat
import threading
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from vaegan import sampling
from vaegan.config import ConfigError
from vaegan.data.decode import decode_file
from vaegan.model import VAEGAN


def noise(n=4, channels=3, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator)


def in_batches(images, size):
    return [(i, images[i : i + size]) for i in range(0, len(images), size)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return VAEGAN(image_size=16, channels=3, latent_dim=4, width=4).eval()


def test_to_uint8_rounds_and_clamps():
    levels = torch.arange(256)
    exact = (levels / 127.5 - 1).view(1, 1, 16, 16)
    assert torch.equal(sampling.to_uint8(exact).flatten(), levels.to(torch.uint8))
    shifts = torch.tensor([-0.49, 0.49, -5.0]) / 127.5
    assert sampling.to_uint8(exact[0, 0, 8, 0] + shifts).tolist() == [128, 128, 123]
    assert sampling.to_uint8(torch.tensor([-1.0, -7.0, 1.0, 7.0, 0.01])).tolist() == [0, 0, 255, 255, 129]
    assert sampling.to_uint8(torch.zeros(2, requires_grad=True)).dtype == torch.uint8


@pytest.mark.parametrize("size,zoom", [(8, 8), (28, 2), (32, 2), (48, 1), (64, 1), (100, 1)])
def test_grid_puts_each_image_at_its_place_enlarged(size, zoom):
    images = noise(5, 3, size)
    canvas = sampling.grid(images, columns=3, margin=2)
    side = size * zoom
    assert canvas.shape == (3, 2 * side + 3 * 2, 3 * side + 4 * 2)
    seen = torch.zeros_like(canvas[0], dtype=torch.bool)
    for i, image in enumerate(images):
        top, left = 2 + i // 3 * (side + 2), 2 + i % 3 * (side + 2)
        for y, x in [(0, 0), (size - 1, 0), (size // 2, size - 1)]:
            block = canvas[:, top + y * zoom : top + (y + 1) * zoom, left + x * zoom : left + (x + 1) * zoom]
            assert (block == image[:, y, x, None, None]).all()
        seen[top : top + side, left : left + side] = True
    assert (canvas[:, ~seen] == 255).all()  # margins, and the place that is left over


def test_grid_of_grey_and_without_margin():
    images = noise(4, 1, 64)
    rows = torch.cat([torch.cat([images[0], images[1]], 2), torch.cat([images[2], images[3]], 2)], 1)
    assert torch.equal(sampling.grid(images, 2, margin=0), rows)


def test_beside_interleaves():
    a, b = noise(3, seed=1), noise(3, seed=2)
    pairs = sampling.beside(a, b)
    assert torch.equal(pairs[0::2], a) and torch.equal(pairs[1::2], b)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_gives_back_its_pixels(tmp_path, channels):
    image = noise(1, channels, 20)[0]
    sampling.save_png(image, tmp_path / "new" / "a.png")
    assert os.listdir(tmp_path / "new") == ["a.png"]
    assert torch.equal(decode_file(tmp_path / "new" / "a.png", 20, channels, "crop"), image)
    for level in (0, 1, 6):
        array = np.array(Image.open(io.BytesIO(sampling.png(image, level))))
        assert np.array_equal(array, image[0].numpy() if channels == 1 else image.permute(1, 2, 0).numpy())


def test_save_png_replaces_and_leaves_nothing_behind_if_it_fails(tmp_path):
    sampling.save_png(noise()[0], tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        sampling.save_png(noise()[1], tmp_path / "folder")
    sampling.save_png(noise()[1], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() != before and sorted(os.listdir(tmp_path)) == ["a.png", "folder"]


@pytest.mark.parametrize("n,batch,processes", [(10, 3, 1), (10, 3, 2), (1, 64, 3), (12, 4, 3), (7, 1, 2)])
def test_batches_cover_each_image_once(model, n, batch, processes):
    found = {}
    for rank in range(processes):
        starts = sampling.batch_starts(n, batch, rank, processes)
        for start, images in sampling.prior_batches(model, starts, n, 5, batch):
            for i, image in enumerate(images):
                assert start + i not in found
                found[start + i] = image
    assert sorted(found) == list(range(n))
    whole = sampling.to_uint8(model.sample(n, seed=5)).int()
    drawn = torch.stack([found[i] for i in range(n)]).int()
    assert (drawn - whole).abs().max() <= 1 and (drawn != whole).float().mean() < 1e-3


class RoundsByBatchSize:
    """A model whose images depend on the batch's size, as the last bit of a convolution may."""

    def sample(self, n, seed, start):
        return torch.full((n, 1, 4, 4), n / 100)


def test_image_does_not_depend_on_how_many_there_are():
    few = dict(sampling.prior_batches(RoundsByBatchSize(), [0, 8], 9, 0, 8))
    many = dict(sampling.prior_batches(RoundsByBatchSize(), [0, 8], 16, 0, 8))
    assert torch.equal(few[0], many[0]) and torch.equal(few[8], many[8][:1])


def test_encode_and_decode_in_batches(model):
    images = noise(5, 3, 16)
    with torch.no_grad():
        z = model.encode(images / 127.5 - 1)[0]
        decoded = sampling.to_uint8(model.decode(z)).int()
    torch.testing.assert_close(sampling.encode(model, images, 2), z)
    assert (sampling.decode(model, z, 2).int() - decoded).abs().max() <= 1


def test_read_images_from_files_folders_and_archives(tmp_path):
    images = noise(6, 1, 8)
    sampling.write_images([(0, images[:2])], tmp_path / "folder")
    sampling.write_images([(0, images[2:5])], tmp_path / "a.zip")
    sampling.save_png(images[5], tmp_path / "last.png")
    paths = [tmp_path / name for name in ("folder", "a.zip", "last.png")]
    found, total = sampling.read_images(paths, (1, 8, 8), "crop", 100)
    assert torch.equal(found, images) and total == 6
    found, total = sampling.read_images(paths, (3, 8, 8), "crop", 3)
    assert torch.equal(found, images[:3].expand(3, 3, 8, 8)) and total == 6


def test_folder_holds_the_images_by_index(tmp_path):
    images = noise(7)
    sampling.write_images(in_batches(images, 3), tmp_path / "new" / "out")
    assert sorted(os.listdir(tmp_path / "new" / "out")) == [f"{i:08d}.png" for i in range(7)]
    assert os.listdir(tmp_path / "new") == ["out"]
    for i, image in enumerate(images):
        assert torch.equal(decode_file(tmp_path / "new" / "out" / f"{i:08d}.png", 8, 3, "crop"), image)


def test_archive_is_stored_ordered_and_reproducible(tmp_path):
    for name in ("a.zip", "b.ZIP"):
        sampling.write_images(in_batches(noise(7), 3 if name == "a.zip" else 2), tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.ZIP").read_bytes()
    sampling.write_images(in_batches(noise(7), 3), tmp_path / "folder")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == [f"{i:08d}.png" for i in range(7)] and archive.testzip() is None
        for entry in archive.infolist():
            assert entry.compress_type == zipfile.ZIP_STORED
            assert archive.read(entry) == (tmp_path / "folder" / entry.filename).read_bytes()


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_several_processes_write_what_one_does(tmp_path, name):
    batches = in_batches(noise(11), 2)
    (tmp_path / f".{name}.partial").mkdir()
    (tmp_path / f".{name}.partial" / "stale.png").touch()  # of a run that was killed
    barrier = threading.Barrier(3)
    ranks = [
        threading.Thread(target=sampling.write_images, args=(batches[r::3], tmp_path / name, r, barrier.wait))
        for r in range(3)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert os.listdir(tmp_path) == [name]
    sampling.write_images(batches, tmp_path / "one" / name)
    if name == "out.zip":
        assert (tmp_path / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    else:
        assert sorted(os.listdir(tmp_path / name)) == sorted(os.listdir(tmp_path / "one" / name))


@pytest.mark.parametrize("name", ["out", "out.zip", "empty"])
def test_an_interruption_leaves_nothing(tmp_path, name):
    def interrupted():
        yield 0, noise(2)
        yield 2, noise(2)
        raise KeyboardInterrupt

    if name == "empty":
        (tmp_path / name).mkdir()
    with pytest.raises(KeyboardInterrupt):
        sampling.write_images(interrupted(), tmp_path / name)
    assert os.listdir(tmp_path) == (["empty"] if name == "empty" else [])
    sampling.require_new(tmp_path / name)
    sampling.write_images([(0, noise(1))], tmp_path / name)


def test_an_empty_folder_keeps_its_identity(tmp_path, monkeypatch):
    """It may be the working directory or a mount point."""
    monkeypatch.chdir(tmp_path)
    inode = os.stat(tmp_path)[stat.ST_INO]
    sampling.write_images([(0, noise(2))], sampling.Path("."))
    assert sorted(os.listdir(".")) == ["00000000.png", "00000001.png"] and os.stat(tmp_path)[stat.ST_INO] == inode


def test_targets_that_are_refused(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "there.zip").touch()
    for name, line in [("full", "not empty"), ("there.zip", "exists"), ("a.tar", "end in .zip"), ("a.png", "folder")]:
        with pytest.raises(ConfigError, match=line):
            sampling.require_new(tmp_path / name)
    for name in ("new", "new.zip", "deep/new", "run-v1.5"):
        sampling.require_new(tmp_path / name)


def test_a_disk_that_refuses_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        sampling.write_images([(0, noise(1))], tmp_path / "file" / "out")


@pytest.mark.parametrize("values", [1, 200, 1 << 16])
def test_files_do_not_depend_on_how_threads_share_a_batch(tmp_path, monkeypatch, values):
    monkeypatch.setattr(sampling, "_BUNCH", values)
    sampling.write_images(in_batches(noise(7), 4), tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert [archive.read(f"{i:08d}.png") for i in range(7)] == [sampling.png(image, 1) for image in noise(7)]
