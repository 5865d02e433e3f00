"""Search the log for this device's own updates before it takes part again (SPEC 7.8).

A state folder may be older than what the device has sent: restored from a
backup, or copied. The log cannot be: it holds a tag for every counted update,
and only this device can recognise its own. Rounds it finds there and not in
its state are charged to its budget as if they had just been spent. Whose key is erased, or lost
by going back to a backup, cannot recognise its own any more: then every round of that epoch in
which updates were counted, and that the state does not know, counts as spent.
"""

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Set

from vitalring.database import transaction
from vitalring.edge_agent import announcement, state
from vitalring.edge_agent.budget import Budget
from vitalring.edge_agent.keyring import Keyring
from vitalring.edge_agent.workshop import Workshop
from vitalring.errors import LogError
from vitalring.protocol import lsag, trust
from vitalring.protocol.cbor import decode, type_of
from vitalring.protocol.checkpoint import Checkpoint, parse_and_verify
from vitalring.protocol.guarantee import budget_spend
from vitalring.protocol.merkle import CompactRange, leaf_hash
from vitalring.protocol.records import AcceptedUpdate, LoggedObject, RoundPlan
from vitalring.protocol.tiles import TILE_WIDTH, Tile, decode_bundle_start
from vitalring.protocol.update import round_context

_MADE = ("ready", "counted", "missed", "restored")
"""Rounds whose update this state knows of, and never makes again."""

ReadBundle = Callable[[Tile], bytes]
"""Bytes of an entry bundle of the log; what it returns is verified against the checkpoint."""


def catch_up(
    db: sqlite3.Connection,
    budget: Budget,
    workshop: Workshop,
    keys: Keyring,
    note: bytes,
    read_bundle: ReadBundle,
) -> None:
    """Read every entry since the last search, and charge own updates that are not accounted for.

    Raises LogError where the log is not a continuation of what the device knew.
    """
    # 1. A checkpoint of this federation's log, not older than the one we hold.
    checkpoint = parse_and_verify(note, announcement.log_keys(workshop.federation))
    known = state.known_checkpoint(db)
    if known and checkpoint.size < known.size:
        raise LogError(f"the log shrank from {known.size} to {checkpoint.size} entries")
    # 2. The entries since then, which together with what we read before give its root, and on
    #    the way the root that we knew: the past was not rewritten. A log may be larger than a
    #    device's memory, so of each update its tag alone is kept.
    grown = _append(state.read_range(db), [], known)
    tags: dict[bytes, set[bytes]] = {}
    for entries in _bundles(grown.size, checkpoint.size, read_bundle):
        grown = _append(grown, [leaf_hash(entry) for entry in entries], known)
        for entry in entries:
            _note_tags(entry, tags)
    if grown.root() != checkpoint.root:
        raise LogError(f"the log's entries do not give the root of its {checkpoint.size} entries")
    # 3. Own updates among them.
    found = _own_updates(tags, workshop, keys)
    with transaction(db):
        for plan, plan_digest in found:
            context = round_context(plan)
            if state.status_of(db, context) in [(done, plan_digest) for done in _MADE]:
                continue
            # A round that this state has only charged was made and sent by a later one.
            study = workshop.study(plan)
            # One aggregator's signature makes no such round: no device sends anything for it.
            if plan.round > study.plan.training.rounds:
                continue
            spend = budget_spend(study.plan.terms, plan.round)
            if spend is not None:
                budget.charge_unaccounted(
                    plan.study_plan,
                    plan_digest,
                    plan.study,
                    plan.round,
                    spend,
                    data_class=study.plan.data_class,
                )
            state.mark_restored(db, context, plan_digest, plan.round)
        state.remember_range(db, grown)
    state.remember_checkpoint(db, checkpoint)


def _bundles(first: int, size: int, read_bundle: ReadBundle) -> Iterator[list[bytes]]:
    """Yield the entries from `first` up to, not including, `size`, bundle after bundle."""
    for index in range(first // TILE_WIDTH, -(-size // TILE_WIDTH)):
        tile = Tile(None, index, min(TILE_WIDTH, size - index * TILE_WIDTH))
        bundle = decode_bundle_start(read_bundle(tile), tile.width)
        yield bundle[max(0, first - tile.span.start) :]


def _append(grown: CompactRange, leaves: list[bytes], known: Checkpoint | None) -> CompactRange:
    """Append leaves; where the tree passes the size that we knew, its root must be that one."""
    if known is not None and 0 <= known.size - grown.size <= len(leaves):
        old = grown.extend(leaves[: known.size - grown.size])
        if old.root() != known.root:
            raise LogError(f"the first {known.size} entries of the log are not those we knew")
    return grown.extend(leaves)


def _note_tags(entry: bytes, tags: dict[bytes, set[bytes]]) -> None:
    """Add what an entry says: a round plan's digest, or the tag of an update under one."""
    kind = type_of(entry)
    if kind == LoggedObject.TYPE:
        logged = decode(LoggedObject, entry)
        if logged.kind == "round-plan":
            tags.setdefault(logged.digest, set())
    elif kind == AcceptedUpdate.TYPE:
        accepted = decode(AcceptedUpdate, entry)
        # Its plan may have been read in an earlier search.
        tags.setdefault(accepted.plan, set()).add(accepted.signature[:32])


def _own_updates(
    tags: Mapping[bytes, Set[bytes]], workshop: Workshop, keys: Keyring
) -> list[tuple[RoundPlan, bytes]]:
    """Return the round plans under which this device's tag stands in the log, or may stand."""
    found = []
    for name, seen in tags.items():
        plan = trust.peek_round_plan(workshop.record(name), workshop.federation)
        pair = keys.pair(plan.epoch)
        if pair is None:
            own = bool(seen) and keys.may_have_had(plan.epoch)
        else:
            own = lsag.tag_of(pair.secret, round_context(plan)) in seen
        if own:
            found.append((plan, name))
    return found
