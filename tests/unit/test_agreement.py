"""Two gateways: one set a round, whatever is lost, lied about, repeated or killed in between."""

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from federation_fixture import Parties, small_federation
from hypothesis import given, settings
from hypothesis import strategies as st
from two_gateways_fixture import ShareGateway, agree, halves_of, params_of, split_update

from vitalring.database import transaction
from vitalring.errors import (
    EncodingRangeError,
    Reason,
    RecordError,
    RefusedError,
    SignatureError,
    StorageError,
)
from vitalring.gateway import agreement, rounds, store
from vitalring.gateway.agreement import SecondSetError
from vitalring.protocol import two_server
from vitalring.protocol.agreement import (
    AgreedSet,
    ShareSet,
    UpdateShare,
    check_sums,
    open_agreed,
    open_share_report,
    set_digest,
)
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.protocol.records import EncryptedSum, Receipts, SealedUpdate
from vitalring.protocol.signing import Signed, sign
from vitalring.protocol.two_server import ROLES, SEED, VECTOR, Shares, Unmask
from vitalring.protocol.update import digest_of


@pytest.fixture(scope="module")
def federation():
    return small_federation(hospitals=2, min_cohort=3, devices=6, n_max=8)


@pytest.fixture
def proposal(federation, tmp_path):
    parties = Parties(federation, tmp_path / "aggregator")
    made = parties.propose()
    parties.close_databases()
    return made


@pytest.fixture
def pair(federation, proposal, tmp_path):
    gateways = [ShareGateway(federation, role, tmp_path) for role in ROLES]
    for gateway in gateways:
        gateway.begin(proposal)
    yield gateways
    for gateway in gateways:
        gateway.db.close()


@pytest.fixture
def updates(federation, proposal):
    """Halves and fields of five devices."""
    return [split_update(federation, proposal.record, device) for device in range(5)]


def submit(pair, updates, lost=()):
    """Send all halves but those in `lost`, which are (device, role)."""
    for device, (halves, _) in enumerate(updates):
        for role, gateway in enumerate(pair):
            if (device, role) not in lost:
                assert gateway.admit(halves[role])


def sums_of(pair):
    """What an aggregator gets: reports, sums and the digests of the sums' bytes."""
    reports, sums, names = [], [], []
    for gateway in pair:
        signed = rounds.latest(gateway.db).report
        reports.append(open_share_report(signed, gateway.federation.study.federation, gateway.role))
        total = store.get_object(gateway.db, reports[-1].sum)
        sums.append(decode(EncryptedSum, total))
        names.append(digest(total))
    return tuple(reports), tuple(sums), tuple(names)


def opened(pair, both):
    agreed = open_agreed(both, pair[0].federation.study.federation)
    reports, sums, names = sums_of(pair)
    check_sums(agreed, pair[0].closing, reports, sums, names)
    scheme, params = pair[VECTOR].scheme, params_of(pair[0].federation)
    vectors, masks = (scheme.decode_sum(total.ciphertexts) for total in sums)
    return scheme.open_sum(vectors, agreed.count, Unmask(masks, params))


def kept(gateway):
    return gateway.db.execute("SELECT count(*) FROM contributions").fetchone()[0]


def receipts_of(gateway):
    signed = rounds.latest(gateway.db).receipts
    return decode(Receipts, decode(Signed, signed).payload).digests


# The round.


def test_two_gateways_sum_what_both_have(pair, updates):
    submit(pair, updates)
    both = agree(*pair)
    assert both[0] == both[1]
    np.testing.assert_array_equal(opened(pair, both[0]), np.sum([f for _, f in updates], axis=0))
    assert receipts_of(pair[0]) == receipts_of(pair[1])
    assert len(receipts_of(pair[0])) == 5


def test_a_lost_half_costs_its_own_update_alone(pair, updates):
    """Device 1 reaches only the vectors' gateway, device 4 only the seeds'."""
    submit(pair, updates, lost={(1, SEED), (4, VECTOR)})
    both = agree(*pair)
    counted = [updates[device] for device in (0, 2, 3)]
    np.testing.assert_array_equal(opened(pair, both[0]), np.sum([f for _, f in counted], axis=0))
    digests = sorted(digest_of(halves[0].update) for halves, _ in counted)
    for gateway in pair:
        assert list(receipts_of(gateway)) == digests
        assert rounds.latest(gateway.db).admitted == 3


def test_logs_of_both_gateways_name_the_same_updates(pair, updates):
    submit(pair, updates)
    before = [rounds.log.size(gateway.db) for gateway in pair]
    agree(*pair)
    entries = [
        rounds.log.entries(gateway.db, size, rounds.log.size(gateway.db))
        for gateway, size in zip(pair, before, strict=True)
    ]
    assert entries[0][:5] == entries[1][:5]
    assert entries[0][5:] != entries[1][5:], "each has a report of its own"


def test_shares_are_gone_when_the_sum_is_there(pair, updates):
    """From the tables and from the bytes of the database's files."""
    submit(pair, updates, lost={(0, SEED)})
    assert [kept(gateway) for gateway in pair] == [5, 4]
    shares = [[halves[role].share[-32:] for halves, _ in updates[1:]] for role in ROLES]
    assert all(on_disk(pair[role].db).count(share) for role in ROLES for share in shares[role])
    agree(*pair)
    assert [kept(gateway) for gateway in pair] == [0, 0]
    assert not any(on_disk(pair[role].db).count(share) for role in ROLES for share in shares[role])


def on_disk(db):
    name = db.execute("PRAGMA database_list").fetchone()[2]
    paths = [Path(name + suffix) for suffix in ("", "-wal")]
    return b"".join(path.read_bytes() for path in paths if path.exists())


def test_one_gateway_and_the_sum_of_the_other_open_only_the_whole(pair, updates, federation):
    """All that the vectors' gateway ever has, with the masks' sum: no update, no part of a sum."""
    submit(pair, updates)
    params, scheme = params_of(federation), pair[VECTOR].scheme
    vectors = [scheme.residues(halves[VECTOR].share) for halves, _ in updates]
    both = agree(*pair)
    _, sums, _ = sums_of(pair)
    masks = scheme.decode_sum(sums[SEED].ciphertexts)
    for left_out in range(5):
        part = sum(v for i, v in enumerate(vectors) if i != left_out) & params.mask
        with pytest.raises(EncodingRangeError, match="reserved place"):
            scheme.open_sum(part, 4, Unmask(masks, params))
    opened(pair, both[0])


# Admission of halves.


def refused(gateway, half):
    with pytest.raises(RefusedError) as caught:
        gateway.check(half)
    return caught.value.reason


def test_halves_of_different_updates_are_refused(pair, updates):
    one, other = updates[0][0], updates[1][0]
    for role, gateway in enumerate(pair):
        mixed = UpdateShare(one[role].update, other[role].share)
        assert refused(gateway, mixed) is Reason.BAD_CIPHERTEXT


def test_a_half_for_the_other_gateway_is_refused(pair, updates):
    halves, _ = updates[0]
    for role, gateway in enumerate(pair):
        assert refused(gateway, halves[1 - role]) is Reason.BAD_CIPHERTEXT


def test_a_link_that_was_not_signed_is_refused(pair, updates, federation):
    halves, fields = updates[0]
    other = two_server.split(fields, params_of(federation))
    for role, gateway in enumerate(pair):
        update = replace(halves[role].update, ciphertexts=other.link)
        assert refused(gateway, UpdateShare(update, other.of(role))) is Reason.BAD_SIGNATURE


@pytest.mark.parametrize("link", [b"", bytes(63), bytes(65)])
def test_a_link_of_another_length_is_refused(pair, updates, link):
    halves, _ = updates[0]
    update = replace(halves[0].update, ciphertexts=link)
    assert refused(pair[0], UpdateShare(update, halves[0].share)) is Reason.BAD_CIPHERTEXT


def test_a_second_vote_counts_at_neither(pair, updates, federation, proposal):
    again, _ = split_update(federation, proposal.record, 0, rng_seed=99)
    halves, _ = updates[0]
    for role, gateway in enumerate(pair):
        assert gateway.admit(halves[role])
        assert refused(gateway, again[role]) is Reason.DOUBLE_SIGNED
        assert not gateway.admit(halves[role]), "a retry is dropped in silence"


def test_a_device_that_votes_apart_is_counted_at_neither(pair, updates, federation, proposal):
    """One update to one gateway, another to the other: no set has either."""
    again, _ = split_update(federation, proposal.record, 0, rng_seed=99)
    assert pair[VECTOR].admit(updates[0][0][VECTOR])
    assert pair[SEED].admit(again[SEED])
    for halves, _ in updates[1:4]:
        for role, gateway in enumerate(pair):
            assert gateway.admit(halves[role])
    both = agree(*pair)
    total = np.sum([fields for _, fields in updates[1:4]], axis=0)
    np.testing.assert_array_equal(opened(pair, both[0]), total)


def test_nothing_is_admitted_after_a_gateway_told_what_it_has(pair, updates):
    submit(pair, updates[:4])
    own = pair[0].hold()
    assert refused(pair[0], updates[4][0][0]) is Reason.TOO_LATE
    assert pair[0].hold() == own


def test_a_device_whose_shares_do_not_fit_spoils_the_round_and_is_noticed(
    pair, updates, federation, proposal
):
    shares = [two_server.split(updates[4][1], params_of(federation)) for _ in range(2)]
    bad = halves_of(federation, proposal.record, 4, Shares(shares[0].vector, shares[1].seed))
    submit(pair, [*updates[:4], (bad, None)])
    both = agree(*pair)
    with pytest.raises(EncodingRangeError, match="reserved place"):
        opened(pair, both[0])


@settings(max_examples=200)
@given(st.binary(max_size=400))
def test_hostile_messages_are_no_halves(data):
    with pytest.raises(RecordError):
        agreement.open_share(data)


# Lies.


def test_a_gateway_that_tells_two_sets_is_refused(pair, updates):
    """The second set is one update smaller: two sums would show that update."""
    submit(pair, updates)
    honest, liar = pair
    honest.hold()
    first = liar.hold()
    digests = decode(ShareSet, decode(Signed, first).payload).digests
    second = liar.lie(digests=digests[1:])
    half = honest.take_set(first)
    with pytest.raises(SecondSetError, match="refused"):
        honest.take_set(second)
    assert honest.take_set(first) == half, "the first stands"
    for record in (first, second):
        assert store.get_object(honest.db, digest(record)) == record


def test_two_sums_are_never_given(pair, updates):
    """After the first sum nothing brings another: neither a new set nor a signature on one."""
    submit(pair, updates)
    honest, liar = pair
    sets = honest.hold(), liar.hold()
    half = liar.take_set(sets[0])
    honest.take_set(sets[1])
    honest.take_half(half)
    honest.settle()
    total = rounds.latest(honest.db).sum
    digests = decode(ShareSet, decode(Signed, sets[1]).payload).digests
    with pytest.raises(SecondSetError):
        honest.take_set(liar.lie(digests=digests[1:]))
    agreed = decode(AgreedSet, decode(Signed, half).payload)
    other = replace(agreed, count=4, set=set_digest(agreed.plan, digests[1:]))
    with pytest.raises(SecondSetError):
        honest.take_half(sign(other, [liar.log_key.seed]))
    honest.settle()
    assert rounds.latest(honest.db).sum == total
    honest.close()
    with pytest.raises(RecordError, match="is over"):
        honest.settle()


def test_a_set_below_the_minimum_is_not_signed(pair, updates):
    submit(pair, updates)
    honest, liar = pair
    honest.hold()
    digests = decode(ShareSet, decode(Signed, liar.hold()).payload).digests
    lie = liar.lie(digests=digests[:2])
    assert honest.take_set(lie) is None
    agreed = agreement.agreement.agree(
        (honest.hold(), lie), honest.holder.federation, honest.closing
    )
    with pytest.raises(RecordError, match="was signed here"):
        honest.take_half(sign(agreed[0], [liar.log_key.seed]))
    with pytest.raises(RecordError, match="no set that both"):
        honest.settle()
    assert honest.give_up()
    honest.close()
    assert rounds.latest(honest.db).admitted == 0
    assert kept(honest) == 0


def test_a_set_of_updates_that_are_not_here_adds_nothing(pair, updates):
    """A gateway that invents digests does not get shares that nobody signed."""
    submit(pair, updates)
    honest, liar = pair
    honest.hold()
    true = decode(ShareSet, decode(Signed, liar.hold()).payload).digests
    lie = liar.lie(digests=tuple(sorted([*true, bytes(32), bytes([255] * 32)])))
    half = honest.take_set(lie)
    assert decode(AgreedSet, decode(Signed, half).payload).count == 5


@pytest.mark.parametrize("fault", ["signer", "plan", "round", "unsorted", "double", "not a record"])
def test_sets_that_are_not_the_other_gateways(pair, updates, fault):
    submit(pair, updates)
    honest, liar = pair
    honest.hold()
    true = decode(ShareSet, decode(Signed, liar.hold()).payload).digests
    told = {
        "signer": lambda: honest.lie(digests=true),
        "plan": lambda: liar.lie(digests=true, plan=bytes(32)),
        "round": lambda: liar.lie(digests=true, round=2),
        "unsorted": lambda: liar.lie(digests=true[::-1]),
        "double": lambda: liar.lie(digests=(true[0], *true)),
        "not a record": lambda: b"\xa0",
    }[fault]()
    with pytest.raises((RecordError, SignatureError)):
        honest.take_set(told)
    assert agreement.state(honest.db, honest.closing.digest).theirs is None


def test_a_signature_of_nobody_else_stands_for_the_other_gateway(pair, updates):
    submit(pair, updates)
    sets = [gateway.hold() for gateway in pair]
    own = pair[0].take_set(sets[1])
    pair[1].take_set(sets[0])
    with pytest.raises(SignatureError):
        pair[0].take_half(own)
    with pytest.raises(RecordError, match="both gateways signed"):
        pair[0].settle()


def test_a_gateway_that_gave_up_sums_nothing_any_more(pair, updates):
    submit(pair, updates)
    sets = [gateway.hold() for gateway in pair]
    halves = [pair[0].take_set(sets[1]), pair[1].take_set(sets[0])]
    assert pair[0].give_up()
    with pytest.raises(RecordError, match="ended before"):
        pair[0].take_half(halves[1])
    pair[0].close()
    assert rounds.latest(pair[0].db).status == "closed"
    report = open_share_report(rounds.latest(pair[0].db).report, pair[0].holder.federation, VECTOR)
    assert (report.status, report.sum) == ("below_min_cohort", b"")


def test_what_both_signed_is_not_given_up(pair, updates):
    submit(pair, updates)
    sets = [gateway.hold() for gateway in pair]
    halves = [pair[0].take_set(sets[1]), pair[1].take_set(sets[0])]
    pair[0].take_half(halves[1])
    assert not pair[0].give_up()
    pair[0].settle()
    assert rounds.latest(pair[0].db).sum is not None


def test_a_set_that_comes_after_giving_up_is_refused(pair, updates):
    submit(pair, updates)
    sets = [gateway.hold() for gateway in pair]
    assert pair[0].give_up()
    with pytest.raises(RecordError, match="ended before"):
        pair[0].take_set(sets[1])


@pytest.mark.parametrize("change", ["report", "sum", "contributions", "count", "plan", "small"])
def test_sums_that_are_not_of_one_set_are_refused(pair, updates, change):
    submit(pair, updates)
    both = agree(*pair)
    agreed = open_agreed(both[0], pair[0].federation.study.federation)
    reports, sums, names = sums_of(pair)
    closing = pair[0].closing
    check_sums(agreed, closing, reports, sums, names)
    match change:
        case "report":
            reports = (reports[0], replace(reports[1], status="below_min_cohort"))
        case "sum":
            names = (names[1], names[0])
        case "contributions":
            fewer = replace(sums[1], contributions=sums[1].contributions[1:])
            sums = (sums[0], fewer)
        case "count":
            reports = (replace(reports[0], admitted=4), reports[1])
        case "plan":
            agreed = replace(agreed, plan=bytes(32))
        case "small":
            agreed = replace(agreed, count=2)
    with pytest.raises(RecordError):
        check_sums(agreed, closing, reports, sums, names)


def test_a_report_of_one_gateway_does_not_pass_for_the_others(pair, updates):
    submit(pair, updates)
    agree(*pair)
    signed = rounds.latest(pair[SEED].db).report
    with pytest.raises(SignatureError):
        open_share_report(signed, pair[0].holder.federation, VECTOR)


def test_shares_go_to_two_hospitals(updates):
    other = small_federation(hospitals=3, min_cohort=3)
    with pytest.raises(RecordError, match="3 hospitals"):
        open_agreed(b"", other.study.federation)


# Restarts.


def test_what_was_said_is_said_again_byte_for_byte(pair, updates):
    submit(pair, updates)
    sets = [gateway.hold() for gateway in pair]
    halves = [pair[0].take_set(sets[1]), pair[1].take_set(sets[0])]
    both = pair[0].take_half(halves[1])
    assert pair[0].hold() == sets[0]
    assert pair[0].take_set(sets[1]) == halves[0]
    assert pair[0].take_half(halves[1]) == both
    known = agreement.state(pair[0].db, pair[0].closing.digest)
    assert (known.own, known.theirs, known.half, known.both) == (sets[0], sets[1], halves[0], both)


class Crash(BaseException):
    pass


class CrashingDatabase:
    """A database whose process dies before its n-th statement."""

    def __init__(self, db, left):
        self._db, self._left = db, left

    @property
    def in_transaction(self):
        return self._db.in_transaction

    def _count(self, statement):
        if statement != "ROLLBACK":
            if not self._left:
                raise Crash
            self._left -= 1

    def execute(self, statement, *values):
        self._count(statement)
        return self._db.execute(statement, *values)

    def executemany(self, statement, values):
        self._count(statement)
        return self._db.executemany(statement, values)


def test_a_crash_at_any_statement_is_made_good_by_doing_it_again(pair, updates):
    """Kill one gateway before each statement of each step: the sum comes out, and once."""
    submit(pair, updates, lost={(2, SEED)})
    victim, other = pair
    theirs = other.hold()
    steps = [
        victim.hold,
        lambda: victim.take_set(theirs),
        lambda: victim.take_half(other.take_set(victim.hold())),
        victim.settle,
    ]
    real, crashes = victim.db, 0
    for step in steps:
        for left in range(100):
            victim.db = CrashingDatabase(real, left)
            try:
                step()
                break
            except Crash:
                crashes += 1
                if real.in_transaction:
                    real.execute("ROLLBACK")
            finally:
                victim.db = real
    assert crashes > 10
    both = other.take_half(victim.take_set(theirs))
    other.settle()
    for gateway in pair:
        gateway.close()
    counted = [fields for device, (_, fields) in enumerate(updates) if device != 2]
    np.testing.assert_array_equal(opened(pair, both), np.sum(counted, axis=0))


def test_a_share_that_vanished_is_named(pair, updates):
    submit(pair, updates)
    sets = [gateway.hold() for gateway in pair]
    pair[0].take_set(sets[1])
    pair[0].take_half(pair[1].take_set(sets[0]))
    gone = digest_of(updates[0][0][0].update)
    with transaction(pair[0].db):
        pair[0].db.execute("DELETE FROM contributions WHERE digest = ?", (gone,))
    with pytest.raises(StorageError, match=gone.hex()):
        pair[0].settle()


@settings(max_examples=200)
@given(data=st.data())
def test_mutations_of_records_are_refused_or_records(federation, data):
    """Bytes are refused, or are the one encoding of a record; nothing else is raised."""
    update = SealedUpdate(bytes(32), 1, bytes(64), bytes(96))
    record = data.draw(
        st.sampled_from(
            [
                UpdateShare(update, bytes(40)),
                ShareSet(bytes(32), 3, (bytes(32), bytes([1] * 32))),
                AgreedSet(bytes(32), 3, (bytes(32), bytes(32)), bytes(32), 7),
            ]
        )
    )
    changed = bytearray(encode(record))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(changed) - 1))
        changed[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    with contextlib.suppress(RecordError):
        assert encode(decode(type(record), bytes(changed))) == changed
