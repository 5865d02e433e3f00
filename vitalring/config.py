"""A role's configuration: one frozen dataclass, one TOML file, checked once."""

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from vitalring.errors import ConfigError
from vitalring.schema import from_plain

T = TypeVar("T")


def load_config(cls: type[T], path: Path) -> T:
    """Read `path` as a `cls`. Relative paths in it are relative to the file's folder.

    Raises ConfigError, which names the file and the field.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    # ValueError: not TOML, not UTF-8, or an integer of too many digits.
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    try:
        config = from_plain(cls, table, ConfigError)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    resolved: T = _resolve(config, path.parent.absolute())
    return resolved


def _resolve(value: Any, folder: Path) -> Any:  # noqa: ANN401
    if isinstance(value, Path):
        return folder / value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {
            f.name: _resolve(getattr(value, f.name), folder)
            for f in dataclasses.fields(value)
            if f.init
        }
        return dataclasses.replace(value, **changed)
    if isinstance(value, Mapping):
        return {key: _resolve(item, folder) for key, item in value.items()}
    return value
