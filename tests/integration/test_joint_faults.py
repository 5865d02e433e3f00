"""Three hospitals as processes with Mosquitto: kill any of them at any moment, and nothing is lost.

Asserted against the exported log and the hospitals' databases. Randomness is seeded and
printed: VITALRING_SEED=N repeats a run's choices, though not its timing.
"""

import contextlib
import os
import random
import secrets
import sqlite3
import time
from collections import Counter

import pytest
from services_fixture import Hospital, wait_for

pytestmark = pytest.mark.mosquitto

MIN_COHORT = 3
HOSPITALS = 3


@pytest.fixture
def report(capsys):
    """Print past pytest's capture, so that the seed is there when a run hangs."""

    def say(text):
        with capsys.disabled():
            print(f"\n  {text}")  # noqa: T201

    return say


class Reaper:
    """Kills an aggregator, the gateway or the broker every now and then, and starts it again."""

    def __init__(self, hospital, rng, between_s, pause_s, kills=None):
        self.kills = Counter()
        self._hospital, self._rng = hospital, rng
        self._between_s, self._pause_s, self._left = between_s, pause_s, kills
        self._down = []
        self._next = time.monotonic() + rng.uniform(*between_s)

    def step(self):
        now = time.monotonic()
        for process, when in list(self._down):
            if now >= when:
                self._down.remove((process, when))
                process.start()
        hospital = self._hospital
        targets = [*hospital.aggregators, *hospital.aggregators, hospital.gateway, hospital.broker]
        down = [process for process, _ in self._down]
        for process in targets:
            expected = (None, 0) if process in hospital.aggregators else (None,)
            assert process in down or process.code in expected, f"{process.name} ended by itself"
        if now < self._next or self._left == 0:
            return
        self._next = now + self._rng.uniform(*self._between_s)
        choice = self._rng.choice(targets)
        if choice in down or choice.code is not None:
            return
        choice.kill()
        self.kills[choice.name] += 1
        self._left = None if self._left is None else self._left - 1
        self._down.append((choice, now + self._rng.uniform(*self._pause_s)))


def releases(home):
    """What a hospital's database says it is bound to, and which sums it decrypted for whom."""
    with contextlib.closing(sqlite3.connect(home / "aggregator" / "aggregator.sqlite")) as db:
        bound = dict(db.execute("SELECT round, set_digest FROM releases"))
        state = db.execute("SELECT round, weights FROM state ORDER BY round DESC").fetchone()
    return bound, state


def killed_at_random(folder, rounds, timeout_s, report, *, between_s, pause_s, kills=None):
    seed = int(os.environ.get("VITALRING_SEED") or secrets.randbelow(1 << 32))
    report(f"VITALRING_SEED={seed}")
    hospital = Hospital(
        folder,
        rounds=rounds,
        devices=3,
        agents=1,
        min_cohort=MIN_COHORT,
        window_s=0.5,
        timeout_s=20,
        retry_s=2,
        hospitals=HOSPITALS,
    )
    began = time.monotonic()
    with hospital:
        reaper = Reaper(hospital, random.Random(seed), between_s, pause_s, kills)

        def over():
            reaper.step()
            return all(process.code == 0 for process in hospital.aggregators)

        try:
            wait_for("every hospital has the final model", over, timeout_s)
            wait_for(
                "no update waits for a receipt", lambda: reaper.step() or not hospital.unsettled()
            )
        except AssertionError as error:
            error.add_note(hospital.tail())
            raise
        outcome = hospital.export()
    outcome.check(rounds, MIN_COHORT)
    found = [releases(home) for home in hospital.homes]
    # All are at the end, with one state; no round is bound to two sets, here or there.
    assert len({state for _, state in found}) == 1
    assert found[0][1][0] == rounds
    for number in range(1, rounds + 1):
        assert len({bound[number] for bound, _ in found if number in bound}) <= 1
    applied = [logged.model.applied for logged in outcome.rounds]
    report(
        f"{sum(reaper.kills.values())} kills {dict(reaper.kills)} in {rounds} rounds, "
        f"{time.monotonic() - began:.0f} s; {sum(applied)} sums applied, refusals "
        f"{Counter(reason for logged in outcome.rounds for reason in logged.refusals)}"
    )
    return reaper.kills, applied


def test_a_few_rounds_of_three_hospitals_survive_random_kills(tmp_path, report):
    kills, applied = killed_at_random(
        tmp_path / "study", 3, 180, report, between_s=(1.5, 3.0), pause_s=(0.1, 1.0), kills=5
    )
    assert sum(kills.values()) > 0
    assert any(applied)


@pytest.mark.long
def test_twenty_rounds_of_three_hospitals_survive_random_kills_of_every_kind(tmp_path, report):
    kills, _ = killed_at_random(
        tmp_path / "study", 20, 1800, report, between_s=(0.5, 2.5), pause_s=(0.1, 3.0)
    )
    assert min(kills[name] for name in ("broker", "gateway", "aggregator")) >= 3
