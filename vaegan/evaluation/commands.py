"""What `scripts/fid.py` does, command by command. Every process calls a command; the first one's results count."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from vaegan import cli
from vaegan.config import NAMED_SOURCES, Config, ConfigError
from vaegan.data.images import Form
from vaegan.evaluation import evaluate, protocol, statistics_file
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

    sides = [opened(real), opened(fake)]  # both, before the first is measured
    sides = [side if isinstance(side, tuple) else setting.measured(side, keep=True) for side in sides]
    if setting.shares.rank > 0:
        return []
    (a, protocol_a), (b, protocol_b) = sides
    protocol.require_alike(protocol_a, protocol_b, real, fake)
    label = protocol_b.get("label") or protocol_a.get("label") or "FD[unverified]"
    figures = _compared(setting, a, b, label) | extras.figures(a, b, label)
    unverified = [_unverified(name) for name, of in ((real, protocol_a), (fake, protocol_b)) if not of]
    return [Result(fake, figures, _both(protocol_a, protocol_b), [*unverified, *_few(a, b)])]


def gen(
    setting: Setting, runs: list[str], against: str | None, extras: Extras
) -> tuple[list[Result], dict[str, Tensor]]:
    """Figures of the prior samples of each model against its own data set, or against one; and some samples."""
    models = {run: open_model(run, setting.device) for run in runs}
    results, shown = [], {}
    for run, model in models.items():
        real, floor = _reference(setting, run, model, against, extras.floor)
        fake, drawn = setting.measured(setting.samples(model), keep=False)
        if setting.shares.rank > 0:
            continue
        statistics, described = real
        protocol.require_alike(described, setting.extractor.protocol, against or run, "this command")
        figures = _compared(setting, statistics, fake, setting.extractor.label)
        if floor is not None:
            figures["floor"] = frechet_distance(statistics, floor)
        figures |= extras.figures(statistics, fake, setting.extractor.label)
        notes = [*([] if described else [_unverified(against)]), *_few(statistics, fake)]
        results.append(Result(run, figures, _both(described, drawn), notes))
        shown[run] = setting.samples(model).batch(0, min(GRID, setting.batch_size))
    return results, shown


def recon(setting: Setting, runs: list[str], against: str | None) -> tuple[list[Result], dict[str, Tensor]]:
    """Figures of each model's reconstructions of its validation images, or of a set's; and some pairs."""
    models = {run: open_model(run, setting.device) for run in runs}
    for run, model in models.items():
        if model.encoder is None:
            raise ConfigError(f"{run} has no encoder, having been trained as a GAN: measure its samples (fid.py gen)")
    results, shown = [], {}
    for run, model in models.items():
        real = _images_of(setting, run, model, against, limit=setting.num_samples)
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
    return cli.config_from_dict(cli.load_yaml(file, "RUN")) if file.is_file() else None


def form_of(run: str, model: VAEGAN) -> Form:
    """The form of a model's images, other images fitted as in its training."""
    config = run_config(run)
    channels, size, _ = model.image_shape
    return Form(size, channels, config.data.fit if config else "crop")


def _reference(setting: Setting, run: str, model: VAEGAN, against: str | None, floor: bool):
    """Statistics and protocol of the real images, and statistics of as many others as there will be samples, if any."""
    if is_statistics(against):
        return statistics_file.load_statistics(Path(against)), None
    statistics = setting.measured(_images_of(setting, run, model, against), keep=True)
    if not floor or against not in (None, *NAMED_SOURCES):
        return statistics, None
    other = _images_of(setting, run, model, against, "val" if setting.split == "train" else "train", setting.drawn)
    return statistics, setting.measured(other, keep=True)[0]


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


def _compared(setting: Setting, real: FeatureStatistics, fake: FeatureStatistics, label: str) -> dict[str, float]:
    inception = fake.features is not None and setting.extractor.name == "inception"
    return evaluate.compare(real, fake, label, setting.extractor.classifier if inception else None)


def _unverified(file: str) -> str:
    return f"{file}: unverified, since the file does not say how it was made"


def _both(real: dict[str, str], fake: dict[str, str]) -> dict[str, str]:
    """One protocol of both sides: what they share, and the images of each."""
    sides = {f"reference {k}": real.get(k, "unknown") for k in ("source", "images", "form", "n")}
    return sides | {k: v for k, v in fake.items() if k not in ("source", "label")}


def _few(*sides: FeatureStatistics) -> list[str]:
    warnings = {few_images_warning(side.n, len(side.mean)) for side in sides if side.n}
    return sorted(warning for warning in warnings if warning)
