"""Mutations of what hospitals and a gateway send: refused, the one encoding, or waited out."""

from collections import Counter

import numpy as np
import pytest
from hostile_fixture import CHALLENGE, HOSTILE, Gateway, mutated, packed, random_residues

from vitalring.aggregator.recompute import Recomputation, RefusalError
from vitalring.errors import CiphertextError
from vitalring.gateway import rounds
from vitalring.protocol import chunks
from vitalring.protocol.cbor import encode
from vitalring.protocol.release import SetPart
from vitalring.protocol.threshold.decryption import (
    decode_check,
    decode_part,
    encode_check,
    encode_part,
)
from vitalring.protocol.threshold.joint_key import (
    contribute,
    decode_contribution,
    encode_contribution,
)
from vitalring.protocol.threshold.pieces import decode_piece, encode_piece


def spoken(house):
    """Valid bytes of each kind that hospitals send one another, with how they are read back."""
    params = house.params
    check, part = house.shares[0].decrypt(house.total(), CHALLENGE)
    pieces, contribution = contribute(0, b"k" * 32, params)
    return {
        "part": (encode_part(part, params), lambda d: encode_part(decode_part(d, params), params)),
        "check": (
            encode_check(check, params),
            lambda d: encode_check(decode_check(d, params), params),
        ),
        "contribution": (
            encode_contribution(contribution, params),
            lambda d: encode_contribution(decode_contribution(d, 0, params), params),
        ),
        "piece": (
            encode_piece(pieces[0]),
            lambda d: encode_piece(decode_piece(d, pieces[0].index, params.bfv.degree)),
        ),
    }


@pytest.mark.parametrize("kind", ["part", "check", "contribution", "piece"])
def test_mutations_of_what_hospitals_send_are_refused_or_the_one_encoding(houses, kind):
    data, again = spoken(houses["threshold-he"])[kind]
    assert again(data) == data
    rng, refused = np.random.default_rng(21), 0
    for _ in range(400):
        content = mutated(rng, data, 50)
        try:
            assert again(content) == content
        except CiphertextError:
            refused += 1
    assert refused > 100


@pytest.fixture(scope="module")
def closed(houses, tmp_path_factory):
    """A closed round: what its gateway says of it, and the updates that it keeps."""
    gateway = Gateway(houses["threshold-he"], tmp_path_factory.mktemp("closed"))
    gateway.parties.now_ms += 20_000
    gateway.parties.close()
    said = rounds.latest(gateway.db)
    rows = gateway.db.execute("SELECT content FROM contributions ORDER BY digest").fetchall()
    yield said, [row[0] for row in rows]
    gateway.parties.close_databases()


def recomputation(house, said, spool):
    return Recomputation(house.study, said.signed_plan, said.report, said.receipts, spool)


def test_mutations_of_a_gateways_answer_are_refused_or_wait_for_another(houses, closed, tmp_path):
    """Of the updates in it, and of the whole: a hospital never adds up anything else."""
    house, (said, contents) = houses["threshold-he"], closed
    rng, fates = np.random.default_rng(22), Counter()
    for number in range(200):
        state = recomputation(house, said, tmp_path / "spool")
        request = state.requests(0.0)
        updates = list(contents)
        if number % 2:
            place = int(rng.integers(len(updates)))
            updates[place] = mutated(rng, updates[place], 50)
        message = encode(SetPart(request.plan, request.first, tuple(updates)))
        if not number % 2:
            message = mutated(rng, message, 50)
        try:
            for frame in chunks.split(message, 1 << 14, rng.bytes(16)):
                state.feed(frame, 0.0)
        except RefusalError as error:
            fates[error.refused.reason] += 1
        else:
            assert not state.complete or updates == contents
            fates["complete" if state.complete else "waits"] += 1
        state.discard()
    assert set(fates) <= {"bad_update", "missing_update", "double_update", "waits", "complete"}
    assert min(fates["bad_update"], fates["waits"]) > 10


def test_a_hospital_adds_up_what_its_gateway_did_and_opens_only_what_passes(houses, tmp_path):
    """A well-formed ciphertext that is no encryption reaches the hospitals; the check stops it."""
    house = houses["threshold-he"]
    gateway = Gateway(house, tmp_path / "gateway")
    gateway.admit(house.signed_by(HOSTILE, packed(house, random_residues(house))))
    gateway.parties.now_ms += 20_000
    gateway.parties.close()
    said = rounds.latest(gateway.db)
    state = recomputation(house, said, tmp_path / "spool")
    request = state.requests(0.0)
    rows = gateway.db.execute("SELECT content FROM contributions ORDER BY digest").fetchall()
    state.feed_part(SetPart(request.plan, request.first, tuple(row[0] for row in rows)))
    made = state.result()
    with pytest.raises(CiphertextError, match="check"):
        house.open(made.total)
    made.discard()
    gateway.parties.close_databases()
