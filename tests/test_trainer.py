"""The alternating step and the run around it."""

import dataclasses
import json
import math
import shutil
import time

import pytest
import torch
from conftest import FULL_OBJECTIVE, replace
from torch import nn

from vaegan.config import ConfigError, ObjectiveConfig
from vaegan.model import VAEGAN, build_discriminator, build_model
from vaegan.networks.strided import StridedConv2d, StridedConvTranspose2d
from vaegan.training import NonFiniteLoss, run, trainer

PLAIN_VAE = ObjectiveConfig(pixel_weight=1.0)
PURE_GAN = ObjectiveConfig(kl_weight=0, pixel_weight=0, adversarial_weight=1.0, adversarial_loss="hinge")
LEAN_VAEGAN = ObjectiveConfig(feature_weight=1.0, adversarial_weight=1.0, fakes="both")


def parameters(t) -> torch.Tensor:
    modules = [m for m in (t.plain_model, t.plain_discriminator) if m is not None]
    return torch.cat([p.detach().flatten() for m in modules for p in m.parameters()])


def run_steps(t, count: int) -> list[dict]:
    batches = t.batches()
    return [t.train_step(next(batches)) for _ in range(count)]


class Counter:
    """Counts forwards with and without gradients, and backwards, of a module."""

    def __init__(self, module: nn.Module):
        self.forwards = self.no_grad_forwards = self.backwards = 0
        module.register_forward_hook(self._forward)
        module.register_full_backward_hook(self._backward)

    def _forward(self, *_):
        if torch.is_grad_enabled():
            self.forwards += 1
        else:
            self.no_grad_forwards += 1

    def _backward(self, *_):
        self.backwards += 1


@pytest.mark.parametrize("fakes, balance", [("prior", True), ("both", False)])
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_one_step_passes_each_network_as_often_as_it_must(tiny_config, make_trainer, fakes, balance):
    t = make_trainer(tiny_config(dataclasses.replace(LEAN_VAEGAN, fakes=fakes, balance=balance)))
    run_steps(t, 1)
    encoder, decoder, discriminator = (
        Counter(m) for m in (t.plain_model.encoder, t.plain_model.decoder, t.plain_discriminator)
    )
    t.train_step(next(t.batches()))
    assert (encoder.forwards, encoder.no_grad_forwards, encoder.backwards) == (1, 0, 1)
    assert (decoder.forwards, decoder.no_grad_forwards) == (1, 0)
    # Its own turn, on real images, reconstructions and prior samples together, and the autoencoder's; the features
    # of real images come without gradient.
    assert (discriminator.forwards, discriminator.no_grad_forwards) == (2, 1)
    # With an adversary on reconstructions, which the encoder must not hear, two gradients leave the same images.
    extra = fakes != "prior"
    assert (discriminator.backwards, decoder.backwards) == (2 + extra, 1 + extra)


def test_no_gradient_is_computed_that_nobody_uses(tiny_config, make_trainer, monkeypatch):
    """At each player's update the other player has no gradients, and its own are complete."""
    t = make_trainer(tiny_config(LEAN_VAEGAN))
    seen = []

    def look(optimizer, name, *rest):
        mine, other = (t.plain_model, t.plain_discriminator)[:: 1 if name == "autoencoder" else -1]
        seen.append(name)
        assert all(p.grad is not None for p in mine.parameters())
        assert all(p.grad is None for p in other.parameters())
        return update(optimizer, name, *rest)

    update = t._update
    monkeypatch.setattr(t, "_update", look)
    run_steps(t, 2)
    assert seen == ["discriminator", "autoencoder"] * 2


def test_a_plain_vae_has_no_discriminator_and_a_pure_gan_no_encoder(tiny_config, make_trainer):
    vae, gan = make_trainer(tiny_config(PLAIN_VAE)), make_trainer(tiny_config(PURE_GAN))
    assert vae.discriminator is None and gan.plain_model.encoder is None
    vae_terms, gan_terms = run_steps(vae, 1)[0], run_steps(gan, 1)[0]
    assert "kl" in vae_terms and not any("discriminator" in name for name in vae_terms)
    assert "adversarial" in gan_terms and "kl" not in gan_terms and "pixel" not in gan_terms


@pytest.mark.parametrize("asked, network, norm, expected", [
    (None, "light", "none", (False, True)), (None, "light", "group", (False, False)), (None, "conv", "group", (True, True)),
    (False, "conv", "none", (False, False)), (True, "light", "group", (True, True)),
])  # fmt: skip
def test_the_memory_layout_of_each_network(tiny_config, make_trainer, asked, network, norm, expected):
    """The default is a CPU's, on which group normalisation is slow in channels last."""
    model = {"network": network, "discriminator_norm": norm}
    t = make_trainer(tiny_config(model=model, train={"channels_last": asked}))
    for player, channels_last in zip((t.plain_model, t.plain_discriminator), expected):
        kernels = [p for p in player.parameters() if p.ndim == 4 and p.shape[2] > 1]
        assert kernels and all((kernel.stride(1) == 1) == channels_last for kernel in kernels)


def test_frozen_changes_nothing_and_gives_everything_back():
    module = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)), nn.BatchNorm1d(3))
    before = {k: v.clone() for k, v in module.state_dict().items()}
    x = torch.randn(4, 3, requires_grad=True)
    with trainer.frozen(module):
        module(x).sum().backward()
        assert all(p.grad is None for p in module.parameters()) and x.grad is not None
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert module.training and all(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("gate", [False, True])
def test_accumulation_equals_one_large_batch(tiny_config, make_trainer, gate):
    objective = FULL_OBJECTIVE
    if gate:
        objective = ObjectiveConfig(feature_weight=1.0, adversarial_weight=1.0, fakes="both", equilibrium_gate=True,
                                    equilibrium=0.69, equilibrium_margin=0.0, gradient_penalty_weight=0.1)  # fmt: skip
    one, four = (make_trainer(tiny_config(objective, train={"accumulate": n})) for n in (1, 4))
    one_terms, four_terms = run_steps(one, 10)[-1], run_steps(four, 10)[-1]
    assert one_terms.keys() == four_terms.keys()
    for name in (name for name in one_terms if not name.startswith("accuracy")):  # shares of a few images jump
        torch.testing.assert_close(
            one_terms[name], four_terms[name], rtol=2e-3, atol=2e-4, msg=lambda m: f"{name}: {m}"
        )
    torch.testing.assert_close(parameters(one), parameters(four), rtol=1e-3, atol=1e-4)


def test_gate_keeps_a_player_as_it_is(tiny_config, make_trainer):
    far_ahead = dict(feature_weight=1.0, adversarial_weight=1.0, equilibrium_gate=True, equilibrium_margin=0.0)
    for equilibrium, decoder_moves, discriminator_moves in ((5.0, True, False), (0.0, False, True)):
        t = make_trainer(tiny_config(ObjectiveConfig(**far_ahead, equilibrium=equilibrium)))
        nets = (t.plain_model.encoder, t.plain_model.decoder, t.plain_discriminator)
        before = [nn.utils.parameters_to_vector(m.parameters()).detach().clone() for m in nets]
        run_steps(t, 1)
        moved = [not torch.equal(b, nn.utils.parameters_to_vector(m.parameters())) for b, m in zip(before, nets)]
        assert moved == [True, decoder_moves, discriminator_moves]


def test_bf16_trains_in_bf16_and_keeps_float32_weights(tiny_config, make_trainer):
    t = make_trainer(tiny_config(), mixed_precision="bf16")
    dtypes = []
    t.plain_model.encoder.blocks[0].register_forward_hook(lambda m, i, out: dtypes.append(out.dtype))
    terms = run_steps(t, 4)
    assert set(dtypes) == {torch.bfloat16}
    assert parameters(t).dtype == torch.float32 and all(v.isfinite().all() for term in terms for v in term.values())
    plain = make_trainer(tiny_config())
    reference = run_steps(plain, 4)
    assert terms[0]["pixel"].item() == pytest.approx(reference[0]["pixel"].item(), rel=0.02)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_steps_equal_eager_ones(tiny_config, make_trainer):
    plain, compiled = make_trainer(tiny_config()), make_trainer(tiny_config(train={"compile": True}))
    for a, b in zip(run_steps(plain, 6), run_steps(compiled, 6)):
        for name in a:
            if not name.startswith("accuracy"):
                torch.testing.assert_close(a[name], b[name], rtol=2e-3, atol=2e-3, msg=lambda m: f"{name}: {m}")


def test_the_fast_step_is_the_plain_step(tiny_config, make_trainer):
    """Against torch's own convolutions: the same to rounding in float32, and no further off in bfloat16."""

    def trained(precision: str, plain: bool, **data) -> tuple[torch.Tensor, torch.Tensor]:
        t = make_trainer(tiny_config(data=data, model={"width": 8, "discriminator_width": 8}), precision)
        for layer in [*t.plain_model.modules(), *t.ema.module.modules(), *t.plain_discriminator.modules()] if plain else ():
            if isinstance(layer, (StridedConv2d, StridedConvTranspose2d)):
                layer.__class__ = nn.Conv2d if isinstance(layer, StridedConv2d) else nn.ConvTranspose2d
        before = parameters(t)
        run_steps(t, 4)
        return before, parameters(t)

    for channels in (1, 3):
        start, plain = trained("no", True, channels=channels)
        _, fast = trained("no", False, channels=channels)
        assert (fast - plain).norm() < 1e-2 * (plain - start).norm()
        _, plain_bf16 = trained("bf16", True, channels=channels)
        _, fast_bf16 = trained("bf16", False, channels=channels)
        assert (fast_bf16 - plain).norm() < 1.25 * (plain_bf16 - plain).norm()


def test_the_networks_can_be_ones_own(tiny_config, make_trainer):
    """What is given takes the place of what the config describes, and is trained."""
    t = make_trainer(config := tiny_config())
    model, discriminator = build_model(config), build_discriminator(config)
    model.decoder.blocks.append(nn.Hardtanh(-3, 3))
    own = trainer.Trainer(config, t.accelerator, t.images, None, model, discriminator)
    assert own.plain_model is model and own.plain_discriminator is discriminator
    before = [p.detach().clone() for p in [*model.parameters(), *discriminator.parameters()]]
    run_steps(own, 1)
    after = [*model.parameters(), *discriminator.parameters()]
    assert sum(not torch.equal(p, q) for p, q in zip(before, after)) > 0.8 * len(before)
    assert isinstance(own.sampling_model.decoder.blocks[-1], nn.Hardtanh)


def test_optimizer_options_take_effect(tiny_config, make_trainer):
    base = tiny_config(PLAIN_VAE)
    results = {}
    for name, fields in {
        "plain": {}, "l1": {"l1_weight": 0.1}, "l2": {"weight_decay": 1.0}, "clip": {"grad_clip": 1e-3},
        "cosine": {"schedule": "cosine"}, "warmup": {"warmup_steps": 4},
    }.items():  # fmt: skip
        t = make_trainer(replace(base, optimizer=fields))
        run_steps(t, 3)
        results[name] = parameters(t)
    for name, value in results.items():
        assert name == "plain" or not torch.equal(value, results["plain"]), f"{name} changes nothing"
    assert results["l2"].abs().sum() < results["plain"].abs().sum()


def test_fit_leaves_grids_logs_checkpoints_and_a_model(tiny_config, make_trainer, tmp_path):
    config = tiny_config(train={"sample_every": 6})
    run = tmp_path / "run"
    t = make_trainer(config)
    t.fit(run)
    assert t.step == 12
    for name in ("samples", "reconstructions"):
        assert (run / f"{name}.png").is_file()
        assert sorted(f.name for f in (run / name).iterdir()) == ["00000006.png", "00000012.png"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if "images_per_second" in line]
    assert [line["step"] for line in train] == [4, 8, 12]
    last = train[-1]
    for name in ("kl", "pixel", "feature", "adversarial", "adversarial_weight", "discriminator", "accuracy_real",
                 "accuracy_fake", "elbo", "bits_per_dim", "r1", "r2", "kl_weight", "grad_norm/autoencoder",
                 "grad_norm/discriminator"):  # fmt: skip
        assert math.isfinite(last[name]), name
    val = [line for line in lines if "val/elbo" in line]
    assert [line["step"] for line in val] == [6, 12] and {"val/psnr", "val/active_units", "val/bits_per_dim"} <= set(
        val[0]
    )
    assert (run / "config.yaml").is_file()
    model = VAEGAN.from_pretrained(run)
    for a, b in zip(model.parameters(), t.ema.module.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_tensorboard_gets_the_same_scalars_and_the_grids(tiny_config, tmp_path):
    from accelerate import Accelerator
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from vaegan.data import load_data
    from vaegan.training import Trainer

    config = tiny_config(train={"steps": 4})
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(tmp_path))
    Trainer(config, accelerator, *load_data(config.data)).fit(tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    for name in ("kl", "discriminator", "images_per_second"):
        assert events.Scalars(name)[0].value == pytest.approx(line[name], rel=1e-5)
    assert {"samples", "reconstructions"} <= set(events.Tags()["images"])


def test_early_stopping_exports_the_best(tiny_config, make_trainer, tmp_path, monkeypatch):
    values = iter([3.0, 2.0, 2.5, 2.6, 2.7])
    monkeypatch.setattr(run, "validate", lambda *a: {"val/mse": next(values)})
    t = make_trainer(
        tiny_config(train={"steps": 40, "val_every": 3, "save_every": 7, "monitor": "val/mse", "patience": 2})
    )
    t.fit(tmp_path / "run")
    assert t.step == 12 and t.monitor.best == {"step": 6, "value": 2.0}
    again = make_trainer(tiny_config())
    for micro in zip(range(6), again.batches()):
        again.train_step(micro[1])
    torch.testing.assert_close(
        nn.utils.parameters_to_vector(VAEGAN.from_pretrained(tmp_path / "run").parameters()),
        nn.utils.parameters_to_vector(again.ema.module.parameters()), rtol=0, atol=0,
    )  # fmt: skip
    t.fit(tmp_path / "run")  # a stopped run stays stopped
    assert t.step == 12
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step_00000006", "step_00000007", "step_00000012"]  # the best and the last two


def test_validation_is_exact(tiny_config, make_trainer):
    """Against a plain computation over the whole set at once."""
    from vaegan.data import to_float
    from vaegan.evaluation.reconstruction import validate

    t = make_trainer(tiny_config(PLAIN_VAE, data={"val_fraction": 0.3}))
    run_steps(t, 3)
    figures = validate(t.sampling_model, t.validation, t.config, t.shares)
    x = to_float(t.validation.batch(torch.arange(len(t.validation))))
    with torch.no_grad():
        mu, logvar = t.ema.module.encode(x)
        mse = (t.ema.module.decode(mu) - x).square().flatten(1).mean(1)
    posterior = torch.distributions.Normal(mu, (0.5 * logvar).exp())
    kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0, 1)).sum(1).mean()
    assert figures["val/psnr"] == pytest.approx((10 * torch.log10(4 / mse)).mean().item(), rel=1e-5)
    assert figures["val/kl"] == pytest.approx(kl.item(), rel=1e-5)
    assert figures["val/active_units"] == (mu.var(0, correction=0) > 0.01).sum().item()


def test_part_of_a_sorted_set_is_taken_from_all_of_it():
    """The first images of a set that is sorted by class are of one class alone."""
    from vaegan.data import spread_rows

    labels = torch.arange(10).repeat_interleave(37)  # sorted
    assert labels[spread_rows(370, 20)].bincount().tolist() == [2] * 10
    assert torch.equal(spread_rows(5, 5), torch.arange(5)) and torch.equal(spread_rows(5, 9), torch.arange(5))


@pytest.mark.parametrize("where", ["encoder", "decoder", "discriminator"])
def test_a_non_finite_loss_stops_the_run_and_keeps_the_checkpoint(
    tiny_config, make_trainer, tmp_path, monkeypatch, where
):
    t = make_trainer(tiny_config(train={"save_every": 3}))
    step = t.train_step

    def poisoned(micro_batches):
        if t.step == 7:
            net = t.plain_discriminator if where == "discriminator" else getattr(t.plain_model, where)
            with torch.no_grad():
                next(net.parameters()).fill_(math.nan)
        return step(micro_batches)

    monkeypatch.setattr(t, "train_step", poisoned)
    with pytest.raises(NonFiniteLoss, match="step 8"):
        t.fit(tmp_path / "run")
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names[-1] == "step_00000006"
    assert all(p.isfinite().all() for p in VAEGAN.from_pretrained(tmp_path / "run").parameters())


def test_weights_that_overflowed_are_not_saved(tiny_config, make_trainer, tmp_path, monkeypatch):
    t = make_trainer(tiny_config(train={"save_every": 3}))
    step = t.train_step

    def poisoned(micro_batches):
        terms = step(micro_batches)  # finite, as the losses were before the update
        if t.step == 6:
            with torch.no_grad():
                next(t.plain_discriminator.parameters()).fill_(math.inf)
        return terms

    monkeypatch.setattr(t, "train_step", poisoned)
    with pytest.raises(NonFiniteLoss, match="discriminator.*step 6"):
        t.fit(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000003"]


def test_impossible_runs_are_refused_before_anything_is_written(tiny_config, make_trainer, tmp_path):
    with pytest.raises(ConfigError, match=r"train.batch_size.*92|train.batch_size.*91"):
        make_trainer(tiny_config(train={"batch_size": 128})).fit(tmp_path / "run")
    with pytest.raises(ConfigError, match="train.monitor val/nothing"):
        make_trainer(tiny_config(train={"patience": 2, "monitor": "val/nothing"})).fit(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_epochs_become_steps(tiny_config, make_trainer):
    assert make_trainer(tiny_config(train={"steps": None, "epochs": 2.5})).total_steps == math.ceil(2.5 * (91 // 16))


def test_pauses_do_not_count_as_training(monkeypatch):
    from vaegan.training.run_log import Meter

    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    meter = Meter()
    meter.add({"loss": torch.tensor(1.0)}, 50)
    now[0] += 2
    with meter.paused():
        now[0] += 30
    meter.add({"loss": torch.tensor(1.0)}, 50)
    now[0] += 3
    assert meter.read()["images_per_second"] == pytest.approx(100 / 5)


def test_a_profiled_run_is_the_same_run(tiny_config, make_trainer, tmp_path):
    """To the bit, and after a resume it profiles what is left."""
    from vaegan.training import run_state

    plain, profiled = (make_trainer(tiny_config(LEAN_VAEGAN, train={"profile": n})) for n in (0, 1))
    for name, t in (("plain", plain), ("profiled", profiled)):
        t.fit(tmp_path / name)
    assert torch.equal(parameters(plain), parameters(profiled))
    assert not (tmp_path / "plain" / "profile").exists()
    resumed = make_trainer(tiny_config(LEAN_VAEGAN, train={"profile": 1}))
    shutil.rmtree(tmp_path / "profiled" / "checkpoints" / "step_00000012")
    shutil.rmtree(tmp_path / "profiled" / "profile")
    assert run_state.restore(resumed, tmp_path / "profiled") and resumed.step == 6
    resumed.fit(tmp_path / "profiled")
    assert torch.equal(parameters(plain), parameters(resumed))
    assert "Optimizer.step" in (tmp_path / "profiled" / "profile" / "operators.txt").read_text()
    json.loads((tmp_path / "profiled" / "profile" / "trace.json").read_text())


def test_the_grids_are_those_of_the_model(tiny_config, make_trainer, tmp_path):
    from vaegan import sampling
    from vaegan.training import run_log

    make_trainer(tiny_config(train={"steps": 3})).fit(tmp_path)
    samples = VAEGAN.from_pretrained(tmp_path).sample(run_log.GRID_SAMPLES, seed=0)
    picture = sampling.png(sampling.grid(sampling.to_uint8(samples), run_log.GRID_COLUMNS))
    assert (tmp_path / "samples.png").read_bytes() == picture
    assert (tmp_path / "samples" / "00000003.png").read_bytes() == picture


def test_no_checkpoint_is_ahead_of_the_curves(tiny_config, make_trainer, tmp_path, monkeypatch):
    """A run that is killed goes on from a checkpoint: what was logged before it must be there."""
    from vaegan.training.run_log import RunLog

    write, save, seen = RunLog._write_scalars, run.run_state.save, []

    def slowly(*arguments):
        time.sleep(0.02)
        write(*arguments)

    def look(t, run_dir, together):
        seen.append([json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()])
        return save(t, run_dir, together)

    monkeypatch.setattr(RunLog, "_write_scalars", slowly)
    monkeypatch.setattr(run.run_state, "save", look)
    make_trainer(tiny_config(train={"log_every": 1, "save_every": 2, "steps": 4, "val_every": 4})).fit(tmp_path)
    assert seen == [[1, 2], [1, 2, 3, 4, 4]]  # the last step is validated, too


def test_a_run_that_fails_leaves_what_it_had_logged_and_drawn(tiny_config, make_trainer, tmp_path, monkeypatch):
    t = make_trainer(tiny_config(train={"log_every": 1, "sample_every": 1}))
    step = t.train_step

    def fails(micro_batches):
        if t.step == 3:
            raise NonFiniteLoss("kl", 3)
        return step(micro_batches)

    monkeypatch.setattr(t, "train_step", fails)
    with pytest.raises(NonFiniteLoss):
        t.fit(tmp_path)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    assert sorted(file.name for file in (tmp_path / "samples").iterdir()) == [f"{i:08d}.png" for i in (1, 2, 3)]


def test_training_goes_on_where_pictures_cannot_be_written(tiny_config, make_trainer, tmp_path, caplog):
    (tmp_path / "samples").touch()  # a file where the folder should be
    t = make_trainer(tiny_config(train={"sample_every": 2, "log_every": 1}))
    t.fit(tmp_path)
    assert t.step == 12 and (tmp_path / "checkpoints" / "step_00000012").is_dir()
    assert "cannot be written" in caplog.text and "samples" in caplog.text


def test_a_share_of_which_not_every_so_manyth_is_reconstructed_is_refused(tiny_config, make_trainer, monkeypatch):
    """Processes would reconstruct unlike numbers of images, and their mean would not be that of one process."""
    objective = dataclasses.replace(LEAN_VAEGAN, fakes="prior", reconstruct_every=4)
    t = make_trainer(tiny_config(objective, train={"batch_size": 4}))
    t.batches()
    monkeypatch.setattr(type(t.accelerator), "num_processes", property(lambda self: 2))
    with pytest.raises(ConfigError, match=r"objective.reconstruct_every \(2 x 4\), got 4"):
        t.batches()
