"""A profile holds the steps that were asked for, and is there whole or not at all."""

import json

import pytest
import torch

from vaegan.training import profile


def traced(run_dir) -> int:
    """How many steps the trace of a run holds."""
    events = json.loads((run_dir / "profile" / "trace.json").read_text())["traceEvents"]
    return sum(event.get("name") == "aten::mm" for event in events)


def batches(n: int):
    return iter([torch.full((4, 4), float(i)) for i in range(n)])


@pytest.mark.parametrize("to_come, steps, recorded", [(20, 3, 3), (5, 3, 3), (13, 3, 3), (4, 9, 4), (1, 1, 1)])
@pytest.mark.filterwarnings("ignore:Profiler won't be using warmup")
def test_so_many_steps_are_profiled(tmp_path, to_come, steps, recorded):
    told, seen = [], []
    for batch in profile.profiled(batches(to_come), steps, to_come, tmp_path, told.append):
        seen.append(batch[0, 0].item())
        batch @ batch
    assert seen == list(range(to_come)) and traced(tmp_path) == recorded
    table = (tmp_path / "profile" / "operators.txt").read_text()
    assert "aten::mm" in table and "data" in table and "ms a step" in table
    assert len(told) == 1 and str(tmp_path / "profile") in told[0]
    assert sorted(file.name for file in (tmp_path / "profile").iterdir()) == ["operators.txt", "trace.json"]


def test_a_run_that_ends_early_has_the_profile_of_what_was_done(tmp_path):
    steps = profile.profiled(batches(30), 10, 30, tmp_path, lambda line: None)
    for _ in range(profile.WARM_UP + 4):
        batch = next(steps)
        batch @ batch
    steps.close()
    assert traced(tmp_path) == 4


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def fails(self, path):
        profile.Path(path).write_text("{")
        raise OSError("the disk is full")

    monkeypatch.setattr(profile.profile, "export_chrome_trace", fails)
    with pytest.raises(OSError, match="full"):
        for batch in profile.profiled(batches(4), 2, 4, tmp_path, lambda line: None):
            batch @ batch
    assert not list((tmp_path / "profile").iterdir())
