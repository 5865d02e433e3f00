"""What a figure was measured on."""

import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import vitalring

_PACKAGES = ("numpy", "tflite-runtime", "ai-edge-litert", "tenseal", "PyNaCl", "paho-mqtt")


def machine() -> dict[str, str]:
    """Return processor, cores, memory, system and versions, without names or paths."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": _processor(),
        "architecture": platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.1f} GB",
        "load": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "vitalring": vitalring.__version__,
        **_versions(),
    }


def in_words(facts: Mapping[str, str]) -> str:
    """Return in one sentence what a reader must know of the machine."""
    return (
        f"{facts['date']}, {facts['processor']} ({facts['architecture']}), {facts['cores']} cores, "
        f"{facts['system']}, Python {facts['python']}; load average at the end {facts['load']}."
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package.lower()] = version(package)
        except PackageNotFoundError:
            continue
    return found
