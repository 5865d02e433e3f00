"""`vitalring federation`: make keys, roster and plan for a study."""

import argparse
from pathlib import Path

from vitalring.config import load_config
from vitalring.models.artefact import load_artefact
from vitalring.tools import federation
from vitalring.tools.settings import StudySettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    actions = parser.add_subparsers(dest="action", required=True)
    make = actions.add_parser("init", help="write a new federation with one hospital")
    make.add_argument("folder", type=Path, help="a new folder")
    make.add_argument("--config", type=Path, required=True, help="study.toml")
    make.add_argument("--devices", type=int, required=True, help="how many devices to enrol")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    settings = load_config(StudySettings, options.config)
    artefact = load_artefact(settings.model)
    plan = federation.plan_of(
        settings, artefact, artefact.info.classes, options.devices, settings.records
    )
    width = len(str(options.devices))
    names = [f"device-{number:0{width}}" for number in range(1, options.devices + 1)]
    keys = [
        federation.enrol(options.folder / "devices" / name / "ring.key", settings) for name in names
    ]
    made = federation.init(options.folder, settings, artefact, plan, keys)
    for line in federation.describe(made):
        print(line)
    return 0
