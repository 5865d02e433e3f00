"""A device's own stream of results: one JSON text a window, to a file or an MQTT topic.

Results are health data. They go where the device's owner says and nowhere else: a file that only
its owner reads, or a broker of the owner's choice, never a topic of the federation. Both are
bounded: a file is rotated, and a broker that is away is waited for with so many results and no
more; what is then given up is counted.
"""

import errno
import json
import logging
import os
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

from vitalring.edge_agent.inference import Prediction
from vitalring.edge_agent.model_in_use import ModelInUse
from vitalring.errors import ConfigError, StorageError, TransportError
from vitalring.mqtt import BrokerConfig, Link, QueueLimits
from vitalring.protocol import topics
from vitalring.schema import Pattern, Range

_log = logging.getLogger(__name__)
_PUBLISH_TIMEOUT_S = 30.0
_CLOSE_TIMEOUT_S = 5.0
_AGAIN_S = 1.0
_MAX_WAITING = 10_000
_SHORT_DIGEST = 12

TOPIC = "[^+#\x00]{1,200}"
"""A topic of the owner's choice, without wildcards."""


@dataclass(frozen=True)
class ResultsConfig:
    """Where results go, as `[results]` of agent.toml says it: a file, or a broker and a topic.

    A file is renamed to `<file>.1` when it reaches `max_bytes`, and so on, up to `files` in all.
    `status_topic` gets a retained message with the model in use whenever that changes.
    """

    file: Path | None = None
    max_bytes: Annotated[int, Range(4096, 2**40)] = 2**22
    files: Annotated[int, Range(1, 100)] = 4
    broker: BrokerConfig | None = None
    topic: Annotated[str, Pattern(TOPIC)] | None = None
    status_topic: Annotated[str, Pattern(TOPIC)] | None = None

    def __post_init__(self) -> None:
        """Refuse settings that say nothing, or two things. Raises ConfigError."""
        # 1. One place.
        if (self.file is None) == (self.broker is None):
            raise ConfigError(
                "[results] needs either file = ..., or [results.broker] and topic = ..."
            )
        # 2. A topic where there is a broker, and only there.
        if (self.broker is None) != (self.topic is None):
            raise ConfigError("[results.broker] and [results] topic go together")
        if self.broker is None and self.status_topic is not None:
            raise ConfigError("[results] status_topic needs [results.broker]")
        # 3. Never where updates and plans travel: the hospital would read what the wearer gets.
        for name in ("topic", "status_topic"):
            if (getattr(self, name) or "").split("/")[0] == topics.ROOT:
                raise ConfigError(
                    f"[results] {name} is {getattr(self, name)!r}: topics below {topics.ROOT}/ are "
                    "the federation's; choose one of your own"
                )


class Sink(Protocol):
    """Takes results, one text without a line end at a time."""

    def write(self, line: str) -> None:
        """Take a result. Raises StorageError or TransportError where it had to give one up."""

    def model(self, about: ModelInUse) -> None:
        """Learn which model the next results are from."""

    def close(self) -> None:
        """Deliver what can be delivered at once, and end."""


def open_sink(config: ResultsConfig) -> Sink:
    """Return the sink of a configuration. Raises ConfigError or StorageError."""
    if config.file is not None:
        return FileSink(config.file, config.max_bytes, config.files)
    if config.broker is None or config.topic is None:
        raise ConfigError("[results] names no place for results")
    return BrokerSink(config.broker, config.topic, config.status_topic)


def result(place: Mapping[str, int], prediction: Prediction, about: ModelInUse) -> str:
    """Return one window's result as JSON in one line.

    `place` says which window: its `start_ms`, in milliseconds since 1970 UTC, or its number.
    `latency_ms` is the measured time of its prediction, `round` counts the rounds of training
    behind the model, `model` is the beginning of the SHA-256 of its bytes.
    """
    probabilities = zip(about.classes, prediction.probabilities.tolist(), strict=True)
    line = {
        **place,
        "class": about.classes[prediction.label],
        "probabilities": {name: round(value, 4) for name, value in probabilities},
        "study": about.study,
        "round": about.round,
        "model": about.int8[:_SHORT_DIGEST],
        "head": about.head,
        "latency_ms": round(prediction.latency_s * 1000, 3),
    }
    return json.dumps(line, ensure_ascii=False)


def refusal(place: Mapping[str, int], reason: str) -> str:
    """Return the line of a window that was not predicted, so that no window lacks one."""
    return json.dumps({**place, "class": None, "reason": reason}, ensure_ascii=False)


class FileSink:
    """Appends results to a file that only its owner reads; at most `files` of `max_bytes`."""

    def __init__(self, path: Path, max_bytes: int, files: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._files = files
        self._descriptor: int | None = None
        self._size = 0
        self._open()

    def write(self, line: str) -> None:
        """Append a line, in one system call, so that a power cut leaves at most one half line."""
        data = f"{line}\n".encode("utf-8", "replace")
        try:
            if self._size and self._size + len(data) > self._max_bytes:
                self._rotate()
            descriptor = self._descriptor if self._descriptor is not None else self._open()
            self._size += _append(descriptor, data)
        except OSError as error:
            # Opening it again ends what stands there of the line.
            self.close()
            raise StorageError(f"{self._path} cannot be written: {error}") from error

    def model(self, about: ModelInUse) -> None:
        """Take note of nothing: every result names its model."""

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
            descriptor = self._descriptor = os.open(self._path, flags, 0o600)
            self._size = os.fstat(descriptor).st_size
            # What a power cut left of a line must not spoil the next one.
            if self._size and os.pread(descriptor, 1, self._size - 1) != b"\n":
                self._size += _append(descriptor, b"\n")
        except OSError as error:
            raise StorageError(f"{self._path} cannot be written: {error}") from error
        return descriptor

    def _rotate(self) -> None:
        self.close()
        for number in range(self._files - 1, 0, -1):
            older = self._numbered(number - 1) if number > 1 else self._path
            if older.exists():
                older.replace(self._numbered(number))
        self._path.unlink(missing_ok=True)
        self._open()

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def _append(descriptor: int, data: bytes) -> int:
    if os.write(descriptor, data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return len(data)


class BrokerSink:
    """Publishes results on a topic of a broker of the owner's choice, from a thread of its own.

    While the broker is away the last `max_waiting` results wait. `given_up` counts those that
    were pushed out by newer ones, or still waited at the end. A result may arrive twice where a
    connection broke in between; its `window` tells.
    """

    def __init__(
        self,
        broker: BrokerConfig,
        topic: str,
        status_topic: str | None = None,
        max_waiting: int = _MAX_WAITING,
    ) -> None:
        """Connect in the background. Raises ConfigError."""
        self._topic = topic
        self._status_topic = status_topic
        self._link = Link(broker, limits=QueueLimits(max_messages=100))
        self._changed = threading.Condition()
        # All below is guarded by `_changed`.
        self.given_up = 0
        self._waiting: deque[bytes] = deque()
        self._max_waiting = max_waiting
        self._status: bytes | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="results", daemon=True)
        self._link.__enter__()
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many results wait for the broker."""
        return len(self._waiting)

    def write(self, line: str) -> None:
        """Let a result wait for its turn. Raises TransportError where an older one is given up."""
        with self._changed:
            self._waiting.append(line.encode("utf-8", "replace"))
            self._changed.notify_all()
            if len(self._waiting) <= self._max_waiting:
                return
            self._waiting.popleft()
            self.given_up += 1
        raise TransportError(
            f"the broker of [results] is {self._max_waiting} results behind: the oldest is given "
            f"up, {self.given_up} in all"
        )

    def model(self, about: ModelInUse) -> None:
        """Say on the status topic, retained, which model the results are from."""
        if self._status_topic is None:
            return
        shown = {
            "study": about.study,
            "round": about.round,
            "final": about.final,
            "model": about.int8[:_SHORT_DIGEST],
            "head": about.head,
            "classes": about.classes,
        }
        with self._changed:
            self._status = json.dumps(shown, ensure_ascii=False).encode("utf-8", "replace")
            self._changed.notify_all()

    def close(self) -> None:
        """Deliver what waits if the broker is there, and disconnect."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(_CLOSE_TIMEOUT_S)
        self._link.close()
        self._thread.join(_CLOSE_TIMEOUT_S)
        if self.waiting:
            _log.warning("%d results never reached their broker", self.waiting)
            self.given_up += self.waiting

    def _run(self) -> None:
        behind = False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._waiting or self._status)
                status, self._status = self._status, None
                line = self._waiting.popleft() if status is None and self._waiting else None
            if status is None and line is None:
                return
            try:
                # What the link says of its own accord must not pile up.
                while self._link.receive(0.0) is not None:
                    pass
                self._publish(status, line)
                behind = False
            except TransportError as error:
                if not behind:
                    _log.warning("results wait for their broker: %s", error)
                behind = True
                with self._changed:
                    self._status = self._status or status
                    if line is not None:
                        self._waiting.appendleft(line)
                    if self._stopping:
                        return
                    self._changed.wait_for(lambda: self._stopping, _AGAIN_S)

    def _publish(self, status: bytes | None, line: bytes | None) -> None:
        timeout_s = _CLOSE_TIMEOUT_S if self._stopping else _PUBLISH_TIMEOUT_S
        if status is not None and self._status_topic is not None:
            self._link.publish(self._status_topic, status, retain=True, timeout_s=timeout_s)
        elif line is not None:
            self._link.publish(self._topic, line, timeout_s=timeout_s)
