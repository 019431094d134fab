"""Peak memory of processes.

What `getrusage` tells of a process may be its parent's: on Linux the peak survives `exec`. The kernel's own count of a
process's address space does not.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_INTERVAL = 0.02  # seconds between two looks at a process that runs


def peak() -> float:
    """Peak resident size of this process so far, in MiB."""
    own = _high_water("self")
    unit = 1 if sys.platform == "darwin" else 1024
    return own or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def peak_of(command: list[str]) -> float:
    """Run a command; its peak resident size, without its children's, in MiB. Needs Linux."""
    found = 0.0
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        while process.poll() is None:
            found = max(found, _high_water(str(process.pid)))
            time.sleep(_INTERVAL)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{output.read().decode()[-2000:]}")
    return found


def _high_water(pid: str) -> float:
    """VmHWM in MiB; 0 where there is none, as of a process that has just ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0.0)
