"""Sources: which images, in which form, which of them damaged, and what names them."""

import dataclasses
import hashlib
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from vaegan.config import Config, ConfigError, DataConfig, TrainConfig
from vaegan.data import images as images_module
from vaegan.data import load_data, to_float
from vaegan.data.files import open_folder
from vaegan.evaluation.sources import ArraySource, Form, ModelSource, ReconstructionSource, open_source, run_source
from vaegan.model import VAEGAN
from vaegan.sampling import prior_batches, to_uint8

GREY = Form(8, 1, "pad")


def photo(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def mixed(tmp_path) -> Path:
    """Images of all sorts; those of a to d at sizes of their own."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    Image.fromarray(photo(5, 7)).save(folder / "a colour.png")
    Image.fromarray(photo(9, 4, 1)).save(folder / "b grey.png")
    Image.fromarray(np.full((3, 6), 32768, np.uint16)).save(folder / "c deep.png")
    Image.fromarray(np.full((4, 4, 4), (100, 100, 100, 51), np.uint8)).save(folder / "d alpha.png")
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.save(folder / "e palette.png")
    return folder


def numbered(folder: Path, count: int, damaged: tuple[int, ...] = (), size: int = 8) -> Path:
    """Images filled with their numbers, some of them cut short."""
    folder.mkdir(exist_ok=True)
    for i in range(count):
        path = folder / f"{i:03d}.png"
        Image.new("L", (size, size), i).save(path)
        if i in damaged:
            path.write_bytes(path.read_bytes()[:-15])
    return folder


def zipped(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    return path


def tarred(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        archive.add(folder, ".")
    return path


def values(images) -> list[int]:
    return [int(image[0, 0, 0]) for image in images]


def fails(function, *arguments, **options) -> str:
    with pytest.raises(ConfigError) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def model(**settings) -> VAEGAN:
    torch.manual_seed(0)
    return VAEGAN(**{"image_size": 8, "channels": 1, "latent_dim": 4, "width": 4} | settings)


def test_native_images_keep_sizes_and_colours(mixed):
    source = open_source(str(mixed))
    images = source.batch(0, 5)
    assert [tuple(image.shape) for image in images] == [(3, 5, 7), (1, 9, 4), (1, 3, 6), (3, 4, 4), (3, 1, 2)]
    assert all(image.dtype == torch.uint8 and image.is_contiguous() for image in images)
    assert np.array_equal(images[0].permute(1, 2, 0), photo(5, 7)) and np.array_equal(images[1][0], photo(9, 4, 1))
    assert (images[2] == 128).all()  # 32768 / 257, rounded
    assert (images[3] == 224).all()  # a fifth of 100 on white
    assert images[4][:, 0].T.tolist() == [[10, 20, 30], [200, 100, 50]]
    assert (source.name, source.form, len(source), source.decodes) == (str(mixed), "native", 5, True)
    assert [image.shape for image in source.batch(3, 5)] == [image.shape for image in images[3:]]


@pytest.mark.parametrize("form", [Form(8, 1, "pad"), Form(6, 3, "crop"), Form(4, 3, "stretch")])
def test_fitted_images_are_those_of_training(mixed, form):
    source = open_source(str(mixed), form=form)
    config = DataConfig(source=str(mixed), val_fraction=0, **dataclasses.asdict(form))
    assert torch.equal(source.batch(0, 5), load_data(config)[0].pixels)
    assert source.batch(1, 3).shape == (2, form.channels, form.image_size, form.image_size)
    assert source.form == str(form) and str(GREY) == "8x8x1 pad"
    assert "got (8, 2, 'pad')" in fails(Form, 8, 2, "pad") and "got (8, 1, 'zoom')" in fails(Form, 8, 1, "zoom")


def test_folder_zip_tar_and_shards_give_the_same_images(tmp_path):
    folder = numbered(tmp_path / "set", 7)
    (tmp_path / "shards").mkdir()
    for source in (zipped(folder), tarred(folder, tmp_path / "set.tar"), tarred(folder, tmp_path / "shards" / "0.tar")):
        opened = open_source(str(source.parent if source.parent.name == "shards" else source))
        assert values(opened.batch(0, 7)) == list(range(7)) and opened.decodes


def test_one_image_is_a_set_and_none_is_not(tmp_path):
    assert len(open_source(str(numbered(tmp_path / "one", 1))).batch(0, 1)) == 1
    line = fails(open_source, str(numbered(tmp_path / "none", 0)))
    assert line.startswith(f"source: {tmp_path}/none holds no images (looked for .png")
    line = fails(open_source, "cifar-10")
    assert line == "source 'cifar-10' is no named set, and no such folder or archive exists (did you mean cifar10?)"


@pytest.mark.parametrize("form", [None, GREY])
@pytest.mark.parametrize("size", [8, 96])  # one thread, and several
def test_damaged_images_are_refused_or_left_out(tmp_path, monkeypatch, form, size):
    monkeypatch.setattr(images_module, "cores", lambda: 3)
    folder = numbered(tmp_path / "set", 20, damaged=(3, 4, 13), size=size)
    if size > 8:
        for file in folder.iterdir():
            file.write_bytes(file.read_bytes() + bytes(5000))  # files of this size gain from threads
        for name in ("003", "004", "013"):
            (folder / f"{name}.png").write_bytes(bytes(5000))
    assert open_folder("source", folder).gains_from_threads == (size > 8)
    source = open_source(str(folder), form=form)
    assert values(source.batch(5, 13)) == list(range(5, 13))
    line = fails(source.batch, 0, 8)
    assert line.startswith(f"source: {folder}/003.png cannot be decoded as an image (")

    source = open_source(str(folder), form=form, on_bad_image="skip")
    assert values(source.batch(0, 8)) == [0, 1, 2, 5, 6, 7] and source.skipped == ["003.png", "004.png"]
    assert values(source.batch(8, 20)) == [*range(8, 13), *range(14, 20)]
    source.batch(0, 8)  # again
    assert source.skipped == ["003.png", "004.png", "013.png"] and len(source) == 20
    nothing = source.batch(3, 5)
    assert nothing == [] if form is None else nothing.shape == (0, 1, 8, 8)
    assert "on_bad_image must be error or skip, got 'warn'" in fails(open_source, str(folder), on_bad_image="warn")


def test_a_limit_takes_images_from_all_of_the_set(tmp_path):
    folder = str(numbered(tmp_path / "set", 20))
    source = open_source(folder, limit=5)
    assert len(source) == 5 and values(source.batch(0, 5)) == [0, 4, 8, 12, 16] and values(source.batch(4, 5)) == [16]
    assert values(open_source(folder, limit=99).batch(0, 99)) == list(range(20))
    assert fails(open_source, folder, limit=0) == "limit must be at least 1 image, got 0"


def test_a_named_set_has_splits_and_a_folder_none(tmp_path):
    val, train = open_source("mnist"), open_source("mnist", split="train", limit=100)
    assert (len(val), len(train), val.name, train.name) == (10000, 100, "mnist val", "mnist train")
    assert val.batch(0, 3).shape == (3, 1, 28, 28) and val.form == "native" and not val.decodes
    config = DataConfig(image_size=16, fit="pad")
    fitted = open_source("mnist", split="val", form=Form(16, 1, "pad"), limit=50)
    assert torch.equal(fitted.batch(10, 50), load_data(config)[1].batch(torch.arange(10000)[::200][10:]))
    assert fails(open_source, "mnist", split="test") == "split of mnist must be train or val, got 'test'"
    folder = str(numbered(tmp_path / "set", 2))
    assert len(open_source(folder, split="all")) == 2
    for split in ("train", "val"):
        assert f"split {split} is of named sets and runs, but {folder} is" in fails(open_source, folder, split=split)
    assert "source 'mnst' is no named set" in fails(open_source, "mnst", split="train")


def test_a_manifest_says_which_images_and_not_where_they_lie(tmp_path):
    folder = numbered(tmp_path / "set", 20)
    first = open_source(str(folder)).manifest
    assert len(first) == 64 and first == open_source(str(folder), form=GREY, limit=20).manifest
    assert first == open_source(str(folder.rename(tmp_path / "moved"))).manifest
    others = [open_source(str(tmp_path / "moved"), limit=limit).manifest for limit in (5, 19)]
    (tmp_path / "moved" / "000.png").unlink()
    others.append(open_source(str(tmp_path / "moved")).manifest)
    mnist = [open_source("mnist", split=split, limit=1000) for split in ("train", "val")]
    others += [source.manifest for source in mnist]
    assert len({first, *others}) == 6
    assert ArraySource(open_source("mnist").batch(0, 10000)).manifest == open_source("mnist").manifest


@pytest.fixture
def run(tmp_path):
    """A function of data settings to a run folder."""

    def build(**data) -> Path:
        config = Config(data=DataConfig(**{"image_size": 8} | data), train=TrainConfig(steps=1))
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config.as_dict()))
        return folder

    return build


def test_a_run_gives_the_images_that_it_was_trained_and_validated_on(run, tmp_path):
    settings = {"source": str(numbered(tmp_path / "set", 20)), "val_fraction": 0.25, "split_seed": 3, "fit": "pad"}
    folder = run(**settings)
    train, val = load_data(DataConfig(image_size=8, **settings))
    for split, images in (("train", train), ("val", val)):
        source = run_source(folder, split)
        assert torch.equal(source.batch(0, 20), images.pixels)
        assert (source.name, source.form) == (f"{folder} {split}", "8x8x1 pad")
    assert run_source(folder).name == f"{folder} val" and len(run_source(folder, limit=2)) == 2
    other = numbered(tmp_path / "other", 3)
    assert len(run_source(run(source=settings["source"], val_source=str(other)))) == 3


def test_a_run_on_a_named_set_takes_its_splits_from_any_root(run, tmp_path):
    folder = run(source="mnist", image_size=32, fit="pad", root=str(tmp_path / "gone"))
    source, plain = (
        run_source(folder, "train", root=str(tmp_path), limit=9),
        open_source("mnist", split="train", limit=9),
    )
    assert source.form == "32x32x1 pad" and source.manifest == plain.manifest
    assert torch.equal(source.batch(0, 9)[..., 2:30, 2:30], plain.batch(0, 9))


def test_runs_without_such_images_are_named(run, tmp_path):
    source = numbered(tmp_path / "set", 4)
    folder = run(source=str(source), val_fraction=0)
    line = fails(run_source, folder)
    assert line == f"{folder} has no validation images (data.val_fraction 0.0): take split train"
    assert len(run_source(folder, "train")) == 4
    assert "must be train or val, got 'test'" in fails(run_source, folder, "test")
    source.rename(tmp_path / "elsewhere")
    assert fails(run_source, folder).startswith(f"{folder}: data.source '{source}' is no named set, and no such folder")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("image_size:", "image_sizes:"))
    assert "has fields that this version does not know" in fails(run_source, folder)
    (folder / "config.yaml").unlink()
    assert fails(run_source, folder).startswith(f"{folder} holds no config.yaml")


def test_arrays_are_taken_as_they_are_or_quantised():
    pixels = torch.randint(0, 256, (1500, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    source = ArraySource(pixels, "mine")
    assert (source.name, source.form, len(source), source.decodes) == ("mine", "native", 1500, False)
    assert torch.equal(source.batch(10, 20), pixels[10:20])
    for array in (
        pixels.numpy(),
        to_float(pixels),
        to_float(pixels).double().numpy(),
        pixels.flip(3).numpy()[..., ::-1],
    ):
        same = ArraySource(array)
        assert torch.equal(same.batch(0, 1500), pixels) and same.manifest == source.manifest
    fitted = ArraySource(pixels[:2], form=Form(4, 1, "pad"))
    assert fitted.batch(0, 2).shape == (2, 1, 4, 4) and fitted.form == "4x4x1 pad"


def test_other_arrays_are_refused():
    images = torch.zeros(2, 3, 4, 4)
    assert "got shape (2, 4, 4, 3): permute" in fails(ArraySource, images.permute(0, 2, 3, 1))
    assert "got shape (3, 4, 4)" in fails(ArraySource, images[0]) and "got shape (0, 3, 4, 4)" in fails(
        ArraySource, images[:0]
    )
    assert "got 0 … 255: scale it" in fails(ArraySource, torch.stack([images[0], images[1] + 255]))
    assert "got nan" in fails(ArraySource, images * torch.nan)
    assert "mine must be uint8, or floats in [-1, 1], got torch.int64" in fails(ArraySource, images.long(), "mine")


def test_samples_are_those_of_the_model_and_their_number_changes_none():
    drawn = model().eval()
    source = ModelSource(drawn, 10, seed=5, batch_size=4)
    assert (len(source), source.form, source.decodes) == (10, "8x8x1", False)
    batches = [source.batch(0, 4), source.batch(4, 8), source.batch(8, 10)]
    assert torch.equal(torch.cat(batches), torch.cat([x for _, x in prior_batches(drawn, range(0, 10, 4), 10, 5, 4)]))
    assert torch.equal(ModelSource(drawn, 9, seed=5, batch_size=4).batch(8, 9), batches[2][:1])
    assert batches[0].dtype == torch.uint8 and batches[2].shape == (2, 1, 8, 8)
    for span in ((2, 4), (0, 8)):
        with pytest.raises(AssertionError, match="is no batch"):
            source.batch(*span)


def test_a_manifest_of_samples_follows_weights_seed_and_number(tmp_path):
    drawn = model()
    first = ModelSource(drawn, 10, seed=5).manifest
    assert first == ModelSource(model(), 10, seed=5, batch_size=3).manifest
    drawn.save_pretrained(tmp_path)
    weights = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert first == hashlib.sha256(repr((weights, 5, 10)).encode()).hexdigest()
    changed = ModelSource(drawn, 10, seed=5)
    others = [ModelSource(drawn, 10, seed=6).manifest, ModelSource(drawn, 11, seed=5).manifest]
    with torch.no_grad():
        next(drawn.parameters()).view(-1)[0] += 1e-6
    assert len({first, changed.manifest, *others}) == 4


def test_reconstructions_are_those_of_the_model(mixed):
    drawn, source = model().eval(), open_source(str(mixed), form=GREY)
    again = ReconstructionSource(drawn, source)
    with torch.no_grad():
        expected = to_uint8(drawn.reconstruct(to_float(source.batch(1, 4))))
    assert torch.equal(again.batch(1, 4), expected) and len(again) == 5
    assert (again.name, again.form) == (f"{source.name} reconstructed", "8x8x1") and len(again.manifest) == 64
    assert again.manifest != ReconstructionSource(drawn, open_source(str(mixed), form=GREY, limit=4)).manifest


def test_reconstructions_leave_out_what_their_source_leaves_out(tmp_path):
    folder = numbered(tmp_path / "set", 5, damaged=(0, 1, 3))
    source = open_source(str(folder), form=GREY, on_bad_image="skip")
    again = ReconstructionSource(model(), source)
    assert again.batch(0, 5).shape == (2, 1, 8, 8) and again.batch(0, 2).shape == (0, 1, 8, 8)


def test_reconstructions_need_the_form_of_the_model(mixed):
    drawn = model()
    for source in (open_source(str(mixed)), open_source(str(mixed), form=Form(8, 3)), open_source("mnist")):
        line = fails(ReconstructionSource(drawn, source).batch, 0, 2)
        assert line == f"{source.name} ({source.form}) must be opened in the model's form 8x8x1"


def test_models_that_cannot_are_refused(mixed):
    assert "has no encoder" in fails(ReconstructionSource, model(encoder=False), open_source(str(mixed), form=GREY))
    assert "without a prior" in fails(ModelSource, model(variational=False), 4)
    assert len(ModelSource(model(encoder=False), 4)) == 4


def test_a_model_in_training_is_measured_as_in_use_and_goes_on(mixed):
    drawn, source = model(norm="batch"), open_source(str(mixed), form=GREY)
    before = {name: tensor.clone() for name, tensor in drawn.state_dict().items()}
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    samples, again = ModelSource(drawn, 4, batch_size=4).batch(0, 4), ReconstructionSource(drawn, source).batch(0, 5)
    assert torch.equal(torch.rand(1), expected)  # the global generator was left alone
    assert drawn.training and drawn.decoder.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in drawn.state_dict().items())
    drawn.eval()
    assert torch.equal(samples, ModelSource(drawn, 4, batch_size=4).batch(0, 4))
    assert torch.equal(again, ReconstructionSource(drawn, source).batch(0, 5))
