"""Seconds of each stage of something that runs in stages."""

import time
from collections.abc import Callable


class Stages:
    """A stopwatch: `seconds` of each stage, in order, by a clock that counts seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._last = clock()

    def done(self, stage: str) -> None:
        """End a stage; the next one begins."""
        now = self._clock()
        self.seconds[stage] = now - self._last
        self._last = now
