"""`dataset.toml`: what a data set says about itself."""

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitalring.errors import DataError
from vitalring.models.dataset.complaints import Complain, refuse, shown, strictly
from vitalring.models.dataset.features import Category, Feature, FeatureSchema, Number

MAX_CLASSES = 1000
MAX_TEXT = 200  # characters of a name
DATA_CLASS = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
DEVICE_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")

_COMMON = {
    "name",
    "data_class",
    "kind",
    "classes",
    "scale",
    "test_devices",
    "test_fraction",
    "validation_devices",
    "validation_fraction",
}
_OWN = {
    "windows": {"sampling_hz", "channels", "units"},
    "tabular": {"label", "missing", "ignore", "group", "categories", "features", "inputs"},
}


@dataclass(frozen=True)
class DatasetInfo:
    """What `dataset.toml` says. Exactly one of `test_devices` and `test_fraction` is set.

    `test_devices` is empty where a folder serves devices that train and nobody who evaluates.

    `scale` has one factor for each channel of x, or is None when x is used as it is.
    `sampling_hz` is 0 where x is no signal. `channels` and `units` say what the channels of windows
    are called and in what they are measured after `scale`, `inputs` what the inputs of rows of
    numbers are called; they are for people's eyes, and empty where nobody said. For tables:
    `label` names the label's column, `missing` the texts of an unknown cell (an empty one always
    is), `ignore` columns that are no features, `group` the column whose equal rows stay together
    in a split, `categories` columns whose numbers are codes, and `features` what was declared, or
    None where the sites agree. `data_class` is the kind of data that the records are, such as
    heart-rhythm, for limits of privacy by kind; "" where nobody said.
    """

    name: str
    kind: str
    classes: tuple[str, ...]
    sampling_hz: float
    test_devices: tuple[str, ...] | None
    test_fraction: float | None
    scale: tuple[float, ...] | None
    validation_devices: tuple[str, ...] = ()
    validation_fraction: float = 0.0
    label: str | None = None
    missing: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    group: str | None = None
    categories: tuple[str, ...] = ()
    features: FeatureSchema | None = None
    channels: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    data_class: str = ""


def load_dataset(folder: Path) -> DatasetInfo:
    """Read and check `folder/dataset.toml`.

    Raises:
        DataError: the folder or file is missing, is not TOML, or holds a wrong or unknown key.
    """
    return strictly(read_info(folder, refuse))


def read_info(folder: Path, complain: Complain) -> DatasetInfo | None:
    """Read `folder/dataset.toml`, as `load_dataset` does."""
    path = folder / "dataset.toml"
    try:
        table = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        complain(
            f"{path}: cannot be read ({error.strerror}); a data set is a folder with "
            "dataset.toml and one file for each device under devices/"
        )
        return None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        complain(f"{path}: is not TOML: {error}")
        return None
    return _Reader(path, table, complain).info()


class _Reader:
    """Checks the keys of one file, one by one, and remembers whether all were right."""

    def __init__(self, path: Path, table: Mapping[str, Any], complain: Complain) -> None:
        self._path = path
        self._table = table
        self._complain = complain
        self._sound = True

    def info(self) -> DatasetInfo | None:
        # 1. The kind decides which other keys there may be.
        kind = self._table.get("kind")
        if kind not in ("windows", "tabular"):
            self._wrong("kind", 'write kind = "windows" or kind = "tabular"')
            return None
        # 2. No key is ignored: a misspelt one would silently change the study.
        self._known_keys(kind)
        # 3. Every key by itself, and those that depend on one another.
        info = DatasetInfo(
            name=self._name(),
            kind=kind,
            classes=self._classes(),
            sampling_hz=self._rate() if kind == "windows" else 0.0,
            test_devices=self._devices("test_devices", none=True),
            test_fraction=self._fraction("test_fraction"),
            scale=self._scale(),
            validation_devices=self._devices("validation_devices") or (),
            validation_fraction=self._fraction("validation_fraction") or 0.0,
            label=self._column("label"),
            missing=self._texts("missing", 'write the texts of unknown cells: missing = ["?"]'),
            ignore=self._texts("ignore", 'write columns that are no features: ignore = ["id"]'),
            group=self._column("group"),
            categories=self._texts(
                "categories", 'write columns whose numbers are codes: categories = ["unit_id"]'
            ),
            features=self._features(),
            channels=self._names("channels", 'channels = ["ECG", "respiration"]'),
            units=self._units(),
            inputs=self._names("inputs", 'inputs = ["age", "weight"]'),
            data_class=self._data_class(),
        )
        self._held_out(info)
        self._units_fit(info)
        self._columns_apart(info)
        return info if self._sound else None

    def _say(self, message: str) -> None:
        self._sound = False
        self._complain(f"{self._path}: {message}")

    def _wrong(self, key: str, cure: str) -> None:
        self._say(f"{key} is {shown(self._table.get(key))}; {cure}")

    def _known_keys(self, kind: str) -> None:
        allowed = _COMMON | _OWN[kind]
        other = "tabular" if kind == "windows" else "windows"
        for key in sorted(set(self._table) - allowed):
            hint = f" (it belongs to {other} data)" if key in _OWN[other] else ""
            self._say(f"unknown key {shown(key)}{hint}; allowed: {', '.join(sorted(allowed))}")

    def _name(self) -> str:
        name = self._table.get("name")
        if isinstance(name, str) and 0 < len(name) <= 100 and name.isprintable():
            return name
        self._wrong("name", 'write name = "..." of 1 to 100 characters')
        return ""

    def _data_class(self) -> str:
        name = self._table.get("data_class", "")
        if isinstance(name, str) and (not name or DATA_CLASS.fullmatch(name)):
            return name
        self._wrong(
            "data_class",
            'write up to 32 of a-z, 0-9 and hyphen, such as data_class = "heart-rhythm"',
        )
        return ""

    def _classes(self) -> tuple[str, ...]:
        names = self._table.get("classes")
        if (
            isinstance(names, list)
            and all(isinstance(name, str) and 0 < len(name) <= MAX_TEXT for name in names)
            and len(set(names)) == len(names)
            and 2 <= len(names) <= MAX_CLASSES
        ):
            return tuple(names)
        self._wrong(
            "classes",
            f'write 2 to {MAX_CLASSES} different names, such as classes = ["N", "S", "V"]',
        )
        return ()

    def _rate(self) -> float:
        rate = _number(self._table.get("sampling_hz"))
        if rate is not None and rate > 0:
            return rate
        self._wrong("sampling_hz", "write the rate in samples a second, such as sampling_hz = 360")
        return 0.0

    def _devices(self, key: str, *, none: bool = False) -> tuple[str, ...] | None:
        names = self._table.get(key)
        if names is None:
            return None
        if (
            isinstance(names, list)
            and (names or none)
            and all(isinstance(name, str) and DEVICE_ID.fullmatch(name) for name in names)
            and len(set(names)) == len(names)
        ):
            return tuple(names)
        hint = ", or [] where nothing is tested on" if none else ""
        self._wrong(key, f'write different device ids, such as ["r100"]{hint}')
        return ()

    def _fraction(self, key: str) -> float | None:
        value = self._table.get(key)
        share = _number(value)
        if value is None or (share is not None and 0 < share < 1):
            return share
        self._wrong(key, "write a number in (0, 1)")
        return 0.0

    def _scale(self) -> tuple[float, ...] | None:
        scale = self._table.get("scale")
        if scale is None:
            return None
        factors = [_number(factor) for factor in scale] if isinstance(scale, list) else []
        checked = tuple(factor for factor in factors if factor)
        if not factors or len(checked) != len(factors):
            self._wrong("scale", "write one factor other than 0 for each channel of x")
        return checked

    def _column(self, key: str) -> str | None:
        name = self._table.get(key)
        if name is None or (isinstance(name, str) and _is_name(name)):
            return name
        self._wrong(key, f'write the name of a column of the csv files, such as {key} = "{key}"')
        return None

    def _texts(self, key: str, cure: str) -> tuple[str, ...]:
        texts = self._table.get(key, [])
        if (
            isinstance(texts, list)
            and all(isinstance(text, str) and len(text) <= MAX_TEXT for text in texts)
            and len(set(texts)) == len(texts)
        ):
            return tuple(texts)
        self._wrong(key, cure)
        return ()

    def _names(self, key: str, example: str) -> tuple[str, ...]:
        names = self._table.get(key)
        if names is None:
            return ()
        if (
            isinstance(names, list)
            and names
            and all(isinstance(name, str) and _is_name(name) for name in names)
            and len(set(names)) == len(names)
        ):
            return tuple(names)
        self._wrong(key, f"write different names, one for each of x's, such as {example}")
        return ()

    def _units(self) -> tuple[str, ...]:
        units = self._table.get("units", [])
        if isinstance(units, list) and all(
            isinstance(unit, str) and (not unit or _is_name(unit)) for unit in units
        ):
            return tuple(units)
        self._wrong("units", 'write one text for each channel, "" without one: units = ["mV", ""]')
        return ()

    def _units_fit(self, info: DatasetInfo) -> None:
        if self._table.get("channels") is not None and not info.channels:
            return  # complained of already
        if info.units and len(info.units) != len(info.channels):
            self._say(
                f"units has {len(info.units)} texts, channels has {len(info.channels)}; give one "
                'unit for each channel that is named, "" where it has none'
            )

    def _features(self) -> FeatureSchema | None:
        table = self._table.get("features")
        if table is None:
            return None
        if not isinstance(table, dict) or not table:
            self._wrong("features", "write a table with one line for each column")
            return None
        found = [self._feature(column, table[column]) for column in sorted(table)]
        try:
            return FeatureSchema(tuple(feature for feature in found if feature is not None))
        except DataError as error:
            self._say(str(error))
            return None

    def _feature(self, column: str, declared: object) -> Feature | None:
        keys = set(declared) if isinstance(declared, dict) else set()
        if isinstance(declared, dict) and keys == {"mean", "std"}:
            mean, std = _number(declared["mean"]), _number(declared["std"])
            if mean is not None and std is not None and std > 0:
                return Number(column, mean, std)
        if isinstance(declared, dict) and {"categories"} <= keys <= {"categories", "mode"}:
            values, mode = declared["categories"], declared.get("mode")
            texts: list[Any] = values if isinstance(values, list) else [None]
            if all(isinstance(v, str) for v in texts) and isinstance(mode, str | None):
                try:
                    return Category(column, tuple(texts), mode)
                except DataError as error:
                    self._say(str(error))
                    return None
        self._say(
            f"features: {shown(column)} is {shown(declared)}; write {{mean = 62, std = 15}} for a "
            'number, std above 0, or {categories = ["a", "b"], mode = "a"} for a category'
        )
        return None

    def _held_out(self, info: DatasetInfo) -> None:
        """Check that what is held out is said once, and leaves something to train on."""
        whole, fraction = (key in self._table for key in ("test_devices", "test_fraction"))
        if whole == fraction:
            self._say(
                "write either test_devices (whole devices held out) or test_fraction "
                f"(rows held out on each device), not {'both' if whole else 'neither'}"
            )
        if info.validation_devices and info.validation_fraction:
            self._say("write either validation_devices or validation_fraction, not both")
        both = sorted(set(info.validation_devices) & set(info.test_devices or ()))
        if both:
            self._say(f"device {both[0]!r} is in test_devices and validation_devices; keep one")
        if (info.test_fraction or 0.0) + info.validation_fraction >= 1:
            self._say(
                f"test_fraction {info.test_fraction} and validation_fraction "
                f"{info.validation_fraction} leave nothing to train on; together below 1"
            )

    def _columns_apart(self, info: DatasetInfo) -> None:
        """Check that a column has one part to play."""
        roles = {"label": info.label, "group": info.group}
        features = info.features.columns if info.features else ()
        for role, column in roles.items():
            if column is None:
                continue
            if column in info.ignore:
                self._say(f"{role} {shown(column)} is in ignore too; take it out there")
            if column in features:
                self._say(f"{role} {shown(column)} is among the features; take it out there")
        if info.label is not None and info.label == info.group:
            self._say(f"label and group are both {shown(info.label)}; they are different columns")
        if info.features and info.categories:
            self._say("features declares every column, so categories has no use; remove it")
        for column in sorted(set(info.categories) & set(info.ignore)):
            self._say(f"column {shown(column)} is in ignore and in categories; keep it in one")
        for column in sorted(set(features) & set(info.ignore)):
            self._say(f"column {shown(column)} is in ignore and in features; keep it in one")


def _is_name(name: str) -> bool:
    return 0 < len(name) <= MAX_TEXT and name.isprintable()


def _number(value: object) -> float | None:
    """Return a finite TOML number as a float, and None for anything else, booleans included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number + 0.0 if math.isfinite(number) else None
