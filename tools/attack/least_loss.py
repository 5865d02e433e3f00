"""Source inference on the rounds of a study: what each attacker makes of what it sees.

Slots are messages, devices are who sent them. An attack that finds the slot which holds a record
has not named a device, unless it also knows whose slot that is.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vitalring.models.dataset import Records
from vitalring.models.runtime import TrainableModel
from vitalring.tools.attack import arithmetic
from vitalring.tools.attack.arithmetic import Floats, Places
from vitalring.tools.attack.pool import described
from vitalring.tools.measuring.virtual import Seen, Weights

KNOWN = (1, 5)
"""How many records of each device an attacker may know."""

Figures = dict[str, float]
"""By `stage/what`: success as a share."""


@dataclass(frozen=True)
class Targets:
    """Records that the attacker asks about, and behind them those that it knows the device of."""

    records: Records = field(repr=False)
    owners: Places = field(repr=False)
    asked: int
    order: Places = field(repr=False)
    """Of each known record, the how-manieth of its device it is."""

    @property
    def truth(self) -> Places:
        """Return whose the records are that are asked about."""
        return self.owners[: self.asked]

    @property
    def labels(self) -> Places:
        """Return the classes of the records that are asked about."""
        return self.records.y[: self.asked]

    def known(self, k: int) -> Places:
        """Return the places of the first `k` known records of each device."""
        return self.asked + np.flatnonzero(self.order < k)


def draw_targets(devices: Sequence[Records], most: int, generator: np.random.Generator) -> Targets:
    """Draw the records to know and, of all others that were trained on, `most` a device to ask."""
    asked: list[tuple[int, int]] = []
    known: list[tuple[int, int, int]] = []
    for device, records in enumerate(devices):
        order = generator.permutation(len(records)).tolist()
        known += [(device, row, place) for place, row in enumerate(order[: max(KNOWN)])]
        asked += [(device, row) for row in order[max(KNOWN) :][:most]]
    rows = [*asked, *((device, row) for device, row, _ in known)]
    return Targets(
        Records(
            "targets",
            np.stack([devices[device].x[row] for device, row in rows]),
            np.array([devices[device].y[row] for device, row in rows], dtype=np.int64),
        ),
        np.array([device for device, _ in rows], dtype=np.int64),
        len(asked),
        np.array([place for *_, place in known], dtype=np.int64),
    )


@dataclass(frozen=True)
class Watched:
    """A round as an attacker has it: slots in an order that tells nothing, and their losses."""

    senders: Places
    """The device of each slot: the truth, which only the figures may read."""
    losses: Floats
    """Of each slot's model on each target (slots, targets)."""
    updates: Floats
    after: Floats
    """What the round's global model says of each target: logarithms of probabilities."""


def watch(
    model: TrainableModel,
    rounds: Sequence[Seen],
    targets: Targets,
    generator: np.random.Generator,
) -> list[Watched]:
    """Return the rounds with slots in a random order and every target's loss in each."""
    watched = []
    for seen in rounds:
        senders = generator.permutation(len(seen.updates))
        losses = [_losses(model, seen.client_model(device), targets.records) for device in senders]
        probabilities = model.probabilities(seen.after, targets.records.x).astype(np.float64)
        watched.append(
            Watched(
                senders,
                np.stack(losses),
                seen.updates[senders],
                np.log(np.maximum(probabilities, 1e-7)),
            )
        )
    return watched


def infer(watched: Sequence[Watched], targets: Targets, generator: np.random.Generator) -> Figures:
    """Return what each attacker achieves, in a single round (mean over them) and over all."""
    count = len(watched[0].senders)
    figures = {}
    figures["random device"], figures["largest device"] = arithmetic.baselines(targets.truth, count)
    figures["label mix known"] = arithmetic.by_label(targets.truth, targets.labels, count)
    figures |= _named(watched, targets, generator)
    figures |= _anonymous(watched, targets, generator)
    for k in KNOWN:
        figures |= _known(watched, targets, k, generator)
        figures |= _without_updates(watched, targets, k)
    figures["sum/device"] = _sum_alone(watched, targets, generator)
    return figures


def _named(watched: Sequence[Watched], targets: Targets, generator: np.random.Generator) -> Figures:
    by_device = [_by_device(each.losses, each.senders) for each in watched]
    single = [_attacked(losses, targets, generator) for losses in by_device]
    return {
        "named/slot": float(np.mean(single)),
        "named/device": float(np.mean(single)),
        "named/device, all rounds": _attacked(_together(by_device), targets, generator),
    }


def _anonymous(
    watched: Sequence[Watched], targets: Targets, generator: np.random.Generator
) -> Figures:
    count, slots, devices = len(watched[0].senders), [], []
    for each in watched:
        guesses = arithmetic.least_loss(each.losses[:, : targets.asked], generator)
        slots.append(arithmetic.success(each.senders[guesses], targets.truth))
        # The attacker has to say a device, and nothing tells which one a slot is of.
        devices.append(arithmetic.success(generator.permutation(count)[guesses], targets.truth))
    chained, links = _chain(watched)
    guesses = arithmetic.least_loss(_together(chained)[:, : targets.asked], generator)
    named = generator.permutation(count)[guesses]
    figures = {
        "anonymous/slot": float(np.mean(slots)),
        "anonymous/device": float(np.mean(devices)),
        "anonymous/slot, all rounds": arithmetic.success(
            watched[0].senders[guesses], targets.truth
        ),
        "anonymous/device, all rounds": arithmetic.success(named, targets.truth),
    }
    return figures | ({"anonymous/next round": float(np.mean(links))} if links else {})


def _chain(watched: Sequence[Watched]) -> tuple[list[Floats], list[float]]:
    """Link every round's slots with those of the round before, by the likeness of updates.

    Returns each round's losses in the order of the first round's slots, and of each link the
    share that joins two updates of one device.
    """
    chain = np.arange(len(watched[0].senders))
    chained, links = [watched[0].losses], []
    for before, after in itertools.pairwise(watched):
        previous = arithmetic.link_directions(before.updates, after.updates)
        links.append(arithmetic.success(before.senders[previous], after.senders))
        # Slot j of this round goes on with the chain that its predecessor is in.
        chain = chain[previous]
        chained.append(_by_device(after.losses, chain))
    return chained, links


def _known(
    watched: Sequence[Watched], targets: Targets, k: int, generator: np.random.Generator
) -> Figures:
    links, single, by_device = [], [], []
    for each in watched:
        devices = arithmetic.match(_mean_loss(each.losses, targets, k))
        links.append(arithmetic.success(devices, each.senders))
        by_device.append(_by_device(each.losses, devices))
        single.append(_attacked(by_device[-1], targets, generator))
    chained = _together(_chain(watched)[0])
    owners = arithmetic.match(_mean_loss(chained, targets, k))
    return {
        f"known {k}/slot's device": float(np.mean(links)),
        f"known {k}/device": float(np.mean(single)),
        f"known {k}/device, all rounds": _attacked(_together(by_device), targets, generator),
        f"known {k}/slot's device, chained": arithmetic.success(owners, watched[0].senders),
        f"known {k}/device, chained": _attacked(_by_device(chained, owners), targets, generator),
    }


def _without_updates(watched: Sequence[Watched], targets: Targets, k: int) -> Figures:
    """Attack with known records alone, and with them and all global models.

    Known records of a device tell about others like them, whatever is protected: this is what
    an attack on updates must be compared with.
    """
    known = targets.known(k)
    bare = described(targets.records.x)
    # Records of another class are further away than any of the same class.
    labels = np.eye(int(targets.records.y.max()) + 1)[targets.records.y]
    bare = np.concatenate([bare, 1e3 * labels], axis=1)
    models = np.concatenate([*(each.after for each in watched), 1e3 * labels], axis=1)
    figures = {}
    for name, features in ((f"no update, known {k}", bare), (f"sum, known {k}", models)):
        guesses = arithmetic.nearest(
            features[known], targets.owners[known], features[: targets.asked]
        )
        figures[f"{name}/device"] = arithmetic.success(guesses, targets.truth)
    return figures


def _sum_alone(
    watched: Sequence[Watched], targets: Targets, generator: np.random.Generator
) -> float:
    """Take the opened sum for everybody's model: the same loss for all devices, so a tie."""
    count = len(watched[0].senders)
    sums = [-each.after[np.arange(len(each.after)), targets.records.y] for each in watched]
    return _attacked(np.tile(np.sum(sums, axis=0), (count, 1)), targets, generator)


def _attacked(losses: Floats, targets: Targets, generator: np.random.Generator) -> float:
    guesses = arithmetic.least_loss(losses[:, : targets.asked], generator)
    return arithmetic.success(guesses, targets.truth)


def _by_device(losses: Floats, devices: Places) -> Floats:
    """Return rows in the order of the devices that they are taken to be of."""
    ordered = np.empty_like(losses)
    ordered[devices] = losses
    return ordered


def _together(rounds: Sequence[Floats]) -> Floats:
    """Add up rounds, each relative to its mean model: early rounds have large losses."""
    total: Floats = np.sum([losses - losses.mean(axis=0) for losses in rounds], axis=0)
    return total


def _mean_loss(losses: Floats, targets: Targets, k: int) -> Floats:
    """Return the mean loss of each slot's model on each device's known records."""
    known = targets.known(k)
    owners = targets.owners[known]
    means = [losses[:, known[owners == device]].mean(axis=1) for device in range(len(losses))]
    return np.stack(means, axis=1)


def _losses(model: TrainableModel, weights: Weights, records: Records) -> npt.NDArray[np.float64]:
    return arithmetic.losses_of(model.probabilities(weights, records.x), records.y)
