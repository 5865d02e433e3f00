"""What a window shows, by what people and rules said of its time.

No I/O. Rules kept here: a class applies to a window when the annotations with its name cover at
least `min_overlap` of the window together; a window has a label when exactly one class applies;
where several do, it has none and counts as a conflict, whoever said what.
"""

import csv
import datetime
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vitalring.errors import RecordError

MAX_TIME_MS = 1 << 53
MAX_LINE_BYTES = 1000
MAX_BAD_NAMED = 20
MAX_ANNOTATIONS = 100_000
"""Of one origin: a file, the button, a rule."""

_WHOLE = re.compile(r"\d{1,16}")


@dataclass(frozen=True)
class Annotation:
    """Somebody says that [start_ms, end_ms) shows `label`."""

    start_ms: int
    end_ms: int
    label: str


@dataclass(frozen=True)
class Verdict:
    """A window's label, or none; `conflict` where several classes apply."""

    label: str | None
    conflict: bool = False


def verdict(
    start_ms: int, end_ms: int, annotations: Iterable[Annotation], min_overlap: float
) -> Verdict:
    """Return what annotations, in the order of their start, say of a window."""
    covered: dict[str, int] = {}
    reached: dict[str, int] = {}
    for each in annotations:
        # What two people say of the same moment counts once.
        begin = max(each.start_ms, reached.get(each.label, start_ms))
        end = min(each.end_ms, end_ms)
        if end > begin:
            covered[each.label] = covered.get(each.label, 0) + end - begin
            reached[each.label] = end
    enough = min_overlap * (end_ms - start_ms)
    applying = [label for label, length in covered.items() if length >= enough]
    if len(applying) == 1:
        return Verdict(applying[0])
    return Verdict(None, conflict=len(applying) > 1)


def parse_time(text: str) -> int:
    """Read milliseconds since 1970, or ISO 8601 with an offset. Raises RecordError."""
    text = text.strip()
    if _WHOLE.fullmatch(text):
        time_ms = int(text)
    else:
        try:
            moment = datetime.datetime.fromisoformat(text)
        except ValueError:
            raise RecordError(
                f"time {text[:40]!r} is neither milliseconds since 1970 nor ISO 8601"
            ) from None
        if moment.tzinfo is None:
            raise RecordError(
                f"time {text[:40]!r} does not say its offset: write it as {text[:40]}+00:00"
            )
        epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
        time_ms = (moment - epoch) // datetime.timedelta(milliseconds=1)
    if not 0 <= time_ms <= MAX_TIME_MS:
        raise RecordError(f"time {text[:40]!r} lies outside 1970 and {MAX_TIME_MS} ms")
    return time_ms


def annotation(start_ms: int, end_ms: int, label: str, classes: Sequence[str]) -> Annotation:
    """Return a checked annotation. Raises RecordError."""
    if label not in classes:
        raise RecordError(f"label {label[:40]!r} is not one of {', '.join(classes)[:200]}")
    if not 0 <= start_ms < end_ms <= MAX_TIME_MS:
        raise RecordError(f"the end {end_ms} does not lie after the start {start_ms}")
    return Annotation(start_ms, end_ms, label)


@dataclass(frozen=True)
class AnnotationTable:
    """What a clinician's file says: annotations, and how many lines cannot be read.

    `complaints` names the first of those by line number.
    """

    annotations: frozenset[Annotation]
    bad_lines: int
    complaints: tuple[str, ...]


def parse_table(text: str, classes: Sequence[str]) -> AnnotationTable:
    """Read csv with the header `start,end,label`. Raises RecordError where that is not there."""
    lines = text.removeprefix("\ufeff").splitlines()
    header = [word.strip() for word in lines[0].split(",")] if lines else []
    if header != ["start", "end", "label"]:
        raise RecordError(f"the first line is {header}, must be start,end,label")
    found: set[Annotation] = set()
    complaints: list[str] = []
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        try:
            said = _table_line(line, classes)
        except RecordError as error:
            complaints.append(f"line {number}: {error}")
            continue
        if len(found) < MAX_ANNOTATIONS:
            found.add(said)
        else:
            complaints.append(f"line {number}: more than {MAX_ANNOTATIONS} annotations")
    return AnnotationTable(frozenset(found), len(complaints), tuple(complaints[:MAX_BAD_NAMED]))


def _table_line(line: str, classes: Sequence[str]) -> Annotation:
    cells = _cells(line)
    if len(cells) != 3:
        raise RecordError(f"{len(cells)} cells instead of start,end,label")
    return annotation(parse_time(cells[0]), parse_time(cells[1]), cells[2], classes)


@dataclass(frozen=True)
class Press:
    """How long a press of the wearer's button labels: before it, and from it on, in ms."""

    before_ms: int
    after_ms: int

    def annotation(
        self, label: str, at_ms: int, seconds: float | None, classes: Sequence[str]
    ) -> Annotation:
        """Return what a press says; `seconds` from `at_ms` on replace what is usual.

        Raises RecordError.
        """
        if seconds is None:
            start_ms, end_ms = max(0, at_ms - self.before_ms), at_ms + self.after_ms
        elif not 0 < seconds <= MAX_TIME_MS / 1000:
            raise RecordError(f"{seconds!r} seconds is not a length of time")
        else:
            start_ms, end_ms = at_ms, at_ms + round(seconds * 1000)
        return annotation(start_ms, end_ms, label, classes)


def parse_press(line: str, press: Press, now_ms: int, classes: Sequence[str]) -> Annotation:
    """Read a line of the button: `LABEL`, `LABEL,TIME` or `LABEL,TIME,SECONDS`.

    An empty TIME is now. Raises RecordError.
    """
    if len(line) > MAX_LINE_BYTES:
        raise RecordError(f"a line of {len(line)} characters, at most {MAX_LINE_BYTES}")
    cells = _cells(line)
    if not 1 <= len(cells) <= 3:
        raise RecordError(f"{len(cells)} cells instead of LABEL,TIME,SECONDS")
    at_ms = parse_time(cells[1]) if len(cells) > 1 and cells[1] else now_ms
    seconds = None
    if len(cells) == 3 and cells[2]:
        try:
            seconds = float(cells[2])
        except ValueError:
            raise RecordError(f"{cells[2][:40]!r} is not a number of seconds") from None
    return press.annotation(cells[0], at_ms, seconds, classes)


@dataclass(frozen=True)
class Change:
    """What one message asks for: `annotation` under the name `key`, or none under it any more."""

    key: str
    annotation: Annotation | None


def parse_message(payload: bytes, press: Press, now_ms: int, classes: Sequence[str]) -> Change:
    """Read a JSON message of the label topic. Raises RecordError.

    `{"id", "label", "start", "end"}` annotates, `{"id", "remove": true}` takes it back, and
    `{"label", "at"?, "seconds"?}` is a press of the button. Times are as in `parse_time`.
    """
    try:
        table = json.loads(payload)
    except (ValueError, RecursionError):
        raise RecordError("the message is not JSON") from None
    if not isinstance(table, dict):
        raise RecordError("the message is not a JSON object")
    keys = set(table)
    if keys == {"id", "remove"} and table["remove"] is True:
        return Change(_text(table, "id"), None)
    if keys == {"id", "label", "start", "end"}:
        start_ms, end_ms = _time(table, "start"), _time(table, "end")
        return Change(
            _text(table, "id"), annotation(start_ms, end_ms, _text(table, "label"), classes)
        )
    if "label" in keys and keys <= {"label", "at", "seconds"}:
        seconds = table.get("seconds")
        if seconds is not None and (isinstance(seconds, bool) or type(seconds) not in (int, float)):
            raise RecordError("seconds is not a number")
        at_ms = _time(table, "at") if "at" in keys else now_ms
        pressed = press.annotation(_text(table, "label"), at_ms, seconds, classes)
        return Change(key_of(pressed), pressed)
    raise RecordError(f"the message has the keys {sorted(map(str, keys))[:8]}, see the handbook")


def key_of(said: Annotation) -> str:
    """Return a name for an annotation that came without one: saying it twice changes nothing."""
    return f"{said.start_ms}-{said.end_ms}-{said.label}"


def _cells(line: str) -> list[str]:
    try:
        rows = list(csv.reader(io.StringIO(line), strict=True))
    except csv.Error as error:
        raise RecordError(f"not csv: {error}") from None
    return [cell.strip() for cell in rows[0]] if rows else []


def _text(table: dict[str, Any], name: str) -> str:
    value = table[name]
    if not isinstance(value, str) or not 0 < len(value) <= 200:
        raise RecordError(f"{name} is not text of 1 to 200 characters")
    return value


def _time(table: dict[str, Any], name: str) -> int:
    value = table[name]
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise RecordError(f"{name} is neither milliseconds since 1970 nor ISO 8601 text")
    return parse_time(str(value)) if isinstance(value, str) or value >= 0 else parse_time("-")
