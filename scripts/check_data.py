#!/usr/bin/env python3
"""Check a data set: decode every image, name the damaged and the doubled ones, and list all files with their hashes."""

import argparse
import sys
from pathlib import Path

from vaegan import cli
from vaegan.config import NAMED_SOURCES, ConfigError
from vaegan.flags import Parser, count

EXAMPLES = """examples:
  check_data.py photos/                                       a report, and photos-manifest.json in the working folder
  check_data.py photos.zip --image-size 128                   says too how many images are smaller
  check_data.py photos/ --against photos-manifest.json        which files were added, removed or changed since
  check_data.py cifar10 --split val --manifest cifar.json
A SOURCE is mnist, fashion_mnist, cifar10, svhn, celeba, flowers102, a folder, a zip or tar archive, or a folder of
archives. Exit status: 0 if all is sound, 1 if files are damaged or differ from the manifest, 2 for wrong flags."""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="check_data.py", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("source", metavar="SOURCE")
    add("--manifest", type=Path, metavar="FILE", help="where to list all files as JSON, overwritten if there is one "
        "(default: NAME-manifest.json in the working folder; with --against, none)")  # fmt: skip
    add("--against", type=Path, metavar="FILE", help="an earlier manifest to compare with")
    add("--image-size", type=count, metavar="N", help="count images with a side below N pixels")
    add("--split", choices=("train", "val"), help="of a named set (default train)")
    add("--root", default="~/.cache/vaegan", metavar="DIR", help="folder of named sets (default ~/.cache/vaegan)")
    add("--workers", type=count, metavar="N", help="processes that decode (default: as many as cores)")
    return checked(parser.parse_args(arguments))


def checked(options: argparse.Namespace) -> argparse.Namespace:
    """The options with their defaults. Raises ConfigError where a manifest cannot or should not be written."""
    named = options.source in NAMED_SOURCES
    if options.split and not named:
        raise ConfigError(f"--split is of named sets, but {options.source} is a folder or archive: leave it out")
    source = Path(options.source).expanduser().resolve()
    if options.manifest is None and options.against is None:
        files = source.stem if source.is_file() else source.name
        name = f"{options.source}-{options.split or 'train'}" if named else files
        options.manifest = Path(f"{name}-manifest.json")
        if not named and source.is_dir() and Path.cwd().is_relative_to(source):
            raise ConfigError(f"--manifest FILE must say where to write, as the working folder lies in {source}")
    out = options.manifest
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise ConfigError(f"--manifest {out} must be a file in a folder that exists")
    return options


def main() -> int:
    options = parse(sys.argv[1:])
    from tqdm import tqdm

    from vaegan.data.check import look_at, report  # torch takes seconds, which --help should not
    from vaegan.data.images import cores, open_images
    from vaegan.data.manifest import differences, read_manifest, write_manifest

    before = read_manifest(options.against) if options.against else None
    images = open_images("SOURCE", options.source, options.root, train=options.split != "val")
    workers = cores() if options.workers is None else options.workers
    looking = look_at(images, workers if workers > 1 else 0)
    findings = list(tqdm(looking, total=len(images), unit=" images", disable=None))
    print("\n".join(report(findings, options.image_size)))
    print(f"digest      {images.digest}")
    changes = [] if before is None else differences(before, findings)
    if before is not None:
        print("\n".join(changes) or f"changed     nothing since {options.against}")
    if options.manifest is not None:
        write_manifest(options.manifest, options.source, images.digest, findings)
        print(f"manifest    {options.manifest}")
    return 1 if changes or any(found.damage for found in findings) else 0


if __name__ == "__main__":
    cli.run(main)
