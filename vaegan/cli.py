"""The command line: YAML and flags to a Config, and errors to one line a problem and exit status 2."""

import logging
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path

import jsonargparse
import yaml

from vaegan import field_problems, strict_yaml
from vaegan.config import Config, ConfigError
from vaegan.field_problems import COMMAND_LINE, PARSING_ERRORS, Given, one_line
from vaegan.stop import Stopped

_MOST_LINES = 100


def parse_config(arguments: list[str], default_config: Path) -> Config:
    """The Config of a command line: `--config FILE` (else `default_config`), then flags over it.

    Raises ConfigError with all unknown and all wrong fields, a line each. `--help` and `--print_config` exit.
    """
    files, flags, switches = _split(arguments)
    given = [field for file in files or [str(default_config)] for field in _of_file(file)] + flags
    last = {field.name: field for field in given}
    return _config(given, switches, [line for line in map(field_problems.names_code, last.values()) if line])


def config_from_dict(values: dict) -> Config:
    """Build a Config from nested plain values; ConfigError with all problems, a line each."""
    return _config([Given(name, value, "") for name, value in field_problems.flatten(values)], [], [])


def load_config(file: Path) -> Config:
    """The Config that a run has left in its folder. ConfigError, in one line, if this version does not know it."""
    values = load_yaml(file, "RUN")
    try:
        return config_from_dict(values)
    except ConfigError as error:
        problem = str(error).splitlines()[0]
        raise ConfigError(f"{file} has fields that this version does not know ({problem}): update vaegan") from error


def config_parser() -> jsonargparse.ArgumentParser:
    """A parser with a flag for each field of Config, explained by its docstring."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    jsonargparse.set_loader("strict", strict_yaml.read, exceptions=(yaml.YAMLError,))
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
    where = one_line(f"{field} {file}")
    try:
        with open(file, "rb") as stream:
            data = stream.read(strict_yaml.MAX_BYTES + 1)  # not the whole of what may be a video
        values = strict_yaml.read(data.decode())
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {error.strerror} (recipes lie in configs/)") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{where} is no valid YAML: {one_line(str(error))}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{where} must hold fields (name: value), got {type(values).__name__}")
    return values


def _config(given: list[Given], switches: list[str], code: list[str]) -> Config:
    parser, known = config_parser(), field_problems.fields()
    other = ""
    if all(field.name in known for field in given):
        try:
            values = _parsed(parser, known, given, switches)
        except PARSING_ERRORS as error:
            other = one_line(str(error))
        else:
            if problems := code + field_problems.of_sections(values):
                raise ConfigError("\n".join(problems))
            return _built(values)
    # Something is wrong: look at each field by itself, so that all that is wrong is said at once.
    raise ConfigError("\n".join(_all_problems(parser, known, given, code)) or other)


def _all_problems(parser, known: dict[str, object], given: list[Given], code: list[str]) -> list[str]:
    """A line a problem: names, kinds, and, of the fields that have neither, the values; at most so many."""
    lines: dict[str, None] = {}
    good, dropped = [], set()
    for field in given:
        if field.name not in known:
            lines[field_problems.unknown(known, field)] = None
        elif field_problems.is_of_wrong_kind(parser, known, field):
            lines[field_problems.wrong(known, field)] = None
        else:
            good.append(field)
            continue
        dropped.add(field.name)
        if len(lines) == _MOST_LINES:
            return [*lines, "and more: mend these first"]
    try:
        values = field_problems.of_sections(_parsed(parser, known, good, []))
    except PARSING_ERRORS:
        values = []
    names = {field.name for field in good}
    code = [line for line in code if line.split(" ", 1)[0] not in dropped]
    return [*lines, *code, *(line for line in values if field_problems.still_true(line, names, dropped))]


def _parsed(parser, known: dict[str, object], given: list[Given], switches: list[str]) -> dict:
    """Nested values of known fields: those of files, then flags over them. One of PARSING_ERRORS for the wrong kinds."""
    in_files = [field for field in given if field.where != COMMAND_LINE]
    flags = [f"--{field.name}={field.value}" for field in given if field.where == COMMAND_LINE]
    namespace = parser.parse_object(field_problems.nested(in_files))
    parsed = parser.parse_args([*flags, *_budget(given), *switches], namespace=namespace).as_dict()
    parsed.pop("config", None)
    for name, value in field_problems.flatten(parsed):
        if value is None and not field_problems.takes_null(known[name]):
            raise TypeError(f"{name} is null")
    return {
        name: {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        if isinstance(value, dict)
        else value
        for name, value in parsed.items()
    }


def _built(values: dict) -> Config:
    sections = {f.name: f.type(**values[f.name]) for f in fields(Config) if is_dataclass(f.type)}
    return Config(**values | sections)


def _split(arguments: list[str]) -> tuple[list[str], list[Given], list[str]]:
    """The files, the flags and the switches, which exit, of a command line. Flags override files wherever they stand."""
    files, flags, switches = [], [], []
    words = iter(arguments)
    for word in words:
        name, separator, value = word.removeprefix("--").partition("=")
        if word in ("-h", "--help") or name == "print_config":
            switches.append(word)
            continue
        if not word.startswith("--") or word == "--":
            flags.append(Given(word, None, COMMAND_LINE))
            continue
        if not separator:
            value = next(words, None)
        if value is None:
            raise ConfigError(f"{one_line(word)} needs a value")
        if name == "config":
            files.append(value)
        else:
            flags.append(Given(name, value, COMMAND_LINE))
    return files, flags, switches


def _of_file(file: str) -> list[Given]:
    where = one_line(f"in {file}")
    given = [Given(name, value, where) for name, value in field_problems.flatten(load_yaml(Path(file)))]
    count = Counter(field.name for field in given)
    if twice := [name for name in count if count[name] > 1]:  # once in its section, once with a dot
        raise ConfigError(f"--config {where[3:]} gives {', '.join(twice[:9])} twice: remove one")
    return given


def _budget(given: list[Given]) -> list[str]:
    """A flag that clears the recipe's budget where the command line gives the other: steps for epochs, or epochs."""
    budgets = [(name, where) for name, value, where in given
               if name in ("train.steps", "train.epochs") and value not in (None, "null")]  # fmt: skip
    last_place = {name for name, where in budgets if where == budgets[-1][1]}
    if len(last_place) != 1:
        return []  # none; or both in one place, a contradiction that the config will name
    return ["--train.epochs=null" if last_place == {"train.steps"} else "--train.steps=null"]


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
    except Stopped as stopped:
        if os.environ.get("RANK", "0") == "0" or stopped.status == 1:  # a signal has reached them all
            print(stopped, file=sys.stderr)
        status = stopped.status
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
