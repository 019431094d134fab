"""The benchmarks load, and say what was measured; what they measure is not tested."""

import importlib.util
import math

import torch
from conftest import REPOSITORY

from vaegan.evaluation.sources import open_source


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_evaluation_benchmark(tmp_path):
    benchmark = load("evaluation")
    folders = benchmark.write_images(tmp_path, "mnist", 3)
    for folder, split in zip(folders, ("val", "train"), strict=True):
        written = torch.stack(open_source(folder).batch(0, 3))
        assert torch.equal(written, open_source("mnist", split=split, limit=3).batch(0, 3))

    def runs(*seconds: float, distance: float = 2.0):
        return [{"seconds": s, "distance": distance, "MiB": 10 * s} for s in seconds]

    ours, theirs = "vaegan, tf1", "torch-fidelity"
    rows = benchmark.table({ours: runs(1, 4, 2), theirs: runs(3, 4, 8, distance=2.002)}, n=6).splitlines()
    assert rows[2] == "| vaegan, tf1 | 2.0 (1.0–4.0) | 6.0 | – | 2 | – | 40 |"
    assert rows[3] == "| torch-fidelity | 4.0 (3.0–8.0) | 3.0 | 3.00 | 2.002 | +1.0e-03 | 80 |"  # pair by pair
    assert "| nan |" in benchmark.table({theirs: runs(1, distance=math.nan)}, n=6)
