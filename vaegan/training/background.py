"""Work that need not hold up training, done in order on a thread of its own."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """One thread with a short queue: `do` returns at once unless the queue is full. What a job raises, the next call
    raises in its stead; the jobs after it are done all the same."""

    def __init__(self, waiting: int = 8):
        self._pool, self._jobs, self._waiting = ThreadPoolExecutor(1), deque[Future](), waiting

    def do(self, job: Callable, *arguments) -> None:
        """Call `job` after those before it."""
        self._collect(self._waiting - 1)
        self._jobs.append(self._pool.submit(job, *arguments))

    def flush(self) -> None:
        """Wait until all is done."""
        self._collect(0)

    def close(self) -> None:
        """Wait until all is done, and end the thread."""
        try:
            self.flush()
        finally:
            self._pool.shutdown()

    def _collect(self, left: int) -> None:
        while len(self._jobs) > left or (self._jobs and self._jobs[0].done()):
            self._jobs.popleft().result()
