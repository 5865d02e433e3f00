"""What `agent.toml` says of a device's sensors: the tables `[sensor]`, `[labels]`, `[buffer]`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from vitalring.edge_agent.sensing.cutting import Layout
from vitalring.edge_agent.sensing.labels import Press
from vitalring.edge_agent.sensing.rules import Threshold
from vitalring.errors import ConfigError
from vitalring.mqtt import BrokerConfig
from vitalring.schema import OneOf, Range, Size

MAX_CHANNELS = 256
_ROW_BYTES = 200
"""What a window costs on disk beside its samples."""

ClassName = Annotated[str, Size(1, 100)]


@dataclass(frozen=True)
class ReplayConfig:
    """A raw recording, played as if it arrived now: .npz, or csv of `time_ms,ch1,...`.

    `speed` 1 is real time, 0 as fast as possible. `start_ms` is the time of the first sample; by
    default what the recording says, or else the moment of the first start.
    """

    path: Path
    speed: Annotated[float, Range(0.0, 1e6)] = 1.0
    start_ms: Annotated[int, Range(0, 2**53)] | None = None


@dataclass(frozen=True)
class LinesConfig:
    """A serial port, a pipe or a growing file: a line `time_ms,ch1,...` or `ch1,...` a sample.

    `baud` is set on a serial port; without it the port keeps its speed.
    """

    path: Path
    baud: Annotated[int, Range(50, 4_000_000)] | None = None


@dataclass(frozen=True)
class TopicConfig:
    """A topic on a broker of the device's own choice."""

    topic: Annotated[str, Size(1, 200)]
    broker: BrokerConfig

    def __post_init__(self) -> None:
        """Refuse a filter. Raises ConfigError."""
        if set(self.topic) & set("+#\0"):
            raise ConfigError(f"topic {self.topic!r} holds + or #: name one topic")


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """A stream of samples, `channels` numbers `sampling_hz` times a second, from one source.

    A step longer than `gap_ms` between samples is a gap; by default one and a half times the
    nominal step, and 1 ms for stamps of whole milliseconds.
    """

    sampling_hz: Annotated[float, Range(0.001, 100_000.0)]
    channels: Annotated[int, Range(1, MAX_CHANNELS)]
    gap_ms: Annotated[float, Range(0.01, 1e9)] | None = None
    replay: ReplayConfig | None = None
    lines: LinesConfig | None = None
    mqtt: TopicConfig | None = None

    def __post_init__(self) -> None:
        """Refuse a stream with no source or several. Raises ConfigError."""
        given = [each for each in (self.replay, self.lines, self.mqtt) if each is not None]
        if len(given) != 1:
            raise ConfigError(
                f"{len(given)} sources of samples: write exactly one of the tables "
                "replay, lines and mqtt"
            )
        if self.gap_us < self.period_us:
            raise ConfigError(
                f"gap_ms is {self.gap_us / 1000:g}, less than the {self.period_us / 1000:g} ms "
                "between samples"
            )

    @property
    def period_us(self) -> float:
        """Microseconds between samples."""
        return 1e6 / self.sampling_hz

    @property
    def gap_us(self) -> int:
        """Longest step between samples that is no gap, in microseconds."""
        if self.gap_ms is not None:
            return int(self.gap_ms * 1000)
        return int(1.5 * self.period_us) + 1000

    @property
    def source(self) -> ReplayConfig | LinesConfig | TopicConfig:
        """Where samples come from."""
        source = self.replay or self.lines or self.mqtt
        if source is None:
            raise ConfigError("a stream without a source")
        return source

    @property
    def source_name(self) -> str:
        """Name the source: a place in one means nothing in another."""
        source = self.source
        if isinstance(source, TopicConfig):
            return f"mqtt {source.broker.url} {source.topic}"
        return f"{'replay' if isinstance(source, ReplayConfig) else 'lines'} {source.path}"


@dataclass(frozen=True, kw_only=True)
class SensorConfig(StreamConfig):
    """The stream that windows are cut from: `window` samples, one every `stride` samples.

    `inputs` are the channels that a window holds, in its order; none given means all. `scale` has
    a factor for each of them, that of the study's data set. `drift` is the share by which a
    window's own rate may differ from `sampling_hz`; a step of `jump_s` or more counts as a clock
    set forward and not as a gap.
    """

    window: Annotated[int, Range(1, 1_000_000)]
    stride: Annotated[int, Range(1, 1_000_000)]
    inputs: tuple[Annotated[int, Range(0, MAX_CHANNELS - 1)], ...] = ()
    scale: tuple[Annotated[float, Range(-1e30, 1e30)], ...] = ()
    drift: Annotated[float, Range(0.0, 0.5)] = 0.05
    jump_s: Annotated[float, Range(1.0, 1e9)] = 3600.0

    def __post_init__(self) -> None:
        """Refuse channels that are not there. Raises ConfigError."""
        super().__post_init__()
        if len(set(self.inputs)) != len(self.inputs):
            raise ConfigError(f"sensor.inputs is {list(self.inputs)}: name a channel once")
        if self.inputs and max(self.inputs) >= self.channels:
            raise ConfigError(
                f"sensor.inputs names channel {max(self.inputs)}, channels are 0 to "
                f"{self.channels - 1}"
            )
        if self.scale and len(self.scale) != self.width:
            raise ConfigError(
                f"sensor.scale has {len(self.scale)} factors for windows of {self.width} channels"
            )
        if 0.0 in self.scale:
            raise ConfigError("sensor.scale holds a 0, which would erase a channel")

    @property
    def width(self) -> int:
        """Channels of a window."""
        return len(self.inputs) or self.channels

    @property
    def window_bytes(self) -> int:
        """Bytes of a window in memory."""
        return 4 * self.window * self.width

    @property
    def layout(self) -> Layout:
        """How windows are cut."""
        return Layout(
            self.sampling_hz,
            self.width,
            self.window,
            self.stride,
            self.gap_us,
            max(self.gap_us, int(self.jump_s * 1e6)),
            self.drift,
        )


@dataclass(frozen=True)
class RuleConfig:
    """`label` holds while `channel` is above or below a threshold, once it was for `for_s`.

    The channel is one of the stream `of`, the sensor's own or `[labels.signal]`, counted from 0,
    in the units of the source.
    """

    label: ClassName
    channel: Annotated[int, Range(0, MAX_CHANNELS - 1)]
    above: float | None = None
    below: float | None = None
    for_s: Annotated[float, Range(0.0, 86_400.0)] = 0.0
    of: Annotated[str, OneOf(("sensor", "signal"))] = "sensor"

    def __post_init__(self) -> None:
        """Refuse a rule without a threshold. Raises ConfigError."""
        if self.above is None and self.below is None:
            raise ConfigError(f"the rule for {self.label!r} has neither above nor below")

    @property
    def threshold(self) -> Threshold:
        """The rule as a condition on a signal."""
        return Threshold(self.channel, self.above, self.below, int(self.for_s * 1e6))


@dataclass(frozen=True)
class LabelsConfig:
    """Where labels come from, and how they are joined to windows.

    `min_overlap` is the share of a window that annotations of a class must cover. A press of the
    button labels `mark_before_s` before it and `mark_s` after. `annotations` is a csv file
    `start,end,label`, `button` a pipe of lines `LABEL`, `mqtt` a topic of messages, `rules` are
    conditions on the sensor or on a second stream, `signal`.
    """

    classes: Annotated[tuple[ClassName, ...], Size(2, 1000)]
    min_overlap: Annotated[float, Range(0.01, 1.0)] = 0.5
    mark_s: Annotated[float, Range(0.001, 86_400.0)] = 10.0
    mark_before_s: Annotated[float, Range(0.0, 86_400.0)] = 0.0
    annotations: Path | None = None
    button: Path | None = None
    mqtt: TopicConfig | None = None
    rules: Annotated[tuple[RuleConfig, ...], Size(0, 16)] = ()
    signal: StreamConfig | None = None

    def __post_init__(self) -> None:
        """Refuse rules about classes or streams that are not there. Raises ConfigError."""
        if len(set(self.classes)) != len(self.classes):
            raise ConfigError(f"labels.classes is {list(self.classes)}: name a class once")
        for rule in self.rules:
            if rule.label not in self.classes:
                raise ConfigError(f"the rule for {rule.label!r}: labels.classes does not name it")
            if rule.of == "signal" and self.signal is None:
                raise ConfigError(f"the rule for {rule.label!r} needs the table labels.signal")
            if rule.of == "signal" and self.signal and rule.channel >= self.signal.channels:
                raise ConfigError(
                    f"the rule for {rule.label!r} names channel {rule.channel}, labels.signal has "
                    f"channels 0 to {self.signal.channels - 1}"
                )

    @property
    def press(self) -> Press:
        """What a press of the button labels."""
        return Press(round(self.mark_before_s * 1000), round(self.mark_s * 1000))


@dataclass(frozen=True)
class BufferConfig:
    """How much a device keeps: `megabytes` (10^6) of windows, none longer than `days`.

    `rows` bounds the records of a round (`records` says why it must be fixed). The newest `rows`
    windows are never dropped for space, so `megabytes` must hold them. Samples are written every
    `commit_s`: more often wears a memory card, more rarely predicts later, and loses more of a
    pipe or a serial port in a power cut.
    """

    megabytes: Annotated[float, Range(0.01, 1e6)] = 200.0
    days: Annotated[float, Range(0.001, 3650.0)] = 30.0
    rows: Annotated[int, Range(1, 10_000_000)] = 10_000
    commit_s: Annotated[float, Range(0.0, 60.0)] = 1.0


@dataclass(frozen=True)
class SensingConfig:
    """A device's sensor, labels and buffer."""

    sensor: SensorConfig
    labels: LabelsConfig | None = None
    buffer: BufferConfig = field(default_factory=BufferConfig)

    def __post_init__(self) -> None:
        """Refuse what does not fit together. Raises ConfigError."""
        for rule in self.labels.rules if self.labels else ():
            if rule.of == "sensor" and rule.channel >= self.sensor.channels:
                raise ConfigError(
                    f"the rule for {rule.label!r} names channel {rule.channel}, the sensor has "
                    f"channels 0 to {self.sensor.channels - 1}"
                )
        if self.capacity < self.buffer.rows:
            raise ConfigError(
                f"buffer.megabytes {self.buffer.megabytes:g} holds {self.capacity} windows, "
                f"buffer.rows asks for {self.buffer.rows}: raise the one or lower the other"
            )

    @property
    def capacity(self) -> int:
        """Windows that the buffer holds."""
        return int(self.buffer.megabytes * 1e6 / (self.sensor.window_bytes + _ROW_BYTES))

    def rules(self, stream: str) -> tuple[RuleConfig, ...]:
        """Return the rules on a stream, `sensor` or `signal`."""
        return tuple(rule for rule in self.labels.rules if rule.of == stream) if self.labels else ()
