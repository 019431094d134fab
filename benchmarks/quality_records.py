"""What one run of the quality benchmark is, and the record that it leaves. Nothing here imports torch."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from vaegan.config import ConfigError

MINUTES = {("mnist", "cpu"): 5.0, ("cifar10", "cpu"): 20.0, ("cifar10", "gpu"): 9.0}  # of training
SCORING = ("samples", "extractor")  # of a setting: what can be changed without training again

KINDS = {"contestant": str, "seed": int, "setting": dict, "trained": dict, "figures": dict, "protocol": dict,
         "notes": list, "recipe": dict, "machine": dict}  # of a record's fields  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One contestant, one seed: what its process is told."""

    contestant: str
    seed: int
    data: str
    minutes: float
    results: str
    work: str
    budget: str = "cpu"
    samples: int = 5000
    extractor: str = "efficientnet-lite0"
    threads: int = 0
    root: str = "~/.cache/vaegan"
    images: tuple[str, ...] = ()
    """Folders or archives of training and validation images in the place of the named set's."""

    @property
    def folder(self) -> Path:
        """Of the records and tables with this data and budget."""
        return Path(self.results).expanduser() / f"{self.data}-{self.budget}-{self.minutes:g}min"

    @property
    def record(self) -> Path:
        return self.folder / f"{self.contestant}-{self.seed}.json"

    @property
    def by_sampler(self) -> Path:
        return self.folder / f"{self.contestant}-{self.seed}-samplers.json"

    def picture(self, kind: str) -> Path:
        """`samples` or `reconstructions`, in WebP: of photographs it takes a sixth of PNG's bytes."""
        return self.folder / f"{self.contestant}-{self.seed}-{kind}.webp"

    @property
    def weights(self) -> Path:
        folder = Path(self.work).expanduser() / self.folder.name
        return folder / f"{self.contestant}-{self.seed}.safetensors"

    @property
    def setting(self) -> dict:
        """What all records of a table share."""
        images = [Path(part).name for part in self.images] or [f"{self.data} {split}" for split in ("train", "val")]
        return {
            "data": self.data, "images": images, "budget": self.budget, "minutes": self.minutes,
            "samples": self.samples, "extractor": self.extractor,
        }  # fmt: skip

    def of_seed(self, contestant: str, seed: int) -> "Job":
        return replace(self, contestant=contestant, seed=seed)

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def loads(text: str) -> "Job":
        values = json.loads(text)
        return Job(**values | {"images": tuple(values["images"])})


def flags(setting: dict) -> list[str]:
    """Those that ask for a setting, without places on this machine."""
    given = [f"--data {setting['data']}"]
    given += [f"--budget {setting['budget']}"] if setting["budget"] != Job.budget else []
    minutes = MINUTES[setting["data"], setting["budget"]]
    given += [f"--minutes {setting['minutes']:g}"] if setting["minutes"] != minutes else []
    given += [f"--{name} {setting[name]}" for name in SCORING if setting[name] != getattr(Job, name)]
    named = [f"{setting['data']} {split}" for split in ("train", "val")]
    return given + ([f"--images {' '.join(setting['images'])}"] if setting["images"] != named else [])


def digest(recipe: dict) -> str:
    """SHA-256 of a recipe: of everything that decides what a contestant is."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def state_of(job: Job, recipe: dict) -> str:
    """`missing`, `finished`, or a line that says in what the record's contestant or measurement is another one."""
    if not job.record.is_file():
        return "missing"
    record = read(job.record)
    if changes := differences(record["recipe"], recipe):
        return f"{job.record} was made by another recipe ({'; '.join(changes)})"
    if changes := differences(record["setting"], job.setting):
        return f"{job.record} was measured otherwise ({'; '.join(changes)})"
    return "finished"


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """A phrase for each field in which two nested dicts differ, at most four."""
    found = []
    for name in sorted(old | new):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{name}.")
        elif a != b:
            found.append(f"{prefix}{name} {_shown(a)}, now {_shown(b)}")
    return found[:4]


def read(file: Path) -> dict:
    """A record; ConfigError if it is none."""
    record = read_json(file)
    if any(not isinstance(record.get(name), kind) for name, kind in KINDS.items()):
        raise ConfigError(f"{file} is no record of this benchmark: remove it")
    return record


def read_json(file: Path) -> dict:
    """Plain values of a file; empty if it cannot be read."""
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def write(file: Path, data: bytes) -> None:
    """A file that appears whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_bytes(data)
    os.replace(partial, file)


def write_json(file: Path, values: object) -> None:
    write(file, (json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _shown(value: object) -> str:
    return "none" if value is None else str(value)[:60]
