"""A schedule of the noise: what a round uses follows from its number, and the whole from rounds."""

import math
from dataclasses import replace

import numpy as np
import pytest
from audit_fixture import audited_mu, claimed_mu, opened, terms_of
from hypothesis import given
from hypothesis import strategies as st

from vitalring.edge_agent import accountant
from vitalring.edge_agent.accountant import check_claim, epsilon, merge
from vitalring.edge_agent.contribution import protect
from vitalring.edge_agent.dpsgd import privatise
from vitalring.edge_agent.randomness import fresh_generator
from vitalring.errors import ConfigError, PrivacyError
from vitalring.protocol import guarantee as g
from vitalring.protocol.privacy import MIN_NOISE_MULTIPLIER, Privacy, Training
from vitalring.protocol.quantise import Codec
from vitalring.tools.calibration import with_noise
from vitalring.tools.plan_text import schedule_in_words

TRAINING = Training(
    sampling_rate=0.5, steps=2, rounds=20, learning_rate=0.5, batch=300, records=300
)
LOCAL = g.Terms(
    Privacy("record", "local", 8.0, 1e-5, 1.0, 1.2),
    TRAINING,
    Codec(n_max=20, clip=1.0, weight_cap=300),
    500,
    12,
)
SHARED = replace(
    LOCAL,
    privacy=Privacy("record", "distributed", 1.0, 1e-5, 1.0, 3.0, colluders=3),
    training=replace(TRAINING, steps=1),
    codec=Codec(
        n_max=20, clip=0.25, weight_cap=300, bits=14, rounding="plain", noise_width=1 << 20
    ),
)
DEVICE = replace(
    LOCAL,
    privacy=Privacy("device", "distributed", 8.0, 1e-5, 0.0, 3.0, colluders=3),
    codec=Codec(n_max=20, clip=0.25, weight_cap=1, bits=10, noise_width=1 << 20),
)
UNITS = {"record/local": LOCAL, "record/distributed": SHARED, "device/distributed": DEVICE}


def scheduled(terms, *factors, rounds=None):
    training = replace(terms.training, rounds=rounds or terms.training.rounds)
    return replace(terms, training=training, privacy=replace(terms.privacy, schedule=factors))


factors_and_rounds = st.lists(st.floats(0.5, 4.0), max_size=16).flatmap(
    lambda factors: st.tuples(st.just(tuple(factors)), st.integers(max(1, len(factors)), 60))
)


@given(factors_and_rounds)
def test_stretches_are_the_rounds_each_once(drawn):
    factors, rounds = drawn
    terms = scheduled(LOCAL, *factors, rounds=rounds)
    found = g.stretches(terms)
    numbers = [n for each in found for n in range(each.first, each.last + 1)]
    assert numbers == list(range(1, rounds + 1))
    lengths = [each.last - each.first + 1 for each in found]
    assert max(lengths) - min(lengths) <= 1
    for number in numbers:
        # SPEC 7.18, in its own words.
        factor = factors[math.floor((number - 1) * len(factors) / rounds)] if factors else 1.0
        used = g.at_round(terms, number).privacy
        assert used == replace(terms.privacy, schedule=(), noise_multiplier=1.2 * factor)


@pytest.mark.parametrize("unit", UNITS)
@given(drawn=factors_and_rounds, share=st.floats(0.0, 1.0))
def test_a_study_spends_what_its_rounds_do(unit, drawn, share):
    factors, rounds = drawn
    terms = scheduled(UNITS[unit], *factors, rounds=rounds)
    upto = round(share * rounds)
    one_by_one = [g.round_spend(terms, number) for number in range(1, upto + 1)]
    assert merge(g.study_spend(terms, upto)) == merge(one_by_one)
    assert g.study_spend(terms, rounds) == g.study_spend(terms)
    # The device's budget likewise, and every round finds its own allowance.
    allowances = g.budget_allowances(terms)
    assert sum(each.rounds for each in allowances) == rounds
    spends = [g.budget_spend(terms, number) for number in range(1, rounds + 1)]
    assert {each.spend: each.rounds for each in allowances} == {
        spend: spends.count(spend) for spend in spends
    }


@pytest.mark.parametrize("unit", UNITS)
def test_no_schedule_is_one_stretch_and_equal_factors_are_none(unit):
    terms = UNITS[unit]
    assert g.at_round(terms, 7) == terms
    assert g.study_spend(scheduled(terms, 1.0, 1.0, 1.0)) == g.study_spend(terms)
    louder = scheduled(terms, 2.0, 2.0)
    as_one = replace(
        terms, privacy=replace(terms.privacy, noise_multiplier=2.0 * terms.privacy.noise_multiplier)
    )
    assert g.study_spend(louder) == g.study_spend(as_one)


@pytest.mark.parametrize("unit", UNITS)
def test_a_schedule_lies_between_its_quietest_and_loudest_round(unit):
    terms = UNITS[unit]
    quiet, mixed, loud = (
        epsilon(g.study_spend(scheduled(terms, *factors)), 1e-5)
        for factors in ((0.7,), (1.4, 0.7), (1.4,))
    )
    assert loud < mixed < quiet


def test_counting_rounds_wrongly_shows_in_the_sum():
    """What is composed round by round is what is audited by stretches; off by one is not."""
    terms = scheduled(LOCAL, 1.5, 1.0, 0.75)
    off = [g.round_spend(terms, min(20, number + 1)) for number in range(1, 21)]
    assert merge(off) != merge(g.study_spend(terms))
    assert epsilon(off, 1e-5) > epsilon(g.study_spend(terms), 1e-5)


@pytest.mark.parametrize(
    ("terms", "names"),
    [
        (scheduled(LOCAL, 1.0, 0.9, 0.8, rounds=2), "3 factors for 2 rounds"),
        (scheduled(LOCAL, 1.0, 0.08), "privacy.noise_multiplier is 0.096"),
        (scheduled(DEVICE, 1.0, 0.02), "privacy.noise_multiplier is 0.06"),
        (
            scheduled(replace(SHARED, codec=replace(SHARED.codec, bits=8)), 1.0, 0.5),
            "more codec.bits",
        ),
        (
            replace(LOCAL, privacy=Privacy(schedule=(1.0,))),
            "privacy.unit is none: .* schedule empty",
        ),
    ],
)
def test_every_stretch_must_keep_the_rules(terms, names):
    for refuse in (g.check_terms, g.study_spend, lambda terms: g.round_spend(terms, 1)):
        with pytest.raises(ConfigError, match=names):
            refuse(terms)


def test_the_width_must_hold_the_loudest_stretch():
    terms = with_noise(scheduled(DEVICE, 1.0, 0.5))
    g.check_terms(terms)
    with pytest.raises(ConfigError, match=r"codec\.noise_width"):
        g.check_terms(scheduled(terms, 1.0, 2.0))


def test_a_schedule_in_words():
    words = "1.5 in rounds 1 to 10, 0.8 in rounds 11 to 20"
    assert schedule_in_words(scheduled(LOCAL, 1.5, 0.8)) == words
    assert schedule_in_words(LOCAL) == ""


@pytest.mark.parametrize("number", [0, 21, -1])
def test_a_round_that_the_study_does_not_have(number):
    for terms in (LOCAL, scheduled(LOCAL, 1.0, 0.5)):
        with pytest.raises(ConfigError, match=f"round {number} is none"):
            g.at_round(terms, number)


@pytest.mark.parametrize("unit", UNITS)
def test_noise_for_a_schedule_passes_and_is_tight(unit):
    # Without coins for records the search is short.
    terms = UNITS[unit]
    terms = replace(terms, training=replace(terms.training, sampling_rate=1.0))
    terms = scheduled(terms, 1.25, 1.0, 0.8)
    drawn = with_noise(terms)
    claim = terms.privacy.epsilon
    assert 0.999 * claim < check_claim(drawn, epsilon) <= claim
    less = replace(drawn.privacy, noise_multiplier=drawn.privacy.noise_multiplier - 2e-4)
    with pytest.raises(PrivacyError, match="the plan claims epsilon"):
        check_claim(replace(drawn, privacy=less), epsilon)
    # The same numbers without the schedule, or with a quieter one, are another study.
    quieter = replace(drawn.privacy, schedule=(1.25, 0.8, 0.8))
    with pytest.raises(PrivacyError, match="the plan claims epsilon"):
        check_claim(replace(drawn, privacy=quieter), epsilon)


def test_a_quiet_stretch_keeps_the_least_noise(monkeypatch):
    """Where any noise would do for the claim, the quietest stretch decides."""
    monkeypatch.setattr(accountant, "epsilon", lambda spends, delta: 0.1)
    drawn = with_noise(scheduled(LOCAL, 10.0, 0.1))
    quietest = 0.1 * drawn.privacy.noise_multiplier
    assert MIN_NOISE_MULTIPLIER <= quietest < 1.1 * MIN_NOISE_MULTIPLIER


def test_equal_noise_has_the_smallest_sum_of_variances():
    """So a schedule helps only where rounds are not worth the same (SPEC 7.18)."""
    full = replace(SHARED, training=replace(SHARED.training, sampling_rate=1.0))
    variances = []
    for factors in ((), (1.25, 0.8), (0.8, 1.25)):
        drawn = with_noise(scheduled(full, *factors))
        variances.append(
            sum(g.at_round(drawn, n).privacy.noise_multiplier ** 2 for n in range(1, 21))
        )
    assert variances[1] > 1.03 * variances[0]
    # The order of rounds is nothing to epsilon.
    assert variances[2] == pytest.approx(variances[1], rel=1e-3)


def test_noise_without_a_round_is_refused():
    study = scheduled(DEVICE, 1.0, 0.5)
    with pytest.raises(ConfigError, match=r"guarantee\.at_round"):
        protect(np.zeros(500), 1, study, bytes(32), fresh_generator())
    with pytest.raises(ConfigError, match=r"guarantee\.at_round"):
        privatise(np.zeros(500), scheduled(LOCAL, 1.0).privacy, fresh_generator())
    protect(np.zeros(500), 1, g.at_round(study, 1), bytes(32), fresh_generator())


def spikes(terms, sums):
    """A statistic in sums of a device that sends nothing, and of one that sends its clip."""
    updates = 100.0 * np.eye(terms.dimension)[:1]
    seen = np.stack([opened(terms, updates, bytes(32))[0] for _ in range(sums)])
    return seen[:, 1:].ravel(), seen[:, 0]


def test_each_stretch_keeps_the_claim_of_its_own_noise():
    """What is opened in a round tells as little as its stretch claims, and a neighbour's more."""
    terms = terms_of("device", "local", 8)
    wide = replace(terms.codec, noise_width=2 * terms.codec.noise_width)
    study = scheduled(replace(terms, codec=wide), 1.6, 0.8, rounds=2)
    mus = []
    for number in (1, 2):
        of_round = g.at_round(study, number)
        claim = 1.0 / g.round_spend(study, number).noise_multiplier
        assert claim == claimed_mu(of_round)
        without, there = spikes(of_round, 5_000)
        mus.append((audited_mu(without, there), claim))
    for found, claim in mus:
        assert 0.6 * claim < found <= claim
    # The noise of the second stretch in a round of the first would break that one's claim.
    assert mus[1][0] > 1.2 * mus[0][1]
