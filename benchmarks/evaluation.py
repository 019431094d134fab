#!/usr/bin/env python3
"""From images on disk to a Fréchet distance: ours and the other tools', in turn, with the same files and weights.

Every run is a process of its own, from the first image to the figure; imports are left out, loading the network is not.
Without `--weights` the Inception network gets random weights, so that the figures mean nothing but must agree. bf16 is
there to be seen beside float32: its distance is another. `pip install -e ".[test]"` brings the tools.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from memory import peak
from timing import Table, in_turn, machine, markdown, rows

OURS, FASTEST = "vaegan", "torch-fidelity"
Run = Callable[[list[str], str], float]  # of two folders and a file of weights: the distance


def ours(resizer: str, every_figure: bool = False, bf16: bool = False) -> Callable[[], Run]:
    def prepare() -> Run:
        from vaegan.evaluation import evaluate
        from vaegan.evaluation.distances import frechet_distance
        from vaegan.evaluation.features import load_extractor
        from vaegan.evaluation.sources import open_source
        from vaegan.training import process

        process.use_cpu(0)

        def run(folders: list[str], weights: str) -> float:
            extractor = load_extractor("inception", weights=weights, resizer=resizer)
            if bf16:
                extractor = in_bf16(extractor)
            real, fake = (evaluate.extract(open_source(folder), extractor) for folder in folders)
            if every_figure:
                return evaluate.compare(real, fake, "distance", extractor.classifier)["distance"]
            return frechet_distance(real, fake)

        return run

    return prepare


def in_bf16(extractor):
    """The same extractor, its network under bf16 autocast, and called so."""
    from vaegan.evaluation.features import Extractor

    def network(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return extractor._network(x).float()

    return Extractor(
        f"{extractor.name} in bf16", network, weights=extractor.weights, label=f"{extractor.label} in bf16",
        resizer=extractor.resizer, input_size=extractor.input_size, device=extractor.device,
    )  # fmt: skip


def torch_fidelity() -> Run:
    import torch_fidelity

    def run(folders: list[str], weights: str) -> float:
        figures = torch_fidelity.calculate_metrics(
            input1=folders[0], input2=folders[1], cuda=False, cache=False, verbose=False, fid=True,
            feature_extractor_weights_path=weights,
        )  # fmt: skip
        return figures["frechet_inception_distance"]

    return run


def pytorch_fid() -> Run:
    from pytorch_fid import fid_score, inception

    def run(folders: list[str], weights: str) -> float:
        state = torch.load(weights, weights_only=True)
        inception.load_state_dict_from_url = lambda *arguments, **options: state
        return float(fid_score.calculate_fid_given_paths(folders, 50, "cpu", 2048))

    return run


def clean_fid() -> Run:
    """Its TorchScript file of the network is not at hand: torch-fidelity's module stands in, without the resize."""
    from cleanfid import fid
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    def run(folders: list[str], weights: str) -> float:
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=weights)
        layers = torch.nn.Sequential(*(layer for name, layer in network.named_children() if name != "fc"))

        def features(images: torch.Tensor) -> torch.Tensor:
            return layers((images - 128) / 128).flatten(1)

        return float(
            fid.compute_fid(
                *folders, device=torch.device("cpu"), verbose=False, num_workers=0, custom_feat_extractor=features
            )
        )

    return run


# By name: what imports and gives the run, and which of our runs has its figure.
CONTESTANTS: dict[str, tuple[Callable[[], Run], str | None]] = {
    FASTEST: (torch_fidelity, f"{OURS}, tf1"),
    "pytorch-fid": (pytorch_fid, f"{OURS}, pytorch-fid"),
    "clean-fid": (clean_fid, f"{OURS}, clean"),
    f"{OURS}, tf1": (ours("tf1"), None),
    f"{OURS}, pytorch-fid": (ours("pytorch-fid"), None),
    f"{OURS}, clean": (ours("clean"), None),
    f"{OURS}, tf1, all figures": (ours("tf1", every_figure=True), f"{OURS}, tf1"),
    f"{OURS}, tf1, bf16": (ours("tf1", bf16=True), f"{OURS}, tf1"),
}


def tables(
    repeats: int, images: int = 32, source: str = "mnist", weights: str | None = None, names: Sequence[str] = (),
    runs: dict[str, list[dict[str, float]]] | None = None,
) -> list[Table]:  # fmt: skip
    """One table: `images` of each split of a named set, by all CONTESTANTS or those in `names`. `runs` gets what each
    run found, the first, uncounted one included."""
    names, found = names or tuple(CONTESTANTS), {} if runs is None else runs
    with tempfile.TemporaryDirectory() as folder:
        folders = write_images(Path(folder), source, images)
        if weights is None:
            weights = write_random_weights(Path(folder) / "random-inception.pth")

        def contestant(name: str) -> Callable[[], float]:
            def measure() -> float:
                result = measured(name, folders, weights)
                found.setdefault(name, []).append(result)
                return 2 * images / result["seconds"]

            return measure

        figures = in_turn({name: contestant(name) for name in names}, repeats)
    reference = FASTEST if FASTEST in names else names[0]
    text = f"{images} + {images} PNG files of {source}, from the first file to the distance; every run a process."
    return [Table("Evaluation", rows(figures, "images/s", reference, notes(found)), reference, text)]


def notes(runs: dict[str, list[dict[str, float]]]) -> dict[str, str]:
    """Each contestant's distance, how far it is from that of our run with the same figure, and its memory."""
    found = {}
    for name, results in runs.items():
        distance, mebibytes = results[-1]["distance"], max(result["MiB"] for result in results)
        found[name] = f"distance {distance:.6g}, {mebibytes:.0f} MiB"
        if counterpart := runs.get(CONTESTANTS[name][1]):
            difference = distance / counterpart[-1]["distance"] - 1
            found[name] += f", {difference:+.1e} from {CONTESTANTS[name][1]}"
    return found


def child(name: str, folders: list[str], weights: str) -> None:
    """One run; prints seconds, distance (NaN if the tool fails) and MiB."""
    run = CONTESTANTS[name][0]()
    start = time.perf_counter()
    try:
        with torch.no_grad():
            distance = run(folders, weights)
    except ValueError:  # of clean-fid and pytorch-fid, when the root of a singular matrix comes out complex
        distance = math.nan
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "distance": distance, "MiB": peak()}))


def write_random_weights(path: Path) -> str:
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
    return str(path)


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
    runs: dict[str, list[dict[str, float]]] = {}
    names = options.only or ()
    found = tables(options.repeats, options.images, options.source, options.weights, names, runs)
    print(markdown(found, machine()))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
