"""Two gateways as two hospitals run them: Mosquitto with TLS, access list, kills at any step."""

import pytest
from services_fixture import FAULTS, Hospital, vitalring, wait_for

from vitalring.tools.verify import verify_log

pytestmark = pytest.mark.mosquitto

ROUNDS = 2
DEVICES = 4
# Where each gateway or the aggregator dies once; the agents' own faults are other tests' matter.
STRUCK = (*(name for name in FAULTS if name.startswith("gateway-")), "aggregator-conclude")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    hospital = Hospital(
        tmp_path_factory.mktemp("hospitals") / "study",
        rounds=ROUNDS,
        devices=DEVICES,
        timeout_s=300,
        retry_s=3,
        hospitals=2,
        shared=True,
        faults=STRUCK,
    )

    def ended():
        for process in (hospital.gateway, hospital.second_gateway, hospital.aggregator):
            if process.code not in (None, 0):
                process.start()
        return hospital.aggregator.code == 0

    with hospital:
        try:
            wait_for("the aggregator ends", ended)
            wait_for("all receipts are read", lambda: not hospital.unsettled())
        except AssertionError as error:
            error.add_note(hospital.tail())
            raise
        yield hospital


def test_every_fault_struck(finished):
    assert {path.name for path in finished.markers.iterdir()} >= set(STRUCK)


def test_each_hospital_exports_a_log_that_verifies(finished, tmp_path):
    verdicts = []
    for number, home in enumerate(finished.homes):
        folder = tmp_path / f"log{number}"
        vitalring("gateway", "export", folder, "--config", home / "gateway.toml")
        assert "is sound" in vitalring("verify", folder)
        verdicts.append(verify_log(folder, None))
    assert verdicts[0].rounds == verdicts[1].rounds
    assert [verdict.hospital for verdict in verdicts] == [0, 1]
    assert len(verdicts[0].rounds) == ROUNDS
    assert verdicts[0].updates == ROUNDS * DEVICES


def test_the_broker_holds_nothing_of_a_round_that_is_done(finished):
    said = {
        topic.rpartition("/")[2]: payload
        for topic, payload in finished.retained().items()
        if "/inner/gateway/hospital-2/" in topic
    }
    assert "sum" not in said
    assert "logged" in said


def test_what_devices_share_reaches_no_log_file(finished):
    for name in ("gateway", "gateway-2", "aggregator"):
        assert not finished.said(name, "Traceback")
