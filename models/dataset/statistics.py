"""How sites agree on features without showing one's own: a question, counts, a sum, an answer.

Every site answers the public `Question` with whole numbers about its own table (`count`). They
travel through the secure sum only, so what anybody sees is their sum over at least `min_cohort`
sites, and from this sum alone everybody computes the same `FeatureSchema` (`answer`).

For each column, over the site's rows:
- how many cells are numbers, how many are other texts, how many are missing;
- Σ(q + 2^48) and Σq², where q = round(x · 2^16) stands for the number x, |x| ≤ 2^32; both are 0
  where the site saw a text, because the column is then no number;
- how many cells fall into each bucket of SHA-256(column, text).

A column is a category if any site saw a text in it, or counts its numbers as codes; else a number,
standardised by the mean and the standard deviation (of the population) over all sites. Buckets
with fewer than `min_count` rows over all sites have no input of their own.

All is exact: integers add up in any order, and what is derived of them takes single, correctly
rounded operations, so that every party computes the same bytes.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from vitalring.errors import DataError
from vitalring.models.dataset.complaints import Complain, refuse, shown
from vitalring.models.dataset.features import (
    MAX_BUCKETS,
    MAX_COLUMNS,
    MAX_NAME,
    Buckets,
    Feature,
    FeatureSchema,
    Number,
    buckets_of,
    columns_fit,
)
from vitalring.models.dataset.info import DatasetInfo
from vitalring.models.dataset.table import MISSING, Table, number_of
from vitalring.schema import from_plain, to_plain

BUCKETS = 256
MIN_COUNT = 10
MAX_NUMBER: Final = 2.0**32
MAX_LIMBS = 10_000_000

_UNIT: Final = 1 << 16  # of q
_OFFSET: Final = 1 << 48  # makes every q + _OFFSET at least 0
# Bytes of the five numbers before the buckets, for up to 2^24 - 1 rows at a site.
_COUNT_BYTES: Final = 3
_HEAD_BYTES: Final = (_COUNT_BYTES, _COUNT_BYTES, _COUNT_BYTES, 10, 15)
_HEAD: Final = len(_HEAD_BYTES)


@dataclass(frozen=True)
class Question:
    """What every site is asked; `columns` are sorted."""

    columns: tuple[str, ...]
    buckets: int = BUCKETS
    min_count: int = MIN_COUNT

    def __post_init__(self) -> None:
        names = self.columns
        if not 1 <= len(names) <= MAX_COLUMNS or list(names) != sorted(set(names)):
            raise DataError(
                f"question: columns are {shown(names)}; give 1 to {MAX_COLUMNS}, sorted, each once"
            )
        for name in names:
            if not 0 < len(name) <= MAX_NAME or not name.isprintable():
                raise DataError(f"question: {shown(name)} is no name of a column; rename it")
        if not 1 <= self.buckets <= MAX_BUCKETS or self.min_count < 1:
            raise DataError(
                f"question: {self.buckets} buckets of at least {self.min_count} rows cannot be; "
                f"use 1 to {MAX_BUCKETS} buckets and at least 1 row"
            )
        limbs = len(names) * (sum(_HEAD_BYTES) + _COUNT_BYTES * self.buckets)
        if limbs > MAX_LIMBS:
            raise DataError(
                f"question: {limbs} bytes of answer are more than {MAX_LIMBS}; ask for fewer "
                "columns or buckets"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """The bytes that each number of an answer takes, in the order of `count`."""
        return (*_HEAD_BYTES, *(_COUNT_BYTES,) * self.buckets) * len(self.columns)

    @property
    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of the JSON."""
        return hashlib.sha256(self.to_json()).digest()

    def to_json(self) -> bytes:
        """Return the one text that stands for this question."""
        return json.dumps(to_plain(self), separators=(",", ":"), sort_keys=True).encode() + b"\n"

    @classmethod
    def from_json(cls, text: bytes) -> "Question":
        """Read what `to_json` wrote, and nothing else.

        Raises:
            DataError: the text is not the one encoding of a valid question.
        """
        try:
            question = from_plain(cls, json.loads(text), DataError, "question")
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"question: the JSON cannot be read ({shown(str(error))}); fetch the study's "
                "question again"
            ) from error
        if question.to_json() != text:
            raise DataError(
                "question: the JSON is not in its one encoding; fetch the study's question again"
            )
        return question


def question_of(
    info: DatasetInfo, columns: Iterable[str], buckets: int = BUCKETS, min_count: int = MIN_COUNT
) -> Question:
    """Return what to ask about the columns of a header that are features.

    Raises:
        DataError: none is, or too many are.
    """
    others = {info.label, info.group, *info.ignore}
    return Question(tuple(sorted(set(columns) - others)), buckets, min_count)


def count(question: Question, table: Table) -> list[int]:
    """Return a site's own numbers, as many as the question's `widths`. They are for the sum alone.

    Raises:
        DataError: the table has other columns, or a number beyond what the question can count.
    """
    columns_fit(question.columns, table.file, table.columns, refuse)
    return [number for column in question.columns for number in _count(question, table, column)]


def countable(table: Table, complain: Complain) -> None:
    """Complain about every column that `count` would refuse."""
    for column in table.columns:
        try:
            _count(Question((column,), buckets=1), table, column)
        except DataError as error:
            complain(str(error))


def answer(question: Question, totals: Sequence[int]) -> FeatureSchema:
    """Return the features that the sum of all sites' numbers stands for.

    Raises:
        DataError: the numbers cannot be a sum of what sites counted.
    """
    each = _HEAD + question.buckets
    if len(totals) != each * len(question.columns):
        raise DataError(
            f"statistics: the sum has {len(totals)} numbers, the question asks for "
            f"{each * len(question.columns)}; count again"
        )
    parts = [totals[start : start + each] for start in range(0, len(totals), each)]
    if len({sum(part[:3]) for part in parts}) != 1:
        raise DataError("statistics: columns count different numbers of rows; count again")
    return FeatureSchema(
        tuple(
            _feature(question, column, part)
            for column, part in zip(question.columns, parts, strict=True)
        )
    )


def agreed(info: DatasetInfo, tables: Sequence[Table]) -> FeatureSchema:
    """Return the features that sites with these tables agree on: `answer` of the sums of counts.

    Raises DataError.
    """
    question = question_of(info, tables[0].columns)
    counts = [count(question, table) for table in tables]
    return answer(question, [sum(numbers) for numbers in zip(*counts, strict=True)])


def _count(question: Question, table: Table, column: str) -> list[int]:
    numbers = texts = missing = first = second = 0
    buckets = [0] * question.buckets
    cells = table.cells[column]
    beyond: list[int] = []
    places = buckets_of(column, cells.texts, question.buckets)
    counts = cells.counts().tolist()
    for code, (text, rows, place) in enumerate(zip(cells.texts, counts, places, strict=True)):
        if not rows:
            continue
        if text == MISSING:
            missing = rows
            continue
        buckets[place] += rows
        value = None if cells.category else number_of(text)
        if value is None:
            texts += rows
            continue
        numbers += rows
        if abs(value) > MAX_NUMBER:
            beyond.append(code)
            continue
        scaled = round(value * _UNIT)
        first += rows * (scaled + _OFFSET)
        second += rows * scaled * scaled
    if texts:
        return [numbers, texts, missing, 0, 0, *buckets]
    if beyond:
        raise DataError(
            f"{table.file}: line {table.lines[cells.first(beyond[0])]}: column {shown(column)} "
            f"holds {shown(cells.texts[beyond[0]])}, beyond ±2^32 ({len(beyond)} such values); "
            "write it in a larger unit, or add the column to ignore"
        )
    return [numbers, texts, missing, first, second, *buckets]


def _feature(question: Question, column: str, part: Sequence[int]) -> Feature:
    numbers, texts, _, first, second = part[:_HEAD]
    buckets = part[_HEAD:]
    if min(part) < 0 or sum(buckets) != numbers + texts:
        raise DataError(f"statistics: the sums of column {shown(column)} disagree; count again")
    if texts:
        kept = tuple(n for n, rows in enumerate(buckets) if rows >= question.min_count)
        mode = max(kept, key=lambda n: buckets[n]) if kept else None
        return Buckets(column, question.buckets, kept, mode)
    if not numbers:
        return Number(column, 0.0, 0.0)
    total = first - _OFFSET * numbers
    spread = numbers * second - total * total
    if spread < 0 or abs(total) > _OFFSET * numbers:
        raise DataError(f"statistics: the moments of column {shown(column)} disagree; count again")
    return Number(column, total / (numbers * _UNIT), math.sqrt(spread) / (numbers * _UNIT))
