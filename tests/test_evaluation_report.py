"""Reports: what the table says, round trips, and writing that is whole or not at all."""

import csv
import io
import json
import math
import os

import pytest
import torch
from PIL import Image

from vaegan.config import ConfigError
from vaegan.evaluation.report import Result, markdown, to_csv, to_json, write_report

FIGURES = {"FID": 12.3456789012345, "kid": 0.00123456, "kid_std": 0.00045, "precision": 0.61, "floor": 2.5, "kl": 30.0}
PROTOCOL = {"extractor": "inception", "weights": "0123456789abcdef" * 4, "n": "10000"}
A = Result("runs/a", FIGURES, PROTOCOL | {"seed": "0"}, ["few images", "all of it"])
B = Result("runs/b", FIGURES | {"FID": 9.0, "kid": 0.002, "precision": 0.5}, PROTOCOL | {"seed": "1"}, ["all of it"])


def table(results: list[Result]) -> list[dict[str, str]]:
    """The rows of the table by its headings; every line is of one width."""
    lines = [line for line in markdown(results).splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    heads, rule, *rows = [[cell.strip() for cell in line.replace("\\|", "¦").split("|")[1:-1]] for line in lines]
    assert all(set(cell) <= {"-", ":"} and len(cell) > 2 for cell in rule)
    return [dict(zip(heads, row)) for row in rows]


def test_a_table_has_a_row_a_result_with_units_and_sensible_digits():
    assert table([A]) == [
        {"model": "runs/a", "FID ↓": "12.35", "KID ×10³ ↓": "1.23 ± 0.45", "precision ↑": "0.610", "floor": "2.50",
         "KL (nats)": "30.00"}
    ]  # fmt: skip


def test_the_best_is_bold_in_either_direction_and_as_far_as_it_shows():
    a, b = table([A, B])
    assert (a["FID ↓"], b["FID ↓"]) == ("12.35", "**9.00**")
    assert (a["precision ↑"], b["precision ↑"]) == ("**0.610**", "0.500")
    assert (a["KID ×10³ ↓"], b["KID ×10³ ↓"]) == ("**1.23** ± 0.45", "2.00 ± 0.45")
    assert (a["floor"], a["KL (nats)"]) == ("2.50", "30.00")  # of these neither is better
    near = [Result(name, {"FID": value, "psnr": 20.0}) for name, value in (("a", 5.001), ("b", 5.002), ("c", 6.0))]
    assert [row["FID ↓"] for row in table(near)] == ["**5.00**", "**5.00**", "6.00"]
    assert [row["PSNR (dB) ↑"] for row in table(near)] == ["20.00"] * 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_what_is_not_there_is_a_dash(bad):
    other = {"precision": 0.5} | ({} if bad is None else {"FID": bad})
    rows = table([A, Result("x", other)])
    assert rows[1]["FID ↓"] == rows[1]["KID ×10³ ↓"] == "–" and rows[0]["FID ↓"] == "12.35"


def test_an_interval_stands_beside_its_figure():
    figures = {"FD[dinov2]": 300.0, "FD[dinov2] 2.5 %": 290.0, "FD[dinov2] 97.5 %": 310.5, "FD[dinov2]∞": 280.0}
    assert table([Result("a", figures)]) == [
        {"model": "a", "FD[dinov2] ↓": "300.00 [290.00, 310.50]", "FD[dinov2]∞ ↓": "280.00"}
    ]


def test_protocol_and_notes_say_what_is_common_once():
    text = markdown([A, B])
    assert "\n\nProtocol: extractor inception; weights 0123456789ab; n 10000.\n\n" in text
    lines = [line for line in text.splitlines() if line.startswith("- ")]
    assert lines == ["- runs/a: seed 0.", "- runs/b: seed 1.", "- all of it", "- runs/a: few images"]
    assert "- few images\n- all of it\n" in markdown([A])
    assert "Protocol" not in markdown([Result("a", {"FID": 1.0})])


def test_names_do_not_break_the_table():
    assert table([Result("a | b\nc", {"FID": 1.0})])[0]["model"] == "a ¦ b c"


def test_json_keeps_everything():
    results = [A, Result("x", {"FID": math.nan, "unknown": 1 / 3})]
    first, second = json.loads(to_json(results))
    assert first == {"name": A.name, "figures": A.figures, "protocol": A.protocol, "notes": A.notes}
    assert second["figures"] == {"FID": None, "unknown": 1 / 3}
    assert list(first) == sorted(first) and to_json(results) == to_json(results)


def test_csv_keeps_everything():
    name = 'x, "y"'
    first, second = csv.DictReader(io.StringIO(to_csv([A, Result(name, {"FID": math.nan, "lpips": 1 / 3})])))
    assert {k: float(first[k]) for k in FIGURES} == FIGURES and first["lpips"] == ""
    assert {k: first[f"protocol.{k}"] for k in A.protocol} == A.protocol and first["notes"] == "few images; all of it"
    assert (second["name"], second["FID"], float(second["lpips"])) == (name, "", 1 / 3)


def images(n: int, channels: int = 1, size: int = 8) -> torch.Tensor:
    return torch.full((n, channels, size, size), 7, dtype=torch.uint8)


def test_a_report_is_five_files(tmp_path):
    folder = tmp_path / "new" / "report"
    write_report(folder, [A, B], {"runs/a": images(8), "runs/b": images(3, 3)})
    assert sorted(f.name for f in folder.iterdir()) == [
        "plot.png",
        "report.csv",
        "report.json",
        "report.md",
        "samples.png",
    ]
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert text.startswith(markdown([A, B])) and "(plot.png)" in text and "(samples.png)" in text
    assert json.loads((folder / "report.json").read_text(encoding="utf-8"))[0]["figures"] == FIGURES
    assert (folder / "report.csv").read_text(encoding="utf-8") == to_csv([A, B])
    for name in ("plot.png", "samples.png"):
        Image.open(folder / name).verify()


def test_without_images_there_is_no_grid(tmp_path):
    write_report(tmp_path, [A], {})
    assert not (tmp_path / "samples.png").exists() and "samples.png" not in (tmp_path / "report.md").read_text()


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_report(tmp_path, [A], {})
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ConfigError, match=r"cannot be written \(No space left on device\)"):
        write_report(tmp_path, [B], {"b": images(1)})
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file.report cannot be written"):
        write_report(tmp_path / "file" / "report", [A], {})
