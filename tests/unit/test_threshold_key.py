"""The joint key: common polynomial, contributions, commitments, proofs (SPEC 5.13 to 5.15)."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.errors import CiphertextError
from vitalring.protocol.bfv import BfvParams, largest_primes
from vitalring.protocol.ciphertext import decode_public_key
from vitalring.protocol.quantise import Codec
from vitalring.protocol.seal import from_ntt, to_ntt
from vitalring.protocol.threshold import modular, possession
from vitalring.protocol.threshold.encoding import decode_polynomials, encode_polynomials
from vitalring.protocol.threshold.joint_key import (
    check_commitment,
    check_contribution,
    check_piece,
    commit,
    common_polynomial,
    contribute,
    decode_contribution,
    encode_contribution,
    join,
)
from vitalring.protocol.threshold.params import ThresholdParams, choose_threshold_params
from vitalring.protocol.threshold.pieces import Access, SecretPiece

CONTEXT = bytes(range(32))
PARAMS = choose_threshold_params(
    Codec(n_max=50, clip=1.0, weight_cap=1), 4_000, Access(3, 2), releases=10
)
PRIMES = PARAMS.bfv.primes
SMALL = ThresholdParams(
    BfvParams(8, largest_primes(8, 20, 2), 10, 3, 1, 8), Access(3, 2), 1, 128, 40, 5
)


@pytest.fixture(scope="module")
def made():
    return [contribute(h, CONTEXT, PARAMS) for h in range(3)]


def negacyclic(left, right, prime):
    """Multiply modulo X^N + 1 and a prime by one large integer product (Kronecker)."""
    degree, width = len(left), 128
    size = width // 8
    one, two = (
        int.from_bytes(b"".join(int(x).to_bytes(size, "little") for x in row), "little")
        for row in (left, right)
    )
    data = (one * two).to_bytes(2 * degree * size, "little")
    full = [int.from_bytes(data[i : i + size], "little") for i in range(0, len(data), size)]
    return [(full[i] - full[i + degree]) % prime for i in range(degree)]


def test_the_common_polynomial_by_another_reading_of_its_definition():
    common = common_polynomial(CONTEXT, PARAMS)
    for j, prime in enumerate(PRIMES):
        stream = hashlib.shake_256(
            b"vitalring/common-polynomial/1\0" + CONTEXT + bytes([j])
        ).digest(8 * 4 * PARAMS.bfv.degree)
        words = (int.from_bytes(stream[i : i + 8], "little") for i in range(0, len(stream), 8))
        kept = [w % 2 ** prime.bit_length() for w in words]
        kept = [w for w in kept if w < prime][: PARAMS.bfv.degree]
        assert common[j].tolist() == kept
    assert not (common_polynomial(bytes(32), PARAMS) == common).any(axis=1).all()


def test_rejection_is_exercised_and_the_stream_is_long_enough():
    # 12289 takes 14 bits, so that a quarter of the words is skipped.
    bfv = BfvParams(2048, (12289,), 1, 1, 1, 1)
    rows = common_polynomial(CONTEXT, replace(PARAMS, bfv=bfv))
    assert rows.shape == (1, 2048)
    assert 12_000 < int(rows.max()) < 12289


def test_frozen_common_polynomial():
    data = encode_polynomials(common_polynomial(bytes(32), SMALL)[None], SMALL.bfv.primes)
    assert hashlib.sha256(data).hexdigest() == (
        "7193a0b40b585e18e27d26d29e593d2e50175328ceadfa7a0eba446b733a94bd"
    )


def test_a_contribution_is_an_encryption_key_of_its_piece(made):
    """b + a s is a small error, by a product of large integers."""
    pieces, contribution = made[0]
    (piece,) = pieces
    prime = PRIMES[0]
    common = from_ntt(common_polynomial(CONTEXT, PARAMS), PRIMES)[0]
    public = from_ntt(contribution.publics[0], PRIMES)[0]
    product = negacyclic(common, piece.ternary.astype(object) % prime, prime)
    errors = [(-int(b) - x) % prime for b, x in zip(public, product, strict=True)]
    errors = np.array([e - prime if e > prime // 2 else e for e in errors])
    # 4,096 draws of a binomial of 42 coins: all within 6 has a chance of 2**-263.
    assert 6 < np.abs(errors).max() <= 21
    assert 2.9 < errors.std() < 3.6
    assert set(piece.ternary.tolist()) == {-1, 0, 1}
    assert 0.6 < (piece.ternary != 0).mean() < 0.73


def test_the_joint_key_is_the_sum_of_contributions(made):
    contributions = [contribution for _, contribution in made]
    public = decode_public_key(join(contributions[::-1], CONTEXT, PARAMS), PARAMS.bfv)
    total = sum(c.publics.sum(axis=0).astype(object) for c in contributions)
    moduli = np.array(PRIMES, dtype=object)[:, None]
    assert (public[0] == total % moduli).all()
    assert (public[1] == common_polynomial(CONTEXT, PARAMS)).all()


@pytest.mark.parametrize("given_", [(), (0,), (0, 1), (0, 1, 1), (0, 0, 1, 2)])
def test_a_missing_or_repeated_contribution_is_refused(made, given_):
    with pytest.raises(CiphertextError, match="contributions of hospitals"):
        join([made[h][1] for h in given_], CONTEXT, PARAMS)


def test_contributions_survive_their_encoding(made):
    for hospital, (_, contribution) in enumerate(made):
        data = encode_contribution(contribution, PARAMS)
        back = decode_contribution(data, hospital, PARAMS)
        assert (back.publics == contribution.publics).all()
        check_contribution(back, CONTEXT, PARAMS)
        assert encode_contribution(back, PARAMS) == data
        with pytest.raises(CiphertextError, match="bytes"):
            decode_contribution(data[:-1], hospital, PARAMS)


def test_a_proof_is_no_use_elsewhere(made):
    own, other = made[0][1], made[1][1]
    with pytest.raises(CiphertextError, match="hospital 0 for key piece 2 does not verify"):
        check_contribution(own, bytes(32), PARAMS)
    copied = replace(own, hospital=1)
    with pytest.raises(CiphertextError, match=r"hospital 1 .* does not verify"):
        check_contribution(copied, CONTEXT, PARAMS)
    with pytest.raises(CiphertextError, match="does not verify"):
        check_contribution(replace(own, proofs=other.proofs), CONTEXT, PARAMS)


def test_a_rogue_contribution_has_no_proof(made):
    """The classic attack: cancel the others and put an own key in their place."""
    pieces, own = made[0]
    others = modular.add(made[1][1].publics[0], made[2][1].publics[0], PRIMES)
    rogue = modular.subtract(own.publics[0], others, PRIMES)
    joined = join([replace(own, publics=rogue[None]), made[1][1], made[2][1]], CONTEXT, PARAMS)
    # It works if nobody looks: the joint key is the rogue's alone ...
    assert (decode_public_key(joined, PARAMS.bfv)[0] == own.publics[0]).all()
    # ... but its proof fails, the commitment came before the others, and holders see it.
    forged = replace(own, publics=rogue[None])
    with pytest.raises(CiphertextError, match="does not verify"):
        check_contribution(forged, CONTEXT, PARAMS)
    with pytest.raises(CiphertextError, match="not the secret"):
        check_piece(pieces[0], forged, CONTEXT, PARAMS)
    promise = commit(0, encode_contribution(own, PARAMS), bytes(32), CONTEXT)
    with pytest.raises(CiphertextError, match="another contribution"):
        check_commitment(promise, 0, encode_contribution(forged, PARAMS), bytes(32), CONTEXT)


def test_long_answers_are_refused_even_if_the_equation_holds(made):
    _, contribution = made[0]
    statement = possession.Statement(
        CONTEXT, 0, 2, common_polynomial(CONTEXT, PARAMS), contribution.publics[0]
    )
    proof = contribution.proofs[0]
    answers = proof.answers.copy()
    answers[0, 0] = -(1 << 23)
    with pytest.raises(CiphertextError, match="too long"):
        possession.verify(statement, replace(proof, answers=answers), PRIMES)
    answers = proof.answers.copy()
    answers[1, 5] += 1
    with pytest.raises(CiphertextError, match="does not verify"):
        possession.verify(statement, replace(proof, answers=answers), PRIMES)


def test_the_equation_of_a_proof_by_integers(made):
    """a z + z' + c b, multiplied out, is what the challenge is the hash of."""
    _, contribution = made[1]
    proof = contribution.proofs[0]
    degree = PARAMS.bfv.degree
    challenge = possession._expand(proof.challenge, degree)
    assert int(np.abs(challenge).sum()) == 16
    common = common_polynomial(CONTEXT, PARAMS)
    rows = []
    for j, prime in enumerate(PRIMES):
        a, b = (from_ntt(x, PRIMES)[j] for x in (common, contribution.publics[0]))
        z, rest = (row.astype(object) % prime for row in proof.answers)
        left = negacyclic(a, z, prime)
        right = negacyclic(b, challenge.astype(object) % prime, prime)
        rows.append([(x + y + int(w)) % prime for x, y, w in zip(left, right, rest, strict=True)])
    mask = to_ntt(np.array(rows, dtype=np.uint64), PRIMES)
    (index,) = PARAMS.access.dealt_by(1)
    head = b"vitalring/key-possession/1\0" + CONTEXT + bytes([0, 1, 0, index])
    body = encode_polynomials(np.stack([common, contribution.publics[0], mask]), PRIMES)
    assert hashlib.sha256(head + body).digest() == proof.challenge


def test_answers_do_not_depend_on_the_secret():
    """Over many small proofs of one extreme secret the answers stay centred and uniform."""
    bfv = BfvParams(1024, largest_primes(1024, 40, 2), 1, 1, 1, 1)
    secret, error = np.ones(1024, dtype=np.int8), np.full(1024, 21)
    common = common_polynomial(CONTEXT, replace(PARAMS, bfv=bfv))
    noise = to_ntt(modular.reduce(error, bfv.primes), bfv.primes)
    product = modular.multiply(
        common, to_ntt(modular.reduce(secret.astype(np.int64), bfv.primes), bfv.primes), bfv.primes
    )
    zero = np.zeros_like(noise)
    public = modular.subtract(zero, modular.add(product, noise, bfv.primes), bfv.primes)
    statement = possession.Statement(CONTEXT, 0, 0, common, public)
    answers = []
    for _ in range(20):
        proof = possession.prove(statement, secret, error, bfv.primes)
        possession.verify(statement, proof, bfv.primes)
        answers.append(proof.answers)
    values = np.concatenate(answers, axis=1) / (1 << 23)
    assert np.abs(values.mean(axis=1)).max() < 6 / np.sqrt(3 * values.shape[1])
    assert np.abs(values.std(axis=1) - 3**-0.5).max() < 0.02


def test_shifting_is_multiplication_by_a_challenge():
    rng = np.random.default_rng(4)
    rows = rng.integers(-21, 22, (2, 64))
    challenge = possession._expand(b"x" * 32, 64)
    prime = 12289
    product = possession._times_sparse(rows, challenge) % prime
    for row, found in zip(rows, product, strict=True):
        assert found.tolist() == negacyclic(row % prime, challenge % prime, prime)


def test_a_piece_is_checked_against_what_everybody_has(made):
    pieces, contribution = made[0]
    (piece,) = pieces
    check_piece(piece, contribution, CONTEXT, PARAMS)
    wrong = piece.ternary.copy()
    wrong[7] = (wrong[7] + 2) % 3 - 1
    with pytest.raises(CiphertextError, match="not the secret"):
        check_piece(replace(piece, ternary=wrong), contribution, CONTEXT, PARAMS)
    with pytest.raises(CiphertextError, match="does not deal"):
        check_piece(piece, made[1][1], CONTEXT, PARAMS)
    with pytest.raises(CiphertextError, match="not the secret"):
        check_piece(SecretPiece(piece.index, made[1][0][0].ternary), contribution, CONTEXT, PARAMS)


def test_a_commitment_is_to_all_of_its_parts(made):
    data = encode_contribution(made[0][1], PARAMS)
    salt = b"s" * 32
    promise = commit(0, data, salt, CONTEXT)
    domain = b"vitalring/key-commitment/1\0"
    assert promise == hashlib.sha256(domain + CONTEXT + b"\0\0" + salt + data).digest()
    check_commitment(promise, 0, data, salt, CONTEXT)
    for change in (
        (1, data, salt, CONTEXT),
        (0, data[:-1] + b"\0", salt, CONTEXT),
        (0, data, b"t" * 32, CONTEXT),
        (0, data, salt, bytes(32)),
    ):
        with pytest.raises(CiphertextError, match="another contribution"):
            check_commitment(promise, *change)
    with pytest.raises(CiphertextError, match="salt"):
        commit(0, data, b"short", CONTEXT)
    with pytest.raises(CiphertextError, match="context"):
        commit(0, data, salt, b"short")


def test_keys_of_one_context_differ():
    one, two = (contribute(0, CONTEXT, PARAMS)[1].publics for _ in range(2))
    assert (one != two).mean() > 0.99


def test_nothing_shows_a_secret(made):
    text = repr(made)
    assert "ternary" not in text
    assert "answers" not in text
    assert "array" not in text


PROOF_BYTES = 32 + 2 * 24
POLYNOMIAL_BYTES = 2 * 20


@settings(max_examples=200)
@given(st.binary(min_size=POLYNOMIAL_BYTES + PROOF_BYTES, max_size=POLYNOMIAL_BYTES + PROOF_BYTES))
def test_any_contribution_of_the_right_length_is_refused_or_has_one_encoding(data):
    try:
        contribution = decode_contribution(data, 0, SMALL)
    except CiphertextError as error:
        assert "not below its prime" in str(error)
        return
    assert encode_contribution(contribution, SMALL) == data


@given(st.binary(max_size=400))
def test_any_other_length_is_refused(data):
    if len(data) == POLYNOMIAL_BYTES + PROOF_BYTES:
        return
    with pytest.raises(CiphertextError, match="bytes"):
        decode_contribution(data, 0, SMALL)


@given(st.integers(0, 3), st.data())
def test_polynomials_survive_their_encoding(count, data):
    primes = SMALL.bfv.primes
    values = [
        [data.draw(st.lists(st.integers(0, p - 1), min_size=8, max_size=8)) for p in primes]
        for _ in range(count)
    ]
    rows = np.array(values, dtype=np.uint64).reshape(count, 2, 8)
    encoded = encode_polynomials(rows, primes)
    assert len(encoded) == count * POLYNOMIAL_BYTES
    assert (decode_polynomials(encoded, count, primes, 8) == rows).all()


def test_residues_out_of_range_are_refused_both_ways():
    primes = SMALL.bfv.primes
    rows = np.full((1, 2, 8), primes[1], dtype=np.uint64)
    with pytest.raises(CiphertextError, match="not below its prime"):
        encode_polynomials(rows, primes)
    with pytest.raises(CiphertextError, match="not below its prime"):
        decode_polynomials(b"\xff" * POLYNOMIAL_BYTES, 1, primes, 8)
    with pytest.raises(CiphertextError, match="shape"):
        encode_polynomials(rows[0], primes)
