"""Sums under joint keys of several shapes: exact with enough hospitals, nothing with one fewer."""

from itertools import combinations
from math import prod, sqrt

import numpy as np
import pytest
from federation_fixture import small_federation
from residues_fixture import integers

from vitalring.errors import CiphertextError, ConfigError
from vitalring.protocol.ciphertext import add, decode_ciphertexts, encode_ciphertexts
from vitalring.protocol.packing import pack_fields, unpack_fields
from vitalring.protocol.seal import Encryptor, from_ntt, scale_and_round, to_ntt
from vitalring.protocol.secure_sum import threshold_params
from vitalring.protocol.threshold import modular
from vitalring.protocol.threshold.decryption import combine, key_share, open_checks
from vitalring.protocol.threshold.params import combined_noise_bound, sum_noise_bound

CHALLENGE = b"c" * 32
SHAPES = [(3, 3), (3, 2), (5, 5), (5, 3)]
"""Hospitals, and how many of them decrypt."""


class Study:
    """A study of several hospitals with a joint key."""

    def __init__(self, hospitals, threshold, *, n_max, dimension):
        federation = small_federation(
            secure_sum="threshold-he",
            hospitals=hospitals,
            threshold=threshold,
            n_max=n_max,
            dimension=dimension,
            min_cohort=2,
        )
        plan = federation.study.plan
        self.pieces = federation.pieces
        self.params = threshold_params(plan.codec, dimension, federation.study.joint)
        self.bfv, self.access = self.params.bfv, self.params.access
        self.encryptor = Encryptor(self.bfv, federation.sum_key)

    def encrypt(self, fields):
        return self.encryptor.encrypt(pack_fields(fields, self.bfv))

    def random_fields(self, rng):
        return rng.integers(0, self.bfv.field_max + 1, self.bfv.fields, dtype=np.uint64)

    def full_fields(self):
        """The largest update there can be: n_max of them leave no room in any digit."""
        return np.full(self.bfv.fields, self.bfv.field_max, dtype=np.uint64)

    def held_by(self, hospitals):
        """Return the key pieces that these hospitals hold together."""
        indices = {index for h in hospitals for index in self.access.held_by(h)}
        return [piece for piece in self.pieces if piece.index in indices]

    def decrypt(self, hospital, members, total):
        share = key_share(hospital, self.held_by([hospital]), members, self.params)
        return share.decrypt(total, CHALLENGE)

    def open(self, members, total, count):
        """Open a sum as hospitals do, from its bytes; return its fields."""
        total = decode_ciphertexts(encode_ciphertexts(total, self.bfv), self.bfv)
        said = {h: self.decrypt(h, members, total) for h in members}
        open_checks(total, {h: check for h, (check, _) in said.items()}, CHALLENGE, self.params)
        opened = combine(total, {h: part for h, (_, part) in said.items()}, self.params)
        return unpack_fields(opened, self.bfv, count)

    def phase(self, total, pieces):
        """Return c0 + c1 s modulo each prime, (ciphertexts, primes, degree), of these pieces."""
        primes = self.bfv.data_primes
        secret = sum(piece.ternary.astype(np.int64) for piece in pieces)
        factor = to_ntt(modular.reduce(secret, primes), primes)
        products = [modular.multiply(to_ntt(pair[1], primes), factor, primes) for pair in total]
        opened = np.stack([from_ntt(product, primes) for product in products])
        return modular.add(total[:, 0], opened, primes)

    def integers(self, phase):
        """Return (ciphertexts, primes, degree) as integers below q, (ciphertexts, degree)."""
        return integers(phase.transpose(1, 0, 2), self.bfv.data_primes)

    def rounded(self, phase):
        """Return the fields that a phase rounds to, whatever its noise, and that noise."""
        q, t = prod(self.bfv.data_primes), self.bfv.plain_modulus
        values = self.integers(phase)
        steps = (2 * t * values + q) // (2 * q)
        rest = (steps % t)[:, : self.bfv.used].reshape(-1)
        digits = []
        for _ in range(self.bfv.digits):
            rest, digit = rest // self.bfv.base, rest % self.bfv.base
            digits.append(digit)
        fields = np.stack(digits, axis=1).reshape(-1)[: self.bfv.fields]
        return fields.astype(np.uint64), np.abs(values * t - steps * q) // t


def repeated(total, times, bfv):
    """Add a sum to itself: `times` of it, by doubling."""
    result = None
    while times:
        if times % 2:
            result = total if result is None else add(result, total, bfv)
        total, times = add(total, total, bfv), times // 2
    return result


@pytest.mark.parametrize(("hospitals", "threshold"), SHAPES)
def test_the_largest_sum_of_all_is_exact_for_every_set_of_hospitals(hospitals, threshold):
    """10,000 updates whose every field is the largest: each digit of the sum is full.

    They are 50 encryptions, each counted 200 times by doubling. Its noise is larger than that
    of 10,000 independent ones, which grows with the root of their number; a test below that
    takes minutes adds up 10,000 of those.
    """
    study = Study(hospitals, threshold, n_max=10_000, dimension=2_000)
    bfv, fields = study.bfv, study.full_fields()
    total = study.encrypt(fields)
    for _ in range(49):
        total = add(total, study.encrypt(fields), bfv)
    total = repeated(total, 200, bfv)
    for members in combinations(range(hospitals), threshold):
        opened = study.open(members, total, 10_000)
        assert (opened == bfv.field_max * 10_000).all()
    assert int(opened[0]) == bfv.base - 1


@pytest.mark.long
@pytest.mark.parametrize(("hospitals", "threshold"), SHAPES)
def test_ten_thousand_independent_encryptions_are_exact_and_within_the_noise_bounds(
    hospitals, threshold
):
    study = Study(hospitals, threshold, n_max=10_000, dimension=64)
    bfv, rng = study.bfv, np.random.default_rng(4)
    total, expected = None, np.zeros(bfv.fields, dtype=np.uint64)
    for number in range(1, 10_001):
        fields = study.random_fields(rng)
        # Half of the fields are full, to the last digit of the sum.
        fields[::2] = bfv.field_max
        residues = study.encrypt(fields)
        total = residues if total is None else add(total, residues, bfv)
        expected += fields
        if number in (1, 1_000, 10_000):
            members = tuple(sorted(rng.permutation(hospitals)[:threshold].tolist()))
            assert (study.open(members, total, number) == expected).all()
    # The noise of the sum, and with the parts of the hospitals (SPEC 5.17).
    exact = study.phase(total, study.pieces)
    _, noise = study.rounded(exact)
    bound = sum_noise_bound(study.params) + study.params.rounding_bound
    assert bound / 1_000 < noise.max() <= bound
    phase = total[:, 0]
    for h in members:
        phase = modular.add(phase, study.decrypt(h, members, total)[1], bfv.data_primes)
    fields, noise = study.rounded(phase)
    assert (fields == expected).all()
    assert study.params.smudging_bound / 2 < noise.max() <= combined_noise_bound(study.params)


@pytest.mark.parametrize(("hospitals", "threshold"), SHAPES)
def test_one_hospital_fewer_reads_no_more_than_chance(hospitals, threshold):
    """Every set of t - 1, with zeros for what is missing, and with all that they hold.

    n_max is 2, so that a digit has 511 values and a guess of it is right once in 511 times.
    """
    study = Study(hospitals, threshold, n_max=2, dimension=4_000)
    bfv = study.bfv
    assert bfv.base == 511
    expected = study.random_fields(np.random.default_rng(6))
    total = study.encrypt(expected)
    hits, guesses = 0, 0

    def right(phase):
        with pytest.raises(CiphertextError, match="noise"):
            scale_and_round(bfv, phase)
        fields, noise = study.rounded(phase)
        # Uniform: the noise fills the whole range.
        assert int(noise.max()) > 0.99 * prod(bfv.data_primes) / (2 * bfv.plain_modulus)
        return int((fields == expected).sum())

    for few in combinations(range(hospitals), threshold - 1):
        for absent in set(range(hospitals)) - set(few):
            members = (*few, absent)
            said = {h: study.decrypt(h, members, total) for h in few}
            checks = {h: check for h, (check, _) in said.items()}
            parts = {h: part for h, (_, part) in said.items()}
            with pytest.raises(ConfigError, match="partial decryptions, not"):
                combine(total, parts, study.params)
            with pytest.raises(ConfigError, match="checks, not"):
                open_checks(total, checks, CHALLENGE, study.params)
            nothing = {absent: np.zeros_like(total[:, 0])}
            with pytest.raises(CiphertextError, match="do not decrypt"):
                combine(total, {**parts, **nothing}, study.params)
            with pytest.raises(CiphertextError, match="check"):
                silent = np.zeros((len(bfv.data_primes), bfv.reserved), dtype=np.uint64)
                open_checks(total, {**checks, absent: silent}, CHALLENGE, study.params)
            phase = total[:, 0]
            for part in parts.values():
                phase = modular.add(phase, part, bfv.data_primes)
            hits, guesses = hits + right(phase), guesses + bfv.fields
        # Without smudging, with every piece that one of them holds: one is missing.
        pooled = study.held_by(few)
        assert len(pooled) == study.access.pieces - 1
        hits, guesses = hits + right(study.phase(total, pooled)), guesses + bfv.fields
    assert guesses > 20_000
    assert abs(hits - guesses / 511) < 6 * sqrt(guesses / 511)
    # With one more of them it is there, to the last field.
    fields, _ = study.rounded(study.phase(total, study.pieces))
    assert (fields == expected).all()
