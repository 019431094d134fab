"""The command line: YAML and flags to a Config, and errors to one line a problem and exit status 2."""

import argparse
import dataclasses
import difflib
import logging
import os
import re
import sys
import typing
from collections.abc import Callable
from pathlib import Path

import jsonargparse
import yaml

from vaegan.config import Config, ConfigError


def parse_config(arguments: list[str], default_config: Path) -> Config:
    """The Config of a command line: `--config FILE` (else `default_config`), then flags over it.

    Raises ConfigError with all unknown and all wrong fields, a line each. `--help` and `--print_config` exit.
    """
    arguments = _files_first(arguments, default_config)
    parser, fields = config_parser(), _fields(Config)
    given = _given_fields(arguments)
    other = ""
    try:
        if all(name in fields for name, _, _ in given):
            values = parser.parse_args([*arguments, *_budget(given)]).as_dict()
            return config_from_dict({field.name: values[field.name] for field in dataclasses.fields(Config)})
    except argparse.ArgumentError as error:
        other = " ".join(str(error).split())
    # Something is wrong: look at each field by itself, so that all that is wrong is said at once.
    lines = [_unknown(fields, *field) or _wrong(parser, fields, *field) for field in given]
    raise ConfigError("\n".join(dict.fromkeys(line for line in lines if line)) or other)


def config_from_dict(values: dict) -> Config:
    """Build a Config from nested plain values; ConfigError with the problems of all sections, a line each."""
    sections, problems = dict(values), []
    for field in dataclasses.fields(Config):
        if field.name in values and dataclasses.is_dataclass(field.type):
            section = {k: tuple(v) if isinstance(v, list) else v for k, v in values[field.name].items()}
            try:
                sections[field.name] = field.type(**section)
            except ConfigError as error:
                problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return Config(**sections)


def config_parser() -> jsonargparse.ArgumentParser:
    """A parser with a flag for each field of Config, explained by its docstring."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    jsonargparse.set_loader("strict", lambda text: yaml.load(text, Loader=_StrictLoader), exceptions=(yaml.YAMLError,))
    parser = jsonargparse.ArgumentParser(
        parser_mode="strict",
        exit_on_error=False,
        description="Train a VAE-GAN. Fields come from the config file; flags override them.",
    )
    parser.add_argument("--config", action="config", help="YAML file of fields; configs/mnist.yaml if none is given.")
    parser.add_class_arguments(Config)
    return parser


def load_yaml(file: Path, field: str = "--config") -> dict:
    """Nested fields of the YAML file that `field` gave. ConfigError if it is missing, is no mapping, or names a field twice."""
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except OSError as error:
        raise ConfigError(f"{field} {file} cannot be read: {error.strerror} (recipes lie in configs/)") from None
    except (yaml.YAMLError, UnicodeDecodeError, ConfigError) as error:
        raise ConfigError(f"{field} {file} is no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{field} {file} must hold fields (name: value), got {type(values).__name__}")
    return values


class _StrictLoader(yaml.SafeLoader):
    """YAML as users mean it: 1e-4 is a number, yes, no, on and off are words, and no key stands twice."""

    yaml_implicit_resolvers = {
        first: [
            (tag, regexp)
            for tag, regexp in resolvers
            if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node, deep=False):
        seen: dict = {}
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    first, second = seen[key_node.value], key_node.start_mark.line + 1
                    raise ConfigError(f"{key_node.value} stands twice, in lines {first} and {second}: remove one")
                seen[key_node.value] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def _files_first(arguments: list[str], default: Path) -> list[str]:
    """The same command line, its --config files (the default, where there is none) before all flags, which override."""
    files, flags, words = [], [], iter(arguments)
    for word in words:
        if word == "--config":
            files += [word, *([value] if (value := next(words, None)) is not None else [])]
        elif word.startswith("--config="):
            files += ["--config", word.split("=", 1)[1]]
        else:
            flags.append(word)
    return [*(files or ["--config", str(default)]), *flags]


def _given_fields(arguments: list[str]) -> list[tuple[str, object, str]]:
    """(field, value, where it stands) of all that a command line and its YAML files set, in order."""
    given: list[tuple[str, object, str]] = []
    words = iter(arguments)
    for word in words:
        name, separator, value = word.removeprefix("--").partition("=")
        if word in ("-h", "--help") or name.startswith("print_config"):
            continue
        if not word.startswith("--"):
            given.append((word, None, "on the command line"))
            continue
        if not separator:
            value = next(words, None)
        if value is None:
            raise ConfigError(f"--{name} needs a value")
        if name == "config":
            given += [(field, v, f"in {value}") for field, v in _flatten(load_yaml(Path(value)))]
        else:
            given.append((name, value, "on the command line"))
    return given


def _budget(given: list[tuple[str, object, str]]) -> list[str]:
    """A flag that clears the recipe's budget where the command line gives the other: steps for epochs, or epochs."""
    budgets = [(name, where) for name, value, where in given
               if name in ("train.steps", "train.epochs") and value not in (None, "null")]  # fmt: skip
    last_place = {name for name, where in budgets if where == budgets[-1][1]}
    if len(last_place) != 1:
        return []  # none; or both in one place, a contradiction that the config will name
    return ["--train.epochs=null" if last_place == {"train.steps"} else "--train.steps=null"]


def _unknown(fields: dict[str, object], name: str, value: object, where: str) -> str | None:
    """That a given name is no field, and which one may have been meant, in a line."""
    if name in fields:
        return None
    got = "" if value is None else f", got {_shown(value)}"
    if where.startswith("in ") and any(field.startswith(f"{name}.") for field in fields):
        return f"{name} {where} is a section and needs fields beneath it{got}"
    last = [field for field in fields if field.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    near = last or difflib.get_close_matches(name, fields, 1, 0.5)
    hint = f"did you mean {near[0]}?" if near else "--help lists the fields"
    return f"{name} {where} is not a field{got} ({hint})"


def _wrong(parser, fields: dict[str, object], name: str, value: object, where: str) -> str | None:
    """What is wrong with the value of one given field, in a line."""
    try:
        if isinstance(value, str) and where == "on the command line":
            parser.parse_args([f"--{name}={value}"])
        else:
            nested = value
            for part in reversed(name.split(".")):
                nested = {part: nested}
            parser.parse_object(nested)
    except (argparse.ArgumentError, TypeError, ValueError):
        options = typing.get_args(fields[name]) if typing.get_origin(fields[name]) is typing.Literal else ()
        near = difflib.get_close_matches(str(value), [str(option) for option in options], 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        return f"{name} {where} must be {_described(fields[name])}, got {_shown(value)}{hint}"
    return None


def _flatten(values: dict, prefix: str = "") -> list[tuple[str, object]]:
    """Nested fields as (dotted name, value)."""
    flat = []
    for name, value in values.items():
        is_section = isinstance(value, dict) and value and not prefix
        flat += _flatten(value, f"{name}.") if is_section else [(f"{prefix}{name}", value)]
    return flat


def _fields(config: type) -> dict[str, object]:
    """Dotted name to type of all fields."""
    fields: dict[str, object] = {}
    for name, kind in typing.get_type_hints(config).items():
        if dataclasses.is_dataclass(kind):
            fields |= {f"{name}.{k}": v for k, v in typing.get_type_hints(kind).items()}
        else:
            fields[name] = kind
    return fields


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


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def run(main: Callable[[], int | None]) -> None:
    """Call a script's main function, whose result is the exit status: what a user can mend becomes lines on stderr and
    status 2, a stopped training status 1; anything else is ours, and shows its traceback."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("vaegan").setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    try:
        status = main() or 0
    except ConfigError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        status = 2
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        status = 130
    else:
        if status:
            sys.exit(status)
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        os._exit(status)  # the other ranks may be waiting in a collective; the launcher ends them
    sys.exit(status)
