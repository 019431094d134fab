"""One contestant and seed in a process of its own: trained up to its time, scored, recorded, for `quality.py`."""

import math
import subprocess
import sys
import time
from pathlib import Path

import quality_records as records
from contestants import Contestant, named, open_ours, recipe_of, train_ours
from quality_records import Job

from vaegan import cli
from vaegan.config import ConfigError


def perform(job: Job) -> None:
    """Train, unless weights of this very training are kept; score; write pictures and record."""
    from vaegan.training import process

    process.end_with_parent()
    process.use_cpu(job.threads)
    contestant = named(job.contestant)
    recipe = recipe_of(contestant, job)
    model, trained = _trained(contestant, job, recipe)
    scoring = time.perf_counter()
    found = (
        {"figures": {}, "protocol": {}, "notes": [trained["diverged"]]}
        if model is None
        else _scored(contestant, job, model)
    )
    asked = [*records.flags(job.setting), f"--contestants {job.contestant}", f"--seeds {job.seed}"]
    command = " ".join(["python benchmarks/quality.py", *asked])
    record = {
        "contestant": job.contestant, "seed": job.seed, "setting": job.setting, "trained": trained, **found,
        "seconds of scoring": round(time.perf_counter() - scoring), "recipe": recipe,
        "recipe hash": records.digest(recipe), "command": command, "commit": _commit(),
        "machine": _machine(),
    }  # fmt: skip
    records.write_json(job.record, record)


def kept(contestant: Contestant, job: Job, recipe: dict):
    """The model whose weights a training by this very recipe left, and what was done; None if there are none."""
    from safetensors.torch import load_file

    beside = records.read_json(job.weights.with_suffix(".json"))
    made = _made(job, recipe)
    if not job.weights.is_file() or {name: beside.get(name) for name in made} != made:
        return None
    model = _open(contestant, job)
    model.load_state_dict(load_file(job.weights))
    return model, beside["trained"]


def _made(job: Job, recipe: dict) -> dict:
    """What weights depend on."""
    return {"recipe": recipe, "setting": {k: v for k, v in job.setting.items() if k not in records.SCORING}}


def _trained(contestant: Contestant, job: Job, recipe: dict):
    """The model, None if its training diverged; and what was done."""
    from safetensors.torch import save

    if found := kept(contestant, job, recipe):
        return found
    try:
        model, trained = _train(contestant, job, 60 * job.minutes)
    except ArithmeticError as error:  # a loss that is NaN or infinite: ours is a FloatingPointError
        return None, {"diverged": f"diverged: {str(error).split(';')[0]}"}
    trained["latents"] = model.latent_dim
    records.write(job.weights, save({name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}))
    records.write_json(job.weights.with_suffix(".json"), _made(job, recipe) | {"trained": trained})
    return model, trained


def _train(contestant: Contestant, job: Job, seconds: float):
    if not contestant.rival:
        return train_ours(contestant, job, seconds)
    import quality_pythae

    return quality_pythae.train(contestant, job, seconds)


def _open(contestant: Contestant, job: Job):
    if not contestant.rival:
        return open_ours(contestant, job)
    import quality_pythae

    return quality_pythae.open_model(contestant, job)


def _scored(contestant: Contestant, job: Job, model) -> dict:
    """Figures, protocol and notes of a model, whose pictures are written."""
    import quality_score

    sampler = None
    if contestant.rival:
        import quality_pythae

        sampler = quality_pythae.sampler(contestant, job, model)
    found = quality_score.score(model, job, sampler)
    for kind, images in found.grids.items():
        records.write(job.picture(kind), quality_score.picture(images))
    figures = {name: value if math.isfinite(value) else None for name, value in found.figures.items()}
    notes = [note.replace(str(Path.home()), "~") for note in found.notes]
    return {"figures": figures, "protocol": found.protocol, "notes": notes}


def _commit() -> str:
    """The commit of this repository, with a plus where files differ from it; empty without git."""
    folder = Path(__file__).parents[1]
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], cwd=folder,
                                 capture_output=True, text=True, check=True)  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _machine() -> dict:
    import timing

    return {name: value for name, value in timing.machine().items() if name != "command"}


def main() -> None:
    if len(sys.argv) != 2:
        raise ConfigError("quality_worker.py is called by quality.py")
    perform(Job.loads(sys.argv[1]))


if __name__ == "__main__":
    cli.run(main)
