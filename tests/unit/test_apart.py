"""A function in a process of its own: what comes back, and what is said when nothing does."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from vitalring.errors import DataError
from vitalring.tools.simulate.apart import ApartError, run_apart


def doubled(values, progress):
    sys.stderr.write("hear me")
    progress(0.5)
    return 2 * values, os.getpid()


def refused(_progress):
    raise DataError("no such row")


def killed(_progress):
    os.write(2, b"last words\n")
    os.kill(os.getpid(), 9)


def test_a_result_comes_back_with_its_progress_and_what_is_printed_goes_to_a_file(tmp_path):
    shares = []
    found, pid = run_apart(doubled, (np.ones(1_000_000),), tmp_path / "log", shares.append)
    assert found.sum() == 2_000_000
    assert pid != os.getpid()
    assert shares == [0.5]
    assert "hear me" in (tmp_path / "log").read_text()


def test_errors_of_ours_come_back_as_they_are(tmp_path):
    with pytest.raises(DataError, match="no such row"):
        run_apart(refused, (), tmp_path / "log")


def test_a_process_that_dies_names_its_log(tmp_path):
    with pytest.raises(ApartError, match=rf"killed ended with code -9: see {tmp_path}/log"):
        run_apart(killed, (), tmp_path / "log")
    assert (tmp_path / "log").read_text() == "last words\n"


@pytest.mark.parametrize(
    "start", ['run_apart(print, (b"x" * 10_000_000,), log)', "list(train_alone([], 1, log))"]
)
def test_a_script_that_is_not_guarded_is_told_and_does_not_hang(tmp_path, start):
    """The new process imports the script, which starts another one: Python refuses that."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            from pathlib import Path
            from vitalring.tools.simulate.alone import train_alone
            from vitalring.tools.simulate.apart import run_apart
            log = Path({str(tmp_path)!r}) / "log"
            {start}
            """
        )
    )
    ended = subprocess.run(
        [sys.executable, str(script)], check=False, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert 'keep what starts it behind if __name__ == "__main__":' in ended.stderr
