"""From a sealed box to a counted update: every refusal by name, nothing counted twice."""

import contextlib
import secrets
from dataclasses import replace

import admission_fixture
import numpy as np
import pytest
from federation_fixture import Parties, small_federation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitalring.errors import Reason, RefusedError
from vitalring.gateway import log, rounds
from vitalring.protocol import sealing, trust
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.protocol.ciphertext import decode_ciphertexts, encode_ciphertexts
from vitalring.protocol.records import AcceptedUpdate, SealedUpdate
from vitalring.protocol.update import round_context, update_digest

HOSTILE = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def federation():
    return small_federation(n_max=4)


@pytest.fixture
def parties(federation, tmp_path):
    """A gateway whose first round is over and whose second is open."""
    made = Parties(federation, tmp_path)
    made.run_round(range(4))
    made.begin(made.propose())
    yield made
    made.close_databases()


@pytest.fixture
def signed_plan(parties):
    return rounds.latest(parties.db).signed_plan


def state(db):
    tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return {table: db.execute(f"SELECT * FROM {table}").fetchall() for table in tables}


def reason(parties, box):
    """Why a box is refused; nothing on disk changes."""
    before = state(parties.db)
    with pytest.raises(RefusedError) as caught:
        parties.check(box)
    assert state(parties.db) == before
    return caught.value.reason


def sealed(parties, update):
    return parties.federation.box(update)


# Updates that count.


def test_updates_are_counted_and_added(parties, signed_plan):
    federation = parties.federation
    name = digest(signed_plan)
    expected = np.zeros_like(federation.fields(name))
    for device in (4, 0, 2):
        fields = federation.fields(name, rng_seed=device)
        update = federation.update(signed_plan, device, ciphertexts=federation.encrypt(fields))
        assert parties.admit(sealed(parties, update))
        expected += fields
    current = rounds.latest(parties.db)
    assert current.admitted == 3
    np.testing.assert_array_equal(federation.scheme.decode_sum(current.sum), expected)
    assert current.admission_us == 300


def test_the_entry_is_all_that_a_verifier_needs(parties, signed_plan):
    update = parties.federation.update(signed_plan, 1)
    admitted = parties.check(sealed(parties, update))
    entry = decode(AcceptedUpdate, admitted.entry)
    context = round_context(trust.open_round_plan(signed_plan, parties.federation.study))
    ring = parties.federation.rings[entry.ring]
    assert ring.verify(context, entry.digest, entry.signature) == admitted.tag
    assert entry.digest == update_digest(entry.plan, update.ring, update.ciphertexts)


def test_a_retry_is_not_counted_twice(parties, signed_plan):
    update = parties.federation.update(signed_plan, 1)
    assert parties.admit(sealed(parties, update))
    before = state(parties.db)
    # Sealed anew, the same update shares no byte with its first copy.
    for _ in range(3):
        assert not parties.admit(sealed(parties, update))
    # Its signer may also have made the signature anew.
    again = parties.federation.update(signed_plan, 1, ciphertexts=update.ciphertexts)
    assert again != update
    assert not parties.admit(sealed(parties, again))
    assert state(parties.db) == before


def test_arrival_order_leaves_no_trace(federation, tmp_path):
    """Two gateways that get the same updates in different order write the same tables."""
    made = []
    proposal = None
    for name, order in (("one", (0, 1, 2, 3)), ("two", (3, 1, 0, 2))):
        parties = Parties(federation, tmp_path / name)
        proposal = proposal or parties.propose()
        parties.begin(proposal)
        if not made:
            updates = [federation.update(proposal.record, device) for device in range(4)]
        for device in order:
            parties.admit(sealed(parties, updates[device]))
        made.append(state(parties.db))
        parties.close_databases()
    assert made[0] == made[1]


# Refusals, in the order of the checks. Each case also has every later fault.


def test_a_box_that_is_not_ours(parties):
    assert reason(parties, b"") is Reason.BAD_SEAL
    assert reason(parties, secrets.token_bytes(2048)) is Reason.BAD_SEAL
    stranger = bytes(sealing.new_secret().public_key)
    assert reason(parties, sealing.seal(b"message", stranger)) is Reason.BAD_SEAL


@pytest.mark.parametrize("message", [b"", b"not a record", b"\xa0", b"\x80" * 5000])
def test_a_message_that_is_no_update(parties, message):
    box = sealing.seal(message, bytes(parties.federation.sealing_key.public_key))
    assert reason(parties, box) is Reason.MALFORMED


def test_an_update_in_another_encoding(parties, signed_plan):
    message = encode(parties.federation.update(signed_plan, 0))
    box = sealing.seal(message + b"\x00", bytes(parties.federation.sealing_key.public_key))
    assert reason(parties, box) is Reason.MALFORMED


def all_faults(parties):
    """An update that fails every check after its encoding."""
    return SealedUpdate(b"\x01" * 32, 9_999, b"no ciphertexts", b"\x02" * 96)


def test_an_unknown_plan(parties):
    assert reason(parties, sealed(parties, all_faults(parties))) is Reason.UNKNOWN_PLAN


def test_a_plan_whose_round_is_over(parties):
    first = parties.db.execute("SELECT plan FROM rounds WHERE round = 1").fetchone()[0]
    update = replace(all_faults(parties), plan=first)
    assert reason(parties, sealed(parties, update)) is Reason.TOO_LATE


def test_no_round_is_open(parties, signed_plan):
    parties.submit(range(4))
    update = parties.federation.update(signed_plan, 5)
    parties.close()
    for plan, expected in (
        (digest(signed_plan), Reason.TOO_LATE),
        (b"\x01" * 32, Reason.UNKNOWN_PLAN),
    ):
        box = sealed(parties, replace(update, plan=plan))
        with pytest.raises(RefusedError) as caught:
            admission_fixture.check(
                parties.db, None, box, parties.federation.sealing_key, parties.now_ms
            )
        assert caught.value.reason is expected


def test_a_retry_that_crosses_its_receipt_is_no_refusal(parties, signed_plan):
    update = parties.federation.update(signed_plan, 0)
    assert parties.admit(parties.federation.box(update))
    parties.submit(range(1, 4))
    parties.close()
    box = parties.federation.box(update)
    key = parties.federation.sealing_key
    assert admission_fixture.check(parties.db, None, box, key, parties.now_ms) is None


def test_after_the_deadline(parties, signed_plan):
    deadline = parties.open_round().plan.deadline_ms
    update = parties.federation.update(signed_plan, 0)
    parties.now_ms = deadline
    assert parties.check(sealed(parties, update)) is not None
    parties.now_ms = deadline + 1
    assert reason(parties, sealed(parties, update)) is Reason.TOO_LATE
    update = replace(all_faults(parties), plan=digest(signed_plan))
    assert reason(parties, sealed(parties, update)) is Reason.TOO_LATE


@pytest.mark.parametrize("ring", [2, 9_999])
def test_an_unknown_ring(parties, signed_plan, ring):
    update = replace(all_faults(parties), plan=digest(signed_plan), ring=ring)
    assert reason(parties, sealed(parties, update)) is Reason.UNKNOWN_RING


def test_a_signature_of_another_rings_length(parties, signed_plan):
    update = replace(all_faults(parties), plan=digest(signed_plan), ring=0)
    assert reason(parties, sealed(parties, update)) is Reason.BAD_SIGNATURE


def test_a_second_update_of_one_signer(parties, signed_plan):
    """Even where the round is full, its ciphertexts are none and its signature is nonsense."""
    parties.submit(range(4))
    second = parties.federation.update(signed_plan, 0, rng_seed=99)
    assert reason(parties, sealed(parties, second)) is Reason.DOUBLE_SIGNED
    nonsense = second.signature[:32] + bytes(len(second.signature) - 32)
    for update in (
        replace(second, signature=nonsense),
        replace(second, ciphertexts=b""),
    ):
        assert reason(parties, sealed(parties, update)) is Reason.DOUBLE_SIGNED


def test_copied_ciphertexts(parties, signed_plan):
    """Two members of one ring that conspire cannot stop the gateway on one digest."""
    federation = parties.federation
    one = federation.update(signed_plan, 0)
    members = [
        i for i, pair in enumerate(federation.devices) if pair.public in ring_of(one, parties)
    ]
    other = federation.update(signed_plan, members[1], ciphertexts=one.ciphertexts)
    assert one.ring == other.ring
    assert parties.admit(sealed(parties, one))
    assert reason(parties, sealed(parties, other)) is Reason.DOUBLE_SIGNED


def ring_of(update, parties):
    return parties.federation.rings[update.ring].keys


def test_one_signer_in_two_rounds_is_not_a_double(parties, signed_plan):
    """Device 0 was counted in round 1."""
    assert parties.admit(sealed(parties, parties.federation.update(signed_plan, 0)))


def test_a_full_round(parties, signed_plan):
    parties.submit(range(4))
    update = parties.federation.update(signed_plan, 5)
    assert reason(parties, sealed(parties, update)) is Reason.ROUND_FULL
    update = replace(update, ciphertexts=b"")
    assert reason(parties, sealed(parties, update)) is Reason.ROUND_FULL
    assert rounds.latest(parties.db).admitted == 4


@pytest.mark.parametrize("ciphertexts", [b"", b"\x00" * 8, b"\x00" * 10])
def test_ciphertexts_of_another_size(parties, signed_plan, ciphertexts):
    update = parties.federation.update(signed_plan, 0)
    for signature in (update.signature, b"\x05" * len(update.signature)):
        changed = replace(update, ciphertexts=ciphertexts, signature=signature)
        assert reason(parties, sealed(parties, changed)) is Reason.BAD_CIPHERTEXT


def test_a_signature_by_nobody(parties, signed_plan):
    good = parties.federation.update(signed_plan, 0)
    other = parties.federation.update(signed_plan, 1)
    for update in (
        replace(good, signature=bytes(len(good.signature))),
        replace(good, signature=good.signature[:-1] + bytes([good.signature[-1] ^ 1])),
        replace(good, signature=other.signature),
        replace(good, ring=1 - good.ring),
    ):
        assert reason(parties, sealed(parties, update)) is Reason.BAD_SIGNATURE


def test_a_signature_of_a_key_that_is_not_in_the_roster(parties, signed_plan):
    stranger = small_federation(n_max=4)
    plan = trust.open_round_plan(signed_plan, parties.federation.study)
    name, ciphertexts = digest(signed_plan), parties.federation.update(signed_plan, 0).ciphertexts
    signature = stranger.rings[0].sign(
        next(p.secret for p in stranger.devices if p.public in stranger.rings[0].keys),
        round_context(plan),
        update_digest(name, 0, ciphertexts),
    )
    update = SealedUpdate(name, 0, ciphertexts, signature)
    assert reason(parties, sealed(parties, update)) is Reason.BAD_SIGNATURE


def test_an_update_that_was_signed_for_another_round(parties, signed_plan):
    first = parties.db.execute("SELECT signed_plan FROM rounds WHERE round = 1").fetchone()[0]
    update = replace(parties.federation.update(first, 5), plan=digest(signed_plan))
    assert reason(parties, sealed(parties, update)) is Reason.BAD_SIGNATURE


# Crashes.


class Crash(BaseException):
    pass


class CrashingDatabase:
    """A database whose process dies before its n-th statement."""

    def __init__(self, db, left):
        self._db, self._left = db, left

    @property
    def in_transaction(self):
        return self._db.in_transaction

    def execute(self, statement, *values):
        if statement != "ROLLBACK":
            if not self._left:
                raise Crash
            self._left -= 1
        return self._db.execute(statement, *values)


def test_a_crash_at_any_statement_leaves_all_or_nothing(parties, signed_plan):
    parties.submit([3])
    update = parties.federation.update(signed_plan, 0)
    admitted = parties.check(sealed(parties, update))
    before = state(parties.db)
    statements = 0
    while True:
        database = CrashingDatabase(parties.db, statements)
        try:
            admission_fixture.fold(database, parties.open_round(), admitted, 100, keep=False)
            break
        except Crash:
            if parties.db.in_transaction:
                # Killed before COMMIT: the process is gone and its transaction with it.
                assert statements == 4
                parties.db.execute("ROLLBACK")
            assert state(parties.db) == before
        statements += 1
    assert statements == 5
    assert rounds.latest(parties.db).admitted == 2
    assert not parties.admit(sealed(parties, update))


def test_a_crash_in_the_addition_leaves_nothing(parties, signed_plan):
    parties.submit([3])
    admitted = parties.check(sealed(parties, parties.federation.update(signed_plan, 0)))
    before = state(parties.db)

    class Scheme:
        def __getattr__(self, name):
            return getattr(parties.federation.scheme, name)

        def encode_sum(self, total):
            raise Crash

    with pytest.raises(Crash):
        admission_fixture.fold(
            parties.db, replace(parties.open_round(), scheme=Scheme()), admitted, 1, keep=False
        )
    assert state(parties.db) == before


# Hostile bytes.


def unchanged(parties, box):
    before = state(parties.db)
    with contextlib.suppress(RefusedError):
        assert parties.check(box) is None  # at most a retry
    assert state(parties.db) == before


@pytest.fixture(scope="module")
def target(federation, tmp_path_factory):
    """A round with one update counted, an update that would count, and both their boxes."""
    parties = Parties(federation, tmp_path_factory.mktemp("hostile"))
    parties.begin(parties.propose())
    signed = rounds.latest(parties.db).signed_plan
    counted, fresh = federation.update(signed, 0), federation.update(signed, 1)
    parties.admit(sealed(parties, counted))
    yield parties, counted, fresh
    # The round goes on: what would have counted still does.
    assert parties.admit(sealed(parties, fresh))
    parties.close_databases()


@HOSTILE
@given(box=st.binary(max_size=4096))
def test_random_boxes(target, box):
    unchanged(target[0], box)


@HOSTILE
@given(message=st.binary(max_size=4096))
def test_random_messages_in_a_good_seal(target, message):
    parties = target[0]
    unchanged(parties, sealing.seal(message, bytes(parties.federation.sealing_key.public_key)))


@HOSTILE
@given(data=st.data())
def test_flipped_bits_of_a_box(target, data):
    parties, _, fresh = target
    box = bytearray(sealed(parties, fresh))
    box[data.draw(st.integers(0, len(box) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    before = state(parties.db)
    with pytest.raises(RefusedError):
        parties.check(bytes(box))
    assert state(parties.db) == before


@HOSTILE
@given(data=st.data(), which=st.booleans())
def test_flipped_bits_of_an_update_in_a_good_seal(target, data, which):
    parties, counted, fresh = target
    message = bytearray(encode(counted if which else fresh))
    for _ in range(data.draw(st.integers(1, 3))):
        message[data.draw(st.integers(0, len(message) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    if bytes(message) in (encode(counted), encode(fresh)):
        return  # flipped back
    key = bytes(parties.federation.sealing_key.public_key)
    unchanged(parties, sealing.seal(bytes(message), key))


@HOSTILE
@given(
    plan=st.sampled_from(["open", "other"]),
    ring=st.integers(0, 10_000),
    ciphertexts=st.binary(max_size=64),
    signature=st.binary(min_size=96, max_size=400),
)
def test_well_formed_nonsense(target, plan, ring, ciphertexts, signature):
    parties = target[0]
    name = rounds.latest(parties.db).plan if plan == "open" else b"\x01" * 32
    update = SealedUpdate(name, ring, ciphertexts, signature)
    before = state(parties.db)
    with pytest.raises(RefusedError):
        parties.check(sealed(parties, update))
    assert state(parties.db) == before


# Encrypted.


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory):
    federation = small_federation(secure_sum="single-he")
    parties = Parties(federation, tmp_path_factory.mktemp("he"))
    parties.begin(parties.propose())
    yield parties
    parties.close_databases()


def test_ciphertexts_that_cancel_one_another_are_refused(encrypted):
    """Two insiders send c and -c: their sum would be no ciphertext, and show that it is zero."""
    federation, db = encrypted.federation, encrypted.db
    signed, params = rounds.latest(db).signed_plan, federation.scheme.params
    one = federation.update(signed, 0)
    residues = decode_ciphertexts(one.ciphertexts, params)
    moduli = np.array(params.data_primes, dtype=np.uint64)[:, None]
    negative = encode_ciphertexts((moduli - residues) % moduli, params)
    other = federation.update(signed, 1, ciphertexts=negative)
    assert encrypted.admit(sealed(encrypted, one))
    before = state(db)
    admitted = encrypted.check(sealed(encrypted, other))
    with pytest.raises(RefusedError) as caught:
        admission_fixture.fold(db, encrypted.open_round(), admitted, 1, keep=False)
    assert caught.value.reason is Reason.BAD_CIPHERTEXT
    assert state(db) == before
    # The round goes on, and its sum is that of the rest.
    encrypted.submit([2, 3, 4])
    encrypted.close()
    encrypted.finish(encrypted.conclude())
    assert rounds.latest(db).status == "done"
    assert log.size(db) == 4 + 1 + 4 + 2


def test_a_transparent_ciphertext_is_refused(encrypted):
    federation = encrypted.federation
    encrypted.begin(encrypted.propose())
    signed = rounds.latest(encrypted.db).signed_plan
    transparent = bytes(federation.scheme.update_bytes)
    update = federation.update(signed, 0, ciphertexts=transparent)
    assert reason(encrypted, sealed(encrypted, update)) is Reason.BAD_CIPHERTEXT
