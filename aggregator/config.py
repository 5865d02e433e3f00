"""The aggregator's configuration, as `aggregator.toml` says it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NoReturn

from vitalring.aggregator import key, key_share
from vitalring.aggregator.release import Party
from vitalring.aggregator.rounds import Schedule
from vitalring.errors import ConfigError
from vitalring.files import read_file
from vitalring.mqtt import BrokerConfig
from vitalring.protocol import trust
from vitalring.protocol.bfv import choose_params
from vitalring.protocol.cbor import digest
from vitalring.protocol.secure_sum import KEYLESS, Decrypt, threshold_params
from vitalring.protocol.signing import public_key
from vitalring.schema import Pattern


@dataclass(frozen=True)
class AggregatorConfig:
    """Everything an aggregator is told; paths are relative to the file's folder."""

    study: Path
    authority_key: Annotated[str, Pattern("[0-9a-f]{64}")]
    signing_key: Path
    state_dir: Path
    broker: BrokerConfig
    sum_secret: Path | None = None
    share_lost: bool = False
    """Take part without a share of the joint key: recompute, commit and sign, never decrypt."""
    held_out: Path | None = None
    """Folder of a data set whose test devices, or test rows, models are evaluated on."""
    schedule: Schedule = field(default_factory=Schedule)


def load_study(config: AggregatorConfig, roster: bytes | None = None) -> trust.StudyFiles:
    """Read and verify the study's public files. Raises ConfigError or RecordError.

    `roster` is the newest one that this hospital knows: it counts at the start, not the file.
    """

    def read(name: str) -> bytes:
        if name == trust.ROSTER_FILE and roster is not None:
            return roster
        return read_file(config.study / name)

    return trust.open_study_files(read, bytes.fromhex(config.authority_key))


def load_decrypt(config: AggregatorConfig, study: trust.Study) -> Decrypt:
    """Return the key holder's part of a sum; nobody's with a joint key. Raises ConfigError."""
    plan = study.plan
    if plan.secure_sum in KEYLESS:
        # What two gateways share is opened with both sums (`two_sums`).
        return lambda total: total
    if study.joint is not None:
        return _refuse_alone
    if config.sum_secret is None:
        raise ConfigError(f"sum_secret is missing: study {plan.study} encrypts its updates")
    params = choose_params(plan.codec, plan.vector_size)
    return key.load(config.sum_secret, params).decrypt


def load_party(config: AggregatorConfig, study: trust.Study, signing_seed: bytes) -> Party:
    """Return what this hospital decrypts with, together with others. Raises ConfigError."""
    plan, joint, key = study.plan, study.joint, public_key(signing_seed)
    if joint is None or (config.sum_secret is None) != config.share_lost:
        raise ConfigError(
            f"sum_secret names this hospital's share of study {plan.study}'s key; say "
            "share_lost = true instead where it is lost"
        )
    keys = [hospital.aggregator_key for hospital in study.federation.hospitals]
    if key not in keys:
        raise ConfigError(
            f"{config.signing_key} is the key of no hospital of federation {plan.federation}"
        )
    params, hospital = threshold_params(plan.codec, plan.vector_size, joint), keys.index(key)
    patience_ms = config.schedule.patience_ms
    if config.sum_secret is None:
        return Party(study, params, hospital, signing_seed, (), patience_ms)
    share = key_share.load_share(config.sum_secret, params)
    if digest(share.public_key) != study.sum_key.key:
        raise ConfigError(
            f"{config.sum_secret} is a share of another key than the study's: take the share of "
            "the ceremony whose fingerprint the hospitals compared"
        )
    if share.hospital != hospital:
        raise ConfigError(
            f"{config.sum_secret} is the share of {study.federation.hospitals[share.hospital].name}"
            f", and {config.signing_key} the key of {study.federation.hospitals[hospital].name}"
        )
    return Party(study, params, hospital, signing_seed, share.pieces, patience_ms)


def _refuse_alone(_: object) -> NoReturn:
    raise ConfigError("no hospital decrypts alone under a joint key")
