"""Flags of the scripts that look at and measure models: errors in one line, numbers that are checked."""

import argparse

from vaegan.config import ConfigError


class Parser(argparse.ArgumentParser):
    """Raises ConfigError where argparse would print its usage and leave."""

    def error(self, message: str):
        raise ConfigError(f"{message.removeprefix('argument ')} (--help explains)")


def count(text: str) -> int:
    """A whole number from 1, as the `type` of a flag."""
    if not (text.isdecimal() and len(text) < 9 and int(text) > 0):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 99999999, got {text[:80]}")
    return int(text)


def bound(text: str) -> float:
    """A number from 0, as the `type` of a flag; `inf` for no bound. NaN would be above every distance and below none."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"must be a number from 0, got {text[:80]}")
    return value
