"""One device: from an announcement to an update in the outbox, and its receipt.

The path of an update runs through `_train` and `_keep_update`. Nothing is made before the
plan is verified, within the device's own floors and paid for; nothing is made
twice; what is made stays in the outbox until its receipt is here.
"""

import secrets
import sqlite3
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vitalring.database import transaction
from vitalring.edge_agent import announcement, catch_up, model_in_use, state
from vitalring.edge_agent.accountant import Accountant, check_claim
from vitalring.edge_agent.budget import Budget
from vitalring.edge_agent.config import Floors
from vitalring.edge_agent.contribution import learn, protect
from vitalring.edge_agent.randomness import fresh_generator
from vitalring.edge_agent.renewal import Renewal
from vitalring.edge_agent.workshop import Workshop
from vitalring.errors import RecordError
from vitalring.models.dataset import Records
from vitalring.protocol import limits, trust
from vitalring.protocol.agreement import both_halves
from vitalring.protocol.cbor import encode
from vitalring.protocol.guarantee import budget_spend
from vitalring.protocol.limbs import answer_fields
from vitalring.protocol.privacy import fits_a_step
from vitalring.protocol.records import RoundPlan, SealedUpdate
from vitalring.protocol.ring_suite import Ring
from vitalring.protocol.two_server import ShareParams, share_params, split
from vitalring.protocol.update import rotation_seed, round_context, update_digest
from vitalring.stopwatch import Stages


@dataclass(frozen=True)
class Identity:
    """A device's ring key. It never appears in a log, a report or a message."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return "Identity(...)"


Fields = npt.NDArray[np.uint64]


class RecordSource(Protocol):
    """Where a device's records come from: a file, a table or its sensors."""

    def records(self, study: trust.Study) -> Records:
        """Return the records to train a round of this study on, as they are now.

        Raises DataError where there is nothing that fits the study.
        """

    def answer(self, study: trust.Study) -> Fields:
        """Return this site's numbers in limbs (d,) for a study of statistics. Raises DataError."""


@dataclass(frozen=True)
class _Round:
    """A round that this device may take part in; `ring` is the index of its own, `members`."""

    study: trust.Study
    plan: RoundPlan
    digest: bytes
    context: bytes
    ring: int
    members: Ring
    opened_ms: int


class Agent:
    """A device with its state folder, key and records."""

    def __init__(
        self,
        db: sqlite3.Connection,
        budget: Budget,
        identity: Identity,
        source: RecordSource,
        floors: Floors,
        participation: float,
        workshop: Workshop,
        accountant: Accountant,
        renewal: Renewal | None = None,
    ) -> None:
        """Put a device together; with `renewal` it keeps a model to predict with."""
        self.db = db
        self._budget = budget
        self._identity = identity
        self._source = source
        self._floors = floors
        self._participation = participation
        self._workshop = workshop
        self._accountant = accountant
        self._renewal = renewal
        self._caught_up = False
        self._authorised: set[bytes] = set()

    @property
    def caught_up(self) -> bool:
        """Tell whether the log was searched since the start; before, the device stays out."""
        return self._caught_up

    def catch_up(self, note: bytes, read_bundle: catch_up.ReadBundle) -> None:
        """Search the log for own updates that this state has lost (SPEC 7.8)."""
        catch_up.catch_up(
            self.db, self._budget, self._workshop, self._identity.secret, note, read_bundle
        )
        self._caught_up = True

    def consider(self, data: bytes, now_ms: int) -> str:
        """Take part in an announced round, or say why not.

        Returns "ready" when an update stands in the outbox, otherwise the
        reason to stay out. Raises VitalRingError where something is wrong
        that a person should see.
        """
        if not self._caught_up:
            return "not caught up with the log"
        # 1. The plan is in the log, and the log has only grown.
        known = state.known_checkpoint(self.db)
        announced = announcement.check(data, self._workshop.federation, known)
        state.remember_checkpoint(self.db, announced.checkpoint)
        # 2. Its study is signed as it must be, and the round keeps to the study.
        study, plan = self._workshop.round(announced.signed_plan)
        # 3. This key signs one update in a round, ever.
        earlier = state.status_of(self.db, round_context(plan))
        if earlier and earlier[1] != announced.plan_digest:
            raise RecordError(f"round {plan.round} was announced before with another plan")
        status = earlier[0] if earlier else None
        try:
            return self._take_part(study, plan, announced.plan_digest, status, now_ms)
        finally:
            # The wearer's model is renewed whether or not this device takes part, and after it.
            self._renew(
                model_in_use.of_plan(study, announced.signed_plan, plan, announced.checkpoint.size)
            )

    def _take_part(
        self, study: trust.Study, plan: RoundPlan, name: bytes, status: str | None, now_ms: int
    ) -> str:
        """Make an update of a verified round, or say why not; `status` is how far it came."""
        # 4. There is time, and the update is not there yet.
        if now_ms > plan.deadline_ms + limits.MAX_CLOCK_SKEW_MS:
            return "the round is over"
        if status not in (None, "charged"):
            return f"already {status}"
        # 5. The device's own floors.
        ring, members = self._own_ring(study)
        records = self._records(study) if study.plan.task == "train" else None
        if reason := self._below_floors(study, plan, members, records):
            return reason
        # 6. A device may sit rounds out, by its own coin, which it tosses once.
        context = round_context(plan)
        if status is None and secrets.randbelow(1 << 53) >= self._participation * (1 << 53):
            with transaction(self.db):
                state.mark(self.db, "sat_out", context, name, plan.round)
            return "sits this round out"
        # 7. The guarantee is what the plan claims, and the budget bears it.
        self._pay(study, plan, context, name)
        # A clock that lags behind the aggregator's must not eat up the time there is.
        opened_ms = min(plan.opens_ms, now_ms)
        to = _Round(study, plan, name, context, ring, members, opened_ms)
        clock = Stages()
        if records is None:
            fields = answer_fields(self._source.answer(study))
        else:
            fields = self._train(to, records, clock)
        self._keep_update(to, fields, clock)
        return "ready"

    def receipts(self, data: bytes) -> bool:
        """Take a round's receipts; True where they settle an update of this device."""
        receipts = trust.open_receipts(data, self._workshop.federation)
        for pending in state.outbox(self.db):
            if pending.plan == receipts.plan:
                state.settle(self.db, pending.plan, pending.digest in receipts.digests)
                return True
        return False

    def end_study(self, data: bytes) -> None:
        """Take a study's final model: rounds that it did not use are no longer promised.

        Raises SignatureError or RecordError for anything but a final model of
        a quorum.
        """
        federation = self._workshop.federation
        peeked = trust.peek_model(data, federation)
        study, last = self._workshop.round(self._workshop.object(peeked.plan))
        model = trust.open_model(data, federation, study.plan)
        if not model.final:
            raise RecordError(f"the model of round {peeked.round} does not end its study")
        if self._budget.is_authorised(study.plan_digest):
            with transaction(self.db):
                self._budget.close(study.plan_digest)
        self._renew(model_in_use.of_final(study, data, model, last))

    def expire(self, now_ms: int) -> list[state.Pending]:
        """Discard updates that missed their deadline; their budget stays spent."""
        late = [
            pending
            for pending in state.outbox(self.db)
            if now_ms > pending.deadline_ms + limits.MAX_CLOCK_SKEW_MS
        ]
        for pending in late:
            state.settle(self.db, pending.plan, counted=False)
        return late

    def _records(self, study: trust.Study) -> Records:
        """Return the records that learning may see."""
        records = self._source.records(study)
        if self._renewal is None:
            return records
        return self._renewal.to_train_on(records, study.plan.privacy.unit)

    def _renew(self, origin: model_in_use.Origin) -> None:
        if self._renewal is not None:
            self._renewal.renew(origin, lambda: self._source.records(origin.study))

    def _below_floors(
        self, study: trust.Study, plan: RoundPlan, members: Ring, records: Records | None
    ) -> str | None:
        """Say which of the device's floors a plan does not reach (SPEC 9.11)."""
        floors = self._floors
        if len(members.keys) < max(floors.ring, study.plan.min_ring):
            return f"the ring of {len(members.keys)} keys is below this device's floor"
        if plan.min_cohort < floors.cohort:
            return f"sums of {plan.min_cohort} updates are below this device's floor"
        if records is not None and (reason := _unfit_count(len(records), plan)):
            return reason
        if study.plan.secure_sum == "plain" and not floors.allow_plain_sum:
            return "the sum is in clear and this device insists on an encrypted one"
        if plan.privacy.unit == "none" and not floors.allow_no_privacy:
            return "the plan has no privacy and this device insists on it"
        if plan.privacy.noise == "distributed" and not floors.allow_shared_noise:
            return "the noise is shared and this device insists on carrying its guarantee alone"
        return None

    def _own_ring(self, study: trust.Study) -> tuple[int, Ring]:
        for index, ring in enumerate(study.rings):
            if self._identity.public in ring.keys:
                return index, ring
        raise RecordError(f"this device's key is not in the roster of {study.roster.cohort}")

    def _pay(self, study: trust.Study, plan: RoundPlan, context: bytes, plan_digest: bytes) -> None:
        """Charge the round before anything is made of the records. Raises PrivacyError."""
        spend = budget_spend(study.plan.terms)
        # Once a start: the floors may have been lowered since the study was first seen.
        if spend is not None and study.plan_digest not in self._authorised:
            check_claim(study.plan.terms, self._accountant)
            with transaction(self.db):
                self._budget.authorise(
                    study.plan_digest,
                    plan.study,
                    spend,
                    plan.training.rounds,
                    limit=self._floors.epsilon,
                    delta=self._floors.delta,
                    accountant=self._accountant,
                )
            self._authorised.add(study.plan_digest)
        with transaction(self.db):
            if spend is not None:
                self._budget.reserve(study.plan_digest, plan_digest, plan.study, plan.round, spend)
            state.mark(self.db, "charged", context, plan_digest, plan.round)

    def _train(self, to: _Round, records: Records, clock: Stages) -> Fields:
        terms = to.study.plan.terms
        start = self._workshop.weights(to.plan, terms.dimension)
        # train, clipped, with noise of its own where each device carries the guarantee
        update = learn(self._workshop.model(to.study), start, records, terms, fresh_generator())
        clock.done("train")
        # clip, rotate, round, add integer noise
        fields = protect(
            update, len(records), terms, rotation_seed(to.digest), fresh_generator()
        ).fields
        clock.done("encode")
        return fields

    def _keep_update(self, to: _Round, fields: Fields, clock: Stages) -> None:
        # pack, encrypt; or cut in two
        shares = split(fields, _share_params(to.study)) if to.study.shared else None
        if shares is not None:
            ciphertexts = shares.link
        else:
            ciphertexts = self._workshop.encryptor(to.study).encrypt(fields)
        clock.done("encrypt")
        # ring-sign
        digest = update_digest(to.digest, to.ring, ciphertexts)
        signature = to.members.sign(self._identity.secret, to.context, digest)
        clock.done("sign")
        # keep
        sealed = SealedUpdate(to.digest, to.ring, ciphertexts, signature)
        update = encode(sealed) if shares is None else encode(both_halves(sealed, shares))
        pending = state.Pending(
            plan=to.digest,
            round=to.plan.round,
            digest=digest,
            update=update,
            submit_at_ms=to.opened_ms + secrets.randbelow(to.plan.window_ms + 1),
            deadline_ms=to.plan.deadline_ms,
            attempts=0,
        )
        state.put_outbox(
            self.db, to.context, pending, {**clock.seconds, "update_bytes": len(update)}
        )


def _share_params(study: trust.Study) -> ShareParams:
    return share_params(study.plan.codec, study.plan.model.dimension)


def _unfit_count(records: int, plan: RoundPlan) -> str | None:
    """Say why so many records do not fit the plan (SPEC 7.2, 7.4)."""
    if records < plan.training.records:
        return f"{records} records are fewer than the plan asks for"
    sampled = plan.training.sampling_rate
    if plan.privacy.unit == "record" and not fits_a_step(records, sampled):
        return f"{records} records are more than the guarantee is argued for"
    return None
