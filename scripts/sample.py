#!/usr/bin/env python3
"""Look at a trained model: `scripts/sample.py RUN` draws a grid of samples; `--help` lists what else there is."""

import argparse
import logging
import sys
from pathlib import Path

from vaegan import cli
from vaegan.config import ConfigError
from vaegan.flags import Parser, count

FITS = ("crop", "pad", "stretch")
SAMPLERS = ("prior", "mixture", "second_stage")  # as in vaegan.samplers, which would import torch
MOST_ROWS = 32  # of a grid of many classes, unless --rows asks for more
SHOWN = 20  # classes that an error lists
log = logging.getLogger("vaegan")

EXAMPLES = """examples:
  sample.py runs/mnist                                     64 samples, to samples.png
  sample.py runs/mnist --images 5000 --out samples.zip     one PNG each
  sample.py runs/mnist_conditional --class 7               sevens; without it, a row a class
  sample.py runs/mnist --sampler mixture                   from what is fitted to the latents of its training images
  sample.py runs/mnist --reconstruct photos/ one.jpg       originals beside reconstructions
  sample.py runs/mnist --interpolate --rows 4              between samples 0 and 1, 2 and 3, …
  sample.py runs/mnist --interpolate a.png b.png           between two images
  sample.py runs/mnist --interpolate 17 42 --steps 20      between samples 17 and 42
  accelerate launch scripts/sample.py runs/mnist --images 50000 --out samples.zip     on all GPUs
Image i depends on --seed and i alone, however many images, processes or rows there are."""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="sample.py", description="Samples, reconstructions and interpolations of a trained model.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("run", metavar="RUN", help="a run folder, an exported folder or a Hub id (user/model)")
    task = parser.add_argument_group("what to draw; without any, a grid of samples").add_mutually_exclusive_group()
    task.add_argument("--images", type=count, metavar="N", help="N samples, a file each; several processes share them")
    task.add_argument("--reconstruct", nargs="+", type=Path, metavar="PATH", help="image files, folders, archives")
    task.add_argument("--interpolate", nargs="*", metavar="END", help="between samples, or between two END: image "
                      "files or numbers of samples")  # fmt: skip
    add("--out", type=Path, help="with --images a new folder or FILE.zip; else a .png, overwritten if there is one "
        "(default: samples.png, reconstructions.png or interpolation.png)")  # fmt: skip
    add("--class", dest="label", metavar="N_OR_NAME", help="of a conditional model: draw this class, or take given images "
        "for this class (default: a row a class; of given images that of their subfolder or dataset.json)")  # fmt: skip
    add("--sampler", choices=SAMPLERS, help="what latents are drawn from: N(0, I) (prior, the default), or a Gaussian "
        "mixture or a second VAE on the training images' latents, fitted once and kept in RUN/samplers")  # fmt: skip
    add("--rows", type=count, help="rows of the picture (default 8, or a class each; with --interpolate 1)")
    add("--columns", "--steps", type=count, help="columns of the picture (default 8; with --interpolate 10)")
    add("--fit", choices=FITS, help="how given images become square (default: as in training)")
    add("--seed", type=int, default=0, help="default 0")
    add("--batch-size", type=count, default=64, metavar="N", help="images computed at a time (default 64)")
    add("--threads", type=count, default=0, metavar="N", help="CPU threads (default: its share of the cores)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default auto: a GPU if there is one")
    return checked(parser.parse_args(arguments))


def checked(options: argparse.Namespace) -> argparse.Namespace:
    """The options with their defaults. Raises ConfigError for those that do not go together."""
    ends, interpolates = options.interpolate, options.interpolate is not None
    if ends and (len(ends) != 2 or options.rows):
        raise ConfigError(f"--interpolate goes in one row between two images or samples, or between none, got {ends}")
    if options.sampler and not draws_samples(options):
        raise ConfigError(f"--sampler {options.sampler} is for samples, and none are drawn here: leave it out")
    if options.images:
        if not options.out or options.rows or options.columns:
            raise ConfigError("--images needs --out FOLDER or --out FILE.zip, and neither --rows nor --columns")
        return options
    name = "interpolation.png" if interpolates else "reconstructions.png" if options.reconstruct else "samples.png"
    options.out = options.out or Path(name)
    options.rows = options.rows or (1 if interpolates else 8 if options.reconstruct or options.label else None)
    options.columns = options.columns or (10 if interpolates else 8)
    if options.out.suffix.lower() != ".png" or options.out.is_dir():
        raise ConfigError(f"--out must be a .png file, got {options.out} (folders and .zip are for --images)")
    if options.reconstruct and options.columns % 2:
        raise ConfigError(f"--columns must be even with --reconstruct, which shows pairs, got {options.columns}")
    return options


def draws_samples(options: argparse.Namespace) -> bool:
    """Whether latents are drawn, and not all given by images."""
    return not options.reconstruct and (not options.interpolate or any(map(is_number, options.interpolate)))


def open_model(options: argparse.Namespace, device):
    """The model, on that device. Raises ConfigError if there is none, or if it cannot do what is asked for."""
    from vaegan.model import VAEGAN

    model = VAEGAN.from_pretrained(options.run).to(device)
    ends = [is_number(end) for end in options.interpolate or []]
    if model.encoder is None and (options.reconstruct or not all(ends)):
        raise ConfigError(f"{options.run} has no encoder, having been trained as a GAN: it only draws samples")
    deterministic = model.encoder is not None and not model.variational
    if deterministic and draws_samples(options) and options.sampler in (None, "prior"):
        raise ConfigError(
            f"{options.run} is a deterministic autoencoder, without a prior to sample from: use --sampler mixture or "
            "second_stage, --reconstruct IMAGE or --interpolate A.png B.png"
        )
    if options.label is None and model.classes and ends:
        raise ConfigError("--interpolate between given ends needs --class N_OR_NAME of a conditional model")
    return model


def class_of(model, options: argparse.Namespace) -> int | None:
    """The number of the class that --class names; None without it. Raises ConfigError for one that there is not."""
    wanted, names = options.label, model.class_names
    if wanted is None:
        return None
    if not model.classes:
        raise ConfigError(f"{options.run} is not conditional, and knows no --class {wanted}: leave it out")
    if wanted in names:  # names go first: those of MNIST are its numbers
        return names.index(wanted)
    if is_number(wanted) and int(wanted) < model.classes:
        return int(wanted)
    shown = [name[:40] if name.isprintable() else repr(name[:40]) for name in names[:SHOWN]]
    known = ", ".join(f"{i} {name}" for i, name in enumerate(shown)) + (" …" if len(names) > SHOWN else "")
    raise ConfigError(
        f"--class {wanted!r:.80} is none of {options.run}: give 0 … {model.classes - 1}{f' or a name ({known})' if names else ''}"
    )


def open_sampler(options: argparse.Namespace, model, accelerator):
    """What --sampler names, fitted if need be; None for the prior."""
    if options.sampler in (None, "prior"):
        return None
    from vaegan.evaluation.shares import Shares
    from vaegan.samplers import sampler_of

    return sampler_of(options.run, options.sampler, model, Shares.of(accelerator))


def is_number(end: str) -> bool:
    return end.isdecimal() and len(end) < 10


def trained_fit(run: str) -> str:
    """How the images of a run were made square; an exported folder does not know."""
    file = Path(run) / "config.yaml"
    data = cli.load_yaml(file, "RUN").get("data") if file.is_file() else None
    fit = data.get("fit", "crop") if isinstance(data, dict) else "crop"
    if fit not in FITS:
        raise ConfigError(f"{file}: data.fit must be one of {', '.join(FITS)}, got {str(fit)[:80]!r}: give --fit")
    return fit


def picture(model, options: argparse.Namespace, sampler):
    """The grid, pairs or strips as one uint8 image (C, H, W)."""
    import torch

    from vaegan import sampling
    from vaegan.given_labels import read_labels

    batch, columns, label = options.batch_size, options.columns, class_of(model, options)

    def read(paths: list[Path], limit: int):
        return sampling.read_images(paths, model.image_shape, options.fit or trained_fit(options.run), limit)

    if options.reconstruct:
        images, total = read(options.reconstruct, options.rows * columns // 2)
        if model.classes and label is None:
            label = read_labels(options.reconstruct, model, len(images))
        if total > len(images):
            log.warning("shown are %d of %d images: --rows %d shows all", len(images), total, -(-2 * total // columns))
        decoded = sampling.decode(model, sampling.encode(model, images, batch), batch, label)
        return sampling.grid(sampling.beside(images, decoded), min(columns, 2 * len(images)))
    if options.interpolate is None:
        rows = options.rows or min(model.classes, MOST_ROWS) or 8
        n = rows * columns
        if model.classes and label is None:
            label = sampling.row_labels(rows, columns, model.classes)
        starts = sampling.batch_starts(n, batch)
        drawn = sampling.prior_batches(model, starts, n, options.seed, batch, sampler, label)
        return sampling.grid(torch.cat([images for _, images in drawn]), columns)

    return strips(model, options, sampler, label, read)


def strips(model, options: argparse.Namespace, sampler, label: int | None, read):
    """Rows from one latent to another; of a conditional model a row a class, in turn, unless --class names one.

    The way goes between what the latents add to the prior's mean.
    """
    import torch

    from vaegan import latents, sampling

    rows, columns = options.rows, options.columns
    y, mean = None, torch.zeros(rows, model.latent_dim, device=model.device)
    if model.classes:
        y = (torch.arange(rows) % model.classes if label is None else torch.full((rows,), label)).to(model.device)
        mean = model.prior_mean(y).detach()

    def drawn(n: int, start: int):
        if sampler is not None:
            return sampler(n, options.seed, start, model.device)
        return latents.prior(n, model.latent_dim, options.seed, start, model.device)

    def latent(end: str):
        if is_number(end):
            return drawn(1, int(end))
        return sampling.encode(model, read([Path(end)], 1)[0], 1) - mean

    samples = None if options.interpolate else drawn(2 * rows, 0)
    a, b = map(latent, options.interpolate) if options.interpolate else (samples[0::2], samples[1::2])
    z = (latents.interpolate(a, b, columns) + mean[:, None]).flatten(0, 1)  # (rows * columns, latent_dim)
    labels = None if y is None else y.repeat_interleave(columns)
    return sampling.grid(sampling.decode(model, z, options.batch_size, labels), columns)


def main() -> None:
    options = parse(sys.argv[1:])
    import torch  # takes seconds, which --help and mistyped flags should not
    from accelerate import Accelerator
    from tqdm import tqdm

    from vaegan import sampling
    from vaegan.training import process

    if options.images:
        sampling.require_new(options.out)
    process.end_with_parent()
    process.use_cpu(options.threads)
    torch.backends.cudnn.allow_tf32 = False  # its rounding is coarse enough to show when another batch size is chosen
    accelerator = Accelerator(cpu=options.device == "cpu" or not torch.accelerator.is_available())
    if options.device not in ("auto", accelerator.device.type):
        raise ConfigError(f"--device {options.device} is not to be had here (choose auto or cpu)")
    model = open_model(options, accelerator.device)  # processes that download wait for each other's lock
    sampler = open_sampler(options, model, accelerator)
    first, rank, processes = accelerator.is_main_process, accelerator.process_index, accelerator.num_processes
    if options.images:
        starts = sampling.batch_starts(options.images, options.batch_size, rank, processes)
        bar = tqdm(starts, unit=" images", unit_scale=options.batch_size, disable=None if first else True)
        label = class_of(model, options)
        batches = sampling.prior_batches(model, bar, options.images, options.seed, options.batch_size, sampler, label)
        sampling.write_images(batches, options.out, rank, accelerator.wait_for_everyone)
    elif first:
        try:
            sampling.save_png(picture(model, options, sampler), options.out)
        except OSError as error:
            raise ConfigError(f"{options.out} cannot be written ({error.strerror or error})") from error
    if first:
        print(options.out)
    process.leave(accelerator)


if __name__ == "__main__":
    cli.run(main)
