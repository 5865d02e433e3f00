"""Ways to multiply many public points by as many numbers and add up, measured side by side.

The project uses the first. The others are here to show with figures what they would bring:
buckets (Pippenger 1976) over libsodium's addition, which decodes both points each time, and
buckets over plain integers with tables of every point's multiples by powers of two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from vitalring.protocol import group

P = 2**255 - 19
_D = -121665 * pow(121666, -1, P) % P
_ROOT = pow(2, (P - 1) // 4, P)

Extended = tuple[int, int, int, int]
"""(X, Y, Z, T) with x = X/Z, y = Y/Z, x*y = T/Z (Hisil et al. 2008)."""
Affine = tuple[int, int, int]
"""(y - x, y + x, 2 * d * x * y)."""
_NEUTRAL: Extended = (0, 1, 1, 0)


def by_libsodium(scalars: Sequence[int], points: Sequence[bytes]) -> bytes:
    """One multiplication and one addition for each point."""
    return reduce(
        group.add,
        (group.mul(k.to_bytes(32, "little"), p) for k, p in zip(scalars, points, strict=True)),
    )


def by_buckets(scalars: Sequence[int], points: Sequence[bytes], bits: int) -> bytes:
    """Sort points into buckets by windows of `bits` bits; additions by libsodium alone."""
    total = group.IDENTITY
    for shift in reversed(range(0, 253, bits)):
        for _ in range(bits):
            total = group.add(total, total)
        buckets = [group.IDENTITY] * (1 << bits)
        for k, point in zip(scalars, points, strict=True):
            window = k >> shift & (1 << bits) - 1
            if window:
                buckets[window] = group.add(buckets[window], point)
        running = summed = group.IDENTITY
        for bucket in reversed(buckets[1:]):
            running = group.add(running, bucket)
            summed = group.add(summed, running)
        total = group.add(total, summed)
    return total


@dataclass(frozen=True)
class Tables:
    """For each point its multiples by 2^(bits * w), w from 0 on."""

    bits: int
    rows: list[list[Affine]]

    @classmethod
    def of(cls, points: Sequence[bytes], bits: int) -> "Tables":
        """Tables of decoded points, for windows of so many bits."""
        windows = -(-254 // bits)
        return cls(bits, [_row(_decode(point), bits, windows) for point in points])

    def multiply(self, scalars: Sequence[int]) -> bytes:
        """One set of buckets for all windows, with digits of both signs."""
        half = 1 << self.bits - 1
        buckets: list[Extended] = [_NEUTRAL] * (half + 1)
        for k, row in zip(scalars, self.rows, strict=True):
            rest = k
            for y_less_x, y_plus_x, t in row:
                digit = rest & 2 * half - 1
                rest >>= self.bits
                if digit > half:
                    rest += 1
                    at = 2 * half - digit
                    buckets[at] = _mixed(buckets[at], (y_plus_x, y_less_x, P - t))
                elif digit:
                    buckets[digit] = _mixed(buckets[digit], (y_less_x, y_plus_x, t))
        running = summed = _NEUTRAL
        for bucket in reversed(buckets[1:]):
            running = _add(running, bucket)
            summed = _add(summed, running)
        return _encode(summed)


def _decode(data: bytes) -> tuple[int, int]:
    """Affine coordinates of an encoding that is known to be valid."""
    value = int.from_bytes(data, "little")
    y, odd = value & (1 << 255) - 1, value >> 255
    u, v = (y * y - 1) % P, (_D * y * y + 1) % P
    x = u * v**3 * pow(u * v**7 % P, (P - 5) // 8, P) % P
    if (v * x * x - u) % P:
        x = x * _ROOT % P
    return (P - x if x & 1 != odd else x), y


def _row(point: tuple[int, int], bits: int, windows: int) -> list[Affine]:
    x, y = point
    current: Extended = (x, y, 1, x * y % P)
    found = []
    for _ in range(windows):
        found.append(current)
        for _ in range(bits):
            current = _add(current, current)
    # One inversion for all (Montgomery's trick).
    products = [1]
    for _, _, z, _ in found:
        products.append(products[-1] * z % P)
    inverse = pow(products[-1], -1, P)
    row: list[Affine] = []
    for (px, py, pz, _), before in zip(reversed(found), reversed(products[:-1]), strict=True):
        one_over_z = inverse * before % P
        inverse = inverse * pz % P
        ax, ay = px * one_over_z % P, py * one_over_z % P
        row.append(((ay - ax) % P, (ay + ax) % P, 2 * _D * ax * ay % P))
    return row[::-1]


def _add(left: Extended, right: Extended) -> Extended:
    x1, y1, z1, t1 = left
    x2, y2, z2, t2 = right
    a, b = (y1 - x1) * (y2 - x2) % P, (y1 + x1) * (y2 + x2) % P
    c, d = 2 * _D * t1 * t2 % P, 2 * z1 * z2 % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def _mixed(left: Extended, right: Affine) -> Extended:
    x1, y1, z1, t1 = left
    y_less_x, y_plus_x, t2 = right
    a, b = (y1 - x1) * y_less_x % P, (y1 + x1) * y_plus_x % P
    c, d = t1 * t2 % P, z1 + z1
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def _encode(point: Extended) -> bytes:
    x, y, z, _ = point
    inverse = pow(z, -1, P)
    x, y = x * inverse % P, y * inverse % P
    return (y | (x & 1) << 255).to_bytes(32, "little")
