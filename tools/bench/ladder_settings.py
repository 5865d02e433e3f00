"""What `vitalring bench utility` runs: a study, and steps that change it, as one TOML file says.

A step changes the study that the steps before it have made. One `beside` them shows another way:
it changes the same study, and the next step does not build on it.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

from vitalring.config import load_config
from vitalring.errors import ConfigError
from vitalring.schema import OneOf, Range, Size
from vitalring.tools.settings import StudySettings


@dataclass(frozen=True)
class _Step:
    name: Annotated[str, Size(1, 100)]
    study: StudySettings = field(default_factory=StudySettings)
    beside: bool = False
    seeds: Annotated[int, Range(0, 100)] = 0


@dataclass(frozen=True)
class _File:
    """`seeds` of a step are the most that it takes, 0 is as many as are asked for."""

    study: StudySettings
    steps: Annotated[tuple[_Step, ...], Size(1, 100)]
    metric: Annotated[str, OneOf(("accuracy", "macro_f1", "auroc"))] = "accuracy"
    folds: Annotated[int, Range(2, 20)] = 3


@dataclass(frozen=True)
class Step:
    """A study to run. `changes` are what makes it of step number `on`; the first is on none."""

    name: str
    study: StudySettings
    changes: Mapping[str, Any]
    on: int | None
    beside: bool
    seeds: int


@dataclass(frozen=True)
class Ladder:
    """Steps to measure by `metric`, on people held back in `folds` turns."""

    metric: str
    folds: int
    steps: tuple[Step, ...]


def load_ladder(path: Path) -> Ladder:
    """Read the file. Raises ConfigError, which names the file and the field."""
    file = load_config(_File, path)
    # What a step says has been checked; which of the settings it says, the text alone tells.
    tables = tomllib.loads(path.read_text(encoding="utf-8"))["steps"]
    names = [step.name for step in file.steps]
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: two steps have one name; give each its own")
    if file.steps[0].beside:
        raise ConfigError(f"{path}: the first step has none to be beside")
    study, last, steps = file.study, None, list[Step]()
    for number, (step, table) in enumerate(zip(file.steps, tables, strict=True)):
        said = table.get("study", {})
        changes = {
            each.name: getattr(step.study, each.name)
            for each in fields(StudySettings)
            if each.name in said
        }
        changed = replace(study, **changes)
        steps.append(Step(step.name, changed, changes, last, step.beside, step.seeds))
        _check(path, step.name, changed, file.study)
        if not step.beside:
            study, last = changed, number
    return Ladder(file.metric, file.folds, tuple(steps))


def _check(path: Path, name: str, study: StudySettings, first: StudySettings) -> None:
    """Refuse a step that cannot stand beside the others."""
    if study.unit != "record":
        raise ConfigError(f"{path}: step {name!r} has unit {study.unit}: a ladder is for records")
    for field_name in ("epsilon", "delta"):
        if getattr(study, field_name) != getattr(first, field_name):
            raise ConfigError(
                f"{path}: step {name!r} has another {field_name}: all steps keep the first study's"
            )
