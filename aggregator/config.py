"""The aggregator's configuration, as `aggregator.toml` says it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from vitalring.aggregator import key
from vitalring.aggregator.rounds import Schedule
from vitalring.errors import ConfigError
from vitalring.files import read_file
from vitalring.mqtt import BrokerConfig
from vitalring.protocol import trust
from vitalring.protocol.bfv import choose_params
from vitalring.protocol.secure_sum import Decrypt
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
    held_out: Path | None = None
    """Folder of a data set whose test devices, or test rows, models are evaluated on."""
    schedule: Schedule = field(default_factory=Schedule)


def load_study(config: AggregatorConfig) -> trust.StudyFiles:
    """Read and verify the study's public files. Raises ConfigError or RecordError."""
    return trust.open_study_files(
        lambda name: read_file(config.study / name), bytes.fromhex(config.authority_key)
    )


def load_decrypt(config: AggregatorConfig, study: trust.Study) -> Decrypt:
    """Return the key holder's part of a sum. Raises ConfigError."""
    plan = study.plan
    if plan.secure_sum == "plain":
        return lambda total: total
    if config.sum_secret is None:
        raise ConfigError(f"sum_secret is missing: study {plan.study} encrypts its updates")
    params = choose_params(plan.codec, plan.model.dimension)
    return key.load(config.sum_secret, params).decrypt
