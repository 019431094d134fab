#!/usr/bin/env python3
"""Train a VAE-GAN: `accelerate launch scripts/train.py [--config configs/NAME.yaml] [--section.field value …]`."""

import logging
import sys
from pathlib import Path

from vaegan import cli

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def main() -> None:
    config = cli.parse_config(sys.argv[1:], CONFIGS / "mnist.yaml")
    from vaegan.data import load_data
    from vaegan.training import Trainer, process, run_state

    accelerator = process.start(config)
    with accelerator.main_process_first():  # the first one downloads
        images, validation = load_data(config.data)
    trainer = Trainer(config, accelerator, images, validation)
    run_dir, resume = process.choose_run_dir(config, accelerator)
    resumed = resume and run_state.restore(trainer, run_dir)
    log = logging.getLogger("vaegan")
    log.info("%s %s at step %d of %d", "resuming" if resumed else "training", run_dir, trainer.step, trainer.total_steps)
    if trainer.finished and not trainer.look_due:
        log.info("this run is complete: raise train.steps or train.epochs to go on")
    trainer.fit(run_dir)
    log.info("done: pictures, figures and the model are in %s", run_dir)
    process.leave(accelerator)


if __name__ == "__main__":
    cli.run(main)
