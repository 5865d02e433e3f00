"""Records drawn at random within the bounds that their annotations state."""

import dataclasses
import math
import types
import typing

from hypothesis import strategies as st

from vitalring.protocol import records, signing
from vitalring.protocol.blobs import Manifest
from vitalring.schema import OneOf, Pattern, Range, Size

ALL = (
    records.Federation,
    records.StudyPlan,
    records.Roster,
    records.SumKey,
    records.RoundPlan,
    records.SealedUpdate,
    records.AcceptedUpdate,
    records.LoggedObject,
    records.PlanAnnouncement,
    records.Receipts,
    records.RoundReport,
    records.EncryptedSum,
    records.GlobalModel,
    records.Bundle,
    signing.Signed,
    Manifest,
)
_MOST = 3
"""Elements drawn beyond a list's least; enough to tell one from many."""


def of(cls):
    """Return a strategy for instances of a dataclass."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return st.builds(cls, **{f.name: _of_hint(hints[f.name]) for f in dataclasses.fields(cls)})


def _of_hint(hint, rules=()):
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    rule = {type(r): r for r in rules}
    if origin is typing.Annotated:
        return _of_hint(args[0], args[1:])
    if origin in (types.UnionType, typing.Union):
        return st.none() | _of_hint(next(a for a in args if a is not type(None)))
    if origin is tuple:
        least, most = _sizes(rule.get(Size, Size(0, _MOST)))
        return st.lists(_of_hint(args[0]), min_size=least, max_size=min(most, least + _MOST)).map(
            tuple
        )
    if origin is dict:
        return st.dictionaries(_of_hint(args[0]), _of_hint(args[1]), max_size=_MOST)
    if dataclasses.is_dataclass(hint):
        return of(hint)
    return _scalar(hint, rule)


def _scalar(hint, rule):
    bounds = rule.get(Range, Range(-math.inf, math.inf))
    if hint is int:
        low, high = (int(b) if math.isfinite(b) else None for b in (bounds.low, bounds.high))
        low, high = -(2**64) if low is None else low, 2**64 - 1 if high is None else high
        return st.integers(low, high)
    if hint is float:
        low, high = (float(b) if math.isfinite(b) else None for b in (bounds.low, bounds.high))
        return st.floats(low, high, allow_nan=False, allow_infinity=False)
    if hint is str and Pattern in rule:
        return st.from_regex(rule[Pattern].expression, fullmatch=True).filter(str.isascii)
    if hint is str and OneOf in rule:
        return st.sampled_from(rule[OneOf].words)
    if hint is str:
        return st.text(max_size=20)
    if hint is bytes:
        least, most = _sizes(rule.get(Size, Size(0, 100)))
        return st.binary(min_size=least, max_size=min(most, least + 100))
    assert hint is bool, hint
    return st.booleans()


def _sizes(size):
    return size.low, size.low if size.high is None else size.high
