"""Found a federation of hospitals on different machines, by files that they send one another.

Each hospital draws its own keys and sends a card with their public halves; the authority
signs who the hospitals are and what the study does; the host enrols devices and every
hospital signs the roster. The folders are those of `federation init`. What nobody but its
owner may see never leaves the machine that drew it.
"""

import secrets
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from vitalring.aggregator.ceremony import SUM_KEY
from vitalring.aggregator.ceremony_maker import SHARE
from vitalring.errors import ConfigError
from vitalring.files import read_file, read_secret, write_atomic, write_secret
from vitalring.gateway import enrolment
from vitalring.gateway.store import read_store
from vitalring.protocol import signing, trust
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.protocol.key_records import HospitalCard
from vitalring.protocol.records import Federation, Hospital, Roster, StudyPlan, SumKey
from vitalring.protocol.secure_sum import KEYLESS
from vitalring.schema import from_plain, to_plain
from vitalring.tools import signed_rosters
from vitalring.tools.federation import FIRST_EPOCH, SUM_KEY_FILE, DeviceKey, Layout, write_names
from vitalring.tools.federation import enrol as draw_devices
from vitalring.tools.hospital_keys import new_hospital
from vitalring.tools.key_ceremony import open_folder
from vitalring.tools.roster_checks import check_roster, check_sizes
from vitalring.tools.settings import StudySettings, rings_of
from vitalring.tools.verify import fingerprint

OFFICE = "gateway"
"""State folder of the host's gateway, and of its office before that."""
FEDERATION, STUDY, ROSTER = "federation.cbor", "study.cbor", "roster.cbor"
_SEED_BYTES = 32

S = TypeVar("S", Roster, SumKey)


def make_hospital(folder: Path, name: str) -> Path:
    """Draw a hospital's keys into `folder` and return the file of its card.

    Raises ConfigError for a name that none can have, and where keys are in the way.
    """
    keys = new_hospital(name)
    # A name that the records would refuse is refused before anything is written.
    from_plain(Hospital, to_plain(keys.card), ConfigError)
    keys.write(Layout(folder).folder_of(name))
    path = folder / f"{name}.card"
    write_atomic(path, signing.sign(HospitalCard(keys.card), [keys.identity]))
    return path


def read_card(path: Path) -> Hospital:
    """Read a card. Raises RecordError or SignatureError unless its own identity signed it."""
    data = read_file(path)
    claimed = decode(HospitalCard, decode(signing.Signed, data).payload).hospital.identity_key
    return signing.verify(HospitalCard, data, {claimed}, 1).hospital


def card_fingerprint(hospital: Hospital) -> str:
    """Return what is read over a telephone: 80 bits of the hash of all keys of a card."""
    return fingerprint(encode(HospitalCard(hospital)))


def found(
    folder: Path,
    settings: StudySettings,
    plan: StudyPlan,
    objects: Mapping[str, bytes],
    hospitals: Sequence[Hospital],
) -> Federation:
    """Sign, as the authority, who the hospitals are and what the study does.

    The authority's seed is drawn where there is none; a study that is added later takes the
    federation's record as it is. Raises ConfigError.
    """
    layout = Layout(folder)
    if not layout.authority_seed.exists():
        write_secret(layout.authority_seed, secrets.token_bytes(_SEED_BYTES))
    authority = read_secret(layout.authority_seed, _SEED_BYTES)
    federation = Federation(
        name=settings.federation,
        authority_key=signing.public_key(authority),
        hospitals=tuple(hospitals),
        log_origin=f"vitalring/{settings.federation}/{hospitals[0].name}",
    )
    signed = {
        FEDERATION: signing.sign(federation, [authority]),
        STUDY: signing.sign(plan, [authority]),
    }
    # Opened as every hospital will open it, before anybody relies on it.
    opened = trust.open_federation(signed[FEDERATION], federation.authority_key)
    trust.open_study_plan(signed[STUDY], opened)
    for name, content in {**signed, **objects}.items():
        path = layout.public / name
        if path.exists() and path.read_bytes() != content:
            raise ConfigError(f"{path} is there already and differs: take a new folder")
    for name, content in {**signed, **objects}.items():
        write_atomic(layout.public / name, content)
    return federation


def is_founded(folder: Path) -> bool:
    """Tell whether a federation's folder has a roster."""
    return (Layout(folder).public / ROSTER).exists()


def host_of(folder: Path, authority_key: bytes) -> tuple[Federation, Path]:
    """Return the federation, and the folder of its host's secrets. Raises ConfigError."""
    federation, name, _ = _us(folder, authority_key)
    if federation.hospitals[0].name != name:
        raise ConfigError(
            f"{federation.hospitals[0].name} is the host of {federation.name} and enrols devices, "
            f"not {name}"
        )
    return federation, Layout(folder).folder_of(name)


def enrol(
    folder: Path,
    settings: StudySettings,
    authority_key: bytes,
    names: Sequence[str] | None,
    *,
    instead: bool = False,
) -> tuple[Path, int]:
    """As the host, write the roster with this hospital's signature; return it and its devices.

    Keys are drawn for the devices of these names, or are those that devices drew and enrolled
    at the office. In a mode without a key the record that says so is written and signed too.
    Raises ConfigError where this is not the host, devices are enrolled already, the study could
    not use such a roster, or this hospital has signed another first one (`signed_rosters`, which
    says what `instead` means).
    """
    federation, home = host_of(folder, authority_key)
    _, name, seed = _us(folder, authority_key)
    path = Layout(folder).public / ROSTER
    if path.exists():
        raise ConfigError(f"{path} exists already: devices are enrolled")
    if settings.federation != federation.name:
        raise ConfigError(
            f"the settings are of federation {settings.federation}, not {federation.name}: give "
            "the study.toml that the authority signed the study from"
        )
    plan = _plan(folder, federation)
    enrolled = _enrolled(home) if names is None else ()
    count = len(enrolled if names is None else names)
    # 1. So many devices can have a roster: nothing is drawn or written for others.
    ring_size = rings_of(settings, count)[1]
    check_sizes(plan, settings.cohort, count, ring_size)
    # 2. Drawn again for the same names, keys are the same.
    devices = enrolled if names is None else draw_devices(folder, names)
    roster = Roster(
        federation=settings.federation,
        cohort=settings.cohort,
        epoch=FIRST_EPOCH,
        ring_size=ring_size,
        keys=tuple(sorted(device.public for device in devices)),
    )
    check_roster(plan, roster)
    # 3. It is the only first roster that this hospital signs.
    signed_rosters.note(home, roster, instead=instead)
    if names is not None:
        write_names(Layout(folder), name, devices)
    if plan.secure_sum in KEYLESS:
        none = SumKey(federation.name, plan.study, plan.secure_sum, digest(b""))
        write_atomic(Layout(folder).public / SUM_KEY, signing.sign(none, [seed]))
    write_atomic(path, signing.sign(roster, [seed]))
    return path, count


def _enrolled(home: Path) -> list[DeviceKey]:
    """Return the keys that devices drew and enrolled at the office before there was a roster."""
    with closing(read_store(home / OFFICE)) as db:
        keys = enrolment.enrolled(db)
    return [DeviceKey(each.name, each.key) for each in keys if each.epoch == FIRST_EPOCH]


def sign_roster(
    folder: Path, authority_key: bytes, *, instead: bool = False
) -> tuple[Roster, tuple[str, ...]]:
    """Add this hospital's signature to the roster; say what it is and whose are missing.

    In a mode without a key, the record that says so is signed with it. Raises SignatureError
    if somebody signed it who is no hospital, ConfigError where the study could not use it or this
    hospital has signed another one (`signed_rosters`, which says what `instead` means).
    """
    federation, name, seed = _us(folder, authority_key)
    public = Layout(folder).public
    plan = _plan(folder, federation)
    paths = [public / ROSTER]
    if plan.secure_sum in KEYLESS:
        paths.append(public / SUM_KEY)
    found = {path: read_file(path) for path in paths}
    # All of it is checked before any of it is signed.
    roster = _opened(Roster, public / ROSTER, found, federation)
    check_roster(plan, roster)
    if public / SUM_KEY in found:
        none = _opened(SumKey, public / SUM_KEY, found, federation)
        told = (none.study, none.secure_sum, none.key)
        if told != (plan.study, plan.secure_sum, digest(b"")):
            raise ConfigError(f"{public / SUM_KEY} is not that of study {plan.study}")
    signed_rosters.note(Layout(folder).folder_of(name), roster, instead=instead)
    signed = {path: _countersigned(data, seed) for path, data in found.items()}
    for path, record in signed.items():
        write_atomic(path, encode(record))
    signers = {signature.key for signature in signed[public / ROSTER].signatures}
    missing = (h.name for h in federation.hospitals if h.identity_key not in signers)
    return roster, tuple(missing)


def _opened(cls: type[S], path: Path, found: Mapping[Path, bytes], federation: Federation) -> S:
    """Open a record that a hospital signed. Raises SignatureError, RecordError or ConfigError."""
    identities = {hospital.identity_key for hospital in federation.hospitals}
    record = signing.verify(cls, found[path], identities, 1)
    if record.federation != federation.name:
        raise ConfigError(f"{path} is of federation {record.federation}, not {federation.name}")
    return record


def _countersigned(data: bytes, seed: bytes) -> signing.Signed:
    """Add a signature to those of a record that was verified."""
    signed: signing.Signed = decode(signing.Signed, data)
    (ours,) = decode(signing.Signed, signing.sign_payload(signed.payload, [seed])).signatures
    all_ = {signature.key: signature for signature in (*signed.signatures, ours)}
    return signing.Signed(signed.payload, tuple(all_[key] for key in sorted(all_)))


def _plan(folder: Path, federation: Federation) -> StudyPlan:
    return trust.open_study_plan(read_file(Layout(folder).public / STUDY), federation)


def our_hospital(folder: Path, authority_key: bytes) -> str:
    """Return the name of the hospital whose secrets are in this folder. Raises ConfigError."""
    return _us(folder, authority_key)[1]


def take_key(folder: Path, key_folder: Path, authority_key: bytes) -> None:
    """Bring the results of a ceremony to where services look for them.

    Raises ConfigError while the key is not finished, or where another one is there.
    """
    setting = open_folder(key_folder)
    if not setting.ceremony.status().done:
        raise ConfigError(f"the key in {key_folder} is not finished: see `keys status`")
    layout = Layout(folder)
    for name in (trust.KEY_FILE, SUM_KEY):
        content, path = read_file(key_folder / name), layout.public / name
        if path.exists() and path.read_bytes() != content:
            raise ConfigError(f"{path} is of another key: take a new folder for a new key")
        write_atomic(path, content)
    share = layout.folder_of(our_hospital(folder, authority_key)) / SUM_KEY_FILE
    content = (setting.store.private / SHARE).read_bytes()
    if not share.exists():
        write_secret(share, content)
    elif share.read_bytes() != content:
        raise ConfigError(f"{share} is of another key: move it away first")


def _us(folder: Path, authority_key: bytes) -> tuple[Federation, str, bytes]:
    """Return the federation, and which of its hospitals has its secrets here."""
    layout = Layout(folder)
    data = read_file(layout.public / FEDERATION)
    federation = trust.open_federation(data, authority_key)
    found = [h for h in federation.hospitals if layout.folder_of(h.name).is_dir()]
    if len(found) != 1:
        raise ConfigError(
            f"{folder / 'hospitals'} holds the secrets of {len(found)} hospitals of "
            f"{federation.name}, must be of one: make them with `federation hospital`"
        )
    seed = read_secret(layout.folder_of(found[0].name) / "identity.seed", _SEED_BYTES)
    if signing.public_key(seed) != found[0].identity_key:
        raise ConfigError(f"the identity key here is not that of {found[0].name} in {FEDERATION}")
    return federation, found[0].name, seed
