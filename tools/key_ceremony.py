"""The folder in which a hospital takes part in making a study's joint key, and its story.

`public/` holds copies of the federation and the study plan, `exchange/` the messages of all
hospitals, `private/` what nobody else may see; `keys.toml` says who takes part.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from vitalring.aggregator import key_backup, key_share
from vitalring.aggregator.ceremony import NAMES, SUM_KEY, Ceremony, Status
from vitalring.aggregator.ceremony_checks import Agreed, Checks
from vitalring.aggregator.ceremony_maker import SHARE
from vitalring.aggregator.ceremony_store import FolderStore
from vitalring.aggregator.key_messages import read_files
from vitalring.config import load_config
from vitalring.errors import ConfigError
from vitalring.files import read_file, read_secret, write_atomic, write_secret
from vitalring.protocol import trust
from vitalring.protocol.cbor import digest
from vitalring.protocol.key_records import STEPS, KeyReveal, context_of
from vitalring.protocol.records import Federation, StudyPlan
from vitalring.protocol.secure_sum import threshold_params
from vitalring.protocol.signing import public_key
from vitalring.schema import Pattern, Range, from_plain
from vitalring.tools.roles import toml

CONFIG = "keys.toml"
PUBLIC = "public"
RECORDS = ("federation.cbor", "study.cbor")
_SEED_BYTES = 32


@dataclass(frozen=True)
class KeysConfig:
    """Who takes part, and in which attempt."""

    authority_key: Annotated[str, Pattern("[0-9a-f]{64}")]
    identity: Path
    attempt: Annotated[int, Range(1, 1000)] = 1


@dataclass(frozen=True)
class Setting:
    """A hospital's part in one attempt, opened from its folder."""

    folder: Path
    config: KeysConfig
    plan: StudyPlan
    agreed: Agreed
    hospital: int
    store: FolderStore
    ceremony: Ceremony

    @property
    def name(self) -> str:
        """Return this hospital's name."""
        return self.agreed.names[self.hospital]


def start(folder: Path, study: Path, identity: Path, authority_key: str) -> Setting:
    """Begin in a new folder, with the study's public files. Raises ConfigError."""
    if (folder / CONFIG).exists():
        raise ConfigError(f"{folder} has begun already: use `keys next`, or `keys start --again`")
    # Everything is opened before anything is written, so a wrong key leaves no folder behind.
    table = {"authority_key": authority_key, "identity": str(identity.absolute())}
    config = from_plain(KeysConfig, table, ConfigError)
    records = {name: read_file(study / name) for name in RECORDS}
    _setting(folder, config, records)
    for name, data in records.items():
        write_atomic(folder / PUBLIC / name, data)
    (folder / "exchange").mkdir(parents=True, exist_ok=True)
    _write_config(folder, config)
    return open_folder(folder)


def start_again(folder: Path) -> Setting:
    """Begin the next attempt; what was secret in this one is deleted. Raises ConfigError.

    A share stays whose key this hospital has signed: the others may have finished with it.
    """
    setting = open_folder(folder)
    status = setting.ceremony.status()
    if status.done:
        raise ConfigError(
            f"the key of study {setting.plan.study} is made: another one takes another study"
        )
    old = setting.config
    _write_config(folder, KeysConfig(old.authority_key, old.identity, old.attempt + 1))
    if status.step < len(STEPS):
        # Its pieces are of a key that nobody will use.
        shutil.rmtree(setting.store.private, ignore_errors=True)
    return open_folder(folder)


def open_folder(folder: Path) -> Setting:
    """Open a folder that `start` made. Raises ConfigError, RecordError or SignatureError."""
    return _setting(folder, *_read(folder))


def tell(setting: Setting, status: Status) -> Iterator[str]:
    """Yield what a person should know now: what was done, what is next, who is waited for."""
    others = ", ".join(name for name in setting.agreed.names if name != setting.name)
    attempt = setting.store.attempt
    yield f"hospital     {setting.name}, study {setting.plan.study}, attempt {attempt}"
    yield f"steps done   {status.step} of {len(STEPS)}"
    if status.fingerprint:
        yield f"fingerprint  {status.fingerprint}"
    for line in status.unread:
        yield f"not usable   {line}"
    if status.unread:
        yield "             ask whoever sent these files to send them again"
    if status.foreign:
        yield f"left aside   {status.foreign} files of other attempts or studies"
    if status.ended:
        ended = status.ended
        yield f"ENDED        {ended.detail}"
        yield f"fault        {ended.fault}, found by {ended.accuser}; names " + (
            ", ".join(ended.accused) or "nobody"
        )
        complaint = setting.store.path_of(f"complaint.{setting.name}.cbor")
        if complaint.exists():
            yield f"evidence     {complaint}: keep it and send it to {others}"
        yield "next         talk to one another; when the cause is gone, every hospital runs"
        yield f"             vitalring federation keys start {setting.folder} --again"
        return
    if status.step:
        last = setting.store.path_of(f"{NAMES[STEPS[status.step - 1]]}.{setting.name}.cbor")
        yield f"send         {last}"
        yield f"             to {others}, unless they have it; no file in exchange/ is secret"
    if status.done:
        yield "done         the key is made and signed by all hospitals"
        yield f"public       {setting.folder / trust.KEY_FILE}, {setting.folder / SUM_KEY}"
        yield f"secret       {setting.store.private / SHARE}"
        yield "next         back it up: vitalring federation keys backup " + (
            f"{setting.folder} --out FILE"
        )
    elif status.waiting:
        yield f"waiting      for the files {status.awaited} of {', '.join(status.waiting)}"
        yield f"next         put them into {setting.folder / 'exchange'}, then run"
        yield f"             vitalring federation keys next {setting.folder}"
    elif status.compare:
        yield f"next         telephone {others}: read the fingerprint to one another. If it is the"
        yield "             same everywhere, type what you heard:"
        yield f'             vitalring federation keys fingerprint {setting.folder} --heard "..."'
        yield f"             vitalring federation keys next {setting.folder}"
    else:
        yield f"next         vitalring federation keys next {setting.folder}"


def backup(setting: Setting, out: Path, passphrase: str) -> None:
    """Write an encrypted backup of the share to a new file. Raises ConfigError."""
    if not setting.ceremony.status().done:
        raise ConfigError("the key is not finished: see `keys status`")
    share = setting.ceremony.share()
    write_secret(out, key_backup.seal(share, setting.agreed.params, passphrase))


def restore(folder: Path, data: bytes, out: Path, passphrase: str) -> tuple[str, int]:
    """Write the share in a backup to a new file, after checking it against public files.

    It takes `keys.toml`, `public/`, `exchange/` and the key's public files in `folder`, none of
    them secret. Returns the hospital's name and its number of pieces. Raises ConfigError where
    the share does not fit.
    """
    config, records = _read(folder)
    federation, plan, agreed = _agreed(config, records)
    share = key_backup.open_backup(data, agreed.params, passphrase)
    # 1. The key that all hospitals signed.
    public, envelope = read_file(folder / trust.KEY_FILE), read_file(folder / SUM_KEY)
    if trust.open_sum_key(envelope, federation, plan).key != digest(public):
        raise ConfigError(f"{folder / trust.KEY_FILE} is not the key that the hospitals signed")
    # 2. What they revealed when they made it.
    store = FolderStore(folder, config.attempt)
    inbox = read_files(store.files(), agreed.identity_keys, share.context, {})
    missing = inbox.missing(KeyReveal, len(agreed.names))
    if missing:
        raise ConfigError(
            f"the share cannot be checked without the files {NAMES[KeyReveal]} of "
            f"{', '.join(agreed.names[h] for h in missing)}: put them into {store.exchange}"
        )
    checks = Checks(agreed)
    contributions = [checks.revealed(inbox, h) for h in range(len(agreed.names))]
    key_backup.check_share(share, contributions, public, agreed.params)
    key_share.save(
        out, agreed.params, share.pieces, public, hospital=share.hospital, context=share.context
    )
    return agreed.names[share.hospital], len(share.pieces)


def _read(folder: Path) -> tuple[KeysConfig, dict[str, bytes]]:
    if not (folder / CONFIG).exists():
        raise ConfigError(f"{folder} is not the folder of a key: begin with `keys start`")
    config = load_config(KeysConfig, folder / CONFIG)
    return config, {name: read_file(folder / PUBLIC / name) for name in RECORDS}


def _agreed(config: KeysConfig, records: dict[str, bytes]) -> tuple[Federation, StudyPlan, Agreed]:
    authority = bytes.fromhex(config.authority_key)
    federation = trust.open_federation(records["federation.cbor"], authority)
    plan = trust.open_study_plan(records["study.cbor"], federation)
    joint = trust.joint_of(plan, len(federation.hospitals))
    if joint is None:
        raise ConfigError(f"study {plan.study} has secure_sum {plan.secure_sum}: no joint key")
    params = threshold_params(plan.codec, plan.vector_size, joint)
    digests = (digest(records["federation.cbor"]), digest(records["study.cbor"]))
    agreed = Agreed(
        params=params,
        context=context_of(*digests, params, config.attempt),
        federation=plan.federation,
        study=plan.study,
        names=tuple(hospital.name for hospital in federation.hospitals),
        identity_keys=tuple(hospital.identity_key for hospital in federation.hospitals),
    )
    return federation, plan, agreed


def _setting(folder: Path, config: KeysConfig, records: dict[str, bytes]) -> Setting:
    federation, plan, agreed = _agreed(config, records)
    seed = read_secret(config.identity, _SEED_BYTES)
    if public_key(seed) not in agreed.identity_keys:
        raise ConfigError(f"{config.identity} is the identity of no hospital of {federation.name}")
    hospital = agreed.identity_keys.index(public_key(seed))
    store = FolderStore(folder, config.attempt)
    ceremony = Ceremony(agreed, hospital, seed, store)
    return Setting(folder, config, plan, agreed, hospital, store, ceremony)


def _write_config(folder: Path, config: KeysConfig) -> None:
    table = {
        "authority_key": config.authority_key,
        "identity": str(config.identity),
        "attempt": config.attempt,
    }
    write_atomic(folder / CONFIG, toml(table))
