"""A device answers calls for ring keys: it draws one, proves that it has it, and says so again.

A call is signed by the hospitals' host and retained at the broker; the answer goes to the host
alone (SPEC 13.6). The office tells nobody what it took, so a device repeats its answer, ever
more rarely, until it finds its key in a roster or the call ends. Each answer goes over a fresh
connection of its own.
"""

import logging
import secrets
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vitalring.edge_agent import rosters
from vitalring.edge_agent.keyring import Keyring
from vitalring.errors import VitalRingError
from vitalring.protocol import enrolment, limits
from vitalring.protocol.enrolment import Enrolment, EnrolmentCall
from vitalring.protocol.records import Federation

_log = logging.getLogger(__name__)
_FIRST_WITHIN_S = 60.0
"""Devices that hear a call at once answer it spread over this time, or a retry's if shorter."""
_LONGEST_WAIT_S = 3_600.0


@dataclass(frozen=True)
class Applicant:
    """A device that may be enrolled: its state, its keys, and its ticket of 32 bytes if any."""

    db: sqlite3.Connection
    keys: Keyring
    ticket: bytes | None = field(default=None, repr=False)


def answer(call: EnrolmentCall, applicant: Applicant, attempt: int) -> Enrolment | None:
    """Return what a device answers to a call for the `attempt`-th time, None where nothing.

    Its key is on the disk when this returns. Vouchers take turns: keys of earlier epochs, the
    newest first, then the ticket, because the device cannot tell which of them the office takes.
    Raises ConfigError, SignatureError or StorageError where the device's files are at fault.
    """
    keys, epochs = applicant.keys, applicant.keys.epochs()
    # 1. The call is for an epoch that this device is not in yet, nor past.
    known = rosters.known(applicant.db, call.cohort)
    if known is not None and (known.epoch > call.epoch or known.enrolled_in == call.epoch):
        return None
    # A key of a later epoch that no roster has says nothing: its call may never have led to one.
    if keys.is_erased(call.epoch):
        return None
    # 2. It has something that vouches for it.
    earlier = [epoch for epoch in reversed(epochs) if epoch < call.epoch]
    ticket = [] if applicant.ticket is None else [applicant.ticket]
    if not earlier and not ticket:
        return None
    turn = attempt % (len(earlier) + len(ticket))
    # 3. A key, before anybody hears of it.
    new = keys.draw(call.epoch)
    if turn == len(earlier):
        return enrolment.with_ticket(call, new, ticket[0])
    return enrolment.with_previous(call, new, earlier[turn], keys.require(earlier[turn]))


class Enroller:
    """Answers the call that stands, for each device in its own time.

    `send` submits a sealed answer, over a connection of its own; it raises TransportError.
    """

    def __init__(
        self,
        applicants: Sequence[Applicant],
        federation: Federation,
        cohort: str,
        send: Callable[[bytes], None],
        retry_s: float,
    ) -> None:
        self._applicants = applicants
        self._federation = federation
        self._cohort = cohort
        self._send = send
        self._retry_s = retry_s
        self._heard: bytes | None = None
        self._call: EnrolmentCall | None = None
        # By place of the applicant: when it answers next (ms), and how often it has.
        self._due: dict[int, tuple[int, int]] = {}

    def hear(self, record: bytes, now_ms: int) -> None:
        """Take the call that the broker holds, or no bytes where none is open.

        Raises SignatureError or RecordError for one that is not the host's; it is left aside.
        """
        if record == self._heard:
            return
        self._heard, self._call, self._due = record, None, {}
        if not record:
            return
        call = enrolment.open_call(record, self._federation)
        if call.cohort != self._cohort:
            _log.warning("a call for cohort %s came on that of %s", call.cohort, self._cohort)
            return
        self._call = call
        within_ms = int(min(_FIRST_WITHIN_S, self._retry_s) * 1000)
        self._due = {
            place: (now_ms + secrets.randbelow(within_ms + 1), 0)
            for place in range(len(self._applicants))
        }

    def work(self, now_ms: int, stop: threading.Event) -> None:
        """Send what is due. What fails is tried again."""
        call = self._call
        if call is None:
            return
        if now_ms > call.closes_ms + limits.MAX_CLOCK_SKEW_MS:
            self._call, self._due = None, {}
            return
        for place in [each for each, (when_ms, _) in self._due.items() if when_ms <= now_ms]:
            if stop.is_set():
                return
            _, attempt = self._due.pop(place)
            if self._answer(call, self._applicants[place], attempt):
                self._due[place] = (now_ms + self._wait_ms(attempt), attempt + 1)

    def _answer(self, call: EnrolmentCall, applicant: Applicant, attempt: int) -> bool:
        """Answer once; False where there is nothing to say any more."""
        try:
            said = answer(call, applicant, attempt)
            if said is None:
                return False
            self._send(enrolment.seal(said, self._federation.hospitals[0].sealing_key))
            _log.info("asked to be enrolled in epoch %d", call.epoch)
        except (VitalRingError, sqlite3.Error) as error:
            _log.warning("not enrolled in epoch %d yet: %s", call.epoch, error)
        return True

    def _wait_ms(self, attempt: int) -> int:
        """Return how long to wait for a roster, at random: a ward does not answer at one moment."""
        longest_s = min(_LONGEST_WAIT_S, self._retry_s * 2.0 ** min(attempt, 16))
        return int(longest_s * 1000 * (0.5 + secrets.randbelow(1000) / 2000))
