"""How one hospital decrypts a round's sum together with others: a state machine over SQLite.

Rules (SPEC 11.8 to 11.11). (1) A round is released for one set only, for ever. (2) A nonce is
shown after enough hospitals committed to that very set; sessions of members whose commitments
were there by then follow. (3) In a session a member promises its check and part, shows its
check when all members promised, and its part when all checks opened to noise. (4) What is said
is on disk first, and is said again byte for byte; noise is never drawn again for what has
been promised. The caller carries messages and tells the time.
"""

import secrets
import sqlite3
from collections.abc import Callable

from vitalring.aggregator.release_messages import Messages, Party
from vitalring.aggregator.release_sessions import Opened, Sessions
from vitalring.aggregator.release_store import Bound, Refused, RoundStore
from vitalring.database import transaction
from vitalring.errors import ConfigError, RecordError
from vitalring.protocol.ciphertext import Residues
from vitalring.protocol.release import (
    ReleaseNonce,
    SetCommitment,
    commitments_digest,
    commitments_needed,
    member_sets,
    nonce_commitment,
    set_digest,
)
from vitalring.protocol.signing import public_key, sign

__all__ = ["Opened", "Party", "Refused", "Release"]


class Release:
    """One round's decryption as one hospital sees it."""

    def __init__(
        self,
        db: sqlite3.Connection,
        party: Party,
        plan: bytes,
        report: bytes,
        number: int,
        contributions: tuple[bytes, ...],
        total: bytes,
        sums: Callable[[bytes], list[Residues]],
    ) -> None:
        """Commit to a set, or resume, or refuse it.

        `plan` and `report` are digests of the signed records, `number` the plan's round,
        `contributions` the digests of updates whose sum this hospital recomputed itself, and
        `total` that sum's bytes. `sums` gives the residues of each group's sum from 32 bytes that
        all hospitals drew together, or from no bytes where the plan has one group. Raises
        ConfigError if the party does not fit its study, StorageError.
        """
        hospitals = party.study.federation.hospitals
        if public_key(party.signing_seed) != hospitals[party.hospital].aggregator_key:
            raise ConfigError(f"the signing key is not that of hospital {party.hospital}")
        self._party, self._me, self._number = party, party.hospital, number
        self._access = party.params.access
        self._groups = party.study.plan.groups
        self._needed = commitments_needed(self._access, self._groups)
        self._sets = member_sets(self._access)
        sum_key = party.study.sum_key_digest
        chosen = set_digest(plan, report, contributions, total)
        self._bound = Bound(sum_key, plan, report, chosen)
        self._store = RoundStore(db, number, sum_key)
        self._messages = Messages(self._store, party, self._bound, number)
        self._nonce = self._enter(contributions)
        self._messages.reload()
        self._sessions = Sessions(self._store, self._messages, party, self._bound, total, sums)

    @property
    def outcome(self) -> Opened | Refused | None:
        """Return how the release ended, None while it goes on.

        Parts that others show still open a sum after this hospital refused to give its own, so
        `Refused` may become `Opened` as long as messages are heard; nothing follows `Opened`.
        """
        return self._sessions.opened or self._messages.refused

    def said(self) -> dict[tuple[str, int], bytes]:
        """Return what stands on this hospital's topics, by step and attempt; all is on disk."""
        said = self._messages.said() if self._nonce else {}
        refusal = self._store.refusal(self._bound.set)
        return said | ({("refusal", 0): refusal[0]} if refusal else {})

    def hear(self, hospital: int, step: str, attempt: int, content: bytes) -> None:
        """Take what stands on a hospital's topic, in any order and more than once.

        Raises RecordError or SignatureError, naming the hospital and what is wrong.
        """
        if not self._nonce:
            return
        refused = self._messages.hear(hospital, step, attempt, content)
        if refused is not None:
            self._messages.refuse(refused)
            raise RecordError(f"hospital {hospital}, {step!r}: {refused.detail}")

    def advance(self, now_ms: int) -> None:
        """Do whatever is possible now. Raises StorageError, and what `sums` raises."""
        if not self._nonce:
            return
        if self._store.times().begun_ms is None:
            with transaction(self._store.db):
                self._store.begin(now_ms)
        self._show_nonce(self._nonce, now_ms)
        self._sessions.advance(now_ms)
        self._give_up(now_ms)

    # Entering: rule 1.

    def _enter(self, contributions: tuple[bytes, ...]) -> bytes | None:
        """Bind the round to this set; return its nonce, or None where this set is refused."""
        with transaction(self._store.db):
            standing = self._store.bound()
            if standing is None:
                refused = self._unfit(contributions)
                if refused is None and not self._store.refusal(self._bound.set):
                    nonce = secrets.token_bytes(32)
                    self._bind(nonce)
                    standing = (self._bound, nonce)
                elif refused is not None:
                    self._messages.write_refusal(refused)
            elif standing[0] != self._bound or standing[1] is None:
                self._messages.write_refusal(
                    Refused(
                        "second_request",
                        standing[0].set,
                        f"round {self._number} was released for set {standing[0].set.hex()} "
                        "and is for no other, nor again",
                    )
                )
        return standing[1] if standing and standing[0] == self._bound else None

    def _unfit(self, contributions: tuple[bytes, ...]) -> Refused | None:
        """Refuse small sets, those that hold an update twice, and keys that showed too much."""
        plan, params = self._party.study.plan, self._party.params
        if len(set(contributions)) != len(contributions) or list(contributions) != sorted(
            contributions
        ):
            return Refused("double_update", b"", "the digests are not sorted without repeats")
        if len(contributions) < plan.min_cohort:
            return Refused(
                "too_few", b"", f"{len(contributions)} updates, none below {plan.min_cohort}"
            )
        failures = self._store.failures_before()
        if failures > params.tolerated_failures:
            return Refused(
                "spent_key",
                b"",
                f"{failures} checks failed or were not answered under this key, where "
                f"{params.tolerated_failures} are tolerated: the hospitals must make a new key",
            )
        return None

    def _bind(self, nonce: bytes) -> None:
        bound = self._bound
        promised = nonce_commitment(bound.set, self._me, nonce)
        commitment = SetCommitment(
            bound.sum_key, self._number, bound.plan, bound.report, bound.set, promised
        )
        self._store.bind(bound, nonce)
        key = (self._me, "commitment", 0)
        self._store.put(key, sign(commitment, [self._party.signing_seed]))

    # Nonces: rule 2.

    def _show_nonce(self, nonce: bytes, now_ms: int) -> None:
        """Show the nonce once enough commitments are there, all of them or after some patience.

        Who commits later is in no session of ours: it could choose its nonce by ours.
        """
        times, committed = self._store.times(), self._messages.commitments
        if self._messages.refused or times.shown_ms is not None or len(committed) < self._needed:
            return
        waited = times.begun_ms is not None and now_ms - times.begun_ms >= self._party.patience_ms
        if len(committed) < self._access.hospitals and not waited:
            return
        record = ReleaseNonce(
            self._bound.plan,
            self._bound.set,
            nonce,
            commitments_digest(self._bound.set, {h: c.nonce for h, c in committed.items()}),
        )
        with transaction(self._store.db):
            self._store.count(now_ms, tuple(sorted(committed)))
            self._messages.say("nonce", 0, sign(record, [self._party.signing_seed]))
        self._messages.reload()

    # Refusing.

    def _give_up(self, now_ms: int) -> None:
        """End the release when no set of members can finish it, or all had their time."""
        if self.outcome:
            return
        times = self._store.times()
        since = times.shown_ms if times.shown_ms is not None else times.begun_ms
        limit = (len(self._sets) + 1) * self._party.patience_ms
        hopeless = times.shown_ms is not None and not self._sessions.possible()
        if not hopeless and (since is None or now_ms - since < limit):
            return
        if self._sessions.ended:
            detail = "the parts of no set of members decrypt it: a member lies, or an update is no "
            detail += "encryption"
            self._messages.refuse(Refused("bad_part", self._bound.set, detail))
        else:
            detail = f"too few hospitals took part in time ({sorted(self._messages.nonces)} did)"
            self._messages.refuse(Refused("silent_hospital", b"", detail))
