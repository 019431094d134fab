"""Run by torchrun from test_evaluation_processes.py: every kind of source, measured by so many processes."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from vaegan.cli import config_from_dict
from vaegan.data import load_data
from vaegan.evaluation import evaluate
from vaegan.evaluation.commands import calc, gen, recon
from vaegan.evaluation.features import load_extractor
from vaegan.evaluation.setting import Extras, Setting
from vaegan.evaluation.shares import Shares
from vaegan.evaluation.sources import open_source
from vaegan.model import VAEGAN
from vaegan.training import process
from vaegan.training.measure import Measurement


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    shares = Shares.of(accelerator)
    assert (shares.rank, shares.processes) == (accelerator.process_index, accelerator.num_processes)
    extractor = load_extractor("tiny_extractor:build")
    cache = folder / f"cache{shares.processes}"
    figures: dict = {"processes": shares.processes}
    for n in (2, 47, 96):  # fewer than processes times batches, and numbers that do not divide
        source = open_source(str(folder / "images"), limit=n)
        statistics = evaluate.extract(source, extractor, shares, batch_size=16)
        figures[f"statistics {n}"] = [statistics.n, statistics.mean.tolist(), statistics.covariance.tolist()]
        figures[f"features {n}"] = statistics.features.tolist()
        thinned = evaluate.extract(source, extractor, shares, batch_size=16, kept=10)
        figures[f"thinned {n}"] = thinned.features.tolist()
        assert torch.equal(thinned.covariance, statistics.covariance)
    damaged = open_source(str(folder / "damaged"), on_bad_image="skip")
    statistics = evaluate.extract(damaged, extractor, shares, batch_size=8)
    figures["skipped"] = [statistics.n, statistics.features.tolist()]

    setting = Setting(lambda: extractor, shares, accelerator.device, num_samples=37, batch_size=10, cache=cache)
    for attempt in ("computed", "cached"):
        results, _ = gen(setting, [str(folder / "model")], str(folder / "images"), Extras(infinity=True, bootstrap=5))
        results += recon(setting, [str(folder / "model")], str(folder / "images"))[0]
        results += calc(setting, str(folder / "images"), str(folder / "model"), Extras())
        figures[attempt] = [result.figures for result in results]
    assert len(list(cache.iterdir())) == 2  # the whole set for `gen`, and 37 images of it
    config = config_from_dict(json.loads((folder / "config.json").read_text()))
    _, validation = load_data(config.data)
    measure = Measurement(config, validation, shares, accelerator.device)
    every_rank = measure(VAEGAN.from_pretrained(folder / "model"))
    figures["in training"] = every_rank
    (folder / f"in_training{shares.processes}.{shares.rank}").write_text(json.dumps(every_rank))
    if shares.rank == 0:
        (folder / f"{shares.processes}.json").write_text(json.dumps(figures))
    process.leave(accelerator)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
