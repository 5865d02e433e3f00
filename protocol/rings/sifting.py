"""Finding what is bad in a batch by few sums over parts of it (clause 6.19 of SPEC.md).

Every signature leaves a residue, the identity if it is valid, and computing one costs as much
as computing the sum of many. A part of the batch whose residues add up to the identity is
valid. Of any other part a second sum is made, with each residue times its place: where just
one is bad, the second sum is that place times the first, and it is found at once (Law, Matt
2007, "Finding invalid signatures in pairing-based batches", with the tree of their "single
pruning search"). Where more are bad the part is halved; sums of the right half are what the
left half leaves of the whole's.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vitalring.protocol import group

Sum = Callable[[Sequence[int], int], bytes]
"""From places, counted from 1, and a power to the sum of place^power * residue over them."""


@dataclass(frozen=True)
class Sifted:
    """Places of valid and of bad signatures; the others were not told apart."""

    valid: tuple[int, ...]
    bad: tuple[int, ...]


def sift(count: int, total: Sum, most: int) -> Sifted:
    """Tell valid signatures from bad ones by at most `most` sums.

    `count` of them have places 1 to `count`. So many sums always suffice, if residues have
    weights that nobody foresees.
    """
    search = _Search(total, most)
    with contextlib.suppress(_UsedUpError):
        search.run(range(1, count + 1))
    return Sifted(tuple(search.valid), tuple(search.bad))


class _UsedUpError(Exception):
    """Another sum would be one too many."""


class _Search:
    def __init__(self, total: Sum, most: int) -> None:
        self.valid: list[int] = []
        self.bad: list[int] = []
        self._total = total
        self._left = most

    def run(self, places: Sequence[int]) -> None:
        if not places:
            return
        plain = self._sum(places, 0)
        if plain == group.IDENTITY:
            self.valid.extend(places)
        elif len(places) == 1:
            self.bad.extend(places)
        else:
            self._search(places, plain, self._sum(places, 1))

    def _search(self, places: Sequence[int], plain: bytes, placed: bytes) -> None:
        """Decide on two places or more with one bad at least, given their two sums."""
        only = _only(places, plain, placed)
        if only is not None:
            self.bad.append(only)
            self.valid.extend(place for place in places if place != only)
        elif len(places) == 2:
            self.bad.extend(places)
        else:
            self._halve(places, plain, placed)

    def _halve(self, places: Sequence[int], plain: bytes, placed: bytes) -> None:
        """Decide on three places or more with two bad at least."""
        middle = (len(places) + 1) // 2
        left, right = places[:middle], places[middle:]
        of_left = self._sum(left, 0)
        if of_left == group.IDENTITY:
            self.valid.extend(left)
            self._search(right, plain, placed)
        elif of_left == plain:
            self.valid.extend(right)
            self._search(left, plain, placed)
        else:
            of_right = group.sub(plain, of_left)
            if len(right) == 1:
                self.bad.extend(right)
                self._search(left, of_left, group.sub(placed, _times(right[0], of_right)))
            else:
                placed_left = self._sum(left, 1)
                self._search(left, of_left, placed_left)
                self._search(right, of_right, group.sub(placed, placed_left))

    def _sum(self, places: Sequence[int], power: int) -> bytes:
        if not self._left:
            raise _UsedUpError
        self._left -= 1
        return self._total(places, power)


def _only(places: Sequence[int], plain: bytes, placed: bytes) -> int | None:
    """Return the place whose multiple of `plain` is `placed`, None where there is none.

    Places are consecutive, so that each costs one difference.
    """
    rest = group.sub(placed, _times(places[0], plain))
    for place in places:
        if rest == group.IDENTITY:
            return place
        rest = group.sub(rest, plain)
    return None


def _times(place: int, point: bytes) -> bytes:
    return group.mul(place.to_bytes(group.SCALAR_BYTES, "little"), point)
