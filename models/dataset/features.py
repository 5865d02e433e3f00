"""What the columns of a table become: the inputs of a network, the same at every site.

A `FeatureSchema` lists the columns in alphabetical order, so the order in a site's file does not
matter. A number is standardised, (x - mean) / std, and clipped to ±`CLIP`. A category is one-hot:
one input for each value that the schema knows, and one for any other. Where a cell is missing, a
number counts as its mean and a category as its mode (paper B, preprocessing).

The schema is public and travels as JSON, in one encoding only. Agreed schemas know the values of
a category by their bucket (see `statistics`), declared ones by their text.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from vitalring.errors import DataError
from vitalring.models.dataset.complaints import Complain, refuse, shown
from vitalring.models.dataset.records import read_only
from vitalring.models.dataset.table import MISSING, Table, number_of
from vitalring.schema import from_plain, to_plain

CLIP = 4.0
"""Standard deviations; a fixed range, because quantised networks need one."""

MAX_COLUMNS = 4096
MAX_CATEGORIES = 4096  # of one column
MAX_BUCKETS = 65_536
MAX_INPUTS = 100_000
MAX_NAME = 200  # characters of a column's name or a category

_BUCKET_LABEL = b"vitalring bucket 1\0"


@dataclass(frozen=True)
class Number:
    """A column of numbers. `std` 0 means that all are equal; the input is then 0."""

    kind: ClassVar[str] = "number"
    column: str
    mean: float
    std: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std >= 0):
            raise DataError(
                f"feature {shown(self.column)}: mean {self.mean} and std {self.std} cannot be; "
                "give finite numbers, std not negative"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The one input's name."""
        return (self.column,)


@dataclass(frozen=True)
class Category:
    """A column whose values are listed; `mode` is one of them, or None for any other."""

    kind: ClassVar[str] = "category"
    column: str
    categories: tuple[str, ...]
    mode: str | None = None

    def __post_init__(self) -> None:
        known = self.categories
        good = 1 <= len(known) <= MAX_CATEGORIES and len(set(known)) == len(known)
        if not good or not all(0 < len(value) <= MAX_NAME for value in known):
            raise DataError(
                f"feature {shown(self.column)}: categories are {shown(known)}; give 1 to "
                f"{MAX_CATEGORIES} different texts of at most {MAX_NAME} characters"
            )
        if self.mode is not None and self.mode not in known:
            raise DataError(
                f"feature {shown(self.column)}: mode {shown(self.mode)} is none of its categories; "
                "name one of them, or leave it out"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The inputs' names, the last one for any other value."""
        return (*(f"{self.column}={value}" for value in self.categories), f"{self.column}=other")


@dataclass(frozen=True)
class Buckets:
    """A column whose values are known by their bucket alone.

    `kept` are the buckets with an input of their own, ascending; `mode` is one of them, or None.
    """

    kind: ClassVar[str] = "buckets"
    column: str
    buckets: int
    kept: tuple[int, ...]
    mode: int | None = None

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in itertools.pairwise(self.kept))
        inside = all(0 <= bucket < self.buckets for bucket in self.kept)
        if not (1 <= self.buckets <= MAX_BUCKETS and ascending and inside):
            raise DataError(
                f"feature {shown(self.column)}: {self.buckets} buckets with inputs for "
                f"{shown(self.kept)} cannot be; agree on the features again"
            )
        if self.mode is not None and self.mode not in self.kept:
            raise DataError(
                f"feature {shown(self.column)}: mode {self.mode} is no bucket with an input; "
                "agree on the features again"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The inputs' names, the last one for any other value."""
        return (*(f"{self.column}#{bucket}" for bucket in self.kept), f"{self.column}=other")


Feature = Number | Category | Buckets
_KINDS: dict[str, type[Feature]] = {kind.kind: kind for kind in (Number, Category, Buckets)}


@dataclass(frozen=True)
class FeatureSchema:
    """The features of a study, sorted by column."""

    features: tuple[Feature, ...]

    def __post_init__(self) -> None:
        columns = self.columns
        if not 1 <= len(columns) <= MAX_COLUMNS:
            raise DataError(
                f"features: there are {len(columns)} columns; give 1 to {MAX_COLUMNS} of them"
            )
        for column in columns:
            if not (0 < len(column) <= MAX_NAME and column.isprintable()):
                raise DataError(
                    f"features: column {shown(column)} needs a name of 1 to {MAX_NAME} printable "
                    "characters"
                )
        if any(a >= b for a, b in itertools.pairwise(columns)):
            raise DataError("features: columns are not in order, each once; sort them by name")
        if self.inputs > MAX_INPUTS:
            raise DataError(
                f"features: {self.inputs} inputs are more than {MAX_INPUTS}; ignore columns with "
                "many different values, or agree with fewer buckets"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a table must have, and no other."""
        return tuple(feature.column for feature in self.features)

    @property
    def inputs(self) -> int:
        """How many numbers a row becomes."""
        return sum(_width(feature) for feature in self.features)

    @property
    def names(self) -> tuple[str, ...]:
        """One name for each input."""
        return tuple(name for feature in self.features for name in feature.names)

    @property
    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of the JSON."""
        return hashlib.sha256(self.to_json()).digest()

    def encode(self, table: Table) -> npt.NDArray[np.float32]:
        """Return a table's rows as inputs (n, inputs), read-only.

        Raises:
            DataError: the table has other columns, or a text where the schema has a number.
        """
        self.fits(table, refuse)
        x = np.zeros((len(table), self.inputs), np.float32)
        start = 0
        for feature in self.features:
            column = table.cells[feature.column]
            if isinstance(feature, Number):
                x[:, start] = _standardised(feature, column.texts)[column.codes]
            else:
                x[np.arange(len(table)), start + _places(feature, column.texts)[column.codes]] = 1
            start += _width(feature)
        return read_only(x)

    def fits(self, table: Table, complain: Complain) -> None:
        """Complain about everything for which `encode` would refuse a table."""
        columns_fit(self.columns, table.file, table.columns, complain)
        for feature in self.features:
            if not isinstance(feature, Number) or feature.column not in table.cells:
                continue
            column = table.cells[feature.column]
            wrong = [
                (code, rows)
                for code, rows in enumerate(column.counts().tolist())
                if rows and column.texts[code] != MISSING and number_of(column.texts[code]) is None
            ]
            if wrong:
                code = wrong[0][0]
                complain(
                    f"{table.file}: line {table.lines[column.first(code)]}: column "
                    f"{shown(feature.column)} holds {shown(column.texts[code])}, but it is a "
                    f"number in this study ({sum(rows for _, rows in wrong)} such cells); correct "
                    "them, or add what marks an unknown cell to missing in dataset.toml"
                )

    def to_json(self) -> bytes:
        """Return the one text that stands for this schema."""
        rows = [{"kind": feature.kind, **to_plain(feature)} for feature in self.features]
        text = json.dumps({"clip": CLIP, "features": rows}, separators=(",", ":"), sort_keys=True)
        return text.encode() + b"\n"

    @classmethod
    def from_json(cls, text: bytes) -> "FeatureSchema":
        """Read what `to_json` wrote, and nothing else.

        Raises:
            DataError: the text is not the one encoding of a valid schema.
        """
        try:
            rows = json.loads(text)["features"]
            schema = cls(tuple(_feature(row) for row in rows))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise DataError(
                f"features: the JSON cannot be read ({type(error).__name__}: {shown(str(error))}); "
                "fetch the study's features again"
            ) from error
        if schema.to_json() != text:
            raise DataError(
                "features: the JSON is not in its one encoding; fetch the study's features again"
            )
        return schema


def buckets_of(column: str, texts: Iterable[str], buckets: int) -> list[int]:
    """Return the bucket in [0, buckets) of each text: SHA-256 of column and text."""
    name = column.encode()
    began = hashlib.sha256(_BUCKET_LABEL + len(name).to_bytes(4, "little") + name)
    found = []
    for text in texts:
        digest = began.copy()
        digest.update(text.encode())
        found.append(int.from_bytes(digest.digest()[:8], "little") % buckets)
    return found


def columns_fit(
    columns: tuple[str, ...], file: str, found: tuple[str, ...], complain: Complain
) -> None:
    """Complain about columns that a file lacks or has beyond those of the study."""
    for name in sorted(set(columns) - set(found)):
        complain(
            f"{file}: line 1: column {shown(name)} is missing, but this study has it; add it, its "
            "cells empty where nothing is known"
        )
    for name in sorted(set(found) - set(columns)):
        complain(
            f"{file}: line 1: column {shown(name)} is none of this study's; remove it, or add it "
            "to ignore in dataset.toml"
        )


def _standardised(feature: Number, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Return the input of each text; a missing cell's is the mean's, 0."""
    if feature.std == 0:
        return np.zeros(len(texts), np.float32)
    values = [number_of(text) for text in texts]
    x = np.array([feature.mean if value is None else value for value in values], np.float64)
    return np.clip((x - feature.mean) / feature.std, -CLIP, CLIP).astype(np.float32)


def _places(feature: Category | Buckets, texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the input of each text among a category's, the last one for any other value."""
    values: Sequence[Any] = feature.kept if isinstance(feature, Buckets) else feature.categories
    keys: Iterable[Any] = texts
    if isinstance(feature, Buckets):
        keys = buckets_of(feature.column, texts, feature.buckets)
    known = {value: place for place, value in enumerate(values)}
    other = len(known)
    mode = other if feature.mode is None else known[feature.mode]
    found = [known.get(key, other) for key in keys]
    return np.array(
        [mode if text == MISSING else place for text, place in zip(texts, found, strict=True)],
        np.int64,
    )


def _width(feature: Feature) -> int:
    match feature:
        case Number():
            return 1
        case Category():
            return len(feature.categories) + 1
        case Buckets():
            return len(feature.kept) + 1


def _feature(row: dict[str, Any]) -> Feature:
    fields = dict(row)
    kind = fields.pop("kind")
    if kind not in _KINDS:
        raise DataError(f"features: kind {shown(kind)} is not known; update this installation")
    return from_plain(_KINDS[kind], fields, DataError, "features")
