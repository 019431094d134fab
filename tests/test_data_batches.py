"""Training batches: the same bits whatever the storage, workers, ranks, micro-batches or first step; augmentation."""

import hashlib
import math
from functools import partial
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import pad

from vaegan import counter
from vaegan.config import ConfigError, DataConfig
from vaegan.data import load_data, to_float, training_batches
from vaegan.data.augment import augment
from vaegan.data.workers import _Decoder, to_float_alone

N, SIZE = 22, 12
AUGMENTED = {"horizontal_flip": True, "crop_padding": 3, "rotation": 20.0}
PLAIN = {"horizontal_flip": False, "crop_padding": 0, "rotation": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(N):
        Image.fromarray(rng.integers(0, 256, (SIZE + i % 3, SIZE, 3), dtype=np.uint8)).save(root / f"{i:02d}.png")
    return root


def config(folder, **settings) -> DataConfig:
    return DataConfig(**{"source": str(folder), "image_size": SIZE, "channels": 3, "val_fraction": 0, **settings})


def steps(config, start=0, stop=8, batch_size=8, accumulate=1, rank=0, world_size=1, seed=0):
    """The micro-batches of each step; N // 8 = 2 steps an epoch, so that 8 steps are four epochs."""
    iterator = training_batches(
        load_data(config)[0], config, start_step=start, stop_step=stop, batch_size=batch_size, accumulate=accumulate,
        rank=rank, world_size=world_size, seed=seed, device=torch.device("cpu"),
    )  # fmt: skip
    return list(iterator)


def whole(steps) -> list[torch.Tensor]:
    return [torch.cat(micro) for micro in steps]


def same(first, second) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second))


def test_batches_are_the_permuted_images_in_order(folder):
    images, _ = load_data(config(folder))
    batches = whole(steps(config(folder)))
    assert len(batches) == 8 and batches[0].shape == (8, 3, SIZE, SIZE) and batches[0].dtype == torch.float32
    for step, batch in enumerate(batches):
        order = counter.permutation(N, counter.key(0, "order", step // 2))
        rows = order[step % 2 * 8 :][:8]
        assert torch.equal(batch, images.batch(rows).float() / 127.5 - 1)
    assert not torch.equal(batches[0], batches[2])  # another epoch, another order
    assert not torch.equal(batches[0], whole(steps(config(folder), stop=1, seed=1))[0])


def test_to_float_covers_minus_one_to_one():
    x = to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert x.dtype == torch.float32 and x.tolist() == pytest.approx([-1, -0.6, 1], abs=1e-7)
    assert x[0] == -1 and x[2] == 1


def test_on_one_thread_the_same_floats_come_out():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_float_alone(every), to_float(every)) and to_float_alone(every).dtype == torch.float32


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("settings", [PLAIN, AUGMENTED])
def test_streaming_equals_memory(folder, workers, settings):
    memory = config(folder, storage="memory", **settings)
    stream = config(folder, storage="stream", workers=workers, **settings)
    assert same(whole(steps(memory, accumulate=2)), whole(steps(stream, accumulate=2)))


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_any_first_step_goes_on_as_if_never_stopped(folder, storage):
    settings = config(folder, storage=storage, workers=0, **AUGMENTED)
    full = whole(steps(settings))
    for start in range(9):
        assert same(whole(steps(settings, start=start)), full[start:])


def test_resumed_workers_go_on_in_the_middle_of_an_epoch(folder):
    settings = config(folder, storage="stream", workers=2, **AUGMENTED)
    assert same(whole(steps(settings, start=3, stop=6)), whole(steps(config(folder, **AUGMENTED)))[3:6])


def test_ranks_and_micro_batches_are_slices_of_the_batch(folder):
    settings = config(folder, **AUGMENTED)
    one = whole(steps(settings))
    ranks = [steps(settings, rank=rank, world_size=2, accumulate=2) for rank in (0, 1)]
    assert all(len(micro) == 2 and micro[0].shape[0] == 2 for rank in ranks for micro in rank)
    assert same([torch.cat([torch.cat(a), torch.cat(b)]) for a, b in zip(*ranks)], one)
    assert same(whole(steps(settings, accumulate=8)), one)


def test_the_global_generator_is_left_alone(folder):
    torch.manual_seed(0)
    expected = torch.rand(3)
    for storage in ("memory", "stream"):
        torch.manual_seed(0)
        steps(config(folder, storage=storage, workers=2, **AUGMENTED), stop=2)
        assert torch.equal(torch.rand(3), expected)


def test_batch_sizes_that_do_not_fit_are_refused_at_once(folder):
    images = load_data(config(folder))[0]

    def line(**values):
        with pytest.raises(ConfigError) as error:
            training_batches(
                images, config(folder), start_step=0, stop_step=1, rank=0, seed=0, device=torch.device("cpu"), **values
            )  # not even iterated
        return str(error.value)

    assert line(batch_size=23, accumulate=1, world_size=1) == (
        "train.batch_size must be at most the 22 training images, got 23 (lower it, or give more images)"
    )
    assert "(2 x 3), got 8 (choose 6 or 12)" in line(batch_size=8, accumulate=3, world_size=2)
    assert "(2 x 2), got 2 (choose 4 or 8)" in line(batch_size=2, accumulate=2, world_size=2)
    assert len(steps(config(folder), batch_size=22, stop=3)) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_file_in_a_worker_is_one_line(folder, tmp_path, workers):
    for file in folder.iterdir():
        image = Image.open(file)
        image.resize((64, 64)).save(tmp_path / f"{file.stem}.jpg")
    bad = tmp_path / "07.jpg"
    bad.write_bytes(bad.read_bytes()[:-400])
    with pytest.raises(ConfigError) as error:
        steps(config(tmp_path, storage="stream", workers=workers), batch_size=22, stop=1)
    assert str(error.value).startswith(f"data.source: {bad} cannot be decoded as an image (")
    assert "\n" not in str(error.value)


def test_workers_share_memory_however_they_are_started(folder):
    """A process that is spawned gets its decoder pickled."""
    images = load_data(config(folder, storage="stream"))[0]
    transform = partial(augment, seed=0, flip=True, crop_padding=3, rotation=20.0)
    slots = torch.zeros(2, 4, 3, SIZE, SIZE, dtype=torch.uint8).share_memory_()
    received = ForkingPickler.loads(ForkingPickler.dumps(_Decoder(images, slots, transform)))
    rows = torch.tensor([3, 1, 4, 15])
    assert received[1, 6, rows.tolist()] == (1, "", {}) and slots[0].eq(0).all()
    assert torch.equal(slots[1], transform(images.batch(rows), rows, epoch=6))


def test_too_little_shared_memory_is_one_line(folder, monkeypatch):
    def refuse(tensor):
        raise RuntimeError("unable to allocate shared memory(shm):\nNo space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    with pytest.raises(ConfigError) as error:
        steps(config(folder, storage="stream", workers=2), batch_size=22)
    assert str(error.value).startswith("data.workers 2 need 0 MiB of shared memory, which cannot be had (unable to")
    assert "enlarge /dev/shm, or set data.workers to 0" in str(error.value) and "\n" not in str(error.value)
    assert len(steps(config(folder, storage="stream", workers=0))) == 8


def random_images(count=64, size=9, seed=0):
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(seed)).byte()


def transform(images, indices, epoch=0, seed=0, flip=False, crop_padding=0, rotation=0.0):
    return augment(images, indices, seed=seed, epoch=epoch, flip=flip, crop_padding=crop_padding, rotation=rotation)


def test_nothing_switched_on_is_the_identity():
    images = random_images()
    assert torch.equal(transform(images, torch.arange(64)), images)


def test_flip_mirrors_half_of_the_images():
    images, indices = random_images(2000), torch.arange(2000)
    flipped = transform(images, indices, flip=True)
    chosen = counter.uniform(indices, 1, counter.key(0, "augment", 0))[:, 0] < 0.5
    assert torch.equal(flipped, torch.where(chosen[:, None, None, None], images.flip(3), images))
    assert 900 < chosen.sum() < 1100


def test_crop_only_translates_over_the_reflected_image():
    images, padding, size = random_images(500), 3, 9
    cropped = transform(images, torch.arange(500), crop_padding=padding)
    seen = set()
    for image, crop in zip(images, cropped):
        padded = pad(image[None].float(), [padding] * 4, mode="reflect")[0].byte()
        windows = {
            (y, x): padded[:, y : y + size, x : x + size]
            for y in range(2 * padding + 1)
            for x in range(2 * padding + 1)
        }
        found = [place for place, window in windows.items() if torch.equal(window, crop)]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) == 49  # every offset occurs


def test_the_largest_padding_is_reflected_once():
    images = torch.arange(4, dtype=torch.uint8).expand(500, 1, 4, 4)  # each row is 0 1 2 3
    rows = {tuple(image[0, 0].tolist()) for image in transform(images, torch.arange(500), crop_padding=3)}
    reflected = [3, 2, 1, 0, 1, 2, 3, 2, 1, 0]
    assert rows == {tuple(reflected[x : x + 4]) for x in range(7)}


def test_augmented_images_are_the_same_in_every_version():
    images = (torch.arange(50 * 3 * 12 * 12) * 37 % 251).byte().view(50, 3, 12, 12)
    augmented = transform(images, torch.arange(50) * 7, seed=3, epoch=5, flip=True, crop_padding=3)
    digest = hashlib.sha256(augmented.numpy()).hexdigest()
    assert digest == "0638923550c33e0dae9906134e659ba2842ecd97131b797a180092b37dc27d19"


def test_flip_and_crop_are_the_crop_mirrored():
    images, indices = random_images(), torch.arange(64)
    cropped = transform(images, indices, crop_padding=2)
    both = transform(images, indices, crop_padding=2, flip=True)
    chosen = counter.uniform(indices, 1, counter.key(0, "augment", 0))[:, 0] < 0.5
    assert torch.equal(both, torch.where(chosen[:, None, None, None], cropped.flip(3), cropped))


def test_rotation_turns_by_the_drawn_angle():
    """Against each image's own angle: a bright spot moves on its circle, and the mean brightness hardly changes."""
    size, count = 65, 40
    spot = torch.zeros(count, 1, size, size, dtype=torch.uint8)
    spot[:, :, 30:35, 42:47] = 255  # 12 pixels to the right of the centre (32, 32)
    turned = transform(spot, torch.arange(count), rotation=90.0).float()
    place = torch.arange(size).float() - 32
    mass = turned.sum((1, 2, 3))
    y = (turned.sum((1, 3)) * place).sum(1) / mass
    x = (turned.sum((1, 2)) * place).sum(1) / mass
    u = counter.uniform(torch.arange(count), 4, counter.key(0, "augment", 0))[:, 3]
    angle = torch.atan2(-y, x)  # counter-clockwise as seen, since y points down
    expected = (2 * u - 1) * math.pi / 2
    assert (x.hypot(y) - 12).abs().max() < 0.2
    assert (angle - expected).abs().max() < 0.01 or (angle + expected).abs().max() < 0.01
    assert angle.max() > 1.2 and angle.min() < -1.2
    assert (mass / (25 * 255) - 1).abs().max() < 0.03


def test_rotation_keeps_constant_images_and_shape():
    images = torch.full((8, 3, 9, 9), 77, dtype=torch.uint8)
    assert torch.equal(transform(images, torch.arange(8), rotation=180.0), images)
    tiny = random_images(8)
    assert torch.equal(transform(tiny, torch.arange(8), rotation=1e-6), tiny)


def test_augmentation_follows_index_epoch_and_seed_not_place():
    images, settings = random_images(), {"flip": True, "crop_padding": 3, "rotation": 30.0}
    indices = torch.randperm(1000)[:64]
    full = transform(images, indices, **settings)
    order = torch.randperm(64)
    assert torch.equal(transform(images[order], indices[order], **settings), full[order])
    assert torch.equal(transform(images[5:6], indices[5:6], **settings), full[5:6])
    for change in ({"epoch": 1}, {"seed": 1}):
        other = transform(images, indices, **settings, **change)
        assert (other != full).flatten(1).any(1).sum() > 60
    assert (transform(images, indices + 1, **settings) != full).flatten(1).any(1).sum() > 60
