"""Membership inference: scores of known worth, and real trainings that leak or do not."""

import numpy as np
import pytest
from scipy.stats import norm

from vitalring.errors import ConfigError
from vitalring.models.catalogue import find_artefact
from vitalring.models.dataset import Records
from vitalring.models.runtime import TrainableModel
from vitalring.tools.attack.likelihood import confidence, score
from vitalring.tools.attack.membership import (
    VIEWS,
    Bench,
    Defence,
    Looked,
    MembershipSettings,
    attack_looks,
    look,
    looks_of,
)
from vitalring.tools.attack.roc import measure_roc, rates

RECORDS = 4000


def area(scores, members):
    return rates(scores, members)(np.ones(len(scores)))[0]


def test_the_area_and_the_rates_are_counted_right():
    scores = np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    members = np.array([True, True, False, True, False, False])
    # Of nine pairs of a member and another, eight are in order.
    found = rates(scores, members, (0.1, 0.34))(np.ones(6))
    assert found == pytest.approx([8 / 9, 2 / 3, 1.0])
    # Weights stand for records that are there more than once; 0 for one that is not.
    assert rates(scores, members, ())(np.array([1, 1, 0, 1, 1, 1.0])) == pytest.approx([1.0])


def test_a_score_that_tells_nothing_is_worth_nothing():
    members = np.arange(10) % 2 == 0
    assert rates(np.zeros(10), members, (0.01,))(np.ones(10)).tolist() == [0.5, 0.0]
    with pytest.raises(ConfigError, match="non-members"):
        rates(np.zeros(3), np.ones(3, dtype=bool))(np.ones(3))


def test_the_interval_covers_as_often_as_it_says():
    generator, true, hits = np.random.default_rng(0), norm.cdf(0.5 / np.sqrt(2)), 0
    for _ in range(100):
        members = generator.random((1, 400)) < 0.5
        found = measure_roc(generator.normal(0.5 * members), members, 100, generator).auc
        hits += found.low <= true <= found.high
    # 95 in the mean, with a deviation of 2.2; percentiles of 100 draws lose one or two.
    assert 85 <= hits <= 100


def planted(shift, studies, k=1):
    """Looks of a known worth: a record's own mean, and a shift where it is a member."""
    generator = np.random.default_rng(1)
    members = generator.random((studies, RECORDS)) < 0.5
    own = generator.normal(0.0, 5.0, RECORDS)
    noise = generator.normal(size=(studies, k, RECORDS))
    return own + shift * members[:, None] + noise, members


def test_the_likelihood_ratio_finds_what_there_is():
    looks, members = planted(0.7, 17)
    found = score(looks[0], looks[1:], members[1:])
    # Who knew every mean would have area Φ(0.7/√2) = 0.690; 16 shadows know them to within 1/4.
    assert 0.65 < area(found.by_difficulty, members[0]) < 0.70
    assert 0.58 < area(found.by_record, members[0]) < 0.68
    # A threshold knows nothing of a record's own mean, seven times the shift.
    assert area(looks[0, 0], members[0]) < 0.57


def test_several_looks_add_up():
    looks, members = planted(0.7, 17, k=4)
    found = score(looks[0], looks[1:], members[1:])
    assert area(found.by_difficulty, members[0]) > 0.78  # Φ(1.4/√2) = 0.839


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_shuffled_members_are_not_found(shift):
    looks, members = planted(shift, 17)
    lots = np.random.default_rng(2).random(members.shape) < 0.5
    found = score(looks[0], looks[1:], lots[1:])
    for scores in (found.by_record, found.by_difficulty):
        assert abs(area(scores, lots[0]) - 0.5) < 0.03  # three deviations


def test_few_shadows_are_refused():
    looks, members = planted(0.7, 4)
    with pytest.raises(ConfigError, match="4 or more"):
        score(looks[0], looks[1:], members[1:])


def test_the_confidence_stays_finite():
    probabilities = np.array([[1.0, 0.0], [0.25, 0.75]], np.float32)
    found = confidence(probabilities, np.array([1, 1]))
    assert found[0] == pytest.approx(np.log(1e-7))
    assert found[1] == pytest.approx(np.log(3.0))


@pytest.mark.parametrize("text", ["none", "none:20", "record/local/8", "record/distributed/1"])
def test_a_defence_is_what_it_says(text):
    assert Defence.from_text(text).text == text


@pytest.mark.parametrize("text", ["", "record", "record/local", "record/local/much", "none:x"])
def test_what_is_no_defence_is_refused(text):
    with pytest.raises(ConfigError, match="write none"):
        Defence.from_text(text)


def people(count=3, rows=80):
    """Rows without any pattern: what a network knows of them it has learnt by heart."""
    generator = np.random.default_rng(3)
    return tuple(
        Records(
            f"p{place}",
            generator.uniform(-1, 1, (rows, 265)).astype(np.float32),
            generator.integers(0, 6, rows),
        )
        for place in range(count)
    )


@pytest.fixture(scope="module")
def bench():
    devices = people()
    artefact = find_artefact("har_mlp", (265,), tuple("abcdef"))
    settings = MembershipSettings(rows=80, rounds=4, studies=9)
    return Bench(devices, artefact, TrainableModel(artefact), settings)


@pytest.fixture(scope="module")
def overfitted(bench):
    defence = Defence(passes=30)
    return look(bench, bench.plan(defence), defence, lambda _line: None)


def areas(looked, view):
    return {
        name: np.mean([area(*each) for each in zip(scores, looked.members, strict=True)])
        for name, scores in attack_looks(looked, view).items()
    }


@pytest.mark.parametrize("view", VIEWS)
def test_an_overfitted_network_gives_its_members_away(overfitted, view):
    found = areas(overfitted, view)
    assert all(value > 0.7 for value in found.values()), found


def test_half_of_every_persons_records_are_members(overfitted, bench):
    by_person = overfitted.members.reshape(9, 3, 80).sum(axis=2)
    assert (by_person == 40).all()
    assert looks_of(overfitted, "updates").shape == (9, 8, 240)
    # The lots of two studies are as good as independent.
    assert abs(np.mean(overfitted.members[0] == overfitted.members[1]) - 0.5) < 0.15
    assert len(bench.owners) == 240


@pytest.mark.parametrize("view", VIEWS)
def test_with_shuffled_labels_nothing_is_found(overfitted, view):
    lots = np.random.default_rng(4).random(overfitted.members.shape) < 0.5
    shuffled = Looked(lots, overfitted.models, overfitted.clients, overfitted.final)
    # 240 records in nine studies: a deviation of 0.0125 of their mean.
    assert all(abs(value - 0.5) < 0.05 for value in areas(shuffled, view).values())


def test_noise_hides_members(bench):
    defence = Defence("record", "local", 1.0)
    looked = look(bench, bench.plan(defence), defence, lambda _line: None)
    for view in VIEWS:
        assert all(abs(value - 0.5) < 0.1 for value in areas(looked, view).values())
