"""A device's sensors at work: samples in, labelled windows out and on the disk.

One thread keeps the buffer; each source has a thread of its own that reads ahead a little. A
window is handed on after it is on the disk, so none is handed on that a power cut takes back; one
that was handed on just before a power cut may be handed on again, with the same number.
"""

import functools
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from vitalring.edge_agent.sensing.buffer import Buffer, Intake, Place
from vitalring.edge_agent.sensing.config import (
    LinesConfig,
    ReplayConfig,
    SensingConfig,
    StreamConfig,
    TopicConfig,
)
from vitalring.edge_agent.sensing.cutting import Signal, Window, cut
from vitalring.edge_agent.sensing.feed import Feed
from vitalring.edge_agent.sensing.feeder import Feeder
from vitalring.edge_agent.sensing.inputs import open_inputs
from vitalring.edge_agent.sensing.labels import Annotation, Change
from vitalring.edge_agent.sensing.lines import open_lines
from vitalring.edge_agent.sensing.replay import Replay
from vitalring.edge_agent.sensing.rules import Hold, follow
from vitalring.edge_agent.sensing.samples import Block, Source
from vitalring.errors import StorageError, VitalRingError
from vitalring.mqtt import Backoff

_log = logging.getLogger(__name__)
_TURN_S = 0.5
_LOOK_S = 0.05
_LABELS_EVERY_S = 1.0
_DISK_RETRY_S = 5.0
_BACKLOG_PAGE = 64
_DISK_FAULTS = (StorageError, sqlite3.Error)

OnWindow = Callable[[Window], None]


class Sensing:
    """Sensors, labels and buffer of one device; a context manager.

    `on_window` is called for each window, in the order of their numbers, by one thread; sensing
    waits for it.
    """

    def __init__(
        self,
        config: SensingConfig,
        state_dir: Path,
        on_window: OnWindow | None = None,
        *,
        backoff: Backoff | None = None,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        on_fault: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare; nothing is read before the `with` block.

        `on_fault` is called when a fault of ours ends sensing; `check` raises it.
        """
        self._on_fault = on_fault
        self._config = config
        self._state_dir = state_dir
        self._on_window = on_window
        self._backoff = backoff or Backoff(ceiling_s=60.0)
        self._now_us = now_us
        self._arrived = threading.Event()
        self._stop = threading.Event()
        self._idle = threading.Event()
        self._ready = threading.Event()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="sensing", daemon=True)

    def __enter__(self) -> Self:
        """Start. Raises ConfigError, DataError or StorageError where the first step fails."""
        self._thread.start()
        self._ready.wait()
        self.check()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()

    def check(self) -> None:
        """Raise what ended sensing, where a fault of ours did."""
        if self._fault is not None:
            raise self._fault

    def close(self) -> None:
        """Stop sources and threads; what was taken so far is on the disk."""
        self._stop.set()
        self._arrived.set()
        if self._thread.is_alive():
            self._thread.join()

    def wait_ended(self, timeout_s: float) -> bool:
        """Wait until every source has ended and what it gave is kept; tell whether it is so."""
        return self._idle.wait(timeout_s)

    def _run(self) -> None:
        try:
            keeper = _Keeper(self._config, self._state_dir, self._on_window, self._now_us)
        except BaseException as fault:
            # Raised by whoever waits for the start.
            self._fault = fault
            self._ready.set()
            return
        feeds: list[Feed] = []
        try:
            feeds += [
                Feed(
                    name,
                    _opener(name, stream, keeper.buffer.session(name), self._now_us),
                    keeper.buffer.position(name, stream.source_name),
                    self._arrived,
                    self._backoff,
                )
                for name, stream in keeper.streams.items()
            ]
            for feed in feeds:
                feed.start()
            self._ready.set()
            self._work(keeper, feeds)
        except Exception as fault:
            # The agent must not go on as if it had sensors.
            self._fault = fault
            _log.exception("sensing ended by a fault")
            self._ready.set()
            self._on_fault()
        finally:
            for feed in feeds:
                feed.close()
            keeper.close()

    def _work(self, keeper: "_Keeper", feeds: list[Feed]) -> None:
        labels_at = taken_at = 0.0
        while not self._stop.is_set():
            self._arrived.wait(_TURN_S)
            self._arrived.clear()
            # Each taking is a write to the disk; what is live can be written together.
            while (
                (left := taken_at + self._config.buffer.commit_s - time.monotonic()) > 0
                and not any(feed.crowded for feed in feeds)
                and not all(feed.ended for feed in feeds)
                and not self._stop.wait(min(left, _LOOK_S))
            ):
                pass
            taken_at = time.monotonic()
            for feed in feeds:
                block = feed.take()
                faults = feed.take_faults()
                if block is not None:
                    self._persist(functools.partial(keeper.take, feed.name, block))
                if faults:
                    self._persist(functools.partial(keeper.count, {"source_faults": faults}))
            if time.monotonic() >= labels_at:
                labels_at = time.monotonic() + _LABELS_EVERY_S
                self._persist(keeper.poll)
            if all(feed.ended for feed in feeds):
                self._idle.set()

    def _persist(self, act: Callable[[], None]) -> None:
        """Do it until the disk takes it: samples wait at their source meanwhile."""
        while not self._stop.is_set():
            try:
                act()
            except _DISK_FAULTS as error:
                _log.error("%s; the next try is in %.0f s", error, _DISK_RETRY_S)
                self._stop.wait(_DISK_RETRY_S)
            else:
                return


class _Keeper:
    """What the sensing thread knows: the state of cutting and rules, beside the buffer."""

    def __init__(
        self,
        config: SensingConfig,
        state_dir: Path,
        on_window: OnWindow | None,
        now_us: Callable[[], int],
    ) -> None:
        self._config = config
        self._on_window = on_window
        self._now_us = now_us
        self._layout = config.sensor.layout
        self._scale = np.asarray(config.sensor.scale, np.float32) if config.sensor.scale else None
        self.streams: dict[str, StreamConfig] = {"sensor": config.sensor}
        if config.labels is not None and config.labels.signal is not None:
            self.streams["signal"] = config.labels.signal
        _check_recordings(self.streams, now_us)
        self.buffer = Buffer(state_dir, config)
        try:
            self._carry = self.buffer.carry()
            self._holds = {
                f"{name}:{index}": self.buffer.hold(f"{name}:{index}")
                for name in self.streams
                for index in range(len(config.rules(name)))
            }
            self._inputs = open_inputs(config.labels, self.buffer) if config.labels else []
        except BaseException:
            self.buffer.close()
            raise
        # Who starts to predict wants the windows from now on; who did before, all since then.
        self._handed = self.buffer.handed() if on_window else self.buffer.last_number()
        self._noted = -1
        self._is_quiet = False
        self._hand_on_backlog()

    def _hand_on_backlog(self) -> None:
        while page := self.buffer.windows_after(self._handed, _BACKLOG_PAGE):
            self._hand_on(page)

    def take(self, stream: str, block: Block) -> None:
        """Keep a block and all that follows from it, then hand its windows on."""
        config = self.streams[stream]
        holds, changes = self._follow_rules(stream, block)
        counts = dict(block.counts)
        last = int(block.times[-1]) if len(block.times) else None
        place = Place(stream, config.source_name, block.position, last)
        if stream == "sensor":
            done = cut(self._layout, self._carry, block.times, self._inputs_of(block.values))
            for name, count in done.tally.as_counts().items():
                counts[name] = counts.get(name, 0) + count
            intake = Intake(place, counts, done.carry, done.windows, holds, changes)
        else:
            intake = Intake(place, counts, holds=holds, changes=changes)
        windows = self.buffer.keep(intake, self._handed, self._now_ms())
        self._noted, self._is_quiet = self._handed, False
        # From here on it is on the disk; only now may memory follow and senders forget.
        if intake.carry is not None:
            self._carry = intake.carry
        self._holds.update(holds)
        for confirm in block.confirm:
            confirm()
        self._hand_on(windows)

    def _inputs_of(self, values: Signal) -> Signal:
        sensor = self._config.sensor
        chosen = values[:, list(sensor.inputs)] if sensor.inputs else values
        if self._scale is None:
            return chosen
        with np.errstate(over="ignore"):
            return np.asarray(chosen * self._scale, np.float32)

    def _follow_rules(
        self, stream: str, block: Block
    ) -> tuple[dict[str, Hold], list[tuple[str, Change]]]:
        config = self.streams[stream]
        holds: dict[str, Hold] = {}
        changes: list[tuple[str, Change]] = []
        for index, rule in enumerate(self._config.rules(stream)):
            name = f"{stream}:{index}"
            holds[name], spans = follow(
                rule.threshold,
                self._holds[name],
                block.times,
                block.values,
                gap_us=config.gap_us,
                period_us=config.period_us,
            )
            for span in spans:
                said = Annotation(span.start_us // 1000, -(-span.end_us // 1000), rule.label)
                changes.append((f"rule {name}", Change(str(span.start_us), said)))
        return holds, changes

    def _hand_on(self, windows: list[Window] | tuple[Window, ...]) -> None:
        failed = 0
        for window in windows:
            if self._on_window is not None:
                try:
                    self._on_window(window)
                except Exception:
                    # Whatever is wrong there, the next window is another matter.
                    _log.exception("window %d was handed on in vain", window.number)
                    failed += 1
            self._handed = window.number
        if failed:
            self.count({"unpredicted": failed})

    def poll(self) -> None:
        """Take new labels, drop what is too old, and note what was handed on last."""
        now_ms = self._now_ms()
        for each in self._inputs:
            try:
                each.poll(self.buffer, now_ms)
            except StorageError:
                raise
            except VitalRingError as error:
                _log.warning("labels: %s", error)
        self.buffer.tidy(now_ms)
        # While samples come, the next block notes it without a write of its own.
        if self._is_quiet and self._noted != self._handed:
            self.buffer.note_handed(self._handed)
            self._noted = self._handed
        self._is_quiet = True

    def count(self, counts: dict[str, int]) -> None:
        """Add to counters."""
        self.buffer.count(counts)

    def close(self) -> None:
        """Close label inputs and buffer."""
        try:
            self.buffer.note_handed(self._handed)
        except _DISK_FAULTS as error:
            _log.error("%s", error)
        for each in self._inputs:
            each.close()
        self.buffer.close()

    def _now_ms(self) -> int:
        return self._now_us() // 1000


def _check_recordings(streams: dict[str, StreamConfig], now_us: Callable[[], int]) -> None:
    """Refuse a recording that cannot be played at the start, and not in a log. Raises DataError."""
    for stream in streams.values():
        if stream.replay is not None:
            Replay(stream.replay, stream, b"", now_us).close()


def _opener(
    name: str, stream: StreamConfig, session: str, now_us: Callable[[], int]
) -> Callable[[bytes], Source]:
    source = stream.source

    def open_source(position: bytes) -> Source:
        if isinstance(source, ReplayConfig):
            return Replay(source, stream, position, now_us)
        if isinstance(source, LinesConfig):
            return open_lines(source, stream, position, now_us)
        if isinstance(source, TopicConfig):
            return Feeder(source, stream, position, session)
        raise TypeError(name)

    return open_source
