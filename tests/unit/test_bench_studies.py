"""A page over finished simulations says what their reports say."""

import json

from vitalring.tools.cli import main

SCORE = {"value": 0.9, "low": 0.8, "high": 0.95}
SCORES = {
    "accuracy": SCORE,
    "macro_f1": SCORE,
    "auroc": None,
    "recall": {"N": SCORE, "V": SCORE},
    "precision": {"N": SCORE, "V": SCORE},
    "classes": {"N": {"rows": 1234, "devices": 3}, "V": {"rows": 5, "devices": 2}},
    "loss": 0.3,
}
REPORT = {
    "dataset": "beats",
    "model": "ecg_cnn",
    "parameters": 4096,
    "devices": 3,
    "secure_sum": "single-he",
    "privacy": {"unit": "none"},
    "seconds": 12.0,
    "started": "2026-01-02T03:04:05Z",
    "version": "0.1.0",
    "status": "finished",
    "rounds": [{}, {}],
    "bytes": {"update": 19514},
    "test": SCORES,
}


def _run(folder, **changes):
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps({**REPORT, **changes}))
    return str(folder)


def test_the_page_holds_both_sides(tmp_path):
    runs = [
        _run(tmp_path / "a"),
        _run(
            tmp_path / "b",
            dataset="wards",
            centralised={**SCORES, "macro_f1": {**SCORE, "value": 0.97}},
        ),
    ]
    assert main(["bench", "studies", *runs, "--out", str(tmp_path)]) == 0
    page = (tmp_path / "studies.md").read_text()
    assert "| beats | ecg_cnn | 4,096 | 3 | 2 | 19,514 |" in page
    assert "| beats | federated | 0.900 (0.800–0.950) | 0.900 (0.800–0.950) | – |" in page
    assert "| wards | centralised | 0.900 (0.800–0.950) | 0.970 (0.800–0.950) | – |" in page
    assert "| beats | centralised" not in page
    assert "| N | 1,234 | 3 |" in page
    assert str(tmp_path) not in page


def test_a_stopped_run_is_refused(tmp_path, capsys):
    assert main(["bench", "studies", _run(tmp_path / "a", status="stopped")]) != 0
    assert "is no finished simulation" in capsys.readouterr().err
