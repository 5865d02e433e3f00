"""The ceremony of a joint key: order, resumption, and every lie with whom it names (SPEC 5.14)."""

import copy
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.public import PrivateKey

from vitalring.aggregator import ceremony_maker
from vitalring.aggregator.ceremony import Ceremony, joint_key_here
from vitalring.aggregator.ceremony_checks import Agreed, seals
from vitalring.aggregator.ceremony_store import FolderStore, MemoryStore
from vitalring.aggregator.key_messages import pack, unpack
from vitalring.aggregator.rehearsal import UPDATES, prepare
from vitalring.errors import ConfigError, VitalRingError
from vitalring.protocol.cbor import decode, digest
from vitalring.protocol.key_records import (
    STEPS,
    KeyCommit,
    KeyComplaint,
    KeyConsent,
    KeyDeal,
    KeyJoin,
    KeyRehearsal,
    KeyReveal,
    rehearsal_sets,
)
from vitalring.protocol.packing import pack_fields, unpack_fields
from vitalring.protocol.quantise import Codec
from vitalring.protocol.records import SumKey
from vitalring.protocol.seal import Encryptor
from vitalring.protocol.signing import public_key, verify
from vitalring.protocol.threshold import modular
from vitalring.protocol.threshold.decryption import combine, key_share
from vitalring.protocol.threshold.joint_key import (
    check_piece,
    commit,
    contribute,
    decode_contribution,
    encode_contribution,
)
from vitalring.protocol.threshold.params import choose_threshold_params
from vitalring.protocol.threshold.pieces import Access, SecretPiece, encode_piece

CONTEXT = bytes(range(32))
SEEDS = [bytes([10 + h]) * 32 for h in range(3)]
NAMES = ("north", "east", "west")


def agreed_of(threshold):
    params = choose_threshold_params(
        Codec(n_max=20, clip=1.0, weight_cap=1), 200, Access(3, threshold), releases=10
    )
    keys = tuple(map(public_key, SEEDS))
    return Agreed(params, CONTEXT, "north-sea", "hearts", NAMES, keys)


AGREED = {2: agreed_of(2), 3: agreed_of(3)}


class Table:
    """Three hospitals with a common exchange; `files` and each one's own things can be changed."""

    def __init__(self, threshold):
        self.agreed = AGREED[threshold]
        self.files = {}
        self.stores = [MemoryStore(self.files) for _ in SEEDS]

    def party(self, hospital):
        """A new object each time: nothing may depend on what an earlier one remembered."""
        return Ceremony(self.agreed, hospital, SEEDS[hospital], self.stores[hospital])

    def round(self):
        """Let everybody act on what lies there now, so that all make the same step."""
        before, made = dict(self.files), {}
        statuses = []
        for hospital, store in enumerate(self.stores):
            store.exchange = dict(before)
            statuses.append(self.party(hospital).advance())
            made |= store.exchange
            store.exchange = self.files
        self.files.update(made)
        return statuses

    def message(self, cls, hospital):
        for data in self.files.values():
            message = unpack(data, self.agreed.identity_keys)
            if isinstance(message.record, cls) and message.record.hospital == hospital:
                return message
        raise AssertionError

    def replace(self, cls, hospital, record, objects=()):
        """Let a hospital have said something else, and know no better itself."""
        old = self.message(cls, hospital).data
        new = pack(record, SEEDS[hospital], objects)
        for things in (self.files, *(store.own for store in self.stores)):
            for name, data in things.items():
                if data == old:
                    things[name] = new


def states(threshold):
    """The table after each round of everybody's `advance`, up to the signed key."""
    table, made = Table(threshold), []
    while not made or not all(status.done for status in made[-1][1]):
        statuses = table.round()
        assert all(status.ended is None for status in statuses)
        made.append((copy.deepcopy(table), statuses))
        if all(status.compare for status in statuses):
            for hospital in range(3):
                table.party(hospital).confirm(statuses[0].fingerprint)
    return made


@pytest.fixture(scope="module")
def histories():
    return {threshold: states(threshold) for threshold in (2, 3)}


@pytest.fixture
def at(histories):
    """Return the table as it stood when all had made the messages of a step and nothing more."""

    def _at(step, threshold=2):
        for table, _statuses in histories[threshold]:
            made = [decoded.record for decoded in map(table_unpack(table), table.files.values())]
            counts = [sum(record.hospital == h for record in made) for h in range(3)]
            if counts == [STEPS.index(step) + 1] * 3:
                return copy.deepcopy(table)
        raise AssertionError(step)

    return _at


def table_unpack(table):
    return lambda data: unpack(data, table.agreed.identity_keys)


@pytest.mark.parametrize("threshold", [2, 3])
def test_the_key_decrypts_and_all_signed_it(histories, threshold):
    table, statuses = histories[threshold][-1]
    agreed, bfv = table.agreed, table.agreed.params.bfv
    assert len({status.fingerprint for status in statuses}) == 1
    key = table.stores[0].results["sum-key.bin"]
    envelopes = {store.results["sum-key.cbor"] for store in table.stores}
    assert len(envelopes) == 1
    record = verify(SumKey, envelopes.pop(), set(agreed.identity_keys), 3)
    assert record == SumKey("north-sea", "hearts", "threshold-he", digest(key))
    fields = np.arange(bfv.fields, dtype=np.uint64) % np.uint64(bfv.field_max + 1)
    cipher = Encryptor(bfv, key).encrypt(pack_fields(fields, bfv))
    members = (0, 2) if threshold == 2 else (0, 1, 2)
    parts = {
        h: key_share(h, table.party(h).share().pieces, members, agreed.params).decrypt(
            cipher, bytes(32)
        )[1]
        for h in members
    }
    assert (unpack_fields(combine(cipher, parts, agreed.params), bfv, 1) == fields).all()


def test_nobody_goes_ahead_of_the_others():
    table = Table(2)
    assert table.party(0).advance().waiting == ("east", "west")
    assert table.party(0).advance().waiting == ("east", "west")
    assert table.party(1).advance().waiting == ("west",)
    assert sorted(table.files) == ["1-commit.east.cbor", "1-commit.north.cbor"]
    status = table.party(2).advance()
    assert (status.awaited, status.waiting) == ("2-reveal", ("north", "east"))
    assert table.party(0).status().ready


def test_a_status_writes_nothing(at):
    table = at(KeyDeal)
    before = copy.deepcopy((table.files, [store.own for store in table.stores]))
    assert table.party(0).status().ready
    assert (table.files, [store.own for store in table.stores]) == before


def test_what_a_finished_ceremony_leaves_opens_no_box(histories):
    table, _ = histories[2][-1]
    for store in table.stores:
        assert "draft" not in store.own
        assert "key.share" in store.own


class Killed(Exception):
    """The machine went down."""


class KillingStore(FolderStore):
    """Goes down once before and once after each write that it has not seen yet."""

    survived: set

    def _fragile(self, write, *arguments):
        for moment in ("before", "after"):
            mark = (moment, write.__name__, arguments[0])
            if moment == "after":
                write(*arguments)
            if mark not in self.survived:
                self.survived.add(mark)
                raise Killed

    def send(self, name, data):
        self._fragile(super().send, name, data)

    def keep(self, name, data):
        self._fragile(super().keep, name, data)

    def drop(self, name):
        self._fragile(super().drop, name)

    def publish(self, name, data):
        self._fragile(super().publish, name, data)


def test_a_machine_that_goes_down_at_every_write_says_nothing_twice(tmp_path):
    agreed, survived = AGREED[2], set()
    folders = [tmp_path / name for name in NAMES]
    seen: dict[str, bytes] = {}

    others = {h: Ceremony(agreed, h, SEEDS[h], FolderStore(folders[h], 1)) for h in range(1, 3)}

    def party(hospital):
        """The one that goes down is a new object each time."""
        if hospital:
            return others[hospital]
        store = KillingStore(folders[0], 1)
        object.__setattr__(store, "survived", survived)
        return Ceremony(agreed, 0, SEEDS[0], store)

    def carry():
        """E-mail: every file goes to everybody; none may ever change."""
        files = {path.name: path for f in folders for path in (f / "exchange").glob("attempt*")}
        for name, path in files.items():
            assert seen.setdefault(name, path.read_bytes()) == path.read_bytes()
            for folder in folders:
                (folder / "exchange").mkdir(parents=True, exist_ok=True)
                (folder / "exchange" / name).write_bytes(path.read_bytes())

    deaths, done = 0, [False] * 3
    for _ in range(200):
        for hospital in range(3):
            try:
                status = party(hospital).advance()
                if status.compare:
                    party(hospital).confirm(status.fingerprint)
            except Killed:
                deaths += 1
                continue
            assert status.ended is None
            assert status.unread == ()
            done[hospital] = status.done
            carry()
        if all(done):
            break
    assert all(done)
    assert deaths == len(survived) > 30
    keys = {(folder / "sum-key.bin").read_bytes() for folder in folders}
    assert len(keys) == 1
    secret = folders[0] / "private" / "attempt-1" / "key.share"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in secret.parent.iterdir() if "partial" in p.name] == []


def test_the_fingerprint_must_be_heard_before_anything_is_signed(at):
    table = at(KeyRehearsal)
    status = table.party(0).advance()
    assert status.compare
    with pytest.raises(ConfigError, match="sign nothing"):
        table.party(0).confirm("0000 " * 8)
    assert table.party(0).advance().compare
    with pytest.raises(AssertionError):
        table.message(KeyConsent, 0)
    table.party(0).confirm(status.fingerprint.upper().replace(" ", "  "))
    assert table.party(0).advance().awaited == "6-consent"


def test_there_is_nothing_to_hear_before_there_is_a_key(at):
    with pytest.raises(ConfigError, match="no key to compare"):
        at(KeyCommit).party(0).confirm("0000")


def test_an_identity_of_somebody_else_takes_no_part():
    with pytest.raises(ConfigError, match="not the one of hospital north"):
        Ceremony(AGREED[2], 0, SEEDS[1], MemoryStore())


def test_a_damaged_file_accuses_nobody(at):
    table = at(KeyCommit)
    name = "1-commit.west.cbor"
    good = table.files[name]
    table.files[name] = good[:-1] + bytes([good[-1] ^ 1])
    status = table.party(0).advance()
    assert status.ended is None
    assert status.waiting == ("west",)
    assert name in status.unread[0]
    table.files[name] = good
    assert table.party(0).advance().awaited == "2-reveal"


def test_an_object_that_was_not_signed_accuses_nobody(at):
    table = at(KeyReveal)
    message = table.message(KeyReveal, 2)
    bundle = message.data.replace(message.objects[0][:64], bytes(64))
    table.files["2-reveal.west.cbor"] = bundle
    status = table.party(0).advance()
    assert status.waiting == ("west",)
    assert "not what was signed" in status.unread[0]


def test_names_of_files_do_not_matter(at):
    table = at(KeyCommit)
    table.files["Re: fwd (2).cbor"] = table.files.pop("1-commit.west.cbor")
    table.files["copy of it"] = table.files["1-commit.east.cbor"]
    assert table.party(0).advance().awaited == "2-reveal"


def test_files_of_another_attempt_are_left_aside(at):
    table = at(KeyCommit)
    record = replace(table.message(KeyCommit, 2).record, context=bytes(32))
    table.files["old"] = pack(record, SEEDS[2])
    status = table.party(0).advance()
    assert (status.foreign, status.awaited) == (1, "2-reveal")


def test_a_message_signed_by_another_hospital_is_not_used(at):
    table = at(KeyCommit)
    forged = pack(table.message(KeyCommit, 2).record, SEEDS[1])
    table.files["1-commit.west.cbor"] = forged
    status = table.party(0).advance()
    assert status.waiting == ("west",)
    assert "not signed by hospital 2" in status.unread[0]


def ended(table, accuser, fault, *accused):
    """The attempt ends for `accuser`, and by its complaint for the others, who stop too."""
    status = table.party(accuser).advance()
    assert status.ended is not None
    assert (status.ended.fault, status.ended.accused) == (fault, accused)
    again = table.party(accuser).advance()
    assert again.ended == status.ended
    complaint = table.message(KeyComplaint, accuser)
    assert complaint.objects
    for other in {0, 1, 2} - {accuser, *(NAMES.index(name) for name in accused)}:
        seen = table.party(other).advance()
        assert seen.ended is not None
        assert seen.ended.accused == accused
        with pytest.raises(AssertionError):
            table.message(KeyConsent, other)
    return complaint.record


def test_two_messages_of_one_step(at):
    table = at(KeyCommit)
    record = replace(table.message(KeyCommit, 2).record, commitment=bytes(32))
    table.files["another"] = pack(record, SEEDS[2])
    ended(table, 0, "two_messages", "west")


def test_lost_state_is_noticed_by_the_hospital_itself(at):
    table = at(KeyCommit)
    table.stores[2].own.clear()
    status = table.party(2).advance()
    assert status.ended is not None
    assert status.ended.accused == ("west",)
    assert "lost its state" in status.ended.detail


def test_a_broken_commitment(at):
    table = at(KeyReveal)
    _, other = contribute(2, CONTEXT, table.agreed.params)
    data = encode_contribution(other, table.agreed.params)
    record = replace(table.message(KeyReveal, 2).record, contribution=digest(data))
    table.replace(KeyReveal, 2, record, (data,))
    ended(table, 0, "broken_commitment", "west")


def rogue(table):
    """A contribution that cancels what the others revealed, with a proof that is somebody's."""
    params, primes = table.agreed.params, table.agreed.params.bfv.primes
    others = [
        decode_contribution(table.message(KeyReveal, h).objects[0], h, params) for h in range(2)
    ]
    _, mine = contribute(2, CONTEXT, params)
    public = mine.publics[0]
    for contribution in others:
        for one in contribution.publics:
            public = modular.subtract(public, one, primes)
    publics = np.concatenate([public[None], mine.publics[1:]])
    return encode_contribution(replace(mine, publics=publics), params)


def test_a_rogue_key_made_after_the_others_revealed(at):
    table = at(KeyReveal)
    data = rogue(table)
    record = replace(table.message(KeyReveal, 2).record, contribution=digest(data))
    table.replace(KeyReveal, 2, record, (data,))
    ended(table, 0, "broken_commitment", "west")


def test_a_rogue_key_by_somebody_who_saw_the_others_before_it_committed(at):
    table = at(KeyReveal)
    data, opening = rogue(table), table.message(KeyReveal, 2).record
    promise = replace(
        table.message(KeyCommit, 2).record, commitment=commit(2, data, opening.salt, CONTEXT)
    )
    table.replace(KeyCommit, 2, promise)
    table.replace(KeyReveal, 2, replace(opening, contribution=digest(data)), (data,))
    ended(table, 0, "bad_contribution", "west")


def deal_wrongly(table, make):
    """Let west deal its piece to one other holder in another box; return that holder."""
    deal = table.message(KeyDeal, 2).record
    victim = deal.boxes[0].holder
    box_key = table.message(KeyCommit, victim).record.box_key
    boxes = (replace(deal.boxes[0], box=make(box_key)), *deal.boxes[1:])
    table.replace(KeyDeal, 2, replace(deal, boxes=boxes))
    return victim


def test_a_wrong_piece_is_shown_to_all(at):
    table = at(KeyDeal)
    degree = table.agreed.params.bfv.degree
    wrong = encode_piece(SecretPiece(0, np.ones(degree, dtype=np.int8)))
    victim = deal_wrongly(table, lambda box_key: seals(box_key, wrong))
    complaint = ended(table, victim, "bad_piece", "west")
    assert complaint.box_secret


def test_a_box_that_does_not_open(at):
    table = at(KeyDeal)
    ended(table, deal_wrongly(table, lambda _: bytes(1072)), "bad_box", "west")


def test_a_piece_that_is_left_out_or_for_somebody_else(at):
    table = at(KeyDeal)
    deal = table.message(KeyDeal, 2).record
    table.replace(KeyDeal, 2, replace(deal, boxes=()))
    ended(table, 0, "bad_box", "west")


def test_a_box_key_that_nothing_can_be_sealed_to(at):
    table = at(KeyReveal)
    table.replace(KeyCommit, 2, replace(table.message(KeyCommit, 2).record, box_key=bytes(32)))
    dealer = next(
        h for h in (0, 1) if any(2 in AGREED[2].params.access.holders(p) for p in dealt(h))
    )
    ended(table, dealer, "bad_box", "west")


def dealt(hospital):
    return AGREED[2].params.access.dealt_by(hospital)


def test_a_complaint_without_cause_falls_back_on_who_made_it(at):
    table = at(KeyDeal)
    dealer = table.message(KeyDeal, 2)
    victim = dealer.record.boxes[0].holder
    draft = decode(ceremony_maker.Draft, table.stores[victim].own["draft"])
    lie = KeyComplaint(CONTEXT, victim, (2,), "bad_piece", "not mine", draft.box_secret)
    table.files["complaint"] = pack(lie, SEEDS[victim], (dealer.data,))
    witness = next(h for h in (0, 1) if h != victim)
    status = table.party(witness).advance()
    assert status.ended is not None
    assert status.ended.accused == (NAMES[victim],)
    assert "in order" in status.ended.detail


def test_a_complaint_with_another_box_key_proves_nothing_but_stops_all(at):
    table = at(KeyDeal)
    lie = KeyComplaint(CONTEXT, 1, (2,), "bad_piece", "not mine", bytes(PrivateKey.generate()))
    table.files["complaint"] = pack(lie, SEEDS[1])
    status = table.party(0).advance()
    assert status.ended is not None
    assert (status.ended.accuser, status.ended.accused) == ("east", ("west",))
    assert "does not show it by itself" in status.ended.detail


@pytest.mark.parametrize("secret", [b"", b"short", bytes(32)])
@pytest.mark.parametrize("accused", [(), (2,), (63,), (1, 2)])
def test_no_complaint_brings_a_hospital_down(at, secret, accused):
    table = at(KeyDeal)
    lie = KeyComplaint(CONTEXT, 1, accused, "bad_box", "so there", secret)
    table.files["complaint"] = pack(lie, SEEDS[1], (b"no message",))
    status = table.party(0).advance()
    assert status.ended is not None
    assert status.ended.accuser == "east"
    assert "evidence" in status.unread[0]


def test_two_stories_of_one_contribution_come_out_at_the_join(at):
    table = at(KeyJoin)
    join = table.message(KeyJoin, 1).record
    table.replace(KeyJoin, 1, replace(join, contributions=(*join.contributions[:2], bytes(32))))
    status = table.party(0).advance()
    assert status.ended is not None
    assert status.ended.fault == "other_key"
    assert "west sent two" in status.ended.detail


def test_another_key_of_the_same_contributions(at):
    table = at(KeyJoin)
    table.replace(KeyJoin, 1, replace(table.message(KeyJoin, 1).record, key=bytes(32)))
    ended(table, 0, "other_key", "east")


def test_other_parts_than_promised(at):
    table = at(KeyRehearsal)
    message = table.message(KeyRehearsal, 1)
    objects = (message.objects[0], bytes(len(message.objects[1])), *message.objects[2:])
    parts = (replace(message.record.parts[0], part=digest(objects[1])), *message.record.parts[1:])
    table.replace(KeyRehearsal, 1, replace(message.record, parts=parts), objects)
    ended(table, 0, "broken_promise", "east")


def test_fewer_parts_than_sets_of_members(at):
    table = at(KeyJoin)
    join = table.message(KeyJoin, 1).record
    assert len(join.promises) == 2
    table.replace(KeyJoin, 1, replace(join, promises=join.promises[:1]))
    ended(table, 0, "broken_promise", "east")


def test_a_wrong_part_that_was_promised_ends_the_rehearsal(at):
    table = at(KeyRehearsal, threshold=3)
    message, join = table.message(KeyRehearsal, 1), table.message(KeyJoin, 1).record
    objects = (message.objects[0], bytes(len(message.objects[1])))
    parts = (replace(message.record.parts[0], part=digest(objects[1])),)
    table.replace(KeyJoin, 1, replace(join, promises=parts))
    table.replace(KeyRehearsal, 1, replace(message.record, parts=parts), objects)
    status = table.party(0).advance()
    assert status.ended is not None
    assert status.ended.fault == "bad_rehearsal"
    assert status.ended.accused == NAMES


def test_a_signature_of_another_key(histories):
    table = copy.deepcopy(histories[2][-1][0])
    del table.stores[0].own["done"]
    consent = table.message(KeyConsent, 1).record
    other = pack(replace(consent, sum_key=table.message(KeyConsent, 2).record.sum_key), SEEDS[1])
    for name, data in list(table.files.items()):
        if data == table.message(KeyConsent, 1).data:
            table.files[name] = other
            break
    status = table.party(0).advance()
    assert status.ended is not None
    assert (status.ended.fault, status.ended.accused) == ("other_key", ("east",))


def test_everybody_rehearses_the_same_sum_of_what_is_known(histories):
    table, _ = histories[2][-1]
    key = table.stores[0].results["sum-key.bin"]
    one, two = (prepare(CONTEXT, key, table.agreed.params) for _ in range(2))
    assert one.digest == two.digest
    assert one.params.bfv.ciphertexts == 1
    assert int(one.fields.max()) > one.params.bfv.field_max  # a sum, not one update
    assert UPDATES == 2
    other = prepare(bytes(32), key, table.agreed.params)
    assert other.digest != one.digest


@given(st.integers(2, 12), st.data())
def test_every_hospital_rehearses_once_or_twice(hospitals, data):
    threshold = data.draw(st.integers(2, hospitals))
    sets = rehearsal_sets(Access(hospitals, threshold))
    assert all(len(set(members)) == threshold for members in sets)
    for hospital in range(hospitals):
        assert 1 <= sum(hospital in members for members in sets) <= 2
    assert len(sets) == -(-hospitals // threshold)


def test_secrets_show_in_no_representation(histories, at):
    table = at(KeyDeal)
    draft = decode(ceremony_maker.Draft, table.stores[0].own["draft"])
    share = histories[2][-1][0].party(0).share()
    shown = repr((draft, share, table.stores, table.party(0).__dict__))
    assert "pieces" not in repr(share)
    for secret in (draft.box_secret, draft.salt, draft.pieces[0]):
        assert repr(secret)[2:-1] not in shown
        assert secret.hex() not in shown


def test_a_key_for_a_simulation():
    params = AGREED[3].params
    key, shares = joint_key_here(params, CONTEXT)
    assert [len(pieces) for pieces in shares] == [1, 1, 1]
    assert len({piece.index for pieces in shares for piece in pieces}) == 3
    fields = np.ones(params.bfv.fields, dtype=np.uint64)
    cipher = Encryptor(params.bfv, key).encrypt(pack_fields(fields, params.bfv))
    parts = {
        h: key_share(h, pieces, (0, 1, 2), params).decrypt(cipher, bytes(32))[1]
        for h, pieces in enumerate(shares)
    }
    assert (unpack_fields(combine(cipher, parts, params), params.bfv, 1) == fields).all()


@settings(max_examples=200)
@given(st.data())
def test_hostile_bytes_are_refused_by_name(histories, data):
    table, _ = histories[2][-1]
    good = data.draw(st.sampled_from(sorted(table.files.values())))
    place = data.draw(st.integers(0, len(good) - 1))
    change = data.draw(st.sampled_from(["flip", "cut", "add"]))
    bad = {
        "flip": good[:place]
        + bytes([good[place] ^ data.draw(st.integers(1, 255))])
        + good[place + 1 :],
        "cut": good[:place],
        "add": good[:place] + b"\x00" + good[place:],
    }[change]
    with pytest.raises(VitalRingError):
        unpack(bad, table.agreed.identity_keys)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_by_name(data):
    with pytest.raises(VitalRingError):
        unpack(data, AGREED[2].identity_keys)


def test_pieces_of_the_transcript_are_those_of_the_contributions(histories):
    table, _ = histories[2][-1]
    params = table.agreed.params
    for hospital in range(3):
        for piece in table.party(hospital).share().pieces:
            dealer = params.access.dealer(piece.index)
            data = table.message(KeyReveal, dealer).objects[0]
            check_piece(piece, decode_contribution(data, dealer, params), CONTEXT, params)
