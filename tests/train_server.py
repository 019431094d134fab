"""Starts scripts/train.py again and again without its imports: a process that forks a child for each run.

One request a line on standard input: {"start": [arguments], "output": file} answers {"pid": …}; {"wait": pid} answers
{"status": …}, the exit status or minus the signal.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "train.py"


def main() -> None:
    import torch

    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("train_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    import accelerate.tracking  # noqa: F401
    import torch._dynamo  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401

    import vaegan.training  # noqa: F401  what a run needs

    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            answer = {"pid": start(module, request["start"], request["output"])}
        else:
            answer = {"status": os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])}
        print(json.dumps(answer), flush=True)


def start(module, arguments: list[str], output: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["train.py", *arguments]
    status = 70
    try:
        module.cli.run(module.main)
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
