"""Where people's labels come in: an annotation file, the wearer's button, messages.

Each is asked now and then by the thread that keeps the buffer, and waits for nothing. What cannot
be read is counted and named in the log, by its line where it has one.
"""

import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from vitalring.edge_agent.sensing.buffer import Buffer
from vitalring.edge_agent.sensing.config import LabelsConfig, TopicConfig
from vitalring.edge_agent.sensing.labels import (
    MAX_LINE_BYTES,
    Change,
    key_of,
    parse_message,
    parse_press,
    parse_table,
)
from vitalring.errors import ConfigError, RecordError
from vitalring.mqtt import Link, Message, PersistentSession, QueueLimits

_log = logging.getLogger(__name__)
MAX_TABLE_BYTES = 16 << 20
_MAX_MESSAGES = 100


class LabelInput(Protocol):
    """A place that labels come from."""

    def poll(self, buffer: Buffer, now_ms: int) -> None:
        """Bring what is new into the buffer. Raises StorageError."""

    def close(self) -> None:
        """Let go of it."""


class AnnotationFile:
    """A clinician's csv, read again when it changed: lines that are gone take their labels back.

    It is read once it looks the same at two looks in a row, so that one being written is left
    alone. A file that is missing changes nothing: what it said last stands.
    """

    def __init__(self, path: Path, config: LabelsConfig) -> None:
        self._path = path
        self._config = config
        self._seen: tuple[int, int, int] | None = None
        self._read: tuple[int, int, int] | None = None

    def poll(self, buffer: Buffer, now_ms: int) -> None:  # noqa: ARG002
        """Read the file if it changed and is at rest."""
        seen = self._look()
        at_rest, self._seen = seen == self._seen, seen
        if seen is None or seen == self._read or not at_rest:
            return
        self._read = seen
        try:
            with self._path.open("rb") as file:
                text = file.read(MAX_TABLE_BYTES).decode("utf-8")
            table = parse_table(text, self._config.classes)
        except (OSError, UnicodeDecodeError, RecordError) as error:
            _log.error("%s: %s; what it said before stands", self._path, error)
            buffer.count({"bad_annotation_files": 1})
            return
        for complaint in table.complaints:
            _log.warning("%s, %s", self._path, complaint)
        buffer.replace("file", table.annotations, table.bad_lines)
        _log.info("%s: %d annotations", self._path, len(table.annotations))

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return (found.st_mtime_ns, found.st_size, found.st_ino)

    def close(self) -> None:
        """Nothing is open."""


class Button:
    """The wearer's event button: a pipe, made where it is not there, with a line for each press."""

    def __init__(self, path: Path, config: LabelsConfig) -> None:
        """Open the pipe. Raises ConfigError where the path is something else."""
        self._path = path
        self._config = config
        self._rest = b""
        try:
            if not path.exists():
                os.mkfifo(path, 0o600)
            if not stat.S_ISFIFO(path.stat().st_mode):
                raise ConfigError(f"{path} is no pipe: labels.button names one, or nothing")
            self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"{path} cannot be used as a pipe: {error.strerror}") from error

    def poll(self, buffer: Buffer, now_ms: int) -> None:
        """Take the presses that wait in the pipe."""
        try:
            data = os.read(self._descriptor, 1 << 16)
        except BlockingIOError:
            return
        *lines, rest = (self._rest + data).split(b"\n")
        changes: list[tuple[str, Change]] = []
        bad = 0
        for line in filter(bytes.strip, lines):
            try:
                said = parse_press(
                    line.decode("utf-8"), self._config.press, now_ms, self._config.classes
                )
            except (UnicodeDecodeError, RecordError) as error:
                _log.warning("%s: a press is left out: %s", self._path, error)
                bad += 1
                continue
            changes.append(("button", Change(key_of(said), said)))
        if len(rest) > MAX_LINE_BYTES:
            rest, bad = b"", bad + 1
        buffer.annotate(changes, {"bad_marks": bad})
        self._rest = rest

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._descriptor)


class LabelMessages:
    """Annotations and presses as messages on a topic; confirmed once they are on the disk."""

    def __init__(self, config: TopicConfig, labels: LabelsConfig, session: str) -> None:
        """Subscribe. Raises ConfigError."""
        self._labels = labels
        limits = QueueLimits(max_messages=_MAX_MESSAGES)
        self._link = Link(
            config.broker, [config.topic], session=PersistentSession(session), limits=limits
        )
        self._link.__enter__()

    def poll(self, buffer: Buffer, now_ms: int) -> None:
        """Take the messages that came."""
        changes: list[tuple[str, Change]] = []
        confirm: list[Message] = []
        bad = 0
        while len(confirm) < _MAX_MESSAGES and (event := self._link.receive(0.0)) is not None:
            if not isinstance(event, Message):
                continue
            confirm.append(event)
            try:
                change = parse_message(
                    event.payload, self._labels.press, now_ms, self._labels.classes
                )
                changes.append(("message", change))
            except RecordError as error:
                _log.warning("a label message is left out: %s", error)
                bad += 1
        if confirm:
            buffer.annotate(changes, {"bad_marks": bad})
        for message in confirm:
            self._link.ack(message)

    def close(self) -> None:
        """Disconnect."""
        self._link.close()


def open_inputs(config: LabelsConfig, buffer: Buffer) -> list[LabelInput]:
    """Open what the configuration names. Raises ConfigError."""
    makers: list[Callable[[], LabelInput]] = []
    if (path := config.annotations) is not None:
        makers.append(lambda: AnnotationFile(path, config))
    if (pipe := config.button) is not None:
        makers.append(lambda: Button(pipe, config))
    if (topic := config.mqtt) is not None:
        makers.append(lambda: LabelMessages(topic, config, buffer.session("labels")))
    opened: list[LabelInput] = []
    try:
        for make in makers:
            opened.append(make())  # noqa: PERF401 - what was opened is closed if the next fails
    except BaseException:
        for each in opened:
            each.close()
        raise
    return opened
