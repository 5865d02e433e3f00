"""A small federation with everything real but the network: keys, plan, roster, devices, rounds.

Made for tests of what happens around a round. Devices send made-up updates; gateway and
aggregator are the project's own, driven by function calls.
"""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import admission_fixture
import numpy as np

from vitalring.aggregator import goals
from vitalring.aggregator import rounds as aggregator_rounds
from vitalring.aggregator import store as aggregator_store
from vitalring.aggregator.key import SecretKey, generate
from vitalring.gateway import log, rounds, store
from vitalring.models.artefact import ArtefactInfo
from vitalring.protocol import lsag, sealing, trust
from vitalring.protocol import rosters as succession
from vitalring.protocol.bfv import choose_params
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.protocol.privacy import Privacy, Training
from vitalring.protocol.quantise import Codec, encode_update, kept_count
from vitalring.protocol.records import (
    Bundle,
    Federation,
    Hospital,
    Model,
    Roster,
    RoundPlan,
    SealedUpdate,
    ServerOptimiser,
    StudyPlan,
    SumKey,
)
from vitalring.protocol.secure_sum import threshold_params
from vitalring.protocol.signing import public_key, sign
from vitalring.protocol.threshold.joint_key import contribute, join
from vitalring.protocol.threshold.pieces import SecretPiece
from vitalring.protocol.update import (
    RoundChecks,
    rotation_seed,
    round_checks,
    round_context,
    update_digest,
)

ORIGIN = "log.example/ward"
NAMES = ("north", "south", "east", "west", "lake")
CLASSES = ("no", "yes")
START_MS = 1_700_000_000_000
NO_PRIVACY = Privacy()
SOME_PRIVACY = Privacy(
    unit="record", noise="local", epsilon=8.0, delta=1e-5, clip=1.0, noise_multiplier=2.0
)
FOLLOWING = {
    "privacy": Privacy(
        unit="device",
        noise="local",
        epsilon=20.0,
        delta=1e-5,
        noise_multiplier=4.0,
        clip_quantile=0.5,
        clip_rate=0.2,
        clip_share=0.1,
    ),
    "codec": Codec(n_max=8, clip=1.0, weight_cap=1, bits=12, noise_width=60_000),
}
"""What makes a small federation's clip follow the median; its vectors have a made-up count."""


def seed(name):
    """Give every party its own key, the same in each run of the tests."""
    return hashlib.sha256(f"test key of {name}".encode()).digest()


def artefact_of(dimension):
    """An artefact with a fitting description; nothing here runs the model."""
    model = b"a model that no test runs"
    info = ArtefactInfo(
        name="tiny",
        classes=CLASSES,
        input_shape=(3,),
        physical_batch=4,
        dimension=dimension,
        blocks=((dimension, 0.5),),
        head=1,
        sha256=hashlib.sha256(model).hexdigest(),
        initial="",
        export="",
    )
    return info, model


def hospital_of(name):
    """The first hospital runs gateway and log; only aggregators of the others are at work."""
    if name == NAMES[0]:
        return Hospital(
            name=name,
            identity_key=public_key(SmallFederation.identity_seed),
            log_key=public_key(SmallFederation.log_key.seed),
            sealing_key=bytes(SmallFederation.sealing_key.public_key),
            aggregator_key=public_key(SmallFederation.aggregator_seed),
        )
    return Hospital(
        name=name,
        identity_key=public_key(seed(f"hospital {name}")),
        log_key=public_key(seed(f"log {name}")),
        sealing_key=bytes(sealing.load_secret(seed(f"sealing {name}")).public_key),
        aggregator_key=public_key(SmallFederation.aggregator_seed_of(name)),
    )


def joint_key(plan, hospitals):
    """Make a joint key as the ceremony does, in one place: all pieces, and the public key."""
    joint, context = trust.joint_of(plan, hospitals), seed("joint key")
    params = threshold_params(plan.codec, plan.vector_size, joint)
    made = [contribute(hospital, context, params) for hospital in range(hospitals)]
    key = join([contribution for _, contribution in made], context, params)
    return tuple(piece for pieces, _ in made for piece in pieces), key


@dataclass(frozen=True)
class SmallFederation:
    """One study, one cohort, one hospital or several, with every party's secrets.

    `pieces` are those of a joint key, and `sum_key` what devices encrypt to.
    """

    files: trust.StudyFiles
    devices: tuple[lsag.KeyPair, ...]
    decryption: SecretKey | None = field(repr=False)
    sum_key: bytes = b""
    pieces: tuple[SecretPiece, ...] = field(default=(), repr=False)

    authority_seed = seed("authority")
    identity_seed = seed("hospital")
    aggregator_seed = seed("aggregator")
    log_key = log.LogKey(ORIGIN, seed("log"))
    sealing_key = sealing.load_secret(seed("sealing"))

    @property
    def study(self):
        return self.files.study

    @property
    def aggregator_seeds(self):
        """One for each hospital, in their order."""
        return [self.aggregator_seed_of(h.name) for h in self.study.federation.hospitals]

    @classmethod
    def aggregator_seed_of(cls, hospital):
        return cls.aggregator_seed if hospital == NAMES[0] else seed(f"aggregator of {hospital}")

    @property
    def identity_seeds(self):
        """One for each hospital, in their order."""
        names = [hospital.name for hospital in self.study.federation.hospitals]
        return [self.identity_seed, *(seed(f"hospital {name}") for name in names[1:])]

    def next_roster(self, devices=None, epoch=None, **changes):
        """A roster signed by all that follows on this one, with the keys of some devices."""
        roster = self.study.roster
        if devices is not None:
            changes["keys"] = tuple(sorted(self.devices[device].public for device in devices))
        wanted = {"serial": roster.serial + 1, "epoch": epoch or roster.epoch, **changes}
        return sign(replace(roster, **wanted), self.identity_seeds)

    def under(self, record, *more):
        """The same federation once a roster was taken up, with keys of `more` devices."""
        study = succession.later_study(self.study, record)
        files = replace(self.files, study=study, records={**self.files.records, "roster": record})
        return replace(self, files=files, devices=(*self.devices, *more))

    @property
    def authority_key(self):
        return public_key(self.authority_seed)

    @property
    def rings(self):
        return self.study.rings

    @property
    def scheme(self):
        return self.study.scheme()

    def start(self):
        """Weights (d,) that round 1 begins from."""
        return self.goal().start

    def goal(self):
        artefact, _ = goals.open_artefact(self.files)
        return goals.training(self.study.plan, artefact, lambda _: None)

    def fields(self, plan_digest, samples=5, rng_seed=0):
        """Fields of a made-up update."""
        plan, rng = self.study.plan, np.random.default_rng(rng_seed)
        update = rng.normal(size=plan.vector_size)
        none = np.zeros(kept_count(plan.codec, plan.vector_size), np.int64)
        return encode_update(
            update, samples, plan.codec, rotation_seed(plan_digest), rng=rng, noise=none
        ).fields

    def encrypt(self, fields):
        return self.study.encryptor(self.sum_key).encrypt(fields)

    def update(self, signed_plan, device, ciphertexts=None, rng_seed=None):
        """One device's signed update to a round."""
        plan, name = trust.open_round_plan(signed_plan, self.study), digest(signed_plan)
        keys = self.devices[device]
        ring = next(i for i, ring in enumerate(self.rings) if keys.public in ring.keys)
        if ciphertexts is None:
            rng_seed = device if rng_seed is None else rng_seed
            ciphertexts = self.encrypt(self.fields(name, rng_seed=rng_seed))
        signature = self.rings[ring].sign(
            keys.secret,
            round_context(plan),
            update_digest(name, ring, ciphertexts),
        )
        return SealedUpdate(name, ring, ciphertexts, signature)

    def box(self, update):
        """Seal an update for the gateway."""
        return sealing.seal(encode(update), bytes(self.sealing_key.public_key))


def small_federation(
    *,
    devices=6,
    ring_size=3,
    dimension=8,
    min_cohort=4,
    n_max=8,
    study_rounds=40,
    secure_sum="plain",
    privacy=NO_PRIVACY,
    min_ring=2,
    described_dimension=None,
    hospitals=1,
    threshold=0,
    groups=1,
    ring_suite=1,
    name="study",
    codec=None,
    training=None,
    data_class="",
):
    """Make a federation with a signed study; its artefact can be made to describe another size."""
    info, artefact = artefact_of(described_dimension or dimension)
    codec = codec or Codec(n_max=n_max, clip=1.0, weight_cap=10)
    identity, authority = SmallFederation.identity_seed, SmallFederation.authority_seed
    pairs = sorted((lsag.keygen() for _ in range(devices)), key=lambda pair: pair.public)
    federation = Federation(
        name="fed",
        authority_key=public_key(authority),
        hospitals=tuple(hospital_of(name) for name in NAMES[:hospitals]),
        log_origin=ORIGIN,
    )
    plan = StudyPlan(
        federation="fed",
        study=name,
        model=Model(
            name="tiny",
            artefact=digest(artefact),
            info=digest(info.to_json()),
            dimension=dimension,
            classes=CLASSES,
            initial_seed=seed("initial weights"),
        ),
        training=training
        or Training(
            sampling_rate=0.05,
            steps=10,
            rounds=study_rounds,
            learning_rate=0.1,
            batch=16,
            records=100,
        ),
        privacy=privacy,
        codec=codec,
        server=ServerOptimiser(name="fedavg", learning_rate=1.0, momentum=0.0),
        secure_sum=secure_sum,
        min_cohort=min_cohort,
        min_ring=min_ring,
        quorum=max(1, threshold),
        threshold=threshold,
        groups=groups,
        combine="median" if groups > 1 else "mean",
        data_class=data_class,
        ring_suite=ring_suite,
    )
    decryption, pieces, key = None, (), b""
    if secure_sum == "single-he":
        decryption = generate(choose_params(codec, plan.vector_size))
        key = decryption.public_key()
    elif secure_sum == "threshold-he":
        pieces, key = joint_key(plan, hospitals)
    identities = [identity, *(seed(f"hospital {name}") for name in NAMES[1:hospitals])]
    roster = Roster("fed", "ward", 1, ring_size, tuple(pair.public for pair in pairs))
    records = {
        "federation.cbor": sign(federation, [authority]),
        "study.cbor": sign(plan, [authority]),
        "roster.cbor": sign(roster, identities),
        "sum-key.cbor": sign(SumKey("fed", name, secure_sum, digest(key)), identities),
        trust.ARTEFACT_FILE: artefact,
        trust.INFO_FILE: info.to_json(),
        trust.KEY_FILE: key,
    }
    files = trust.open_study_files(records.__getitem__, public_key(authority))
    return SmallFederation(files, tuple(pairs), decryption, key, pieces)


class Parties:
    """A gateway and an aggregator of one study on their databases, without a broker."""

    def __init__(self, federation, folder: Path):
        self.federation = federation
        self.now_ms = START_MS
        self.folder = folder
        self.db = store.open_store(folder / "gateway")
        self.aggregator_db = aggregator_store.open_store(folder / "aggregator")
        study = federation.study
        self.aggregator = aggregator_rounds.Aggregator(
            study=study,
            scheme=federation.scheme,
            decrypt=federation.decryption.decrypt if federation.decryption else lambda _: None,
            signing_seed=federation.aggregator_seed,
            goal=federation.goal(),
            schedule=aggregator_rounds.Schedule(window_ms=1_000, timeout_ms=10_000),
        )
        aggregator_rounds.start(self.aggregator_db, self.aggregator)
        self._new_rosters = ()
        self.log_study()

    def close_databases(self):
        self.db.close()
        self.aggregator_db.close()

    def log_study(self):
        files = self.federation.files
        rounds.open_study_log(
            self.db, self.federation.log_key, files.records, list(files.objects.values())
        )

    def propose(self) -> Bundle:
        plan, weights = aggregator_rounds.next_plan(
            self.aggregator_db, self.aggregator, self.now_ms
        )
        signed = sign(plan, self.federation.aggregator_seeds[: self.federation.study.plan.quorum])
        made = aggregator_rounds.keep_plan(self.aggregator_db, plan.round, signed, weights)
        return decode(Bundle, made.proposal)

    def take_up(self, record, *more):
        """Go by another roster from the next round on, with keys of `more` devices."""
        self.federation = self.federation.under(record, *more)
        self.aggregator = replace(self.aggregator, study=self.federation.study)
        self._new_rosters += (record,)

    def begin(self, proposal: Bundle) -> RoundPlan | None:
        new, self._new_rosters = self._new_rosters, ()
        study, key = self.federation.study, self.federation.log_key
        return rounds.begin(self.db, key, study, proposal, self.now_ms, new)

    def open_round(self) -> RoundChecks:
        current = rounds.latest(self.db)
        plan = trust.open_round_plan(current.signed_plan, self.federation.study)
        return round_checks(plan, current.plan, self.federation.scheme, self.federation.rings)

    def check(self, box):
        return admission_fixture.check(
            self.db, self.open_round(), box, self.federation.sealing_key, self.now_ms
        )

    def admit(self, box):
        """Check and fold; True where the box was counted."""
        admitted = self.check(box)
        if admitted is not None:
            keep = self.federation.study.joint is not None
            admission_fixture.fold(self.db, self.open_round(), admitted, 100, keep=keep)
        return admitted is not None

    def close(self, refused=None):
        expected = len(self.federation.study.roster.keys)
        rounds.close(
            self.db,
            self.federation.log_key,
            self.open_round().plan,
            expected,
            refused or {},
            self.now_ms,
        )

    def conclude(self) -> Bundle:
        """Let the aggregator turn the closed round into a model."""
        closed = rounds.latest(self.db)
        total = rounds.sum_bundle(self.db, closed, self.federation.study)
        aggregator_rounds.conclude(self.aggregator_db, self.aggregator, decode(Bundle, total))
        return decode(Bundle, aggregator_store.latest(self.aggregator_db).model)

    def model(self, mean=None) -> Bundle:
        """What a quorum signs of the closed round, given the mean update (d,) if there is one."""
        current = aggregator_store.latest(self.aggregator_db)
        report = rounds.latest(self.db).report
        result = aggregator_rounds.result_of(
            self.aggregator_db, self.aggregator, current, report, mean
        )
        signed = sign(
            result.model, self.federation.aggregator_seeds[: self.federation.study.plan.quorum]
        )
        aggregator_rounds.keep_model(self.aggregator_db, result, signed, 0.0)
        return Bundle(signed, result.objects)

    def finish(self, model: Bundle):
        return rounds.finish(self.db, self.federation.log_key, self.federation.study, model)

    def submit(self, devices):
        signed = rounds.latest(self.db).signed_plan
        for device in devices:
            assert self.admit(self.federation.box(self.federation.update(signed, device)))

    def end_round(self, devices=()):
        """Count updates of these devices, and close the round that is open with a model."""
        self.submit(devices)
        self.now_ms += 20_000
        self.close()
        return self.finish(self.conclude())

    def run_round(self, devices):
        """A whole round with updates of these devices."""
        self.begin(self.propose())
        self.end_round(devices)
