"""Three hospitals as processes with Mosquitto: kill any of them at any moment, and nothing is lost.

Asserted against the exported log and the hospitals' databases.
"""

import contextlib
import sqlite3
from collections import Counter

import pytest
from reaper_fixture import Reaper, run_to_its_end
from services_fixture import GENEROUS_S, Hospital

pytestmark = pytest.mark.mosquitto

MIN_COHORT = 3
HOSPITALS = 3


def releases(home):
    """What a hospital's database says it is bound to, and which sums it decrypted for whom."""
    with contextlib.closing(sqlite3.connect(home / "aggregator" / "aggregator.sqlite")) as db:
        bound = dict(db.execute("SELECT round, set_digest FROM releases"))
        state = db.execute("SELECT round, weights FROM state ORDER BY round DESC").fetchone()
    return bound, state


def killed_at_random(folder, rounds, timeout_s, report, *, between_s, pause_s, kills=None):
    hospital = Hospital(
        folder,
        rounds=rounds,
        timeout_s=20,
        hospitals=HOSPITALS,
    )
    with hospital:
        kinds = (hospital.aggregators, hospital.aggregators, [hospital.gateway], [hospital.broker])
        reaper = Reaper(hospital, kinds, report, between_s=between_s, pause_s=pause_s, kills=kills)
        run_to_its_end(hospital, timeout_s, reaper.step)
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
        f"{reaper.said(rounds)}; {sum(applied)} sums applied, refusals "
        f"{Counter(reason for logged in outcome.rounds for reason in logged.refusals)}"
    )
    return reaper.kills, applied


def test_a_few_rounds_of_three_hospitals_survive_random_kills(tmp_path, report):
    kills, applied = killed_at_random(
        tmp_path / "study", 3, GENEROUS_S, report, between_s=(1.5, 3.0), pause_s=(0.1, 1.0), kills=5
    )
    assert sum(kills.values()) > 0
    assert any(applied)


@pytest.mark.long
def test_twenty_rounds_of_three_hospitals_survive_random_kills_of_every_kind(tmp_path, report):
    kills, _ = killed_at_random(
        tmp_path / "study", 20, 1800, report, between_s=(0.5, 2.5), pause_s=(0.1, 3.0)
    )
    assert min(kills[name] for name in ("broker", "gateway", "aggregator")) >= 3
