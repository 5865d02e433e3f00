"""SPEC.md has every clause that is cited, every record with its fields, every limit and reason."""

import dataclasses
import re
from pathlib import Path

import pytest

from vitalring.aggregator import key_backup
from vitalring.errors import Reason
from vitalring.gateway.office import EnrolmentReason
from vitalring.protocol import (
    agreement,
    blobs,
    claim_records,
    enrolment,
    key_records,
    limits,
    records,
    release,
    signing,
)

ROOT = Path(__file__).resolve().parents[2]
SPEC = (ROOT / "protocol" / "SPEC.md").read_text(encoding="utf-8")
FOLDERS = ("vitalring", "protocol", "edge_agent", "gateway", "aggregator", "models", "tools")
NUMBER = r"\d+(?:\.\d+){0,2}"
CITATION = re.compile(rf"SPEC ({NUMBER}(?:(?:, | to | and |,\s+#?\s*){NUMBER})*)")
CLAUSE = re.compile(r"^\*\*(\d+\.\d+) ", re.MULTILINE)
RECORDS = [
    value
    for module in (
        records,
        signing,
        blobs,
        agreement,
        release,
        key_records,
        claim_records,
        enrolment,
        key_backup,
    )
    for value in vars(module).values()
    if isinstance(value, type) and value.__module__ == module.__name__ and hasattr(value, "TYPE")
]


def clauses(spec):
    """Sections as "n", clauses as "n.m", numbered steps of a clause as "n.m.k"."""
    found = set(re.findall(r"^## (\d+)\. ", spec, re.MULTILINE))
    parts = CLAUSE.split(spec)
    for number, text in zip(parts[1::2], parts[2::2], strict=True):
        found.add(number)
        body = text.split("\n## ")[0]
        found |= {f"{number}.{step}" for step in re.findall(r"^(\d+)\. ", body, re.MULTILINE)}
    return found


def cited(text):
    """The clauses that a text cites; "6.4 to 6.11" cites all between."""
    for match in CITATION.finditer(text):
        words = re.split(r"(, | to | and |,\s+#?\s*)", match[1])
        yield words[0]
        for joint, number in zip(words[1::2], words[2::2], strict=True):
            if joint == " to ":
                section, last = number.split(".")
                before = match[1].split(" to ")[0].split(", ")[-1].split(".")
                yield from (f"{section}.{n}" for n in range(int(before[1]), int(last)))
            yield number


def sources():
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            # The links beside the shared floor lead to the same files again.
            linked = any(parent.is_symlink() for parent in path.parents)
            if path.suffix in {".py", ".j2", ".toml"} and not linked:
                yield path
    yield from sorted((ROOT / "tests").rglob("*.py"))
    yield from sorted((ROOT / "docs").rglob("*.md"))
    yield from (ROOT / name for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md"))


def test_citations_are_understood():
    assert list(cited("(SPEC 9.2 to 9.4)")) == ["9.2", "9.2", "9.3", "9.4"]
    assert list(cited("SPEC 6.6, 6.12, 4.3 says")) == ["6.6", "6.12", "4.3"]
    assert list(cited("# SPEC 2.2.1: size; SPEC 8).")) == ["2.2.1", "8"]


def test_what_the_code_cites_exists():
    known = clauses(SPEC)
    dangling, seen = [], 0
    for path in sources():
        for number in cited(path.read_text(encoding="utf-8")):
            seen += 1
            if number not in known:
                dangling.append(f"{path.relative_to(ROOT)}: SPEC {number}")
    assert not dangling
    assert seen > 100


def test_what_the_document_cites_of_itself_exists():
    known = clauses(SPEC)
    inner = {
        number
        for bracket in re.findall(r"\(([^()]*)\)", SPEC)
        if re.fullmatch(rf"(?:section )?{NUMBER}(?:(?:, | to | and ){NUMBER})*", bracket)
        for number in re.findall(NUMBER, bracket)
    }
    assert len(inner) > 30
    # "(1)" to "(10)" number the steps inside a sentence.
    assert sorted(number for number in inner if "." in number and number not in known) == []


def test_clauses_are_numbered_once_and_in_order():
    numbers = [tuple(map(int, number.split("."))) for number in CLAUSE.findall(SPEC)]
    assert numbers == sorted(set(numbers))
    for section in {first for first, _ in numbers}:
        within = [second for first, second in numbers if first == section]
        assert within == list(range(1, len(within) + 1)), f"section {section}"


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_each_record_is_described(record):
    heading = re.search(rf"^`{record.__name__}` \(`{re.escape(record.TYPE)}`, (.+?)\)", SPEC, re.M)
    assert heading is not None
    number, unit = heading[1].replace(",", "").split()
    assert int(number) * {"bytes": 1, "MiB": limits.MIB}[unit] == record.MAX_BYTES
    table = re.split(r"\n\n`|\n\n\*\*", SPEC[heading.end() :])[0]
    first_column = "".join(line.split("|")[1] for line in table.splitlines() if "|" in line)
    described = re.findall(r"`(\w+)`", first_column)
    assert sorted(described) == sorted(field.name for field in dataclasses.fields(record))


@pytest.mark.parametrize("reason", list(Reason))
def test_each_refusal_is_in_the_table_of_checks(reason):
    table = SPEC[SPEC.index("**10.2 ") : SPEC.index("**10.3 ")]
    assert f"| `{reason.value}` |" in table


@pytest.mark.parametrize("reason", list(EnrolmentReason))
def test_each_refusal_of_the_enrolment_office_is_in_its_table(reason):
    table = SPEC[SPEC.index("**13.5 ") : SPEC.index("**13.6 ")]
    assert f"| `{reason.value}` |" in table


@pytest.mark.parametrize(
    ("row", "value"),
    [
        ("record | 65,535 bytes", limits.MAX_RECORD_BYTES),
        ("large record | 1 MiB", limits.MAX_LARGE_RECORD_BYTES / limits.MIB),
        ("update | 32 MiB", limits.MAX_UPDATE_BYTES / limits.MIB),
        ("object | 64 MiB", limits.MAX_OBJECT_BYTES / limits.MIB),
        ("devices | 10,000", limits.MAX_DEVICES),
        ("ring | 1,024 keys", limits.MAX_RING),
        ("dimension | 4,000,000 parameters", limits.MAX_DIMENSION),
        ("rounds | 100,000", limits.MAX_ROUNDS),
        ("decryption floor | 2 updates", limits.DECRYPTION_FLOOR),
        ("recent checkpoints | 32", limits.RECENT_CHECKPOINTS),
        ("clock skew | 300,000 ms", limits.MAX_CLOCK_SKEW_MS),
    ],
)
def test_limits_are_those_of_the_code(row, value):
    assert f"\n| {row} |" in SPEC
    number = re.search(r"\| ([\d,]+)", row)
    assert number is not None
    assert float(number[1].replace(",", "")) == value
