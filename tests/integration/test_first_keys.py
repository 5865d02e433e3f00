"""A federation whose first keys nobody but its devices ever had, on the command line."""

import shutil
import sys

import pytest
from mosquitto_fixture import lasting_port
from services_fixture import (
    COHORT,
    DATA,
    DEVICES,
    FEDERATION,
    Broker,
    Process,
    vitalring,
    wait_for,
)

from vitalring.config import load_config
from vitalring.edge_agent.keyring import Keyring
from vitalring.gateway.config import GatewayConfig
from vitalring.protocol import trust
from vitalring.tools.enrolments import EnrolledKey, read_enrolments

pytestmark = pytest.mark.mosquitto

HOSPITALS = ("north", "south")
NAMES = DEVICES[:4]
STUDY = f"""
federation = "{FEDERATION}"
cohort = "{COHORT}"
secure_sum = "two-server"
unit = "none"
rounds = 2
records = 250
data_class = "heart-rhythm"
min_cohort = 3
"""


def spawn(folder, name, *words):
    process = Process(
        name, [sys.executable, "-m", "vitalring.tools.cli", *words], folder / f"{name}.log"
    )
    process.start()
    return process


def test_devices_enrol_before_there_is_a_roster(tmp_path):
    port = lasting_port()
    url, study = f"mqtts://localhost:{port}", tmp_path / "study.toml"
    study.write_text(STUDY)
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    vitalring(
        "gateway", "init", tmp_path / "broker", "--federation", FEDERATION, "--cohort", COHORT,
        "--host", "localhost", "--port", port, "--bind", "127.0.0.1",
        *(word for name in HOSPITALS for word in ("--hospital", name)),
        "--second-gateway", HOSPITALS[1],
    )  # fmt: skip
    for name in HOSPITALS:
        vitalring("federation", "hospital", tmp_path / name, "--name", name)
    cards = [w for name in HOSPITALS for w in ("--card", tmp_path / name / f"{name}.card")]
    said = vitalring(
        "federation", "assemble", tmp_path / "authority", "--config", study,
        "--devices", len(NAMES), *cards,
    )  # fmt: skip
    authority = next(line for line in said.splitlines() if line.startswith("auth")).split()[-1]
    host, other = (tmp_path / name for name in HOSPITALS)
    for folder in (host, other):
        shutil.copytree(tmp_path / "authority" / "public", folder / "public")
    service = ["--authority", authority, "--broker-url", url, "--broker-folder"]
    service += [tmp_path / "broker"]
    # 1. Tickets, in the folders that devices are flashed with.
    vitalring(
        "federation", "tickets", host, "--config", study, "--devices", tmp_path / "names.txt",
        *service, "--data", DATA, "--retry", 1,
    )  # fmt: skip
    homes = [host / "devices" / name for name in NAMES]
    agents = [word for home in homes for word in ("--config", home / "agent.toml")]
    broker = Broker(tmp_path / "broker", port)
    running = [broker]
    broker.start()
    try:
        # 2. The office calls, each device draws a key and answers.
        office = spawn(
            tmp_path, "office", "federation", "office", host, "--config", study, *service
        )
        running += [office, spawn(tmp_path, "agents", "agent", "run", *agents)]
        log = tmp_path / "office.log"
        wait_for("all keys", lambda: log.read_text().count("a key is enrolled") == len(NAMES))
        assert office.end() == 0
        assert "4 devices enrolled; missing: nobody" in log.read_text()
        assert not any(name in log.read_text() for name in NAMES)
    finally:
        for process in reversed(running):
            process.end_whatever()
    # 3. The roster of these keys, which the other hospital signs.
    said = vitalring(
        "federation", "enrol", host, "--config", study, "--authority", authority, "--enrolled"
    )
    assert "4 devices, signed by this hospital" in said
    for name in ("roster.cbor", "sum-key.cbor"):
        (other / "public" / name).write_bytes((host / "public" / name).read_bytes())
    said = vitalring("federation", "sign", other, "--authority", authority)
    assert "signed by all hospitals" in said
    for name in ("roster.cbor", "sum-key.cbor"):
        (host / "public" / name).write_bytes((other / "public" / name).read_bytes())
    opened = trust.open_study_files(
        lambda name: (host / "public" / name).read_bytes(), bytes.fromhex(authority)
    )
    drawn = {name: Keyring(host / "devices" / name / "keys").require(1) for name in NAMES}
    assert opened.study.roster.keys == tuple(sorted(pair.public for pair in drawn.values()))
    # 4. Services are configured around what the office knows; devices keep their tickets.
    vitalring("federation", "configure", host, *service, "--data", DATA)
    config = load_config(GatewayConfig, host / "hospitals" / "north" / "gateway.toml")
    assert set(read_enrolments(config)) == {
        EnrolledKey(name, 1, pair.public) for name, pair in drawn.items()
    }
    for name in NAMES:
        assert 'ticket = "ticket"' in (host / "devices" / name / "agent.toml").read_text()
    with pytest.raises(AssertionError, match="has a roster"):
        vitalring("federation", "office", host, "--config", study, *service)
