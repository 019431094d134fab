"""Keeping one player still while the other moves."""

import contextlib

from torch import nn


@contextlib.contextmanager
def frozen(module: nn.Module | None):
    """No gradient reaches the module and no buffer of it changes, while this lasts."""
    if module is None:
        yield
        return
    module.requires_grad_(False)
    module.eval()
    try:
        yield
    finally:
        module.requires_grad_(True)
        module.train()
