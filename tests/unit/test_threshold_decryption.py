"""Threshold decryption on real ciphertexts (SPEC 5.16 to 5.20)."""

import hashlib
from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from math import prod, sqrt

import numpy as np
import pytest
from residues_fixture import centred, integers

from vitalring.errors import CiphertextError, ConfigError
from vitalring.protocol.bfv import largest_primes
from vitalring.protocol.ciphertext import add, decode_ciphertexts, encode_ciphertexts, shorten
from vitalring.protocol.packing import pack_fields, unpack_fields
from vitalring.protocol.quantise import Codec
from vitalring.protocol.seal import Encryptor, from_ntt, scale_and_round, to_ntt
from vitalring.protocol.threshold import modular
from vitalring.protocol.threshold.decryption import (
    check_weights,
    combine,
    decode_check,
    decode_part,
    encode_check,
    encode_part,
    key_share,
    open_checks,
)
from vitalring.protocol.threshold.joint_key import check_piece, contribute, join
from vitalring.protocol.threshold.params import (
    ThresholdParams,
    check_noise_bound,
    choose_threshold_params,
    combined_noise_bound,
    sum_noise_bound,
)
from vitalring.protocol.threshold.pieces import Access

CONTEXT = b"k" * 32
CHALLENGE = b"c" * 32
CODEC = Codec(n_max=10_000, clip=1.0, weight_cap=1)
FIELDS = 6_000


class Federation:
    """Hospitals that have made a key, and devices that encrypt under it."""

    def __init__(self, access: Access, codec: Codec = CODEC, dimension: int = FIELDS) -> None:
        self.params = choose_threshold_params(codec, dimension, access, releases=200)
        self.access = access
        made = [contribute(h, CONTEXT, self.params) for h in range(access.hospitals)]
        self.pieces = {piece.index: piece for pieces, _ in made for piece in pieces}
        for index, piece in self.pieces.items():
            check_piece(piece, made[access.dealer(index)][1], CONTEXT, self.params)
        self.key = join([c for _, c in made], CONTEXT, self.params)
        self.encryptor = Encryptor(self.params.bfv, self.key)

    def held_by(self, hospital: int):
        return [self.pieces[i] for i in self.access.held_by(hospital)]

    def update(self, seed: int):
        """Return an update's fields and ciphertexts."""
        bfv = self.params.bfv
        fields = np.random.default_rng(seed).integers(
            0, bfv.field_max + 1, bfv.fields, dtype=np.uint64
        )
        return fields, self.encryptor.encrypt(pack_fields(fields, bfv))

    def sum(self, count: int, fresh: int):
        """Return the fields and ciphertexts of a sum of `count` updates, `fresh` of them new."""
        bfv = self.params.bfv
        total, cipher = self.update(0)
        for seed in range(1, fresh):
            fields, residues = self.update(seed)
            total, cipher = total + fields, add(cipher, residues, bfv)
        once, repeated = cipher, cipher
        for _ in range(count // fresh - 1):
            repeated = add(repeated, once, bfv)
        return total * np.uint64(count // fresh), repeated

    def part(self, hospital: int, members, cipher):
        return self.decrypt(hospital, members, cipher)[1]

    def decrypt(self, hospital: int, members, cipher):
        """Return a hospital's check and part."""
        share = key_share(hospital, self.held_by(hospital), members, self.params)
        return share.decrypt(cipher, CHALLENGE)

    def parts(self, members, cipher):
        return {h: self.part(h, members, cipher) for h in members}

    def secret(self):
        return sum(piece.ternary.astype(np.int64) for piece in self.pieces.values())


def phase_of(cipher, parts, params: ThresholdParams):
    """Return c0 plus all parts of each ciphertext as integers below q, (ciphertexts, degree)."""
    primes = params.bfv.data_primes
    rows = [integers(pair[0], primes) for pair in cipher]
    for part in parts.values():
        rows = [r + integers(p, primes) for r, p in zip(rows, part, strict=True)]
    return np.stack(rows) % prod(primes)


def decode(phase, params: ThresholdParams):
    """Scale and round by integers; return plaintext and t times the noise."""
    q, t = prod(params.bfv.data_primes), params.bfv.plain_modulus
    plain = (2 * t * phase + q) // (2 * q) % t
    return plain, centred(t * phase - q * plain, q * t)


def open_checks_of(federation, members, cipher, lie=None):
    """Open a sum's check, with members' checks as bytes in between."""
    params = federation.params
    checks = {h: federation.decrypt(h, members, cipher)[0] for h in members}
    checks = {h: decode_check(encode_check(c, params), params) for h, c in checks.items()}
    if lie is not None:
        checks[members[1]] = lie(federation, cipher)
    open_checks(cipher, checks, CHALLENGE, params)


@pytest.fixture(scope="module")
def three():
    return Federation(Access(3, 2))


@pytest.mark.parametrize(
    "access", [Access(3, 3), Access(3, 2), Access(5, 5), Access(5, 3)], ids=str
)
def test_sums_of_1_and_1000_and_10000_are_exact_whoever_decrypts(access):
    federation = Federation(access)
    bfv = federation.params.bfv
    choices = list(combinations(range(access.hospitals), access.threshold))
    for turn, (count, fresh) in enumerate([(1, 1), (1_000, 25), (10_000, 100)]):
        expected, cipher = federation.sum(count, fresh)
        # What travels is bytes.
        cipher = decode_ciphertexts(encode_ciphertexts(cipher, bfv), bfv)
        for members in {choices[turn % len(choices)], choices[-1]}:
            parts = {
                h: decode_part(encode_part(part, federation.params), federation.params)
                for h, part in federation.parts(members, cipher).items()
            }
            open_checks_of(federation, members, cipher)
            coefficients = combine(cipher, parts, federation.params)
            assert (unpack_fields(coefficients, bfv, count) == expected).all()
            # A second opinion, by integers of any length.
            plain, _ = decode(phase_of(cipher, parts, federation.params), federation.params)
            assert (plain == coefficients).all()


def test_the_noise_of_a_full_sum_stays_within_its_bounds():
    codec = Codec(n_max=1_000, clip=1.0, weight_cap=1)
    federation = Federation(Access(3, 3), codec, 4_000)
    params, primes = federation.params, federation.params.bfv.data_primes
    t = params.bfv.plain_modulus
    # Devices send c0 rounded; the noise of the encryptions is measured without that.
    whole = replace(params.bfv, short=False)
    encryptor = Encryptor(whole, federation.key)
    rng = np.random.default_rng(2)
    unrounded = cipher = None
    for _ in range(1_000):
        fields = rng.integers(0, whole.field_max + 1, whole.fields, dtype=np.uint64)
        residues = encryptor.encrypt(pack_fields(fields, whole))
        rounded = shorten(residues, params.bfv)
        unrounded = residues if unrounded is None else add(unrounded, residues, whole)
        cipher = rounded if cipher is None else add(cipher, rounded, params.bfv)
    # The sum alone, decrypted without smudging by who has all pieces.
    secret = to_ntt(modular.reduce(federation.secret(), primes), primes)
    exact = {
        0: np.stack(
            [
                from_ntt(modular.multiply(to_ntt(pair[1], primes), secret, primes), primes)
                for pair in unrounded
            ]
        )
    }
    _, noise = decode(phase_of(unrounded, exact, params), params)
    largest = int(np.abs(noise).max()) // t
    assert sum_noise_bound(params) / 8 < largest <= sum_noise_bound(params)
    # The smudging is sized by the mean square, so that is measured too.
    variance = 1_000 * (3 * params.bfv.degree + 1) / 12
    measured = float(np.mean((noise // t).astype(float) ** 2))
    assert variance / 3 < measured < 1.1 * (variance + 500**2)
    # Reserved coefficients, where nothing is rounded, are within the first term.
    reserved = float(np.mean((noise[:, params.bfv.used :] // t).astype(float) ** 2))
    assert variance / 5 < reserved < 1.5 * variance
    # Rounded, it is larger, and no longer secret what by: anybody sees c0.
    _, noise_rounded = decode(phase_of(cipher, exact, params), params)
    largest = int(np.abs(noise_rounded - noise).max()) // t
    assert params.rounding_bound / 100 < largest <= params.rounding_bound
    assert params.check_rounding_bound <= params.check_smudging_bound
    # With the parts of all three hospitals.
    parts = federation.parts((0, 1, 2), cipher)
    _, noise = decode(phase_of(cipher, parts, params), params)
    largest = int(np.abs(noise).max()) // t
    assert params.smudging_bound / 2 < largest <= combined_noise_bound(params)
    # And the check.
    open_checks_of(federation, (0, 1, 2), cipher)
    checks = [federation.decrypt(h, (0, 1, 2), cipher)[0] for h in range(3)]
    weights = check_weights(CHALLENGE, params)
    q = prod(primes)
    phase = sum(integers(check, primes) for check in checks)
    phase += (
        np.stack([integers(p[0], primes) for p in cipher])[:, params.bfv.used :] * weights
    ).sum(axis=0)
    largest = int(np.abs(centred(phase, q)).max())
    assert params.check_smudging_bound / 4 < largest <= check_noise_bound(params)
    assert 4 * t * combined_noise_bound(params) < prod(primes)


def test_smudging_is_what_the_bound_assumes(three):
    params, primes = three.params, three.params.bfv.data_primes
    _, cipher = three.update(1)
    members = (0, 2)
    share = sum(three.pieces[i].ternary.astype(np.int64) for i in three.access.assigned(0, members))
    factor = to_ntt(modular.reduce(share, primes), primes)
    product = from_ntt(modular.multiply(to_ntt(cipher[0, 1], primes), factor, primes), primes)
    ours = key_share(0, three.held_by(0), members, params)
    (_, first), (_, second) = ours.decrypt(cipher, CHALLENGE), ours.decrypt(cipher, CHALLENGE)
    assert (first != second).mean() > 0.99
    noise = integers(modular.subtract(first[0], product, primes), primes)
    noise = centred(noise, prod(primes))
    width = 2.0**params.smudging_bits
    assert int(np.abs(noise).max()) <= params.smudging_bound
    assert int(np.abs(noise).max()) > 1.2 * width
    # Three uniform numbers: mean 0, standard deviation width / 2, kurtosis 2.6.
    scaled = noise.astype(float) / width
    count = scaled.size
    assert abs(scaled.mean()) < 6 * 0.5 / sqrt(count)
    assert abs(scaled.std() - 0.5) < 0.02
    assert abs((scaled**4).mean() / (scaled**2).mean() ** 2 - 2.6) < 0.2
    # The low word is not left out.
    assert len({int(x) & 0xFFFF for x in noise}) > count / 16
    # The check has the same noise, thinner.
    weights = check_weights(CHALLENGE, params)
    exact = (integers(product, primes)[params.bfv.used :] * weights).sum(axis=0)
    thin = [
        centred(integers(ours.decrypt(cipher, CHALLENGE)[0], primes) - exact, prod(primes))
        for _ in range(8)
    ]
    scaled = np.concatenate(thin).astype(float) / 2.0 ** (params.smudging_bits - params.check_bits)
    assert np.abs(scaled).max() <= 1.5
    assert 0.4 < scaled.std() < 0.6


@pytest.mark.parametrize("access", [Access(3, 3), Access(3, 2), Access(5, 3)], ids=str)
def test_one_hospital_fewer_reads_nothing(access):
    federation = Federation(access, dimension=1_000)
    params = federation.params
    expected, cipher = federation.update(3)
    plain = pack_fields(expected, params.bfv)
    few = tuple(range(access.threshold - 1))
    with pytest.raises(ConfigError, match="partial decryptions, not"):
        combine(cipher, dict.fromkeys(few, cipher[:, 0]), params)
    # They pool all that they hold, and leave the smudging out.
    held = {i for h in few for i in access.held_by(h)}
    assert len(held) == access.pieces - 1
    primes = params.bfv.data_primes
    pooled = sum(federation.pieces[i].ternary.astype(np.int64) for i in held)
    factor = to_ntt(modular.reduce(pooled, primes), primes)
    product = modular.multiply(to_ntt(cipher[0, 1], primes), factor, primes)
    phase = modular.add(cipher[0, 0], from_ntt(product, primes), primes)
    with pytest.raises(CiphertextError, match="noise"):
        scale_and_round(params.bfv, phase[None])
    found, noise = decode(integers(phase, primes)[None], params)
    assert (found == plain[:1]).mean() < 0.001
    # What they see is uniform: its noise fills the whole range.
    assert int(np.abs(noise).max()) > 0.99 * prod(primes) / 2


def other_members(federation, cipher, parts):
    return {**parts, 1: federation.part(1, (1, 2), cipher)}


def other_sum(federation, cipher, parts):
    return {**parts, 1: federation.part(1, (0, 1), federation.update(99)[1])}


def random_part(federation, cipher, parts):
    rng = np.random.default_rng(5)
    rows = [
        rng.integers(0, p, (len(cipher), federation.params.bfv.degree), dtype=np.uint64)
        for p in federation.params.bfv.data_primes
    ]
    return {**parts, 1: np.stack(rows, axis=1)}


def no_part(federation, cipher, parts):
    return {**parts, 1: np.zeros_like(parts[1])}


def one_coefficient(federation, cipher, parts):
    """Half a plaintext step, at one place."""
    bfv = federation.params.bfv
    half = prod(bfv.data_primes) // (2 * bfv.plain_modulus)
    part = parts[1].copy()
    for j, prime in enumerate(bfv.data_primes):
        part[0, j, 17] = (int(part[0, j, 17]) + half) % prime
    return {**parts, 1: part}


def check_for_other_members(federation, cipher):
    return federation.decrypt(1, (1, 2), cipher)[0]


def check_of_another_sum(federation, cipher):
    return federation.decrypt(1, (0, 1), federation.update(99)[1])[0]


def check_of_another_challenge(federation, cipher):
    share = key_share(1, federation.held_by(1), (0, 1), federation.params)
    return share.decrypt(cipher, b"d" * 32)[0]


def empty_check(federation, cipher):
    bfv = federation.params.bfv
    return np.zeros((len(bfv.data_primes), bfv.reserved), dtype=np.uint64)


@pytest.mark.parametrize(
    "lie",
    [check_for_other_members, check_of_another_sum, check_of_another_challenge, empty_check],
    ids=lambda f: f.__name__,
)
def test_a_wrong_check_is_noticed(three, lie):
    _, cipher = three.sum(20, 20)
    open_checks_of(three, (0, 1), cipher)
    with pytest.raises(CiphertextError, match=r"one of hospitals \[0, 1\] is wrong"):
        open_checks_of(three, (0, 1), cipher, lie)


@pytest.mark.parametrize(
    "lie",
    [other_members, other_sum, random_part, no_part, one_coefficient],
    ids=lambda f: f.__name__,
)
def test_a_wrong_part_is_noticed(three, lie):
    _, cipher = three.sum(20, 20)
    parts = three.parts((0, 1), cipher)
    combine(cipher, parts, three.params)
    with pytest.raises(CiphertextError, match=r"hospitals \[0, 1\] do not decrypt"):
        combine(cipher, lie(three, cipher, parts), three.params)


def test_another_set_of_members_names_the_culprit(three):
    """Hospital 1 lies whenever it takes part; the sets without it agree."""
    expected, cipher = three.sum(20, 20)
    opened = {}
    for members in combinations(range(3), 2):
        parts = three.parts(members, cipher)
        if 1 in parts:
            parts = random_part(three, cipher, parts)
        try:
            opened[members] = combine(cipher, parts, three.params)
        except CiphertextError:
            continue
    assert set(opened) == {(0, 2)}
    assert (unpack_fields(opened[0, 2], three.params.bfv, 20) == expected).all()


def test_what_noise_does_not_show(three):
    """A part moved by whole plaintext steps changes the result; only another set shows it."""
    bfv = three.params.bfv
    expected, cipher = three.sum(20, 20)
    parts = three.parts((0, 1), cipher)
    step = (prod(bfv.data_primes) + bfv.plain_modulus // 2) // bfv.plain_modulus
    moved = parts[1].copy()
    for j, prime in enumerate(bfv.data_primes):
        moved[0, j, 3] = (int(moved[0, j, 3]) + 5 * step) % prime
    changed = unpack_fields(combine(cipher, {**parts, 1: moved}, three.params), bfv, 20)
    difference = changed.astype(np.int64) - expected.astype(np.int64)
    assert np.flatnonzero(difference).tolist() == [3 * bfv.digits]
    assert difference[3 * bfv.digits] == 5
    honest = combine(cipher, three.parts((0, 2), cipher), three.params)
    assert (unpack_fields(honest, bfv, 20) == expected).all()


def test_a_malformed_update_would_show_the_key(three):
    """c1 moved by q / t moves the sum's plaintext by the secret key; the checks come first."""
    bfv = three.params.bfv
    q, t = prod(bfv.data_primes), bfv.plain_modulus
    honest = np.full((bfv.ciphertexts, bfv.degree), 100, dtype=np.uint64)
    honest[:, bfv.used :] = 0
    cipher = three.encryptor.encrypt(honest)
    step = (q + t // 2) // t
    for j, prime in enumerate(bfv.data_primes):
        cipher[0, 1, j, 0] = (int(cipher[0, 1, j, 0]) + step) % prime
    parts = three.parts((0, 1), cipher)
    shown = combine(cipher, parts, three.params)[0].astype(np.int64)
    assert (shown[: bfv.used] - 100 == three.secret()[: bfv.used]).all()
    with pytest.raises(CiphertextError, match="an update is not an encryption"):
        open_checks_of(three, (0, 1), cipher)


@pytest.mark.parametrize("bits_below", [3, 6])
def test_a_key_hidden_in_noise_is_noticed_too(three, bits_below):
    """A shift below the smudging changes no plaintext, but shows in the thinner noise."""
    bfv = three.params.bfv
    expected, cipher = three.sum(20, 20)
    shift = three.params.smudging_bound >> bits_below
    for j, prime in enumerate(bfv.data_primes):
        cipher[0, 1, j, 0] = (int(cipher[0, 1, j, 0]) + shift) % prime
    opened = combine(cipher, three.parts((0, 1), cipher), three.params)
    assert (unpack_fields(opened, bfv, 20) == expected).all()
    with pytest.raises(CiphertextError, match="is not an encryption"):
        open_checks_of(three, (0, 1), cipher)


def test_a_malformed_update_is_noticed_in_whichever_ciphertext_it_is():
    federation = Federation(Access(3, 2), Codec(n_max=50, clip=1.0, weight_cap=1), 40_000)
    bfv = federation.params.bfv
    assert bfv.ciphertexts > 1
    _, honest = federation.sum(5, 5)
    open_checks_of(federation, (1, 2), honest)
    for place in range(bfv.ciphertexts):
        cipher = honest.copy()
        # Just above what could ever pass.
        shift = 2 * check_noise_bound(federation.params)
        for j, prime in enumerate(bfv.data_primes):
            cipher[place, 1, j, 7] = (int(cipher[place, 1, j, 7]) + shift) % prime
        with pytest.raises(CiphertextError, match="is not an encryption"):
            open_checks_of(federation, (1, 2), cipher)


def test_what_is_opened_early_is_no_more_than_the_reserved_coefficients(three):
    _, cipher = three.update(1)
    bfv = three.params.bfv
    check, part = three.decrypt(0, (0, 1), cipher)
    assert check.shape == (len(bfv.data_primes), bfv.reserved) == (len(bfv.data_primes), 32)
    with pytest.raises(ConfigError, match="1 checks, not 2"):
        open_checks(cipher, {0: check}, CHALLENGE, three.params)
    with pytest.raises(CiphertextError, match="hospital 1 sent a check of shape"):
        open_checks(cipher, {0: check, 1: part[0]}, CHALLENGE, three.params)
    with pytest.raises(ConfigError, match="challenge of 5 bytes"):
        open_checks(cipher, {0: check, 1: check}, b"short", three.params)


def test_weights_by_another_reading_of_their_definition():
    params = choose_threshold_params(CODEC, 100_000, Access(3, 3), releases=10)
    weights = check_weights(CHALLENGE, params)
    count = params.bfv.ciphertexts
    stream = hashlib.shake_256(b"vitalring/check-weights/1\0" + CHALLENGE).digest(32 * count)
    expected = [(-1) ** (byte // 128) * (byte % 4 + 1) for byte in stream]
    assert weights.shape == (count, 32)
    assert weights.reshape(-1).tolist() == expected
    assert (check_weights(b"d" * 32, params) != weights).mean() > 0.8


def shamir_view(corrupt, members, hospitals):
    """Return, for each honest member h, lambda_h alpha_h of SPEC 5.12: its part shows that
    multiple of the noise, plus its own smudging, to the corrupt hospitals."""

    def weight(at, point, points):
        return prod((Fraction(at - p, point - p) for p in points if p != point), start=Fraction(1))

    known = (0, *corrupt)
    return {h: weight(0, h, members) * weight(h, 0, known) for h in members if h not in corrupt}


def test_why_the_key_is_not_shared_by_shamirs_scheme():
    """Lagrange weights show the noise modulo their denominators through any smudging."""
    assert shamir_view((3,), (1, 2), 3) == {1: Fraction(4, 3), 2: Fraction(-1, 3)}
    assert shamir_view((4, 5), (1, 2, 3), 5)[2] == Fraction(-9, 10)
    # Numbers: 2 of 3 over a prime, hospital 3 corrupt and not a member.
    rng = np.random.default_rng(8)
    prime = largest_primes(8192, 60, 1)[0]

    def uniform():
        return int(rng.integers(0, prime))

    for _ in range(50):
        secret, slope, c1, plain_part = (uniform() for _ in range(4))
        shares = {x: (secret + slope * x) % prime for x in (1, 2, 3)}
        noise = int(rng.integers(-(2**14), 2**14))
        # c0 + c1 s = plaintext + noise, here with the plaintext's part known after the release.
        c0 = (plain_part + noise - c1 * secret) % prime
        smudging = int(rng.integers(-(2**54), 2**54))
        part = (c1 * 2 * shares[1] + smudging) % prime
        # f(1) = (2 f(0) + f(3)) / 3, so 3 * part = 4 c1 f(0) + 2 c1 f(3) + 3 * smudging.
        seen = 3 * part - 4 * (plain_part - c0) - 2 * c1 * shares[3]
        seen = int(centred(np.array(seen % prime, dtype=object), prime))
        assert seen % 3 == noise % 3
    # Pieces show the noise once, whole, and under the smudging: all weights are 0 and 1.
    access = Access(3, 2)
    for members in combinations(range(3), 2):
        assert sorted(p for h in members for p in access.assigned(h, members)) == [0, 1, 2]


def test_wrong_shapes_and_missing_pieces_are_refused(three):
    _, cipher = three.update(1)
    parts = three.parts((0, 1), cipher)
    with pytest.raises(CiphertextError, match="residues of shape"):
        combine(cipher[:, :, :1], parts, three.params)
    with pytest.raises(CiphertextError, match="hospital 1 sent a part of shape"):
        combine(cipher, {**parts, 1: parts[1][:, :1]}, three.params)
    with pytest.raises(CiphertextError, match="residues of shape"):
        three.part(0, (0, 1), cipher[:, :1])
    with pytest.raises(ConfigError, match="restore its backup"):
        key_share(0, three.held_by(0)[:1], (0, 1), three.params)


def test_nothing_shows_a_share(three):
    share = key_share(0, three.held_by(0), (0, 1), three.params)
    assert "Multiplier" not in repr(share)
    assert "array" not in repr(share)
