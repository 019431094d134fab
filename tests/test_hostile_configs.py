"""Malformed recipes and flags: whatever is written, the answer is a Config or a line a problem, soon."""

import dataclasses
import functools
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from vaegan import cli, field_problems, strict_yaml
from vaegan.config import Config, ConfigError

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
FIELDS = list(field_problems.fields())
SECTIONS = [field.name for field in dataclasses.fields(Config) if dataclasses.is_dataclass(field.type)]
MOST_SECONDS = 4.0


@pytest.fixture(autouse=True)
def one_parser(monkeypatch):
    """Built once: thousands of examples would spend most of their time on it."""
    monkeypatch.setattr(cli, "config_parser", functools.cache(cli.config_parser))


def is_clean(line: str, file: Path | None) -> bool:
    """Whether a line is short, on one line, and names a field, a section, a flag or the file."""
    if not line or not line.isprintable() or len(line) > 700:
        return False
    first = line.split(" ", 1)[0].rstrip(":,")
    named = first in (*FIELDS, *SECTIONS) or first.startswith("--")
    placed = " on the command line is " in line or (file is not None and f" in {file} " in line)
    return named or placed or line == "and more: mend these first"


def outcome(arguments: list[str], default: Path, file: Path | None = None) -> Config | list[str]:
    """The Config, or the lines of the ConfigError; fails for any other exception, an unclean line, or a long wait."""
    since = time.monotonic()
    try:
        result = cli.parse_config(arguments, default)
        numbers = [
            v for section in dataclasses.asdict(result).values() if isinstance(section, dict) for v in section.values()
        ]
        assert all(math.isfinite(v) for v in numbers if isinstance(v, float)), numbers
    except ConfigError as error:
        result = str(error).splitlines()
        assert result and all(is_clean(line, file) for line in result), result
        assert len(set(result)) == len(result), result
    assert time.monotonic() - since < MOST_SECONDS
    return result


# --- what is written ---

NUMBERS = st.one_of(
    st.integers(),
    st.integers(min_value=10**18, max_value=10**30),
    st.floats(),
    st.sampled_from([-1, 0, 1, 0.5, 1e400, -0.0]),
)
WORDS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["", "yes", "no", "on", "null", "~", ".nan", ".inf", "-.inf", "1e-4", "1e400", "nan", "12:30", "0x1F", "010",
                     "2001-99-99", "2001-01-01", "=", "<<", "auto", "!!python/name:os.system", "${oc.env:HOME}", "@file", "a\0b",
                     "light", "mlp", "../..", "/dev/zero", "os:system", "\ud800", "x" * 3000, "9" * 5000, "a\nb", "\x85", "{}"]),
)  # fmt: skip
SCALARS = st.one_of(NUMBERS, WORDS, st.booleans(), st.none(), st.dates())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=6,
)
NAMES = st.one_of(
    st.sampled_from(FIELDS), st.sampled_from(SECTIONS), WORDS,
    st.builds(lambda name, i, letter: name[:i] + letter + name[i + 1 :], st.sampled_from(FIELDS), st.integers(0, 20),
              st.sampled_from(list("aex_.-") + [""])),
)  # fmt: skip


@st.composite
def mutated(draw) -> dict:
    """A recipe in which some fields are wrong, missing, misplaced or misspelt."""
    recipe = yaml.safe_load(draw(st.sampled_from(RECIPES)).read_text())
    for _ in range(draw(st.integers(1, 4))):
        section = draw(st.sampled_from([recipe, *(v for v in recipe.values() if isinstance(v, dict))]))
        names = [name for name in section if isinstance(name, str)]
        change = draw(st.sampled_from(["value", "value", "remove", "rename", "add", "field", "nest", "move"]))
        if change == "add" or not names:
            section[draw(NAMES)] = draw(VALUES)
            continue
        if change == "field":  # where it belongs
            place, _, field = draw(st.sampled_from(FIELDS)).rpartition(".")
            target = recipe.setdefault(place, {}) if place else recipe
            (target if isinstance(target, dict) else recipe)[field] = draw(VALUES)
            continue
        name = draw(st.sampled_from(names))
        value = section.pop(name)
        if change == "value":
            section[name] = draw(VALUES)
        elif change == "rename":
            section[draw(NAMES)] = value
        elif change == "nest":
            section[name] = draw(st.sampled_from([[value], {name: value}, {"train": {name: value}}, [[[value]]]]))
        elif change == "move":
            recipe[draw(NAMES)] = value
    return recipe


SPLICES = [
    "\t", "\ufeff", "\0", "\x07", "<<: *a\n", "<<: {seed: 1}\n", "&a ", "*a", "*b", "---\n", "...\n", "!!python/object:os.x ", "!!int ",
    "!!binary ", "!x ", "%YAML 9.9\n", "? ", "seed: 1\n", "seed: 2\n", "train:\n  steps: 5\n", "train.steps: 7\n", "'", '"', "[", "{",
    "]", "}", "#", ": ", "- ", "|\n", "> ", "\r\n", "\u2028", "&a [*a]", "x: &a [1,1]\ny: &b [*a,*a,*a,*a]\n", "[" * 400, "{a: " * 300,
    "\\", "!!float x", "? [1]\n: 2\n", "a: " * 50,
]  # fmt: skip


@st.composite
def spliced(draw) -> bytes:
    """A recipe as text, mutated or not, with text put in, lines doubled or cut, or bytes that are no text."""
    values = draw(st.one_of(mutated(), st.sampled_from(RECIPES).map(lambda f: yaml.safe_load(f.read_text()))))
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=False)
    for _ in range(draw(st.integers(0, 3))):
        i = draw(st.integers(0, len(text)))
        change = draw(st.sampled_from(["put in", "put in", "cut", "line", "indent"]))
        if change == "put in":
            text = text[:i] + draw(st.sampled_from(SPLICES)) + text[i:]
        elif change == "cut":
            text = text[:i] + text[i + draw(st.integers(1, 30)) :]
        else:
            lines = text.splitlines(keepends=True) or ["\n"]
            j = draw(st.integers(0, len(lines) - 1))
            lines.insert(j, lines[j] if change == "line" else " " * draw(st.integers(1, 3)) + lines[j])
            text = "".join(lines)
    data = text.encode("utf-8", "surrogatepass")
    ends = st.sampled_from([b"", b"", b"", b"\xff", b"\xed\xa0\x80", b"\0", b"\xef\xbb\xbf"])
    return draw(ends) + data + draw(ends)


FREE = st.one_of(
    st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=200),
    st.lists(st.sampled_from(SPLICES + [f"{name}: " for name in FIELDS]), max_size=12).map(
        lambda p: "".join(p).encode()
    ),
    VALUES.map(lambda value: yaml.safe_dump(value).encode()),
)
FILES = st.one_of(mutated().map(lambda values: yaml.safe_dump(values).encode()), mutated().map(repr).map(str.encode),
                  spliced(), FREE)  # fmt: skip
FLAG_VALUES = st.one_of(
    WORDS, NUMBERS.map(str), VALUES.map(lambda v: yaml.safe_dump(v, default_flow_style=True).strip())
)
FLAGS = st.lists(
    st.one_of(
        st.builds(lambda name, value: [f"--{name}={value}"], st.sampled_from(FIELDS), FLAG_VALUES),
        st.builds(lambda name, value: [f"--{name}", value], st.sampled_from(FIELDS), FLAG_VALUES),
        st.builds(lambda name, value: [f"--{name}={value}"], NAMES, FLAG_VALUES),
        st.builds(
            lambda word: [word], st.one_of(WORDS, st.sampled_from(["--", "-x", "--seed", "--config", "--=", "-"]))
        ),
    ),
    max_size=4,
).map(lambda flags: [word for flag in flags for word in flag])


def few(examples: int):
    return settings(
        max_examples=examples, derandomize=True, deadline=None, database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip


def check_files(folder: Path, data: bytes) -> None:
    file = folder / "recipe.yaml"
    file.write_bytes(data)
    outcome(["--config", str(file)], RECIPES[0], file)


def check_flags(flags: list[str], recipe: Path) -> None:
    if not {"-h", "--help"} & set(flags) and not any(flag.startswith("--print_config") for flag in flags):
        outcome(flags, recipe, recipe)


@few(200)
@given(data=FILES)
def test_any_file_is_a_config_or_clean_lines(tmp_path_factory, data):
    check_files(tmp_path_factory.getbasetemp(), data)


@few(100)
@given(flags=FLAGS, recipe=st.sampled_from(RECIPES))
def test_any_flags_are_a_config_or_clean_lines(flags, recipe):
    check_flags(flags, recipe)


@pytest.mark.soak
@few(3000)
@given(data=FILES)
def test_any_of_3000_files_is_a_config_or_clean_lines(tmp_path_factory, data):
    check_files(tmp_path_factory.getbasetemp(), data)


@pytest.mark.soak
@few(3000)
@given(flags=FLAGS, recipe=st.sampled_from(RECIPES))
def test_any_3000_flags_are_a_config_or_clean_lines(flags, recipe):
    check_flags(flags, recipe)


# --- what is said, to the word ---


def told(tmp_path: Path, text: str | bytes, *flags: str) -> list[str]:
    file = tmp_path / "r.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    result = outcome(["--config", str(file), *flags], file, file)
    assert isinstance(result, list), result
    return [line.replace(str(file), "r.yaml") for line in result]


def test_five_mistakes_are_told_at_once(tmp_path):
    text = (
        "name: mine\nmodle: {width: 4}\nmodel:\n  network: lite\n  latent_dim: 0\ntrain:\n  step: 100\n  batch_size: ten\n"
        "optimizer: {lr: -1}\n"
    )
    lines = [
        "modle.width in r.yaml is not a field, got 4 (did you mean model.width?)",
        "model.network in r.yaml must be one of light, conv, mlp, got 'lite' (did you mean light?)",
        "train.step in r.yaml is not a field, got 100 (did you mean train.steps?)",
        "train.batch_size in r.yaml must be a whole number, got 'ten'",
        "model.latent_dim must be at least 1, got 0",
        "optimizer.lr must be above 0, got -1.0",
    ]
    assert told(tmp_path, text) == lines
    flags = ("--sed", "1", "--objective.fakes", "al", "--train.log_every=0")
    more = [
        "sed on the command line is not a field, got '1' (did you mean seed?)",
        "objective.fakes on the command line must be one of prior, reconstruction, both, got 'al'",
    ]
    assert told(tmp_path, text, *flags) == [*lines[:4], *more, *lines[4:], "train.log_every must be at least 1, got 0"]


def test_what_only_follows_from_another_mistake_is_not_told(tmp_path):
    """Without the weight that could not be read the objective would have no term."""
    text = "train: {steps: 5}\nobjective: {kl_weight: 0, pixel_weight: 0, adversarial_weight: one, balance: true}\n"
    assert told(tmp_path, text) == ["objective.adversarial_weight in r.yaml must be a number, got 'one'"]
    (line,) = told(tmp_path, "train: {steps: many}")
    assert line == "train.steps in r.yaml must be a whole number or null, got 'many'"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("seed: 1\nname: a\nseed: 2\n", "--config r.yaml is no valid YAML: seed stands twice, in lines 1 and 3: remove one"),
        ("train:\n  steps: 1\n\n  steps: 2\n", "--config r.yaml is no valid YAML: steps stands twice, in lines 2 and 4: remove one"),
        ('seed: 1\n"seed": 2\n', "--config r.yaml is no valid YAML: seed stands twice, in lines 1 and 2: remove one"),
        ("train: {steps: 1}\ntrain.steps: 2\n", "--config r.yaml gives train.steps twice: remove one"),
        ("a: &a {<<: *a}", None), ("[" * 5000, None), ("a: &a [*a]", None), ("- " * 20000, None),
        ("a: &a {b: 1}\nc: &c {<<: [*a, *a]}\nd: {<<: [*c, *c], b: 2}\n", "a.b in r.yaml"),
        ("name: &a x\n---\nname: y\n", None), (b"\xff\xfen\0a\0", None), ("x: !!python/object/apply:os.system [ls]", None),
        ("\0", None), ("x" * 70_000, "--config r.yaml is no valid YAML: more than 65536 characters"), ("seed: " + "9" * 5000, None),
        ("seed: !!int x", None), ("seed: !!timestamp x", None), ("seed: !!binary x", None), ("!!set {a}", None),
        ("%YAML 3.0\n---\na: 1", None), ("@a", None), ("a: `b`", None), ("\tname: a", None),
    ],
)  # fmt: skip
def test_what_is_no_yaml_is_told(tmp_path, text, line):
    first, *_ = told(tmp_path, text)
    assert first.startswith(line or "--config r.yaml is no valid YAML: ")


LAUGHS = "l0: &l0 [lol, lol, lol]\n" + "\n".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 40))


@pytest.mark.parametrize(
    "text", [LAUGHS, LAUGHS.replace("[", "{a: [").replace("]", "]}"), f"model:\n  hidden: [{'[' * 15 + ']' * 15}]"]
)
def test_a_billion_laughs_are_refused(tmp_path, text):
    assert told(tmp_path, text)
    assert told(tmp_path, "train: {steps: 1}", f"--model.hidden={text}")


def test_many_mistakes_are_told_up_to_a_hundred(tmp_path):
    lines = told(tmp_path, "\n".join(f"field_{i}: {i}" for i in range(3000)))
    assert len(lines) == 101 and lines[-1] == "and more: mend these first"


def test_all_fields_may_be_wrong(tmp_path):
    sections = {name: {f.split(".")[1]: {"no": []} for f in FIELDS if f.startswith(f"{name}.")} for name in SECTIONS}
    plain = {name: {"no": []} for name in FIELDS if "." not in name}
    lines = told(tmp_path, yaml.safe_dump(sections | plain, sort_keys=False))
    names = [line.split(" ", 1)[0] for line in lines]
    assert len(lines) > 80 and set(f for f in FIELDS if "." in f) <= set(names)


NUMERIC = [name for name, kind in field_problems.fields().items() if re.search(r"\bfloat\b|\bint\b", str(kind))]


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e400"])
@pytest.mark.parametrize("name", [n for n in NUMERIC if "float" in str(field_problems.fields()[n])])
def test_what_is_no_number_is_refused_in_every_field(name, value, tmp_path):
    shown = f"[{value}, 0.5]" if "betas" in name else value
    (line,) = [line for line in told(tmp_path, "train: {steps: 1}\n", f"--{name}={shown}") if line.startswith(f"{name} ")]
    assert "nan" in line or "inf" in line


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "0.0001", "+1e-4", "1.0e-04", ".0001"])
def test_a_number_is_a_number_however_it_is_written(text):
    assert strict_yaml.read(text) == 1e-4 and type(strict_yaml.read(text)) is float


@pytest.mark.parametrize(
    "text", ["yes", "no", "on", "off", "12:30", "2001-01-01", "010", "0x1F", "0b1", "=", "1_0e3", "e5", "."]
)
def test_words_are_words(text):
    assert strict_yaml.read(text) == text


def test_aliases_and_merges_in_measure_are_read(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("train: {steps: 1}\noptimizer: {betas: &b [0.5, 0.9], discriminator_betas: *b}\n")
    assert cli.parse_config([], file).optimizer.discriminator_betas == (0.5, 0.9)
    file.write_text(
        "\ufefftrain: &t {steps: 1, batch_size: 4}\nevaluation: {<<: {every: 5, batch_size: 3}, every: 7}\n", "utf-8"
    )
    config = cli.parse_config([], file)
    assert (config.evaluation.every, config.evaluation.batch_size, config.train.batch_size) == (7, 3, 4)


@pytest.mark.parametrize("name", ["a\nb", "", "\ud800", "x" * 5000, "\x85", "train..steps", "--", "None"])
def test_any_name_is_told_on_one_line(tmp_path, name):
    text = yaml.safe_dump({name: 1, "train": {name: 2}})
    lines = told(tmp_path, text)
    assert len(lines) == 2 and all("is not a field" in line for line in lines)


# --- through the script ---


@pytest.mark.parametrize(
    ("text", "lines"),
    [("train: {steps: ten, stpes: 1}\nmodel: {norm: grup}\n", 3), (LAUGHS, 1), ("a: !!python/object/apply:os.system [ls]", 1),
     ("evaluation: {extractor: 'os:system'}\ntrain: {steps: 1}\n", 1), ("\0", 1)],
)  # fmt: skip
def test_the_script_ends_soon_with_status_2_and_without_torch(tmp_path, text, lines):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    program = (
        "import atexit, runpy, sys; sys.argv = sys.argv[1:]; "
        "atexit.register(lambda: print([m for m in ('torch', 'numpy', 'PIL', 'accelerate') if m in sys.modules])); "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", program, str(ROOT / "scripts" / "train.py"), "--config", str(file)]
    since = time.monotonic()
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=60, env=os.environ | {"RANK": "0"}
    )
    seconds = time.monotonic() - since
    assert done.returncode == 2 and done.stdout.strip() == "[]", done.stdout + done.stderr
    told = done.stderr.splitlines()
    assert len(told) == lines and all(line.startswith("error: ") for line in told), told
    assert seconds < MOST_SECONDS and sorted(path.name for path in tmp_path.iterdir()) == ["bad.yaml"]
