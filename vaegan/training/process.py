"""Starting and leaving a process of a run: devices, threads, launchers, run folders."""

import ctypes
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from vaegan.config import Config, ConfigError
from vaegan.training import checkpoint

LAUNCH_FILE = ".launch"  # in a run's folder: the launch that has written there last
log = logging.getLogger("vaegan")


def start(config: Config) -> Accelerator:
    """The Accelerator of a run. ConfigError if the launcher asks for fp16."""
    end_with_parent()
    _leave_stale_store()
    use_cpu(config.train.threads)
    cpu = config.train.device == "cpu" or not torch.accelerator.is_available()
    precision = choose_precision(config.train.precision, cpu)
    accelerator = Accelerator(mixed_precision=precision, cpu=cpu, log_with="tensorboard", project_dir=config.runs_dir)
    warn_of_fewer_processes(accelerator)
    return accelerator


def choose_precision(configured: str, cpu: bool) -> str:
    """Accelerate's name of `train.precision`: "no" for float32, or "bf16". ConfigError if the launcher asks for fp16."""
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # "no" as well where nothing was asked for
    if configured != "auto":
        return "bf16" if configured == "bf16" else "no"
    if launched not in ("no", "bf16"):
        raise ConfigError(
            f"train.precision {launched}, asked for by accelerate launch, is refused: the players would share one loss "
            "scale, and an overflow of one would change the other's steps (choose bf16: --mixed_precision bf16)"
        )
    return "bf16" if launched == "bf16" or multiplies_bfloat16(cpu) else "no"


def multiplies_bfloat16(cpu: bool) -> bool:
    """Whether the CPU, or the GPU, has instructions for products of bfloat16, which are else slower than float32's."""
    if cpu:
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def use_cpu(threads: int) -> None:
    """Use so many CPU threads, 0 for this process's share of the cores (`accelerate launch` and torchrun set one), and
    keep the memory that is freed."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Have glibc reuse large blocks. By default it gives each back to the kernel, which fills the pages of the next one
    with zeros: half the time of a forward pass whose activations are hundreds of megabytes."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, (1 << 31) - 1)


def leave(accelerator: Accelerator, status: int = 0) -> None:
    """End a process of a run. Several CPU processes leave together and at once, with that exit status: gloo's threads
    sometimes abort in the interpreter's own shutdown."""
    if accelerator.num_processes == 1:
        return
    accelerator.wait_for_everyone()
    if accelerator.device.type == "cpu":
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    accelerator.end_training()


def choose_run_dir(config: Config, accelerator: Accelerator) -> tuple[Path, bool]:
    """Folder of the run, the same on all processes, and whether to go on with what is in it."""
    choice: list = [None]
    if accelerator.is_main_process:
        try:
            choice = [_choose(config)]
        except ConfigError as error:
            choice = [error]
    broadcast_object_list(choice)
    if isinstance(choice[0], ConfigError):
        raise choice[0]
    return choice[0]


def _choose(config: Config) -> tuple[Path, bool]:
    if config.resume not in ("no", "auto"):
        folder = Path(config.resume).expanduser()
        if not checkpoint.list_steps(folder / "checkpoints"):
            raise ConfigError(f"resume: {folder} holds no checkpoint (give a run's folder, auto or no)")
        return folder, True
    base = Path(config.runs_dir).expanduser() / config.name
    folder, newest, number = base, None, 1
    while folder.exists() and any(folder.iterdir()):
        newest, number = folder, number + 1
        folder = base.with_name(f"{base.name}-{number}")
    if newest is not None and (config.resume == "auto" or _restarted(newest)):
        return newest, True
    return folder, False


def _leave_stale_store() -> None:
    """After a restart, meet in a new store. The one that torchrun shares with its processes still has the addresses of
    those before, which gloo and NCCL would try to reach."""
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restarts == "0" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    address = os.environ["MASTER_ADDR"]
    store, key = dist.TCPStore(address, int(os.environ["MASTER_PORT"]), is_master=False), f"vaegan/port/{restarts}"
    if os.environ["RANK"] == "0":
        with socket.socket() as free:
            free.bind(("", 0))
            store.set(key, str(free.getsockname()[1]))
    os.environ |= {"MASTER_PORT": store.get(key).decode(), "TORCHELASTIC_USE_AGENT_STORE": "False"}


def launch_id() -> str:
    """What tells one launch by torchrun from others, and is the same when it starts its processes again."""
    return f"{os.environ.get('TORCHELASTIC_RUN_ID', '')} {os.getppid()}"


def _restarted(run_dir: Path) -> bool:
    """Whether torchrun has started this process again (`--max_restarts`), and the run is the one that it began."""
    mark = run_dir / LAUNCH_FILE
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    return restarts > 0 and mark.is_file() and mark.read_text() == launch_id()


def end_with_parent() -> None:
    """Have the kernel send SIGTERM when the launcher dies, which else would leave this process running alone."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def warn_of_fewer_processes(accelerator: Accelerator) -> None:
    """`accelerate launch --cpu --num_processes 2` starts one process and says nothing; so this does."""
    try:
        command = psutil.Process().parent().cmdline()
    except (psutil.Error, AttributeError):
        return
    wanted = [b for a, b in zip(command, command[1:]) if a in ("--num_processes", "--num-processes")]
    wanted += [a.split("=", 1)[1] for a in command if a.startswith(("--num_processes=", "--num-processes="))]
    if (
        "launch" in " ".join(command)
        and wanted
        and wanted[-1].isdigit()
        and int(wanted[-1]) > accelerator.num_processes
    ):
        log.warning(
            "accelerate launch was asked for %s processes and started %d: on CPU it starts one. For several use "
            "ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node %s scripts/train.py",
            wanted[-1], accelerator.num_processes, wanted[-1],
        )  # fmt: skip
