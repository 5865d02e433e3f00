"""The ceremony of a joint key: order, resumption, and every lie with whom it names (SPEC 5.14)."""

import copy
from dataclasses import replace

import numpy as np
import pytest
from ceremony_fixture import AGREED, CONTEXT, NAMES, SEEDS, Table
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.aggregator import ceremony_maker
from vitalring.aggregator.ceremony import Ceremony, joint_key_here
from vitalring.aggregator.ceremony_store import FolderStore, MemoryStore
from vitalring.aggregator.key_messages import pack, unpack
from vitalring.aggregator.rehearsal import UPDATES, prepare
from vitalring.errors import ConfigError, VitalRingError
from vitalring.protocol.cbor import decode, digest
from vitalring.protocol.key_records import (
    KeyCommit,
    KeyConsent,
    KeyDeal,
    KeyRehearsal,
    KeyReveal,
    rehearsal_sets,
)
from vitalring.protocol.packing import pack_fields, unpack_fields
from vitalring.protocol.records import SumKey
from vitalring.protocol.seal import Encryptor
from vitalring.protocol.signing import verify
from vitalring.protocol.threshold.decryption import combine, key_share
from vitalring.protocol.threshold.joint_key import check_piece, decode_contribution
from vitalring.protocol.threshold.pieces import Access


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


def test_a_status_writes_nothing(table_at):
    table = table_at(KeyDeal)
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


def test_the_fingerprint_must_be_heard_before_anything_is_signed(table_at):
    table = table_at(KeyRehearsal)
    status = table.party(0).advance()
    assert status.compare
    with pytest.raises(ConfigError, match="sign nothing"):
        table.party(0).confirm("0000 " * 8)
    assert table.party(0).advance().compare
    with pytest.raises(AssertionError):
        table.message(KeyConsent, 0)
    table.party(0).confirm(status.fingerprint.upper().replace(" ", "  "))
    assert table.party(0).advance().awaited == "6-consent"


def test_there_is_nothing_to_hear_before_there_is_a_key(table_at):
    with pytest.raises(ConfigError, match="no key to compare"):
        table_at(KeyCommit).party(0).confirm("0000")


def test_an_identity_of_somebody_else_takes_no_part():
    with pytest.raises(ConfigError, match="not the one of hospital north"):
        Ceremony(AGREED[2], 0, SEEDS[1], MemoryStore())


def test_a_damaged_file_accuses_nobody(table_at):
    table = table_at(KeyCommit)
    name = "1-commit.west.cbor"
    good = table.files[name]
    table.files[name] = good[:-1] + bytes([good[-1] ^ 1])
    status = table.party(0).advance()
    assert status.ended is None
    assert status.waiting == ("west",)
    assert name in status.unread[0]
    table.files[name] = good
    assert table.party(0).advance().awaited == "2-reveal"


def test_an_object_that_was_not_signed_accuses_nobody(table_at):
    table = table_at(KeyReveal)
    message = table.message(KeyReveal, 2)
    bundle = message.data.replace(message.objects[0][:64], bytes(64))
    table.files["2-reveal.west.cbor"] = bundle
    status = table.party(0).advance()
    assert status.waiting == ("west",)
    assert "not what was signed" in status.unread[0]


def test_names_of_files_do_not_matter(table_at):
    table = table_at(KeyCommit)
    table.files["Re: fwd (2).cbor"] = table.files.pop("1-commit.west.cbor")
    table.files["copy of it"] = table.files["1-commit.east.cbor"]
    assert table.party(0).advance().awaited == "2-reveal"


def test_files_of_another_attempt_are_left_aside(table_at):
    table = table_at(KeyCommit)
    record = replace(table.message(KeyCommit, 2).record, context=bytes(32))
    table.files["old"] = pack(record, SEEDS[2])
    status = table.party(0).advance()
    assert (status.foreign, status.awaited) == (1, "2-reveal")


def test_a_message_signed_by_another_hospital_is_not_used(table_at):
    table = table_at(KeyCommit)
    forged = pack(table.message(KeyCommit, 2).record, SEEDS[1])
    table.files["1-commit.west.cbor"] = forged
    status = table.party(0).advance()
    assert status.waiting == ("west",)
    assert "not signed by hospital 2" in status.unread[0]


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


def test_secrets_show_in_no_representation(histories, table_at):
    table = table_at(KeyDeal)
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
