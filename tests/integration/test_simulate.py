"""The simulation as its user meets it: command, report, model, log, stop and resume."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from shipped_fixture import shipped_rows, write_part

import vitalring
from vitalring.aggregator.evaluate import final_rows
from vitalring.errors import ConfigError, DataError, ModelError
from vitalring.models import metrics
from vitalring.models.runtime import interpreter
from vitalring.protocol import privacy
from vitalring.tools.privacy_audit import audit_log
from vitalring.tools.simulate.api import Simulation
from vitalring.tools.simulate.layout import SHIPPED_DATA
from vitalring.tools.verify import verify_log

SMALL = {
    "devices": 5,
    "min_cohort": 4,
    "rounds": 3,
    "local_epochs": 0.34,
    "alone": False,
    "window_s": 0.0,
}
COMMAND = [sys.executable, "-m", "vitalring.tools.cli", "simulate"]


def run(out: Path, **changes: object) -> Simulation:
    quiet = Console(file=(out.parent / "printed.txt").open("w"))
    return vitalring.simulate(console=quiet, out=out, **{**SMALL, **changes})


@pytest.fixture(scope="module")
def private_run(tmp_path_factory: pytest.TempPathFactory):
    return run(tmp_path_factory.mktemp("simulation") / "out")


def test_report_has_what_the_design_promises(private_run):
    report = json.loads((private_run.folder / "report.json").read_text())
    assert report["secure_sum"] == "threshold-he"
    assert report["hospitals"] == 3
    assert report["privacy"]["unit"] == "record"
    assert report["privacy"]["noise"] == "local"
    assert 0 < report["privacy"]["spent"] <= report["privacy"]["epsilon"] == 1.0
    assert [row["round"] for row in report["rounds"]] == [1, 2, 3]
    for row in report["rounds"]:
        assert row["expected"] == row["admitted"] == 5
        assert row["refused"] == {}
        # What a device sends is what its ciphertexts take and little more.
        assert row["bytes_up_per_device"] > 4 * report["parameters"]
        assert {"train", "encode", "encrypt", "sign", "admit", "aggregate"} == set(row["stages"])
    assert report["final"]["accuracy"] == report["rounds"][-1]["accuracy"]


def test_log_of_a_run_verifies_from_outside(private_run):
    verdict = verify_log(private_run.folder / "log", None)
    report = private_run.report
    assert verdict.size == report["log"]["leaves"]
    # 4 study records; each round a plan, 5 updates, a report, 3 hospitals' words and a model.
    assert verdict.size == 4 + 3 * (1 + 5 + 1 + 3 + 1)


def test_model_file_predicts_as_the_report_says(private_run):
    rows = final_rows(SHIPPED_DATA)
    model = interpreter((private_run.folder / "model.tflite").read_bytes())
    source, sink = model.get_input_details()[0], model.get_output_details()[0]
    predicted = []
    for window in rows.x:
        model.set_tensor(source["index"], window[None])
        model.invoke()
        predicted.append(int(model.get_tensor(sink["index"]).argmax()))
    confusion = metrics.confusion_matrix(rows.y, np.array(predicted), 3)
    assert metrics.accuracy(confusion) == pytest.approx(
        private_run.report["final"]["accuracy"], abs=0.002
    )


def test_no_secret_outlives_a_run(private_run):
    assert not (private_run.folder / "state").exists()
    names = {path.name for path in private_run.folder.rglob("*") if path.is_file()}
    assert not names & {"ring-1.key", "sum.secret", "authority.seed", "aggregator.seed"}


def test_finished_folder_is_not_overwritten(private_run):
    with pytest.raises(ConfigError, match="holds a finished run"):
        run(private_run.folder)


def test_plain_sum_without_privacy_and_with_dropout(tmp_path):
    result = run(
        tmp_path / "out",
        secure_sum="plain",
        unit="none",
        noise="none",
        dropout=0.3,
        min_cohort=2,
        timeout_s=6.0,
    )
    assert result.report["privacy"]["unit"] == "none"
    assert result.report["privacy"]["spent"] == 0
    admitted = [row["admitted"] for row in result.report["rounds"]]
    assert len(admitted) == 3
    assert all(0 <= count <= 5 for count in admitted)
    assert verify_log(result.folder / "log", None).size == result.report["log"]["leaves"]


def test_stopped_run_resumes(tmp_path):
    out = tmp_path / "out"
    config = tmp_path / "study.toml"
    config.write_text(
        "devices = 5\nalone = false\nwindow_s = 0.0\n"
        "[study]\nmin_cohort = 4\nrounds = 25\nlocal_epochs = 0.34\n"
    )
    arguments = [*COMMAND, "--config", str(config), "--out", str(out)]
    # Who started the tests may have asked for Ctrl-C to be ignored, as a shell does for jobs.
    first = subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    assert first.stdout is not None
    for line in first.stdout:
        if line.startswith("round   1/25"):
            break
    first.send_signal(signal.SIGINT)
    rest = first.communicate(timeout=300)[0]
    assert first.returncode == 130, rest
    stopped = json.loads((out / "report.json").read_text())
    assert stopped["status"] == "stopped"
    # The open round too: its devices have paid for it, and may have sent.
    assert stopped["privacy"]["spent"] == audit_log(out, None)[0].so_far

    other = subprocess.run(
        [*arguments, "--epsilon", "4"], capture_output=True, text=True, timeout=300, check=False
    )
    assert other.returncode == 2
    assert "other settings" in other.stderr

    second = subprocess.run(arguments, capture_output=True, text=True, timeout=600, check=True)
    assert "going on" in second.stdout
    finished = json.loads((out / "report.json").read_text())
    assert finished["status"] == "finished"
    assert [row["round"] for row in finished["rounds"]] == list(range(1, 26))
    assert [row["admitted"] for row in finished["rounds"]] == [5] * 25
    verify_log(out / "log", None)


def test_parties_end_when_the_simulation_is_killed(tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*COMMAND, "--out", str(out), "--no-alone", "--rounds", "50"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.wait()
    deadline = time.monotonic() + 120
    while leftovers := _processes_with(str(out)):
        assert time.monotonic() < deadline, leftovers
        time.sleep(0.1)


def _processes_with(text: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in command:
            found.append(command)
    return found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"secure_sum": "two-server", "hospitals": 3}, "gateways of 2 hospitals"),
        ({"secure_sum": "two-server", "threshold": 2}, "gateways of 2 hospitals"),
        ({"secure_sum": "secret"}, "'secret' is not known"),
        ({"noise": "distributed", "secure_sum": "plain"}, "noise distributed protects sums"),
        ({"unit": "none", "noise": "local"}, "noise none"),
        ({"hospitals": 3, "secure_sum": "single-he"}, "threshold-he"),
        ({"hospitals": 3, "threshold": 4}, "4 of 3 hospitals"),
        ({"devices": 23}, "has 22"),
        ({"devices": 3}, "min_cohort"),
        ({"model": "resnet"}, "resnet"),
        ({"epsilon": 0.001, "rounds": 1000}, "epsilon"),
        ({"flavour": 1}, "flavour is no setting"),
    ],
)
def test_impossible_settings_are_refused_by_name(tmp_path, changes, words):
    with pytest.raises((ConfigError, DataError, ModelError), match=words):
        run(tmp_path / "out", **changes)
    assert not (tmp_path / "out" / "report.json").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("devices = -1\n", "devices"),
        ("[study]\nbits = 40\n", "study.bits"),
        ("colour = 1\n", "colour"),
        ("devices = \n", "is not TOML"),
    ],
)
def test_bad_configuration_names_file_and_field(tmp_path, text, words):
    config = tmp_path / "study.toml"
    config.write_text(text)
    done = subprocess.run(
        [*COMMAND, "--config", str(config)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "study.toml" in done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_device_too_large_for_the_guarantee_is_said_before_the_run(tmp_path, monkeypatch):
    # The true limit takes a device of more than a million records.
    monkeypatch.setattr(privacy, "MAX_SAMPLED", 2048)
    x, y = shipped_rows("r101")
    rows = {
        name: (np.concatenate([x] * times), np.concatenate([y] * times))
        for name, times in {"t": 1, "a": 1, "b": 1, "c": 1, "large": 8}.items()
    }
    data = write_part(tmp_path / "data", rows, ("t",))
    with pytest.raises(ConfigError, match=r"2400 records; at a sampling rate of 1, .* batch below"):
        run(tmp_path / "out", data=data, devices=0)
