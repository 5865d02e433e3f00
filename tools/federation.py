"""Make a federation and its study: keys, roster, signed plan and configuration files.

`init` writes one folder. What lies in `public/` everybody may read; what lies
in `authority/` belongs offline; `hospitals/NAME/` goes to that hospital's
server and `devices/ID/` to that device.
"""

import hashlib
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vitalring.aggregator import key as sum_key_file
from vitalring.edge_agent.accountant import calibrate
from vitalring.errors import ConfigError
from vitalring.files import write_atomic, write_secret
from vitalring.models.artefact import Artefact
from vitalring.models.dataset.statistics import Question
from vitalring.protocol import lsag, sealing, signing, trust
from vitalring.protocol.bfv import choose_params
from vitalring.protocol.cbor import digest
from vitalring.protocol.limbs import LIMB_BITS
from vitalring.protocol.limits import DECRYPTION_FLOOR
from vitalring.protocol.privacy import Privacy, Training, check_privacy
from vitalring.protocol.quantise import Codec, check_codec
from vitalring.protocol.records import (
    Federation,
    Hospital,
    Model,
    Roster,
    ServerOptimiser,
    StudyPlan,
    SumKey,
)
from vitalring.protocol.secure_sum import check_mode
from vitalring.tools.settings import StudySettings, numbers_of

HOSPITAL = "hospital-1"
"""Name of the one hospital of this version's federations."""

MIN_COHORT = 10
"""Fewest updates in a sum where a study does not say; a smaller fleet sums all its updates."""

_NAME_CHARACTERS = 32
_STATISTICS = "-statistics"


@dataclass(frozen=True)
class DeviceKey:
    """A device's ring key with the proof that its owner holds the secret."""

    public: bytes
    possession: bytes


@dataclass(frozen=True)
class Layout:
    """Where things lie in a federation's folder."""

    folder: Path

    @property
    def public(self) -> Path:
        """Folder of what everybody may read."""
        return self.folder / "public"

    @property
    def authority_seed(self) -> Path:
        """File of the authority's signing seed."""
        return self.folder / "authority" / "authority.seed"

    @property
    def hospital_folder(self) -> Path:
        """Folder of the hospital's secrets."""
        return self.folder / "hospitals" / HOSPITAL

    def device_folder(self, name: str) -> Path:
        """Folder of what one device needs, its secret included."""
        return self.folder / "devices" / name


@dataclass(frozen=True)
class Made:
    """What `init` made, for whoever writes the roles' configuration files."""

    layout: Layout
    authority_key: bytes
    study: trust.StudyFiles


def possession_context(settings: StudySettings) -> bytes:
    """Return what a proof of possession is bound to: this federation and cohort."""
    return f"vitalring/enrol/1/{settings.federation}/{settings.cohort}".encode()


def training_of(settings: StudySettings, records: int) -> Training:
    """Return the training a device with `records` records does in a round. Raises ConfigError."""
    if records < 1:
        raise ConfigError("records is 0: say how many records every device has at least")
    numbers = numbers_of(settings, records)
    rate = min(1.0, numbers.batch / records)
    return Training(
        sampling_rate=rate,
        steps=max(1, round(numbers.local_epochs / rate)),
        rounds=settings.rounds,
        learning_rate=numbers.lr,
        batch=max(1, min(numbers.batch, records)),
        records=records,
        proximal=settings.proximal,
        balance=settings.balance,
    )


def privacy_of(settings: StudySettings, training: Training, dimension: int) -> Privacy:
    """Return the guarantee with the noise that it takes. Raises ConfigError."""
    numbers = numbers_of(settings, training.records)
    if settings.unit == "none":
        return Privacy(clip=numbers.clip)
    # Any noise will do here: all else is checked before `calibrate` searches for the right one.
    probe = Privacy(
        settings.unit, numbers.noise, settings.epsilon, settings.delta, numbers.clip, 1.0
    )
    check_privacy(probe, training)
    multiplier = calibrate(
        settings.epsilon,
        settings.delta,
        training.sampling_rate,
        training.steps * training.rounds,
        dimension,
    )
    return replace(probe, noise_multiplier=multiplier)


def plan_of(
    settings: StudySettings,
    artefact: Artefact,
    devices: int,
    records: int,
    features: bytes = b"",
    most_records: int = 0,
) -> StudyPlan:
    """Return the study's plan, checked as every device will check it.

    `features` is the text of the agreed feature schema, where records are rows of tables.
    `records` are those of the smallest device, `most_records` of the largest; 0 is unknown.
    Raises ConfigError.
    """
    info = artefact.info
    training, numbers = training_of(settings, records), numbers_of(settings, records)
    codec = Codec(
        n_max=settings.n_max or devices,
        clip=numbers.update_clip,
        weight_cap=_weight_cap(settings, records, most_records),
        bits=settings.bits,
        reach=settings.reach,
        keep=settings.keep,
    )
    model = Model(
        name=info.name,
        artefact=digest(artefact.model),
        info=artefact.digest,
        dimension=info.dimension,
        classes=info.classes,
        initial_seed=hashlib.sha256(
            b"vitalring/initial-weights/1\x00" + settings.seed.to_bytes(8, "big")
        ).digest(),
        companions=tuple(digest(content) for content in artefact.companions),
        features=digest(features) if features else b"",
    )
    privacy = privacy_of(settings, training, info.dimension)
    return _plan(settings, settings.study, model, training, privacy, codec, numbers.server, devices)


def _weight_cap(settings: StudySettings, records: int, most_records: int) -> int:
    """Return the records above which a device weighs no more (SPEC 4.2).

    A cap far above every device would scale all updates down into the rounding of the quantiser.
    """
    if settings.unit == "record":
        # With a guarantee for records every device weighs alike: its count would be a record's
        # trace (SPEC 7.11). The plan's floor of records makes the capped weight the same for all.
        return records
    return settings.weight_cap or most_records or records


def statistics_plan_of(
    settings: StudySettings, question: Question, classes: Sequence[str], devices: int
) -> StudyPlan:
    """Return the plan of the study that agrees on features (SPEC 4.10). Raises ConfigError."""
    text = question.to_json()
    model = Model(
        name="statistics",
        artefact=digest(b""),
        info=digest(text),
        dimension=sum(question.widths),
        classes=tuple(classes),
        initial_seed=bytes(32),
    )
    training = Training(sampling_rate=1.0, steps=1, rounds=1, learning_rate=1.0, batch=1, records=1)
    codec = Codec(n_max=settings.n_max or devices, clip=1.0, weight_cap=1, bits=LIMB_BITS)
    server = ServerOptimiser(name="fedavg", learning_rate=1.0, momentum=0.0)
    name = f"{settings.study[: _NAME_CHARACTERS - len(_STATISTICS)]}{_STATISTICS}"
    return _plan(settings, name, model, training, Privacy(), codec, server, devices, "statistics")


def _plan(
    settings: StudySettings,
    study: str,
    model: Model,
    training: Training,
    privacy: Privacy,
    codec: Codec,
    server: ServerOptimiser,
    devices: int,
    task: str = "train",
) -> StudyPlan:
    check_mode(settings.secure_sum)
    check_codec(codec)
    min_cohort = settings.min_cohort or max(DECRYPTION_FLOOR, min(MIN_COHORT, devices))
    if devices < min_cohort:
        raise ConfigError(
            f"{devices} devices cannot make a sum of min_cohort = {min_cohort} updates"
        )
    return StudyPlan(
        federation=settings.federation,
        study=study,
        model=model,
        training=training,
        privacy=privacy,
        codec=codec,
        server=server,
        secure_sum=settings.secure_sum,
        min_cohort=min_cohort,
        min_ring=devices // math.ceil(devices / settings.ring_size),
        quorum=1,
        task=task,
    )


def artefact_files(artefact: Artefact, features: bytes = b"") -> dict[str, bytes]:
    """Return the public objects of a study that trains, by file name."""
    files = {trust.ARTEFACT_FILE: artefact.model, trust.INFO_FILE: artefact.info.to_json()}
    files |= {trust.companion_file(digest(each)): each for each in artefact.companions}
    return {**files, trust.FEATURES_FILE: features} if features else files


def question_files(question: Question) -> dict[str, bytes]:
    """Return the public objects of a study of statistics, by file name."""
    return {trust.ARTEFACT_FILE: b"", trust.INFO_FILE: question.to_json()}


def init(
    folder: Path,
    settings: StudySettings,
    plan: StudyPlan,
    objects: Mapping[str, bytes],
    devices: Sequence[DeviceKey],
) -> Made:
    """Write a new federation with one hospital into `folder`; `objects` are the study's files.

    Raises ConfigError where files are in the way or a device does not hold the
    key it brings.
    """
    layout = Layout(folder)
    context = possession_context(settings)
    for device in devices:
        lsag.verify_possession(device.public, context, device.possession)
    authority, identity = secrets.token_bytes(32), secrets.token_bytes(32)
    log_seed, aggregator = secrets.token_bytes(32), secrets.token_bytes(32)
    sealing_secret = sealing.new_secret()
    federation = Federation(
        name=settings.federation,
        authority_key=signing.public_key(authority),
        hospitals=(
            Hospital(
                name=HOSPITAL,
                identity_key=signing.public_key(identity),
                log_key=signing.public_key(log_seed),
                sealing_key=bytes(sealing_secret.public_key),
                aggregator_key=signing.public_key(aggregator),
            ),
        ),
        log_origin=f"vitalring/{settings.federation}/{HOSPITAL}",
    )
    sum_public = b""
    private = layout.hospital_folder
    if plan.secure_sum != "plain":
        secret = sum_key_file.generate(choose_params(plan.codec, plan.model.dimension))
        secret.save(private / "sum.secret")
        sum_public = secret.public_key()
    roster = Roster(
        federation=settings.federation,
        cohort=settings.cohort,
        epoch=1,
        ring_size=settings.ring_size,
        keys=tuple(sorted(device.public for device in devices)),
    )
    sum_key = SumKey(settings.federation, plan.study, plan.secure_sum, digest(sum_public))
    public = {
        "federation.cbor": signing.sign(federation, [authority]),
        "study.cbor": signing.sign(plan, [authority]),
        "roster.cbor": signing.sign(roster, [identity]),
        "sum-key.cbor": signing.sign(sum_key, [identity]),
        **objects,
    }
    if sum_public:
        public[trust.KEY_FILE] = sum_public
    # What we wrote is opened as every party opens it, before anybody relies on it.
    study = trust.open_study_files(public.__getitem__, federation.authority_key)
    write_secret(layout.authority_seed, authority)
    write_secret(private / "identity.seed", identity)
    write_secret(private / "log.seed", log_seed)
    write_secret(private / "aggregator.seed", aggregator)
    write_secret(private / "sealing.key", bytes(sealing_secret))
    for name, content in public.items():
        write_atomic(layout.public / name, content)
    return Made(layout, federation.authority_key, study)


def enrol(folder: Path, settings: StudySettings, names: Sequence[str]) -> list[DeviceKey]:
    """Draw each device's ring key into its part of `folder` and prove that we hold it."""
    context = possession_context(settings)
    keys = []
    for name in names:
        pair = lsag.keygen()
        write_secret(Layout(folder).device_folder(name) / "ring.key", pair.secret)
        keys.append(DeviceKey(pair.public, lsag.prove_possession(pair.secret, context)))
    return keys


def training_line(plan: StudyPlan) -> str:
    """Return the numbers that a plan trains with, in the words of the settings."""
    training, server = plan.training, plan.server
    momentum = "" if server.name == "fedavg" else f" and momentum {server.momentum:g}"
    return (
        f"{training.steps} steps a round, batch {training.batch}, lr {training.learning_rate:g}, "
        f"clip {plan.privacy.clip:g}, update_clip {plan.codec.clip:g}, "
        f"server {server.name} with learning_rate {server.learning_rate:g}{momentum}"
    )


def describe(made: Made) -> list[str]:
    """Return what a person should know of a new federation: sizes, guarantee, fingerprints."""
    plan, roster = made.study.study.plan, made.study.study.roster
    lines = [
        f"federation  {plan.federation}, study {plan.study}, cohort {roster.cohort}",
        f"authority   {made.authority_key.hex()}",
        f"devices     {len(roster.keys)}, sums of {plan.min_cohort} updates or more, "
        f"rings of {plan.min_ring} keys or more",
        f"model       {plan.model.name}, {plan.model.dimension} parameters",
    ]
    if plan.task == "train":
        lines.append(f"training    {training_line(plan)}")
    if plan.privacy.unit == "none":
        lines.append("privacy     none")
    else:
        lines.append(
            f"privacy     unit {plan.privacy.unit}, noise {plan.privacy.noise}, "
            f"epsilon {plan.privacy.epsilon:g} at delta {plan.privacy.delta:g} "
            f"over {plan.training.rounds} rounds"
        )
    scheme = made.study.study.scheme()
    lines.append(
        f"sum         {plan.secure_sum}, {scheme.update_bytes:,} bytes an update, "
        f"{scheme.update_bytes / plan.model.dimension:.2f} a parameter"
    )
    return lines
