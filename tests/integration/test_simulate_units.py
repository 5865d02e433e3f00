"""Each unit and place of the noise through a whole federation: plan, devices, sum, model, log."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import vitalring
from vitalring.errors import ConfigError
from vitalring.models.artefact import initial_weights, load_artefact
from vitalring.protocol.weights import unpack_weights
from vitalring.tools.cli import main
from vitalring.tools.commands.simulate import summary
from vitalring.tools.plans import MIN_COHORT
from vitalring.tools.simulate.api import Simulation
from vitalring.tools.verify import verify_log

SMALL = {"devices": 6, "alone": False, "window_s": 0.0, "model": "ecg_cnn"}


def run(out: Path, **changes: object) -> Simulation:
    quiet = Console(file=(out.parent / "printed.txt").open("w"))
    return vitalring.simulate(console=quiet, out=out, **{**SMALL, **changes})


def moved(result: Simulation) -> np.ndarray:
    """Return how far the run moved the weights (d,), from where it began."""
    artefact = load_artefact("ecg_cnn")
    seed = hashlib.sha256(b"vitalring/initial-weights/1\x00" + bytes(8)).digest()
    final = unpack_weights((result.folder / "weights.bin").read_bytes(), artefact.info.dimension)
    return final.astype(np.float64) - initial_weights(artefact, seed)


@pytest.mark.parametrize(
    ("unit", "noise", "epsilon", "lr", "shares"),
    [
        # Of a sum of gradients a small epsilon drowns what it says, of an update the smallest rate.
        ("record", "distributed", 0.01, 0.5, 5),
        ("device", "distributed", 4.0, 1e-6, 5),
        ("device", "local", 4.0, 1e-6, 1),
    ],
)
def test_a_round_that_learns_nothing_moves_the_model_by_its_noise(
    tmp_path, unit, noise, epsilon, lr, shares
):
    """What moves the model is as much noise as the plan claims."""
    result = run(
        tmp_path / "out",
        unit=unit,
        noise=noise,
        rounds=1,
        epsilon=epsilon,
        lr=lr,
        min_cohort=6,
    )
    report = result.report
    privacy = report["privacy"]
    assert (privacy["unit"], privacy["noise"]) == (unit, noise)
    assert privacy["colluders"] == (1 if noise == "distributed" else 0)
    assert 0.99 * epsilon < privacy["spent"] <= privacy["epsilon"] == epsilon
    assert report["rounds"][0]["admitted"] == 6
    # Six devices add their noise, and the mean is over six.
    clip = report["training"]["update_clip"]
    if unit == "record":
        clip = privacy["clip"] * lr / report["training"]["batch"]
    expected = privacy["noise_multiplier"] * clip * np.sqrt(6 / shares) / 6
    assert np.std(moved(result)) == pytest.approx(expected, rel=0.06)
    # Whom it protects closes the run's output, and the log says the same from outside.
    line = next(line for line in summary(result) if line.startswith("privacy"))
    shown = f"unit {unit}, noise {noise}, epsilon {epsilon:.2f} of {epsilon:g} at delta 1e-05"
    assert shown in line
    verdict = verify_log(result.folder / "log", None)
    assert (verdict.plan.privacy.unit, verdict.plan.privacy.noise) == (unit, noise)
    assert verdict.epsilon <= epsilon


def test_a_schedule_through_a_whole_federation(tmp_path, capsys):
    """Three rounds in two stretches: plan, devices, log and report say the same of them."""
    result = run(
        tmp_path / "out",
        unit="device",
        noise="distributed",
        rounds=3,
        epsilon=4.0,
        lr=1e-6,
        min_cohort=6,
        noise_schedule=(3.0, 1.0),
    )
    privacy = result.report["privacy"]
    assert privacy["schedule"] == [3.0, 1.0]
    assert 0.99 * 4.0 < privacy["spent"] <= 4.0
    assert [row["admitted"] for row in result.report["rounds"]] == [6, 6, 6]
    # Nothing is learnt, so the model moves by the noise of three rounds: two loud ones, one not.
    # The server's momentum counts round 1 as 1 + 0.9 + 0.81, round 2 as 1 + 0.9, round 3 as 1.
    clip, sigma = result.report["training"]["update_clip"], privacy["noise_multiplier"]
    each = sigma * clip * np.sqrt(6 / 5) / 6
    expected = each * np.sqrt((3 * 2.71) ** 2 + (3 * 1.9) ** 2 + 1)
    assert np.std(moved(result)) == pytest.approx(expected, rel=0.06)
    # The same from outside.
    verdict = verify_log(result.folder / "log", None)
    assert verdict.epsilon == pytest.approx(privacy["spent"])
    assert main(["verify", str(result.folder)]) == 0
    said = capsys.readouterr().out
    assert "noise times 3 in rounds 1 to 2, 1 in rounds 3 to 3" in said
    assert "  data         heart-rhythm\n" in said
    assert main(["privacy", "audit", str(result.folder)]) == 0
    said = capsys.readouterr().out
    assert "study arrhythmia about heart-rhythm: 3 of 3 rounds in the log" in said
    assert "  1 to 2      1 release with noise of" in said
    assert "  3 to 3      1 release with noise of" in said
    assert "Every claim holds." in said


def test_a_study_of_another_class_than_the_data_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"study\.data_class is step-count, .* says heart-rhythm"):
        run(tmp_path / "out", data_class="step-count")
    assert not (tmp_path / "out").exists()


def test_a_sum_of_gradients_learns_through_dropouts(tmp_path):
    """With room for devices that sit out, rounds go on, and the model gets better.

    Five of 14 are too many, with a chance of 4 in 10,000; it learns with two sums of the four.
    """
    result = run(
        tmp_path / "out",
        devices=14,
        noise="distributed",
        rounds=4,
        epsilon=8.0,
        dropout=0.05,
        timeout_s=12.0,
    )
    rows = result.report["rounds"]
    assert len(rows) == 4
    assert all(row["status"] == "summed" for row in rows if row["admitted"] >= MIN_COHORT)
    assert any(row["status"] == "summed" for row in rows)
    assert min(row["loss"] for row in rows) < 0.8 * np.log(3)
    assert (result.folder / "report.html").read_text().count("distributed")


def test_distributed_noise_with_a_sum_in_clear_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="secure_sum plain shows every update"):
        run(tmp_path / "out", noise="distributed", secure_sum="plain")
    assert not (tmp_path / "out").exists()
