"""vaegan: train, measure and use VAE-GAN hybrids. The public names, loaded when they are first used."""

import importlib

_HOME = {
    "VAEGAN": "vaegan.model",
    "Config": "vaegan.config",
    "ConfigError": "vaegan.config",
    "Trainer": "vaegan.training",
    "load_data": "vaegan.data",
}
__all__ = list(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str):
    """Import a public name from its module: `import vaegan` alone does not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'vaegan' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
