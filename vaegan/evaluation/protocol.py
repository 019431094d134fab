"""What a figure was measured with. Two sets are compared only if their features were made alike."""

import platform
from collections.abc import Mapping
from importlib.metadata import version

import numpy as np
import PIL
import torch

import vaegan
from vaegan.config import ConfigError
from vaegan.evaluation.features import Extractor
from vaegan.evaluation.sources import ModelSource, Source

# In these two sides must agree; the rest says which images they were, and what software read them.
COMPARED = ("extractor", "weights", "resizer", "input_size", "quantisation", "dtype")


def describe(extractor: Extractor, source: Source) -> dict[str, str]:
    """The protocol of a source's features, as text: how they are made, of which images, by which versions.

    The number of images joins it once they are counted (`n`).
    """
    protocol = {"label": extractor.label, **extractor.protocol}
    protocol |= {"source": source.name, "images": source.manifest, "form": source.form}
    if isinstance(source, ModelSource):
        protocol["seed"] = str(source.seed)
    return protocol | {
        "vaegan": vaegan.__version__,
        "torch": torch.__version__,
        "torchvision": version("torchvision"),  # to import it takes a second or two
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "python": platform.python_version(),
    }


def require_alike(a: Mapping[str, str], b: Mapping[str, str], name_a: str, name_b: str) -> None:
    """ConfigError naming the fields in which two protocols differ; what one of them does not say is not compared."""
    differences = [
        f"{field} is {_short(a[field])} in {name_a} and {_short(b[field])} in {name_b}"
        for field in COMPARED
        if field in a and field in b and a[field] != b[field]
    ]
    if differences:
        raise ConfigError(
            f"unlike protocols: {'; '.join(differences)}. Their distance would mean nothing: make both with the same "
            "--extractor, --weights and --resizer"
        )


def _short(value: str) -> str:
    return value[:12] if len(value) == 64 else value  # a SHA-256
