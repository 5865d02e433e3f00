"""The arithmetic of attacks on cases of known success, and planted leaks that it must find."""

import numpy as np
import pytest

from vitalring.errors import ConfigError
from vitalring.models.artefact import load_artefact
from vitalring.models.dataset import Records
from vitalring.tools.attack import arithmetic, least_loss, source_inference
from vitalring.tools.attack.gateway_attack import (
    Lot,
    against_chance,
    attack_updates,
    by_all,
    by_strongest,
    byte_features,
    classify,
    follow,
    left_behind,
    lot_of,
)
from vitalring.tools.attack.gateway_state import Copy, Held, Slot
from vitalring.tools.attack.least_loss import Targets, Watched
from vitalring.tools.attack.pool import deal
from vitalring.tools.measuring import intervals
from vitalring.tools.plans import plan_of
from vitalring.tools.settings import StudySettings

N = 6


def test_the_least_loss_wins_and_ties_tell_nothing():
    generator = np.random.default_rng(0)
    losses = np.array([[0.1, 2.0, 0.3], [0.2, 1.0, 0.1]])
    assert arithmetic.least_loss(losses, generator).tolist() == [0, 1, 1]
    same = np.ones((4, 4000))
    guesses = arithmetic.least_loss(same, generator)
    # Each is drawn 1000 times in the mean, with a deviation of 27.
    assert np.abs(np.bincount(guesses, minlength=4) - 1000).max() < 150


def test_losses_are_cross_entropies_and_stay_finite():
    probabilities = np.array([[0.25, 0.75], [1.0, 0.0]], dtype=np.float32)
    found = arithmetic.losses_of(probabilities, np.array([0, 1]))
    assert found[0] == pytest.approx(np.log(4.0))
    assert found[1] == pytest.approx(-np.log(1e-7))


def test_baselines_count_devices_and_classes():
    truth = np.array([0, 0, 0, 1, 1, 2])
    assert arithmetic.baselines(truth, 3) == (pytest.approx(1 / 3), 0.5)
    # Class 0: two of device 0, one of 1. Class 1: one each; one of them is right.
    labels = np.array([0, 0, 1, 0, 1, 1])
    assert arithmetic.by_label(truth, labels, 3) == pytest.approx(3 / 6)
    # Where each device has a class of its own, classes name all devices.
    assert arithmetic.by_label(truth, truth, 3) == 1.0


def test_the_interval_is_students():
    found = intervals.interval([0.2, 0.4, 0.6, 0.8])
    # Mean 0.5, deviation 0.2582, t(0.975, 3) = 3.18245.
    half = 3.18245 * 0.258199 / 2
    assert found.mean == pytest.approx(0.5)
    assert found.low == pytest.approx(0.5 - half, abs=1e-5)
    assert found.high == pytest.approx(0.5 + half, abs=1e-5)
    assert intervals.interval([0.3]) == intervals.Interval(0.3, None, None)
    with pytest.raises(ConfigError, match="seeds"):
        intervals.interval([])


def test_the_interval_covers_as_often_as_it_says():
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(1000):
        found = intervals.interval(generator.normal(0.3, 0.1, 5).tolist())
        hits += found.low <= 0.3 <= found.high
    # 950 in the mean, with a deviation of 7.
    assert 920 <= hits <= 980


def test_matching_does_not_care_about_good_models():
    cost = np.array([[1.0, 2.0, 3.0], [2.0, 1.0, 3.0], [9.0, 9.0, 8.5]])
    assert arithmetic.match(cost).tolist() == [0, 1, 2]
    # A slot whose model is better at everything still gets one device only.
    assert arithmetic.match(cost - np.array([[0.0], [50.0], [0.0]])).tolist() == [0, 1, 2]


def test_more_slots_than_known_devices_are_all_named():
    cost = np.array([[0.0, 9.0], [9.0, 0.0], [2.0, 1.0]])
    assert arithmetic.match(cost).tolist() == [0, 1, 1]


def test_updates_are_linked_by_their_own_direction():
    generator = np.random.default_rng(2)
    common, own = 20 * generator.normal(size=40), generator.normal(size=(N, 40))
    order = generator.permutation(N)
    before = common + own + 0.1 * generator.normal(size=(N, 40))
    after = (0.5 * common + 2 * own + 0.1 * generator.normal(size=(N, 40)))[order]
    assert arithmetic.link_directions(before, after).tolist() == order.tolist()


def constructed(share: float, rounds: int = 3, records: int = 300) -> tuple[list[Watched], Targets]:
    """Rounds in which exactly `share` of each device's records have the least loss at home."""
    generator = np.random.default_rng(3)
    truth = np.repeat(np.arange(N), records)
    place = np.tile(np.arange(records), N)
    known = np.repeat(np.arange(N), 5)
    owners = np.concatenate([truth, known])
    labels = generator.integers(0, 2, len(owners))
    best = np.where(place < share * records, truth, (truth + 1) % N)
    best = np.concatenate([best, known])  # what is known is attributed rightly
    by_device = np.ones((N, len(owners)))
    by_device[best, np.arange(len(owners))] = 0.0
    x = generator.normal(size=(len(owners), 3)).astype(np.float32)
    own = generator.normal(size=(N, 20))
    watched = []
    for _ in range(rounds):
        senders = generator.permutation(N)
        after = np.tile(np.log(0.5), (len(owners), 2))
        watched.append(Watched(senders, by_device[senders], own[senders], after))
    order = np.tile(np.arange(5), N)
    return watched, Targets(Records("t", x, labels), owners, len(truth), order)


@pytest.mark.parametrize("share", [0.4, 1.0])
def test_each_attacker_gets_what_its_knowledge_gives(share):
    watched, targets = constructed(share)
    figures = least_loss.infer(watched, targets, np.random.default_rng(4))
    for name in ("named/device", "named/device, all rounds", "anonymous/slot"):
        assert figures[name] == pytest.approx(share), name
    assert figures["anonymous/slot, all rounds"] == pytest.approx(share)
    assert figures["anonymous/next round"] == 1.0
    for k in (1, 5):
        assert figures[f"known {k}/slot's device"] == 1.0
        assert figures[f"known {k}/slot's device, chained"] == 1.0
        assert figures[f"known {k}/device"] == pytest.approx(share)
        assert figures[f"known {k}/device, chained"] == pytest.approx(share)
    # The sum is everybody's: at random over 1,800 records, with a deviation of 0.009.
    assert figures["sum/device"] == pytest.approx(1 / N, abs=0.045)
    assert figures["random device"] == figures["largest device"] == pytest.approx(1 / N)


def test_who_does_not_know_the_senders_names_devices_by_chance():
    watched, targets = constructed(1.0)
    found = [
        least_loss.infer(watched, targets, np.random.default_rng([5, seed])) for seed in range(60)
    ]
    # A random permutation fits at one place of N in the mean; the mean of 60 deviates by 0.022,
    # over three rounds by 0.012.
    one = np.mean([each["anonymous/device"] for each in found])
    over_all = np.mean([each["anonymous/device, all rounds"] for each in found])
    assert one == pytest.approx(1 / N, abs=0.06)
    assert over_all == pytest.approx(1 / N, abs=0.11)


def test_targets_are_known_or_asked_and_never_both():
    devices = deal(
        [Records("p", np.arange(80.0, dtype=np.float32).reshape(40, 2), np.zeros(40, np.int64))],
        None,
        4,
        10,
        np.random.default_rng(0),
    )
    targets = least_loss.draw_targets(devices, 3, np.random.default_rng(6))
    rows = targets.records.x[:, 0].tolist()
    assert len(set(rows)) == len(rows) == 4 * (3 + 5)
    assert targets.asked == 12
    for row, owner in zip(rows, targets.owners, strict=True):
        assert row in devices[owner].x[:, 0]
    assert len(targets.known(1)) == 4
    assert sorted(targets.owners[targets.known(1)]) == [0, 1, 2, 3]


def noise_lots(rounds: int = 6, features: int = 600) -> list[Lot]:
    generator = np.random.default_rng(7)
    return [
        Lot(generator.normal(size=(N, features)), generator.permutation(N)) for _ in range(rounds)
    ]


def test_one_number_that_follows_its_device_is_found_among_hundreds():
    lots = noise_lots()
    for lot in lots:
        lot.features[:, 333] = 1000 + lot.senders  # such as a size in bytes
    assert np.mean(classify(lots, by_strongest)) == 1.0


def test_many_weak_differences_are_found_together():
    lots, habits = noise_lots(), np.random.default_rng(8).normal(size=(N, 600))
    for lot in lots:
        lot.features[:] += 0.5 * habits[lot.senders]
    assert np.mean(classify(lots, by_all)) == 1.0
    assert np.mean(follow(lots)) > 0.9


def test_noise_is_not_taken_for_a_leak():
    lots = noise_lots(rounds=40, features=60)
    # 240 slots, 1/6 of them by chance, with a deviation of about 0.025.
    for found in (classify(lots, by_strongest), classify(lots, by_all), follow(lots)):
        assert np.mean(found) == pytest.approx(1 / N, abs=0.12)


def test_updates_in_clear_are_no_riddle():
    generator = np.random.default_rng(9)
    own = generator.normal(size=(N, 50))
    rounds = [own + 0.2 * generator.normal(size=(N, 50)) for _ in range(5)]
    found = attack_updates(rounds)
    assert np.mean(found["all features"]) == np.mean(found["next round"]) == 1.0
    assert np.mean(found["strongest features"]) > 0.9


def test_a_leak_is_no_chance_and_chance_is_none():
    lots = noise_lots(rounds=3, features=8)
    for lot in lots:
        lot.features[:, 3] = lot.senders
    # No deal of the senders at random does as well.
    assert against_chance(lots)["strongest features"]["chance"] == 0.01
    chances = []
    for seed in range(12):
        generator = np.random.default_rng([10, seed])
        lots = [Lot(generator.normal(size=(N, 8)), generator.permutation(N)) for _ in range(3)]
        chances.append(against_chance(lots)["all features"]["chance"])
    # Uniform at least where nothing is to be found: 12 of them deviate by 0.083 from 0.5.
    assert 0.2 < np.mean(chances) < 0.85


def slot(number: int) -> Slot:
    return Slot(bytes([number]) * 32, bytes([number + 100]) * 32, 0, bytes(200), None)


def test_a_round_that_lacks_its_last_update_is_linked_all_the_same():
    lots = noise_lots(rounds=2)
    lots[0].features[np.arange(N), 0] = lots[1].features[np.arange(N), 0] = 0
    whole = Lot(lots[0].features, np.arange(N))
    part = Lot(whole.features[1:].copy(), np.arange(1, N))
    assert follow([whole, part]) == follow([part, whole]) == [1.0]


def test_the_place_in_the_file_is_a_feature():
    slots = tuple(slot(number) for number in (3, 1, 2))
    content = b"".join(bytes([number]) * 40 for number in (1, 2, 3))
    copy = Copy({"gateway.sqlite": content}, slots, b"")
    features = lot_of(copy, np.arange(3)).features
    assert features[:, 0].tolist() == [80.0, 0.0, 40.0]
    assert features[:, -4].tolist() == [2.0, 0.0, 1.0]  # the rank of it


def test_bytes_become_length_histogram_and_parts():
    features = byte_features(bytes([0, 255]) * 64)
    assert features[0] == 128
    assert features[1] == features[256] == 0.5
    assert features[257:].tolist() == [127.5] * 64


def test_a_ciphertext_that_was_only_unlinked_is_found(monkeypatch):
    ciphertexts = bytes(range(256))
    monkeypatch.setattr(
        "vitalring.tools.attack.gateway_attack.ciphertexts_of", lambda _slot: ciphertexts
    )
    closed = Copy({}, (slot(1),), b"")
    for content, found in ((b"page" + ciphertexts, 1), (bytes(600), 0)):
        done = Copy({"gateway.sqlite": content}, (slot(1),), b"")
        held = Held(1, b"", b"", {"closed": closed, "done": done}, {}, {})
        assert left_behind([held]) == (found, 1)
        # A gateway that had not yet emptied its log when it was looked at has by the next round.
        after = Held(2, b"", b"", {"open": Copy({}, (), b"")}, {}, {})
        assert left_behind([held, after]) == (0, 1)


def test_bytes_read_as_an_update_are_of_the_rounds_clip():
    """Where a clip follows a quantile, a count comes first and the plan's factor divided it all."""
    study = StudySettings(unit="device", clip_quantile=0.5, rounds=2, epsilon=8.0)
    plan = plan_of(study, load_artefact("ecg_bank"), 10, 100)
    start = np.zeros(plan.model.dimension, np.float32)
    content = np.random.default_rng(0).bytes(2 * plan.vector_size + 2)
    one, two = (
        source_inference._as_model(start, content, plan, Held(2, b"p", b"", {}, {}, {}, factor))
        for factor in (1.0, 2.0)
    )
    assert one.any()
    assert np.array_equal(two, 2.0 * one)
