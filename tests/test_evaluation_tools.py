"""The same images, in folders, and the same weights: our figures are those that each tool gives by its own front door.

A random state dict of the Inception architecture stands in for the published weights, as a file that all tools load.
Three of the tools take half a minute for one square root of a matrix; test_evaluation_features.py holds their features to
ours each time.
"""

import pytest
import torch
from test_evaluation_features import images, inception_file  # noqa: F401

from vaegan.evaluation import evaluate
from vaegan.evaluation.features import load_extractor
from vaegan.evaluation.sources import open_source
from vaegan.sampling import save_png

N = 14


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders of PNG files, one of small images that are enlarged, one of mid-sized ones."""
    folder = tmp_path_factory.mktemp("tools")
    for name, size, seed in (("real", 32, 1), ("fake", 48, 2)):
        for i, image in enumerate(images(N, size, size, seed=seed)):
            save_png(image, folder / name / f"{i:02d}.png")
    return str(folder / "real"), str(folder / "fake")


@pytest.fixture
def ours(folders, inception_file):  # noqa: F811
    """A function of a resizer to our figures."""

    def measure(resizer: str) -> dict[str, float]:
        extractor = load_extractor("inception", weights=str(inception_file), resizer=resizer)
        real, fake = (evaluate.extract(open_source(folder), extractor) for folder in folders)
        return evaluate.compare(real, fake, "distance", extractor.classifier)

    return measure


def test_torch_fidelity(folders, ours, inception_file):  # noqa: F811
    torch_fidelity = pytest.importorskip("torch_fidelity")
    theirs = torch_fidelity.calculate_metrics(
        input1=folders[1], input2=folders[0], cuda=False, cache=False, verbose=False, save_cpu_ram=True,
        feature_extractor_weights_path=str(inception_file), fid=True, isc=True,
    )  # fmt: skip
    figures = ours("tf1")
    assert figures["distance"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert figures["inception_score"] == pytest.approx(theirs["inception_score_mean"], rel=1e-4)


@pytest.mark.slow
def test_torchmetrics(folders, ours, inception_file):  # noqa: F811
    pytest.importorskip("torch_fidelity", reason="torchmetrics takes its Inception from torch-fidelity")
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature_extractor_weights_path=str(inception_file)).set_dtype(torch.float64)
    for folder, real in zip(folders, (True, False), strict=True):
        metric.update(torch.stack(open_source(folder).batch(0, N)), real=real)
    assert ours("torchmetrics")["distance"] == pytest.approx(metric.compute().item(), rel=1e-4)


@pytest.mark.slow
def test_pytorch_fid(folders, ours, inception_file, monkeypatch):  # noqa: F811
    inception = pytest.importorskip("pytorch_fid.inception")
    from pytorch_fid import fid_score

    state = torch.load(inception_file, weights_only=True)
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *args, **kwargs: state)
    theirs = fid_score.calculate_fid_given_paths(list(folders), 7, "cpu", 2048, num_workers=0)
    assert ours("pytorch-fid")["distance"] == pytest.approx(theirs, rel=1e-4)


@pytest.mark.slow
def test_clean_fid(folders, ours, inception_file):  # noqa: F811
    fid = pytest.importorskip("cleanfid.fid")
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    network = module.FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(inception_file))
    theirs = fid.compute_fid(
        *folders, mode="clean", num_workers=0, batch_size=7, device=torch.device("cpu"), verbose=False,
        custom_feat_extractor=lambda x: layers(network, (x - 128) / 128),
    )  # fmt: skip
    assert ours("clean")["distance"] == pytest.approx(float(theirs), rel=1e-3)


def layers(network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """torch-fidelity's network without its resize, which clean-fid has done before."""
    for name, layer in network.named_children():
        if name != "fc":
            x = layer(x)
    return x.flatten(1)
