"""`vitalring verify` on a run's folder: what it says, and what it refuses."""

import argparse
from dataclasses import replace

import pytest
from federation_fixture import FOLLOWING
from verify_fixture import ROUNDS, build

from vitalring.tools import verify


def arguments(*words):
    parser = argparse.ArgumentParser()
    verify.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


@pytest.fixture
def run_folder(log_copy):
    return log_copy.parent


def final_weights(folder):
    verdict = verify.verify_log(folder, None)
    return (folder / "objects" / verdict.final_weights.hex()).read_bytes()


def test_a_runs_folder_is_checked_with_its_weights(run_folder, capsys):
    content = final_weights(run_folder / "log")
    assert any("weights.bin" in text for text in verify.verify_folder(run_folder, None).findings)
    (run_folder / "weights.bin").write_bytes(content)
    assert verify.run(arguments(run_folder)) == 0
    (run_folder / "weights.bin").write_bytes(content[:-1] + b"\x00")
    assert verify.run(arguments(run_folder)) == 1
    assert "weights.bin" in capsys.readouterr().err


def test_the_command_says_which_key_it_believed(made, capsys):
    assert verify.run(arguments(made.folder)) == 0
    said = capsys.readouterr().out
    assert verify.fingerprint(made.federation.authority_key) in said
    assert "compare its fingerprint" in said
    key = made.federation.authority_key.hex()
    assert verify.run(arguments(made.folder, "--authority", key)) == 0
    said = capsys.readouterr().out
    assert "compare its fingerprint" not in said
    assert "14 updates" in said


def test_the_command_tells_of_class_schedule_and_clip(tmp_path, capsys):
    changing = replace(FOLLOWING["privacy"], schedule=(1.1, 0.9))
    options = {**FOLLOWING, "privacy": changing, "data_class": "heart-rhythm"}
    _, parties = build(tmp_path, rounds=ROUNDS[:1], secure_sum="single-he", **options)
    parties.close_databases()
    assert verify.run(arguments(tmp_path / "log")) == 0
    said = capsys.readouterr().out
    assert "  data         heart-rhythm\n" in said
    assert ", noise times 1.1 in rounds 1 to 20, 0.9 in rounds 21 to 40\n" in said
    assert "  clip         update_clip follows the 0.5 quantile from 1 on, at rate 0.2; its" in said


def test_the_command_names_a_fault_in_one_line(run_folder, capsys):
    (run_folder / "log" / "checkpoint").write_bytes(b"\x1b[2J\n\nnothing")
    assert verify.run(arguments(run_folder)) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "log/checkpoint: " in said
    assert "\x1b" not in said


@pytest.mark.parametrize("name", ["\x1b[2J", "two\nlines"])
def test_a_file_name_cannot_write_to_the_terminal(log_copy, capsys, name):
    (log_copy / name).write_bytes(b"")
    assert verify.run(arguments(log_copy)) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "\x1b" not in said


@pytest.mark.parametrize("what", ["nothing", "file", "empty"])
def test_a_folder_that_is_no_log(tmp_path, capsys, what):
    path = tmp_path / "here"
    if what == "file":
        path.write_bytes(b"")
    elif what == "empty":
        path.mkdir()
    assert verify.run(arguments(path)) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("key", ["", "ab", "AB" * 32, "g" * 64, "ab" * 33])
def test_an_authority_key_that_is_none(key):
    with pytest.raises(SystemExit):
        arguments("folder", "--authority", key)
