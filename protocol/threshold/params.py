"""Parameters of the joint key: one function of the codec, the hospitals and the key's life.

Rules (SPEC 5.11, 5.16, 5.17): integer arithmetic alone, so every party computes the same
parameters. They are secure by the tables of the HomomorphicEncryption.org standard, and by
newer ones that are a little stricter; what
all partial decryptions of the key's life show of the noise is within statistical distance
2**-40 of nothing; and the sum of `n_max` honest updates with the smudging noise of
`threshold` hospitals decrypts, with a bit to spare. Among those that do, the smallest
update wins.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from math import comb, gcd, isqrt, prod

from vitalring.errors import ConfigError
from vitalring.protocol.bfv import BfvParams, largest_primes
from vitalring.protocol.limits import MAX_DIMENSION, MAX_ROUNDS
from vitalring.protocol.quantise import Codec, check_codec, field_count
from vitalring.protocol.threshold.modular import MAX_PRIME_BITS
from vitalring.protocol.threshold.pieces import Access

MAX_MODULUS_BITS = {
    128: {4096: 106, 8192: 214},
    192: {4096: 73, 8192: 147},
    256: {4096: 56, 8192: 114},
}
"""Bits of all primes together, by security and degree, with a ternary secret: the smaller of
Table 1 of the standard (Albrecht et al. 2018) and the newer tables of Bossuat et al. (eprint
2024/463). Degree 2048 has no room for smudging noise."""

MAX_HOSPITALS = 64
MAX_PIECES = 64
"""Pieces of the secret; 2 of 3 has 3, 3 of 5 has 10, 4 of 7 has 35."""

STATISTICAL_BITS = 40
RESERVED = 32
"""Coefficients of each ciphertext that hold nothing and are opened first (SPEC 5.20)."""

MAX_WEIGHT = 4
"""The check adds ciphertexts up with weights from 1 to 4 and either sign."""

SMUDGING_TERMS = 3
"""Uniform numbers that one coefficient of smudging noise is the sum of (SPEC 5.16)."""

_SPECIAL_BITS = 20
_MAX_PLAIN_BITS = 60
_FAILURE_BITS = 40
_TWICE_LN2 = Fraction(1_386_295, 1_000_000)  # rounded up
_ERROR_VARIANCE = Fraction(21, 2)  # SEAL's centred binomial of 42 coins
_SMUDGING_FACTOR = Fraction(121, 100)  # square of 1.1, the constant of SPEC 5.16


@dataclass(frozen=True)
class ThresholdParams:
    """A ring with its packing, who decrypts, and how much a key may release."""

    bfv: BfvParams
    access: Access
    releases: int  # partial decryptions of a whole sum that one hospital may make with a key
    security: int  # bits, by the table
    smudging_bits: int  # each of the three uniform numbers has this many bits
    check_bits: int  # and this many fewer in the check that comes first

    @property
    def smudging_bound(self) -> int:
        """Return the largest absolute value of one hospital's smudging noise."""
        return SMUDGING_TERMS << self.smudging_bits - 1

    @property
    def check_smudging_bound(self) -> int:
        """Return the same for the check, which has thinner noise."""
        return self.smudging_bound >> self.check_bits

    @property
    def partial_bytes(self) -> int:
        """Return the bytes of one partial decryption (SPEC 5.15)."""
        widths = sum(prime.bit_length() for prime in self.bfv.data_primes)
        return self.bfv.ciphertexts * widths * self.bfv.degree // 8

    @property
    def rounding_bound(self) -> int:
        """Return how far shortening c0 moves a coefficient of a full sum (SPEC 5.18)."""
        return self.bfv.additions * (self.bfv.data_primes[0] // 2)

    @property
    def check_rounding_bound(self) -> int:
        """Return how far it moves a value of the check, except with probability 2**-40."""
        return self.bfv.data_primes[0] * _rounding_spread(self.bfv)

    @property
    def tolerated_failures(self) -> int:
        """Return how many checks may fail before the hospitals need a new key (SPEC 5.20).

        Each shows at most the bits of `RESERVED` values that stand above the noise, and a
        ternary coefficient has 1.58. As many coefficients may be known as leave a degree
        for which the table still allows these primes.
        """
        bfv = self.bfv
        bits = prod(bfv.primes).bit_length()
        needed = -(-bfv.degree * bits // MAX_MODULUS_BITS[self.security][bfv.degree])
        shown = (prod(bfv.data_primes) // self.check_smudging_bound).bit_length()
        return (bfv.degree - needed) // (-(-RESERVED * shown * 100 // 158))

    def __str__(self) -> str:
        """Say in one line what was chosen, for people."""
        bfv = self.bfv
        bits = "+".join(str(prime.bit_length()) for prime in bfv.primes)
        return (
            f"{self.access.threshold} of {self.access.hospitals} hospitals, "
            f"{self.access.pieces} key pieces; degree {bfv.degree}, primes of {bits} bits "
            f"(table: at least {self.security}-bit security), {bfv.digits} fields a coefficient, "
            f"{bfv.ciphertexts} ciphertexts; update {bfv.update_bytes} bytes, partial decryption "
            f"{self.partial_bytes} bytes; smudging 3 x {self.smudging_bits} bits for "
            f"{self.releases} releases, {self.check_bits} fewer in checks; a new key after "
            f"failed check {self.tolerated_failures + 1}"
        )


def choose_threshold_params(
    codec: Codec,
    dimension: int,
    access: Access,
    *,
    releases: int,
    security: int = 128,
) -> ThresholdParams:
    """Return the parameters with the smallest updates of `dimension` parameters (SPEC 5.11).

    `releases` counts every partial decryption that a hospital makes with one key: each
    round's, those repeated with other members, and the rehearsal. Raises ConfigError,
    saying what does not fit.
    """
    check_codec(codec)
    _check_range("a model of", dimension, "parameters", 1, MAX_DIMENSION)
    _check_range("a key for", releases, "releases", 1, 2 * MAX_ROUNDS)
    _check_range("a federation of", access.hospitals, "hospitals", 2, MAX_HOSPITALS)
    _check_range("decryption by", access.threshold, "hospitals", 2, access.hospitals)
    pieces = comb(access.hospitals, access.threshold - 1)
    if pieces > MAX_PIECES:
        raise ConfigError(
            f"{access.threshold} of {access.hospitals} hospitals need {pieces} key pieces, at "
            f"most {MAX_PIECES} are allowed: choose a threshold nearer to {access.hospitals}, "
            "or fewer hospitals"
        )
    if security not in MAX_MODULUS_BITS:
        raise ConfigError(f"security of {security} bits: choose from {sorted(MAX_MODULUS_BITS)}")
    candidates = list(_candidates(codec, field_count(codec, dimension), access, releases, security))
    if not candidates:
        raise ConfigError(
            f"no {security}-bit secure parameters hold a sum of {codec.n_max} updates of "
            f"{codec.bits} bits with noise of width {codec.noise_width} and the smudging of "
            f"{releases} releases by {access.threshold} hospitals: lower one of them"
        )
    return min(
        candidates,
        key=lambda p: (p.bfv.update_bytes, p.bfv.degree, len(p.bfv.primes), p.bfv.digits),
    )


def sum_noise_bound(params: ThresholdParams) -> int:
    """Bound every noise coefficient of a sum of n_max honest updates (SPEC 5.17).

    Holds except with probability 2**-39, if the hospitals drew their pieces as they should.
    """
    return _sum_noise(params.bfv, params.access.pieces)


def combined_noise_bound(params: ThresholdParams) -> int:
    """Bound the noise of such a sum together with its partial decryptions (SPEC 5.17)."""
    smudging = params.access.threshold * params.smudging_bound
    return sum_noise_bound(params) + params.rounding_bound + smudging


def check_noise_bound(params: ThresholdParams) -> int:
    """Bound the values of an honest sum's check (SPEC 5.20)."""
    smudging = params.access.threshold * params.check_smudging_bound
    noise = MAX_WEIGHT * params.bfv.ciphertexts * sum_noise_bound(params)
    return noise + params.check_rounding_bound + smudging


def _candidates(
    codec: Codec, fields: int, access: Access, releases: int, security: int
) -> Iterator[ThresholdParams]:
    """Yield, for each degree and number of digits, the shortest modulus that serves."""
    base = codec.n_max * codec.field_max + 1
    for degree, limit in MAX_MODULUS_BITS[security].items():
        for digits in range(1, _MAX_PLAIN_BITS):
            if (base**digits).bit_length() > _MAX_PLAIN_BITS:
                break
            packing = (codec.n_max, codec.field_max, digits, fields, RESERVED, True)
            special = largest_primes(degree, _SPECIAL_BITS, 1)
            # The noise depends on the special prime alone, so the data primes can wait.
            bfv = BfvParams(degree, special, *packing)
            check = _check_bits(access.threshold, releases)
            smudging = _smudging_bits(bfv, access.pieces, releases, check)
            params = ThresholdParams(bfv, access, releases, security, smudging, check)
            dropped = _dropped_bits(params)
            # q exceeds 4 t times what is known of the noise so far.
            shortest = (4 * bfv.plain_modulus * combined_noise_bound(params)).bit_length()
            shortest = max(shortest, dropped + _SPECIAL_BITS + 1)
            for bits in range(shortest, limit - _SPECIAL_BITS + 1):
                primes = _primes(degree, (dropped, *_split(bits - dropped))) + special
                params = replace(params, bfv=BfvParams(degree, primes, *packing))
                if _serves(params):
                    yield params
                    break


def _dropped_bits(params: ThresholdParams) -> int:
    """Return the bits of the first prime: c0's rounding stays below one hospital's thin noise."""
    room = params.check_smudging_bound // _rounding_spread(params.bfv)
    return min(MAX_PRIME_BITS, room.bit_length() - 1)


def _rounding_spread(bfv: BfvParams) -> int:
    """Return 4 * MAX_WEIGHT * root(updates * ciphertexts), in units of the first prime.

    Hoeffding's bound, with 4 >= root(ln(2 * RESERVED * 2**40) / 2).
    """
    return 4 * MAX_WEIGHT * _ceil_sqrt(Fraction(bfv.additions * bfv.ciphertexts))


def _serves(params: ThresholdParams) -> bool:
    """Tell whether a full sum decrypts with a bit to spare, under valid SEAL parameters."""
    q, t = prod(params.bfv.data_primes), params.bfv.plain_modulus
    coprime = all(gcd(t, prime) == 1 for prime in params.bfv.primes)
    return coprime and 4 * t * combined_noise_bound(params) < q


def _check_bits(threshold: int, releases: int) -> int:
    """Return by how many bits reserved coefficients have thinner smudging noise (SPEC 5.20).

    The largest shift that can pass the check, squared and summed over a key's life, is at
    most the variance of one honest hospital's noise: 4**bits >= 36 (t + 1)^2 R.
    """
    return ((36 * (threshold + 1) ** 2 * releases - 1).bit_length() + 1) // 2


def _smudging_bits(bfv: BfvParams, pieces: int, releases: int, check_bits: int) -> int:
    """Return the bits of the uniform numbers that hide the noise for a key's life (SPEC 5.16).

    2**bits >= 1.1 * 2**40 * the root of the mean squared length of all noise ever released,
    that of checks weighted by how much thinner their smudging is.
    """
    square = _noise_square(bfv, pieces)
    # A value of the check has the noise of all ciphertexts, and thinner smudging.
    # Rounding q m / t moves a coefficient by at most 1/2 an update, and reserved ones not at all.
    opened = bfv.degree * (square + Fraction(bfv.additions, 2) ** 2)
    checked = RESERVED * MAX_WEIGHT**2 * 4**check_bits * square
    squared = _SMUDGING_FACTOR * releases * bfv.ciphertexts * (opened + checked)
    width = _ceil_sqrt(squared * 4**STATISTICAL_BITS)
    return (width - 1).bit_length()


def _noise_square(bfv: BfvParams, pieces: int) -> Fraction:
    """Bound the variance of one noise coefficient of a full sum (SPEC 5.17)."""
    special = bfv.primes[-1]
    secret_square = pieces * bfv.degree  # bounds the squared length of the joint secret
    fresh = bfv.additions * _ERROR_VARIANCE * (2 * secret_square + 1) / special**2
    rounding = bfv.additions * Fraction(secret_square + 1, 12)
    return fresh + rounding


def _sum_noise(bfv: BfvParams, pieces: int) -> int:
    """Bound a sum's noise as 5.3 does, for a secret and an error of `pieces` summands."""
    # Squared tail of a sub-Gaussian union bound: 2 ln(2 * coefficients * 2**40).
    coefficients = bfv.ciphertexts * bfv.degree
    tail = _TWICE_LN2 * (1 + _FAILURE_BITS + (coefficients - 1).bit_length())
    secret_square = pieces * bfv.degree
    fresh = _ceil_sqrt(tail * bfv.additions * _ERROR_VARIANCE * (2 * secret_square + 1))
    rounding = _ceil_sqrt(tail * bfv.additions * Fraction(secret_square + 1, 12))
    return rounding + -(-fresh // bfv.primes[-1]) + -(-bfv.additions // 2)


def _split(bits: int) -> tuple[int, ...]:
    """Return the sizes of primes of `bits` bits together: few and alike, larger first."""
    count = -(-bits // MAX_PRIME_BITS)
    small, larger = divmod(bits, count)
    return (small + 1,) * larger + (small,) * (count - larger)


def _primes(degree: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return different primes of these sizes: of each size the largest ones, in order."""
    pools = {size: iter(largest_primes(degree, size, sizes.count(size))) for size in sizes}
    return tuple(next(pools[size]) for size in sizes)


def _ceil_sqrt(value: Fraction) -> int:
    return isqrt(-(-value.numerator // value.denominator)) + 1


def _check_range(what: str, value: int, unit: str, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{what} {value} {unit}: choose from {low} to {high}")
