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
log = logging.getLogger("vaegan")

EXAMPLES = """examples:
  sample.py runs/mnist                                     64 samples, to samples.png
  sample.py runs/mnist --images 5000 --out samples.zip     one PNG each
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
    add("--rows", type=count, help="rows of the picture (default 8; with --interpolate 1)")
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
    if options.images:
        if not options.out or options.rows or options.columns:
            raise ConfigError("--images needs --out FOLDER or --out FILE.zip, and neither --rows nor --columns")
        return options
    name = "interpolation.png" if interpolates else "reconstructions.png" if options.reconstruct else "samples.png"
    options.out = options.out or Path(name)
    options.rows = options.rows or (1 if interpolates else 8)
    options.columns = options.columns or (10 if interpolates else 8)
    if options.out.suffix.lower() != ".png" or options.out.is_dir():
        raise ConfigError(f"--out must be a .png file, got {options.out} (folders and .zip are for --images)")
    if options.reconstruct and options.columns % 2:
        raise ConfigError(f"--columns must be even with --reconstruct, which shows pairs, got {options.columns}")
    return options


def open_model(options: argparse.Namespace, device):
    """The model, on that device. Raises ConfigError if there is none, or if it cannot do what is asked for."""
    from vaegan.model import VAEGAN

    model = VAEGAN.from_pretrained(options.run).to(device)
    ends = [is_number(end) for end in options.interpolate or []]
    if model.encoder is None and (options.reconstruct or not all(ends)):
        raise ConfigError(f"{options.run} has no encoder, having been trained as a GAN: it only draws samples")
    deterministic = model.encoder is not None and not model.variational
    if deterministic and not options.reconstruct and (any(ends) or not ends):
        raise ConfigError(
            f"{options.run} is a deterministic autoencoder, without a prior to sample from: use --reconstruct IMAGE or "
            "--interpolate A.png B.png"
        )
    return model


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


def picture(model, options: argparse.Namespace):
    """The grid, pairs or strips as one uint8 image (C, H, W)."""
    import torch

    from vaegan import latents, sampling

    batch, columns = options.batch_size, options.columns

    def read(paths: list[Path], limit: int):
        return sampling.read_images(paths, model.image_shape, options.fit or trained_fit(options.run), limit)

    if options.reconstruct:
        images, total = read(options.reconstruct, options.rows * columns // 2)
        if total > len(images):
            log.warning("shown are %d of %d images: --rows %d shows all", len(images), total, -(-2 * total // columns))
        decoded = sampling.decode(model, sampling.encode(model, images, batch), batch)
        return sampling.grid(sampling.beside(images, decoded), min(columns, 2 * len(images)))
    if options.interpolate is None:
        n = options.rows * columns
        drawn = sampling.prior_batches(model, sampling.batch_starts(n, batch), n, options.seed, batch)
        return sampling.grid(torch.cat([images for _, images in drawn]), columns)

    def latent(end: str):
        if is_number(end):
            return latents.prior(1, model.latent_dim, options.seed, int(end), model.device)
        return sampling.encode(model, read([Path(end)], 1)[0], 1)

    samples = latents.prior(2 * options.rows, model.latent_dim, options.seed, 0, model.device)
    a, b = map(latent, options.interpolate) if options.interpolate else (samples[0::2], samples[1::2])
    return sampling.grid(sampling.decode(model, latents.interpolate(a, b, columns).flatten(0, 1), batch), columns)


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
    first, rank, processes = accelerator.is_main_process, accelerator.process_index, accelerator.num_processes
    if options.images:
        starts = sampling.batch_starts(options.images, options.batch_size, rank, processes)
        bar = tqdm(starts, unit=" images", unit_scale=options.batch_size, disable=None if first else True)
        batches = sampling.prior_batches(model, bar, options.images, options.seed, options.batch_size)
        sampling.write_images(batches, options.out, rank, accelerator.wait_for_everyone)
    elif first:
        try:
            sampling.save_png(picture(model, options), options.out)
        except OSError as error:
            raise ConfigError(f"{options.out} cannot be written ({error.strerror or error})") from error
    if first:
        print(options.out)
    process.leave(accelerator)


if __name__ == "__main__":
    cli.run(main)
