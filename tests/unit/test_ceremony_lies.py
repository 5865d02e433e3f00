"""Hospitals that lie in a ceremony end it, and what they signed names them."""

import copy
from dataclasses import replace

import numpy as np
import pytest
from ceremony_fixture import AGREED, CONTEXT, NAMES, SEEDS
from nacl.public import PrivateKey

from vitalring.aggregator import ceremony_maker
from vitalring.aggregator.ceremony_checks import seals
from vitalring.aggregator.key_messages import pack
from vitalring.protocol.cbor import decode, digest
from vitalring.protocol.key_records import (
    KeyCommit,
    KeyComplaint,
    KeyConsent,
    KeyDeal,
    KeyJoin,
    KeyRehearsal,
    KeyReveal,
)
from vitalring.protocol.threshold import modular
from vitalring.protocol.threshold.joint_key import (
    commit,
    contribute,
    decode_contribution,
    encode_contribution,
)
from vitalring.protocol.threshold.pieces import SecretPiece, encode_piece


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


def test_two_messages_of_one_step(table_at):
    table = table_at(KeyCommit)
    record = replace(table.message(KeyCommit, 2).record, commitment=bytes(32))
    table.files["another"] = pack(record, SEEDS[2])
    ended(table, 0, "two_messages", "west")


def test_lost_state_is_noticed_by_the_hospital_itself(table_at):
    table = table_at(KeyCommit)
    table.stores[2].own.clear()
    status = table.party(2).advance()
    assert status.ended is not None
    assert status.ended.accused == ("west",)
    assert "lost its state" in status.ended.detail


def test_a_broken_commitment(table_at):
    table = table_at(KeyReveal)
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


def test_a_rogue_key_made_after_the_others_revealed(table_at):
    table = table_at(KeyReveal)
    data = rogue(table)
    record = replace(table.message(KeyReveal, 2).record, contribution=digest(data))
    table.replace(KeyReveal, 2, record, (data,))
    ended(table, 0, "broken_commitment", "west")


def test_a_rogue_key_by_somebody_who_saw_the_others_before_it_committed(table_at):
    table = table_at(KeyReveal)
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


def test_a_wrong_piece_is_shown_to_all(table_at):
    table = table_at(KeyDeal)
    degree = table.agreed.params.bfv.degree
    wrong = encode_piece(SecretPiece(0, np.ones(degree, dtype=np.int8)))
    victim = deal_wrongly(table, lambda box_key: seals(box_key, wrong))
    complaint = ended(table, victim, "bad_piece", "west")
    assert complaint.box_secret


def test_a_box_that_does_not_open(table_at):
    table = table_at(KeyDeal)
    ended(table, deal_wrongly(table, lambda _: bytes(1072)), "bad_box", "west")


def test_a_piece_that_is_left_out_or_for_somebody_else(table_at):
    table = table_at(KeyDeal)
    deal = table.message(KeyDeal, 2).record
    table.replace(KeyDeal, 2, replace(deal, boxes=()))
    ended(table, 0, "bad_box", "west")


def test_a_box_key_that_nothing_can_be_sealed_to(table_at):
    table = table_at(KeyReveal)
    table.replace(KeyCommit, 2, replace(table.message(KeyCommit, 2).record, box_key=bytes(32)))
    dealer = next(
        h for h in (0, 1) if any(2 in AGREED[2].params.access.holders(p) for p in dealt(h))
    )
    ended(table, dealer, "bad_box", "west")


def dealt(hospital):
    return AGREED[2].params.access.dealt_by(hospital)


def test_a_complaint_without_cause_falls_back_on_who_made_it(table_at):
    table = table_at(KeyDeal)
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


def test_a_complaint_with_another_box_key_proves_nothing_but_stops_all(table_at):
    table = table_at(KeyDeal)
    lie = KeyComplaint(CONTEXT, 1, (2,), "bad_piece", "not mine", bytes(PrivateKey.generate()))
    table.files["complaint"] = pack(lie, SEEDS[1])
    status = table.party(0).advance()
    assert status.ended is not None
    assert (status.ended.accuser, status.ended.accused) == ("east", ("west",))
    assert "does not show it by itself" in status.ended.detail


@pytest.mark.parametrize("secret", [b"", b"short", bytes(32)])
@pytest.mark.parametrize("accused", [(), (2,), (63,), (1, 2)])
def test_no_complaint_brings_a_hospital_down(table_at, secret, accused):
    table = table_at(KeyDeal)
    lie = KeyComplaint(CONTEXT, 1, accused, "bad_box", "so there", secret)
    table.files["complaint"] = pack(lie, SEEDS[1], (b"no message",))
    status = table.party(0).advance()
    assert status.ended is not None
    assert status.ended.accuser == "east"
    assert "evidence" in status.unread[0]


def test_two_stories_of_one_contribution_come_out_at_the_join(table_at):
    table = table_at(KeyJoin)
    join = table.message(KeyJoin, 1).record
    table.replace(KeyJoin, 1, replace(join, contributions=(*join.contributions[:2], bytes(32))))
    status = table.party(0).advance()
    assert status.ended is not None
    assert status.ended.fault == "other_key"
    assert "west sent two" in status.ended.detail


def test_another_key_of_the_same_contributions(table_at):
    table = table_at(KeyJoin)
    table.replace(KeyJoin, 1, replace(table.message(KeyJoin, 1).record, key=bytes(32)))
    ended(table, 0, "other_key", "east")


def test_other_parts_than_promised(table_at):
    table = table_at(KeyRehearsal)
    message = table.message(KeyRehearsal, 1)
    objects = (message.objects[0], bytes(len(message.objects[1])), *message.objects[2:])
    parts = (replace(message.record.parts[0], part=digest(objects[1])), *message.record.parts[1:])
    table.replace(KeyRehearsal, 1, replace(message.record, parts=parts), objects)
    ended(table, 0, "broken_promise", "east")


def test_fewer_parts_than_sets_of_members(table_at):
    table = table_at(KeyJoin)
    join = table.message(KeyJoin, 1).record
    assert len(join.promises) == 2
    table.replace(KeyJoin, 1, replace(join, promises=join.promises[:1]))
    ended(table, 0, "broken_promise", "east")


def test_a_wrong_part_that_was_promised_ends_the_rehearsal(table_at):
    table = table_at(KeyRehearsal, threshold=3)
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
