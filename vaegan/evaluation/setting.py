"""What the commands of `scripts/fid.py` share: extractor, processes, images, and figures that are made when asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from vaegan.config import ConfigError, DataConfig
from vaegan.data.images import Form
from vaegan.evaluation import evaluate
from vaegan.evaluation.distances import FeatureStatistics
from vaegan.evaluation.features import Extractor
from vaegan.evaluation.sample_metrics import frechet_infinity, frechet_interval
from vaegan.evaluation.shares import Shares
from vaegan.evaluation.sources import ModelSource, Source, open_source
from vaegan.model import VAEGAN, Sampler
from vaegan.sampling import batch_starts


@dataclass(frozen=True)
class Setting:
    """What the commands share: the extractor, the processes, and which images."""

    load: Callable[[], Extractor]
    """Loads the extractor when it is first needed, which two statistics files do not."""
    shares: Shares
    device: torch.device
    num_samples: int | None = None
    """Images drawn of a model (default 10 000), and at most so many taken of a set, but for the reference of samples,
    which is whole."""
    batch_size: int = 64
    seed: int = 0
    split: str | None = None
    """`train` or `val` of a named set or a run; None for `val`."""
    root: str | None = None
    """Where named sets lie; None for the usual place, or where a run found them."""
    form: Form | None = None
    """Fit images into this form before anything else; None takes the model's form beside a model, else native sizes."""
    on_bad_image: str = "error"
    cache: Path | None = None

    @cached_property
    def extractor(self) -> Extractor:
        return self.load()

    def compared(
        self, real: FeatureStatistics, fake: FeatureStatistics, label: str, *, classify: bool = True
    ) -> dict[str, float]:
        """Every figure of two sets; the Inception Score only where Inception is at hand anyway."""
        classifier = self.extractor.classifier if classify and self.extractor.name == "inception" else None
        device = self.device if self.device.type == "cuda" else "cpu"
        return evaluate.compare(real, fake, label, classifier, device=device)

    @property
    def drawn(self) -> int:
        return self.num_samples or 10_000

    def images(
        self, source: str, form: Form | None = None, split: str | None = None, limit: int | None = None
    ) -> Source:
        """A set by name or path; `split` goes before that of the setting."""
        return open_source(
            source, split=split or self.split, root=self.root or DataConfig.root, form=self.form or form,
            limit=limit, on_bad_image=self.on_bad_image,
        )  # fmt: skip

    def measured(self, source: Source, *, keep: bool) -> tuple[FeatureStatistics, dict[str, str]]:
        """Statistics and protocol of a source; with `keep` those of images are looked for in the cache, and left there."""
        keep = keep and not isinstance(source, ModelSource)
        batches = batch_starts(len(source), self.batch_size, self.shares.rank, self.shares.processes)
        total = sum(min(self.batch_size, len(source) - start) for start in batches)
        with tqdm(
            total=total, unit=" images", desc=source.name, disable=None if self.shares.rank == 0 else True
        ) as bar:
            return evaluate.reference(
                source, self.extractor, self.shares, cache=self.cache if keep else None, batch_size=self.batch_size,
                progress=bar.update,
            )  # fmt: skip

    def samples(self, model: VAEGAN, labels: Tensor | None = None, sampler: Sampler | None = None) -> ModelSource:
        """Of a conditional model with the `labels`, or else each class with the same chance. No sampler: of the prior."""
        return ModelSource(model, self.drawn, self.seed, self.batch_size, sampler, labels)


@dataclass(frozen=True)
class Extras:
    """Figures that take a while, and are made when asked for."""

    floor: bool = True
    """Beside samples, the distance between two sets of real images."""
    infinity: bool = False
    bootstrap: int = 0
    per_class: bool = False
    """Of conditional models, the distance of each class too."""

    def figures(self, real: FeatureStatistics, fake: FeatureStatistics, label: str) -> dict[str, float]:
        """FID∞ and the ends of a 95 % bootstrap interval; ConfigError if the fake features are not at hand."""
        if not (self.infinity or self.bootstrap):
            return {}
        if fake.features is None or len(fake.features) != fake.n:
            raise ConfigError(
                "--infinity and --bootstrap need every feature of the second side: give images or a model (at most "
                f"{evaluate.KEPT}), not a statistics file"
            )
        figures = {}
        if self.infinity:
            figures[f"{label}∞"] = frechet_infinity(real, fake.features)
        if self.bootstrap:
            low, high = frechet_interval(real, fake.features, resamples=self.bootstrap)
            figures |= {f"{label} 2.5 %": low, f"{label} 97.5 %": high}
        return figures
