"""Statistics on disk: a round trip, other tools' files, and every way in which a file can be of no use."""

import json

import numpy as np
import pytest
import torch

from vaegan.config import ConfigError
from vaegan.evaluation import statistics_file
from vaegan.evaluation.distances import statistics_of
from vaegan.evaluation.protocol import require_alike
from vaegan.evaluation.statistics_file import load_statistics, save_statistics

PROTOCOL = {"extractor": "inception", "weights": "6" * 64, "resizer": "tf1", "dtype": "float32", "images": "abc"}


@pytest.fixture
def statistics():
    return statistics_of(torch.randn(20, 6, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_round_trip(statistics, tmp_path, suffix):
    file = tmp_path / "new" / f"stats{suffix}"
    save_statistics(file, statistics, PROTOCOL)
    loaded, protocol = load_statistics(file)
    assert protocol == PROTOCOL | {"n": "20"} and loaded.n == 20
    assert torch.equal(loaded.mean, statistics.mean) and torch.equal(loaded.covariance, statistics.covariance)
    assert (loaded.features is None) == (suffix == ".npz")  # the other tools' format has no place for them
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_npz_is_read_by_the_names_that_other_tools_use(statistics, tmp_path):
    save_statistics(tmp_path / "s.npz", statistics, PROTOCOL)
    with np.load(tmp_path / "s.npz", allow_pickle=False) as file:
        assert file["mu"].shape == (6,) and file["sigma"].dtype == np.float64
        np.testing.assert_array_equal(file["sigma"], statistics.covariance.numpy())


def test_bare_npz_has_no_protocol(statistics, tmp_path):
    np.savez(tmp_path / "bare.npz", mu=statistics.mean.numpy(), sigma=statistics.covariance.numpy().astype(np.float32))
    loaded, protocol = load_statistics(tmp_path / "bare.npz")
    assert protocol == {} and loaded.n == 0 and loaded.covariance.dtype == torch.float64


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated(statistics, tmp_path, suffix, keep):
    file = tmp_path / f"stats{suffix}"
    save_statistics(file, statistics, PROTOCOL)
    data = file.read_bytes()
    file.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(ConfigError, match=f"stats{suffix} does not hold statistics"):
        load_statistics(file)


def test_files_of_no_use(tmp_path):
    with pytest.raises(ConfigError, match="missing.npz does not hold statistics"):
        load_statistics(tmp_path / "missing.npz")
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    with pytest.raises(ConfigError, match="no .*mu"):
        load_statistics(tmp_path / "other.npz")
    np.savez(tmp_path / "odd.npz", mu=np.zeros(3), sigma=np.zeros((4, 4)))
    with pytest.raises(ConfigError, match=r"shapes \(3,\) and \(4, 4\)"):
        load_statistics(tmp_path / "odd.npz")
    np.savez(tmp_path / "nan.npz", mu=np.full(2, np.nan), sigma=np.eye(2))
    with pytest.raises(ConfigError, match="not finite"):
        load_statistics(tmp_path / "nan.npz")
    np.savez(tmp_path / "pickled.npz", mu=np.array([{}], dtype=object), sigma=np.eye(1))
    with pytest.raises(ConfigError, match="does not hold statistics"):
        load_statistics(tmp_path / "pickled.npz")


def test_writing_fails_without_a_trace(statistics, tmp_path, monkeypatch):
    file = tmp_path / "stats.safetensors"
    save_statistics(file, statistics, PROTOCOL)
    before = file.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(statistics_file, "save", full)
    with pytest.raises(ConfigError, match="stats.safetensors cannot be written .No space left"):
        save_statistics(file, statistics, PROTOCOL)
    assert file.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ConfigError, match="must end in .safetensors or .npz"):
        save_statistics(tmp_path / "stats.pkl", statistics, PROTOCOL)


def test_cache_key_is_the_whole_protocol(tmp_path):
    key = PROTOCOL | {"extractor": "my/module:function"}
    names = {statistics_file.cached(tmp_path, key | {field: "other"}).name for field in key}
    names.add(statistics_file.cached(tmp_path, key).name)
    assert len(names) == len(key) + 1 and all("/" not in name and ":" not in name for name in names)
    assert statistics_file.cached(tmp_path, dict(reversed(key.items()))).name in names


def test_unlike_protocols_are_refused_by_field():
    require_alike(PROTOCOL, PROTOCOL | {"images": "other", "n": "5"}, "a", "b")
    require_alike({}, PROTOCOL, "bare", "b")
    for field, value in {"extractor": "dinov2", "weights": "7" * 64, "resizer": "clean", "dtype": "bfloat16"}.items():
        with pytest.raises(ConfigError, match=f"{field} is .* in a and .* in b") as error:
            require_alike(PROTOCOL, PROTOCOL | {field: value}, "a", "b")
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="extractor .* resizer "):
        require_alike(PROTOCOL, PROTOCOL | {"extractor": "x", "resizer": "clean"}, "a", "b")


def test_metadata_is_readable_without_the_tensors(statistics, tmp_path):
    save_statistics(tmp_path / "s.safetensors", statistics, PROTOCOL)
    header = (tmp_path / "s.safetensors").read_bytes()
    length = int.from_bytes(header[:8], "little")
    assert json.loads(json.loads(header[8 : 8 + length])["__metadata__"]["protocol"])["n"] == "20"
