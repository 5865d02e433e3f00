"""Parameters of the encrypted sum: additive BFV, fields packed mixed-radix.

Rules (SPEC 5.1 to 5.3): parameters follow from the codec and the model's dimension
alone, by integer arithmetic, so every party computes the same ones; they give 128-bit
security by the tables of the HomomorphicEncryption.org standard (Albrecht et al. 2018);
and a sum of n_max honest updates decrypts, by a bound on its noise that is computed
here, except with probability 2**-39. Among the parameters that do, the smallest update
wins.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, isqrt, prod

from vitalring.errors import ConfigError
from vitalring.protocol.limits import MAX_DIMENSION
from vitalring.protocol.quantise import Codec, check_codec, field_count

MAX_MODULUS_BITS = {2048: 54, 4096: 109, 8192: 218}
"""Bits of all primes together, by degree: 128-bit security with a ternary secret."""

_MAX_PRIME_BITS = 60
_MAX_PLAIN_BITS = 60
_SPECIAL_BITS = 20
_FAILURE_BITS = 40
_TWICE_LN2 = Fraction(1_386_295, 1_000_000)  # rounded up
_ERROR_VARIANCE = Fraction(21, 2)  # SEAL's centred binomial of 42 coins


@dataclass(frozen=True)
class BfvParams:
    """A ring, its primes, and how fields lie in plaintext coefficients."""

    degree: int
    primes: tuple[int, ...]  # of the key; the last of several is SEAL's special prime
    additions: int  # updates that one sum may hold
    field_max: int  # largest value of one update's field
    digits: int  # fields in one coefficient
    fields: int  # fields in one update
    reserved: int = 0  # coefficients at the end of each ciphertext that hold nothing
    short: bool = False  # whether c0 is a multiple of the first prime (SPEC 5.18)

    @property
    def base(self) -> int:
        """Return the radix: one more than a field of a full sum can hold."""
        return self.additions * self.field_max + 1

    @property
    def plain_modulus(self) -> int:
        """Return the plaintext modulus t = base ** digits."""
        return int(self.base**self.digits)

    @property
    def data_primes(self) -> tuple[int, ...]:
        """Return the primes of a ciphertext; their product is q."""
        return self.primes[:-1] or self.primes

    @property
    def sent_primes(self) -> tuple[int, ...]:
        """Return the primes modulo which c0 is sent; it is zero modulo the others."""
        return self.data_primes[1:] if self.short else self.data_primes

    @property
    def used(self) -> int:
        """Return the coefficients of each ciphertext that hold fields."""
        return self.degree - self.reserved

    @property
    def ciphertexts(self) -> int:
        """Return the ciphertexts of one update."""
        return -(-self.fields // (self.digits * self.used))

    @property
    def update_bytes(self) -> int:
        """Return the bytes of one encoded update, or of a sum (SPEC 5.4)."""
        widths = sum(p.bit_length() for p in (*self.sent_primes, *self.data_primes))
        return self.ciphertexts * widths * self.degree // 8


def choose_params(codec: Codec, dimension: int) -> BfvParams:
    """Return the parameters with the smallest updates of `dimension` parameters (SPEC 5.2).

    Raises ConfigError if the codec is invalid or its sum fits no parameters.
    """
    check_codec(codec)
    if not 1 <= dimension <= MAX_DIMENSION:
        raise ConfigError(f"a model of {dimension} parameters: choose from 1 to {MAX_DIMENSION}")
    candidates = list(_candidates(codec, field_count(codec, dimension)))
    if not candidates:
        raise ConfigError(
            f"no 128-bit secure parameters hold a sum of {codec.n_max} updates of {codec.bits} "
            f"bits with noise of width {codec.noise_width}: lower one of them"
        )
    return min(candidates, key=lambda p: (p.update_bytes, p.degree, len(p.primes), p.digits))


def noise_bound(params: BfvParams) -> int:
    """Bound every noise coefficient of a sum of `params.additions` honest updates (SPEC 5.3).

    Holds except with probability 2**-39. With q the product of the data primes and t the
    plain modulus, decryption is exact while the noise is below q / 2t.
    """
    special = params.primes[-1] if len(params.primes) > 1 else 1
    return _noise(params.degree, params.ciphertexts, params.additions, special)


def _noise(degree: int, ciphertexts: int, additions: int, special: int) -> int:
    # Squared tail of a sub-Gaussian union bound: 2 ln(2 * coefficients * 2**40).
    coefficients = ciphertexts * degree
    tail = _TWICE_LN2 * (1 + _FAILURE_BITS + (coefficients - 1).bit_length())
    noise = _ceil_sqrt(tail * additions * _ERROR_VARIANCE * (2 * degree + 1))
    if special > 1:
        # Dividing by the special prime shrinks the fresh noise and adds one rounding.
        rounding = _ceil_sqrt(tail * additions * Fraction(degree + 1, 12))
        noise = rounding + -(-noise // special)
    # Each device rounds q * m / t to an integer: up to 1/2, not random at all.
    return noise + -(-additions // 2)


def largest_primes(degree: int, bits: int, count: int) -> tuple[int, ...]:
    """Return the `count` largest primes of `bits` bits that are 1 modulo 2 * degree.

    These are SEAL's own choice (CoeffModulus::Create). Raises ConfigError if there are fewer.
    """
    step = 2 * degree
    found: list[int] = []
    value = ((1 << bits) - 2) // step * step + 1
    while len(found) < count:
        if value >> (bits - 1) == 0:
            raise ConfigError(f"fewer than {count} primes of {bits} bits are 1 modulo {step}")
        if _is_prime(value):
            found.append(value)
        value -= step
    return tuple(found)


def _candidates(codec: Codec, fields: int) -> Iterator[BfvParams]:
    """Yield, for each degree, digits and shape of modulus, the shortest modulus that serves."""
    base = codec.n_max * codec.field_max + 1
    for degree, limit in MAX_MODULUS_BITS.items():
        special_prime = largest_primes(degree, _SPECIAL_BITS, 1)
        digits = 1
        while (base**digits).bit_length() <= _MAX_PLAIN_BITS:
            ciphertexts = -(-fields // (digits * degree))
            for special in ((), special_prime):
                noise = _noise(degree, ciphertexts, codec.n_max, special[0] if special else 1)
                # q > 4 t noise, and data primes longer than the special one differ from it.
                shortest = max((4 * base**digits * noise).bit_length(), _SPECIAL_BITS + 1)
                longest = limit - _SPECIAL_BITS if special else min(limit, _MAX_PRIME_BITS)
                for bits in range(shortest, longest + 1):
                    primes = _split(degree, bits) + special
                    params = BfvParams(degree, primes, codec.n_max, codec.field_max, digits, fields)
                    if _serves(params):
                        yield params
                        break
            digits += 1


def _serves(params: BfvParams) -> bool:
    """Tell whether a full sum decrypts, with a bit to spare, under valid SEAL parameters.

    The spare bit keeps SEAL's noise budget of an honest sum at one or more, so that a
    budget of zero convicts a hostile ciphertext (SPEC 5.8).
    """
    q, t = prod(params.data_primes), params.plain_modulus
    return 4 * t * noise_bound(params) < q and all(gcd(t, p) == 1 for p in params.primes)


def _split(degree: int, bits: int) -> tuple[int, ...]:
    """Return primes of `bits` bits together, as few and as alike in size as can be.

    Several data primes need a special one: SEAL always sets the last of a chain aside.
    """
    count = -(-bits // _MAX_PRIME_BITS)
    small, larger = divmod(bits, count)
    primes = largest_primes(degree, small + 1, larger) if larger else ()
    return primes + largest_primes(degree, small, count - larger)


def _ceil_sqrt(value: Fraction) -> int:
    return isqrt(-(-value.numerator // value.denominator)) + 1


def _is_prime(value: int) -> bool:
    """Miller-Rabin with the first twelve primes: exact below 3 * 10**23 (Sorenson, Webster)."""
    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
    if value < 2 or any(value % base == 0 for base in bases):
        return value in bases
    odd = value - 1
    twos = (odd & -odd).bit_length() - 1
    odd >>= twos
    for base in bases:
        power = pow(base, odd, value)
        if power in (1, value - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % value
            if power == value - 1:
                break
        else:
            return False
    return True
