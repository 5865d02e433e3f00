"""Whose word counts for what: each rule of SPEC 9 refuses what only it can refuse."""

import dataclasses

import pytest
from federation_fixture import SOME_PRIVACY, START_MS, Parties, seed, small_federation
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.errors import ConfigError, RecordError, SignatureError, VitalRingError
from vitalring.protocol import limits, trust
from vitalring.protocol.cbor import digest
from vitalring.protocol.records import (
    GlobalModel,
    Hospital,
    Receipts,
    RoundPlan,
    RoundReport,
)
from vitalring.protocol.signing import public_key, sign

AUTHORITY = seed("authority")
HOSPITALS = ("north", "south", "west")


def identity(name):
    return seed(f"identity of {name}")


def aggregator(name):
    return seed(f"aggregator of {name}")


def log_seed(name):
    return seed(f"log of {name}")


@pytest.fixture(scope="module")
def small():
    return small_federation(privacy=SOME_PRIVACY)


@pytest.fixture(scope="module")
def federation(small):
    """Three hospitals, of whose aggregators two must agree."""
    hospitals = tuple(
        Hospital(
            name,
            public_key(identity(name)),
            public_key(log_seed(name)),
            seed(f"sealing of {name}"),
            public_key(aggregator(name)),
        )
        for name in HOSPITALS
    )
    return dataclasses.replace(small.study.federation, hospitals=hospitals)


@pytest.fixture(scope="module")
def records(small):
    """The study's records, unsigned."""
    study = small.study
    return dataclasses.replace(study.plan, quorum=2), study.roster, study.sum_key


@pytest.fixture(scope="module")
def study(federation, records):
    plan, roster, key = records
    identities = [identity(name) for name in HOSPITALS]
    return trust.open_study(
        federation, sign(plan, [AUTHORITY]), sign(roster, identities), sign(key, identities)
    )


def quorum(record, names=("north", "south")):
    return sign(record, [aggregator(name) for name in names])


def everyone(record, names=HOSPITALS):
    return sign(record, [identity(name) for name in names])


def refuses(match, function, *args):
    with pytest.raises((RecordError, SignatureError, ConfigError), match=match):
        function(*args)


# 9.1


def test_the_authority_alone_names_the_hospitals(federation):
    pinned = public_key(AUTHORITY)
    data = sign(federation, [AUTHORITY])
    assert trust.open_federation(data, pinned) == federation
    refuses("unknown key", trust.open_federation, sign(federation, [seed("a thief")]), pinned)
    refuses("unknown key", trust.open_federation, everyone(federation), pinned)
    refuses("unknown key", trust.open_federation, data, public_key(seed("another authority")))


def test_a_federation_names_the_authority_that_signed_it(federation):
    other = dataclasses.replace(federation, authority_key=public_key(seed("other")))
    refuses(
        "another authority", trust.open_federation, sign(other, [AUTHORITY]), public_key(AUTHORITY)
    )


def test_a_hospital_counts_once(federation):
    twice = dataclasses.replace(federation, hospitals=(federation.hospitals[0],) * 2)
    refuses(
        "lists a hospital twice",
        trust.open_federation,
        sign(twice, [AUTHORITY]),
        public_key(AUTHORITY),
    )


# 9.2


def test_the_authority_alone_signs_a_study(federation, records):
    plan = records[0]
    assert trust.open_study_plan(sign(plan, [AUTHORITY]), federation) == plan
    for other in (quorum(plan, HOSPITALS), everyone(plan), sign(plan, [seed("a thief")])):
        refuses("unknown key", trust.open_study_plan, other, federation)


def changed(record, **changes):
    return dataclasses.replace(record, **changes)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda p: {"federation": "other"}, "belongs to federation other"),
        (lambda p: {"quorum": 4}, "asks for 4 aggregators, the federation has 3"),
        (lambda p: {"min_cohort": p.codec.n_max + 1}, "its codec carries 8"),
        (lambda p: {"privacy": changed(p.privacy, delta=0.0)}, r"privacy\.delta"),
        (lambda p: {"privacy": changed(p.privacy, unit="device")}, r"codec\.noise_width is 0"),
        (lambda p: {"privacy": changed(p.privacy, noise="distributed")}, r"use training\.steps 1"),
        (lambda p: {"privacy": changed(p.privacy, unit="none", noise="none")}, "must be 0"),
        (lambda p: {"codec": changed(p.codec, bits=21)}, r"codec\.bits is 21"),
        (lambda p: {"codec": changed(p.codec, n_max=0)}, r"codec\.n_max is 0"),
        (lambda p: {"model": changed(p.model, features=b"x")}, "names features by 1 bytes"),
        (lambda p: {"task": "statistics"}, "asks for statistics: that takes one round"),
        (lambda p: {"groups": 2, "combine": "median"}, "2 groups: that takes the nonces"),
        (lambda p: {"combine": "median"}, "one group goes with mean"),
        (
            lambda p: {"training": changed(p.training, balance="oversample")},
            "balance is oversample with privacy.unit record",
        ),
        (
            lambda p: {"training": changed(p.training, class_weights=(0.5,))},
            "1 class weights for 2 classes",
        ),
        (
            lambda p: {"training": changed(p.training, class_weights=(0.5, 1.5))},
            r"class_weights\[1\] is 1.5",
        ),
    ],
)
def test_a_study_plan_that_cannot_be_kept_is_refused(federation, records, change, match):
    data = sign(dataclasses.replace(records[0], **change(records[0])), [AUTHORITY])
    refuses(match, trust.open_study_plan, data, federation)


# 9.3 and 9.4


@pytest.mark.parametrize("which", [1, 2])
def test_every_hospital_signs_roster_and_key(federation, records, which):
    def opened(data):
        if which == 1:
            return trust.open_roster(data, federation)
        return trust.open_sum_key(data, federation, records[0])

    record = records[which]
    assert opened(everyone(record)) == record
    refuses("has 2 signatures, needs 3", opened, everyone(record, HOSPITALS[:2]))
    refuses("unknown key", opened, sign(record, [AUTHORITY]))
    refuses("unknown key", opened, quorum(record, HOSPITALS))
    refuses("belongs to federation", opened, everyone(changed(record, federation="other")))


def test_roster_keys_are_sorted_without_repeats(federation, records):
    roster = records[1]
    for keys in (roster.keys[::-1], (roster.keys[0], *roster.keys)):
        data = everyone(changed(roster, keys=keys))
        refuses("not sorted without repeats", trust.open_roster, data, federation)


def test_a_sum_key_serves_one_study_and_one_mode(federation, records):
    plan, _, key = records
    for change in ({"study": "other"}, {"secure_sum": "single-he"}):
        refuses(
            "the sum key is for",
            trust.open_sum_key,
            everyone(changed(key, **change)),
            federation,
            plan,
        )


def test_no_ring_of_a_roster_is_smaller_than_its_study_allows(federation, records):
    plan, roster, key = records
    large = sign(changed(plan, min_ring=4), [AUTHORITY])
    refuses(
        "cuts rings of 3 keys", trust.open_study, federation, large, everyone(roster), everyone(key)
    )
    larger = everyone(changed(roster, ring_size=6))
    assert trust.open_study(federation, large, larger, everyone(key)).plan.min_ring == 4


def test_the_suite_bounds_the_rings(federation, records, monkeypatch):
    plan, roster, key = records
    monkeypatch.setattr(limits, "MAX_RING", 5)
    large = everyone(changed(roster, ring_size=6))
    refuses(
        "have 5 at most",
        trust.open_study,
        federation,
        sign(plan, [AUTHORITY]),
        large,
        everyone(key),
    )
    asked = sign(changed(plan, min_ring=6), [AUTHORITY])
    refuses("asks for rings of 6 keys", trust.open_study_plan, asked, federation)
    two = sign(changed(plan, min_ring=6, ring_suite=2), [AUTHORITY])
    opened = trust.open_study(federation, two, large, everyone(key))
    assert [len(ring.keys) for ring in opened.rings] == [6]
    assert opened.rings is opened.rings  # made once


# 9.5


@pytest.fixture(scope="module")
def round_plan(study):
    plan = study.plan
    return RoundPlan(
        federation="fed",
        study=plan.study,
        study_plan=study.plan_digest,
        cohort=study.roster.cohort,
        epoch=study.roster.epoch,
        round=1,
        weights=bytes(32),
        training=plan.training,
        privacy=plan.privacy,
        codec=plan.codec,
        sum_key=study.sum_key_digest,
        roster=study.roster_digest,
        min_cohort=plan.min_cohort,
        opens_ms=START_MS,
        window_ms=10,
        deadline_ms=START_MS + 10,
    )


def test_a_quorum_of_aggregators_signs_a_round(study, round_plan):
    for names in (("north", "south"), ("south", "west"), HOSPITALS):
        assert trust.open_round_plan(quorum(round_plan, names), study) == round_plan
    refuses("needs 2", trust.open_round_plan, quorum(round_plan, ("north",)), study)
    refuses("unknown key", trust.open_round_plan, everyone(round_plan), study)
    refuses("unknown key", trust.open_round_plan, sign(round_plan, [AUTHORITY]), study)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda p: {"federation": "other"}, "belongs to federation other"),
        (lambda p: {"study": "other"}, "another study than"),
        (lambda p: {"study_plan": bytes(32)}, "another study_plan"),
        (lambda p: {"cohort": "other"}, "another cohort"),
        (lambda p: {"epoch": 2}, "another epoch"),
        (lambda p: {"training": changed(p.training, steps=11)}, "another training"),
        (lambda p: {"privacy": changed(p.privacy, noise_multiplier=0.1)}, "another privacy"),
        (lambda p: {"privacy": changed(p.privacy, epsilon=9.0)}, "another privacy"),
        (lambda p: {"codec": changed(p.codec, bits=4)}, "another codec"),
        (lambda p: {"sum_key": bytes(32)}, "another sum_key"),
        (lambda p: {"roster": bytes(32)}, "another roster"),
        (lambda p: {"min_cohort": p.min_cohort - 1}, "allows none below 4"),
        (lambda p: {"round": 41}, "beyond the 40 rounds"),
        (lambda p: {"window_ms": 11}, "deadline before its window ends"),
    ],
)
def test_a_round_keeps_to_its_study(study, round_plan, change, match):
    data = quorum(dataclasses.replace(round_plan, **change(round_plan)))
    refuses(match, trust.open_round_plan, data, study)


def test_a_round_may_ask_for_larger_sums(study, round_plan):
    larger = changed(round_plan, min_cohort=6)
    assert trust.open_round_plan(quorum(larger), study) == larger


def test_peeking_asks_for_one_aggregator_of_the_federation(federation, round_plan):
    assert trust.peek_round_plan(quorum(round_plan, ("west",)), federation) == round_plan
    refuses("unknown key", trust.peek_round_plan, everyone(round_plan), federation)
    other = quorum(changed(round_plan, federation="other"))
    refuses("belongs to federation", trust.peek_round_plan, other, federation)


# 9.6 and 9.7


def test_a_gateway_signs_receipts_with_its_log_key(federation):
    receipts = Receipts(bytes(32), (b"a" * 32, b"b" * 32))
    assert trust.open_receipts(sign(receipts, [log_seed("south")]), federation) == receipts
    for data in (sign(receipts, [AUTHORITY]), quorum(receipts), everyone(receipts)):
        refuses("unknown key", trust.open_receipts, data, federation)


@pytest.mark.parametrize("digests", [(b"b" * 32, b"a" * 32), (b"a" * 32, b"a" * 32)])
def test_receipts_are_sorted_without_repeats(federation, digests):
    data = sign(Receipts(bytes(32), digests), [log_seed("south")])
    refuses("not sorted without repeats", trust.open_receipts, data, federation)


def test_a_gateway_signs_reports_with_its_log_key(federation):
    report = RoundReport(bytes(32), 1, "below_min_cohort", 6, 0, {}, b"", START_MS, START_MS, 0)
    assert trust.open_report(sign(report, [log_seed("west")]), federation) == report
    for data in (sign(report, [AUTHORITY]), quorum(report), everyone(report)):
        refuses("unknown key", trust.open_report, data, federation)


# 9.8


def test_a_quorum_of_aggregators_signs_a_model(federation, study):
    model = GlobalModel("fed", "study", 1, bytes(32), bytes(32), bytes(32), 4, True, False, None)
    plan = study.plan
    assert trust.open_model(quorum(model), federation, plan) == model
    refuses("needs 2", trust.open_model, quorum(model, ("west",)), federation, plan)
    for data in (sign(model, [AUTHORITY]), everyone(model), sign(model, [log_seed("north")])):
        refuses("unknown key", trust.open_model, data, federation, plan)
    refuses(
        "of study other", trust.open_model, quorum(changed(model, study="other")), federation, plan
    )
    other = quorum(changed(model, federation="other"))
    refuses("belongs to federation", trust.open_model, other, federation, plan)


def test_a_model_says_of_its_round_what_the_report_says(round_plan):
    plan = changed(round_plan, weights=b"w" * 32)
    name = bytes(32)
    report = RoundReport(name, 1, "summed", 6, 5, {}, b"s" * 32, START_MS, START_MS, 0)
    model = GlobalModel("fed", "study", 1, name, bytes(32), b"n" * 32, 5, True, False, None)
    kept = changed(model, applied=False, contributions=0, weights=plan.weights)
    without = changed(report, status="below_min_cohort", sum=b"")
    # A sum that nobody could decode is not applied, and counts nobody.
    for good, said in ((model, report), (kept, report), (kept, without)):
        trust.check_model_follows(good, plan, said)
    check = trust.check_model_follows
    refuses("from another round", check, changed(model, round=2), plan, report)
    refuses("from another round", check, changed(model, plan=b"p" * 32), plan, report)
    refuses("a sum that there was not", check, model, plan, without)
    refuses("counts 4 updates, not 5", check, changed(model, contributions=4), plan, report)
    refuses("counts 5 updates, not 0", check, changed(kept, contributions=5), plan, report)
    refuses("the weights changed", check, changed(kept, weights=b"n" * 32), plan, report)


# 9.10


def test_a_studys_objects_are_those_that_its_records_name(small):
    names = dict(zip(trust.STUDY_FILES, small.files.records.values(), strict=True))
    everything = {**names, **small.files.objects}
    opened = trust.open_study_files(everything.__getitem__, small.authority_key)
    assert opened == small.files
    for name in small.files.objects:
        swapped = {**everything, name: b"other bytes"}
        refuses(
            f"{name} is not the object",
            trust.open_study_files,
            swapped.__getitem__,
            small.authority_key,
        )


def test_an_encrypted_study_needs_the_key_that_its_record_names(small):
    encrypted = small_federation(secure_sum="single-he", devices=4)
    names = dict(zip(trust.STUDY_FILES, encrypted.files.records.values(), strict=True))
    everything = {**names, **encrypted.files.objects}
    assert digest(everything[trust.KEY_FILE]) == encrypted.study.sum_key.key
    swapped = {**everything, trust.KEY_FILE: b"another key"}
    refuses(
        "sum-key.bin is not the object",
        trust.open_study_files,
        swapped.__getitem__,
        encrypted.authority_key,
    )


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_changed_record_is_never_returned(small, data):
    records = dict(zip(trust.STUDY_FILES, small.files.records.values(), strict=True))
    name = data.draw(st.sampled_from(trust.STUDY_FILES))
    content = bytearray(records[name])
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    everything = {**records, **small.files.objects, name: bytes(content)}
    with pytest.raises(VitalRingError):
        trust.open_study_files(everything.__getitem__, small.authority_key)


def test_the_parties_of_the_tests_follow_these_rules(small, tmp_path):
    parties = Parties(small, tmp_path)
    signed = parties.propose().record
    assert trust.open_round_plan(signed, small.study).round == 1
    parties.close_databases()
