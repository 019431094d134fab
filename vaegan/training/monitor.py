"""The figure that chooses the best checkpoint and stops a run early."""

from vaegan.config import Config, ConfigError
from vaegan.evaluation.reconstruction import is_better, validation_metrics
from vaegan.training.measure import distance_metrics


class Monitor:
    """Follows one figure through a run."""

    def __init__(self, config: Config, has_validation: bool):
        """Raises ConfigError if the run is to stop early by a figure that it does not measure."""
        measured = distance_metrics(config)
        known = [*measured, *(validation_metrics(config) if has_validation else [])]
        named = config.train.monitor
        loss = "val/bits_per_dim" if config.model.variational else "val/psnr"
        self.name = named if named != "auto" else measured[0] if measured else loss
        self.patience = config.train.patience
        self.best: dict | None = None  # {"step", "value"}
        self.failures = 0  # measurements since the best one
        if self.patience > 0 and self.name not in known:
            choice = f"choose {', '.join(known)}" if known else "there are no such figures; set train.patience to 0"
            raise ConfigError(f"train.monitor {named} is not measured in this run ({choice})")

    @property
    def exhausted(self) -> bool:
        """Whether the figure has failed to improve for as long as the run may wait."""
        return 0 < self.patience <= self.failures

    def judge(self, step: int, figures: dict[str, float]) -> bool:
        """Take note of the figures of a step; whether they are the best so far."""
        if self.name not in figures:
            return False
        value = figures[self.name]
        better = self.best is None or is_better(self.name, value, self.best["value"])
        if better:
            self.best = {"step": step, "value": value}
        self.failures = 0 if better else self.failures + 1
        return better
