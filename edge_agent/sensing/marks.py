"""`vitalring agent mark`: a label from the wearer, written beside the running agent."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from vitalring.edge_agent.sensing.buffer import Buffer
from vitalring.edge_agent.sensing.config import SensingConfig
from vitalring.edge_agent.sensing.labels import Change, key_of, parse_time
from vitalring.errors import ConfigError, RecordError


@dataclass(frozen=True)
class Mark:
    """What a mark says, and how many windows of its time have its label now."""

    label: str
    start_ms: int
    end_ms: int
    windows: int


def mark(
    config: SensingConfig,
    state_dir: Path,
    label: str,
    *,
    at: str | None,
    seconds: float | None,
    now_ms: int,
) -> Mark:
    """Label a time; windows already kept and windows to come have the label at once.

    `at` is ISO 8601 with an offset or milliseconds since 1970, by default `now_ms`. With
    `seconds` the label holds from `at` on for so long, without as `[labels]` says of a press.
    Raises ConfigError where a word of it is wrong, StorageError.
    """
    labels = config.labels
    if labels is None:
        raise ConfigError("agent.toml has no table [labels]: there is nothing to mark")
    try:
        at_ms = now_ms if at is None else parse_time(at)
        said = labels.press.annotation(label, at_ms, seconds, labels.classes)
    except RecordError as error:
        raise ConfigError(str(error)) from error
    with closing(Buffer(state_dir, config)) as buffer:
        buffer.annotate([("mark", Change(key_of(said), said))])
        windows = buffer.labelled(said)
    return Mark(said.label, said.start_ms, said.end_ms, windows)
