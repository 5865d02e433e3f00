"""The agent's configuration, as `agent.toml` says it."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

from vitalring.edge_agent.results import ResultsConfig
from vitalring.edge_agent.sensing.config import (
    BufferConfig,
    LabelsConfig,
    SensingConfig,
    SensorConfig,
)
from vitalring.errors import ConfigError
from vitalring.mqtt import BrokerConfig
from vitalring.protocol.privacy import MIN_DELTA
from vitalring.protocol.records import DataClass, Name
from vitalring.schema import OneOf, Pattern, Range

DEVICE_ID = "[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}"
"""What a device may be called in its data set. The name never leaves the device."""


MAX_EPSILON: Final = 100.0
"""Largest limit that a device can have."""

RETRY_S: Final = Range(0.1, 86_400.0)
"""How soon a device without a receipt may submit again."""


@dataclass(frozen=True)
class Floors:
    """What the device itself insists on; a plan below is refused (SPEC 7.9, 9.11)."""

    ring: Annotated[int, Range(2, 10_000)] = 16
    cohort: Annotated[int, Range(2, 10_000)] = 10
    epsilon: Annotated[float, Range(0.0, MAX_EPSILON)] = 8.0
    """Most that all studies of a class of data together may spend of a record's privacy."""
    delta: Annotated[float, Range(MIN_DELTA, 0.01)] = 1e-5
    allow_no_privacy: bool = False
    allow_shared_noise: bool = False
    """Take part where the guarantee takes other devices' noise too, and single updates unread."""
    allow_plain_sum: bool = False
    """Take part where the gateway reads every update: for simulations alone."""
    classes: Mapping[Name, Annotated[float, Range(0.0, MAX_EPSILON)]] = field(default_factory=dict)
    """Limits of classes that have one of their own in place of `epsilon` (SPEC 7.19)."""

    def limit(self, data_class: str) -> float:
        """Return the most that studies of a class may spend together."""
        return self.classes.get(data_class, self.epsilon)

    def allows_no_privacy(self, data_class: str) -> bool:
        """Tell whether studies of a class may do without a guarantee; not where it has a limit."""
        return self.allow_no_privacy and data_class not in self.classes

    def check_classes(self, have: Collection[str]) -> None:
        """Refuse a limit of a class that a device with `have` lacks. Raises ConfigError."""
        if unknown := sorted(set(self.classes) - set(have)):
            known = ", ".join(sorted(have)) if any(have) else "of no class"
            raise ConfigError(
                f"[floors.classes] limits {', '.join(unknown)}, and this device's records are "
                f"{known}: such a limit would bind nothing; correct the name"
            )


@dataclass(frozen=True)
class DataStream:
    """A data set of one class on this device, and the device's name in it."""

    data: Path
    device: Annotated[str, Pattern(DEVICE_ID)]


@dataclass(frozen=True)
class AgentConfig:
    """Everything an agent is told; paths are relative to the file's folder.

    Its records come from a data set, `data` and `device`, from a `sensor`, or from several data
    sets, `streams`, each of a class of its own.
    """

    federation: Path
    authority_key: Annotated[str, Pattern("[0-9a-f]{64}")]
    cohort: Annotated[str, Pattern("[a-z0-9-]{1,32}")]
    ring_keys: Path
    """Folder of the device's ring keys, one for each epoch (SPEC 6.4)."""
    state_dir: Path
    broker: BrokerConfig
    data: Path | None = None
    device: Annotated[str, Pattern(DEVICE_ID)] | None = None
    data_class: DataClass = ""
    """What kind of data the records are; a study of another kind is refused (SPEC 7.19)."""
    streams: Mapping[Name, DataStream] = field(default_factory=dict)
    """Data sets by their class, of which a study chooses by its own."""
    cache_dir: Path | None = None
    ticket: Path | None = None
    """Secret of 32 bytes that vouches for the device where it has no key yet (SPEC 13.1)."""
    floors: Floors = field(default_factory=Floors)
    accountant: Annotated[str, OneOf(("child", "in-process"))] = "child"
    participation: Annotated[float, Range(0.0, 1.0)] = 1.0
    """Chance that this device takes part in a round."""
    retry_s: Annotated[float, RETRY_S] = 300.0
    keep_model: bool = True
    """Keep the newest verified model to predict with."""
    personalise: Annotated[str, OneOf(("none", "head"))] = "none"
    """Fit the last layer of that model to this device's own records; it stays here."""
    sensor: SensorConfig | None = None
    labels: LabelsConfig | None = None
    buffer: BufferConfig = field(default_factory=BufferConfig)
    results: ResultsConfig | None = None
    """Where predictions of the sensor's windows go."""

    def __post_init__(self) -> None:
        """Refuse a device with no records, or of two kinds. Raises ConfigError."""
        # 1. One place that records come from.
        if (self.data is None) != (self.device is None):
            missing = "device" if self.device is None else "data"
            raise ConfigError(f"{missing} is missing: data and device go together")
        given = [self.data is not None, self.sensor is not None, bool(self.streams)]
        if sum(given) != 1:
            raise ConfigError(
                "records come from a data set (data and device), from a live sensor (the table "
                "[sensor]) or from several data sets (the tables [streams.CLASS]); "
                f"{'none' if not any(given) else 'more than one'} of the three is given"
            )
        self._check_streams()
        # 2. What only a sensor has.
        if self.sensor is None:
            for name in ("labels", "results"):
                if getattr(self, name) is not None:
                    raise ConfigError(f"[{name}] goes with a live sensor, and there is no [sensor]")
            if self.buffer != BufferConfig():
                raise ConfigError("[buffer] goes with a live sensor, and there is no [sensor]")
        # 3. Who predicts needs a model.
        if self.results is not None and not self.keep_model:
            raise ConfigError("[results] needs keep_model = true: without it there is no model")
        # 4. Sensor, labels and buffer fit together.
        _ = self.sensing

    def _check_streams(self) -> None:
        if not self.streams:
            return
        if self.data_class:
            raise ConfigError("data_class goes with data or [sensor]: a stream's name is its class")
        if self.keep_model or self.personalise != "none":
            raise ConfigError(
                '[streams] needs keep_model = false and personalise = "none": a device predicts '
                "with one model, of one class of data"
            )
        # One folder has many paths.
        places = {(os.path.realpath(each.data), each.device) for each in self.streams.values()}
        if len(places) < len(self.streams):
            raise ConfigError(
                f"two of the streams {', '.join(sorted(self.streams))} have the same data and "
                "device: a record belongs to one class"
            )
        self.floors.check_classes(self.streams)

    @property
    def data_classes(self) -> tuple[str, ...]:
        """What this file says of the kinds of its records; a data set may say it too."""
        return tuple(self.streams) or (self.data_class,)

    @property
    def sensing(self) -> SensingConfig | None:
        """The live sensor with its labels and buffer, or None. Raises ConfigError."""
        if self.sensor is None:
            return None
        return SensingConfig(self.sensor, self.labels, self.buffer)

    @property
    def data_set(self) -> tuple[Path, str]:
        """Folder and device of the data set. Raises ConfigError where there is a sensor instead."""
        if self.data is None or self.device is None:
            raise ConfigError(
                "this device has several data sets, its streams"
                if self.streams
                else "this device has a live sensor and no data set"
            )
        return self.data, self.device
