"""scripts/check_data.py: what it finds, what it writes, and how it tells two states of a set apart."""

import hashlib
import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vaegan.config import ConfigError
from vaegan.data.check import look_at, report
from vaegan.data.files import open_folder
from vaegan.data.manifest import read_manifest, write_manifest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "check_data.py"


def write(path: Path, size=(8, 8), mode="RGB", seed=0, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200) if mode == "I;16" else Image.fromarray(pixels)
    (image if mode == "I;16" else image.convert(mode)).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    """Five sound images of two classes, one twice and one misnamed, and two damaged ones."""
    root = tmp_path / "photos"
    write(root / "cat" / "a.png", seed=1)
    write(root / "cat" / "b.jpg", (20, 10), seed=2)
    write(root / "cat" / "c.jpg", (30, 30), "L", seed=3, format="BMP")
    write(root / "dog" / "d.png", (9, 9), "RGBA", seed=4)
    (root / "dog" / "e.png").write_bytes((root / "cat" / "a.png").read_bytes())
    cut = write(root / "dog" / "f.png", seed=5)
    cut.write_bytes(cut.read_bytes()[:-20])
    (root / "dog" / "g.gif").write_text("no image")
    return root


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """The script's main function: its exit status and what it printed, in an empty working folder."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    spec = importlib.util.spec_from_file_location("check_data_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def call(*arguments) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["check_data.py", *map(str, arguments), "--workers", "1"])
        status = script.main()
        return status, capsys.readouterr().out

    return call


def fails(check, *arguments) -> str:
    with pytest.raises(ConfigError) as error:
        check(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def mend(folder: Path) -> Path:
    for name in ("f.png", "g.gif"):
        (folder / "dog" / name).unlink()
    return folder


def test_the_report_says_what_there_is(check, folder):
    status, text = check(folder, "--image-size", 10)
    lines = text.splitlines()
    assert status == 1 and lines[0].startswith("images      7, ")
    assert "formats     PNG 3, JPEG 1, BMP 1" in lines
    assert "modes       colour 3, grey 1, colour with transparency 1" in lines
    assert "classes     dog 4, cat 3" in lines
    assert "misnamed    1, as cat/c.jpg, which is BMP" in lines
    assert (
        "sizes       8 x 8 to 30 x 30, median 9 x 9; 3 with a side below 10, which would be enlarged or padded" in lines
    )
    assert "duplicates  1 images too many, in 1 groups of the same bytes" in lines
    assert "            cat/a.png = dog/e.png" in lines and "damaged     2" in lines
    assert "            dog/f.png cannot be decoded as an image (truncated PNG)" in lines
    assert "            dog/g.gif cannot be decoded as an image (unknown format)" in lines


def test_the_manifest_lists_every_file(check, folder, tmp_path):
    check(folder)
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["photos-manifest.json"]
    manifest = json.loads(Path("photos-manifest.json").read_text())
    images = open_folder("x", folder)
    assert manifest["source"] == str(folder) and manifest["count"] == 7 and manifest["digest"] == images.digest
    files = manifest["files"]
    assert [file["name"] for file in files] == images.names
    for file in files:
        data = (folder / file["name"]).read_bytes()
        assert file["bytes"] == len(data) and file["sha256"] == hashlib.sha256(data).hexdigest()
        assert file["class"] == file["name"][:3]
    assert (files[1]["width"], files[1]["height"], files[1]["mode"]) == (20, 10, "colour")
    assert files[5]["damage"] == "cannot be decoded as an image (truncated PNG)" and "mode" not in files[5]
    assert all("damage" not in file for file in files[:5])


def test_a_sound_set_is_status_0_and_nothing_goes_into_it(check, folder):
    before = sorted(mend(folder).rglob("*"))
    status, text = check(folder)
    assert status == 0 and "damaged     none" in text and sorted(folder.rglob("*")) == before


def test_a_manifest_tells_what_changed(check, folder, tmp_path):
    mend(folder)
    check(folder, "--manifest", tmp_path / "before.json")
    status, text = check(folder, "--against", tmp_path / "before.json")
    assert status == 0 and "changed     nothing since" in text and not list((tmp_path / "work").iterdir())
    bitmap = folder / "cat" / "c.jpg"
    data = bytearray(bitmap.read_bytes())
    data[-30] ^= 1  # a bit that no check sum covers
    bitmap.write_bytes(data)
    (folder / "dog" / "d.png").unlink()
    write(folder / "dog" / "new.png", seed=9)
    status, text = check(folder, "--against", tmp_path / "before.json", "--manifest", tmp_path / "after.json")
    assert status == 1 and "damaged     none" in text  # it decodes as before, but not to the same pixels
    for line in ("changed     cat/c.jpg", "removed     dog/d.png", "added       dog/new.png"):
        assert line in text.splitlines()
    assert sum(line.startswith(("changed", "removed", "added")) for line in text.splitlines()) == 3
    assert check(folder, "--against", tmp_path / "after.json")[0] == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_archives_and_workers_find_the_same(folder, tmp_path, workers):
    from vaegan.data.shards import open_files

    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(folder.rglob("*.*")):
            packed.write(path, path.relative_to(folder))
    expected = list(look_at(open_folder("x", folder), 0))
    assert list(look_at(open_files("x", archive), workers)) == expected and len(expected) == 7


def test_a_file_that_cannot_be_read_is_damaged_too(folder):
    images = open_folder("x", folder)
    (folder / "cat" / "b.jpg").unlink()
    found = list(look_at(images, 0))[1]
    assert found.sha256 is None and found.damage.startswith("cannot be read (") and found.label == "cat"
    assert any("b.jpg cannot be read" in line for line in report([found]))


@pytest.mark.parametrize(
    ("mode", "name", "expected"),
    [
        ("L", "a.png", "grey"), ("1", "a.png", "black and white"), ("P", "a.gif", "palette"), ("CMYK", "a.jpg", "CMYK"),
        ("LA", "a.png", "grey with transparency"), ("I;16", "a.png", "16-bit grey"), ("I;16", "a.tif", "16-bit grey"),
    ],
)  # fmt: skip
def test_modes_are_told_apart(tmp_path, mode, name, expected):
    write(tmp_path / name, mode=mode)
    (found,) = look_at(open_folder("x", tmp_path), 0)
    assert found.mode == expected and found.damage is None


def test_named_sets_are_checked_by_their_pixels(check, monkeypatch):
    import torch

    from vaegan.data import images as images_module
    from vaegan.data.named import ArrayImages

    pixels = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 4, 5).contiguous()
    pixels[2] = pixels[0]
    arrays = ArrayImages(pixels, torch.tensor([1, 0, 1]), ["zero", "one"])
    monkeypatch.setattr(images_module, "open_named", lambda field, name, root, train: arrays)
    status, text = check("mnist", "--split", "val")
    assert status == 0 and "modes       grey 3" in text and "classes     one 2, zero 1" in text
    assert "sizes       5 x 4 to 5 x 4" in text and "            000000 = 000002" in text
    files = json.loads(Path("mnist-val-manifest.json").read_text())["files"]
    assert files[1]["sha256"] == hashlib.sha256(b"\1" * 20).hexdigest() and files[1]["class"] == "zero"


def test_wrong_flags_and_files_are_one_line(check, folder, tmp_path, monkeypatch):
    assert "--split is of named sets" in fails(check, folder, "--split", "val")
    assert "SOURCE 'nowhere' is no named set" in fails(check, "nowhere")
    assert "must be a file in a folder that exists" in fails(check, folder, "--manifest", tmp_path / "no" / "a.json")
    assert "--image-size" in fails(check, folder, "--image-size", "0")
    bad = tmp_path / "bad.json"
    assert "--against" in fails(check, folder, "--against", bad) and "cannot be read" in fails(
        check, folder, "--against", bad
    )
    files = ["3", '[{"name": "a"}]', '[{"name": 1, "sha256": ""}]', '[{"name": [], "sha256": ""}]']
    for text in ("{", "[]", "[" * 9999, "\xff", *('{"files": %s}' % value for value in files)):
        bad.write_text(text, encoding="latin-1")
        assert "is no manifest (" in fails(check, folder, "--against", bad)
    monkeypatch.chdir(folder / "cat")
    assert "--manifest FILE must say where to write" in fails(check, folder)
    assert sorted(path.name for path in folder.rglob("*.json")) == []


def test_a_manifest_appears_whole_or_not_at_all(tmp_path, folder):
    findings = list(look_at(open_folder("x", folder), 0))
    path = tmp_path / "m.json"
    write_manifest(path, "x", "d", findings)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_manifest(path, "x", "d", [findings[0], None])
    assert path.read_bytes() == before and [p.name for p in tmp_path.glob("*m.json*")] == ["m.json"]
    write_manifest(path, "x", "d", [])
    assert read_manifest(path) == {}


def test_odd_names_survive_the_manifest(tmp_path):
    for i, name in enumerate(["ü ö.png", "a\nb.png", 'quote".png']):
        write(tmp_path / "set" / name, seed=i)
    write(tmp_path / "set" / "z.png", seed=9)
    findings = list(look_at(open_folder("x", tmp_path / "set"), 0))
    write_manifest(tmp_path / "m.json", "x", "d", findings)
    assert read_manifest(tmp_path / "m.json") == {found.name: found.sha256 for found in findings}


def test_from_the_command_line(folder, tmp_path):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=120
        )

    found = run(folder)
    assert found.returncode == 1 and "damaged     2" in found.stdout and (tmp_path / "photos-manifest.json").is_file()
    wrong = run(tmp_path / "nowhere")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: SOURCE") and "Traceback" not in wrong.stderr
    help_ = run("--help")
    assert help_.returncode == 0 and "--against" in help_.stdout and "Exit status" in help_.stdout
