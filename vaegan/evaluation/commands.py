"""What `scripts/fid.py` does, command by command. Every process calls a command; the first one's results count."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from vaegan import cli
from vaegan.config import NAMED_SOURCES, Config, ConfigError
from vaegan.data.images import Form
from vaegan.evaluation import protocol, statistics_file
from vaegan.evaluation.distances import FeatureStatistics, few_images_warning, frechet_distance
from vaegan.evaluation.reconstruction import reconstruction_figures
from vaegan.evaluation.report import Result
from vaegan.evaluation.setting import Extras, Setting
from vaegan.evaluation.sources import ReconstructionSource, Source, run_source
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
    setting: Setting, runs: list[str], against: str | None, extras: Extras
) -> tuple[list[Result], dict[str, Tensor]]:
    """Figures of the prior samples of each model against its own data set, or against one; and some samples."""
    plans = {run: _plan(setting, run, against, extras.floor) for run in runs}  # all, before the first is measured
    results, shown = [], {}
    for run, (samples, real, other, notes) in plans.items():
        statistics, described = real if isinstance(real, tuple) else setting.measured(real, keep=True)
        protocol.require_alike(described, setting.extractor.protocol, against or run, "this command")
        floor = None if other is None else setting.measured(other, keep=True)[0]
        fake, drawn = setting.measured(samples, keep=False)
        if setting.shares.rank > 0:
            continue
        label = setting.extractor.label
        figures = setting.compared(statistics, fake, label)
        if floor is not None:
            figures["floor"] = frechet_distance(statistics, floor)
        figures |= extras.figures(statistics, fake, label)
        results.append(Result(run, figures, _both(described, drawn), [*notes, *_few(statistics, fake)]))
        shown[run] = samples.batch(0, min(GRID, setting.batch_size))
    return results, shown


def _plan(setting: Setting, run: str, against: str | None, floor: bool):
    """A model's samples, the images or statistics to compare them with, other images for the floor, and notes."""
    model = open_model(run, setting.device)
    samples = setting.samples(model)
    if is_statistics(against):
        statistics, described = statistics_file.load_statistics(Path(against))
        return samples, (statistics, described), None, [] if described else [_unverified(against)]
    real = _images_of(setting, run, model, against)
    if not floor or against not in (None, *NAMED_SOURCES):
        return samples, real, None, []
    try:
        split = "val" if setting.split == "train" else "train"
        return samples, real, _images_of(setting, run, model, against, split, setting.drawn), []
    except ConfigError as error:
        return samples, real, None, [f"no floor: {error}"]


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
        figures, notes = reconstruction_figures(model, _batches(setting, real), run_config(run), setting.shares)
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


def _batches(setting: Setting, source: Source) -> Iterator[tuple[int, Tensor]]:
    """(first index, images) of this process's batches."""
    for start in batch_starts(len(source), setting.batch_size, setting.shares.rank, setting.shares.processes):
        yield start, source.batch(start, min(start + setting.batch_size, len(source)))


def _unverified(file: str) -> str:
    return f"{file}: unverified, since the file does not say how it was made"


def _both(real: dict[str, str], fake: dict[str, str]) -> dict[str, str]:
    """One protocol of both sides: what they share, and the images of each."""
    sides = {f"reference {k}": real.get(k, "unknown") for k in ("source", "images", "form", "n")}
    return sides | {k: v for k, v in fake.items() if k not in ("source", "label")}


def _few(*sides: FeatureStatistics) -> list[str]:
    warnings = {few_images_warning(side.n, len(side.mean)) for side in sides if side.n}
    return sorted(warning for warning in warnings if warning)
