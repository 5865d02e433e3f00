"""Kill a hospital's processes at random, and wait for the end of its study in spite of that.

Randomness is seeded and printed: VITALRING_SEED=N repeats a run's choices, though not its timing.
"""

import os
import random
import secrets
import time
from collections import Counter

from services_fixture import wait_for


def run_to_its_end(hospital, timeout_s, restart=lambda: None):
    """Wait for the final model and for every device to know what became of its updates."""
    try:

        def over():
            restart()
            return all(process.code == 0 for process in hospital.aggregators)

        wait_for("the final model is logged", over, timeout_s)
        wait_for("no update waits for a receipt", lambda: restart() or not hospital.unsettled())
    except AssertionError as error:
        error.add_note(hospital.tail())
        raise


class Reaper:
    """Kills a process of `targets` every now and then, and starts it again after a pause.

    `targets` are lists of processes that are chosen alike; `kills` is the most there will be.
    """

    def __init__(self, hospital, targets, report, *, between_s, pause_s, kills=None):
        seed = int(os.environ.get("VITALRING_SEED") or secrets.randbelow(1 << 32))
        report(f"VITALRING_SEED={seed}")
        self.kills = Counter()
        self._hospital, self._targets, self._rng = hospital, targets, random.Random(seed)
        self._between_s, self._pause_s, self._left = between_s, pause_s, kills
        self._down = []
        self._began = time.monotonic()
        self._next = self._began + self._rng.uniform(*between_s)

    def step(self):
        now = time.monotonic()
        for process, when in list(self._down):
            if now >= when:
                self._down.remove((process, when))
                process.start()
        down = [process for process, _ in self._down]
        for process in self._hospital.processes:
            expected = (None, 0) if process in self._hospital.aggregators else (None,)
            assert process in down or process.code in expected, f"{process.name} ended by itself"
        if now < self._next or self._left == 0:
            return
        self._next = now + self._rng.uniform(*self._between_s)
        choice = self._rng.choice(self._rng.choice(self._targets))
        if choice in down or choice.code is not None:
            return
        choice.kill()
        self.kills[choice.name] += 1
        self._left = None if self._left is None else self._left - 1
        self._down.append((choice, now + self._rng.uniform(*self._pause_s)))

    def said(self, rounds):
        """What it did, for the report of a run."""
        return (
            f"{sum(self.kills.values())} kills {dict(self.kills)} in {rounds} rounds, "
            f"{time.monotonic() - self._began:.0f} s"
        )
