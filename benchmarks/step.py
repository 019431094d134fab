"""The training step: ours in its variants, pythae's trainer on its own networks, a hand-written loop on ours, the floor.

Each contestant is a process of its own, that waits while another one runs. `networks.py` holds pythae's networks as
our trainer takes them, `handwritten.py` the loop, `floor.py` the sum of the unavoidable operators.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from timing import Table, in_turn, rows

CONFIGS = Path(__file__).parents[1] / "configs"
BATCH = 64
VARIANTS = {
    "vaegan, float32 eager": ("--train.precision=fp32",),
    "vaegan, channels_last": ("--train.precision=fp32", "--train.channels_last=true"),
    "vaegan, bf16": ("--train.precision=bf16", "--train.channels_last=false"),
    "vaegan, compile": ("--train.precision=fp32", "--train.channels_last=false", "--train.compile=true"),
    "vaegan, all": ("--train.precision=bf16", "--train.channels_last=true", "--train.compile=true"),
    "vaegan, defaults": (),
}
PYTHAE, HAND, FLOOR = "pythae", "hand-written loop", "floor"
PYTHAE_TEXT = "The very same networks and terms; pythae's equilibrium is out of reach, so that all players always step."
HAND_TEXT = (
    "The loop has the same networks of plain torch layers, and the recipe's terms with learned similarity, every image "
    "being reconstructed, the adversary on prior samples."
)
# Every image reconstructed, by learned similarity too, and the adversary on prior samples, for the same work from all.
WHOLE = (
    f"--train.batch_size={BATCH}", "--objective.reconstruct_every=1", "--objective.feature_weight=1",
    "--objective.fakes=prior",
)  # fmt: skip
# Terms of pythae's VAEGAN: KL, learned similarity, cross entropies of real images and prior samples.
PYTHAE_TERMS = (
    "--objective.pixel_weight=0", "--objective.kl_weight=1",
    "--objective.adversarial_loss=nonsaturating", "--objective.adversarial_weight=1",
    "--objective.balance=false", "--objective.r1_weight=0", "--objective.r2_weight=0", "--objective.augment=[]",
    "--model.latent_dim=16", *WHOLE,
)  # fmt: skip
# By name: the recipe, what is changed in it, and the steps of one measurement, which takes some seconds.
CASES = {
    "pythae's MNIST networks": ("mnist", ("--data.image_size=28", "--model.network=mlp", *PYTHAE_TERMS), 2),
    "pythae's CIFAR-10 networks": ("cifar10", ("--data.horizontal_flip=false", *PYTHAE_TERMS), 1),
    "configs/mnist.yaml": ("mnist", WHOLE, 16),
    "configs/cifar10.yaml": ("cifar10", WHOLE, 8),
}


def tables(repeats: int, cases: Sequence[str] = tuple(CASES)) -> Iterator[Table]:
    """A table for each of CASES."""
    return (_table(case, repeats) for case in cases)


def _table(case: str, repeats: int) -> Table:
    reference = PYTHAE if case.startswith("pythae") else HAND
    workers = {name: Worker(case, name) for name in (reference, *VARIANTS, FLOOR)}
    try:
        figures = in_turn({name: worker.measure for name, worker in workers.items()}, repeats)
    finally:
        for worker in workers.values():
            worker.close()
    reached = {
        name: statistics.median(floor / ours for floor, ours in zip(figures[FLOOR], figures[name]))
        for name in figures
        if name != FLOOR
    }
    notes = {name: f"{times:.2f} times the floor's time" for name, times in reached.items()}
    notes[FLOOR] = "the convolutions and products of our step, each alone in its fastest layout and precision"
    text = f"Batches of {BATCH}. {PYTHAE_TEXT if reference == PYTHAE else HAND_TEXT}"
    return Table(f"Training step, {case}", rows(figures, "images/s", reference, notes), reference, text)


class Worker:
    """A contestant in a process of its own, which runs when it is asked to."""

    def __init__(self, case: str, name: str):
        command = [sys.executable, __file__, "--case", case, "--contestant", name]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._name = name

    def measure(self) -> float:
        """Images/s of the next steps."""
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("images/s "):
                return float(line.split()[1])
        raise SystemExit(f"{self._name} failed")

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


# ---------------------------------------------------------------------- in the contestant's process


def contestant(case: str, name: str) -> Callable[[], float]:
    """A function that runs some steps and gives images/s."""
    large, steps = case.startswith("pythae"), CASES[case][2]
    import networks

    if name == PYTHAE:
        return _speed(networks.pythae_epoch(case, steps, BATCH), steps)
    if name == HAND:
        import handwritten

        config = _config(case, ())
        return _speed(handwritten.loop(config, networks.random_images(config).pixels, steps), steps)
    if name == FLOOR:
        import floor

        calls = floor.recorded(trainer_steps(case, VARIANTS["vaegan, defaults"], 4), 4)
        return lambda: BATCH / floor.seconds(calls, repeats=1 if large else 5)
    return _speed(trainer_steps(case, VARIANTS[name], steps), steps)


def trainer_steps(case: str, variant: tuple[str, ...], steps: int) -> Callable[[], None]:
    """A function that takes so many steps of our trainer, and reads the figures at their end."""
    import networks  # imports take a second, and the parent needs none of them

    from vaegan.model import build_model
    from vaegan.training import Trainer, process

    config = _config(case, variant)
    model = discriminator = None
    if case.startswith("pythae"):
        model, discriminator = networks.as_ours(case, build_model(config))
    trainer = Trainer(config, process.start(config), networks.random_images(config), None, model, discriminator)
    batches = trainer.batches()

    def run() -> None:
        terms = {}
        for _ in range(steps):
            terms = trainer.train_step(next(batches))
        assert all(value.isfinite().all() for value in terms.values())

    return run


def _config(case: str, variant: tuple[str, ...]):
    from vaegan.cli import parse_config

    base, changes, _ = CASES[case]
    # Longer than any benchmark: the steps of a run are drawn as they are asked for.
    return parse_config([*changes, *variant, "--train.device=cpu", "--train.steps=1000000"], CONFIGS / f"{base}.yaml")


def _speed(run: Callable[[], None], steps: int) -> Callable[[], float]:
    def measure() -> float:
        start = time.perf_counter()
        run()
        return steps * BATCH / (time.perf_counter() - start)

    return measure


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--contestant", required=True)
    options = parser.parse_args()
    measure = contestant(options.case, options.contestant)
    for _ in sys.stdin:
        print("images/s", measure(), flush=True)


if __name__ == "__main__":
    main()
