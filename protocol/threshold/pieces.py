"""Who holds which piece of the secret key, and the pieces themselves.

Rules (SPEC 5.12): the joint secret is a sum of pieces, one for each set of t - 1 hospitals,
held by every hospital outside that set (Ito, Saito, Nishizeki 1987). Fewer than t
hospitals miss at least one piece, any t have all, and what each adds to a decryption has
weights 0 and 1. A piece is ternary, drawn by one hospital, its dealer.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from vitalring.errors import CiphertextError, ConfigError

_PER_BYTE = 4  # two bits a coefficient


@dataclass(frozen=True)
class Access:
    """Hospitals 0 to `hospitals` - 1, of whom any `threshold` decrypt."""

    hospitals: int
    threshold: int

    @property
    def missing(self) -> tuple[tuple[int, ...], ...]:
        """Return, for each piece, the hospitals that do not hold it."""
        return tuple(combinations(range(self.hospitals), self.threshold - 1))

    @property
    def pieces(self) -> int:
        """Return the number of pieces."""
        return len(self.missing)

    def holders(self, piece: int) -> tuple[int, ...]:
        """Return the hospitals that hold a piece."""
        missing = self.missing[piece]
        return tuple(h for h in range(self.hospitals) if h not in missing)

    def dealer(self, piece: int) -> int:
        """Return the hospital that draws a piece: the next one after those that miss it."""
        last = self.missing[piece][-1]
        return min(self.holders(piece), key=lambda h: (h - last) % self.hospitals)

    def dealt_by(self, hospital: int) -> tuple[int, ...]:
        """Return the pieces that a hospital draws."""
        return tuple(p for p in range(self.pieces) if self.dealer(p) == hospital)

    def held_by(self, hospital: int) -> tuple[int, ...]:
        """Return the pieces that a hospital holds."""
        return tuple(p for p in range(self.pieces) if hospital in self.holders(p))

    def assigned(self, hospital: int, members: Collection[int]) -> tuple[int, ...]:
        """Return the pieces that a hospital uses when exactly `members` decrypt.

        Each piece is used by the first member that holds it, and by no other. Raises
        ConfigError unless the members are `threshold` different hospitals, this one among them.
        """
        chosen = sorted(set(members))
        if len(chosen) != len(members) or len(chosen) != self.threshold:
            raise ConfigError(f"{sorted(members)} decrypt, not {self.threshold} different ones")
        if not 0 <= chosen[0] <= chosen[-1] < self.hospitals or hospital not in chosen:
            raise ConfigError(f"hospital {hospital} decrypts with {chosen} of {self.hospitals}")
        return tuple(
            p for p in range(self.pieces) if hospital == min(set(chosen) & set(self.holders(p)))
        )


@dataclass(frozen=True, eq=False)
class SecretPiece:
    """One piece of the joint secret key; whoever holds it keeps it secret."""

    index: int
    ternary: NDArray[np.int8] = field(repr=False)  # (degree,), each -1, 0 or 1


def encode_piece(piece: SecretPiece) -> bytes:
    """Return a piece's coefficients, two bits each: 0, 1, and 2 for -1 (SPEC 5.15).

    The result is secret: it belongs in a sealed box or a file of mode 0600.
    """
    digits = np.mod(piece.ternary, 3).astype(np.uint8).reshape(-1, _PER_BYTE)
    packed: NDArray[np.uint8] = (digits << _shifts()).sum(axis=1, dtype=np.uint8)
    return packed.tobytes()


def decode_piece(data: bytes, index: int, degree: int) -> SecretPiece:
    """Read piece `index`. Raises CiphertextError for anything but the one encoding."""
    if len(data) * _PER_BYTE != degree:
        raise CiphertextError(f"a piece of {len(data)} bytes, not {degree // _PER_BYTE}")
    digits = np.frombuffer(data, dtype=np.uint8)[:, None] >> _shifts() & np.uint8(3)
    if int(digits.max()) > 2:
        raise CiphertextError("a coefficient of this piece is neither -1, 0 nor 1")
    ternary = digits.reshape(-1).astype(np.int8)
    return SecretPiece(index, np.where(ternary == 2, np.int8(-1), ternary))


def _shifts() -> NDArray[np.uint8]:
    return np.arange(0, 8, 8 // _PER_BYTE, dtype=np.uint8)
