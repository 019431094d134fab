"""The command line: flags over YAML, every problem in a line, exit status 2, and no torch before it is needed."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from vaegan import cli
from vaegan.config import Config, ConfigError, ModelConfig, OptimizerConfig

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("name: recipe\nmodel:\n  latent_dim: 4\n  hidden: [7, 5]\ntrain:\n  steps: 10\n  batch_size: 6\n")
    return file


@pytest.fixture
def written(tmp_path):
    """A function of YAML text to the arguments that name its file."""

    def write(text: str) -> list[str]:
        file = tmp_path / "written.yaml"
        file.write_text(text)
        return ["--config", str(file)]

    return write


def problems(arguments, default) -> list[str]:
    with pytest.raises(ConfigError) as error:
        cli.parse_config(arguments, default)
    return str(error.value).splitlines()


def test_the_default_recipe_is_read_and_other_fields_keep_their_defaults(recipe):
    config = cli.parse_config([], recipe)
    assert isinstance(config, Config) and config.name == "recipe" and config.model.hidden == (7, 5)
    assert config.model.latent_dim == 4 and config.train.steps == 10
    assert config.optimizer == OptimizerConfig() and config.model.width == ModelConfig().width


def test_a_recipe_replaces_the_default_one(recipe, written):
    config = cli.parse_config(written("train: {steps: 3}"), recipe)
    assert config.train.steps == 3 and config.name == "vaegan" and config.model.latent_dim == 16
    config = cli.parse_config([f"--config={recipe}"], Path("/nowhere.yaml"))
    assert config.name == "recipe"


def test_flags_override_the_recipe(recipe):
    flags = ["--model.latent_dim", "7", "--name=other", "--train.steps", "null", "--train.epochs", "2.5"]
    config = cli.parse_config(flags, recipe)
    assert (config.model.latent_dim, config.name, config.train.steps, config.train.epochs) == (7, "other", None, 2.5)
    assert config.train.batch_size == 6 and config.model.hidden == (7, 5)
    assert cli.parse_config(["--config", str(recipe), *flags], Path("/nowhere.yaml")) == config


@pytest.mark.parametrize("written_budget", ["steps: 10", "epochs: 4"])
def test_a_budget_replaces_that_of_the_recipe(recipe, written, written_budget):
    arguments = written(f"train: {{{written_budget}}}")
    train = cli.parse_config([*arguments, "--train.epochs", "2.5"], recipe).train
    assert (train.steps, train.epochs) == (None, 2.5)
    train = cli.parse_config([*arguments, "--train.steps", "7"], recipe).train
    assert (train.steps, train.epochs) == (7, None)
    (line,) = problems([*arguments, "--train.steps", "7", "--train.epochs", "2.5"], recipe)
    assert "train.steps" in line and "train.epochs" in line and "exactly one" in line


@pytest.mark.parametrize("written_budget", ["steps: 10", "epochs: 4"])
def test_a_budget_that_is_given_twice_is_the_last(recipe, written, written_budget):
    flags = ["--train.steps", "7", "--train.steps", "8"]
    train = cli.parse_config([*written(f"train: {{{written_budget}}}"), *flags], recipe).train
    assert (train.steps, train.epochs) == (8, None)


def test_flags_override_a_recipe_that_stands_after_them(recipe):
    config = cli.parse_config(["--model.latent_dim", "7", "--config", str(recipe)], recipe)
    assert config.model.latent_dim == 7 and config.model.hidden == (7, 5)


READ = [
    ("optimizer.lr", "1e-4", 1e-4), ("optimizer.discriminator_lr", "3E-5", 3e-5), ("data.memory_limit", "2", 2.0),
    ("data.horizontal_flip", "true", True), ("model.variational", "yes", True), ("train.compile", "false", False),
    ("model.hidden", "[64, 32]", (64, 32)), ("model.discriminator_hidden", "[9]", (9,)), ("data.channels", "3", 3),
    ("objective.augment", "[color,cutout]", ("color", "cutout")), ("optimizer.betas", "[0.5, 0.9]", (0.5, 0.9)),
    ("data.val_source", "null", None), ("data.source", "there", "there"), ("data.root", "~/x", "~/x"),
    ("name", "123", "123"), ("resume", "no", "no"), ("runs_dir", "off", "off"), ("model.network", "conv", "conv"),
    ("model.feature_layer", "-2", -2), ("seed", "5", 5), ("train.epochs", "null", None),
]  # fmt: skip


@pytest.mark.parametrize("joined", [False, True])
def test_flags_are_read_as_their_types(recipe, joined):
    flags = [[f"--{flag}={text}"] if joined else [f"--{flag}", text] for flag, text, _ in READ]
    config = cli.parse_config(sum(flags, []), recipe)
    for flag, _, value in READ:
        section, _, field = flag.rpartition(".")
        got = getattr(getattr(config, section) if section else config, field)
        assert got == value and type(got) is type(value), flag


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "'1e-4'"])
def test_a_number_with_an_exponent_is_a_number(recipe, written, text):
    lr = cli.parse_config(written(f"train: {{steps: 1}}\noptimizer:\n  lr: {text}\n"), recipe).optimizer.lr
    assert lr == 1e-4 and type(lr) is float


@pytest.mark.parametrize("text", ["no", "auto", "'no'", "runs/first"])
def test_resume_may_be_written_as_documented(recipe, written, text):
    """YAML 1.1 reads a bare no as false."""
    assert cli.parse_config(written(f"train: {{steps: 1}}\nresume: {text}\n"), recipe).resume == text.strip("'")


@pytest.mark.parametrize(
    ("flag", "hint"),
    [
        ("train.step", "train.steps"), ("latent_dim", "model.latent_dim"), ("model.latentdim", "model.latent_dim"),
        ("training.batch_size", "train.batch_size"), ("objective.adversarial_wieght", "objective.adversarial_weight"),
        ("sed", "seed"), ("optimizer.learning_rate", None), ("zzz", None),
    ],
)  # fmt: skip
def test_an_unknown_flag_is_told_with_the_nearest(recipe, flag, hint):
    (line,) = problems([f"--{flag}", "5"], recipe)
    assert line.startswith(f"{flag} on the command line is not a field, got '5' (")
    assert (f"did you mean {hint}?" in line) if hint else ("--help" in line or "did you mean" in line)


@pytest.mark.parametrize(
    ("flag", "text", "wanted"),
    [
        ("model.latent_dim", "many", "a whole number"), ("model.latent_dim", "5.5", "a whole number"),
        ("train.steps", "soon", "a whole number or null"), ("optimizer.lr", "fast", "a number"),
        ("data.horizontal_flip", "maybe", "true or false"), ("model.hidden", "64", "a list, each a whole number"),
        ("model.hidden", "[64,x]", "a list, each a whole number"),
        ("optimizer.betas", "[0.5]", "a list of 2, each a number"),
        ("objective.augment", "[colour]", "color, translation, cutout"), ("data.channels", "2", "one of 1, 3"),
        ("model.latent_dim", "", "a whole number"),
    ],
)  # fmt: skip
def test_a_wrong_type_is_told_with_the_right_one(recipe, flag, text, wanted):
    (line,) = problems([f"--{flag}={text}"], recipe)
    assert line.startswith(f"{flag} on the command line must be ") and wanted in line and f"got {text!r}" in line


@pytest.mark.parametrize(
    ("flag", "text", "near"),
    [("model.network", "lite", "light"), ("objective.adversarial_loss", "hinged", "hinge"),
    ("train.precision", "bf-16", "bf16"),
     ("data.fit", "zzzz", None)],
)  # fmt: skip
def test_a_wrong_choice_is_told_with_all_and_the_nearest(recipe, flag, text, near):
    (line,) = problems([f"--{flag}", text], recipe)
    assert f"{flag} on the command line must be one of " in line and f"got '{text}'" in line
    assert (f"did you mean {near}?" in line) if near else ("did you mean" not in line)


def test_several_problems_are_told_at_once(recipe, written):
    arguments = [*written("train: {steps: ten, bogus: 1}\nmodel: {norm: grup}\n"), "--seed", "x", "--nothing", "1"]
    told = problems(arguments, recipe)
    assert [line.split()[0] for line in told] == ["train.steps", "train.bogus", "model.norm", "seed", "nothing"]
    assert all("written.yaml" in line for line in told[:3]) and all("command line" in line for line in told[3:])
    told = problems(["--model.latent_dim", "0", "--optimizer.lr", "0", "--train.precision", "fp16"], recipe)
    assert [line.split()[0] for line in told] == ["model.latent_dim", "optimizer.lr", "train.precision"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: a\nseed: 1\nname: b\n", ["name stands twice", "1 and 3"]),
        ("train:\n  steps: 5\n  steps: 6\n", ["steps stands twice", "2 and 3"]),
        ("train: {steps: 5}\nseed: 1\ntrain: {batch_size: 2}\n", ["train stands twice", "1 and 3"]),
        ("- a\n- b\n", ["must hold fields", "list"]), ("words", ["must hold fields", "str"]),
        ("", ["must hold fields"]),
        ("a: [", ["no valid YAML", "line 1"]), ("a: b: c", ["no valid YAML"]),
        ("a: !!python/name:os.system x", ["no valid YAML"]),
    ],
)  # fmt: skip
def test_a_recipe_that_is_no_recipe_is_refused_in_a_line(recipe, written, text, words):
    arguments = written(text)
    (line,) = problems(arguments, recipe)
    assert line.startswith(f"--config {arguments[1]} ")
    for word in words:
        assert word in line


@pytest.mark.parametrize("text", ["train: {steps: 1}\ndata:\n", "train: {steps: 1}\ndata: mnist\n", "train: [1]\n"])
def test_a_section_without_fields_is_told_by_its_name(recipe, written, text):
    (line,) = problems(written(text), recipe)
    assert line.split()[0] in ("data", "train")


def test_a_recipe_that_cannot_be_read_is_told(recipe, tmp_path):
    for file, reason in ((tmp_path / "none.yaml", "No such file"), (tmp_path, "directory")):
        (line,) = problems(["--config", str(file)], recipe)
        assert str(file) in line and reason in line and "configs/" in line
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00name: a")
    (line,) = problems(["--config", str(tmp_path / "binary.yaml")], recipe)
    assert "binary.yaml is no valid YAML" in line


@pytest.mark.parametrize("arguments", [["--seed"], ["--config"], ["--name", "a", "--train.steps"]])
def test_a_flag_without_value_is_told(recipe, arguments):
    (line,) = problems(arguments, recipe)
    assert line == f"{arguments[-1]} needs a value"


def test_a_stray_word_is_told(recipe):
    (line,) = problems(["train"], recipe)
    assert line.startswith("train on the command line is not a field")


@pytest.mark.parametrize("value", ["x" * 500])
def test_long_values_are_shortened(recipe, value):
    (line,) = problems(["--seed", value], recipe)
    assert len(line) < 200 and line.endswith("...")


def test_print_config_prints_a_recipe_of_the_same_config(recipe, written, capsys):
    flags = ["--name", "no", "--optimizer.lr", "1e-5", "--objective.augment", "[color]"]
    with pytest.raises(SystemExit) as exit:
        cli.parse_config([*flags, "--print_config"], recipe)
    assert exit.value.code in (0, None)
    printed = capsys.readouterr().out
    assert cli.parse_config(written(printed), recipe) == cli.parse_config(flags, recipe)


def test_help_of_the_script_names_the_fields():
    """In a process of its own; without torch it answers at once."""
    blocked = "import sys; sys.modules['torch'] = None; sys.argv = ['train.py', '--help']; import runpy; "
    code = blocked + f"runpy.run_path({str(ROOT / 'scripts/train.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for word in (
        "--model.latent_dim",
        "Dimensions of the latent vector",
        "--objective.kl_weight",
        "--config",
        "relativistic",
    ):
        assert word in done.stdout


def test_importing_the_command_line_does_not_import_torch():
    heavy = ("torch", "numpy", "accelerate")
    code = f"import sys, vaegan, vaegan.cli, vaegan.config; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.fixture
def one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    log = logging.getLogger("vaegan")
    level = log.level
    yield
    log.setLevel(level)


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "shown"),
    [
        (ConfigError("seed is -1\nname is missing"), 2, "error: seed is -1\nerror: name is missing\n"),
        (FloatingPointError("kl not finite at step 3"), 1, "error: kl not finite at step 3\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)  # fmt: skip
def test_run_turns_errors_into_lines_and_a_status(one_process, capsys, error, status, shown):
    with pytest.raises(SystemExit) as exit:
        cli.run(raising(error))
    assert exit.value.code == status
    out, err = capsys.readouterr()
    assert err == shown and out == ""


def test_run_shows_what_is_our_fault_and_passes_what_succeeds(one_process):
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda: 1 / 0)
    assert cli.run(lambda: None) is None


def test_a_wrong_flag_ends_with_status_two(one_process, recipe, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.run(lambda: cli.parse_config(["--sed", "1"], recipe))
    assert exit.value.code == 2
    assert capsys.readouterr().err == "error: sed on the command line is not a field, got '1' (did you mean seed?)\n"
