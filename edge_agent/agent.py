"""One device: from an announcement to an update in the outbox, and its receipt.

The path of an update runs through `_train` and `_keep_update`. Nothing is made before the
plan is verified, within the device's own floors and paid for; nothing is made
twice; what is made stays in the outbox until its receipt is here.
"""

import logging
import secrets
import sqlite3
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vitalring.database import transaction
from vitalring.edge_agent import announcement, catch_up, model_in_use, rosters, state
from vitalring.edge_agent.accountant import Accountant, check_claim
from vitalring.edge_agent.budget import Budget
from vitalring.edge_agent.config import Floors
from vitalring.edge_agent.contribution import learn, protect
from vitalring.edge_agent.keyring import Keyring
from vitalring.edge_agent.randomness import fresh_generator
from vitalring.edge_agent.renewal import Renewal
from vitalring.edge_agent.workshop import Workshop
from vitalring.errors import RecordError
from vitalring.models.dataset import Records
from vitalring.protocol import limits, trust
from vitalring.protocol.agreement import both_halves
from vitalring.protocol.cbor import encode
from vitalring.protocol.guarantee import at_round, budget_allowances, budget_spend
from vitalring.protocol.limbs import answer_fields
from vitalring.protocol.lsag import KeyPair
from vitalring.protocol.privacy import fits_a_step
from vitalring.protocol.records import RoundPlan, SealedUpdate
from vitalring.protocol.ring_suite import Ring
from vitalring.protocol.two_server import ShareParams, share_params, split
from vitalring.protocol.update import rotation_seed, round_context, spare_bytes, update_digest
from vitalring.stopwatch import Stages

_log = logging.getLogger(__name__)

Fields = npt.NDArray[np.uint64]


class RecordSource(Protocol):
    """Where a device's records come from: a file, a table or its sensors."""

    @property
    def data_classes(self) -> Collection[str]:
        """The kinds of records that there are, by the word of the device's owner (SPEC 7.19)."""

    def records(self, study: trust.Study) -> Records:
        """Return the records to train a round of this study on, as they are now.

        Raises DataError where there is nothing that fits the study.
        """

    def answer(self, study: trust.Study) -> Fields:
        """Return this site's numbers in limbs (d,) for a study of statistics. Raises DataError."""


@dataclass(frozen=True)
class _Round:
    """A round that this device may take part in; `ring` is the index of its own, `members`.

    `keys` is the device's ring key of the plan's epoch. `now_ms` is when the device began with
    it, and `began_s` the same on a clock that only counts.
    """

    study: trust.Study
    plan: RoundPlan
    digest: bytes
    context: bytes
    ring: int
    members: Ring
    keys: KeyPair
    now_ms: int
    began_s: float


class Agent:
    """A device with its state folder, keys and records."""

    def __init__(
        self,
        db: sqlite3.Connection,
        budget: Budget,
        keys: Keyring,
        source: RecordSource,
        floors: Floors,
        participation: float,
        workshop: Workshop,
        accountant: Accountant,
        renewal: Renewal | None = None,
    ) -> None:
        """Put a device together; with `renewal` it keeps a model to predict with.

        Raises ConfigError where a floor is about a class of data that the device has not.
        """
        floors.check_classes(source.data_classes)
        self.db = db
        self._budget = budget
        self._keys = keys
        self._source = source
        self._floors = floors
        self._participation = participation
        self._workshop = workshop
        self._accountant = accountant
        self._renewal = renewal
        self._caught_up = False
        self._authorised: set[bytes] = set()
        # The plan that was considered last, and its cohort.
        self._plan, self._cohort = b"", ""

    @property
    def caught_up(self) -> bool:
        """Tell whether the log was searched since the start; before, the device stays out."""
        return self._caught_up

    def catch_up(self, note: bytes, read_bundle: catch_up.ReadBundle) -> None:
        """Search the log for own updates that this state has lost (SPEC 7.8)."""
        catch_up.catch_up(self.db, self._budget, self._workshop, self._keys, note, read_bundle)
        self._caught_up = True
        self.erase_old_keys()

    @property
    def owes_erasure(self) -> bool:
        """Tell whether keys of earlier epochs are still here though a roster has a newer one."""
        return bool(self._keys.before(self._enrolled_in()))

    def erase_old_keys(self) -> tuple[int, ...]:
        """Erase the keys of earlier epochs once nothing needs them; return these epochs (SPEC 6.4).

        1. A roster that the log holds before a verified plan has the device's newer key.
        2. The log is searched up to where the device knows it, so what the old keys signed is
           accounted for.
        3. Nothing that they signed waits for a receipt.
        """
        epoch, known = self._enrolled_in(), state.known_checkpoint(self.db)
        if not self._keys.before(epoch) or known is None:
            return ()
        if state.read_range(self.db).size < known.size:
            return ()
        if any(pending.plan != self._plan for pending in state.outbox(self.db)):
            return ()
        erased = self._keys.erase_before(epoch)
        for each in erased:
            _log.info("erased the ring key of epoch %d: epoch %d goes on with another", each, epoch)
        return erased

    def _enrolled_in(self) -> int:
        """Return the newest epoch in whose roster this device found its key; 0 where in none."""
        known = rosters.known(self.db, self._cohort)
        return 0 if known is None or known.enrolled_in is None else known.enrolled_in

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
        announced = self._workshop.announced(data)
        announcement.check_growth(announced, known)
        state.remember_checkpoint(self.db, announced.checkpoint)
        # 2. So is the roster that it names; its study is signed as it must be, and the round keeps
        #    to the study.
        self._workshop.check_roster(announced)
        study, plan = self._workshop.round(announced.signed_plan)
        # 3. Its roster is the newest that this device knows of.
        rosters.accept(self.db, study)
        self._plan, self._cohort = announced.plan_digest, study.roster.cohort
        # 4. This key signs one update in a round, ever.
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
        began_s = time.perf_counter()
        # 5. There is time, and the update is not there yet.
        if now_ms > plan.deadline_ms + limits.MAX_CLOCK_SKEW_MS:
            return "the round is over"
        if status not in (None, "charged"):
            return f"already {status}"
        # 6. It is in the roster.
        keys = self._keys.pair(study.roster.epoch)
        if keys is None:
            return self._without_key(study.roster.epoch)
        place = rosters.own_ring(self.db, study, keys.public)
        if place is None:
            return rosters.absence(self.db, study)
        ring, members = place
        # 7. Its records are what the study says, and the device's own floors hold.
        if not self._has_data_of(study):
            return self._other_data(study)
        records = self._records(study) if study.plan.task == "train" else None
        if reason := self._below_floors(study, plan, members, records):
            return reason
        # 8. A device may sit rounds out, by its own coin, which it tosses once.
        context = round_context(plan)
        if status is None and secrets.randbelow(1 << 53) >= self._participation * (1 << 53):
            with transaction(self.db):
                state.mark(self.db, "sat_out", context, name, plan.round)
            return "sits this round out"
        # 9. The guarantee is what the plan claims, and the budget bears it.
        self._pay(study, plan, context, name)
        to = _Round(study, plan, name, context, ring, members, keys, now_ms, began_s)
        clock = Stages()
        if records is None:
            fields = answer_fields(self._source.answer(study))
        else:
            fields = self._train(to, records, clock)
        self._keep_update(to, fields, clock)
        return "ready"

    def receipts(self, data: bytes) -> bool:
        """Take a round's receipts; True where they settle an update of this device."""
        receipts = self._workshop.receipts(data)
        for pending in state.outbox(self.db):
            if pending.plan == receipts.plan:
                state.settle(self.db, pending.plan, pending.digest in receipts.digests)
                self.erase_old_keys()
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
        late = state.outbox(self.db, now_ms - limits.MAX_CLOCK_SKEW_MS)
        for pending in late:
            state.settle(self.db, pending.plan, counted=False)
        if late:
            self.erase_old_keys()
        return late

    def _records(self, study: trust.Study) -> Records:
        """Return the records that learning may see."""
        records = self._source.records(study)
        if self._renewal is None:
            return records
        return self._renewal.to_train_on(records, study.plan.privacy.unit)

    def _has_data_of(self, study: trust.Study) -> bool:
        """Tell whether this device has records of the class that a study names (SPEC 7.19)."""
        return study.plan.data_class in self._source.data_classes

    def _other_data(self, study: trust.Study) -> str:
        have = ", ".join(name or "of no class" for name in self._source.data_classes)
        return (
            f"the study is about {study.plan.data_class or 'data of no class'} and this device's "
            f"records are {have}"
        )

    def _renew(self, origin: model_in_use.Origin) -> None:
        # A model of other data says nothing of this device's.
        if self._renewal is not None and self._has_data_of(origin.study):
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
        data_class = study.plan.data_class
        if plan.privacy.unit == "none" and not floors.allows_no_privacy(data_class):
            about = f" for {data_class}" if data_class in floors.classes else ""
            return f"the plan has no privacy and this device insists on it{about}"
        if plan.privacy.noise == "distributed" and not floors.allow_shared_noise:
            return "the noise is shared and this device insists on carrying its guarantee alone"
        return None

    def _without_key(self, epoch: int) -> str:
        if self._keys.is_erased(epoch):
            return f"the ring key of epoch {epoch} is erased"
        return f"this device is not enrolled in epoch {epoch}"

    def _pay(self, study: trust.Study, plan: RoundPlan, context: bytes, plan_digest: bytes) -> None:
        """Charge the round before anything is made of the records. Raises PrivacyError."""
        terms, data_class = study.plan.terms, study.plan.data_class
        spend = budget_spend(terms, plan.round)
        # Once a start: the floors may have been lowered since the study was first seen.
        if spend is not None and study.plan_digest not in self._authorised:
            check_claim(terms, self._accountant)
            with transaction(self.db):
                self._budget.authorise(
                    study.plan_digest,
                    plan.study,
                    budget_allowances(terms),
                    limit=self._floors.limit(data_class),
                    delta=self._floors.delta,
                    accountant=self._accountant,
                    data_class=data_class,
                    classes=self._source.data_classes,
                )
            self._authorised.add(study.plan_digest)
        with transaction(self.db):
            if spend is not None:
                self._budget.reserve(
                    study.plan_digest,
                    plan_digest,
                    plan.study,
                    plan.round,
                    spend,
                    data_class=data_class,
                )
            state.mark(self.db, "charged", context, plan_digest, plan.round)

    def _train(self, to: _Round, records: Records, clock: Stages) -> Fields:
        terms = at_round(to.study.plan.terms, to.plan.round)
        start = self._workshop.weights(to.plan, to.study.plan.model.dimension)
        # train, clipped, with noise of its own where each device carries the guarantee
        update = learn(
            self._workshop.model(to.study),
            start,
            records,
            terms,
            fresh_generator(),
            to.plan.clip_factor,
        )
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
        signature = to.members.sign(to.keys.secret, to.context, digest)
        clock.done("sign")
        # keep
        sealed = SealedUpdate(to.digest, to.ring, ciphertexts, signature)
        update = encode(sealed) if shares is None else encode(both_halves(sealed, shares))
        pending = state.Pending(
            plan=to.digest,
            round=to.plan.round,
            digest=digest,
            update=update,
            submit_at_ms=_submit_at_ms(to, time.perf_counter() - to.began_s),
            deadline_ms=to.plan.deadline_ms,
            spare_bytes=spare_bytes(to.study.rings, to.ring),
            expiry_s=_expiry_s(to.plan),
            attempts=0,
        )
        state.put_outbox(
            self.db, to.context, pending, {**clock.seconds, "update_bytes": len(update)}
        )


def _submit_at_ms(to: _Round, took_s: float) -> int:
    """Draw when to submit: from the moment that an update is ready to the end of the window.

    Sent as soon as it is ready, where that is later than a time drawn beforehand, it would show
    how long this device reads its records, accounts and trains: `took_s`, all of it.
    """
    # A clock that lags behind the aggregator's must not eat up the time there is.
    ends_ms = min(to.plan.opens_ms, to.now_ms) + to.plan.window_ms
    ready_ms = to.now_ms + int(took_s * 1000)
    return ready_ms + secrets.randbelow(max(0, ends_ms - ready_ms) + 1)


def _expiry_s(plan: RoundPlan) -> int:
    """Return for how many seconds a broker may keep an update (SPEC 3.12).

    From the plan alone: what is left by the device's clock would show how far that is off.
    """
    return min(2**31, 1 + (plan.deadline_ms - plan.opens_ms) // 1000)


def _share_params(study: trust.Study) -> ShareParams:
    return share_params(study.plan.codec, study.plan.vector_size)


def _unfit_count(records: int, plan: RoundPlan) -> str | None:
    """Say why so many records do not fit the plan (SPEC 7.2, 7.4)."""
    if records < plan.training.records:
        return f"{records} records are fewer than the plan asks for"
    sampled = plan.training.sampling_rate
    if plan.privacy.unit == "record" and not fits_a_step(records, sampled):
        return f"{records} records are more than the guarantee is argued for"
    return None
