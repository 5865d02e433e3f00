"""Seconds of each stage of something that runs in stages."""

import time


class Stages:
    """A stopwatch: `seconds` of each stage, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def done(self, stage: str) -> None:
        """End a stage; the next one begins."""
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now
