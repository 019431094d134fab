"""Extractors of one's own: the one place where code runs that the user has named, as `--extractor FILE` or `module:function`.

Recipes cannot name it (`vaegan.field_problems.names_code`).
"""

import importlib
import inspect
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from vaegan.config import ConfigError
from vaegan.evaluation.pretrained import PRETRAINED
from vaegan.evaluation.weights import hash_of_file, hash_of_state

SCRIPT_SUFFIXES = (".pt", ".pth", ".ts", ".jit")


def script(path: Path, device: torch.device) -> tuple[str, nn.Module, str]:
    """Name, network and SHA-256 of a TorchScript file, which is a program: it may write files."""
    if not path.is_file():
        raise ConfigError(f"extractor: {path} does not exist; check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated, its files are not gone
            network = torch.jit.load(path, map_location=device)
    except Exception as error:  # it interprets whatever bytes it finds
        raise ConfigError(
            f"extractor: {path} is damaged or no TorchScript; weights for {', '.join(PRETRAINED)} are passed as weights"
        ) from error
    return path.stem, network.eval(), hash_of_file(path)


def called(name: str, device: torch.device) -> tuple[Callable[[Tensor], Tensor], str]:
    """What function() of "module:function" returns, and the SHA-256 of its weights, else of its source file."""
    folder = os.getcwd()
    sys.path.append(folder)  # one's own module usually lies there, and a script's path leaves it out
    try:
        function = _imported(name)
        network = function() if _takes_nothing(function) else None
    finally:
        sys.path.remove(folder)
    if not callable(network):
        raise ConfigError(f"extractor: {name} must be a function that returns a callable, got {type(network).__name__}")
    if isinstance(network, nn.Module):
        network = network.to(device).eval()
        if state := network.state_dict():
            return network, hash_of_state(state)
    try:
        return network, hash_of_file(Path(inspect.getsourcefile(function)))
    except TypeError as error:  # built in, or made where no file is
        raise ConfigError(f"extractor: {name} must be a function of a source file") from error


def _takes_nothing(function: object) -> bool:
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError):
        return False
    return True


def _imported(name: str) -> object:
    module_name, _, function_name = name.partition(":")
    try:
        return getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(f"extractor: {name} cannot be imported ({error}); check module and function") from error
