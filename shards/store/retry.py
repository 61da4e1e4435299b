"""When to try again, and when to give up: exponential backoff with jitter, and a budget of time."""

import random
import time
from collections.abc import Callable

PATIENCE_SECONDS = 300.0  # a restarted server, a switch that is replaced; a job that hangs longer wastes GPUs

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 10.0


def longest_pause(attempt: int) -> float:
    """Seconds, of the pause after failure number `attempt`, from 0."""
    return float(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(attempt, 30)))


class Retries:
    """One piece of work that may fail: `failed(error)` waits, longer each time, and raises `error` once
    nothing has gone forward for `patience` seconds.

    sleep: waits so many seconds; it returns True when the work is no longer wanted, and `failed` then raises.
    """

    def __init__(
        self,
        patience: float,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._patience, self._sleep, self._clock = patience, sleep, clock
        self._attempt = 0
        self._since = clock()

    def went_forward(self) -> None:
        """Something arrived: patience and pauses start anew."""
        self._attempt = 0
        self._since = self._clock()

    def failed(self, error: Exception) -> None:
        # Jitter: a node's workers failed together and must not come back together.
        pause = longest_pause(self._attempt) * random.uniform(0.5, 1.0)
        self._attempt += 1
        spent = self._clock() - self._since
        if spent + pause > self._patience:
            raise type(error)(f"{error} Gave up after {spent:.0f} s without progress.") from None
        if self._sleep(pause):
            raise error from None
