"""The quality benchmark: what its contestants are, its records, its tables; not what it finds."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import REPOSITORY
from PIL import Image

from vaegan.config import ConfigError
from vaegan.data.images import Form
from vaegan.evaluation.sources import open_source
from vaegan.model import build_discriminator, build_model
from vaegan.sampling import as_pil, to_uint8
from vaegan.training import process

TESTS = REPOSITORY / "tests"
MODULES = ("quality", "contestants", "rivals", "quality_records", "quality_table", "quality_pictures", "quality_score",
           "quality_samplers", "quality_worker", "quality_environment", "quality_pythae", "timing")  # fmt: skip


@pytest.fixture
def load(monkeypatch):
    """A function that imports a module of benchmarks/, as its own scripts do; a test has them to itself."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(process, "end_with_parent", lambda: None)
    monkeypatch.setattr(process, "use_cpu", lambda threads: None)
    AcceleratorState._reset_state(True)
    yield importlib.import_module
    AcceleratorState._reset_state(True)
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """128 digits of 28 x 28 pixels."""
    folder = tmp_path_factory.mktemp("digits")
    for i, image in enumerate(open_source("mnist", limit=128).batch(0, 128)):
        as_pil(image).save(folder / f"{i:03d}.png")
    return folder


@pytest.fixture
def job(load, digits, tmp_path, monkeypatch):
    """Of a trial in seconds with a tiny extractor."""
    monkeypatch.syspath_prepend(TESTS)
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    return load("quality_records").Job(
        "vae", 0, "mnist", 0.01, str(tmp_path / "results"), str(tmp_path / "work"), samples=32,
        extractor="tiny_extractor:build", threads=1, images=(str(digits), str(digits)),
    )  # fmt: skip


# ---------------------------------------------------------------------- contestants


def test_only_the_objective_differs_among_ours(load, job):
    contestants = load("contestants")
    for data, budget in contestants.RECIPES:
        at = replace(job, data=data, budget=budget, images=())
        recipe = contestants.config_of(contestants.named("vaegan"), at)
        names = [c.name for c in contestants.CONTESTANTS if not c.rival] if data == "mnist" else ["gan", "larsen"]
        for config in (contestants.config_of(contestants.named(name), at) for name in names):
            assert (config.data, config.model, config.train) == (recipe.data, recipe.model, recipe.train)
            assert config.name == "vaegan" or config.objective != recipe.objective
    recipes = [json.dumps(contestants.recipe_of(c, job)) for c in contestants.CONTESTANTS]
    assert len(set(recipes)) == len(recipes)
    gan, vae = (contestants.config_of(contestants.named(name), job) for name in ("gan", "vae"))
    assert build_model(gan).encoder is None and build_discriminator(gan) is not None
    assert build_model(vae).encoder is not None and build_discriminator(vae) is None
    larsen = contestants.config_of(contestants.named("larsen"), job)
    assert larsen.objective.reconstruction_gamma == 1e-6 and larsen.optimizer.lr == 3e-4
    with pytest.raises(ConfigError, match="'vea' is none of vaegan, gan"):
        contestants.named("vea")


def test_each_row_of_the_ablation_is_another_recipe(load, job):
    contestants, records = load("contestants"), load("quality_records")
    base, without, *others = [contestants.recipe_of(row, job) for row in contestants.ABLATION]
    assert without == contestants.recipe_of(contestants.named("vaegan"), job)
    assert records.differences(base, without) == ["objective.feature_weight 1.0, now none"]
    assert len({records.digest(recipe) for recipe in (base, *others)}) == 1 + len(others)
    choices = [records.differences(base, recipe) for recipe in others]
    assert all(1 <= len(changes) <= 2 for changes in choices)
    assert not any("feature" in change for changes in choices for change in changes)


def test_training_stops_by_the_clock_and_a_schedule_follows_it(load, job, monkeypatch):
    contestants = load("contestants")
    from vaegan.training import optimizers

    calls, rates = iter(range(1000)), []
    monkeypatch.setattr(contestants, "time", SimpleNamespace(perf_counter=lambda: next(calls) / 8))
    setter = optimizers.set_learning_rate
    monkeypatch.setattr(optimizers, "set_learning_rate", lambda o, rate: rates.append(rate) or setter(o, rate))
    falling = contestants.Contestant(
        "x", "x", {"kl_weight": 1.0}, {"optimizer.schedule": "linear", "train.batch_size": 8}
    )
    model, done = contestants.train_ours(falling, job, 1.0)
    assert (done["steps"], done["images"], done["seconds"]) == (7, 56, 1.12) and done["images/s"] == round(
        56 / 1.125, 2
    )
    first, *later = [rate / rates[0] for rate in rates]
    assert later == pytest.approx([1 - elapsed / 8 for elapsed in range(2, 8)], abs=0.07) and first == 1
    assert done["parameters"].keys() == {"encoder", "decoder"} and not model.training
    assert done["parameters"]["decoder"] == sum(p.numel() for p in model.decoder.parameters())


# ---------------------------------------------------------------------- records


def command(job, *flags: str) -> list[str]:
    given = {"contestants": job.contestant, "seeds": job.seed, "minutes": job.minutes, "samples": job.samples,
             "extractor": job.extractor, "threads": 1, "results": job.results, "work": job.work}  # fmt: skip
    return ["quality.py", *(f"--{name}={value}" for name, value in given.items()), "--images", *job.images, *flags]


def test_a_finished_contestant_is_not_trained_again(load, job, monkeypatch, capsys):
    quality = load("quality")
    monkeypatch.setattr(sys, "argv", command(job))
    assert quality.main() == 0  # in a process of its own
    record = load("quality_records").read(job.record)
    batch_size = load("contestants").config_of(load("contestants").named("vae"), job).train.batch_size
    assert record["trained"]["steps"] > 0 and record["trained"]["images"] == batch_size * record["trained"]["steps"]
    assert record["trained"]["parameters"].keys() == {"encoder", "decoder"} and record["trained"]["latents"] > 0
    label = record["protocol"]["label"]
    assert {label, f"reconstruction {label}", "floor", "kid", "f1", "psnr", "ssim", "bits_per_dim"} <= record[
        "figures"
    ].keys()
    assert record["figures"]["floor"] < record["figures"][label]
    assert record["setting"]["images"] == [Path(part).name for part in job.images]
    assert str(job.results) not in job.record.read_text() and job.record.stat().st_size < 20_000
    assert [Image.open(job.picture(kind)).size for kind in ("samples", "reconstructions")] == [(265, 133), (265, 265)]
    assert "| VAE, our networks | 1 |" in capsys.readouterr().out

    monkeypatch.setattr(quality, "_run", lambda *of: pytest.fail("a process was started"))
    before = job.record.read_bytes()
    assert quality.main() == 0 and job.record.read_bytes() == before
    monkeypatch.setattr(sys, "argv", command(replace(job, samples=16)))
    with pytest.raises(ConfigError, match="measured otherwise .samples 32, now 16.: give --again"):
        quality.main()
    # Measured again from the weights that were kept, without a training.
    worker = load("quality_worker")
    monkeypatch.setattr(worker, "_train", lambda *of: pytest.fail("it was trained again"))
    worker.perform(replace(job, samples=16))
    again = load("quality_records").read(job.record)
    assert again["trained"] == record["trained"] and again["setting"]["samples"] == 16
    assert again["figures"]["floor"] != record["figures"]["floor"]

    again["recipe"]["objective"]["kl_weight"] = 2.0
    job.record.write_text(json.dumps(again))
    with pytest.raises(ConfigError, match=r"another recipe .objective.kl_weight 2.0, now none.: give --again"):
        quality.main()
    started = []
    monkeypatch.setattr(quality, "_run", lambda one, environment: started.append(one) or True)
    monkeypatch.setattr(sys, "argv", command(replace(job, samples=16), "--again"))
    assert quality.main() == 0 and [one.contestant for one in started] == ["vae"]


def test_contestants_take_turns_so_that_none_has_a_slow_hour_alone(load, job, monkeypatch):
    quality = load("quality")
    started = []

    def run(one, python):
        started.append((one.contestant, one.seed))
        by_hand(load, job, *started[-1], **{"FD[tiny]": 10.0})
        return True

    monkeypatch.setattr(quality, "_run", run)
    flags = command(replace(job, contestant="vaegan"))
    at = flags.index("--contestants=vaegan")
    flags[at : at + 2] = ["--contestants", "vaegan", "gan", "--seeds", "0", "2"]
    monkeypatch.setattr(sys, "argv", flags)
    assert quality.main() == 0
    assert started == [("vaegan", 0), ("gan", 0), ("vaegan", 2), ("gan", 2)]


def test_a_training_that_diverges_is_recorded(load, job, monkeypatch):
    worker = load("quality_worker")

    def diverging(*of):
        raise FloatingPointError("loss/kl not finite at step 7; lower the rate")

    monkeypatch.setattr(worker, "_train", diverging)
    worker.perform(job)
    record = load("quality_records").read(job.record)
    assert record["figures"] == {} and record["notes"] == ["diverged: loss/kl not finite at step 7"]
    text = load("quality_table").write(job, [load("contestants").named("vae")])
    assert "| VAE, our networks | 1 |" in text and "- VAE, our networks: diverged: loss/kl" in text


def test_what_the_command_line_refuses(load, monkeypatch, tmp_path):
    quality = load("quality")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused = {
        ("--budget=gpu",): "--budget gpu is of cifar10",
        ("--data=cifar10", "--budget=gpu", f"--results={tmp_path}"): "no GPU here",
        ("--minutes=0",): "must be a number of minutes above 0, got 0",
        ("--contestants", "rae"): "'rae' is none of",
        ("--table-only", f"--results={tmp_path}"): "holds no records",
    }
    for flags, line in refused.items():
        monkeypatch.setattr(sys, "argv", ["quality.py", *flags])
        with pytest.raises(ConfigError, match=line):
            quality.main()


def test_environment_is_made_once(load, monkeypatch, tmp_path):
    environment = load("quality_environment")
    commands, version = [], ""

    def run(command, **options):
        nonlocal version
        if "-c" not in command:
            commands.append(command[1:4])
        if "venv" in command:
            (tmp_path / "made" / "bin").mkdir(parents=True)
            (tmp_path / "made" / "bin" / "python").touch()
        if "install" in command:
            version = "0.1.2"
        return SimpleNamespace(stdout=version)

    monkeypatch.setattr(environment, "subprocess", SimpleNamespace(run=run, CalledProcessError=OSError))
    for _ in range(2):
        assert environment.python_with("0.1.2", tmp_path / "made") == tmp_path / "made" / "bin" / "python"
    assert commands == [["-m", "venv", str(tmp_path / "made")], ["-m", "pip", "install"]]
    version = ""
    (tmp_path / "made" / environment.MARK).unlink()  # somebody's own
    with pytest.raises(ConfigError, match="has no pythae 0.1.2"):
        environment.python_with("0.1.2", tmp_path / "made")


# ---------------------------------------------------------------------- tables


def by_hand(load, job, name: str, seed: int, **figures: float) -> dict:
    """A record, written beside the others."""
    records, contestants = load("quality_records"), load("contestants")
    one = job.of_seed(name, seed)
    record = {
        "contestant": name, "seed": seed, "setting": job.setting, "notes": [], "figures": {"floor": 1.5} | figures,
        "recipe": contestants.recipe_of(contestants.named(name), one),
        "trained": {"images/s": 100.0 + seed, "latents": 12, "parameters": {"decoder": 250_000}},
        "protocol": {"label": "FD[tiny]", "extractor": "tiny", "reference images": "abc"},
        "machine": {"processor": "some", "cores": 2, "torch": "2"},
    }  # fmt: skip
    records.write_json(one.record, record)
    records.write(one.picture("samples"), load("quality_score").picture(torch.zeros(64, 1, 32, 32, dtype=torch.uint8)))
    return record


def test_table_of_records(load, job):
    table, contestants = load("quality_table"), load("contestants")
    for seed, distance in enumerate((9.0, 12.0, 10.0)):
        by_hand(load, job, "vaegan", seed, **{"FD[tiny]": distance, "psnr": 14.0 + seed})
    by_hand(load, job, "gan", 0, **{"FD[tiny]": 11.0, "kid": 0.0123})
    text = table.write(job, contestants.CONTESTANTS)
    lines = text.splitlines()
    assert lines[2] == "|  | seeds | FD[tiny] ↓ | KID ×10³ ↓ | PSNR (dB) ↑ | images/s | latents | parameters (M) |"
    assert lines[4] == (
        "| vaegan, the recipe | 3 | **10.00** (9.00 – 12.00) | – | 15.00 (14.00 – 16.00) | 101 (100 – 102) "
        "| 12 (12 – 12) | – + 0.25 + – |"
    )
    assert lines[5] == "| GAN, our networks | 1 | 11.00 | 12.30 | – | 100 | 12 | – + 0.25 + – |"
    assert lines[6].startswith("| real images: the floor |  | 1.50 |  |") and {
        line.count("|") for line in lines[2:7]
    } == {9}
    assert (
        "`python benchmarks/quality.py --data mnist --minutes 0.01 --samples 32 --extractor tiny_extractor:build"
        in text
    )
    assert (job.folder / "table.md").read_text() == text
    plain = json.loads((job.folder / "table.json").read_text())
    assert plain["rows"][0]["figures"]["FD[tiny]"] == {"median": 10.0, "low": 9.0, "high": 12.0}
    bars = table.results(table.rows_of(job, contestants.CONTESTANTS))[0].figures
    assert [bars[f"FD[tiny]{end}"] for end in ("", " 2.5 %", " 97.5 %")] == [10.0, 9.0, 12.0]
    assert Image.open(job.folder / "chart.png").width > 100
    assert Image.open(job.folder / "samples.webp").size == (2 * 265 + 10, 265 + 24)  # beside each other, captioned

    for seed, distance in enumerate((9.0, 12.0, 10.0)):
        by_hand(load, job, "with_features", seed, **{"FD[tiny]": distance})
    for seed in (0, 1):
        by_hand(load, job, "no_ema", seed, **{"FD[tiny]": 20.0})
    lines = table.write(job, contestants.ABLATION, ablation=True).splitlines()
    assert lines[4].startswith("| the recipe with learned similarity | 2 | **10.50** (9.00 – 12.00)")  # seeds of all
    assert lines[5].startswith("| no averaged weights | 2 | 20.00 (20.00 – 20.00)")


def test_captions_name_the_distance_of_what_they_show(load, job):
    table, contestants = load("quality_table"), load("contestants")
    by_hand(load, job, "vaegan", 0, **{"FD[tiny]": 9.0, "reconstruction FD[tiny]": 30.04})
    by_hand(load, job, "gan", 0, **{"FD[tiny]": 11.0})
    rows = table.rows_of(job, contestants.CONTESTANTS)
    assert [table.captioned(row, "samples") for row in rows] == ["vaegan, the recipe: 9.0", "GAN, our networks: 11.0"]
    assert [table.captioned(row, "reconstructions") for row in rows] == [
        "vaegan, the recipe: 30.0",
        "GAN, our networks",
    ]


def test_unlike_records_make_no_table(load, job):
    table, contestants = load("quality_table"), load("contestants")
    by_hand(load, job, "vaegan", 0, **{"FD[tiny]": 9.0})
    record = by_hand(load, job, "gan", 0, **{"FD[tiny]": 9.0})
    file = job.of_seed("gan", 0).record
    for changes, line in (
        ({"setting": record["setting"] | {"samples": 64}}, "samples 32, now 64"),
        ({"protocol": record["protocol"] | {"extractor": "other"}}, "extractor is tiny in vaegan-0 and other in gan-0"),
        ({"protocol": record["protocol"] | {"reference images": "def"}}, "other reference images"),
        ({"setting": None}, "no record of this benchmark"),
    ):
        file.write_text(json.dumps(record | changes))
        with pytest.raises(ConfigError, match=line):
            table.rows_of(job, contestants.CONTESTANTS)
    file.write_text(json.dumps(record))
    old = record["recipe"] | {"objective": record["recipe"]["objective"] | {"r1_weight": 7.0}}
    job.of_seed("gan", 1).record.write_text(json.dumps(record | {"seed": 1, "recipe": old}))
    with pytest.raises(ConfigError, match="the seeds of gan were made by several recipes"):
        table.rows_of(job, contestants.CONTESTANTS)
    file.unlink()
    assert "another recipe than the present one (objective.r1_weight 7.0, now" in table.write(
        job, contestants.CONTESTANTS
    )


# ---------------------------------------------------------------------- pythae


@pytest.fixture
def theirs(load):
    pytest.importorskip("pythae", reason="pythae is not installed")
    return load("quality_pythae")


def test_pythaes_images_are_ours_without_their_border(load, theirs, job, digits, tmp_path):
    contestants = load("contestants")
    native = open_source(str(digits)).batch(0, 128)
    images = theirs.training_images(contestants.named("pythae_vae"), job)
    assert torch.equal(images, torch.stack(native).float() / 255)
    padded = open_source(str(digits), form=Form(32, 1, "pad")).batch(0, 128)
    assert torch.equal(padded, torch.nn.functional.pad(torch.stack(native), (2, 2, 2, 2)))
    ours = theirs.training_images(contestants.named("pythae_vaegan_our_networks"), job)
    assert torch.equal(ours, padded.float() / 255)

    theirs_vae = theirs.build(contestants.named("pythae_vae"), job).eval()
    model = theirs.opened(theirs_vae, contestants.named("pythae_vae"), job)
    x = padded[:2].float() / 127.5 - 1
    mu, logvar = model.encode(x)
    out = theirs_vae.encoder(images[:2])
    torch.testing.assert_close((mu, logvar), (out.embedding, out.log_covariance), rtol=1e-4, atol=1e-5)
    shown, native = model.decode(mu), theirs_vae.decoder(mu).reconstruction
    torch.testing.assert_close(shown[..., 2:-2, 2:-2], 2 * native - 1)
    assert torch.equal(to_uint8(shown), torch.nn.functional.pad(to_uint8(2 * native - 1), (2, 2, 2, 2)))
    torch.testing.assert_close(model.sample(1, seed=3, start=1), model.sample(2, seed=3)[1:], rtol=1e-4, atol=1e-5)

    full = tmp_path / "full"
    full.mkdir()
    Image.new("L", (32, 32), 9).save(full / "a.png")
    Image.new("L", (32, 32), 9).save(full / "b.png")
    with pytest.raises(ConfigError, match="more in the border"):
        theirs.training_images(contestants.named("pythae_vae"), replace(job, images=(str(full), str(full))))


def test_our_networks_are_the_same_as_pythaes(load, theirs, job):
    contestants = load("contestants")
    contestant = contestants.named("pythae_vaegan_our_networks")
    config = contestants.config_of(contestant, job)
    torch.manual_seed(0)
    model, discriminator = build_model(config).eval(), build_discriminator(config).eval()
    torch.manual_seed(0)
    built = theirs.build(contestant, job).eval()
    images = torch.rand(3, 1, 32, 32)
    x = 2 * images - 1
    encoded = built.encoder(images)
    torch.testing.assert_close(model.encode(x), (encoded.embedding, encoded.log_covariance))
    torch.testing.assert_close(
        (model.decode(encoded.embedding) + 1) / 2, built.decoder(encoded.embedding).reconstruction
    )
    logits, features = discriminator(x)
    level = built.reconstruction_layer
    out = built.discriminator(images, output_layer_levels=[level])
    assert list(out) == [f"embedding_layer_{level}"]  # no more is computed than is asked for
    torch.testing.assert_close(out[f"embedding_layer_{level}"], features)
    torch.testing.assert_close(built.discriminator(images).embedding.flatten(), logits.sigmoid())
    opened = theirs.opened(built, contestant, job)
    torch.testing.assert_close(opened.reconstruct(x), model.reconstruct(x), rtol=1e-4, atol=1e-5)


def test_pythaes_trainer_stops_by_the_clock(load, theirs, job):
    contestants, records = load("contestants"), load("quality_records")
    contestant = contestants.named("pythae_vaegan_our_networks")
    one = job.of_seed(contestant.name, 1)
    load("quality_worker").perform(one)
    record = records.read(one.record)
    done = record["trained"]
    assert done["steps"] >= 1 and done["images"] <= 64 * done["steps"] and done["seconds"] >= 0.6
    assert done["parameters"].keys() == {"encoder", "decoder", "discriminator"}
    assert record["recipe"]["values"]["latent_dim"] == done["latents"] and record["figures"]["psnr"] > 0
    clock = theirs.Clock(1e9)
    clock.on_train_begin(None)
    for _ in range(2):  # epochs of 128 images in batches of 100
        clock.on_train_step_begin(None, train_loader=SimpleNamespace(dataset=range(128)))
        for _ in range(2):
            clock.on_train_step_end(SimpleNamespace(per_device_train_batch_size=100))
    assert (clock.steps, clock.images) == (4, 256)


def test_rae_is_sampled_by_its_mixture(load, theirs, job):
    contestants = load("contestants")
    rae, wae = contestants.named("pythae_rae"), contestants.named("pythae_wae")
    model = theirs.open_model(rae, job)
    assert not model.variational and model.encode(torch.zeros(1, 1, 32, 32) - 1)[1] is None
    sampler = theirs.sampler(rae, job, model)
    z = sampler(4000, 0, 0, torch.device("cpu"))
    images = open_source(str(job.images[0]), form=Form(32, 1, "pad")).batch(0, 128).float() / 127.5 - 1
    encoded = model.encode(images)[0].detach()
    torch.testing.assert_close(z.mean(0), encoded.mean(0), rtol=0, atol=0.15 * encoded.std().item())
    assert torch.equal(sampler(2, 0, 5, torch.device("cpu")), z[5:7])
    z = theirs.sampler(wae, job, model)(4000, 0, 0, torch.device("cpu"))
    assert abs(z.mean()) < 0.02 and abs(z.std() - 1) < 0.02
    assert theirs.sampler(contestants.named("pythae_vae"), job, model) is None


# ---------------------------------------------------------------------- samplers


def test_distances_by_sampler_are_of_the_weights_that_were_measured(load, job, monkeypatch, capsys):
    quality, records = load("quality"), load("quality_records")
    monkeypatch.setattr(sys, "argv", command(job, "--samplers"))
    with pytest.raises(ConfigError, match="no weights of vae"):
        quality.main()
    load("quality_worker").perform(job)
    assert quality.main() == 0
    of, record = records.read_json(job.by_sampler), records.read(job.record)
    label = record["protocol"]["label"]
    assert list(of["figures"]) == ["prior", "mixture", "second_stage"]
    assert of["figures"]["prior"][label] == pytest.approx(record["figures"][label], rel=1e-6)
    assert len({figures[label] for figures in of["figures"].values()}) == 3
    table = (job.folder / "table.md").read_text().split("### Distance by sampler")[1]
    assert [line.split(" | ")[2] for line in table.splitlines() if " | 0 | " in line] == list(of["figures"])
    records.write_json(job.by_sampler, of | {"recipe hash": "of an earlier recipe"})
    assert "Distance by sampler" not in load("quality_table").write(job, load("contestants").CONTESTANTS)
