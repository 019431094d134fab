#!/usr/bin/env python3
"""From images on disk to a Fréchet distance: ours and the other tools', in turn, with the same files and weights.

Every run is a process of its own, from the first image to the figure; imports are left out, loading the network is not.
Without `--weights` the Inception network gets random weights, so that the figures mean nothing but must agree.
`pip install -e ".[test]"` brings the tools.
"""

import argparse
import json
import math
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

OURS = "vaegan"


def ours(resizer: str, every_figure: bool = False) -> Callable[[list[str], str], float]:
    def run(folders: list[str], weights: str) -> float:
        from vaegan.evaluation import evaluate
        from vaegan.evaluation.distances import frechet_distance
        from vaegan.evaluation.features import load_extractor
        from vaegan.evaluation.sources import open_source

        extractor = load_extractor("inception", weights=weights, resizer=resizer)
        real, fake = (evaluate.extract(open_source(folder), extractor) for folder in folders)
        if every_figure:
            return evaluate.compare(real, fake, "distance", extractor.classifier)["distance"]
        return frechet_distance(real, fake)

    return run


def torch_fidelity(folders: list[str], weights: str) -> float:
    import torch_fidelity

    figures = torch_fidelity.calculate_metrics(
        input1=folders[0], input2=folders[1], cuda=False, cache=False, verbose=False, fid=True,
        feature_extractor_weights_path=weights,
    )  # fmt: skip
    return figures["frechet_inception_distance"]


def pytorch_fid(folders: list[str], weights: str) -> float:
    from pytorch_fid import fid_score, inception

    state = torch.load(weights, weights_only=True)
    inception.load_state_dict_from_url = lambda *arguments, **options: state
    return float(fid_score.calculate_fid_given_paths(folders, 50, "cpu", 2048))


def clean_fid(folders: list[str], weights: str) -> float:
    """Its TorchScript file of the network is not at hand: torch-fidelity's module stands in, without the resize."""
    from cleanfid import fid
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=weights)
    layers = torch.nn.Sequential(*(layer for name, layer in network.named_children() if name != "fc"))
    return float(
        fid.compute_fid(
            *folders,
            device=torch.device("cpu"),
            verbose=False,
            num_workers=0,
            custom_feat_extractor=lambda images: layers((images - 128) / 128).flatten(1),
        )  # fmt: skip
    )


# By name: what runs, and which of our runs has its figure.
CONTESTANTS = {
    f"{OURS}, tf1": (ours("tf1"), None),
    f"{OURS}, pytorch-fid": (ours("pytorch-fid"), None),
    f"{OURS}, clean": (ours("clean"), None),
    f"{OURS}, tf1, all figures": (ours("tf1", every_figure=True), f"{OURS}, tf1"),
    "torch-fidelity": (torch_fidelity, f"{OURS}, tf1"),
    "pytorch-fid": (pytorch_fid, f"{OURS}, pytorch-fid"),
    "clean-fid": (clean_fid, f"{OURS}, clean"),
}


def child(name: str, folders: list[str], weights: str) -> None:
    """One run; prints seconds, distance (NaN if the tool fails) and MiB."""
    from vaegan.training import process

    run, _ = CONTESTANTS[name]
    if name.startswith(OURS):
        process.use_cpu(0)
    start = time.perf_counter()
    try:
        with torch.no_grad():
            distance = run(folders, weights)
    except ValueError:  # of clean-fid and pytorch-fid, when the root of a singular matrix comes out complex
        distance = math.nan
    seconds = time.perf_counter() - start
    mebibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "distance": distance, "MiB": mebibytes}))


def write_random_weights(path: Path) -> None:
    """Random weights under which activations neither vanish nor explode: each batch norm takes one batch's statistics."""
    from vaegan.evaluation.inception import Inception

    torch.manual_seed(0)
    network = Inception()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.rand(8, 3, 299, 299) * 2 - 1)
    torch.save(network.state_dict(), path)


def write_images(folder: Path, source: str, n: int) -> list[str]:
    """Two folders of n PNG files each, from the two splits of a named set."""
    from vaegan.evaluation.sources import open_source
    from vaegan.sampling import save_png

    for split in ("val", "train"):
        images = open_source(source, split=split, limit=n).batch(0, n)
        for i, image in enumerate(images):
            save_png(image, folder / split / f"{i:06d}.png")
    return [str(folder / "val"), str(folder / "train")]


def measured(name: str, folders: list[str], weights: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", name, *folders, "--weights", weights]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(runs: dict[str, list[dict[str, float]]], n: int) -> str:
    """Markdown. Ratios are of runs next to each other, to the run of ours that has the same figure."""
    lines = ["| | seconds, median (range) | images/s | times ours | distance | relative to ours | peak MiB |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for name, results in runs.items():
        seconds = [result["seconds"] for result in results]
        middle = statistics.median(seconds)
        counterpart = runs.get(CONTESTANTS[name][1])
        ratio = difference = "–"
        if counterpart:
            ratio = f"{statistics.median(s / c['seconds'] for s, c in zip(seconds, counterpart)):.2f}"
            difference = f"{results[0]['distance'] / counterpart[0]['distance'] - 1:+.1e}"
        cells = [
            name, f"{middle:.1f} ({min(seconds):.1f}–{max(seconds):.1f})", f"{2 * n / middle:.1f}", ratio,
            f"{results[0]['distance']:.6g}", difference, f"{max(result['MiB'] for result in results):.0f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64, help="of each of the two sets (default 64)")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each, after one that is left out (default 7)")
    parser.add_argument("--source", default="mnist", help="a named set (default mnist)")
    parser.add_argument("--weights", help="weights of the FID Inception (default: random)")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, metavar="NAME", help=", ".join(CONTESTANTS))
    parser.add_argument("--json", type=Path, help="write every run there")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child[0], options.child[1:], options.weights)
    with tempfile.TemporaryDirectory() as folder:
        folders = write_images(Path(folder), options.source, options.images)
        weights = options.weights or str(Path(folder) / "random-inception.pth")
        if options.weights is None:
            write_random_weights(Path(weights))
        names = options.only or list(CONTESTANTS)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for repeat in range(options.repeats + 1):
            for name in names:
                result = measured(name, folders, weights)
                if repeat > 0 or options.repeats == 0:
                    runs[name].append(result)
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    print(f"{options.images} + {options.images} images of {options.source}, {options.repeats} runs each; {versions}\n")
    print(table(runs, options.images))
    if options.json:
        options.json.write_text(json.dumps({"versions": versions, "command": sys.argv, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
