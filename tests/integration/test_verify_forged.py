"""Faults that only the gateway's own log key can make: the checkpoint is sound, the log is not."""

import re
from dataclasses import replace

import pytest
from federation_fixture import SOME_PRIVACY
from verify_fixture import Forger, Honest, build, fault

from vitalring.errors import RecordError
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.protocol.records import AcceptedUpdate, GlobalModel, Receipts, RoundPlan
from vitalring.protocol.signing import Signed, sign, sign_payload
from vitalring.protocol.update import update_digest
from vitalring.protocol.weights import pack_weights


def test_a_round_plan_signed_by_another_key(forger, tmp_path):
    plan = forger.record(RoundPlan, "round-plan", 3)
    path = forger.replace_signed("round-plan", sign(plan, [forger.federation.log_key.seed]), 3)
    assert re.match(f"{path}: .*unknown key", fault(forger.write(tmp_path / "log")))


@pytest.mark.parametrize("kind", ["federation", "study-plan", "roster", "sum-key"])
def test_a_study_record_signed_by_another_key(forger, tmp_path, kind):
    payload = decode(Signed, forger.signed(kind)).payload
    path = forger.replace_signed(kind, sign_payload(payload, [forger.federation.log_key.seed]))
    message = fault(forger.write(tmp_path / "log"))
    assert "key" in message
    assert message.startswith("authority" if kind == "federation" else path)


def test_a_model_signed_by_another_key(forger, tmp_path):
    path = forger.resign_model(3, key=forger.federation.log_key.seed)
    assert re.match(f"{path}: .*unknown key", fault(forger.write(tmp_path / "log")))


def test_a_signer_counted_twice(forger, tmp_path):
    """Device 0 signs a second update, and the gateway makes everything else fit."""
    federation = forger.federation
    update = federation.update(forger.signed("round-plan", 3), 0, rng_seed=77)
    entry = encode(
        AcceptedUpdate(
            update.plan,
            update.ring,
            update_digest(update.plan, update.ring, update.ciphertexts),
            update.signature,
        )
    )
    first = forger.position("round-plan", 3) + 1
    end = forger.position("round-report", 3)
    forger.entries[first:end] = sorted(
        [*forger.entries[first:end], entry], key=lambda e: decode(AcceptedUpdate, e).digest
    )
    forger.resign_report(3, admitted=6)
    forger.resign_model(3, contributions=6)
    forger.resign_receipts(3)
    assert "a second time" in fault(forger.write(tmp_path / "log"))


def test_an_update_that_nobody_signed(forger, tmp_path):
    position = forger.position("accepted-update", 2)
    update = decode(AcceptedUpdate, forger.entries[position])
    forged = replace(update, digest=update.digest[:-1] + bytes([update.digest[-1] ^ 1]))
    forger.entries[position] = encode(forged)
    forger.resign_receipts(1)
    message = fault(forger.write(tmp_path / "log"))
    assert re.match(f"tile/entries.*entry {position} is not signed by its ring", message)


def test_an_update_of_a_ring_that_is_not_there(forger, tmp_path):
    position = forger.position("accepted-update", 2)
    update = replace(decode(AcceptedUpdate, forger.entries[position]), ring=2)
    forger.entries[position] = encode(update)
    message = fault(forger.write(tmp_path / "log"))
    assert re.match(f"tile/entries.*entry {position} names ring 2", message)


def test_more_updates_than_a_sum_can_hold(tmp_path):
    """One more than `n_max`: fields of the sum may have overflowed into one another."""
    federation, _ = build(tmp_path, rounds=[range(4)], n_max=4)
    forger = Forger(Honest(federation, tmp_path / "log"))
    update = federation.update(forger.signed("round-plan"), 4)
    name = update_digest(update.plan, update.ring, update.ciphertexts)
    entry = encode(AcceptedUpdate(update.plan, update.ring, name, update.signature))
    first, end = forger.position("round-plan") + 1, forger.position("round-report")
    forger.entries[first:end] = sorted(
        [*forger.entries[first:end], entry], key=lambda e: decode(AcceptedUpdate, e).digest
    )
    forger.resign_report(1, admitted=5)
    forger.resign_model(1, contributions=5)
    forger.resign_receipts(1)
    assert "whose sum holds 4" in fault(forger.write(tmp_path / "forged"))


def test_receipts_of_another_round(forger, tmp_path):
    receipts = decode(Receipts, decode(Signed, forger.receipts[1]).payload)
    other = replace(receipts, plan=b"\x01" * 32)
    forger.receipts[1] = sign(other, [forger.federation.log_key.seed])
    assert fault(forger.write(tmp_path / "log")).startswith("receipts/1: its plan")


def test_an_artefact_that_describes_another_network(tmp_path):
    build(tmp_path, rounds=(), described_dimension=9)
    assert re.match("objects/.*another network", fault(tmp_path / "log"))


@pytest.mark.parametrize("size", [0, 1, 3])
def test_a_log_without_all_study_records(forger, tmp_path, size):
    del forger.entries[size:]
    assert fault(forger.write(tmp_path / "log")).startswith("checkpoint: the log ends before")


def test_a_record_of_the_study_among_the_rounds(forger, tmp_path):
    forger.entries.append(forger.entries[forger.position("sum-key")])
    message = fault(forger.write(tmp_path / "log"))
    assert re.match("tile/entries.*entry 27 is a sum-key, must be a round-plan", message)


def test_study_records_out_of_order(forger, tmp_path):
    swap(forger.entries, 1, 2)
    assert re.match("tile/entries.*entry 1 is a roster", fault(forger.write(tmp_path / "log")))


def test_an_update_of_another_round(forger, tmp_path):
    """An entry of round 1 once more in round 3."""
    entry = forger.entries[forger.position("accepted-update", 1)]
    forger.entries.insert(forger.position("round-plan", 3) + 1, entry)
    assert "another plan" in fault(forger.write(tmp_path / "log"))


def test_a_dropped_update(forger, tmp_path):
    del forger.entries[forger.position("accepted-update", 2)]
    assert "admitted" in fault(forger.write(tmp_path / "log"))
    forger.resign_report(1, admitted=5)
    forger.resign_model(1, contributions=5)
    # The receipts that devices were given still tell.
    assert fault(forger.write(tmp_path / "log2")).startswith("receipts/1: ")


@pytest.mark.parametrize(
    "changes",
    [
        {"admitted": 5},
        {"admitted": 7},
        {"status": "below_min_cohort", "sum": b""},
        {"sum": b""},
        {"status": "below_min_cohort"},
        {"expected": 5},
        {"expected": 7},
        {"round": 2},
        {"plan": b"\x01" * 32},
    ],
    ids=repr,
)
def test_a_wrong_report(forger, tmp_path, changes):
    path = forger.resign_report(1, **changes)
    assert fault(forger.write(tmp_path / "log")).startswith(f"{path}: ")


def test_a_sum_released_below_the_minimum(forger, tmp_path):
    path = forger.resign_report(2, status="summed", sum=b"\x01" * 32)
    assert fault(forger.write(tmp_path / "log")).startswith(f"{path}: ")


def swap(entries, one, other):
    entries[one], entries[other] = entries[other], entries[one]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("federation", 1), ("study-plan", 1)),
        (("roster", 1), ("sum-key", 1)),
        (("accepted-update", 1), ("accepted-update", 2)),
        (("round-plan", 1), ("accepted-update", 1)),
        (("round-report", 1), ("global-model", 1)),
        (("accepted-update", 6), ("round-report", 1)),
        (("round-plan", 1), ("round-plan", 3)),
        (("global-model", 1), ("global-model", 3)),
        (("round-report", 1), ("round-report", 3)),
        (("global-model", 1), ("round-plan", 2)),
    ],
)
def test_reordered_entries(forger, tmp_path, one, other):
    swap(forger.entries, forger.position(*one), forger.position(*other))
    assert re.match("tile/entries|objects/", fault(forger.write(tmp_path / "log")))


@pytest.mark.parametrize(
    "changes",
    [
        {"report": b"\x01" * 32},
        {"plan": b"\x01" * 32},
        {"round": 2},
        {"contributions": 4},
        {"applied": False},
        {"study": "other"},
        {"federation": "other"},
    ],
    ids=repr,
)
def test_a_model_that_does_not_follow_from_its_report(forger, tmp_path, changes):
    path = forger.resign_model(3, **changes)
    assert fault(forger.write(tmp_path / "log")).startswith(f"{path}: ")


def test_weights_that_change_without_a_sum(forger, tmp_path):
    last = forger.record(GlobalModel, "global-model", 3).weights
    path = forger.resign_model(2, weights=last)
    assert fault(forger.write(tmp_path / "log")).startswith(f"{path}: ")


def test_a_round_that_starts_from_other_weights(forger, tmp_path):
    """The aggregator signs that round 3 starts from what round 3 ended with."""
    last = forger.record(GlobalModel, "global-model", 3).weights
    plan = replace(forger.record(RoundPlan, "round-plan", 3), weights=last)
    path = forger.replace_signed("round-plan", sign(plan, [forger.federation.aggregator_seed]), 3)
    assert re.match(f"{path}: .*weights", fault(forger.write(tmp_path / "log")))


def test_a_first_round_that_starts_from_other_weights_than_the_seed_gives(forger, tmp_path):
    content = pack_weights(forger.federation.start() + 0.25)
    forger.objects[digest(content)] = content
    plan = replace(forger.record(RoundPlan, "round-plan", 1), weights=digest(content))
    path = forger.replace_signed("round-plan", sign(plan, [forger.federation.aggregator_seed]), 1)
    assert re.match(f"{path}: .*weights", fault(forger.write(tmp_path / "log")))


@pytest.mark.parametrize("content", [b"", b"\x00" * 36, b"\xff" * 32])
def test_weights_that_are_none(forger, tmp_path, content):
    forger.objects[digest(content)] = content
    forger.resign_model(3, weights=digest(content))
    message = fault(forger.write(tmp_path / "log"))
    assert message.startswith(f"objects/{digest(content).hex()}: weights")


def test_nothing_may_follow_a_final_model(forger, tmp_path):
    forger.resign_model(2, final=True)
    assert "final" in fault(forger.write(tmp_path / "log"))


def test_a_round_left_without_its_model(forger, tmp_path):
    del forger.entries[forger.position("global-model", 2)]
    assert "has no model" in fault(forger.write(tmp_path / "log"))


def test_an_unknown_kind_of_entry(forger, tmp_path):
    forger.entries.append(b"an entry of another kind")
    assert "entry 27 cannot be read" in fault(forger.write(tmp_path / "log"))


def test_a_second_round_of_one_number(forger, tmp_path):
    first = forger.position("round-plan", 1)
    forger.entries += forger.entries[first : forger.position("round-plan", 2)]
    assert re.search("round 1 where round 4 is next", fault(forger.write(tmp_path / "log")))


def test_a_privacy_claim_that_its_own_numbers_break(tmp_path):
    """The authority claims epsilon 0.1 with numbers that spend more."""
    privacy = replace(SOME_PRIVACY, epsilon=0.1)
    build(tmp_path, rounds=(), privacy=privacy)
    assert re.match("objects/.*claims epsilon 0.1", fault(tmp_path / "log"))


def test_rings_below_what_the_study_asks(tmp_path):
    with pytest.raises(RecordError, match="rings of 3 keys"):
        build(tmp_path, rounds=(), ring_size=3, min_ring=4)
