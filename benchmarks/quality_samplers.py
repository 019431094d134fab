"""Distances of a trained contestant's samples by what its latents are drawn from: the prior, or what is fitted to q(z)."""

from functools import partial

import quality_records as records
import torch
from contestants import named, recipe_of
from quality_records import Job
from quality_score import BATCH, images_of, setting_of
from quality_worker import kept

from vaegan.config import ConfigError
from vaegan.evaluation.report import heading, shown
from vaegan.evaluation.sources import ModelSource
from vaegan.samplers import LATENTS, NAMES, fit_sampler, posterior_latents

FIGURES = ("kid", "precision", "recall", "f1")


def perform(job: Job) -> None:
    """Fit all samplers to the training images' latents, measure samples of each, and leave a record beside that of the
    training. ConfigError if the weights are not there any more."""
    contestant = named(job.contestant)
    recipe = recipe_of(contestant, job)
    found = kept(contestant, job, recipe)
    if found is None:
        raise ConfigError(f"{job.weights} holds no weights of {job.contestant} as it is now: train it with --again")
    model, _ = found
    setting = setting_of(job, model.device)
    images = partial(images_of, setting, job)
    real, _ = setting.measured(images("val"), keep=True)
    z, figures, about = posterior_latents(model, images("train", limit=LATENTS), job.seed), {}, {}
    for name in NAMES:
        sampler, about[name] = (None, {}) if name == "prior" else fit_sampler(name, z, job.seed)
        fake, _ = setting.measured(ModelSource(model, job.samples, batch_size=BATCH, sampler=sampler), keep=False)
        figures[name] = setting.compared(real, fake, setting.extractor.label)
    values = {"contestant": job.contestant, "seed": job.seed, "setting": job.setting, "figures": figures,
              "about": about, "torch": torch.__version__, "recipe hash": records.digest(recipe)}  # fmt: skip
    records.write_json(job.by_sampler, values)


def markdown(job: Job, rows: list) -> str:
    """The table of what `perform` has left for these rows of the other table, by contestant and sampler; or nothing."""
    lines: list[str] = []
    for row in rows:
        for record in row.found:
            lines += _lines(row.contestant.title, records.read_json(job.of_seed(row.contestant.name, record["seed"]).by_sampler),
                            records.digest(record["recipe"]))  # fmt: skip
    if not lines:
        return ""
    label = rows[0].found[0]["protocol"]["label"]
    head = ["", "seed", "latents from", *(heading(name) for name in (label, *FIGURES))]
    table = ["| " + " | ".join(head) + " |", "|---" * 3 + "|---:" * (len(head) - 3) + "|", *lines]
    return "\n".join(["", "### Distance by sampler", "", *table, ""])


def _lines(title: str, record: dict, recipe_hash: str) -> list[str]:
    if record.get("recipe hash") != recipe_hash:  # none, or of an earlier recipe
        return []
    return ["| " + " | ".join([title, str(record["seed"]), name, *(shown(f, figures[f]) for f in (next(iter(figures)), *FIGURES))])
            + " |" for name, figures in record["figures"].items()]  # fmt: skip
