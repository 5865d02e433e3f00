"""Attack the sums that are opened, and check that the attack would find a broken device.

Each trial goes through a device's own code, from records or an update to fields, and the fields
of the honest devices of the smallest sum are added up and decoded; the noise of colluders counts
as known. Canaries are as long as the clip, in directions of their own, so that one sum holds many
trials: noise is alike and independent in all directions. Bounds must lie under the claims, not
far, and each broken variant must push its bound over.
"""

import secrets
from dataclasses import dataclass, replace

import numpy as np
import pytest
from audit_fixture import (
    Linear,
    audited_epsilon,
    audited_mu,
    claimed_mu,
    halve_noise,
    opened,
    terms_of,
)

from vitalring.edge_agent import contribution
from vitalring.edge_agent.accountant import epsilon
from vitalring.edge_agent.contribution import learn
from vitalring.edge_agent.randomness import fresh_generator
from vitalring.errors import ConfigError, EncodingRangeError
from vitalring.models.dataset import Records
from vitalring.protocol import quantise
from vitalring.protocol.guarantee import noise_of, round_spend
from vitalring.protocol.privacy import is_gradient_sum
from vitalring.protocol.quantise import grid_step
from vitalring.protocol.rotation import rotate, unrotate

WIDE = 1024
"""Coordinates of a sum that holds a canary record in nearly each of its directions."""

# Hundreds of canaries together stay within the clip of an update.
RECORD = terms_of("record", "distributed", WIDE, clip=4.0)
DEVICE = terms_of("device", "distributed", 64)
LOCAL = terms_of("device", "local", 8)
CLIPPED = Linear()
SUMS = 100
FEW = 16
"""Sums of 1,000 records each: 10^5 trials of an honest audit, 16,000 of a broken one."""


@dataclass(frozen=True)
class Trials:
    """A statistic in trials without and with what a neighbour differs in, and the weights seen."""

    without: np.ndarray
    with_canary: np.ndarray
    weights: frozenset[int] = frozenset()

    @property
    def mu(self):
        return audited_mu(self.without, self.with_canary)


def record_trials(terms, sums, *, canary=100.0, model=CLIPPED):
    """1,000 canary records of one device in each sum, there or not by coins of ours."""
    rows = canary * np.eye(terms.dimension, dtype=np.float32)
    nothing = Records("d", 1e-9 * rows[:1], np.zeros(1, np.int64))
    start = np.zeros(terms.dimension, np.float32)
    seen, there, weights = [], [], set()
    for _ in range(sums):
        coins = np.random.default_rng().random(1000) < 0.5
        x = rows[:1000][coins]
        devices = [Records("d", x, np.zeros(len(x), np.int64)), *[nothing] * (shares(terms) - 1)]
        updates = [learn(model, start, each, terms, fresh_generator()) for each in devices]
        total, weight = opened(terms, updates, secrets.token_bytes(32), records=len(x))
        seen.append(-total[:1000])
        there.append(coins)
        weights.add(weight)
    values, coins = np.concatenate(seen), np.concatenate(there)
    return Trials(values[~coins], values[coins], frozenset(weights))


def device_trials(terms, sums, *, length=100.0):
    """Each honest device sends an update far beyond the clip in a direction of its own.

    Directions that no device has show what a device that teaches nothing leaves.
    """
    count = shares(terms)
    updates = length * np.eye(terms.dimension)[:count]
    seen, weights = [], set()
    for _ in range(sums):
        total, weight = opened(terms, updates, secrets.token_bytes(32), records=1000)
        seen.append(total)
        weights.add(weight)
    values = np.stack(seen)
    return Trials(values[:, count:].ravel(), values[:, :count].ravel(), frozenset(weights))


def shares(terms):
    return noise_of(terms).shares


AUDITS = {
    "record/distributed": (RECORD, record_trials, 2 * SUMS, FEW),
    "device/distributed": (DEVICE, device_trials, 3_700, 300),
    "device/local": (LOCAL, device_trials, 29_000, 2_500),
}
"""Terms, trials, and sums of an honest and of a broken audit; 10^5 trials or more of the former."""


@pytest.fixture(params=AUDITS)
def audit(request):
    return AUDITS[request.param]


def test_sums_keep_their_claim(audit):
    terms, trials, sums, _ = audit
    made = trials(terms, sums)
    assert made.without.size + made.with_canary.size >= 100_000
    assert 0.8 * claimed_mu(terms) < made.mu <= claimed_mu(terms)
    # And the weight says nothing.
    assert made.weights == {shares(terms) * terms.codec.levels}


def test_sampled_records_keep_their_claim():
    delta = 0.01
    terms = terms_of("record", "distributed", WIDE, clip=4.0, rate=0.5)
    made = record_trials(terms, SUMS)
    claim = epsilon([round_spend(terms, 1)], delta)
    assert 0.3 * claim < audited_epsilon(made.without, made.with_canary, delta) <= claim


# What breaks noise or clip, for every unit.


def test_half_noise_is_caught(audit, monkeypatch):
    terms, trials, _, few = audit
    halve_noise(monkeypatch)
    assert trials(terms, few).mu > 1.5 * claimed_mu(terms)


def test_noise_of_one_device_left_out_is_caught(monkeypatch):
    """Of two honest devices; with more, each counts for less."""
    real, calls = contribution.noise_share, [0]

    def every_other(secret, noise):
        calls[0] += 1
        return real(secret, noise) * (calls[0] % 2)

    monkeypatch.setattr(contribution, "noise_share", every_other)
    for terms, trials, sums in (
        (terms_of("record", "distributed", WIDE, shares=2, clip=4.0), record_trials, 4 * FEW),
        (terms_of("device", "distributed", 16, shares=2), device_trials, 8_000),
    ):
        assert trials(terms, sums).mu > 1.15 * claimed_mu(terms)


@pytest.mark.parametrize("name", ["record/distributed", "device/distributed"])
def test_noise_that_two_devices_share_is_caught(name, monkeypatch):
    """A colluder whose generator has the others' seed knows their noise, and takes it off."""
    terms, trials, _, few = AUDITS[name]
    real, sum_of = contribution.noise_share, opened

    def seeded(_secret, noise):
        return real(np.random.default_rng(7), noise)

    def without_what_is_known(terms, updates, seed, *, records):
        total, weight = sum_of(terms, updates, seed, records=records)
        own, _ = sum_of(terms, [np.zeros(terms.dimension)], seed)
        return total - len(updates) * own, weight

    monkeypatch.setattr(contribution, "noise_share", seeded)
    monkeypatch.setitem(globals(), "opened", without_what_is_known)
    assert trials(terms, few).mu > 1.5 * claimed_mu(terms)


@pytest.mark.parametrize("name", AUDITS)
def test_noise_of_the_round_before_is_caught(name, monkeypatch):
    """The difference of two rounds has no noise then, and shows whom they differ in.

    With unit record in which records the coins chose, with unit device in what a device learned:
    here the opposite of the round before. Both rounds have one rotation, which is public, so that
    they can be subtracted as they are.
    """
    terms, trials, _, few = AUDITS[name]
    terms = replace(terms, training=replace(terms.training, sampling_rate=0.5))
    real, sum_of, calls, before = contribution.noise_share, opened, [0], [0.0]
    seed = secrets.token_bytes(32)

    def seeded(_secret, noise):
        calls[0] += 1
        return real(np.random.default_rng(calls[0] % shares(terms)), noise)

    def since_the_round_before(terms, updates, _seed, *, records):
        turn = 1 if name.startswith("record") or calls[0] // shares(terms) % 2 else -1
        updates = [turn * update for update in updates]
        total, weight = sum_of(terms, updates, seed, records=records)
        difference, before[0] = total - before[0], total
        return turn * difference, weight

    monkeypatch.setattr(contribution, "noise_share", seeded)
    monkeypatch.setitem(globals(), "opened", since_the_round_before)
    # Two rounds claim the root of two times one round's.
    assert trials(terms, 4 * few).mu > 1.5 * np.sqrt(2.0) * claimed_mu(terms)


def test_missing_clip_of_records_is_caught():
    terms, trials, _, few = AUDITS["record/distributed"]
    broken = trials(terms, few, canary=2.5, model=Linear(clips=False))
    assert broken.mu > 1.5 * claimed_mu(terms)


@pytest.mark.parametrize("name", ["device/distributed", "device/local"])
def test_missing_clip_of_updates_is_refused_and_would_be_caught(name, monkeypatch):
    terms, trials, _, few = AUDITS[name]
    monkeypatch.setattr(quantise, "_clip_factor", lambda vector, clip: 1.0)
    with pytest.raises(EncodingRangeError, match="no rounding within a norm"):
        trials(terms, 1)
    monkeypatch.setattr(quantise, "norm_bound", lambda codec, dimension: np.inf)
    assert trials(terms, few).mu > 1.5 * claimed_mu(terms)


# What breaks the weight.


def test_a_weight_that_shows_the_count_is_caught(audit, monkeypatch):
    """Two plans at once must be wrong for that: a cap above what all devices have is refused."""
    terms, trials, _, _ = audit
    tell = replace(terms, codec=replace(terms.codec, weight_cap=terms.codec.levels))
    with pytest.raises(ConfigError, match=r"codec\.weight_cap"):
        trials(tell, 1)
    monkeypatch.setattr(contribution, "check_terms", lambda terms: None)
    monkeypatch.setattr(contribution, "weight_samples", lambda terms, records: records)
    seed, nothing = secrets.token_bytes(32), [np.zeros(terms.dimension)] * shares(terms)

    def weights_seen(records):
        return np.array([opened(tell, nothing, seed, records=records)[1] for _ in range(200)])

    assert audited_mu(weights_seen(30), weights_seen(31)) > 1.5 * claimed_mu(terms)


# What breaks the codec.

GRID = terms_of("record", "distributed", WIDE, clip=16.0, reach=0.5)
"""One canary moves a coordinate of the grid by an eighth of the way to the edge."""


def grid_trials(terms, base, others, *, sums=4):
    """Each coordinate of the grid is a trial: a canary moves it by one clip, or is not there.

    `base` is where the device's other records bring it, `others` where every other device is,
    both in canaries.
    """
    step = grid_step(terms.codec, terms.dimension)
    canary = terms.privacy.clip / terms.training.batch
    values, there = [], []
    for _ in range(sums):
        seed = secrets.token_bytes(32)
        coins = np.random.default_rng().random(terms.dimension) < 0.5
        own = unrotate((base + coins) * canary, seed)
        rest = unrotate(np.full(terms.dimension, others * canary), seed)
        total, _ = opened(terms, [own, *[rest] * (shares(terms) - 1)], seed)
        values.append(rotate(total, seed) / step)
        there.append(coins)
    seen, coins = np.concatenate(values), np.concatenate(there)
    return Trials(seen[~coins], seen[coins])


def changed_grid(monkeypatch, change):
    """Let `change` have each device's noisy integers before they become fields."""
    real = contribution.encode_update

    def broken(update, samples, codec, seed, **secret):
        made = real(update, samples, codec, seed, **secret)
        grid = made.fields[1:].astype(np.int64) - codec.offset
        fields = made.fields.copy()
        fields[1:] = (change(grid, codec) + codec.offset).astype(np.uint64)
        return replace(made, fields=fields)

    monkeypatch.setattr(contribution, "encode_update", broken)


def test_whole_fields_show_no_more_at_their_edge():
    """Below, the edge is where broken fields give noise away."""
    for base, others in ((7.0, 0.0), (0.0, 12.0)):
        mu = grid_trials(GRID, base, others).mu
        # The lower bound itself spreads, over draws of its trials, from 0.4 to 0.7 of the claim.
        assert 0.25 * claimed_mu(GRID) < mu <= claimed_mu(GRID)


def test_fields_that_wrap_are_caught(monkeypatch):
    """A field without room for noise wraps; the sum shows how many did, and so one device's side.

    Whether it wrapped depends on that device's share of the noise alone.
    """

    def wrap(grid, codec):
        return (grid + codec.half) % (2 * codec.half + 1) - codec.half

    changed_grid(monkeypatch, wrap)
    made = grid_trials(GRID, 7.0, 0.0, sums=8)
    # A wrapped coordinate is far below the others.
    assert audited_mu(-made.without, -made.with_canary) > 1.5 * claimed_mu(GRID)


def test_a_codec_that_clamps_noise_is_caught(monkeypatch):
    """Fields that end where values do take the noise of devices beyond the edge."""

    def plain(vector, half, secret):
        return np.floor(vector + secret.random(vector.size)).astype(np.int64)

    monkeypatch.setattr(quantise, "_round_plain", plain)
    changed_grid(monkeypatch, lambda grid, codec: np.clip(grid, -codec.half, codec.half))
    assert grid_trials(GRID, 0.0, 12.0).mu > 1.5 * claimed_mu(GRID)


def test_a_codec_that_clamps_updates_and_noise_is_caught(monkeypatch):
    """The same with unit device, where the others' updates are far beyond the edge."""
    terms = terms_of("device", "distributed", 1, shares=16, reach=0.3)

    def clamping(update, samples, codec, seed, *, rng, noise):
        steps = update / np.abs(update) * codec.clip / grid_step(codec, update.size)
        grid = np.clip(np.nan_to_num(steps).astype(np.int64) + noise, -codec.half, codec.half)
        fields = np.r_[codec.levels, grid + codec.offset].astype(np.uint64)
        return quantise.EncodedUpdate(fields, codec.levels)

    def sums(own):
        updates = [np.array([own]), *[np.array([1.0])] * 15]
        seen = [opened(terms, updates, bytes(32))[0] for _ in range(1_000)]
        return np.abs(np.concatenate(seen))

    monkeypatch.setattr(contribution, "encode_update", clamping)
    with np.errstate(invalid="ignore"):
        assert audited_mu(sums(0.0), sums(1.0)) > 1.5 * claimed_mu(terms)


COARSE = {
    "record": terms_of("record", "distributed", WIDE, shares=2, sigma=2.0, bits=6),
    "device": terms_of("device", "distributed", WIDE, shares=2, sigma=2.0, bits=3),
}
"""Grids so coarse that rounding is a good part of the sensitivity."""


def coarse_trials(terms, runs=500):
    """One canary alone, which the rotation spreads over all coordinates, or nothing."""

    def seen(length):
        updates = [length * np.eye(terms.dimension)[0], np.zeros(terms.dimension)]
        return np.array(
            [opened(terms, updates, secrets.token_bytes(32))[0][0] for _ in range(runs)]
        )

    return Trials(
        seen(0.0), seen(terms.privacy.clip / 32 if is_gradient_sum(terms.privacy) else 9.0)
    )


@pytest.mark.parametrize("unit", COARSE)
def test_rounding_keeps_to_its_bound_and_is_caught_outside(unit, monkeypatch):
    terms = COARSE[unit]
    assert coarse_trials(terms).mu <= claimed_mu(terms)

    def outwards(vector):
        """Round away from zero to the next multiple of four."""
        return (4 * np.sign(vector) * np.ceil(np.abs(vector) / 4)).astype(np.int64)

    monkeypatch.setattr(quantise, "_round_plain", lambda vector, *_: outwards(vector))
    monkeypatch.setattr(quantise, "_round_within", lambda vector, *_: outwards(vector))
    assert coarse_trials(terms).mu > 1.5 * claimed_mu(terms)
