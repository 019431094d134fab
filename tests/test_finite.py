"""NaN and infinity: found in the step in which they come up, named, kept out of checkpoints, and by option left out."""

import math

import pytest
import torch
from conftest import FULL_OBJECTIVE, replace
from test_checkpoint import advance, assert_same_bits, state_of

from vaegan.model import VAEGAN
from vaegan.objectives import elbo, penalties
from vaegan.training import NonFiniteLoss, checkpoint

BAD_STEP = 7  # counted from 0: the step that leads to 8, with a penalty in it
TERMS = {  # where each term is made, and its name
    "kl": (elbo, "kl_divergence"), "pixel": (elbo, "gaussian_nll"), "r1, r2": (penalties, "zero_centred"),
    "gradient_penalty": (penalties, "one_centred"),
}  # fmt: skip
OBJECTIVE = replace(FULL_OBJECTIVE, gradient_penalty_weight=0.1, penalty_interval=1, free_bits=0.0)


@pytest.fixture
def run(tiny_config, make_trainer):
    def build(**train):
        return make_trainer(tiny_config(OBJECTIVE, train={"save_every": 3, **train}))

    return build


def once(t, patch):
    """Have `patch(micro_batches)` called before the bad step, the first time it is taken."""
    step, done = t.train_step, []

    def poisoned(micro_batches):
        if t.step == BAD_STEP and not done:
            done.append(1)
            patch(micro_batches)
        return step(micro_batches)

    t.train_step = poisoned


def require_stopped(t, folder, *words: str) -> str:
    with pytest.raises(NonFiniteLoss) as error:
        t.fit(folder)
    assert f"not finite at step {BAD_STEP + 1};" in str(error.value) and t.step == BAD_STEP  # in that step, not later
    assert all(word in str(error.value) for word in words), str(error.value)
    assert checkpoint.list_steps(folder / "checkpoints") == [3, 6]
    assert all(p.isfinite().all() for p in VAEGAN.from_pretrained(folder).parameters())
    return str(error.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", TERMS)
def test_a_term_is_named(run, tmp_path, monkeypatch, name, value):
    t, (module, function) = run(), TERMS[name]
    real = getattr(module, function)
    once(t, lambda _: monkeypatch.setattr(module, function, lambda *a: real(*a) * value))
    require_stopped(t, tmp_path, name)


@pytest.mark.parametrize("name", ["discriminator", "generator"])
def test_an_adversarial_term_is_named(run, tmp_path, monkeypatch, name):
    t = run()
    real = getattr(t.objective.adversarial, name)
    bad = t.objective.adversarial._replace(**{name: lambda *a: real(*a) * math.nan})
    once(t, lambda _: monkeypatch.setattr(t.objective, "adversarial", bad))
    require_stopped(t, tmp_path, {"generator": "adversarial"}.get(name, name))


@pytest.mark.parametrize("network", ["encoder", "decoder", "discriminator"])
def test_weights_and_gradients_of_a_network_are_named(run, tmp_path, network):
    for kind in ("weight", "gradient"):
        t = run()
        module = t.plain_discriminator if network == "discriminator" else getattr(t.plain_model, network)
        parameter = next(module.parameters())
        if kind == "weight":
            once(t, lambda _: parameter.data.view(-1)[0].fill_(math.nan))
        else:
            once(t, lambda _: parameter.register_hook(lambda g: g * math.inf))
        message = require_stopped(t, tmp_path / kind, f"{kind}{'s' * (kind == 'weight')} of the {network}")
        assert "(images" not in message  # no image is to blame
        if kind == "gradient":
            assert message.startswith(f"gradient of the {network} not finite")


def test_the_images_are_named_by_their_place_in_the_set(run, tmp_path):
    t = run()
    seen = []

    def poison(micro_batches):
        seen.extend(t.places_of_batch()[[2, 5]].tolist())
        pixels = t.images.batch(t.places_of_batch())
        sums = (micro_batches[0] + 1).mul(127.5).round().sum((1, 2, 3))  # mirrored or not
        assert torch.equal(sums, pixels.float().sum((1, 2, 3)))
        micro_batches[0][2, 0, 0, 0], micro_batches[0][5, 0, 1, 1] = math.nan, math.inf

    once(t, poison)
    message = require_stopped(t, tmp_path)
    assert f"(images {seen[0]}, {seen[1]} of the training set)" in message


def test_a_rollback_leaves_the_batch_out_and_takes_the_other_steps_as_ever(run, tmp_path, caplog):
    t = run(on_non_finite="rollback", log_every=1, save_every=5)
    once(t, lambda micro_batches: micro_batches[0].view(-1)[0].fill_(math.nan))
    t.fit(tmp_path / "run")
    assert t.step == 12 and t.skipped == [BAD_STEP] and "back to step 6" in caplog.text
    plain = run()
    for micro_batches in plain.batches():
        if plain.step == BAD_STEP:
            plain.step += 1
        else:
            plain.train_step(micro_batches)
    assert_same_bits(state_of(t), state_of(plain))
    assert checkpoint.load_latest(tmp_path / "run" / "checkpoints")[1]["skipped"] == [BAD_STEP]


def test_a_rollback_before_the_first_save_has_a_place_to_go_to(run, tmp_path):
    t = run(on_non_finite="rollback", save_every=100)
    once(t, lambda micro_batches: micro_batches[0].view(-1)[0].fill_(math.nan))
    t.fit(tmp_path)
    assert t.step == 12 and t.skipped == [BAD_STEP]


def test_a_rollback_that_has_no_checkpoint_stops(run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    t = run(on_non_finite="rollback", save_every=100)
    once(t, lambda micro_batches: micro_batches[0].view(-1)[0].fill_(math.nan))
    with pytest.raises(NonFiniteLoss, match=f"step {BAD_STEP + 1}"):
        t.fit(tmp_path)


def test_a_run_whose_batches_are_all_bad_stops_all_the_same(run, tmp_path):
    t = run(on_non_finite="rollback", save_every=100, steps=40)
    step = t.train_step

    def poisoned(micro_batches):
        micro_batches[0].view(-1)[0].fill_(math.nan)
        return step(micro_batches)

    t.train_step = poisoned
    with pytest.raises(NonFiniteLoss):
        t.fit(tmp_path)
    assert t.skipped == list(range(10)) and checkpoint.list_steps(tmp_path / "checkpoints") == [0, 6]


def test_finite_runs_are_the_same_with_and_without_rollback(run, tmp_path):
    a, b = run(), run(on_non_finite="rollback")
    advance(a, 12)
    b.fit(tmp_path)
    assert_same_bits(state_of(a), state_of(b))
