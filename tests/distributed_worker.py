"""Run by torchrun from test_distributed.py: trains each variant and saves every rank's weights and terms."""

import json
import logging
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from vaegan.cli import config_from_dict
from vaegan.data import load_data
from vaegan.evaluation.reconstruction import validate
from vaegan.training import Trainer, process


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    rank, world = accelerator.process_index, accelerator.num_processes
    for file in sorted(folder.glob("*.json")):
        config = config_from_dict(json.loads(file.read_text()))
        trainer = Trainer(config, accelerator, *load_data(config.data))
        wrapped = [type(m).__name__ for m in (trainer.model, trainer.discriminator)]
        for micro_batches in trainer.batches():
            terms = trainer.train_step(micro_batches)
        figures = validate(trainer.sampling_model, trainer.validation, config, trainer.shares)
        tensors = {
            **{f"model.{k}": v for k, v in trainer.plain_model.state_dict().items()},
            **{f"discriminator.{k}": v for k, v in trainer.plain_discriminator.state_dict().items()},
            **{f"ema.{k}": v for k, v in trainer.ema.module.state_dict().items()},
            **{f"term.{k}": v for k, v in terms.items()},
            **{f"figure.{k}": torch.tensor(v) for k, v in figures.items()},
        }
        torch.save({"world": world, "wrapped": wrapped, "tensors": tensors}, folder / f"{file.stem}.{world}.{rank}.pt")
    if world > 1:
        # A whole run: logs and checkpoints by the first rank, ended as the script ends it.
        trainer = Trainer(config, accelerator, *load_data(config.data))
        run_dir, resume = process.choose_run_dir(config, accelerator)
        assert not resume
        trainer.fit(run_dir)
        again, resume = process.choose_run_dir(config, accelerator)
        logging.getLogger("vaegan").info("%s then %s", run_dir, again)
        assert again != run_dir and trainer.step == config.train.steps
        process.leave(accelerator)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
