"""Which roster may follow on which (SPEC 9.14)."""

from dataclasses import replace

import pytest
from federation_fixture import seed, small_federation
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.errors import RecordError, SignatureError
from vitalring.protocol import lsag, rosters
from vitalring.protocol.cbor import digest
from vitalring.protocol.signing import sign


@pytest.fixture(scope="module")
def federation():
    return small_federation(hospitals=2)


@pytest.fixture(scope="module")
def study(federation):
    return federation.study


def key():
    return lsag.keygen().public


def signed(federation, roster, hospitals=None):
    seeds = [federation.identity_seed, seed("hospital south")]
    return sign(roster, seeds[:hospitals])


def revoked(roster, **changes):
    """The roster without its first key."""
    return replace(roster, **{"serial": roster.serial + 1, "keys": roster.keys[1:], **changes})


def new_epoch(roster, kept=()):
    keys = sorted([*kept, *(key() for _ in range(len(roster.keys) - len(kept)))])
    return replace(roster, serial=roster.serial + 1, epoch=roster.epoch + 1, keys=tuple(keys))


def test_a_revocation_leaves_everything_else_as_it_was(federation, study):
    record = signed(federation, revoked(study.roster))
    after = rosters.next_study(study, record)
    assert after.roster.keys == study.roster.keys[1:]
    assert after.roster_digest == digest(record)
    assert (after.plan, after.sum_key_digest) == (study.plan, study.sum_key_digest)
    assert sum((ring.keys for ring in after.rings), ()) == after.roster.keys
    # The study that was there goes on as it was: rounds of it are still checked.
    assert study.roster.keys[0] in study.rings[0].keys


def test_new_devices_and_a_new_epoch_follow(federation, study):
    joined = replace(study.roster, serial=1, keys=tuple(sorted([*study.roster.keys, key()])))
    after = rosters.next_study(study, signed(federation, joined))
    later = rosters.next_study(after, signed(federation, new_epoch(joined)))
    assert (later.roster.serial, later.roster.epoch) == (2, 2)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"cohort": "other"}, "cohort other does not follow"),
        ({"serial": 0}, "nobody goes back"),
        ({"serial": 2}, "roster 1 is missing"),
        ({"epoch": 0}, "epoch 0"),
        ({"epoch": 3}, "epoch 3"),
        ({"epoch": 2}, "5 keys of epoch 1"),
    ],
)
def test_what_does_not_follow_is_refused(federation, study, changes, complaint):
    with pytest.raises(RecordError, match=complaint):
        rosters.next_study(study, signed(federation, revoked(study.roster, **changes)))


def test_one_key_of_the_old_epoch_is_one_too_many(federation, study):
    roster = new_epoch(study.roster, kept=study.roster.keys[2:3])
    with pytest.raises(RecordError, match="1 keys of epoch 1: each device draws a new one"):
        rosters.next_study(study, signed(federation, roster))


def test_another_federations_roster_is_refused(federation, study):
    roster = revoked(study.roster, federation="other")
    with pytest.raises(RecordError, match="federation other"):
        rosters.next_study(study, signed(federation, roster))


def test_a_hospital_that_has_not_signed_keeps_a_roster_out(federation, study):
    with pytest.raises(SignatureError):
        rosters.next_study(study, signed(federation, revoked(study.roster), hospitals=1))


def test_rings_must_stay_as_large_as_the_study_asks(federation):
    small = small_federation(min_ring=3, ring_size=6)
    keys = small.study.roster.keys[:2]
    with pytest.raises(RecordError, match="asks for 3 at least"):
        rosters.next_study(
            small.study, sign(revoked(small.study.roster, keys=keys), [small.identity_seed])
        )


def test_who_missed_rosters_takes_the_newest(federation, study):
    roster = revoked(study.roster, serial=7, epoch=1)
    assert rosters.later_study(study, signed(federation, roster)).roster == roster
    with pytest.raises(RecordError, match="epoch 9"):
        rosters.later_study(study, signed(federation, revoked(study.roster, serial=7, epoch=9)))


def test_a_plan_brings_the_rosters_that_lead_to_its_own(federation, study):
    first = revoked(study.roster)
    second = new_epoch(first)
    records = [signed(federation, each) for each in (first, second)]
    objects = [b"weights", records[1], records[0], sign(study.plan, [federation.authority_seed])]
    after, new = rosters.follow(study, digest(records[1]), objects)
    assert new == tuple(records)
    assert after.roster == second
    # Nothing is new where it is known already.
    assert rosters.follow(after, digest(records[1]), ()) == (after, ())


def test_a_plan_without_its_roster_or_one_between_is_refused(federation, study):
    first = revoked(study.roster)
    records = [signed(federation, each) for each in (first, new_epoch(first))]
    with pytest.raises(RecordError, match="did not come along"):
        rosters.follow(study, digest(records[0]), [b"weights"])
    with pytest.raises(RecordError, match="roster 1 is missing"):
        rosters.follow(study, digest(records[1]), [records[1]])
    # An older one is never gone back to, whoever signed it.
    after, _ = rosters.follow(study, digest(records[0]), records)
    back = replace(study.roster, keys=study.roster.keys[:5])
    with pytest.raises(RecordError, match="nobody goes back"):
        rosters.follow(after, digest(signed(federation, back)), [signed(federation, back)])


@settings(max_examples=60, deadline=None)
@given(
    serial=st.integers(0, 2**48),
    epoch=st.integers(0, 2**48),
    last=st.tuples(st.integers(0, 2**48), st.integers(0, 2**48)),
    kept=st.booleans(),
)
def test_serials_and_epochs_only_grow(study, serial, epoch, last, kept):
    """Whatever follows is later, and what is later is never before what it is later than."""
    before = replace(study.roster, serial=last[0], epoch=last[1])
    keys = before.keys if kept else tuple(bytes([i]) * 32 for i in range(4))
    after = replace(before, serial=serial, epoch=epoch, keys=keys)

    def holds(check, *of):
        try:
            check(*of)
        except RecordError:
            return False
        return True

    if holds(rosters.check_follows, after, before):
        assert holds(rosters.check_later, after, before)
        assert serial == last[0] + 1
        assert epoch - last[1] in (0, 1)
        assert epoch == last[1] or not kept
    if holds(rosters.check_later, after, before):
        assert not holds(rosters.check_later, before, after)
