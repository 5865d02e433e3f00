"""Attack the real training step, and check that the attack would find a broken one.

Each step of `train` is one trial: a recorder takes the place of the model and
notes the weights it is shown, whose differences are what each step releases.
One run sees the records, another the records with one more. The audit bounds
from below how well the best threshold tells the runs apart; the bound must
stay under the claim, and each broken variant must push it over.
"""

from dataclasses import dataclass, field

import numpy as np
import pytest
from audit_fixture import audited_epsilon, audited_mu

from vitalring.edge_agent import dpsgd
from vitalring.edge_agent.accountant import epsilon
from vitalring.edge_agent.dpsgd import train
from vitalring.edge_agent.randomness import fresh_generator
from vitalring.models.artefact import initial_weights, load_artefact, shipped_names
from vitalring.models.runtime import TrainableModel
from vitalring.protocol.privacy import (
    CLIP_SLACK,
    Privacy,
    Spend,
    Training,
    effective_noise_multiplier,
)

TRIALS = 50_000
"""Steps of each of the two runs of an honest audit: 10^5 trials together."""

FEWER = 8_000
CLIP, SIGMA = 0.5, 1.0
RATE = 0.125
"""Learning rate: small, or the weights of so many steps would leave their bounds."""
PRIVACY = Privacy("record", "local", 100.0, 1e-5, CLIP, SIGMA)
CLAIM = effective_noise_multiplier(PRIVACY, 1)
MU = 1.0 / CLAIM
"""What SPEC 7.4 claims: one step with every record in it is MU-Gaussian-DP."""


@dataclass
class Recorder:
    """A model of one weight whose gradient is the record itself, clipped."""

    physical_batch: int = 4
    clips: bool = True
    seen: list[float] = field(default_factory=list)

    def gradient_sum(self, weights, x, y, clip):
        if not self.seen or weights[0] != self.seen[-1]:
            self.seen.append(float(weights[0]))
        norms = np.abs(x[:, 0])
        scale = np.minimum(1.0, clip / norms) if self.clips else np.ones_like(norms)
        return np.array([np.sum(x[:, 0] * scale)], np.float32), 0.0, norms

    def releases(self) -> np.ndarray:
        """Return the released value of each step, as its learning rate shows it."""
        return -np.diff(self.seen) / RATE


def trials(values, count, *, rate=1.0, model=None) -> np.ndarray:
    """Run `count` steps on records with these gradients, and return what each released."""
    model = model or Recorder()
    x = np.array(values, np.float32)[:, None]
    training = Training(rate, count, 1, RATE, 1, 1)
    # A record that every step contains keeps the recorder called.
    last = train(model, np.zeros(1, np.float32), x, x, training, PRIVACY, fresh_generator())
    model.seen.append(float(last.weights[0]))
    return model.releases()


OTHERS = [-CLIP, CLIP] * 3
"""Records that both runs have; they cancel, so that weights stay where float32 is fine."""


def test_full_batches_keep_their_claim():
    """10^5 trials each of a step with and without a record at the clip."""
    mu = audited_mu(trials(OTHERS, TRIALS), trials([*OTHERS, 100.0], TRIALS))
    assert 0.8 * MU < mu <= MU


def test_sampled_batches_keep_their_claim():
    """The accountant's figure for a Poisson-sampled step lies above what the attack finds."""
    delta = 0.01
    # Forty records without a gradient: nearly no batch is empty, and nothing hides the one.
    zeros = [1e-9] * 40
    without = trials(zeros, TRIALS, rate=0.5, model=Recorder(64))
    with_record = trials([*zeros, 100.0], TRIALS, rate=0.5, model=Recorder(64))
    claim = epsilon([Spend(0.5, CLAIM, 1)], delta)
    assert 0.3 * claim < audited_epsilon(without, with_record, delta) <= claim


def test_missing_clip_is_caught():
    """Twenty records let one unclipped gradient pass the check of the sum; the audit sees it."""
    others = [-CLIP] * 20
    broken = trials([*others, 10 * CLIP], FEWER, model=Recorder(32, clips=False))
    assert audited_mu(trials(others, FEWER, model=Recorder(32)), broken) > 1.5 * MU


def test_a_lone_record_that_is_not_clipped_counts_as_nothing():
    lone = trials([10 * CLIP], FEWER, model=Recorder(clips=False))
    assert audited_mu(trials([1e-9], FEWER), lone) < 0.1 * MU


def test_half_noise_is_caught(monkeypatch):
    real = dpsgd.integer_gaussian
    monkeypatch.setattr(
        dpsgd, "integer_gaussian", lambda generator, scale, size: real(generator, scale / 2, size)
    )
    assert audited_mu(trials(OTHERS, FEWER), trials([*OTHERS, 100.0], FEWER)) > 1.5 * MU


def test_reused_seed_is_caught(monkeypatch):
    real = dpsgd.integer_gaussian
    monkeypatch.setattr(
        dpsgd,
        "integer_gaussian",
        lambda generator, scale, size: real(np.random.default_rng(7), scale, size),
    )
    assert audited_mu(trials(OTHERS, FEWER), trials([*OTHERS, 100.0], FEWER)) > 1.5 * MU


def test_truncated_batch_is_caught(monkeypatch):
    """A batch cut to its first chunk lets a new record push another one out."""
    real = dpsgd._chunks

    def truncated(*given):
        yield next(real(*given))

    monkeypatch.setattr(dpsgd, "_chunks", truncated)
    pulls = [-CLIP] * 4
    mu = audited_mu(trials(pulls, FEWER), trials([100.0, *pulls], FEWER))
    assert mu > 1.5 * MU


def test_noise_left_out_of_empty_batches_is_caught(monkeypatch):
    """Without noise on empty batches, a zero release tells that nobody was there."""
    real = dpsgd.privatise

    def broken(total, privacy, generator):
        return total if not total.any() else real(total, privacy, generator)

    monkeypatch.setattr(dpsgd, "privatise", broken)
    without = trials([0.0], FEWER, model=_Zero())
    with_record = trials([CLIP], FEWER)
    assert audited_mu(np.abs(without), np.abs(with_record)) > 1.5 * MU


class _Zero(Recorder):
    """Notes every call, since without noise the weights stand still."""

    def gradient_sum(self, weights, x, y, clip):
        self.seen.append(float(weights[0]))
        return np.zeros(1, np.float32), 0.0, np.zeros(len(x), np.float32)


@pytest.mark.parametrize("name", shipped_names())
@pytest.mark.parametrize("clip", [0.1, 1.0, 5.0])
def test_shipped_networks_compute_as_the_sensitivity_assumes(name, clip):
    """SPEC 7.4 allows float32 2^-8 for one gradient and 2^-20 of the norms for a sum.

    SPEC 7.17 allows as much for the norms that are reported, which are counted.
    """
    artefact = load_artefact(name)
    model = TrainableModel(artefact)
    generator = np.random.default_rng(1)
    count = model.physical_batch
    x = generator.normal(size=(count, *artefact.info.input_shape)).astype(np.float32)
    y = generator.integers(0, len(artefact.info.classes), count)
    start = initial_weights(artefact, bytes(32))
    for spread in (0.0, 0.3):
        weights = (start + spread * generator.normal(size=start.size)).astype(np.float32)
        singles = [model.gradient_sum(weights, x[[i]], y[[i]], clip) for i in range(count)]
        exact = np.array([single[0] for single in singles], np.float64)
        told = np.array([single[2][0] for single in singles], np.float64)
        norms = np.linalg.norm(exact, axis=1)
        assert norms.max() <= clip * (1 + CLIP_SLACK / 2)
        total, _, beside = model.gradient_sum(weights, x, y, clip)
        together = total.astype(np.float64)
        assert beside.shape == (count,)
        assert np.all(np.abs(beside - told) <= 2 * 2.0**-20 * told)
        error = np.linalg.norm(together - exact.sum(0))
        assert error <= 2.0**-20 * norms.sum()
