"""The benchmarks run; what they measure is not tested."""

import subprocess
import sys

from conftest import REPOSITORY


def test_evaluation_benchmark():
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "evaluation.py"), "--images", "2", "--repeats", "0"]
    done = subprocess.run([*command, "--only", "vaegan, tf1"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    row = done.stdout.splitlines()[-1]
    assert row.startswith("| vaegan, tf1 | ") and row.count("|") == 8
