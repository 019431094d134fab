"""Tables and pictures of the quality benchmark, made of the records that its runs have left."""

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import quality_records as records
from contestants import ABLATION_SEEDS, Contestant, recipe_of
from quality_records import Job

from vaegan.config import ConfigError
from vaegan.evaluation import protocol
from vaegan.evaluation.report import HIGHER_IS_BETTER, NEITHER_IS_BETTER, Result, heading, shown

# Between the distances, whose names say the extractor, and the parameters.
FIGURES = ("kid", "precision", "recall", "f1", "psnr", "ssim", "lpips", "bits_per_dim")
TRAINED = {"images/s": "images/s", "latents": "latents"}
DATA = {"mnist": "MNIST", "cifar10": "CIFAR-10"}


@dataclass(frozen=True)
class Row:
    """A contestant and its records, by seed."""

    contestant: Contestant
    found: list[dict]
    notes: list[str]

    def values(self, figure: str) -> list[float]:
        """Of all seeds that have it."""
        of = [record["trained"] | record["figures"] for record in self.found]
        return [values[figure] for values in of if isinstance(values.get(figure), int | float)]

    def median(self, figure: str) -> float:
        values = self.values(figure)
        return statistics.median(values) if values else math.nan

    @property
    def seeds(self) -> list[int]:
        return [record["seed"] for record in self.found]


def write(job: Job, contestants: Sequence[Contestant], ablation: bool = False) -> str:
    """Tables, chart and samples into the folder of the records; the table's Markdown. ConfigError if there are no
    records, or if they are not alike and so cannot be compared."""
    import quality_pictures
    import quality_samplers

    rows = rows_of(job, contestants, ABLATION_SEEDS if ablation else None)
    name, prefix = ("ablation", "ablation-") if ablation else ("table", "")
    text = markdown(job, rows, ablation) + ("" if ablation else quality_samplers.markdown(job, rows))
    records.write(job.folder / f"{name}.md", text.encode())
    records.write_json(job.folder / f"{name}.json", plain(job, rows))
    records.write(job.folder / f"{prefix}chart.png", quality_pictures.chart(results(rows)))
    for kind in ("samples",) if ablation else ("samples", "reconstructions"):
        panels = {captioned(row, kind): job.of_seed(row.contestant.name, row.seeds[0]).picture(kind) for row in rows}
        if picture := quality_pictures.side_by_side({title: file for title, file in panels.items() if file.is_file()}):
            records.write(job.folder / f"{prefix}{kind}.webp", picture)
    return text


def rows_of(job: Job, contestants: Sequence[Contestant], seeds: Sequence[int] | None = None) -> list[Row]:
    """The contestants that have records with this data and budget, in their order."""
    rows = []
    for contestant in contestants:
        files = sorted(job.folder.glob(f"{contestant.name}-*.json"), key=lambda file: (len(file.name), file.name))
        files = [file for file in files if re.fullmatch(rf"{contestant.name}-\d+\.json", file.name)]
        found = [record for record in map(records.read, files) if seeds is None or record["seed"] in seeds]
        if found:
            rows.append(Row(contestant, found, _notes(contestant, job, found)))
    if not rows:
        raise ConfigError(f"{job.folder} holds no records: run the benchmark without --table-only")
    _require_alike(job, [record for row in rows for record in row.found])
    return rows


def _notes(contestant: Contestant, job: Job, found: list[dict]) -> list[str]:
    notes = list(dict.fromkeys(f"{note}" for record in found for note in record["notes"]))
    if len({records.digest(record["recipe"]) for record in found}) > 1:
        raise ConfigError(f"{job.folder}: the seeds of {contestant.name} were made by several recipes; make them anew")
    if changes := records.differences(found[0]["recipe"], recipe_of(contestant, job)):
        notes.append(f"made by another recipe than the present one ({'; '.join(changes)})")
    return notes


def _require_alike(job: Job, found: list[dict]) -> None:
    """ConfigError unless all records were measured alike."""
    measured = [record for record in found if record["protocol"]]
    for record in found[1:]:
        if changes := records.differences(found[0]["setting"], record["setting"]):
            raise ConfigError(f"{job.folder}: {_name(record)} differs from {_name(found[0])} ({'; '.join(changes)})")
    for record in measured[1:]:
        protocol.require_alike(measured[0]["protocol"], record["protocol"], _name(measured[0]), _name(record))
        key = "reference images"
        if measured[0]["protocol"].get(key) != record["protocol"].get(key):
            raise ConfigError(f"{job.folder}: {_name(record)} and {_name(measured[0])} had other reference images")


def _name(record: dict) -> str:
    return f"{record['contestant']}-{record['seed']}"


# ---------------------------------------------------------------------- as Markdown


def markdown(job: Job, rows: list[Row], ablation: bool = False) -> str:
    """A row a contestant: median and, of several seeds, range; the best medians in bold."""
    columns = [figure for figure in (*_distances(rows), *FIGURES, *TRAINED) if any(row.values(figure) for row in rows)]
    best = {figure: _best(rows, figure) for figure in columns}
    table = [["", "seeds", *(TRAINED.get(figure) or heading(figure) for figure in columns), "parameters (M)"]]
    for row in rows:
        cells = [_cell(row, figure, best[figure]) for figure in columns]
        table.append([row.contestant.title, str(len(row.found)), *cells, _parameters(row)])
    floor = [value for row in rows for value in row.values("floor")][:1]  # the same of all
    table.append(
        ["real images: the floor", "", *(f"{value:.2f}" for value in floor), *[""] * len(columns[len(floor) :]), ""]
    )
    lines = ["| " + " | ".join(line) + " |" for line in table]
    lines.insert(1, "|---" + "|---:" * (len(table[0]) - 1) + "|")
    title = f"### {DATA[job.data]}, {job.minutes:g} minutes of training" + (", ablation" if ablation else "")
    return "\n".join([title, "", *lines, "", *_remarks(job, rows, ablation)]) + "\n"


def _distances(rows: list[Row]) -> tuple[str, str]:
    label = next((record["protocol"]["label"] for row in rows for record in row.found if record["protocol"]), "FD")
    return label, f"reconstruction {label}"


def _cell(row: Row, figure: str, best: str) -> str:
    values = row.values(figure)
    if not values:
        return "–"
    text = shown(figure, statistics.median(values))
    cell = f"**{text}**" if text == best else text
    return cell if len(values) == 1 else f"{cell} ({shown(figure, min(values))} – {shown(figure, max(values))})"


def _best(rows: list[Row], figure: str) -> str:
    """The best median as it is shown; empty where nothing is better than another."""
    medians = [row.median(figure) for row in rows if row.values(figure)]
    if figure in (*NEITHER_IS_BETTER, *TRAINED) or len({shown(figure, value) for value in medians}) < 2:
        return ""
    return shown(figure, max(medians) if figure in HIGHER_IS_BETTER else min(medians))


def _parameters(row: Row) -> str:
    """Of encoder, decoder and discriminator, in millions."""
    counts = row.found[0]["trained"].get("parameters", {})
    names = ("encoder", "decoder", "discriminator")
    return " + ".join(f"{counts[name] / 1e6:.2f}" if name in counts else "–" for name in names)


def _remarks(job: Job, rows: list[Row], ablation: bool) -> list[str]:
    setting, found = rows[0].found[0]["setting"], [record for row in rows for record in row.found]
    flags = " ".join(records.flags(setting)) + (" --ablation" if ablation else "")
    machines = dict.fromkeys(_machine(record) for record in found)
    lines = [
        f"`python benchmarks/quality.py {flags}`", "",
        f"Median (range) of the seeds. {setting['samples']} samples against the whole of {setting['images'][1]}; for "
        f"the floor, {setting['samples']} images of {setting['images'][0]} in their place. Reconstructions of as many "
        "validation images; bits/dim by the Gaussian of optimal scale for all. Parameters: encoder + decoder + "
        "discriminator.", "",
        *(f"Trained on {machine}." for machine in machines), "",
    ]  # fmt: skip
    decoded = [row for row in rows if row.values("psnr")]
    shared = [note for note in decoded[0].notes if all(note in row.notes for row in decoded)] if decoded[1:] else []
    lines += [f"- {_plain(note)}" for note in shared]
    for row in rows:
        lines += [f"- {row.contestant.title}: {_plain(note)}" for note in row.notes if note not in shared]
    return lines


def _machine(record: dict) -> str:
    about = record["machine"]
    return f"{about.get('GPU') or about['processor']}, {about['cores']} threads, torch {about['torch']}"


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# ---------------------------------------------------------------------- for programs and pictures


def plain(job: Job, rows: list[Row]) -> dict:
    """All of the table, in full precision, with the range of several seeds."""
    return {
        "setting": rows[0].found[0]["setting"],
        "rows": [
            {
                "contestant": row.contestant.name, "title": row.contestant.title, "seeds": row.seeds,
                "figures": {name: _summary(row.values(name)) for name in _names(row) if row.values(name)},
                "parameters": row.found[0]["trained"].get("parameters", {}), "notes": row.notes,
                "recipe hash": records.digest(row.found[0]["recipe"]),
                "commits": sorted({record.get("commit", "") for record in row.found}),
            }
            for row in rows
        ],
    }  # fmt: skip


def _names(row: Row) -> list[str]:
    return list(dict.fromkeys(name for record in row.found for name in (*record["figures"], *record["trained"])))


def _summary(values: list[float]) -> dict:
    """Of each seed there is a record."""
    if len(values) == 1:
        return {"median": values[0]}
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def results(rows: list[Row]) -> list[Result]:
    """For a chart, in which the range of the seeds stands where an interval of one model would."""
    found = []
    for row in rows:
        figures = {}
        for name in (*_distances(rows), *FIGURES):
            if values := row.values(name):
                figures |= {
                    name: statistics.median(values),
                    f"{name} 2.5 %": min(values),
                    f"{name} 97.5 %": max(values),
                }
        found.append(Result(row.contestant.title, figures))
    return found


def captioned(row: Row, kind: str) -> str:
    """A title and the distance of the first seed's `samples` or `reconstructions`."""
    samples, reconstructions = _distances([row])
    distance = row.found[0]["figures"].get(samples if kind == "samples" else reconstructions)
    return row.contestant.title + ("" if distance is None else f": {distance:.1f}")
