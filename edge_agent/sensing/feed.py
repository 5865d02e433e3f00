"""A thread that reads a source into a bounded queue, and opens the source again when it fails."""

import logging
import queue
import random
import threading
from collections.abc import Callable
from contextlib import closing

from vitalring.edge_agent.sensing.samples import Block, Source, join
from vitalring.errors import VitalRingError
from vitalring.mqtt import Backoff

_log = logging.getLogger(__name__)
_READ_S = 0.25
_ROOM_S = 0.2
_MAX_BLOCKS = 16

Open = Callable[[bytes], Source]


class Feed:
    """Blocks of one source. When nobody takes them the source is not read further."""

    def __init__(
        self,
        name: str,
        open_source: Open,
        position: bytes,
        arrived: threading.Event,
        backoff: Backoff,
    ) -> None:
        """Prepare; `arrived` is set whenever there is a block or the feed has ended."""
        self.name = name
        self._open = open_source
        self._position = position
        self._arrived = arrived
        self._backoff = backoff
        self._blocks: queue.Queue[Block] = queue.Queue(_MAX_BLOCKS)
        self._stop = threading.Event()
        self._ended = False
        self._faults = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"sensing-{name}", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def close(self) -> None:
        """End the thread and close the source; blocks not taken are left to the source."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def ended(self) -> bool:
        """Whether the source ended and every block was taken."""
        return self._ended and self._blocks.empty()

    @property
    def crowded(self) -> bool:
        """Whether so much waits that the source may soon have to wait too."""
        return self._blocks.qsize() >= _MAX_BLOCKS // 2

    def take(self) -> Block | None:
        """Return all that waits as one block, or None."""
        blocks: list[Block] = []
        while len(blocks) < _MAX_BLOCKS:
            try:
                blocks.append(self._blocks.get_nowait())
            except queue.Empty:
                break
        return join(blocks) if blocks else None

    def take_faults(self) -> int:
        """Return how often the source failed since the last call."""
        with self._lock:
            faults, self._faults = self._faults, 0
        return faults

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                with closing(self._open(self._position)) as source:
                    while not self._stop.is_set():
                        block = source.read(_READ_S)
                        if block is not None:
                            self._put(block)
                            failures = 0
                        elif source.ended:
                            _log.info("the source %s has ended", self.name)
                            self._ended = True
                            self._arrived.set()
                            return
            except (VitalRingError, OSError) as error:
                _log.warning("source %s: %s", self.name, error)
            except Exception:
                # A fault of ours in one source must not end the stream for good.
                _log.exception("source %s failed", self.name)
            if self._stop.is_set():
                return
            with self._lock:
                self._faults += 1
            self._stop.wait(self._backoff.delay_s(failures, random.SystemRandom().random))
            failures += 1

    def _put(self, block: Block) -> None:
        while not self._stop.is_set():
            try:
                self._blocks.put(block, timeout=_ROOM_S)
            except queue.Full:
                continue
            self._position = block.position
            self._arrived.set()
            return
