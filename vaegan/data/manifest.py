"""Lists of a set's files with their hashes: written whole, read again, compared.

Formats without check sums (JPEG, WebP, GIF, BMP, TIFF) hide a flipped bit, as it decodes to pixels too; hashes do not.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from vaegan.config import ConfigError
from vaegan.data.check import Finding
from vaegan.data.limits import shown


def write_manifest(path: Path, source: str, digest: str, findings: list[Finding]) -> None:
    """Write a manifest as JSON, a file a line; it appears whole or not at all. ConfigError if it cannot be written.

    digest: that of the source, which training keeps, hashed together with split and form.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "w", encoding="ascii") as file:
            file.writelines(_lines(source, digest, findings))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise ConfigError(f"--manifest {path} cannot be written ({error.strerror or error})") from error
    finally:
        partial.unlink(missing_ok=True)


def read_manifest(path: Path) -> dict[str, str | None]:
    """Names and SHA-256 of the files that a manifest lists. ConfigError if it is none."""
    try:
        files = json.loads(path.read_bytes())["files"]
        listed = {file["name"]: file["sha256"] for file in files}
        if not all(isinstance(name, str) for name in listed) or len(listed) != len(files):
            raise ValueError("names that are no text, or stand twice")
        return listed
    except OSError as error:
        raise ConfigError(f"--against {path} cannot be read ({error.strerror or error})") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigError(
            f"--against {path} is no manifest ({type(error).__name__}: {str(error)[:80]}); give one that "
            "scripts/check_data.py has written"
        ) from error


def differences(before: dict[str, str | None], findings: list[Finding]) -> list[str]:
    """A line for each file that was added, removed or changed since a manifest was written; none if it is the same."""
    now = {found.name: found.sha256 for found in findings}
    changed = [name for name in now if name in before and now[name] != before[name]]
    named = [
        ("removed", [name for name in before if name not in now]),
        ("added", [name for name in now if name not in before]),
        ("changed", changed),
    ]
    return [f"{kind:<12}{shown(name)}" for kind, names in named for name in names]


def _lines(source: str, digest: str, findings: list[Finding]) -> Iterator[str]:
    head = {"source": source, "count": len(findings), "digest": digest}
    yield json.dumps(head)[:-1] + ', "files": [\n'
    for place, found in enumerate(findings):
        known = {key: value for key, value in asdict(found).items() if value is not None or key == "sha256"}
        if found.label is not None:
            known["class"] = known.pop("label")
        yield json.dumps(known) + (",\n" if place + 1 < len(findings) else "\n")
    yield "]}\n"
