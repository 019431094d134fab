"""The model: one training pass, sampling, reconstruction, and saving and opening without pickle."""

import json

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from vaegan import counter
from vaegan.config import Config, ConfigError, DataConfig, ModelConfig, ObjectiveConfig, TrainConfig
from vaegan.model import VAEGAN, build_discriminator, build_model

SMALL = {"image_size": 8, "latent_dim": 3, "width": 4, "max_width": 8, "hidden": (12, 8)}
NETWORKS = ["light", "conv", "mlp"]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def inputs(n=4, channels=1):
    return torch.rand(n, channels, 8, 8) * 2 - 1, torch.randn(n, 3), torch.randn(n, 3)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_the_training_pass_is_the_separate_passes(network, norm):
    model = VAEGAN(**SMALL, network=network, norm=norm)
    model.eval() if norm == "batch" else model.train()  # in training, batch statistics are those of the joint batch
    torch.nn.init.normal_(model.encoder.logvar.bias)
    x, eps, z_prior = inputs()
    out = model(x, eps, z_prior)
    mu, logvar = model.encode(x)
    z = mu + torch.exp(logvar / 2) * eps
    for got, expected in ((out.mu, mu), (out.logvar, logvar), (out.z, z)):
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(
        out.raw.tanh(), torch.cat([model.decode(z), model.decode(z_prior)]), atol=1e-6, rtol=1e-5
    )
    assert out.log_scale is None
    torch.testing.assert_close(model(x, eps, None).raw, out.raw[:4], atol=1e-6, rtol=1e-5)
    only_prior = model(None, eps, z_prior)
    torch.testing.assert_close(only_prior.raw, out.raw[4:], atol=1e-6, rtol=1e-5)
    assert only_prior.mu is None and only_prior.logvar is None and only_prior.z is None


def test_the_posterior_sample_has_the_encoders_moments():
    model = VAEGAN(**SMALL)
    with torch.no_grad():
        model.encoder.logvar.bias.copy_(torch.tensor([-2.0, 0.0, 1.0]))
        x = torch.rand(1, 1, 8, 8).expand(2, -1, -1, -1)
        mu, logvar = model.encode(x)
        eps = torch.stack([torch.ones(3), -2 * torch.ones(3)])
        z = model(x, eps, None).z
    torch.testing.assert_close((z - mu) / eps, (logvar / 2).exp())
    torch.testing.assert_close(logvar[0], torch.tensor([-2.0, 0.0, 1.0]))


def test_reconstructions_and_images_are_in_range():
    model = VAEGAN(**SMALL).eval()
    x, _, z = inputs()
    torch.testing.assert_close(model.reconstruct(x), model.decode(model.encode(x)[0]))
    torch.testing.assert_close(model.decode(z), model.decoder(z).tanh())
    with torch.no_grad():
        assert model.decode(1000 * z).abs().max() <= 1


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_samples_depend_on_seed_and_position_alone(network, norm):
    model = VAEGAN(**SMALL, network=network, norm=norm).eval()
    full = model.sample(7, seed=3)
    assert full.shape == (7, 1, 8, 8) and not full.requires_grad
    for cuts in ((3, 4), (1,) * 7, (5, 2)):
        starts = [sum(cuts[:i]) for i in range(len(cuts))]
        parts = torch.cat([model.sample(n, seed=3, start=start) for n, start in zip(cuts, starts)])
        torch.testing.assert_close(parts, full, atol=1e-5, rtol=1e-5)
    torch.manual_seed(9)
    assert torch.equal(model.sample(7, seed=3), full)
    assert (model.sample(7, seed=4) - full).abs().amax((1, 2, 3)).min() > 1e-4
    z = counter.normal(torch.arange(7), 3, counter.key(3, "sample"))
    torch.testing.assert_close(full, model.decode(z).detach(), atol=1e-5, rtol=1e-5)


def test_a_model_without_encoder_samples_and_refuses_to_encode():
    model = VAEGAN(**SMALL, encoder=False)
    assert model.encoder is None and model.sample(2).shape == (2, 1, 8, 8)
    for call in (model.encode, model.reconstruct):
        with pytest.raises(ValueError, match="no encoder"):
            call(torch.rand(1, 1, 8, 8))
    assert model(None, None, torch.randn(2, 3)).raw.shape == (2, 1, 8, 8)


def test_a_deterministic_model_encodes_the_mean_and_refuses_to_sample():
    model = VAEGAN(**SMALL, variational=False)
    x, eps, _ = inputs()
    mu, logvar = model.encode(x)
    assert logvar is None and torch.equal(model(x, eps, None).z, model(x, 100 * eps, None).z)
    torch.testing.assert_close(model(x, eps, None).z, mu)
    with pytest.raises(ValueError, match="deterministic"):
        model.sample(1)


def test_the_learned_scale_is_a_parameter_that_starts_at_one():
    model = VAEGAN(**SMALL, learned_scale=True)
    assert model.log_scale.requires_grad and model.log_scale.item() == 0 and model.log_scale.ndim == 0
    x, eps, z = inputs()
    assert model(x, eps, z).log_scale is model.log_scale


@pytest.mark.parametrize(
    "settings",
    [{}, {"network": "conv", "depth": 2, "channels": 3}, {"network": "mlp", "norm": "batch"}, {"norm": "batch"},
     {"norm": "none", "variational": False}, {"encoder": False}, {"learned_scale": True}],
)  # fmt: skip
def test_a_saved_model_opens_as_it_was(tmp_path, settings):
    model = VAEGAN(**{**SMALL, **settings})
    x = torch.rand(5, settings.get("channels", 1), 8, 8) * 2 - 1
    z = torch.randn(5, 3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * torch.randn_like(p))
        if settings.get("norm") == "batch":
            model(x, z, z)  # moves the running statistics
    model.to(memory_format=torch.channels_last).save_pretrained(tmp_path / "model")
    opened = VAEGAN.from_pretrained(tmp_path / "model")
    assert not opened.training and next(opened.parameters()).device.type == "cpu"
    assert opened.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(opened.state_dict().values(), model.state_dict().values()))
    model.eval()
    torch.testing.assert_close(opened.decode(z), model.decode(z))
    assert (
        opened.image_shape == model.image_shape and opened.latent_dim == 3 and opened.variational == model.variational
    )
    again = tmp_path / "again"
    opened.save_pretrained(again)
    assert json.loads((again / "config.json").read_text()) == json.loads((tmp_path / "model/config.json").read_text())


def test_saving_leaves_no_partial_file_and_replaces_an_old_model(tmp_path):
    VAEGAN(**SMALL).save_pretrained(tmp_path)
    newer = VAEGAN(**SMALL)
    newer.save_pretrained(tmp_path)
    assert not [file.name for file in tmp_path.iterdir() if file.name.startswith(".")]
    z = torch.randn(2, 3)
    torch.testing.assert_close(VAEGAN.from_pretrained(str(tmp_path)).decode(z), newer.eval().decode(z))


@pytest.fixture
def saved(tmp_path):
    VAEGAN(**SMALL).save_pretrained(tmp_path)
    return tmp_path


def refusal(folder) -> str:
    with pytest.raises(ConfigError) as error:
        VAEGAN.from_pretrained(folder)
    line = str(error.value)
    assert line and "\n" not in line and len(line) < 600
    return line


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "removed"}))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    assert name in refusal(saved)


def test_a_folder_of_pickles_is_refused_and_not_opened(saved):
    class Bomb:
        def __reduce__(self):
            return (exec, ("raise SystemExit('unpickled')",))

    (saved / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt", "model.safetensors.bin"):
        torch.save({"decoder.weight": Bomb()}, saved / name)
    assert "model.safetensors" in refusal(saved)


def test_a_pickle_under_the_name_of_safetensors_is_refused(saved):
    torch.save(VAEGAN(**SMALL).state_dict(), saved / "model.safetensors")
    assert "model.safetensors" in refusal(saved)


@pytest.mark.parametrize("keep", [0, 4, 100, -10])
def test_truncated_weights_are_refused(saved, keep):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert str(file) in refusal(saved)


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_weights_of_another_architecture_are_refused(saved, change):
    tensors = load_file(saved / "model.safetensors")
    if change == "missing":
        del tensors["encoder.mu.bias"]
    elif change == "extra":
        tensors["encoder.more"] = torch.zeros(1)
    else:
        tensors["encoder.mu.bias"] = torch.zeros(9)
    save_file(tensors, saved / "model.safetensors")
    refusal(saved)


@pytest.mark.parametrize(
    "changes",
    [{"latent_dim": 4}, {"latent_dim": "removed"}, {"image_size": 16}, {"image_size": 48}, {"image_size": "8"},
     {"image_size": None}, {"network": "conv"}, {"network": "mlp"}, {"network": "resnet"}, {"norm": "none"},
     {"norm": "batch"}, {"variational": False}, {"encoder": False}, {"learned_scale": True}, {"max_width": 6},
     {"width": -4}, {"hidden": 3, "network": "mlp"}, {"norm": "layer", "network": "mlp"}, {"activation": "relu"}],
)  # fmt: skip
def test_a_config_that_does_not_describe_the_weights_is_refused(saved, changes):
    edit_config(saved, **changes)
    assert "config.json" in refusal(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"light"', "\xff"])
def test_a_damaged_config_is_named(saved, text):
    (saved / "config.json").write_bytes(text.encode("latin-1"))
    assert "config.json" in refusal(saved)


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "", "."])
def test_what_is_no_folder_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    refusal(name)
    refusal(tmp_path / "none")


@pytest.mark.parametrize("name", ["runs/mistyped", "my runs/first"])
def test_a_mistyped_run_folder_is_one_line_although_it_looks_like_a_hub_id(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert name in refusal(name)


def whole(data, model, objective) -> Config:
    return Config(data=data, model=model, objective=ObjectiveConfig(**objective), train=TrainConfig(steps=1))


def tiny(model=None, **objective) -> Config:
    settings = {"width": 4, "discriminator_width": 4, "latent_dim": 3} | (model or {})
    return whole(DataConfig(image_size=8), ModelConfig(**settings), objective)


def test_built_models_hold_what_their_terms_need(tmp_path):
    vae = build_model(tiny())
    assert vae.encoder is not None and vae.log_scale is None and build_discriminator(tiny()) is None
    gan = tiny(kl_weight=0.0, pixel_weight=0.0, adversarial_weight=1.0)
    assert build_model(gan).encoder is None and build_discriminator(gan) is not None
    learned = tiny(pixel_likelihood="gaussian_learned")
    assert build_model(learned).log_scale is not None
    assert (
        build_model(tiny(pixel_likelihood="gaussian_learned", pixel_weight=0.0, feature_weight=1.0)).log_scale is None
    )
    autoencoder = build_model(tiny({"variational": False}, kl_weight=0.0))
    assert autoencoder.encoder.logvar is None
    autoencoder.save_pretrained(tmp_path)
    assert not VAEGAN.from_pretrained(tmp_path).variational
    settings = ModelConfig(feature_layer=0, spectral_norm=True, discriminator_width=4)
    chosen = build_discriminator(whole(DataConfig(image_size=32), settings, {"feature_weight": 1.0}))
    assert chosen.feature_layer == 0 and hasattr(chosen.logit, "parametrizations")


def test_every_field_of_the_model_section_reaches_the_networks():
    config = whole(
        DataConfig(image_size=16, channels=3),
        ModelConfig(network="conv", latent_dim=7, width=8, max_width=12, depth=2, norm="batch",
                    discriminator_width=4, discriminator_norm="group"),
        {"adversarial_weight": 1.0},
    )  # fmt: skip
    model, discriminator = build_model(config), build_discriminator(config)
    assert model.image_shape == (3, 16, 16) and model.encoder.mu.out_features == 7
    assert model.encoder.mu.in_features == 12 * 16 and discriminator.logit.in_features == 12 * 16
    kinds = [{type(m).__name__ for m in network.modules()} for network in (model, discriminator)]
    assert "BatchNorm2d" in kinds[0] and "GroupNorm" in kinds[1] and "BatchNorm2d" not in kinds[1]
    mlp = ModelConfig(network="mlp", hidden=(20, 10), discriminator_hidden=(9, 8, 7))
    dense = whole(DataConfig(), mlp, {"adversarial_weight": 1.0})
    assert build_model(dense).encoder.mu.in_features == 10 and build_discriminator(dense).logit.in_features == 7
    assert len(build_discriminator(dense).blocks) == 3 == dense.discriminator_blocks


@pytest.mark.parametrize("size", [8, 16, 64, 512])
@pytest.mark.parametrize("network", ["light", "conv"])
def test_the_config_counts_the_discriminators_blocks(size, network):
    model = ModelConfig(network=network, discriminator_width=1, max_width=2)
    config = whole(DataConfig(image_size=size), model, {"adversarial_weight": 1.0})
    assert len(build_discriminator(config).blocks) == config.discriminator_blocks
