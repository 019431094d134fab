"""The benchmarks load, and say what was measured; what they measure is not tested."""

import importlib.util
import json
import math
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import REPOSITORY

from vaegan.config import ObjectiveConfig
from vaegan.evaluation.sources import open_source
from vaegan.model import VAEGAN, build_model
from vaegan.training import process


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_evaluation_benchmark(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    benchmark = load("evaluation")
    folders = benchmark.write_images(tmp_path, "mnist", 3)
    for folder, split in zip(folders, ("val", "train"), strict=True):
        written = torch.stack(open_source(folder).batch(0, 3))
        assert torch.equal(written, open_source("mnist", split=split, limit=3).batch(0, 3))
    found = {
        "torch-fidelity": [{"seconds": s, "distance": 2.002, "MiB": 70} for s in (9, 2, 8, 4)],  # the first warms up
        "vaegan, tf1": [{"seconds": s, "distance": 2.0, "MiB": 10 * s} for s in (9, 1, 2, 3)],
        "vaegan, tf1, bf16": [{"seconds": 1, "distance": math.nan, "MiB": 1}] * 4,
    }
    coming = {name: iter(results) for name, results in found.items()}
    monkeypatch.setattr(benchmark, "measured", lambda name, *of: next(coming[name]))
    (table,) = benchmark.tables(3, images=6, weights="", names=tuple(found))
    assert table.reference == "torch-fidelity" and [row.median for row in table.rows] == [3, 6, 12]
    assert [row.ratio for row in table.rows] == [1, 2, 4]  # 2/1, 8/2 and 4/3, round by round
    assert table.rows[0].note == "distance 2.002, 70 MiB, +1.0e-03 from vaegan, tf1"
    assert table.rows[1].note == "distance 2, 90 MiB" and "distance nan, 1 MiB" in table.rows[2].note


def test_growth_benchmark(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    growth, worker = load("growth"), load("growth_worker")
    archive = growth.digits(tmp_path / "digits.zip", 12)
    written = torch.stack(open_source(str(archive)).batch(0, 12))
    assert torch.equal(written, open_source("mnist", split="train", limit=12).batch(0, 12))
    assert worker.evaluation(str(archive), 12)[0]()["images/s"] > 0
    flags = (*growth._source(archive, "memory"), "--train.batch_size=4", "--train.device=cpu", "--train.threads=1")
    assert worker.data("mnist", flags, 8)[0]().keys() == {"images/s", "opened/s"}
    AcceleratorState._reset_state(True)  # it is one for the process, and remembers its first precision
    monkeypatch.setattr(process, "end_with_parent", lambda: None)
    for messages in (False, True):
        measure, accelerator = worker.training("mnist", flags, 1, 1, messages)
        assert measure()["images/s"] > 0 and accelerator.num_processes == 1
    with pytest.raises(AssertionError, match="1 processes, wanted 2"):
        worker.training("mnist", flags, 1, 2, True)

    script = "import sys\nfor i, _ in enumerate(sys.stdin): print('measured', '{\"MiB\": 5, \"images/s\": %d}' % 10**i, flush=True)"
    (tmp_path / "worker.py").write_text(script)
    monkeypatch.setattr(growth, "WORKER", tmp_path / "worker.py")
    table = growth._table("title", {name: growth.Worker("data") for name in "ab"}, 3, "µs an image", "")
    assert [(row.median, row.ratio, row.note) for row in table.rows] == [(1e4, 1, "5 MiB")] * 2  # of 10, 100, 1000
    (tmp_path / "worker.py").write_text("raise ValueError('no such thing')")
    with pytest.raises(SystemExit, match="no such thing"):
        growth._table("title", {"a": growth.Worker("data")}, 3, "images/s", "")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own count of a process's memory")
def test_memory_of_a_process_is_its_own():
    memory, python = load("memory"), [sys.executable, "-c"]
    small = memory.peak_of([*python, "import time; time.sleep(0.2)"])
    assert 1 < small < 100 < memory.peak()  # though this process is its parent
    assert 150 < memory.peak_of([*python, "import time; x = b'x' * (150 << 20); time.sleep(0.2)"]) < 250
    with pytest.raises(SystemExit, match="no such thing"):
        memory.peak_of([*python, "raise ValueError('no such thing')"])


def test_start_and_sampling_benchmarks(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    start = load("start")
    commands = []

    def seconds(command):
        commands.append(command)
        return 2.0

    with pytest.raises(SystemExit, match="no such option"):
        start.seconds([sys.executable, "-c", "raise SystemExit('no such option')"])
    monkeypatch.setattr(start, "SCRIPTS", tmp_path)  # where no training can start
    with pytest.raises(SystemExit, match="train.py"):
        start.first_step("")
    monkeypatch.setattr(start, "seconds", seconds)
    (table,) = start.sampling_tables(2, "data")
    assert [row.median for row in table.rows] == [500, 500, 5000, 5000, 2]
    assert [row.unit for row in table.rows] == ["images/s"] * 4 + ["s"]
    assert "--data.root=data" in commands[0] and len(commands) == 1 + 5 * 3  # a round before is not counted
    monkeypatch.setattr(start, "first_step", lambda root: 3.0)
    (table,) = start.start_tables(1, "")
    assert [row.median for row in table.rows] == [2, 2, 2, 2, 3]


def test_data_path_benchmark(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    benchmark = load("data_path")
    for name, value in {"WARM_UP": 1, "BATCHES": 2, "BATCH": 4, "WORKERS": 1}.items():
        monkeypatch.setattr(benchmark, name, value)
    pixels = benchmark.some_images("", 16)
    folder, archive = benchmark.write(pixels, tmp_path / "png", "png")
    assert torch.equal(benchmark.some_images(str(archive), 99), pixels[sorted(range(16), key=lambda i: (i % 10, i))])
    table = benchmark.delivery("png", folder, archive, 1)
    assert [row.name.split()[-1] for row in table.rows] == ["memory", "zip", "folder", "folder"]
    assert table.rows[-1].ratio == 1 and all(row.median > 0 for row in table.rows)
    assert [row.name for row in benchmark.decoding({"png": (folder, archive)}, 1).rows] == ["PNG, folder", "PNG, zip"]
    monkeypatch.setattr(benchmark, "training_step", lambda config, images: lambda: 2.0)
    for row in benchmark.need("mnist", pixels.repeat(8, 1, 1, 1), 1).rows:
        assert row.ratio == row.median / 2


def test_contestants_run_in_turn_and_are_compared_round_by_round(tmp_path):
    timing = load("timing")
    calls, speeds = [], {"a": iter([99.0, 2, 4, 9]), "b": iter([99.0, 1, 4, 3])}

    def contestant(name):
        return lambda: calls.append(name) or next(speeds[name])

    figures = timing.in_turn({name: contestant(name) for name in "ab"}, 3)
    assert calls == list("abababab") and figures == {"a": [2, 4, 9], "b": [1, 4, 3]}  # the first round warms up
    table = timing.Table("Steps", timing.rows(figures, "images/s", "b", {"a": "ours"}), "b", "Batches of 2.")
    assert (table.rows[0].median, table.rows[0].low, table.rows[0].high, table.rows[0].ratio) == (4, 2, 9, 2)
    timing.write(tmp_path, [table], {"command": "python benchmarks/speed.py", "processor": "some"})
    assert "| a | 4 | 2 – 9 | images/s | 2.00 | ours |" in (tmp_path / "speed.md").read_text()
    assert json.loads((tmp_path / "speed.json").read_text())["tables"][0]["rows"][1]["ratio"] == 1


def test_floor_counts_the_products_of_a_step():
    floor = load("floor")
    images, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3, requires_grad=True)
    matrix = torch.randn(5, 5)

    def steps():
        for _ in range(2):
            torch.nn.functional.conv2d(images, weight).sum().backward()
            matrix @ matrix
            matrix + matrix

    calls = floor.recorded(steps, 2)
    names = sorted(function.name().removeprefix("aten::") for function, _ in calls)
    assert names == ["convolution", "convolution_backward", "mm"] and set(calls.values()) == {1}
    assert 0 < floor.seconds(calls, 1) < floor.seconds({call: 1000.0 for call in calls}, 1)


def test_handwritten_loop_learns_with_the_same_weights(tiny_config, monkeypatch):
    handwritten, networks = load("handwritten"), load("networks")
    recipe = ObjectiveConfig(
        pixel_weight=1.0, pixel_scale=0.5, feature_weight=1.0, adversarial_weight=1.0, adversarial_loss="relativistic",
        fakes="prior", balance=True, r1_weight=1.0, r2_weight=1.0, penalty_interval=2,
    )  # fmt: skip
    config = tiny_config(recipe, train={"batch_size": 8})
    built = []
    monkeypatch.setattr(handwritten, "build_model", lambda config: built.append(build_model(config)) or built[-1])
    before = build_model(config).state_dict()
    handwritten.loop(config, networks.random_images(config, 16).pixels, 3)()
    (model,) = built
    assert model.state_dict().keys() == before.keys()
    assert {type(m) for m in model.modules() if isinstance(m, torch.nn.Conv2d)} == {torch.nn.Conv2d}
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), before.values()))


@pytest.mark.parametrize("case", ["pythae's MNIST networks", "pythae's CIFAR-10 networks"])
def test_pythaes_networks_are_the_same_in_our_trainer(case):
    pytest.importorskip("pythae", reason="pythae is not installed")
    networks = load("networks")
    shape = networks.SHAPES[case]
    torch.manual_seed(0)
    theirs = networks.pythae_model(case).eval()
    model = VAEGAN(shape[1], shape[0], networks.LATENT_DIM, network="mlp")
    torch.manual_seed(0)
    ours, discriminator = networks.as_ours(case, model)
    x = torch.rand(2, *shape)
    encoded = theirs.encoder(x)
    mu, logvar = ours.eval().encoder(x)
    torch.testing.assert_close((mu, logvar), (encoded.embedding, encoded.log_covariance))
    torch.testing.assert_close(ours.decoder(mu).sigmoid(), theirs.decoder(mu).reconstruction)
    logits, features = discriminator.eval()(x)
    level = networks.FEATURE_LAYER
    torch.testing.assert_close(logits.sigmoid(), theirs.discriminator(x).embedding.flatten())
    expected = theirs.discriminator(x, output_layer_levels=[level])[f"embedding_layer_{level}"]
    torch.testing.assert_close(features, expected)


def test_every_part_of_the_speed_benchmark_is_there(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    speed = load("speed")
    assert list(speed.PARTS) == ["step", "data", "evaluation", "sampling", "start", "growth", "memory"]
    step = sys.modules["step"]
    for case in step.CASES:
        for variant in step.VARIANTS.values():
            assert step._config(case, variant).train.batch_size == step.BATCH
