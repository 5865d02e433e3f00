"""The sessions of a release: one for each set of members that may decrypt.

Rules (SPEC 11.9). In a session a member promises its check and part, shows its check when all
members promised, and its part when all checks opened to noise. Noise is never drawn again
for what has been promised. Who is no member watches, and opens the sum with the others.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vitalring.aggregator.release_messages import Messages, Party
from vitalring.aggregator.release_store import Bound, Refused, RoundStore
from vitalring.database import transaction
from vitalring.errors import CiphertextError, RecordError
from vitalring.protocol.cbor import digest
from vitalring.protocol.ciphertext import Residues
from vitalring.protocol.release import (
    PartPromise,
    challenge,
    commitments_digest,
    group_seed,
    member_sets,
)
from vitalring.protocol.signing import sign
from vitalring.protocol.threshold.decryption import (
    combine,
    decode_check,
    decode_part,
    encode_check,
    encode_part,
    key_share,
    open_checks,
)


@dataclass(frozen=True, eq=False)
class Opened:
    """The sums of a round, opened by one set of members."""

    attempt: int
    members: tuple[int, ...]
    plaintexts: tuple[NDArray[np.uint64], ...] = field(
        repr=False
    )  # one a group, each (ciphertexts, degree)


class Sessions:
    """All sessions of one round."""

    def __init__(
        self,
        store: RoundStore,
        messages: Messages,
        party: Party,
        bound: Bound,
        total: bytes,
        sums: Callable[[bytes], list[Residues]],
    ) -> None:
        self._store, self._messages, self._party, self._bound = store, messages, party, bound
        self._me, self._access = party.hospital, party.params.access
        self._groups = party.study.plan.groups
        self._sets = member_sets(self._access)
        self._total, self._make_sums = total, sums
        self._sums: tuple[bytes, list[Residues]] | None = None
        self.opened: Opened | None = None
        # Sessions that a member spoilt, as far as this hospital can tell.
        self.ended = {a for a, passed in store.verdicts().items() if not passed}

    def advance(self, now_ms: int) -> None:
        """Take every session as far as it goes."""
        due = self._due(now_ms)
        for attempt in range(len(self._sets)):
            if attempt not in self.ended:
                self._work(attempt, may_begin=attempt in due)

    def possible(self) -> list[int]:
        """Return the sets of members that may still decrypt, as far as this hospital can tell."""
        willing = set(self._store.times().counted) - self._messages.refusing
        return [
            attempt
            for attempt, members in enumerate(self._sets)
            if attempt not in self.ended and willing.issuperset(members)
        ]

    def _work(self, attempt: int, *, may_begin: bool) -> None:
        """Take one set of members as far as it goes."""
        members, messages = self._sets[attempt], self._messages
        asked, totals = self._challenge(members), self._totals()
        if asked is None or totals is None:
            return
        member = self._me in members
        if member and may_begin and not (self.opened or messages.refused):
            self._promise(attempt, totals, asked)
        promises = [messages.promises.get((m, attempt)) for m in members]
        if any(promise is None or promise.challenge != asked for promise in promises):
            return
        if member and not messages.refused:
            self._show_check(attempt)
        if not all(messages.has(m, "check", attempt) for m in members):
            return
        if not self._passes(attempt, totals, asked):
            return
        if member and not messages.refused and not messages.has(self._me, "part", attempt):
            with transaction(self._store.db):
                messages.show("part", attempt)
            messages.reload()
        if self.opened is None and all(messages.has(m, "part", attempt) for m in members):
            self._combine(attempt, totals)

    def _due(self, now_ms: int) -> list[int]:
        """Return the sets that may begin by now: one at once, and one more after each patience.

        Those that cannot begin, because a member is silent or refuses, delay no other.
        """
        times = self._store.times()
        if times.shown_ms is None:
            return []
        ready = [a for a in self.possible() if self._challenge(self._sets[a])]
        return ready[: 1 + max(0, now_ms - times.shown_ms) // self._party.patience_ms]

    def _promise(self, attempt: int, totals: list[Residues], asked: bytes) -> None:
        """Compute check and part once, keep them back, and promise them.

        A hospital that lost its share promises nothing; others go on without it.
        """
        held = bool(self._party.pieces)
        if not held or (self._me, attempt) in self._messages.promises or self._owed(attempt):
            return
        party, params, members = self._party, self._party.params, self._sets[attempt]
        # One release for each set of members is the rehearsal's (SPEC 5.14).
        left = params.releases - len(self._sets) - self._store.sums_decrypted()
        if len(totals) > left:
            self._messages.refuse(
                Refused(
                    "spent_key",
                    b"",
                    f"this key was used for {params.releases} decryptions: the hospitals must "
                    "make a new key",
                )
            )
            return
        share = key_share(self._me, party.pieces, members, params)
        pairs = [share.decrypt(total, asked) for total in totals]
        check = b"".join(encode_check(check, params) for check, _ in pairs)
        part = b"".join(encode_part(part, params) for _, part in pairs)
        promise = PartPromise(
            self._bound.plan, self._bound.set, members, asked, digest(check), digest(part)
        )
        with transaction(self._store.db):
            self._store.open_session(attempt, len(totals))
            self._messages.say("check", attempt, check, shown=False)
            self._messages.say("part", attempt, part, shown=False)
            self._messages.say("promise", attempt, sign(promise, [party.signing_seed]))
        self._messages.reload()

    def _show_check(self, attempt: int) -> None:
        if self._messages.has(self._me, "check", attempt):
            return
        with transaction(self._store.db):
            self._store.expose(attempt)
            self._messages.show("check", attempt)
        self._messages.reload()

    def _owed(self, attempt: int) -> bool:
        """Tell whether one of these members keeps back its check where ours is shown.

        It saw ours open, and gets no second one before it answers.
        """
        messages, members = self._messages, set(self._sets[attempt])
        return any(
            messages.has(self._me, "check", other) and not messages.has(member, "check", other)
            for other, others in enumerate(self._sets)
            for member in members.intersection(others)
        )

    def _passes(self, attempt: int, totals: list[Residues], asked: bytes) -> bool:
        """Open the checks of a session once; a failure ends the round for this hospital.

        Not so where another session's check passed: then the sum holds encryptions, and a member
        of this session lied.
        """
        verdicts = self._store.verdicts()
        if attempt in verdicts:
            return verdicts[attempt]
        try:
            rows = self._decoded(attempt, "check", len(totals), decode_check)
        except CiphertextError:
            self.ended.add(attempt)
            return False
        try:
            for i, total in enumerate(totals):
                checks = {m: row[i] for m, row in rows.items()}
                open_checks(total, checks, asked, self._party.params)
        except CiphertextError as error:
            with transaction(self._store.db):
                self._store.judge(attempt, passed=False)
                if not any(verdicts.values()):
                    self._messages.write_refusal(Refused("bad_check", self._bound.set, str(error)))
            self.ended.add(attempt)
            return False
        with transaction(self._store.db):
            self._store.judge(attempt, passed=True)
        return True

    def _combine(self, attempt: int, totals: list[Residues]) -> None:
        params, members = self._party.params, self._sets[attempt]
        try:
            rows = self._decoded(attempt, "part", len(totals), decode_part)
            plaintexts = tuple(
                combine(total, {m: row[i] for m, row in rows.items()}, params)
                for i, total in enumerate(totals)
            )
        except CiphertextError:
            self.ended.add(attempt)
            return
        self.opened = Opened(attempt, members, plaintexts)

    def _decoded(
        self,
        attempt: int,
        step: str,
        count: int,
        decode: Callable[..., Residues],
    ) -> dict[int, list[Residues]]:
        """Decode what each member showed: one check or part for each of `count` sums."""
        decoded = {}
        for member in self._sets[attempt]:
            content = self._messages.get(member, step, attempt)
            size, rest = divmod(len(content), count)
            if rest:
                raise CiphertextError(f"hospital {member} sent {len(content)} bytes")
            decoded[member] = [
                decode(content[i * size : (i + 1) * size], self._party.params) for i in range(count)
            ]
        return decoded

    def _challenge(self, members: tuple[int, ...]) -> bytes | None:
        nonces = self._messages.nonces
        if any(member not in nonces for member in members):
            return None
        return challenge(self._bound.set, {m: nonces[m].value for m in members})

    def _totals(self) -> list[Residues] | None:
        """Return the sum of each group, None before it is sure who is in which."""
        seed, nonces = b"", self._messages.nonces
        if self._groups > 1:
            if len(nonces) < self._access.hospitals:
                return None
            # An honest hospital names one list of commitments, so those who go on agree.
            committed = {h: c.nonce for h, c in self._messages.commitments.items()}
            held = commitments_digest(self._bound.set, committed)
            if any(nonce.commitments != held for nonce in nonces.values()):
                return None
            seed = group_seed(self._bound.set, {h: n.value for h, n in nonces.items()})
        if self._sums is None or self._sums[0] != seed:
            self._sums = (seed, self._checked(self._make_sums(seed)))
        return self._sums[1]

    def _checked(self, totals: list[Residues]) -> list[Residues]:
        """Return the groups' sums, which are together the one that was committed to."""
        if not 1 <= len(totals) <= self._groups:
            raise RecordError(f"{len(totals)} sums, the plan has {self._groups} groups")
        scheme = self._party.study.scheme()
        whole = totals[0]
        for total in totals[1:]:
            whole = scheme.add(whole, total)
        if scheme.encode_sum(whole) != self._total:
            raise RecordError(f"the sums that came are not those of set {self._bound.set.hex()}")
        return totals
