"""Tell a gateway's slots apart by all that its state folder holds of them.

The attacker is given more than any real one has: the true sender of every update of all rounds
but one. It learns from these what a device's updates look like, and names the senders of the
last. Whatever in a slot follows its device, size, bytes or place, would show.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vitalring.gateway.store import FILE
from vitalring.protocol.cbor import decode
from vitalring.protocol.records import SealedUpdate
from vitalring.tools.attack import arithmetic
from vitalring.tools.attack.arithmetic import Floats, Places
from vitalring.tools.attack.gateway_state import STATES, Copy, Held, Slot

_FILES: Final = (FILE, FILE + "-wal")
_CHUNKS: Final = 64
_PIECE_BYTES: Final = 64
_RIDGE: Final = 1.0
_HEAD_BYTES: Final = 64

WHERE: Final = {
    "open": "on disk, while updates come in",
    "closed": "on disk, while hospitals fetch",
    "done": "on disk, after the round",
    "live": "order and time of arrival, watched live",
}


_STRONGEST: Final = 10
_PERMUTATIONS: Final = 99


@dataclass(frozen=True)
class Lot:
    """A round's slots as numbers (slots, f), and the device of each."""

    features: Floats
    senders: Places


Attacked = dict[str, dict[str, Any]]
"""By attack: `shares`, of slots that it named rightly in each round, and `chance`, how often it
does as well or better where nothing tells devices apart."""

Classifier = Callable[[Sequence[Lot], Lot], Places]
"""From rounds with known senders and one without, to the device of each slot of that one."""


def byte_features(content: bytes) -> Floats:
    """Return length, histogram and mean by part of some bytes (1 + 256 + 64)."""
    values = np.frombuffer(content, np.uint8).astype(np.float64)
    histogram = np.bincount(values.astype(np.int64), minlength=256) / max(1, len(values))
    parts = [part.mean() if len(part) else 0.0 for part in np.array_split(values, _CHUNKS)]
    return np.concatenate([[float(len(values))], histogram, parts])


def ciphertexts_of(slot: Slot) -> bytes | None:
    """Return the ciphertexts of a slot, where the folder still holds them."""
    return None if slot.update is None else decode(SealedUpdate, slot.update).ciphertexts


def lot_of(copy: Copy, senders: Places) -> Lot:
    """Return everything that a copied state folder tells of its slots, as numbers."""
    rows = [_slot_features(slot, copy.files) for slot in copy.slots]
    features = np.stack(rows)
    # Where a slot lies among the others may tell more than where it lies.
    ranks = features[:, : 2 * len(_FILES)].argsort(axis=0).argsort(axis=0)
    return Lot(np.concatenate([features, ranks], axis=1), senders)


def classify(lots: Sequence[Lot], classifier: Classifier) -> list[float]:
    """Return for each round the share of slots that a classifier of all others names rightly."""
    shares = []
    for place, asked in enumerate(lots):
        others = [lot for other, lot in enumerate(lots) if other != place]
        shares.append(arithmetic.success(classifier(others, asked), asked.senders))
    return shares


def by_strongest(others: Sequence[Lot], asked: Lot) -> Places:
    """Name devices by the nearest mean in the few features that differ most between devices.

    Linear discriminant analysis with a diagonal covariance. One number that follows its device,
    such as a size, is found among any number of others that do not.
    """
    known, senders = _known(others)
    devices = np.unique(senders)
    means = np.stack([known[senders == device].mean(axis=0) for device in devices])
    within = np.mean((known - means[np.searchsorted(devices, senders)]) ** 2, axis=0)
    total = known.var(axis=0)
    within = np.maximum(within, 1e-6 * total)
    ratio = np.divide(means.var(axis=0), within, out=np.zeros_like(within), where=total > 0)
    chosen = np.argsort(-ratio)[:_STRONGEST]
    chosen = chosen[ratio[chosen] > 0]
    scale = np.sqrt(within[chosen])
    new, old = asked.features[:, chosen] / scale, means[:, chosen] / scale
    found: Places = devices[arithmetic.match(((new[:, None] - old[None]) ** 2).sum(axis=2))]
    return found


def by_all(others: Sequence[Lot], asked: Lot) -> Places:
    """Name devices by ridge regression on an indicator for each, over all features.

    Many weak differences add up in it.
    """
    known, senders = _known(others)
    mean, spread = _standard(known)
    scaled, new = (known - mean) / spread, (asked.features - mean) / spread
    devices = np.unique(senders)
    wanted = (senders[:, None] == devices[None, :]).astype(np.float64)
    centre = wanted.mean(axis=0)
    # The dual form: far fewer slots than features.
    gram = scaled @ scaled.T / scaled.shape[1]
    weights = np.linalg.solve(gram + _RIDGE * np.eye(len(gram)), wanted - centre)
    scores = new @ scaled.T / scaled.shape[1] @ weights + centre
    found: Places = devices[arithmetic.match(-scores)]
    return found


def follow(lots: Sequence[Lot]) -> list[float]:
    """Return for each round but the first the share of slots linked with their predecessor.

    Nothing is known of any sender: slots are linked that look most alike.
    """
    shares = []
    for before, after in itertools.pairwise(lots):
        mean, spread = _standard(np.concatenate([before.features, after.features]))
        old, new = (before.features - mean) / spread, (after.features - mean) / spread
        apart = ((new[:, None, :] - old[None, :, :]) ** 2).sum(axis=2)
        # One of the two may lack an update; who is fewer is assigned.
        if len(apart) <= apart.shape[1]:
            found, truth = before.senders[arithmetic.match(apart)], after.senders
        else:
            found, truth = after.senders[arithmetic.match(apart.T)], before.senders
        shares.append(arithmetic.success(found, truth))
    return shares


def attack_gateway(held: Sequence[Held], devices: Sequence[str]) -> dict[str, Attacked]:
    """Return each attack's success by round, for each state of the folder.

    Rounds of which more than one update is missing in a copy are left out of that state; while
    a round is open its last update is, which closes it.
    """
    places = {name: place for place, name in enumerate(devices)}
    lots: dict[str, list[Lot]] = {name: [] for name in WHERE}
    for each in held:
        for state in STATES:
            copy = each.copies.get(state)
            if copy is not None and len(copy.slots) >= len(devices) - 1:
                senders = [places[each.senders[slot.tag]] for slot in copy.slots]
                lots[state].append(lot_of(copy, np.array(senders, dtype=np.int64)))
        if len(each.arrivals) == len(devices):
            lots["live"].append(_arrivals(each, places))
    return {name: against_chance(found) for name, found in lots.items() if len(found) > 1}


def left_behind(held: Sequence[Held]) -> tuple[int, int]:
    """Return how many deleted ciphertexts the files still hold after their round, and of how many.

    A piece of each that was there before is searched for, in free pages and logs too: in the first
    copy of the next round, or in the last one of all. `held` are in order.
    """
    found = total = 0
    for place, each in enumerate(held):
        closed, done = each.copies.get("closed"), each.copies.get("done")
        if closed is None or done is None:
            continue
        # Emptying the log is the last thing that a gateway does in a round, after its model.
        if place + 1 < len(held):
            copies = held[place + 1].copies
            done = next((copies[state] for state in STATES if state in copies), done)
        for slot in closed.slots:
            ciphertexts = ciphertexts_of(slot)
            if ciphertexts is None:
                continue
            middle = len(ciphertexts) // 2
            piece = ciphertexts[middle : middle + _PIECE_BYTES]
            total += 1
            found += any(piece in content for content in done.files.values())
    return found, total


def attack_updates(rounds: Sequence[Floats]) -> dict[str, list[float]]:
    """Run the same classifiers on updates in clear (devices, d), in the order of devices.

    There they must succeed: this tells a blind classifier from a safe encryption. Returns the
    share of slots by attack and round.
    """
    return _attack([Lot(updates, np.arange(len(updates))) for updates in rounds])


def against_chance(lots: Sequence[Lot]) -> Attacked:
    """Run every attack, and again on the same slots with senders dealt at random.

    Rounds are not independent, as each one is named by what was learnt from the others; a
    permutation test holds all the same.
    """
    found = _attack(lots)
    generator = np.random.default_rng(0)
    reached = dict.fromkeys(found, 1)
    for _ in range(_PERMUTATIONS):
        dealt = [replace(lot, senders=generator.permutation(lot.senders)) for lot in lots]
        for name, shares in _attack(dealt).items():
            reached[name] += np.mean(shares) >= np.mean(found[name])
    return {
        name: {"shares": shares, "chance": float(reached[name] / (1 + _PERMUTATIONS))}
        for name, shares in found.items()
    }


def _attack(lots: Sequence[Lot]) -> dict[str, list[float]]:
    return {
        "strongest features": classify(lots, by_strongest),
        "all features": classify(lots, by_all),
        "next round": follow(lots),
    }


def _slot_features(slot: Slot, files: Mapping[str, bytes]) -> Floats:
    """Return places in the files, lengths and bytes of a slot."""
    where = [
        float(find(files.get(name, b""), slot.digest))
        for name in _FILES
        for find in (bytes.find, bytes.rfind)
    ]
    own = np.frombuffer(slot.digest + slot.tag, np.uint8).astype(np.float64)
    head = slot.signature[:_HEAD_BYTES] + slot.signature[-_HEAD_BYTES:]
    signature = np.frombuffer(head.ljust(2 * _HEAD_BYTES, b"\0"), np.uint8).astype(np.float64)
    parts: list[npt.NDArray[np.float64]] = [
        np.array(where),
        np.array([float(slot.ring), float(len(slot.signature))]),
        own,
        signature,
        byte_features(slot.signature),
    ]
    ciphertexts = ciphertexts_of(slot)
    if slot.update is not None and ciphertexts is not None:
        parts += [np.array([float(len(slot.update))]), byte_features(ciphertexts)]
    return np.concatenate(parts)


def _arrivals(held: Held, places: Mapping[str, int]) -> Lot:
    order = sorted(held.arrivals, key=lambda tag: held.arrivals[tag])
    features = [[held.arrivals[tag], float(rank)] for rank, tag in enumerate(order)]
    senders = [places[held.senders[tag]] for tag in order]
    return Lot(np.array(features), np.array(senders, dtype=np.int64))


def _known(others: Sequence[Lot]) -> tuple[Floats, Places]:
    return (
        np.concatenate([lot.features for lot in others]),
        np.concatenate([lot.senders for lot in others]),
    )


def _standard(features: Floats) -> tuple[Floats, Floats]:
    mean, spread = features.mean(axis=0), features.std(axis=0)
    return mean, np.where(spread > 0, spread, 1.0)
