"""Make a federation and its study: keys, roster, signed plan and configuration files.

`init` writes one folder. What lies in `public/` everybody may read; what lies
in `authority/` belongs offline; `hospitals/NAME/` goes to that hospital's
server and `devices/ID/` to that device.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitalring.aggregator import key as sum_key_file
from vitalring.aggregator import key_share
from vitalring.aggregator.ceremony import joint_key_here
from vitalring.aggregator.traffic import round_traffic
from vitalring.edge_agent.keyring import Keyring
from vitalring.files import write_atomic, write_secret
from vitalring.models.artefact import Artefact
from vitalring.models.dataset.statistics import Question
from vitalring.protocol import signing, trust
from vitalring.protocol.bfv import choose_params
from vitalring.protocol.cbor import digest
from vitalring.protocol.guarantee import noise_of
from vitalring.protocol.key_records import context_of
from vitalring.protocol.privacy import follows_quantile
from vitalring.protocol.records import (
    Federation,
    Roster,
    StudyPlan,
    SumKey,
)
from vitalring.protocol.secure_sum import KEYLESS, threshold_params
from vitalring.tools.calibration import too_small, unsteady_clip
from vitalring.tools.enrolments import EnrolledKey, write_keys
from vitalring.tools.hospital_keys import new_hospital
from vitalring.tools.plan_text import clip_line, schedule_in_words
from vitalring.tools.settings import StudySettings, hospitals_of, rings_of

SUM_KEY_FILE = "sum.secret"
"""File of a hospital's key, or of its share of a joint key."""
KEYS_FOLDER = "keys"
"""Folder of a device's ring keys, in the device's own folder."""
NAMES_FILE = "enrolled.txt"
"""File of the host: which device has which key. It never leaves that hospital."""
FIRST_EPOCH = 1


@dataclass(frozen=True)
class DeviceKey:
    """A ring key that was drawn here for a device, with the device's name."""

    name: str
    public: bytes


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

    def folder_of(self, hospital: str) -> Path:
        """Folder of one hospital's secrets."""
        return self.folder / "hospitals" / hospital

    def device_folder(self, name: str) -> Path:
        """Folder of what one device needs, its secrets included."""
        return self.folder / "devices" / name

    def keyring(self, device: str) -> Keyring:
        """Ring keys of one device, as long as they are here."""
        return Keyring(self.device_folder(device) / KEYS_FOLDER)


@dataclass(frozen=True)
class Cohort:
    """What devices are given to know their study by; all of it is there before a roster is."""

    layout: Layout
    authority_key: bytes
    federation: bytes
    """The signed record."""
    name: str
    plan: StudyPlan


@dataclass(frozen=True)
class Made:
    """What `init` made, for whoever writes the roles' configuration files."""

    layout: Layout
    authority_key: bytes
    study: trust.StudyFiles

    @property
    def hospitals(self) -> tuple[str, ...]:
        """Names of the hospitals; the first is the host, which runs gateway and broker."""
        return tuple(hospital.name for hospital in self.study.study.federation.hospitals)

    @property
    def gateways(self) -> tuple[str, ...]:
        """Names of the hospitals that run a gateway: two where each holds a share."""
        return self.hospitals if self.study.study.shared else self.hospitals[:1]

    @property
    def aggregators(self) -> tuple[str, ...]:
        """Names of the hospitals that run an aggregator: one where two gateways hold shares."""
        return self.hospitals[:1] if self.study.study.shared else self.hospitals

    @property
    def cohort(self) -> Cohort:
        """What devices are given."""
        records, study = self.study.records, self.study.study
        return Cohort(
            self.layout,
            self.authority_key,
            records["federation"],
            study.roster.cohort,
            study.plan,
        )

    @property
    def host(self) -> Path:
        """Folder of the host's secrets."""
        return self.layout.folder_of(self.hospitals[0])


def hospital_names(count: int) -> tuple[str, ...]:
    """Return the names of hospitals that have no other."""
    return tuple(f"hospital-{number}" for number in range(1, count + 1))


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
    """Write a new federation into `folder`; `objects` are the study's files.

    Raises ConfigError where files are in the way.
    """
    layout = Layout(folder)
    authority = secrets.token_bytes(32)
    hospitals = [new_hospital(name) for name in hospital_names(hospitals_of(settings)[0])]
    identities = [hospital.identity for hospital in hospitals]
    federation = Federation(
        name=settings.federation,
        authority_key=signing.public_key(authority),
        hospitals=tuple(hospital.card for hospital in hospitals),
        log_origin=f"vitalring/{settings.federation}/{hospitals[0].name}",
    )
    roster = Roster(
        federation=settings.federation,
        cohort=settings.cohort,
        epoch=FIRST_EPOCH,
        ring_size=rings_of(settings, len(devices))[1],
        keys=tuple(sorted(device.public for device in devices)),
    )
    signed, signed_plan = signing.sign(federation, [authority]), signing.sign(plan, [authority])
    public = {"federation.cbor": signed, "study.cbor": signed_plan, **objects}
    sum_public = _make_sum_key(layout, federation, plan, (digest(signed), digest(signed_plan)))
    sum_key = SumKey(settings.federation, plan.study, plan.secure_sum, digest(sum_public))
    public["roster.cbor"] = signing.sign(roster, identities)
    public["sum-key.cbor"] = signing.sign(sum_key, identities)
    if sum_public:
        public[trust.KEY_FILE] = sum_public
    # What we wrote is opened as every party opens it, before anybody relies on it.
    study = trust.open_study_files(public.__getitem__, federation.authority_key)
    write_secret(layout.authority_seed, authority)
    for hospital in hospitals:
        hospital.write(layout.folder_of(hospital.name))
    write_names(layout, hospitals[0].name, devices)
    for name, content in public.items():
        write_atomic(layout.public / name, content)
    return Made(layout, federation.authority_key, study)


def _make_sum_key(
    layout: Layout, federation: Federation, plan: StudyPlan, names: tuple[bytes, bytes]
) -> bytes:
    """Make the key of the sum, write each hospital's part of it, return the public key.

    `names` are the digests of the signed federation and plan. No bytes where the sum is in
    clear. A joint key that is made on one machine keeps nothing from that machine's owner.
    """
    if plan.secure_sum in KEYLESS:
        return b""
    folders = [layout.folder_of(hospital.name) for hospital in federation.hospitals]
    joint = trust.joint_of(plan, len(folders))
    if joint is None:
        secret = sum_key_file.generate(choose_params(plan.codec, plan.vector_size))
        secret.save(folders[0] / SUM_KEY_FILE)
        return secret.public_key()
    params = threshold_params(plan.codec, plan.vector_size, joint)
    context = context_of(*names, params, 1)
    public, shares = joint_key_here(params, context)
    for index, (folder, pieces) in enumerate(zip(folders, shares, strict=True)):
        key_share.save(
            folder / SUM_KEY_FILE, params, pieces, public, hospital=index, context=context
        )
    return public


def enrol(folder: Path, names: Sequence[str]) -> list[DeviceKey]:
    """Draw each device's ring key of the first epoch into its part of `folder`."""
    layout = Layout(folder)
    return [DeviceKey(name, layout.keyring(name).draw(FIRST_EPOCH).public) for name in names]


def write_names(layout: Layout, host: str, devices: Sequence[DeviceKey]) -> None:
    """Write which device has which key, for the enrolment office and revocation (SPEC 13.1)."""
    keys = tuple(EnrolledKey(each.name, FIRST_EPOCH, each.public) for each in devices)
    write_keys(layout.folder_of(host) / NAMES_FILE, keys)


def training_line(plan: StudyPlan) -> str:
    """Return the numbers that a plan trains with, in the words of the settings."""
    training, server = plan.training, plan.server
    momentum = "" if server.name == "fedavg" else f" and momentum {server.momentum:g}"
    clip = f"; {clip_line(plan)}" if follows_quantile(plan.privacy) else ""
    return (
        f"{training.steps} steps a round, batch {training.batch}, lr {training.learning_rate:g}, "
        f"clip {plan.privacy.clip:g}, update_clip {plan.codec.clip:g}, "
        f"server {server.name} with learning_rate {server.learning_rate:g}{momentum}{clip}"
    )


def joint_lines(study: trust.Study) -> list[str]:
    """Return what a joint key consists of, and what a round of all devices costs a hospital."""
    if study.joint is None:
        return []
    plan = study.plan
    params = threshold_params(plan.codec, plan.vector_size, study.joint)
    updates = min(len(study.roster.keys), plan.codec.n_max)
    return [str(params), str(round_traffic(study, updates))]


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
    if plan.data_class:
        lines.append(f"data        {plan.data_class}: devices with records of another class refuse")
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
        if plan.privacy.schedule:
            lines[-1] += f", its noise times {schedule_in_words(plan.terms)}"
        if plan.privacy.noise == "distributed":
            lines[-1] += f", carried by {noise_of(plan.terms).shares} of {plan.min_cohort} devices"
        size = len(roster.keys)
        notes = (too_small(plan.terms, size), unsteady_clip(plan.terms, size))
        lines += [f"warning     {note}" for note in notes if note]
    scheme = made.study.study.scheme()
    lines.append(
        f"sum         {plan.secure_sum}, {scheme.update_bytes:,} bytes an update, "
        f"{scheme.update_bytes / plan.model.dimension:.2f} a parameter"
    )
    for title, line in zip(("key", "traffic"), joint_lines(made.study.study), strict=False):
        lines.append(f"{title:11} {line}")
    return lines
