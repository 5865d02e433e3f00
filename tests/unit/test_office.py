"""The enrolment office: who is taken, and the reason of each refusal."""

import dataclasses

import pytest
from federation_fixture import Parties, small_federation
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.errors import ConfigError, StorageError
from vitalring.gateway import enrolment as kept
from vitalring.gateway.enrolment import EnrolledKey
from vitalring.gateway.office import EnrolmentReason, EnrolmentRefusedError, Office
from vitalring.protocol import enrolment, lsag, sealing
from vitalring.protocol.cbor import encode
from vitalring.protocol.enrolment import Enrolment

TICKETS = {name: bytes([number]) * 32 for number, name in enumerate(("anna", "ben", "carl"), 1)}
DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def small():
    return small_federation()


class Desk:
    """An office with what stands around it: parties with a log, and the devices' answers."""

    def __init__(self, parties):
        self.parties = parties
        self.db = parties.db
        federation = parties.federation
        self.office = Office(self.db, federation.study.federation, federation.sealing_key)
        kept.import_tickets(
            self.db, {enrolment.ticket_hash(ticket): name for name, ticket in TICKETS.items()}
        )

    def open(self, epoch=1, days=1):
        study = self.parties.federation.study
        closes_ms = self.parties.now_ms + days * DAY_MS
        key = self.parties.federation.log_key
        record = kept.open_call(self.db, key, study, epoch, closes_ms)
        return enrolment.open_call(record, study.federation)

    def give(self, said):
        """Hand in an answer, or whatever bytes; return what the office made of it."""
        federation = self.parties.federation
        box = said
        if isinstance(said, Enrolment):
            box = enrolment.seal(said, bytes(federation.sealing_key.public_key))
        return self.office.check(box, federation.study.roster_digest, self.parties.now_ms)

    def refused(self, said, reason):
        before = kept.enrolled(self.db)
        with pytest.raises(EnrolmentRefusedError) as refusal:
            self.give(said)
        assert refusal.value.reason == reason
        assert kept.enrolled(self.db) == before


@pytest.fixture
def desk(small, tmp_path):
    parties = Parties(small, tmp_path / "parties")
    yield Desk(parties)
    parties.close_databases()


def by_ticket(call, name="anna", pair=None):
    return enrolment.with_ticket(call, pair or lsag.keygen(), TICKETS[name])


def test_a_device_with_a_ticket_joins_the_epoch_that_runs(desk):
    call, pair = desk.open(1), lsag.keygen()
    said = by_ticket(call, "anna", pair)
    assert desk.give(said) == EnrolledKey("anna", 1, pair.public)
    # Said again, byte for byte or anew, it changes nothing.
    before = kept.enrolled(desk.db)
    assert desk.give(said) is None
    assert desk.give(by_ticket(call, "anna", pair)) is None
    assert kept.enrolled(desk.db) == before


def test_at_rotation_the_key_of_a_roster_vouches(desk, small):
    call = desk.open(2)
    new = [lsag.keygen() for _ in small.devices]
    for pair, old in zip(new, small.devices, strict=True):
        taken = desk.give(enrolment.with_previous(call, pair, 1, old))
        # Nobody named these keys, so they go by themselves.
        assert taken == EnrolledKey(f"key-{old.public.hex()[:16]}", 2, pair.public)
    epoch = [each.key for each in kept.enrolled(desk.db) if each.epoch == 2]
    assert sorted(epoch) == sorted(pair.public for pair in new)


def test_names_come_from_a_file_where_there_is_one(desk, small):
    named = [EnrolledKey(f"d{n}", 1, pair.public) for n, pair in enumerate(small.devices)]
    kept.import_keys(desk.db, kept.parse_keys(kept.format_keys(named)))
    kept.import_keys(desk.db, named)
    call, pair = desk.open(2), lsag.keygen()
    taken = desk.give(enrolment.with_previous(call, pair, 1, small.devices[3]))
    assert taken == EnrolledKey("d3", 2, pair.public)
    with pytest.raises(ConfigError, match="is known as that of d0 in epoch 1"):
        kept.import_keys(desk.db, [EnrolledKey("d9", 1, small.devices[0].public)])
    with pytest.raises(ConfigError, match="d0 has another key in epoch 1"):
        kept.import_keys(desk.db, [EnrolledKey("d0", 1, lsag.keygen().public)])


def test_without_a_call_nobody_is_taken(desk):
    call = desk.open()
    kept.close_call(desk.db)
    desk.refused(by_ticket(call), EnrolmentReason.NO_CALL)
    call = desk.open(days=1)
    desk.parties.now_ms += DAY_MS + 1
    desk.refused(by_ticket(call), EnrolmentReason.NO_CALL)
    assert desk.office.look(desk.parties.now_ms) is None


def test_what_is_no_sealed_enrolment_is_refused(desk):
    call = desk.open()
    key = bytes(desk.parties.federation.sealing_key.public_key)
    box = enrolment.seal(by_ticket(call), key)
    for noise in (b"", b"x", box[:-1], box + b"x", box * 2):
        desk.refused(noise, EnrolmentReason.MALFORMED)
    desk.refused(box[:-1] + bytes([box[-1] ^ 1]), EnrolmentReason.BAD_SEAL)
    stranger = bytes(sealing.new_secret().public_key)
    desk.refused(enrolment.seal(by_ticket(call), stranger), EnrolmentReason.BAD_SEAL)
    for content in (b"", b"noise", encode(by_ticket(call)) + b"\0", encode(call)):
        desk.refused(sealing.seal(content, key), EnrolmentReason.MALFORMED)


def test_an_answer_to_another_call_is_refused(desk, small):
    old = desk.open()
    said = by_ticket(old)
    call = desk.open()
    assert call.challenge != old.challenge
    desk.refused(said, EnrolmentReason.OTHER_CALL)
    for field, value in (("cohort", "other"), ("epoch", 2), ("federation", "other")):
        other = dataclasses.replace(call, **{field: value})
        desk.refused(by_ticket(other), EnrolmentReason.OTHER_CALL)
    both = dataclasses.replace(
        enrolment.with_previous(call, lsag.keygen(), 0, small.devices[0]), ticket=TICKETS["anna"]
    )
    desk.refused(both, EnrolmentReason.OTHER_CALL)


def test_who_has_no_voucher_is_refused(desk, small):
    call = desk.open(2)
    stranger, pair = lsag.keygen(), lsag.keygen()
    desk.refused(enrolment.with_ticket(call, pair, b"?" * 32), EnrolmentReason.UNKNOWN_VOUCHER)
    desk.refused(enrolment.with_previous(call, pair, 1, stranger), EnrolmentReason.UNKNOWN_VOUCHER)
    # The right key under another epoch's number.
    desk.refused(
        enrolment.with_previous(call, pair, 0, small.devices[0]), EnrolmentReason.UNKNOWN_VOUCHER
    )


def test_a_key_that_no_roster_had_vouches_for_nobody(desk):
    call, first = desk.open(1), lsag.keygen()
    desk.give(by_ticket(call, "anna", first))
    call = desk.open(2)
    second = lsag.keygen()
    desk.refused(enrolment.with_previous(call, second, 1, first), EnrolmentReason.UNKNOWN_VOUCHER)
    assert desk.give(by_ticket(call, "anna", second)).name == "anna"


def test_a_voucher_serves_one_key_in_an_epoch(desk, small):
    call = desk.open(2)
    desk.give(by_ticket(call))
    desk.refused(by_ticket(call), EnrolmentReason.VOUCHER_USED)
    desk.give(enrolment.with_previous(call, lsag.keygen(), 1, small.devices[0]))
    desk.refused(
        enrolment.with_previous(call, lsag.keygen(), 1, small.devices[0]),
        EnrolmentReason.VOUCHER_USED,
    )


def test_a_key_serves_one_device_in_one_epoch(desk, small):
    call, pair = desk.open(1), lsag.keygen()
    desk.give(by_ticket(call, "anna", pair))
    desk.refused(by_ticket(call, "ben", pair), EnrolmentReason.KNOWN_KEY)
    desk.refused(by_ticket(call, "ben", small.devices[0]), EnrolmentReason.KNOWN_KEY)
    call = desk.open(2)
    desk.refused(by_ticket(call, "anna", pair), EnrolmentReason.KNOWN_KEY)


def test_who_has_not_the_secrets_is_refused(desk, small):
    call, pair = desk.open(2), lsag.keygen()
    good = enrolment.with_previous(call, pair, 1, small.devices[0])
    theirs = enrolment.with_previous(call, lsag.keygen(), 1, small.devices[0])
    for bad in (
        dataclasses.replace(good, key=lsag.keygen().public),
        dataclasses.replace(good, possession=theirs.possession),
        # What was overheard of another device's answer, or of this one's for another key.
        dataclasses.replace(good, previous=theirs.previous),
        dataclasses.replace(by_ticket(call), ticket=TICKETS["ben"]),
    ):
        desk.refused(bad, EnrolmentReason.BAD_PROOF)
    assert desk.give(good) is not None


def test_a_revoked_device_is_not_enrolled_again_by_key_or_ticket(desk, small):
    named = [EnrolledKey("anna", 1, small.devices[0].public)]
    kept.import_keys(desk.db, named)
    parties = desk.parties
    parties.begin(parties.propose())
    parties.end_round(range(5))
    parties.take_up(parties.federation.next_roster(devices=range(1, 6)))
    parties.begin(parties.propose())
    call = desk.open(2)
    revoked = enrolment.with_previous(call, lsag.keygen(), 1, small.devices[0])
    desk.refused(revoked, EnrolmentReason.REVOKED)
    desk.refused(by_ticket(call, "anna"), EnrolmentReason.REVOKED)
    assert desk.give(enrolment.with_previous(call, lsag.keygen(), 1, small.devices[1]))


def test_who_gets_a_revoked_device_back_can_take_its_keys_again_until_the_next_revocation(
    desk, small
):
    old = small.devices[0]
    kept.import_keys(desk.db, [EnrolledKey("anna", 1, old.public)])
    parties = desk.parties
    parties.begin(parties.propose())
    parties.end_round(range(5))
    parties.take_up(parties.federation.next_roster(devices=range(1, 6)))
    parties.begin(parties.propose())
    parties.end_round(range(1, 6))
    call, new = desk.open(2), lsag.keygen()
    assert "anna" in kept.barred(desk.db, kept.standing(desk.db).revoked)
    kept.bar(desk.db, "anna", lift=True)
    assert kept.barred(desk.db, kept.standing(desk.db).revoked) == frozenset()
    assert desk.give(enrolment.with_previous(call, new, 1, old)).name == "anna"
    # In epoch 2 it is revoked again: what was forgiven does not count for that.
    others = [lsag.keygen() for _ in range(4)]
    keys = sorted(pair.public for pair in (new, *others))
    parties.take_up(parties.federation.next_roster(epoch=2, keys=tuple(keys)), new, *others)
    parties.begin(parties.propose())
    parties.end_round(range(6, 10))
    keys.remove(new.public)
    parties.take_up(parties.federation.next_roster(keys=tuple(keys)))
    parties.begin(parties.propose())
    call = desk.open(3)
    desk.refused(enrolment.with_previous(call, lsag.keygen(), 2, new), EnrolmentReason.REVOKED)
    desk.refused(by_ticket(call, "anna"), EnrolmentReason.REVOKED)


def test_a_device_can_be_barred_by_hand_and_taken_back(desk):
    call = desk.open(1)
    kept.bar(desk.db, "carl")
    desk.refused(by_ticket(call, "carl"), EnrolmentReason.REVOKED)
    kept.bar(desk.db, "carl", lift=True)
    assert desk.give(by_ticket(call, "carl")).name == "carl"
    with pytest.raises(ConfigError, match="knows no device 'dora'"):
        kept.bar(desk.db, "dora")


def test_a_device_that_slept_through_an_epoch_is_taken_by_its_older_key(desk, small):
    parties = desk.parties
    call = desk.open(2)
    new = [lsag.keygen() for _ in range(5)]
    for pair, old in zip(new, small.devices, strict=False):
        desk.give(enrolment.with_previous(call, pair, 1, old))
    parties.begin(parties.propose())
    parties.end_round(range(5))
    keys = tuple(sorted(pair.public for pair in new))
    parties.take_up(parties.federation.next_roster(epoch=2, keys=keys), *new)
    parties.begin(parties.propose())
    # Both for the epoch that runs now, and for the next one.
    for epoch in (2, 3):
        call, late = desk.open(epoch), lsag.keygen()
        taken = desk.give(enrolment.with_previous(call, late, 1, small.devices[5]))
        assert taken.name == f"key-{small.devices[5].public.hex()[:16]}"
        assert taken.epoch == epoch


def test_a_key_that_another_followed_in_a_roster_vouches_no_more(desk, small):
    """Who copied a device's key of epoch 1 does not come back with it after the rotation."""
    parties = desk.parties
    call = desk.open(2)
    new = [lsag.keygen() for _ in range(5)]
    for pair, old in zip(new, small.devices, strict=False):
        desk.give(enrolment.with_previous(call, pair, 1, old))
    call, stolen = desk.open(2), small.devices[0]
    # Before a roster has the new key the device may lose it: the office says what it has.
    desk.refused(
        enrolment.with_previous(call, lsag.keygen(), 1, stolen), EnrolmentReason.VOUCHER_USED
    )
    parties.begin(parties.propose())
    parties.end_round(range(5))
    keys = tuple(sorted(pair.public for pair in new))
    parties.take_up(parties.federation.next_roster(epoch=2, keys=keys), *new)
    parties.begin(parties.propose())
    call, late = desk.open(3), lsag.keygen()
    desk.refused(enrolment.with_previous(call, late, 1, stolen), EnrolmentReason.UNKNOWN_VOUCHER)
    assert desk.give(enrolment.with_previous(call, late, 2, new[0])).epoch == 3


@pytest.mark.parametrize("epoch", [0, 3, 2**48])
def test_a_call_is_for_this_epoch_or_the_next(desk, epoch):
    with pytest.raises(ConfigError, match=f"not of epoch {epoch}"):
        desk.open(epoch)


def test_the_host_alone_opens_calls(tmp_path):
    two = small_federation(secure_sum="two-server", hospitals=2, min_cohort=3)
    parties = Parties(two, tmp_path / "parties")
    key = dataclasses.replace(two.log_key, seed=bytes(32))
    with pytest.raises(ConfigError, match="north is the host and enrols devices"):
        kept.open_call(parties.db, key, two.study, 1, 0)
    parties.close_databases()


def test_refusals_are_counted_and_the_counts_begin_with_a_call(desk):
    call = desk.open()
    roster = desk.parties.federation.study.roster_digest
    for box in (b"", b"x", bytes(enrolment.BOX_BYTES)):
        assert desk.office.take(box, roster, desk.parties.now_ms) is None
    desk.office.look(desk.parties.now_ms)
    counts = kept.refused(desk.db)
    assert counts["malformed"] >= 1
    assert set(counts) <= {"malformed", "bad_seal"}
    desk.open()
    assert kept.refused(desk.db) == {}
    assert call is not None


def test_neither_names_nor_tickets_are_said_in_the_services_log(desk, caplog):
    desk.open()
    kept.bar(desk.db, "carl")
    call = enrolment.open_call(kept.current_call(desk.db), desk.parties.federation.study.federation)
    said = by_ticket(call, "carl")
    assert repr(TICKETS["carl"]) not in repr(said)
    federation = desk.parties.federation
    box = enrolment.seal(said, bytes(federation.sealing_key.public_key))
    with caplog.at_level("DEBUG"):
        taken = desk.office.take(box, federation.study.roster_digest, desk.parties.now_ms)
    assert taken is None
    assert "enrolment refused: revoked" in caplog.text
    assert "carl" not in caplog.text


def test_a_call_that_is_closed_while_an_answer_is_checked_takes_nobody(desk, monkeypatch):
    call = desk.open()
    check = enrolment.check_proofs

    def slow(*words):
        check(*words)
        kept.close_call(desk.db)

    monkeypatch.setattr(enrolment, "check_proofs", slow)
    desk.refused(by_ticket(call), EnrolmentReason.NO_CALL)


def test_a_full_disk_takes_nobody_and_says_so(desk, monkeypatch):
    call = desk.open()

    def full(*_):
        raise StorageError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(kept, "enrol", full)
        with pytest.raises(StorageError):
            desk.give(by_ticket(call))
    assert desk.give(by_ticket(call)).name == "anna"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_mutated_box_enrols_nobody(tmp_path_factory, small, data):
    folder = tmp_path_factory.mktemp("mutated")
    parties = Parties(small, folder)
    desk = Desk(parties)
    content = bytearray(encode(by_ticket(desk.open())))
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    key = bytes(small.sealing_key.public_key)
    before = kept.enrolled(desk.db)
    with pytest.raises(EnrolmentRefusedError):
        desk.give(sealing.seal(bytes(content), key))
    assert kept.enrolled(desk.db) == before
    parties.close_databases()


@pytest.mark.parametrize(
    "text",
    ["anna", "anna 12", "an/na " + "0" * 64, "anna " + "A" * 64, "anna " + "0" * 64 + " more"],
)
def test_a_list_of_tickets_that_is_none_is_refused(text):
    with pytest.raises(ConfigError):
        kept.parse_tickets(text)


def test_lists_are_read_with_notes_and_empty_lines():
    hash_ = enrolment.ticket_hash(TICKETS["anna"])
    text = f"# ward 3\n\nanna {hash_.hex()}  # her watch\n"
    assert kept.parse_tickets(text) == {hash_: "anna"}
    with pytest.raises(ConfigError, match="stands for anna and for ben"):
        kept.parse_tickets(f"{text}ben {hash_.hex()}\n")
    with pytest.raises(ConfigError, match="is not a number"):
        kept.parse_keys(f"anna x {'0' * 64}")


def test_a_ticket_is_one_devices(desk):
    hash_ = enrolment.ticket_hash(TICKETS["anna"])
    assert kept.import_tickets(desk.db, {hash_: "anna"}) == 0
    with pytest.raises(ConfigError, match="the ticket of dora is known as that of anna"):
        kept.import_tickets(desk.db, {hash_: "dora"})


def test_tickets_themselves_are_nowhere_in_the_database(desk, tmp_path):
    call = desk.open()
    desk.give(by_ticket(call))
    desk.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    found = b"".join(path.read_bytes() for path in (tmp_path / "parties" / "gateway").iterdir())
    assert enrolment.ticket_hash(TICKETS["anna"]) in found
    assert TICKETS["anna"] not in found
