"""What all tests share: helpers' import path, and tests that need something not given here.

Such tests are left out, and the end of the run says so in words that cannot be missed.
"""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent / "integration"))

from mosquitto_fixture import mosquitto, mosquitto_program, own_mosquitto

# How long an example takes says more of the machine and its load than of the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

__all__ = ["mosquitto", "own_mosquitto"]


def _names_file(variable, *inside):
    """Tell whether an environment variable names a file, or a folder with one inside."""
    named = os.environ.get(variable)
    return bool(named) and Path(named, *inside).is_file()


NEEDS = {
    "mosquitto": (
        lambda: mosquitto_program() is not None,
        "the Mosquitto broker is not installed (apt-get install mosquitto)",
    ),
    "tensorflow": (
        lambda: importlib.util.find_spec("tensorflow") is not None,
        "this environment has no TensorFlow (pip install 'vitalring[models]')",
    ),
    "hapt": (
        lambda: _names_file("VITALRING_HAPT"),
        "VITALRING_HAPT names no .npz of HAPT's raw recordings (CONTRIBUTING.md)",
    ),
    "har": (
        lambda: _names_file("VITALRING_HAR", "raw_windows_int16.npz"),
        "VITALRING_HAR names no folder with raw_windows_int16.npz (CONTRIBUTING.md)",
    ),
    "long": (
        lambda: bool(os.environ.get("VITALRING_LONG")),
        "they take minutes rather than seconds (make long-test)",
    ),
}
LEFT_OUT = pytest.StashKey[dict[str, list[str]]]()


def pytest_collection_modifyitems(config, items):
    left_out = config.stash[LEFT_OUT] = {}
    missing = {name: why for name, (present, why) in NEEDS.items() if not present()}
    for item in items:
        for name, why in missing.items():
            if item.get_closest_marker(name) is not None:
                item.add_marker(pytest.mark.skip(reason=f"LEFT OUT: {why}"))
                left_out.setdefault(name, []).append(item.nodeid)


def pytest_terminal_summary(terminalreporter, config):
    for name, tests in config.stash.get(LEFT_OUT, {}).items():
        terminalreporter.section("TESTS LEFT OUT", sep="!", red=True, bold=True)
        terminalreporter.line(f"{len(tests)} tests did not run: {NEEDS[name][1]}")
        for nodeid in tests:
            terminalreporter.line(f"  {nodeid}")


@pytest.fixture
def report(capsys):
    """Print past pytest's capture, so that the seed is there when a run hangs."""

    def say(text):
        with capsys.disabled():
            print(f"\n  {text}")  # noqa: T201

    return say
