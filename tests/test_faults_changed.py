"""What may differ when a run goes on, and what is refused: other images, and options that have nothing to go on with."""

import shutil
from pathlib import Path

import pytest
from conftest import replace
from PIL import Image
from resume_worker import advance, bits, differences, differing_resumes, restored, uninterrupted

from vaegan.config import ConfigError
from vaegan.training import run_state


def _png(file: Path, grey: int, noise: int = 0) -> None:
    Image.effect_noise((8, 8), noise).save(file) if noise else Image.new("L", (8, 8), grey).save(file)


CHANGES = {
    "added": lambda folder, name: _png(folder / "new.png", 9),
    "removed": lambda folder, name: (folder / name).unlink(),
    "replaced": lambda folder, name: _png(folder / name, 9),
    "renamed": lambda folder, name: (folder / name).rename(folder / f"{name[:-4]}b.png"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("part", ["training", "validation"])
def test_other_images_are_refused_unless_they_are_allowed(
    tiny_config, make_trainer, image_folder, tmp_path, change, part
):
    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    config = tiny_config(data={"source": str(folder)}, train={"steps": 4})
    t = make_trainer(config)
    run_state.save(advance(t, 2), tmp_path / "run")
    images = t.images if part == "training" else t.validation
    CHANGES[change](folder, images._source.names[2])
    again = make_trainer(config)
    before = bits(again)
    with pytest.raises(ConfigError) as error:
        run_state.restore(again, tmp_path / "run")
    line = str(error.value)
    assert (
        f"data.source {folder} has changed since" in line and "--allow_changed_data true" in line and "\n" not in line
    )
    assert differences(bits(again), before) == []
    allowed = restored(make_trainer, replace(config, allow_changed_data=True), tmp_path / "run")
    assert differences(bits(allowed), bits(t)) == []
    assert advance(allowed).step == 4


def test_where_and_how_images_are_kept_may_differ(tiny_config, make_trainer, tmp_path):
    config = tiny_config(data={"storage": "memory"}, train={"steps": 4})
    final = bits(uninterrupted(make_trainer, config, tmp_path))
    elsewhere = {"storage": "stream", "workers": 1, "root": str(tmp_path), "memory_limit": 0.0}
    assert differing_resumes(make_trainer, replace(config, data=elsewhere), tmp_path, final, [2]) == {}


def test_an_average_cannot_begin_in_the_middle(tiny_config, make_trainer, tmp_path):
    run_state.save(advance(make_trainer(tiny_config(train={"ema_decay": 0.0})), 2), tmp_path)
    with pytest.raises(
        ConfigError, match="^train.ema_decay is 0.9 but .* was trained with 0.0: set it so, or [^\\n]*$"
    ):
        run_state.restore(make_trainer(tiny_config(train={"ema_decay": 0.9})), tmp_path)
