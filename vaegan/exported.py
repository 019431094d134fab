"""Checks of an exported model's files, before a network is built from them."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from vaegan.config import ConfigError

MOST_CONFIG = 1 << 20  # bytes; the names of many classes take most of them


def check_config(file: Path, known: set[str]) -> None:
    """ConfigError unless an exported config.json holds arguments of VAEGAN and nothing else."""
    try:
        if file.stat().st_size > MOST_CONFIG:
            raise ValueError(f"more than {MOST_CONFIG} bytes")
        values = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is damaged ({error}): export the model again") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file} is damaged (it holds no fields): export the model again")
    if unknown := sorted(set(values) - known):
        names = ", ".join(unknown)
        names = (names if names.isprintable() else repr(names))[:200]
        raise ConfigError(f"{file} has fields that this version does not know ({names}): update vaegan")


def require_plain(arguments: dict, parameters: Mapping[str, inspect.Parameter], tensors: int) -> None:
    """ValueError for values that are not of their defaults' kinds, and for more layers than there are tensors: building
    them might take for ever."""
    for name, value in arguments.items():
        kind = type(parameters[name].default)
        if type(value) is not kind and not (kind is tuple and isinstance(value, list)):
            raise ValueError(f"{name} must be of type {kind.__name__}, got {type(value).__name__}")
    for name, layers in (("depth", arguments.get("depth", 0)), ("hidden", len(arguments.get("hidden", ())))):
        if layers > tensors:
            raise ValueError(f"{name} asks for {layers} layers, but there are {tensors} tensors")


def require_same(state: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """ValueError unless names and shapes agree."""
    shapes, wanted = ({name: tuple(tensor.shape) for name, tensor in of.items()} for of in (state, own))
    if different := [name for name in wanted | shapes if shapes.get(name) != wanted.get(name)]:
        name = different[0]
        raise ValueError(f"{name!r:.80} has shape {shapes.get(name)} for {wanted.get(name)}")
