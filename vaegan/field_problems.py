"""What is wrong with the fields that a recipe or a command line gives, a line each: key path, value, what was meant."""

import argparse
import dataclasses
import difflib
import re
import typing
from typing import NamedTuple

import yaml

from vaegan.config import Config, ConfigError

# What parsing raises on values of the wrong kind.
PARSING_ERRORS = (
    argparse.ArgumentError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError, yaml.YAMLError,
)  # fmt: skip
NAMED_EXTRACTORS = ("inception", "efficientnet-lite0", "dinov2")
COMMAND_LINE = "on the command line"


class Given(NamedTuple):
    """A field that was given: its dotted name, its value, and where it stands, `in FILE`, COMMAND_LINE or nowhere ("")."""

    name: str
    value: object
    where: str


def fields(config: type = Config) -> dict[str, object]:
    """Dotted name to type of all fields."""
    found: dict[str, object] = {}
    for name, kind in typing.get_type_hints(config).items():
        if dataclasses.is_dataclass(kind):
            found |= {f"{name}.{k}": v for k, v in typing.get_type_hints(kind).items()}
        else:
            found[name] = kind
    return found


def unknown(known: dict[str, object], field: Given) -> str:
    """That a given name is no field, and which one may have been meant."""
    name = field.name[:80]  # the comparison below takes the square of its length
    got = "" if field.value is None else f", got {shown(field.value)}"
    if field.where != COMMAND_LINE and any(other.startswith(f"{name}.") for other in known):
        return f"{_placed(field)} is a section and needs fields beneath it{got}"
    last = [other for other in known if other.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    near = last or difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"did you mean {near[0]}?" if near else "--help lists the fields"
    return f"{_placed(field)} is not a field{got} ({hint})"


def is_of_wrong_kind(parser, known: dict[str, object], field: Given) -> bool:
    """Whether the value of a known field is none that it takes."""
    try:
        if field.where == COMMAND_LINE:
            parsed = parser.parse_args([f"--{field.name}={field.value}"], defaults=False)
        else:
            parsed = parser.parse_object(nested([field]), defaults=False)
        return parsed[field.name] is None and not takes_null(known[field.name])
    except PARSING_ERRORS:
        return True


def takes_null(kind) -> bool:
    """Whether null is a value of this type; the parser takes it for any."""
    return type(None) in typing.get_args(kind)


def wrong(known: dict[str, object], field: Given) -> str:
    """What kind of value a field takes, and what it was given."""
    kind = known[field.name]
    options = [str(option) for option in typing.get_args(kind)] if typing.get_origin(kind) is typing.Literal else []
    near = difflib.get_close_matches(str(field.value)[:80], options, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"{_placed(field)} must be {_described(kind)}, got {shown(field.value)}{hint}"


def names_code(field: Given) -> str | None:
    """That a file asks for code to be run, which only the command line may: files are passed around."""
    if field.name != "evaluation.extractor" or field.where == COMMAND_LINE or field.value in NAMED_EXTRACTORS:
        return None
    near = difflib.get_close_matches(str(field.value)[:80], NAMED_EXTRACTORS, 1)
    hint = f"did you mean {near[0]}?" if near else "a TorchScript file or module:function runs code, and is taken from "\
        "the command line alone: --evaluation.extractor"  # fmt: skip
    return f"{_placed(field)} must be one of {', '.join(NAMED_EXTRACTORS)}, got {shown(field.value)} ({hint})"


def of_sections(values: dict) -> list[str]:
    """The problems that the sections themselves name, a line each. values: nested and of the right kinds."""
    sections, lines = dict(values), []
    for field in dataclasses.fields(Config):
        if dataclasses.is_dataclass(field.type):
            try:
                sections[field.name] = field.type(**values.get(field.name, {}))
            except ConfigError as error:
                lines += str(error).splitlines()
                sections[field.name] = field.default_factory()
    try:
        Config(**sections)
    except ConfigError as error:  # with a section replaced, what spans sections is not to be believed
        lines += [line for line in str(error).splitlines() if not lines or "." not in line.split(" ", 1)[0]]
    return lines


def still_true(line: str, given: set[str], dropped: set[str]) -> bool:
    """Whether a problem of the given fields is one although some fields were dropped for problems of their own."""
    first = line.split(" ", 1)[0]
    words = set(re.findall(r"\w+", line))
    return first in given and not any(name.rsplit(".", 1)[-1] in words for name in dropped)


def nested(given: list[Given]) -> dict:
    """Dotted fields as a dict of sections; of two values of a field, the last."""
    values: dict = {}
    for name, value, _ in given:
        section, _, field = name.rpartition(".")
        (values.setdefault(section, {}) if section else values)[field] = value
    return values


def flatten(values: dict, prefix: str = "") -> list[tuple[str, object]]:
    """Nested fields as (dotted name, value)."""
    flat = []
    for name, value in values.items():
        is_section = isinstance(value, dict) and value and not prefix
        flat += flatten(value, f"{name}.") if is_section else [(f"{prefix}{name}", value)]
    return flat


def shown(value: object) -> str:
    """A value on one line, shortened."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def one_line(text: str, most: int = 300) -> str:
    """A text on one line, shortened, with escapes for what does not show."""
    text = " ".join(text.split())
    return (text if text.isprintable() else repr(text)[1:-1])[:most]


def _placed(field: Given) -> str:
    plain = field.name.isprintable() and field.name and len(field.name) <= 80
    return f"{field.name if plain else shown(field.name)} {field.where}".rstrip()


def _described(kind) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return "one of " + ", ".join(str(a) for a in arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"a list, each {_described(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)}, each {_described(arguments[0])}"
    if arguments:
        return " or ".join(_described(a) for a in arguments)
    return names.get(kind, str(kind))
