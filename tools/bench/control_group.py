"""A Linux control group of its own for one measurement, where the system lets us have one."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNIFIED = Path("/sys/fs/cgroup")


@contextmanager
def control_group(
    root: Path = UNIFIED, membership: Path = Path("/proc/self/cgroup")
) -> Iterator[Path | None]:
    """Make a group that counts memory (cgroup v2) and remove it at the end; None without rights.

    Looks from our own group upwards for one that may have children and hands
    the memory controller to them.
    """
    group = _make(root, membership)
    try:
        yield group
    finally:
        if group is not None:
            with contextlib.suppress(OSError):
                group.rmdir()


def group_peak(group: Path) -> int:
    """Return the most memory the group was ever charged for, in bytes, file cache included."""
    return int((group / "memory.peak").read_text())


def _make(root: Path, membership: Path) -> Path | None:
    try:
        lines = membership.read_text().splitlines()
        own = next(line.removeprefix("0::/") for line in lines if line.startswith("0::/"))
    except (OSError, StopIteration):
        return None
    here = root / own
    for parent in (here, *here.parents):
        if parent != root and root not in parent.parents:
            return None
        group = parent / f"vitalring-bench-{os.getpid()}"
        try:
            if "memory" not in (parent / "cgroup.subtree_control").read_text().split():
                continue
            group.mkdir()
        except OSError:
            continue
        if (group / "memory.peak").exists():
            return group
        group.rmdir()
    return None
