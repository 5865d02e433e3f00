"""A real Mosquitto with the configuration that `gateway.mosquitto` writes.

Tests take the fixture `mosquitto` or `own_mosquitto` (registered in tests/conftest.py) and the
marker `mosquitto`, by which they are left out, loudly, where no Mosquitto is installed.
"""

import contextlib
import datetime
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from vitalring.gateway.mosquitto import AGGREGATOR, GATEWAY, BrokerLimits, cohort_user, write
from vitalring.mqtt import BrokerConfig

FEDERATION = "fed"
COHORT = "ward-3"
OTHER_COHORT = "ward-4"
_START_TIMEOUT_S = 60.0


def mosquitto_program() -> str | None:
    """Return the path of the broker, which Debian keeps out of a user's PATH."""
    return shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def lasting_port() -> int:
    """Return a free port that nobody takes while its broker is away.

    No outgoing connection, and nobody who asks the kernel for any port, gets one of this range;
    each test worker has ports of its own in it.
    """
    ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    while True:
        port = random.randrange(10_000 + worker % workers, ephemeral, workers)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def _start(configuration: Path, log: Path, port: int) -> subprocess.Popen[bytes]:
    """Start a broker, and wait until connections are taken."""
    program = mosquitto_program()
    assert program is not None, "use the marker `mosquitto`"
    with log.open("ab") as stream:
        process = subprocess.Popen([program, "-c", configuration], stdout=stream, stderr=stream)
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not _listens(port):
        assert process.poll() is None, f"Mosquitto ended: {log.read_text()}"
        assert time.monotonic() < deadline, f"Mosquitto does not listen: {log.read_text()}"
        time.sleep(0.01)
    return process


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


class Mosquitto:
    """One broker folder and the process that runs on it."""

    def __init__(
        self, folder: Path, limits: BrokerLimits | None = None, hospitals: Sequence[str] = ()
    ) -> None:
        self.folder = folder
        self.port = lasting_port()
        self.limits = limits or BrokerLimits(save_interval_s=1)
        self.files = write(
            folder,
            FEDERATION,
            [COHORT, OTHER_COHORT],
            ["localhost"],
            hospitals=hospitals,
            port=self.port,
            bind="127.0.0.1",
            limits=self.limits,
            now=datetime.datetime.now(datetime.UTC),
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until connections are taken."""
        self._process = _start(self.files.configuration, self.folder / "stderr.log", self.port)

    def stop(self) -> None:
        """End it in order: Mosquitto saves its state."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(_START_TIMEOUT_S)
            self._process = None

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def config(self, user: str, **changes: object) -> BrokerConfig:
        """Return how `user` ("gateway", "aggregator" or a `cohort_user`) connects."""
        credential = self.files.credentials[user]
        return BrokerConfig(
            **{
                "url": f"mqtts://localhost:{self.port}",
                "ca_file": self.files.ca_file,
                "certificate_file": credential.certificate_file,
                "key_file": credential.key_file,
            }
            | changes
        )

    @property
    def gateway(self) -> BrokerConfig:
        return self.config(GATEWAY)

    @property
    def aggregator(self) -> BrokerConfig:
        return self.config(AGGREGATOR)

    @property
    def device(self) -> BrokerConfig:
        return self.config(cohort_user(COHORT))


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    """A running broker; the test may stop, kill and start it again."""
    broker = Mosquitto(tmp_path / "broker")
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def own_mosquitto(tmp_path: Path) -> Iterator[str]:
    """The address of a broker as the owner of a device would run one."""
    port = lasting_port()
    configuration = tmp_path / "own.conf"
    configuration.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n"
    )
    process = _start(configuration, tmp_path / "own.log", port)
    yield f"mqtt://127.0.0.1:{port}"
    process.terminate()
    process.wait(_START_TIMEOUT_S)
