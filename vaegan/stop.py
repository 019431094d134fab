"""Signals that ask a run to end: they set a flag, and the work looks at it where it can end with nothing lost."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))

_PATIENCE = 2.0  # seconds

_received, _since = 0, 0.0  # a handler can reach nothing else


class Stopped(Exception):
    """A run that ended before its time, with nothing lost. `status`: the exit status that it asks for."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """While in this context, SIGNALS set the flag. Only a second Ctrl-C, some seconds after the first signal, is not
    listened for: launchers send a signal on that a terminal has sent already."""
    global _received
    _received = 0
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers belong to the main thread
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def receive(number: int, frame) -> None:
        global _received, _since
        if not _received:
            _received, _since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() > _since + _PATIENCE:
            restore()
            raise KeyboardInterrupt

    for number in SIGNALS:
        signal.signal(number, receive)
    try:
        yield
    finally:
        restore()
        _received = 0


def requested() -> int:
    """Number of the signal that has asked to end, or 0."""
    return _received


def check() -> None:
    """Stopped if a signal has asked to end. For work that can be broken off and done again."""
    if _received:
        raise stopped_by(_received)


def stopped_by(number: int) -> Stopped:
    """What a run raises that a signal has ended; its exit status is 128 and the number, as in shells."""
    return Stopped(f"stopped by {signal.Signals(number).name}", 128 + number)
