"""Updates that wait for their ring signatures to be verified together (SPEC 10.10).

What a pass over a ring costs is the same for one signature and for many, so updates wait a
moment for others. A step verifies a batch in a bounded number of passes; what these leave open
comes first in the next step, in a smaller batch, down to one that its passes always decide. So
a forger costs a few passes for each forgery, and nobody waits behind what is never decided.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from time import perf_counter_ns
from typing import Final

from vitalring.errors import Reason, RefusedError
from vitalring.gateway.admission import Admission, Judged
from vitalring.mqtt import Message
from vitalring.protocol import limits

LINGER_S: Final = 0.5
"""The oldest update waits so long for others."""
MOST: Final = 64
"""Updates in a batch."""
MOST_BYTES: Final = 64 * limits.MIB
"""Memory that waiting updates take before they are checked at once."""
PASSES: Final = 16
"""Passes over each ring in a step: batches of so many updates are always decided."""

Judge = Callable[[Sequence[Admission], int], Judged]
"""Verify updates in at most so many passes."""
Count = Callable[[Sequence[Admission], int], list[tuple[Admission, RefusedError]]]
"""Count updates whose checks took so many microseconds; return those that cannot be added."""


@dataclass(frozen=True)
class _Waiting:
    admission: Admission
    message: Message
    spent_us: int
    since_s: float


@dataclass(frozen=True)
class Step:
    """What a step decided: messages that may be acknowledged, and refusals by reason."""

    done: tuple[Message, ...]
    refused: Counter[Reason]


class WaitingUpdates:
    """Screened updates with the messages that brought them, in the order of arrival."""

    def __init__(self) -> None:
        # By log entry: an update that the broker delivers again takes its own place.
        self._updates: dict[bytes, _Waiting] = {}
        self._bytes = 0
        self._newest = b""
        self._batch = MOST
        self._left_open = False

    def __len__(self) -> int:
        return len(self._updates)

    @property
    def full(self) -> bool:
        """Tell whether a batch is together."""
        return len(self._updates) >= MOST or self._bytes >= MOST_BYTES

    def left_s(self, now_s: float) -> float | None:
        """Return how long the oldest may wait still; None where nobody waits.

        What a step left open has waited enough.
        """
        if not self._updates:
            return None
        if self._left_open:
            return 0.0
        oldest = next(iter(self._updates.values()))
        return max(0.0, LINGER_S - (now_s - oldest.since_s))

    def holds(self, message: Message) -> bool:
        """Tell whether this message, the last to arrive, is to be acknowledged later."""
        newest = self._updates.get(self._newest)
        return newest is not None and newest.message is message

    def add(
        self, admission: Admission, message: Message, spent_us: int, now_s: float
    ) -> Message | None:
        """Let an update wait; return the message that it replaces, where it waits already.

        `spent_us` is the time that its checks took so far.
        """
        known = self._updates.get(admission.entry)
        since_s = now_s if known is None else known.since_s
        self._newest = admission.entry
        self._updates[self._newest] = _Waiting(admission, message, spent_us, since_s)
        self._bytes += 0 if known else admission.held_bytes
        return known.message if known else None

    def step(self, judge: Judge, count: Count) -> Step:
        """Verify the oldest updates, count those that are valid and forget what is decided.

        Raises what `judge` and `count` raise; then all of them wait still.
        """
        batch = list(islice(self._updates.values(), self._batch))
        started = perf_counter_ns()
        judged = judge([each.admission for each in batch], PASSES)
        judging_us = (perf_counter_ns() - started) // 1000
        refused = list(judged.refused)
        if judged.valid:
            entries = {each.entry for each in judged.valid}
            screening_us = sum(e.spent_us for e in batch if e.admission.entry in entries)
            share_us = judging_us * len(judged.valid) // len(batch)
            refused += count(judged.valid, screening_us + share_us)
        # What was counted is on disk from here on.
        undecided = {each.entry for each in judged.undecided}
        decided = [each for each in batch if each.admission.entry not in undecided]
        self._forget(each.admission for each in decided)
        self._left_open = bool(undecided)
        self._batch = max(PASSES, len(batch) // 2) if undecided else min(MOST, 2 * self._batch)
        reasons = Counter(refusal.reason for _, refusal in refused)
        return Step(tuple(each.message for each in decided), reasons)

    def _forget(self, admissions: Iterable[Admission]) -> None:
        for each in admissions:
            del self._updates[each.entry]
            self._bytes -= each.held_bytes
