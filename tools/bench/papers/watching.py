"""What the processes of a run hold, and how much of the machine others had meanwhile."""

import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_POLL_S: Final = 0.2
_ENTRY: Final = "vitalring.tools.cli"

MOST_OTHERS: Final = 0.1
"""Share of the cores that others may have while a time is taken: more, and it is none."""


class Watch:
    """While it is entered: the peak memory of each role's processes, and the cores' use.

    `peaks` is in bytes by role (agent, gateway, aggregator, and `self` for this process): the
    largest of a role's processes. `others` is the share of all cores that was used, but not by
    this process or those that it started and waited for.
    """

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self.others = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> Self:
        self._began = (time.monotonic(), _used_s(), _own_s())
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._look()
        began, used, own = self._began
        elapsed = max(time.monotonic() - began, 1e-3)
        others = (_used_s() - used) - (_own_s() - own)
        # The clock of /proc/stat ticks in hundredths: over less than that it may say anything.
        self.others = min(1.0, max(0.0, others / (elapsed * (os.cpu_count() or 1))))

    def _poll(self) -> None:
        while not self._ended.wait(_POLL_S):
            self._look()

    def _look(self) -> None:
        for role, peak in _peaks(os.getpid()):
            self.peaks[role] = max(self.peaks.get(role, 0), peak)


def _peaks(root: int) -> list[tuple[str, int]]:
    """Return role and peak bytes of this process and all that descend from it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The name in brackets may hold spaces; the parent is the second field after it.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(fields[1])
            except (OSError, IndexError, ValueError):
                continue  # it ended meanwhile
    family, grown = {root}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in family} - family
        family, grown = family | more, bool(more)
    found = []
    for pid in family:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        role = words[words.index(_ENTRY) + 1] if _ENTRY in words[:-1] else ""
        role = "self" if pid == root else role
        peak = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        if role and peak:
            found.append((role, int(peak[0].split()[1]) * 1024))
    return found


def _used_s() -> float:
    """Return the seconds that all cores were at work, or taken by the machine's host: proc(5)."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _waiting, irq, softirq, stolen = fields
    return (user + nice + system + irq + softirq + stolen) / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    return sum(os.times()[:4])
