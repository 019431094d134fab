"""What `scripts/fid.py` does, command by command. Every process calls a command; the first one's results count."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from vaegan import cli, samplers
from vaegan.config import NAMED_SOURCES, Config, ConfigError
from vaegan.data.images import Form
from vaegan.evaluation import protocol, statistics_file
from vaegan.evaluation.distances import FeatureStatistics, few_images_warning, frechet_distance
from vaegan.evaluation.per_class import class_distances, labels_of_features, mean_distance
from vaegan.evaluation.per_class import notes as per_class_notes
from vaegan.evaluation.reconstruction import reconstruction_figures
from vaegan.evaluation.report import Result
from vaegan.evaluation.setting import Extras, Setting
from vaegan.evaluation.sources import ModelSource, ReconstructionSource, Source, labels_for, run_source
from vaegan.latents import proportional
from vaegan.model import CONFIG_FILE, VAEGAN
from vaegan.sampling import batch_starts, beside

GRID = 32  # samples of a model that a report shows


def ref(setting: Setting, source: str, out: Path, with_features: bool) -> None:
    """Write the statistics of a set to a file."""
    statistics_file.check_name(out)
    statistics, described = setting.measured(setting.images(source, limit=setting.num_samples), keep=False)
    if setting.shares.rank == 0:
        kept = statistics.features if with_features else None
        statistics_file.save_statistics(
            out, FeatureStatistics(statistics.n, statistics.mean, statistics.covariance, kept), described
        )


def calc(setting: Setting, real: str, fake: str, extras: Extras) -> list[Result]:
    """Figures of `fake` against `real`, each a set, a statistics file, or a model, which is sampled."""
    models = {operand: open_model(operand, setting.device) for operand in (real, fake) if is_model(operand)}
    form = next((form_of(operand, model) for operand, model in models.items()), None)

    def opened(operand: str):
        if operand in models:
            return setting.samples(models[operand])
        if is_statistics(operand):
            return statistics_file.load_statistics(Path(operand))
        return setting.images(operand, form, limit=setting.num_samples)

    opened_sides = [opened(real), opened(fake)]  # both, before the first is measured
    sides = [side if isinstance(side, tuple) else setting.measured(side, keep=True) for side in opened_sides]
    if setting.shares.rank > 0:
        return []
    (a, protocol_a), (b, protocol_b) = sides
    protocol.require_alike(protocol_a, protocol_b, real, fake)
    label = protocol_b.get("label") or protocol_a.get("label") or "FD[unverified]"
    measured = not all(isinstance(side, tuple) for side in opened_sides)
    figures = setting.compared(a, b, label, classify=measured) | extras.figures(a, b, label)
    unverified = [_unverified(name) for name, of in ((real, protocol_a), (fake, protocol_b)) if not of]
    return [Result(fake, figures, _both(protocol_a, protocol_b), [*unverified, *_few(a, b)])]


def gen(
    setting: Setting, runs: list[str], against: str | None, extras: Extras, names: list[str] | None = None
) -> tuple[list[Result], dict[str, Tensor]]:
    """Figures of the samples of each model against its own data set, or against one; and some samples. `names` are of
    samplers (vaegan.samplers.NAMES), a row each, or `all` that the model can have; by default the prior."""
    plans = {run: _plan(setting, run, against, extras) for run in runs}  # all, before the first is fitted or measured
    drawn = {run: _drawn(setting, run, *plan[:2], names) for run, plan in plans.items()}
    results, shown = [], {}
    for run, (_, _, real, other, notes) in plans.items():
        statistics, described = real if isinstance(real, tuple) else setting.measured(real, keep=True)
        protocol.require_alike(described, setting.extractor.protocol, against or run, "this command")
        floor = None if other is None else setting.measured(other, keep=True)[0]
        for name, (samples, told) in drawn[run].items():
            fake, of_samples = setting.measured(samples, keep=False)
            if setting.shares.rank > 0:
                continue
            label, per_class, more = setting.extractor.label, {}, []
            figures = setting.compared(statistics, fake, label)
            if floor is not None:
                figures["floor"] = frechet_distance(statistics, floor)
            figures |= extras.figures(statistics, fake, label)
            if extras.per_class:
                per_class = _per_class(samples, real, statistics, fake, label)
                figures[f"intra {label}"] = mean_distance(per_class, label)
                more = per_class_notes(per_class, len(fake.mean))
            both = _both(described, of_samples | told)
            results.append(Result(name, figures, both, [*notes, *more, *_few(statistics, fake)], per_class))
            shown[name] = samples.shown(min(GRID, setting.batch_size))
    return results, shown


def _drawn(
    setting: Setting, run: str, model: VAEGAN, labels: Tensor | None, names: list[str] | None
) -> dict[str, tuple[ModelSource, dict[str, str]]]:
    """Samples by the name of their row, and what the protocol tells of their sampler."""
    if "all" in (names or ()):
        has_prior, has_posterior = model.encoder is None or model.variational, model.encoder is not None
        names = [name for name in samplers.NAMES if (has_prior if name == samplers.PRIOR else has_posterior)]
    drawn = {}
    for name in dict.fromkeys(names or [samplers.PRIOR]):
        sampler = samplers.sampler_of(run, name, model, setting.shares, root=setting.root)
        told = {"sampler": name} | ({} if sampler is None else {"sampler weights": sampler.manifest})
        drawn[f"{run} ({name})" if names else run] = setting.samples(model, labels, sampler), told
    return drawn


def _per_class(
    samples: ModelSource, real: Source, statistics: FeatureStatistics, fake: FeatureStatistics, label: str
) -> dict[str, dict[str, float]]:
    """The distances of single classes, of the features that are there already."""
    model = samples.model
    real_labels = labels_of_features(statistics, labels_for(model, real), real.places(0, len(real)), real.name)
    fake_labels = labels_of_features(fake, samples.labels, list(range(len(samples))), samples.name)
    names = model.class_names or [str(i) for i in range(model.classes)]
    return class_distances(statistics.features, real_labels, fake.features, fake_labels, names, label)


def _plan(setting: Setting, run: str, against: str | None, extras: Extras):
    """A model, labels of its samples, images or statistics to compare them with, images for the floor, and notes."""
    model = open_model(run, setting.device)
    if extras.per_class and not model.classes:
        raise ConfigError(f"{run} knows no classes: --per-class is for models of runs with model.conditional true")
    if is_statistics(against):
        if extras.per_class:
            raise ConfigError(f"{against} holds no labels: --per-class needs images with labels as the reference")
        statistics, described = statistics_file.load_statistics(Path(against))
        return model, None, (statistics, described), None, [] if described else [_unverified(against)]
    real = _images_of(setting, run, model, against)
    labels, notes = _labels_like(real, model, setting.drawn, required=extras.per_class)
    if not extras.floor or against not in (None, *NAMED_SOURCES):
        return model, labels, real, None, notes
    try:
        split = "val" if setting.split == "train" else "train"
        return model, labels, real, _images_of(setting, run, model, against, split, setting.drawn), notes
    except ConfigError as error:
        return model, labels, real, None, [*notes, f"no floor: {error}"]


def _labels_like(real: Source, model: VAEGAN, n: int, *, required: bool) -> tuple[Tensor | None, list[str]]:
    """Labels of n samples of a conditional model in the proportions of the reference, where that has such labels, and a
    note that says so."""
    if not model.classes:
        return None, []
    try:
        return proportional(labels_for(model, real), n), ["classes are drawn in the proportions of the reference"]
    except ConfigError as error:
        if required:
            raise
        return None, [f"classes are drawn with the same chance: {error}"]


def recon(setting: Setting, runs: list[str], against: str | None) -> tuple[list[Result], dict[str, Tensor]]:
    """Figures of each model's reconstructions of its validation images, or of a set's; and some pairs."""
    models = {run: open_model(run, setting.device) for run in runs}
    for run, model in models.items():
        if model.encoder is None:
            raise ConfigError(f"{run} has no encoder, having been trained as a GAN: measure its samples (fid.py gen)")
    sources = {run: _images_of(setting, run, models[run], against, limit=setting.num_samples) for run in runs}
    results, shown = [], {}
    for run, model in models.items():
        real = sources[run]
        statistics, described = setting.measured(real, keep=True)
        decoded = ReconstructionSource(model, real)
        again, _ = setting.measured(decoded, keep=False)
        figures, notes = reconstruction_figures(
            model, _batches(setting, real, labels_for(model, real)), run_config(run), setting.shares
        )
        if setting.shares.rank > 0:
            continue
        distance = {f"reconstruction {setting.extractor.label}": frechet_distance(statistics, again)}
        results.append(Result(run, distance | figures, described, [*notes, *_few(statistics, again)]))
        shown[run] = beside(real.batch(0, GRID // 2), decoded.batch(0, GRID // 2))
    return results, shown


def is_model(operand: str) -> bool:
    return (Path(operand).expanduser() / CONFIG_FILE).is_file()


def is_statistics(operand: str | None) -> bool:
    return operand is not None and Path(operand).suffix in statistics_file.SUFFIXES


def open_model(run: str, device: torch.device) -> VAEGAN:
    """ConfigError if there is none."""
    return VAEGAN.from_pretrained(run).to(device)


def run_config(run: str) -> Config | None:
    """The configuration of a run folder; an exported model has none."""
    file = Path(run).expanduser() / "config.yaml"
    return cli.load_config(file) if file.is_file() else None


def form_of(run: str, model: VAEGAN) -> Form:
    """The form of a model's images, other images fitted as in its training."""
    config = run_config(run)
    channels, size, _ = model.image_shape
    return Form(size, channels, config.data.fit if config else "crop")


def _images_of(
    setting: Setting, run: str, model: VAEGAN, against: str | None, split: str | None = None, limit: int | None = None
) -> Source:
    """The run's own images, or `against` in the form that the model takes. `split` goes before that of the setting."""
    if against is not None:
        return setting.images(against, form_of(run, model), split, limit)
    if run_config(run) is None:
        raise ConfigError(f"{run} does not know its images, being an exported model: give them with --reference")
    return run_source(
        Path(run), split=split or setting.split or "val", root=setting.root, limit=limit,
        on_bad_image=setting.on_bad_image,
    )  # fmt: skip


def _batches(setting: Setting, source: Source, labels: Tensor | None) -> Iterator[tuple]:
    """(first index, images, labels or None) of this process's batches."""
    for start in batch_starts(len(source), setting.batch_size, setting.shares.rank, setting.shares.processes):
        stop = min(start + setting.batch_size, len(source))
        images = source.batch(start, stop)
        yield start, images, None if labels is None else labels[source.places(start, stop)]


def _unverified(file: str) -> str:
    return f"{file}: unverified, since the file does not say how it was made"


def _both(real: dict[str, str], fake: dict[str, str]) -> dict[str, str]:
    """One protocol of both sides: what they share, and the images of each."""
    sides = {f"reference {k}": real.get(k, "unknown") for k in ("source", "images", "form", "n")}
    return sides | {k: v for k, v in fake.items() if k not in ("source", "label")}


def _few(*sides: FeatureStatistics) -> list[str]:
    warnings = {few_images_warning(side.n, len(side.mean)) for side in sides if side.n}
    return sorted(warning for warning in warnings if warning)
