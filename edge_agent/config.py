"""The agent's configuration, as `agent.toml` says it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from vitalring.mqtt import BrokerConfig
from vitalring.schema import OneOf, Pattern, Range

DEVICE_ID = "[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}"
"""What a device may be called in its data set. The name never leaves the device."""


@dataclass(frozen=True)
class Floors:
    """What the device itself insists on; a plan below is refused (SPEC 7.9, 9.11)."""

    ring: Annotated[int, Range(2, 1024)] = 16
    cohort: Annotated[int, Range(2, 10_000)] = 10
    epsilon: Annotated[float, Range(0.0, 100.0)] = 8.0
    """Most that all studies together may spend of a record's privacy."""
    delta: Annotated[float, Range(1e-12, 0.01)] = 1e-5
    allow_no_privacy: bool = False
    allow_plain_sum: bool = False
    """Take part where the gateway reads every update: for simulations alone."""


@dataclass(frozen=True)
class AgentConfig:
    """Everything an agent is told; paths are relative to the file's folder."""

    federation: Path
    authority_key: Annotated[str, Pattern("[0-9a-f]{64}")]
    cohort: Annotated[str, Pattern("[a-z0-9-]{1,32}")]
    ring_key: Path
    data: Path
    device: Annotated[str, Pattern(DEVICE_ID)]
    state_dir: Path
    broker: BrokerConfig
    cache_dir: Path | None = None
    floors: Floors = field(default_factory=Floors)
    accountant: Annotated[str, OneOf(("child", "in-process"))] = "child"
    participation: Annotated[float, Range(0.0, 1.0)] = 1.0
    """Chance that this device takes part in a round."""
    retry_s: Annotated[float, Range(0.1, 86_400.0)] = 300.0
    keep_model: bool = True
    """Keep the newest verified model to predict with."""
    personalise: Annotated[str, OneOf(("none", "head"))] = "none"
    """Fit the last layer of that model to this device's own records; it stays here."""
