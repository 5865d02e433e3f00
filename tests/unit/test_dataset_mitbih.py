"""The shipped ECG data set, and the script that makes it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitalring.models.dataset import devices, load_dataset, load_device

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "tools" / "datasets" / "mitbih"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of the 43 records with 700 beats each, two of every seven S and V, some F."""
    rng = np.random.default_rng(7)
    lines = (ROOT / "tools" / "make_mitbih_subset.py").read_text()
    scope: dict[str, Any] = {"__name__": "subset"}
    exec(compile(lines, "subset", "exec"), scope)
    records = np.repeat(np.array([*scope["DS1"], *scope["DS2"]]), 700)
    n = len(records)
    rr = rng.integers(200, 400, n)
    path = tmp_path_factory.mktemp("source") / "beats.npz"
    np.savez(
        path,
        X=rng.integers(-900, 900, (n, 216)).astype(np.int16),
        y=rng.choice(5, n, p=[0.6, 0.2, 0.1, 0.08, 0.02]).astype(np.uint8),
        record=records,
        sample=np.cumsum(rr),
        rr_prev=np.where(np.arange(n) % 700, rr, -1),
        rr_next=np.roll(rr, -1),
    )
    return path


def make(source: Path, out: Path) -> Path:
    script = ROOT / "tools" / "make_mitbih_subset.py"
    subprocess.run([sys.executable, script, source, out], check=True, capture_output=True)
    return out


def test_shipped_set_is_whole() -> None:
    info = load_dataset(SHIPPED)
    train, held_out = devices(SHIPPED, info)
    assert (len(train), len(held_out)) == (22, 21)
    assert "r201" in train
    assert "r202" not in train + held_out  # the same person as 201
    counts = np.zeros(3, int)
    for name in train + held_out:
        records = load_device(SHIPPED, name, info)
        assert records.x.shape == (300, 216, 4)
        assert np.ptp(records.x[:, :, 1:], axis=1).max() == 0  # constant over the window
        assert 0.3 < np.abs(records.x[:, :, 0]).max() < 12  # millivolts
        assert np.abs(records.x[:, :, 1:]).max() <= 8
        assert records.y[records.y > 0].size <= 200
        counts += np.bincount(records.y, minlength=3)
    assert counts.tolist() == [9933, 1017, 1950]


def test_shipped_set_is_small_and_attributed() -> None:
    size = sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file())
    assert size < 6_000_000
    text = (SHIPPED / "ATTRIBUTION").read_text()
    for word in ("Moody", "PhysioNet", "Open Data Commons Attribution License"):
        assert word in text


def test_making_it_twice_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    first, second = make(source, tmp_path / "a"), make(source, tmp_path / "b")
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(files) == 44
    for name in files:
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert (first / "dataset.toml").read_bytes() == (SHIPPED / "dataset.toml").read_bytes()


def test_the_rule_keeps_rare_beats_and_leaves_out_f_and_q(source: Path, tmp_path: Path) -> None:
    out = make(source, tmp_path / "out")
    info = load_dataset(out)
    with np.load(source) as archive:
        rows = archive["record"] == 101
        labels, beats = archive["y"][rows], archive["X"][rows]
    records = load_device(out, "r101", info)
    kept = np.bincount(records.y, minlength=3)
    have = np.bincount(labels, minlength=5)
    assert kept[1] == min(have[1], 100)
    assert kept[2] == min(have[2], 100)
    assert kept.sum() == 300
    allowed = {row.tobytes() for row in beats[labels < 3]}
    ecg = np.rint(records.x[:, :, 0] / 0.005).astype(np.int16)
    assert all(row.tobytes() in allowed for row in ecg)
