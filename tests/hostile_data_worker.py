"""Load sets, each in a process of its own, and tell how they were refused: PATH… as arguments, a JSON list printed."""

import json
import os
import resource
import sys
import time
import warnings

import torch

from vaegan.config import ConfigError, DataConfig
from vaegan.data import load_data


def attempt(path: str) -> dict:
    """What became of a set: the error or None, seconds, and MB by which memory rose."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    try:
        load_data(DataConfig(source=path, image_size=8, channels=3, val_fraction=0))
        error = None
    except ConfigError as refused:
        error = str(refused)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"error": error, "seconds": seconds, "megabytes": (after - before) / 1024}  # Linux counts in KiB


def apart(path: str) -> dict:
    """The same in a process that is forked off, so that one attempt's memory is not taken for another's."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with os.fdopen(sender, "w") as pipe:
                pipe.write(json.dumps(attempt(path)))
            status = 0
        finally:
            os._exit(status)
    os.close(sender)
    with os.fdopen(receiver) as pipe:
        answer = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return (
        json.loads(answer) if status == 0 and answer else {"error": f"crashed, {status}", "seconds": 0, "megabytes": 0}
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(json.dumps([apart(path) for path in sys.argv[1:]]))
