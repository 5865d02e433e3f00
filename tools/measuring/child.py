"""Run a measurement in a fresh process, and what such a process can say of itself."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitalring.errors import ConfigError

_TIMEOUT_S = 1800.0
# One core, so that figures do not depend on how many a machine has.
_ONE_THREAD = dict.fromkeys(
    (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "TF_NUM_INTRAOP_THREADS",
        "TF_NUM_INTEROP_THREADS",
    ),
    "1",
)


def run_child(
    module: str,
    request: Mapping[str, Any],
    *,
    python: str = sys.executable,
    group: Path | None = None,
    timeout_s: float = _TIMEOUT_S,
) -> dict[str, Any]:
    """Run `python -m vitalring.tools.bench.MODULE` on a request and return its answer.

    `group` is a control group of its own to run in. Raises ConfigError with the
    child's last words where it fails or takes longer than `timeout_s`.
    """
    # -P: a file in the working directory must not pass for a module of ours.
    command = [python, "-P", "-m", f"vitalring.tools.bench.{module}", json.dumps(request)]
    return _run(command, module, group, timeout_s)


def run_script(script: Path, request: Mapping[str, Any], *, python: str) -> dict[str, Any]:
    """Run a file that needs no vitalring, by an interpreter of another environment.

    It answers as the children of `run_child` do. Raises ConfigError likewise.
    """
    return _run([python, "-P", str(script), json.dumps(request)], script.stem, None)


def _run(
    command: list[str], name: str, group: Path | None, timeout_s: float = _TIMEOUT_S
) -> dict[str, Any]:
    if group is not None:
        # The shell enters the group and becomes the child, so all of the child is charged to it.
        enter = 'echo $$ > "$0" && exec "$@"'
        command = ["/bin/sh", "-c", enter, str(group / "cgroup.procs"), *command]
    try:
        finished = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, **_ONE_THREAD},
            timeout=timeout_s,
            check=True,
        )
        # What libraries print on their own comes before the answer.
        answer: dict[str, Any] = json.loads(finished.stdout.decode().splitlines()[-1])
    except subprocess.CalledProcessError as error:
        words = error.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ConfigError(f"measuring {name} failed: {' '.join(words)}") from error
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise ConfigError(f"measuring {name} failed: {error}") from error
    return answer


def require_modules(
    python: str, modules: Sequence[str], package: str = "vitalring[models]"
) -> None:
    """Raise ConfigError unless an interpreter has these modules; none is loaded for it.

    `package` is what brings them.
    """
    test = (
        "import importlib.util, sys; sys.exit(not all(map(importlib.util.find_spec, sys.argv[1:])))"
    )
    try:
        code = subprocess.run(
            [python, "-P", "-c", test, *modules],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60.0,
            check=False,
        ).returncode
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{python} cannot be run as a Python interpreter: {error}") from error
    if code:
        raise ConfigError(
            f"{python} lacks one of {', '.join(modules)}: install '{package}' in its environment"
        )


def answer(measure: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer the request on the command line: the child's half of `run_child`."""
    print(json.dumps(measure(json.loads(sys.argv[1]))))


def peak_bytes() -> int:
    """Return the most memory that this process has held: VmHWM of proc(5), in bytes.

    Not `getrusage`, whose peak a process inherits from the one that started it.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ConfigError("this system does not tell a process's peak memory: measure on Linux")
