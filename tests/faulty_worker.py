"""Run by torchrun from test_faults_ranks.py: one of two processes goes wrong."""

import json
import math
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from conftest import FULL_OBJECTIVE

from vaegan.config import Config, DataConfig, ModelConfig, TrainConfig
from vaegan.data import load_data
from vaegan.training import NonFiniteLoss, Trainer, process, ranks


def main(folder: Path, images: str) -> None:
    torch.set_num_threads(1)
    accelerator, found = Accelerator(cpu=True), {}
    config = Config(
        name="faulty", runs_dir=str(folder), objective=FULL_OBJECTIVE,
        data=DataConfig(source=images, image_size=8),
        # With statistics of its own share on each process, which may differ: the next forward takes the first one's.
        model=ModelConfig(latent_dim=4, width=4, discriminator_width=4, norm="batch"),
        train=TrainConfig(steps=20, batch_size=16, compare_every=3),
    )  # fmt: skip
    trainer = Trainer(config, accelerator, *load_data(config.data))
    step = trainer.train_step

    def drifting(micro_batches):
        terms = step(micro_batches)
        if trainer.step == 4 and accelerator.process_index == 1:
            weight = trainer.plain_model.encoder.blocks[0][0].weight.data.view(-1)
            weight[7] = torch.nextafter(weight[7], torch.tensor(math.inf))
        return terms

    trainer.train_step = drifting
    try:
        trainer.fit(folder / "diverged")
    except ranks.RanksDiverged as error:
        found["diverged"] = str(error)

    trainer = Trainer(config, accelerator, *load_data(config.data))
    try:
        for micro_batches in trainer.batches():
            if trainer.step == 2 and accelerator.process_index == 1:
                micro_batches[0][3] = math.nan
            trainer.train_step(micro_batches)
    except NonFiniteLoss as error:
        found |= {"nan": str(error), "step": trainer.step}
    (folder / f"{accelerator.process_index}.json").write_text(json.dumps(found))
    process.leave(accelerator)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
