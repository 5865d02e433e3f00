"""A small data set made of the shipped one, for what trains many times in one test."""

import json

import numpy as np

from vitalring.tools.simulate.layout import SHIPPED_DATA


def shipped_rows(name, every=1):
    """Every so manieth heartbeat of a patient, and its class."""
    with np.load(SHIPPED_DATA / "devices" / f"{name}.npz") as shipped:
        return shipped["x"][::every], shipped["y"][::every]


def write_part(target, rows, test):
    """Write a folder with the shipped data set's description, these rows by device, and these
    devices to test on.
    """
    (target / "devices").mkdir(parents=True, exist_ok=True)
    for name, (x, y) in rows.items():
        np.savez(target / "devices" / f"{name}.npz", x=x, y=y)
    lines = (SHIPPED_DATA / "dataset.toml").read_text().splitlines()
    kept = [line for line in lines if not line.startswith("test_devices")]
    text = "\n".join([*kept, f"test_devices = {json.dumps(list(test))}", ""])
    (target / "dataset.toml").write_text(text)
    return target


def shipped_part(target, train, test, every):
    """Write a folder with every so manieth heartbeat of a few shipped patients."""
    rows = {name: shipped_rows(name, every) for name in (*train, *test)}
    return write_part(target, rows, test)
