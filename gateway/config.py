"""The gateway's configuration, as `gateway.toml` says it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from nacl.public import PrivateKey

from vitalring.files import read_file, read_secret
from vitalring.gateway.contributions import KeptUpdates
from vitalring.gateway.log import LogKey
from vitalring.mqtt import BrokerConfig
from vitalring.protocol import sealing, trust
from vitalring.protocol.chunks import ChunkLimits
from vitalring.protocol.signing import public_key
from vitalring.schema import Pattern


@dataclass(frozen=True)
class GatewayConfig:
    """Everything a gateway is told; paths are relative to the file's folder."""

    study: Path
    authority_key: Annotated[str, Pattern("[0-9a-f]{64}")]
    log_key: Path
    sealing_key: Path
    state_dir: Path
    broker: BrokerConfig
    enrolled: Path | None = None
    """Names of devices with their keys, of those that were not enrolled by their own answer."""
    chunks: ChunkLimits = field(default_factory=ChunkLimits)
    kept_updates: KeptUpdates = field(default_factory=KeptUpdates)
    """Of rounds whose sum several hospitals recompute."""


@dataclass(frozen=True)
class GatewayKeys:
    """What a gateway signs its log with and opens sealed boxes with. No decryption key."""

    log: LogKey
    sealing: PrivateKey

    def __repr__(self) -> str:
        return "GatewayKeys(...)"


def load_study(config: GatewayConfig, roster: bytes | None = None) -> trust.StudyFiles:
    """Read and verify the study's public files. Raises ConfigError or RecordError.

    `roster` is the newest roster of the log, where there is one: it counts, not the file.
    """

    def read(name: str) -> bytes:
        if name == trust.ROSTER_FILE and roster is not None:
            return roster
        return read_file(config.study / name)

    return trust.open_study_files(read, bytes.fromhex(config.authority_key))


def load_keys(config: GatewayConfig, study: trust.Study) -> GatewayKeys:
    """Read the gateway's two keys. Raises ConfigError, or RecordError for a stranger's."""
    seed = read_secret(config.log_key, 32)
    hospital = trust.log_of(study.federation, public_key(seed))
    return GatewayKeys(
        LogKey(trust.log_origin(study.federation, hospital), seed),
        sealing.load_secret(read_secret(config.sealing_key, 32)),
    )
