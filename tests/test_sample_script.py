"""scripts/sample.py: what each command writes, in one process and in two, and what it refuses in one line."""

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vaegan import sampling
from vaegan.config import ConfigError
from vaegan.data.decode import decode_file
from vaegan.model import VAEGAN

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "sample.py"
SIZE, SIDE = 16, 64 + 2  # of an image, and of its place in a picture


def load_script():
    spec = importlib.util.spec_from_file_location("sample_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def tiny(folder, **settings) -> str:
    torch.manual_seed(0)
    model = VAEGAN(**{"image_size": SIZE, "channels": 3, "latent_dim": 4, "width": 4} | settings)
    with torch.no_grad():
        for parameter in model.decoder.parameters():  # an untrained decoder's images are all alike
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("models") / "vaegan")


@pytest.fixture
def sample(tmp_path, monkeypatch):
    """The script's main function called with arguments, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    threads, script = torch.get_num_threads(), load_script()

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["sample.py", *map(str, arguments)])
        script.main()

    yield call
    torch.set_num_threads(threads)


def picture(path, rows, columns, channels=3):
    """The tiles of a picture, (rows * columns, C, SIZE, SIZE)."""
    height, width = rows * SIDE + 2, columns * SIDE + 2
    image = torch.from_numpy(np.array(Image.open(path)))
    assert image.shape == (height, width, channels)
    tiles = [image[2 + r * SIDE :: 4, 2 + c * SIDE :: 4][:SIZE, :SIZE] for r in range(rows) for c in range(columns)]
    return torch.stack(tiles).permute(0, 3, 1, 2)


def read(folder, n):
    return torch.stack([decode_file(folder / f"{i:08d}.png", SIZE, 3, "crop") for i in range(n)])


def alike(a, b):
    """Equal but for single levels where a convolution's last bit depended on the batch's size."""
    difference = (a.int() - b.int()).abs()
    return difference.max() <= 1 and (difference > 0).float().mean() < 1e-3


def test_a_grid_by_default(sample, run, tmp_path, capsys):
    sample(run, "--seed", 3)
    assert capsys.readouterr().out == "samples.png\n" and os.listdir(tmp_path) == ["samples.png"]
    expected = sampling.to_uint8(VAEGAN.from_pretrained(run).sample(64, seed=3))
    assert alike(picture("samples.png", 8, 8), expected)
    assert expected.float().std(0).mean() > 1  # the images differ, or the tests would prove little


def test_grid_of_a_given_shape(sample, run, tmp_path):
    sample(run, "--rows", 2, "--columns", 3, "--out", "new/g.png")
    sample(run, "--images", 6, "--out", "six")
    assert torch.equal(picture("new/g.png", 2, 3), read(tmp_path / "six", 6))


def test_images_to_a_folder_and_an_archive(sample, run, tmp_path, capsys):
    sample(run, "--images", 70, "--out", "many")
    sample(run, "--images", 70, "--out", "many.zip", "--batch-size", 9)
    assert capsys.readouterr().out == "many\nmany.zip\n" and sorted(os.listdir(tmp_path)) == ["many", "many.zip"]
    expected = sampling.to_uint8(VAEGAN.from_pretrained(run).sample(70))
    assert len(os.listdir("many")) == 70 and alike(read(tmp_path / "many", 70), expected)
    with zipfile.ZipFile("many.zip") as archive:
        assert archive.namelist() == sorted(os.listdir("many"))
        archive.extractall("unpacked")
    assert alike(read(tmp_path / "unpacked", 70), expected)


def test_seed_decides(sample, run):
    for seed, name in [(1, "a.zip"), (1, "b.zip"), (2, "c.zip")]:
        sample(run, "--images", 3, "--seed", seed, "--out", name)
    a, b, c = (Path(name).read_bytes() for name in ("a.zip", "b.zip", "c.zip"))
    assert a == b != c


def test_reconstructions_stand_beside_their_originals(sample, run, tmp_path):
    sample(run, "--images", 5, "--out", "given")
    sample(run, "--reconstruct", "given", "given/00000002.png", "--columns", 4)
    tiles = picture("reconstructions.png", 3, 4)
    originals = read(tmp_path / "given", 5)[[0, 1, 2, 3, 4, 2]]
    assert torch.equal(tiles[0::2], originals)
    with torch.no_grad():
        expected = sampling.to_uint8(VAEGAN.from_pretrained(run).reconstruct(originals / 127.5 - 1))
    assert alike(tiles[1::2], expected)


def test_one_reconstruction_is_one_pair_and_more_than_fit_are_told(sample, run, caplog):
    sample(run, "--images", 5, "--out", "given.zip")
    sample(run, "--reconstruct", "given.zip", "--columns", 2, "--rows", 1)
    assert "1 of 5 images: --rows 5 shows all" in caplog.text
    picture("reconstructions.png", 1, 2)
    caplog.clear()
    sample(run, "--reconstruct", "given.zip", "--columns", 2, "--rows", 5, "--out", "all.png")
    assert not caplog.records
    sample(run, "--reconstruct", "given.zip", "--out", "wide.png")
    picture("wide.png", 2, 8)


def test_given_images_are_fitted_as_in_training(sample, run, tmp_path):
    image = torch.full((3, SIZE // 2, SIZE // 2), 255, dtype=torch.uint8)
    sampling.save_png(image, Path("small.png"))
    corner = {}
    trained = tmp_path / "run"
    trained.mkdir()
    for file in Path(run).iterdir():
        (trained / file.name).write_bytes(file.read_bytes())
    for model, flags in [(run, []), (run, ["--fit", "pad"]), (trained, []), (trained, ["--fit", "stretch"])]:
        (trained / "config.yaml").write_text("data: {fit: pad}\n")
        sample(model, "--reconstruct", "small.png", *flags)
        corner[(model == run, *flags[1:])] = picture("reconstructions.png", 1, 2)[0, 0, 0, 0].item()
    assert corner == {(True,): 255, (True, "pad"): 0, (False,): 0, (False, "stretch"): 255}


def test_interpolation_between_samples(sample, run, tmp_path):
    sample(run, "--images", 4, "--out", "given")
    given = read(tmp_path / "given", 4)
    sample(run, "--interpolate")
    strip = picture("interpolation.png", 1, 10)
    assert alike(strip[[0, -1]], given[:2])
    jumps = (strip[1:].float() - strip[:-1].float()).abs().mean((1, 2, 3))
    assert jumps.max() < (given[0].float() - given[1].float()).abs().mean()  # the way is made in steps
    sample(run, "--interpolate", "--rows", 2, "--steps", 3)
    assert alike(picture("interpolation.png", 2, 3)[[0, 2, 3, 5]], given)
    sample(run, "--interpolate", 3, 1, "--columns", 4, "--out", "named.png")
    assert alike(picture("named.png", 1, 4)[[0, -1]], given[[3, 1]])


def test_interpolation_between_images(sample, run, tmp_path):
    sample(run, "--images", 2, "--out", "given")
    sample(run, "--interpolate", "given/00000000.png", "given/00000001.png", "--steps", 5)
    with torch.no_grad():
        images = read(tmp_path / "given", 2) / 127.5 - 1
        ends = sampling.to_uint8(VAEGAN.from_pretrained(run).reconstruct(images))
    assert alike(picture("interpolation.png", 1, 5)[[0, -1]], ends)


def test_a_gan_and_an_autoencoder_do_what_they_can(sample, tmp_path, run):
    sample(run, "--images", 2, "--out", "given")
    gan, autoencoder = tiny(tmp_path / "gan", encoder=False), tiny(tmp_path / "ae", variational=False)
    sample(gan)
    sample(gan, "--interpolate", 0, 1)
    sample(autoencoder, "--reconstruct", "given")
    sample(autoencoder, "--interpolate", "given/00000000.png", "given/00000001.png")
    for arguments in (["--reconstruct", "given"], ["--interpolate", "given/00000000.png", "1"]):
        with pytest.raises(ConfigError, match="has no encoder"):
            sample(gan, *arguments)
    for arguments in ([], ["--images", 2, "--out", "x"], ["--interpolate"], ["--interpolate", "given/00000000.png", 1]):
        with pytest.raises(ConfigError, match="--reconstruct IMAGE or --interpolate A.png B.png"):
            sample(autoencoder, *arguments)
    assert not Path("x").exists()


@pytest.mark.parametrize(
    "arguments,line",
    [
        ([], "RUN"),
        (["/nowhere"], "no folder"),
        (["../nothing"], "no folder"),
        (["."], "holds no config.json"),
        (["RUN", "--images", "0", "--out", "x"], "--images: must be a whole number from 1"),
        (["RUN", "--images", "-3", "--out", "x"], "--images: must be a whole number from 1"),
        (["RUN", "--images", "some", "--out", "x"], "--images: must be a whole number from 1"),
        (["RUN", "--images", "3"], "--out FOLDER or --out FILE.zip"),
        (["RUN", "--images", "3", "--out", "x", "--rows", "2"], "neither --rows"),
        (["RUN", "--images", "3", "--out", "x.tar"], "must be a folder or end in .zip"),
        (["RUN", "--images", "3", "--out", "."], "not empty"),
        (["RUN", "--images", "3", "--out", "text.txt/x"], "cannot be written"),
        (["RUN", "--images", "3", "--interpolate", "--out", "x"], "not allowed with"),
        (["RUN", "--out", "x.jpg"], "must be a .png file"),
        (["RUN", "--out", "text.txt/x.png"], "cannot be written"),
        (["RUN", "--batch-size", "0"], "--batch-size: must be"),
        (["RUN", "--seed", "x"], "--seed"),
        (["RUN", "--device", "cuda"], "--device cuda is not to be had"),
        (["RUN", "--unknown"], "--unknown"),
        (["RUN", "--reconstruct", "nothing.png"], "nothing.png cannot be read"),
        (["RUN", "--reconstruct", "text.txt"], "text.txt cannot be decoded"),
        (["RUN", "--reconstruct", "empty"], "holds no images"),
        (["RUN", "--reconstruct", "a.png", "--columns", "3"], "--columns must be even"),
        (["RUN", "--interpolate", "a.png"], "between two"),
        (["RUN", "--interpolate", "1", "2", "--rows", "3"], "one row"),
        (["RUN", "--interpolate", "1", "nothing.png"], "nothing.png cannot be read"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_writes_nothing(sample, run, tmp_path, arguments, line):
    Path("text.txt").write_text("no image")
    Path("empty").mkdir()
    with pytest.raises(ConfigError, match=line) as caught:
        sample(*(run if word == "RUN" else word for word in arguments))
    assert len(str(caught.value).splitlines()) == 1
    assert sorted(os.listdir(tmp_path)) == ["empty", "text.txt"]


def test_help_comes_without_torch():
    code = f"import sys; sys.argv = ['sample.py', '--help']; sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
    code += "import sample\ntry: sample.main()\nexcept SystemExit: print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SCRIPT.parents[1])
    assert "usage: sample.py" in result.stdout and result.stdout.endswith("False\n")


def test_an_error_is_one_line_and_status_2(tmp_path):
    result = subprocess.run([sys.executable, SCRIPT, tmp_path / "no"], capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1


WORKER = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(SCRIPT.parent)!r})
import sample
from vaegan import cli, sampling

def batch_starts(n, batch_size, rank=0, processes=1, real=sampling.batch_starts):
    Path(f"rank-{{rank}}-of-{{processes}}").touch()
    return real(n, batch_size, rank, processes)

sampling.batch_starts = batch_starts
for out in ("two", "two.zip"):
    sys.argv[1:] = [sys.argv[1], "--images", "50", "--batch-size", "8", "--out", out]
    if out == "two":
        from vaegan.training import process
        leave, process.leave = process.leave, lambda accelerator: None
    else:
        process.leave = leave
    cli.run(sample.main)
"""


def test_two_processes_write_the_bytes_of_one(sample, run, tmp_path):
    sample(run, "--images", 50, "--batch-size", 8, "--out", "one.zip")
    Path("worker.py").write_text(WORKER)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    result = subprocess.run([*launcher, "worker.py", run], capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "two\ntwo.zip\n"
    assert sorted(file.name for file in tmp_path.glob("rank-*")) == ["rank-0-of-2", "rank-1-of-2"]
    assert Path("two.zip").read_bytes() == Path("one.zip").read_bytes()
    with zipfile.ZipFile("one.zip") as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            file.name: file.read_bytes() for file in Path("two").iterdir()
        }
    assert not list(tmp_path.glob(".*"))
