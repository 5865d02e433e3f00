"""Attack the sums of studies whose clip follows a quantile, with what the count gives away too.

As in `test_dp_audit_sum`, each trial goes through a device's own code and is opened like a round.
Who attacks knows what every other record or device adds to the count, takes that off, and reads
the canary along the direction that its gradient and its count have together: the quantile is so
high that a canary beyond the clip uses all of the count's share. Bounds must lie under the
claims, not far, and a broken count must push its bound over.
"""

import secrets

import numpy as np
import pytest
from audit_fixture import Linear, audited_mu, claimed_mu, halve_noise, opened, terms_of

from vitalring.edge_agent import contribution, dpsgd
from vitalring.edge_agent.contribution import learn, with_count
from vitalring.edge_agent.randomness import fresh_generator
from vitalring.models.dataset import Records
from vitalring.protocol.guarantee import noise_of

QUANTILE = 0.99
WIDE, NARROW = 1024, 64
FACTOR = 0.37
"""Any other than 1 would do: it changes the clip, and nothing in the sum."""

RECORD = terms_of("record", "distributed", WIDE, quantile=QUANTILE, clip=4.0)
FEW_RECORDS = terms_of("record", "distributed", NARROW, shares=2, quantile=QUANTILE, clip=4.0)
DEVICE = terms_of("device", "distributed", NARROW, quantile=QUANTILE)
LOCAL = terms_of("device", "local", 8, quantile=QUANTILE)


def read(total, there, alone):
    """Statistic of each direction, given which of them have a canary, and one `alone`.

    `alone` is what a canary adds to the count, and to its own direction, before any noise.
    """
    others = there.sum() * alone[0] - there * alone[0]
    seen = np.stack([total[0] - others, total[1 : 1 + there.size]])
    return alone @ seen / np.linalg.norm(alone)


def record_trials(terms, sums, canary=100.0):
    """Canary records of one device in nearly each direction, there or not by coins of ours."""
    count = min(1000, terms.dimension - 4)
    rows = canary * np.eye(terms.dimension - 1, dtype=np.float32)
    start = np.zeros(terms.dimension - 1, np.float32)

    def update(x):
        records = Records("d", x, np.zeros(len(x), np.int64))
        return learn(Linear(), start, records, terms, fresh_generator(), FACTOR)

    alone, others = update(rows[:1])[:2], noise_of(terms).shares - 1
    nothing = np.zeros(terms.dimension)
    seen, coins = [], []
    for _ in range(sums):
        there = np.random.default_rng().random(count) < 0.5
        updates = [update(rows[:count][there]), *[nothing] * others]
        total, _ = opened(terms, updates, secrets.token_bytes(32))
        seen.append(read(total, there, alone))
        coins.append(there)
    values, there = np.concatenate(seen), np.concatenate(coins)
    return values[~there], values[there]


def device_trials(terms, sums):
    """Each honest device sends an update far beyond the clip in a direction of its own."""
    count = noise_of(terms).shares
    updates = [with_count(each, terms, FACTOR) for each in 100.0 * np.eye(terms.dimension - 1)]
    alone, there = updates[0][:2], np.arange(len(updates)) < count
    seen = []
    for _ in range(sums):
        total, _ = opened(terms, updates[:count], secrets.token_bytes(32))
        seen.append(read(total, there, alone))
    values = np.stack(seen)
    return values[:, ~there].ravel(), values[:, there].ravel()


AUDITS = {
    "record/distributed": (RECORD, record_trials, 101, 16),
    "device/distributed": (DEVICE, device_trials, 1_850, 300),
    "device/local": (LOCAL, device_trials, 14_500, 2_500),
}
"""Terms, trials, and sums of an honest and of a broken audit; 10^5 trials or more of the former."""


@pytest.fixture(params=AUDITS)
def audit(request):
    return AUDITS[request.param]


def test_a_canary_uses_all_of_the_clip():
    """Otherwise an honest audit would say little."""
    start = np.zeros(NARROW, np.float32)
    row = Records("d", 100.0 * np.eye(1, NARROW, dtype=np.float32), np.zeros(1, np.int64))
    alone = learn(Linear(), start, row, FEW_RECORDS, fresh_generator(), FACTOR)
    assert 0.999 / 32 < np.linalg.norm(alone) <= 1 / 32
    alone = with_count(100.0 * np.eye(NARROW)[0], DEVICE, FACTOR)
    assert 0.999 * DEVICE.codec.clip < np.linalg.norm(alone) <= DEVICE.codec.clip


def test_sums_with_a_count_keep_their_claim(audit):
    terms, trials, sums, _ = audit
    without, with_canary = trials(terms, sums)
    assert without.size + with_canary.size >= 100_000
    assert 0.8 * claimed_mu(terms) < audited_mu(without, with_canary) <= claimed_mu(terms)


def test_half_noise_is_caught(audit, monkeypatch):
    terms, trials, _, few = audit
    halve_noise(monkeypatch)
    assert audited_mu(*trials(terms, few)) > 1.5 * claimed_mu(terms)


def test_a_count_outside_of_the_clip_is_caught(monkeypatch):
    """A count with as much room again as the gradient, and half as much more."""
    assert audited_mu(*record_trials(FEW_RECORDS, 700)) <= claimed_mu(FEW_RECORDS)
    real = dpsgd.counted
    monkeypatch.setattr(
        dpsgd, "counted", lambda norms, clip, privacy: 12.0 * real(norms, clip, privacy)
    )
    assert audited_mu(*record_trials(FEW_RECORDS, 1_400)) > 1.3 * claimed_mu(FEW_RECORDS)


def test_a_clip_that_the_factor_left_behind_is_caught(monkeypatch):
    """What is sent must be divided by the factor that its clip was multiplied with."""
    real = dpsgd.gradient_update

    def undivided(*args):
        return real(*args) / args[-1]

    monkeypatch.setattr(contribution, "gradient_update", undivided)
    assert audited_mu(*record_trials(FEW_RECORDS, 150)) > 1.5 * claimed_mu(FEW_RECORDS)
