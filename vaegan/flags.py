"""Flags of the scripts that look at and measure models: errors in one line, numbers that are checked."""

import argparse

from vaegan.config import ConfigError


class Parser(argparse.ArgumentParser):
    """Raises ConfigError where argparse would print its usage and leave."""

    def error(self, message: str):
        raise ConfigError(f"{message.removeprefix('argument ')} (--help explains)")


def count(text: str) -> int:
    """A whole number from 1, as the `type` of a flag."""
    if not text.isdecimal() or not 0 < int(text) < 10**8:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 99999999, got {text}")
    return int(text)
