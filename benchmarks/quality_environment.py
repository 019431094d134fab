"""A virtual environment with pythae, apart from the one that this project runs in."""

import subprocess
import sys
from pathlib import Path

from vaegan.config import ConfigError

REPOSITORY = Path(__file__).resolve().parents[1]
DEFAULT = Path("~/.cache/vaegan/pythae-0.1.2")
MARK = ".made-by-quality-benchmark"  # in an environment into which packages may be installed
VERSION_OF = "import importlib.metadata as m, sys; sys.stdout.write(m.version('pythae'))"


def python_with(version: str, folder: Path) -> Path:
    """The Python of a virtual environment with this version of pythae and this project, made in `folder` if there is
    none, with pip as it is configured here. ConfigError if it cannot be made, or is somebody's own without it."""
    folder = folder.expanduser().absolute()
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.exists():
        print(f"making {folder} with pythae {version}", file=sys.stderr, flush=True)
        _done([sys.executable, "-m", "venv", str(folder)], folder)
        (folder / MARK).touch()
    if installed(python) == version:
        return python
    if not (folder / MARK).exists():
        raise ConfigError(
            f"--environment {folder} has no pythae {version}: install it there, or give a folder that is not there yet"
        )
    # Editable, since the embedded data set lies beside the package, not in it.
    _done([str(python), "-m", "pip", "install", f"pythae=={version}", "-e", f"{REPOSITORY}[evaluation]"], folder)
    return python


def installed(python: Path) -> str:
    """The version of pythae that a Python has, empty if none."""
    return subprocess.run([str(python), "-c", VERSION_OF], capture_output=True, text=True).stdout


def _done(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, check=True, stdout=sys.stderr)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(
            f"--environment {folder} could not be made ({error}): make one with pythae, and give it"
        ) from None
