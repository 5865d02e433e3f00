"""An honest log and who would forge it, for the tests of the verifier."""

import shutil
from pathlib import Path

import pytest
from verify_fixture import Forger, Honest, build


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("honest")
    federation, parties = build(folder)
    parties.close_databases()
    return Honest(federation, folder / "log")


@pytest.fixture
def log_copy(made, tmp_path):
    return Path(shutil.copytree(made.folder, tmp_path / "log"))


@pytest.fixture
def forger(made):
    return Forger(made)
