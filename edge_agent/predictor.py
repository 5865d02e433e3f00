"""Predict each window of a live sensor with the model in use, beside sensing and training.

The sensors' thread hands windows over and goes on; a thread of its own predicts and writes. Between
windows it looks whether the model in use was renewed. Every window ends in a line, as a result or
with the reason why there is none, and in one of the counts.
"""

import logging
import queue
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from vitalring.edge_agent import model_in_use
from vitalring.edge_agent.inference import Array, Int8Model
from vitalring.edge_agent.model_in_use import ModelInUse
from vitalring.edge_agent.results import Sink, refusal, result
from vitalring.errors import DataError, ModelError, VitalRingError

_log = logging.getLogger(__name__)
_MAX_WAITING = 256
_ROOM_TIMEOUT_S = 1.0


class Window(Protocol):
    """A window of a sensor, numbered on this device: x float32 (time, channels)."""

    @property
    def number(self) -> int:
        """The window's number, which no other window of the device has."""

    @property
    def start_ms(self) -> int:
        """Milliseconds since 1970 UTC."""

    @property
    def x(self) -> Array:
        """The window's samples."""


@dataclass(frozen=True)
class Counts:
    """What became of the windows.

    `refused` had a wrong shape or a number that is not finite, `without_model` came before the
    first verified model, `unwritten` could not be written where results go, and `overrun` found
    no room because prediction or the disk stood still.
    """

    predicted: int = 0
    refused: int = 0
    without_model: int = 0
    unwritten: int = 0
    overrun: int = 0


class CurrentModel:
    """The model in use, loaded, and loaded anew when it was renewed."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._seen: tuple[int, int, int] | None = None
        self._loaded: tuple[ModelInUse, Int8Model] | None = None

    def get(self) -> tuple[ModelInUse, Int8Model] | None:
        """Return the model in use; None where there is none yet.

        A renewal that cannot be read is logged, and the model of before stays.
        """
        found = model_in_use.version(self._state_dir)
        if found is None or found == self._seen:
            return self._loaded
        self._seen = found
        try:
            self._loaded = open_model(self._state_dir) or self._loaded
        except ModelError as error:
            kept = "the model of before stays in use" if self._loaded else "there is no model"
            _log.error("%s; %s", error, kept)
        return self._loaded


def open_model(state_dir: Path) -> tuple[ModelInUse, Int8Model] | None:
    """Return the model in use, verified and loaded; None where there is none yet.

    Raises ModelError where a file of it is damaged or the runtime cannot load it.
    """
    loaded = model_in_use.load(state_dir)
    if loaded is None:
        return None
    about = loaded.about
    return about, Int8Model(loaded.int8, about.input_shape, len(about.classes))


class Predictor:
    """Takes windows until it is closed; a context manager.

    `on_window` waits for room for at most `room_timeout_s`, and only where `max_waiting` windows
    are behind.
    """

    def __init__(
        self,
        state_dir: Path,
        sink: Sink,
        *,
        max_waiting: int = _MAX_WAITING,
        room_timeout_s: float = _ROOM_TIMEOUT_S,
    ) -> None:
        self._current = CurrentModel(state_dir)
        self._sink = sink
        self._announced: ModelInUse | None = None
        self._waiting: queue.Queue[Window | None] = queue.Queue(max_waiting)
        self._room_timeout_s = room_timeout_s
        self._counting = threading.Lock()
        self._counts = Counts()
        self._thread = threading.Thread(target=self._run, name="predictor", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def counts(self) -> Counts:
        """What became of the windows so far."""
        return self._counts

    def on_window(self, window: Window) -> None:
        """Have a window predicted soon. Never raises: sensing goes on whatever happens here."""
        try:
            self._waiting.put(window, timeout=self._room_timeout_s)
        except queue.Full:
            self._count("overrun")
            _log.error("a window is not predicted: %d wait already", self._waiting.maxsize)

    def close(self) -> None:
        """Predict what waits, then end and close the sink."""
        self._waiting.put(None)
        self._thread.join()
        self._sink.close()

    def _run(self) -> None:
        while (window := self._waiting.get()) is not None:
            try:
                self._write(*self._predict(window))
            except Exception:
                # A fault of ours in one window must not end the stream of the others.
                self._count("refused")
                _log.exception("a window is not predicted")

    def _predict(self, window: Window) -> tuple[str, str]:
        """Return what to count a window as, and its line."""
        place = {"window": window.number, "start_ms": window.start_ms}
        current = self._current.get()
        if current is None:
            if self._counts.without_model == 0:
                _log.warning("windows are not predicted: there is no verified model yet")
            return "without_model", refusal(place, "no verified model yet")
        about, model = current
        if about != self._announced:
            _log.info("predicts with study %s, round %d", about.study, about.round)
            self._sink.model(about)
            self._announced = about
        try:
            prediction = model.predict(window.x)
        except (DataError, ModelError) as error:
            if self._counts.refused == 0:
                _log.warning("a window is not predicted: %s", error)
            return "refused", refusal(place, str(error))
        return "predicted", result(place, prediction, about)

    def _write(self, counted: str, line: str) -> None:
        try:
            self._sink.write(line)
        except VitalRingError as error:
            if self._counts.unwritten == 0:
                _log.error("a result is lost: %s", error)
            counted = "unwritten"
        self._count(counted)

    def _count(self, name: str) -> None:
        with self._counting:
            self._counts = replace(self._counts, **{name: getattr(self._counts, name) + 1})
