"""`vitalring data` as a user runs it."""

import csv
from pathlib import Path

import numpy as np
import pytest

from vitalring.tools.cli import main

SHIPPED = Path(__file__).resolve().parents[2] / "tools" / "datasets" / "mitbih"


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "wards.csv"
    rng = np.random.default_rng(6)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["patient", "ward", "age", "outcome"])
        for i in range(500):
            writer.writerow([i // 3, f"W{i % 4}", rng.integers(20, 90), "yes" if i % 5 else "no"])
    return path


def test_a_table_becomes_a_sound_data_set(table, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["data", "split", str(table), "--out", str(out), "--by", "ward"]
    assert main([*words, "--label", "outcome", "--group", "patient"]) == 0
    assert "PROVENANCE.txt" in capsys.readouterr().out
    assert main(["data", "check", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "5 devices: 500 rows (no 100, yes 400)" in shown
    assert "wards-held-out" in shown
    assert "nothing to complain about" in shown


def test_every_fault_is_printed_and_the_exit_code_is_1(table, tmp_path, capsys):
    out = tmp_path / "out"
    main(["data", "split", str(table), "--out", str(out), "--devices", "3", "--label", "outcome"])
    (out / "devices" / "device-1.csv").write_text("ward\n1,2\n")
    with (out / "devices" / "device-2.csv").open("a") as file:
        file.write("1,W1,40,perhaps\n")
    capsys.readouterr()
    assert main(["data", "check", str(out)]) == 1
    shown = capsys.readouterr().out
    assert "device-1.csv" in shown
    assert "device-2.csv: line" in shown
    assert "'perhaps'" in shown
    assert "cannot be trained on" in shown
    assert main(["data", "check", str(tmp_path / "nothing")]) == 1


def test_the_shipped_set_is_sound_and_grows_to_a_fleet(tmp_path, capsys):
    assert main(["data", "check", str(SHIPPED)]) == 0
    assert "43 devices: 12900 rows (N 9933, S 1017, V 1950)" in capsys.readouterr().out
    out = tmp_path / "fleet"
    words = ["data", "synth", str(SHIPPED), "--out", str(out), "--devices", "50", "--rows", "4"]
    assert main([*words, "--jitter", "0.1"]) == 0
    assert main(["data", "check", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "train: 200 rows on 50 devices" in shown
    assert "test: 6300 rows on 21 devices" in shown


def test_arrays_of_beats_are_imported(tmp_path, capsys):
    rng = np.random.default_rng(1)
    n = 80
    np.savez(
        tmp_path / "beats.npz",
        X=rng.integers(-9, 9, (n, 216)).astype(np.int16),
        y=np.arange(n) % 5,
        record=np.repeat([100, 101], n // 2),
        sample=np.arange(n) * 300,
        rr_prev=np.full(n, 300),
        rr_next=np.full(n, 300),
    )
    words = ["data", "import", str(tmp_path / "beats.npz"), "--as", "arrays"]
    words += ["--out", str(tmp_path / "out"), "--records", "101,100"]
    assert main([*words, "--classes", "5"]) == 0
    assert "2 devices: 80 rows (N 16, S 16, V 16, F 16, Q 16)" in capsys.readouterr().out
    # The folder is in use now.
    assert main(words) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["import", "{table}", "--as", "mitbih", "--out", "{out}", "--drop", "a"], "--drop does"),
        (["import", "{table}", "--as", "hapt", "--out", "{out}"], "archive.ics.uci.edu"),
        (["import", "{out}", "--as", "hapt", "--out", "{out}"], "does not exist"),
        (["split", "{table}", "--out", "{out}", "--by", "ward"], "--label"),
        (["split", "{table}", "--out", "{out}", "--by", "ward", "--group", "x"], "--group is for"),
        (["synth", "{table}", "--out", "{out}", "--devices", "3"], "dataset.toml"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(table, tmp_path, capsys, words, message):
    words = [word.format(table=table, out=tmp_path / "out") for word in words]
    assert main(["data", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()
