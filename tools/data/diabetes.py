"""Hospital encounters of Diabetes 130-US: a table whose sites are made from one of its columns.

The published table names no hospital. Any division into sites is a stand-in; the default one
divides by how the patient came: referred by a physician (admission source 1), through the
emergency room (7), and the rest.
"""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vitalring.errors import ConfigError, DataError
from vitalring.tools.data.folder import NewFolder, slug
from vitalring.tools.data.imported import Imported
from vitalring.tools.data.origins import DIABETES
from vitalring.tools.data.source import Source

MISSING = "?"
ENCOUNTER, PATIENT, LABEL = "encounter_id", "patient_nbr", "readmitted"
CODES = (
    "admission_type_id",
    "discharge_disposition_id",
    "admission_source_id",
    "diag_1",
    "diag_2",
    "diag_3",
)
"""Columns whose numbers are names: nobody may average them."""
LABELS: Mapping[str, Mapping[str, str]] = {
    "any": {"NO": "no", ">30": "yes", "<30": "yes"},
    "within30": {"NO": "no", ">30": "no", "<30": "yes"},
    "three": {"NO": "no", ">30": "later", "<30": "within30"},
}
"""What each published label becomes."""
SITES = {"1": "physician-referral", "7": "emergency-room"}
REST = "other-sources"
MAX_SITES = 200
BLOCK = 5000  # rows held before they are written


@dataclass(frozen=True)
class DiabetesOptions:
    """What may be chosen.

    `label`: "any" readmission, one "within30" days, or the "three" published classes.
    `site_column` makes the sites, one for each of its values; `sites` lists the values that get a
    site of their own, the others go to one for the rest. A value with fewer than `min_rows` goes
    to the rest too. `drop`: columns that are left out.
    """

    label: str = "any"
    site_column: str = "admission_source_id"
    sites: tuple[str, ...] | None = None
    min_rows: int = 100
    drop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.label not in LABELS:
            raise ConfigError(f"--label {self.label}: use {', '.join(LABELS)}")
        for column in self.drop:
            if column in (LABEL, PATIENT):
                raise ConfigError(f"--drop {column}: the data set needs it")
        if self.min_rows < 1:
            raise ConfigError(f"--min-rows {self.min_rows}: give at least 1")


def import_diabetes(source: Source, options: DiabetesOptions, folder: NewFolder) -> Imported:
    """Write the sites of the published table into `folder`. Raises DataError."""
    name = next(
        (
            found
            for ending in ("diabetic_data.csv", "diabetic_data.csv.gz")
            if (found := source.find(ending))
        ),
        None,
    )
    if name is None and len(source.names) == 1 and source.names[0].endswith((".csv", ".csv.gz")):
        name = source.names[0]  # a single file may bear any name
    name = name or source.need("diabetic_data.csv", DIABETES)
    counts: Counter[str] = Counter()
    header: list[str] = []
    for header, row in _rows(source, name, options):
        counts[row[header.index(options.site_column)]] += 1
    if not counts:
        raise DataError(f"{source.label(name)}: has no row")
    site_of = _sites(counts, options)
    kept = [i for i, column in enumerate(header) if column not in options.drop]
    columns = [header[i] for i in kept]
    names = dict.fromkeys(site_of.values())
    waiting: dict[str, list[list[str]]] = {site: [] for site in names}
    for header, row in _rows(source, name, options):
        site = site_of[row[header.index(options.site_column)]]
        waiting[site].append([row[i] for i in kept])
        if len(waiting[site]) == BLOCK:
            folder.rows(site, columns, waiting[site], columns.index(LABEL))
            waiting[site].clear()
    for site, rows in waiting.items():
        folder.rows(site, columns, rows, columns.index(LABEL))
    classes = tuple(dict.fromkeys(LABELS[options.label].values()))
    return Imported(
        DIABETES, classes, _table(columns, classes), _head(options), _steps(options), classes
    )


def _table(columns: list[str], classes: tuple[str, ...]) -> dict[str, object]:
    table: dict[str, object] = {
        "name": "diabetes130",
        "kind": "tabular",
        "classes": classes,
        "label": LABEL,
        "missing": [MISSING],
        "group": PATIENT,
        "validation_fraction": 0.1,
        "test_fraction": 0.1,
    }
    table["categories"] = [column for column in CODES if column in columns]
    if ENCOUNTER in columns:
        table["ignore"] = [ENCOUNTER]
    return table


def _head(options: DiabetesOptions) -> tuple[str, ...]:
    return (
        f"{DIABETES.name}; see PROVENANCE.txt.",
        f"Made by `vitalring data import`. Sites are made from the column {options.site_column},",
        "because the table names no hospital. A patient's rows are on one side of the split.",
    )


def _steps(options: DiabetesOptions) -> tuple[str, ...]:
    labels = ", ".join(f"{old} -> {new}" for old, new in LABELS[options.label].items())
    return (
        f"label {LABEL}: {labels}",
        f"sites by {options.site_column}",
        "columns whose numbers are names are declared categories: " + ", ".join(CODES),
        "columns left out: " + (", ".join(options.drop) or "none"),
        f"rows of one {PATIENT} are on one side of the 80/10/10 split",
    )


def _sites(counts: Counter[str], options: DiabetesOptions) -> dict[str, str]:
    """Return each value's site."""
    named = options.site_column == "admission_source_id"
    wanted = options.sites if options.sites is not None else tuple(SITES) if named else None
    plain = SITES if named else {}
    chosen = set(counts)
    if wanted is not None:
        chosen = set(wanted)
        for value in sorted(chosen - set(counts)):
            raise ConfigError(
                f"--sites {value}: {options.site_column} has no such value; it has "
                f"{', '.join(sorted(counts)[:20])}"
            )
    chosen = {value for value in chosen if counts[value] >= options.min_rows}
    if len(chosen) > MAX_SITES:
        raise ConfigError(
            f"{options.site_column} would make {len(chosen)} sites, more than {MAX_SITES}: raise "
            "--min-rows, or choose another column"
        )
    site_of = {}
    for value in sorted(counts):
        if value not in chosen:
            site_of[value] = REST if named else "rest"
        elif value == MISSING:
            site_of[value] = "unknown"
        else:
            site_of[value] = plain.get(value) or slug(value)
    own = [site_of[value] for value in chosen]
    if len(set(own)) != len(own):
        raise ConfigError(f"two values of {options.site_column} make one name; use --sites")
    return site_of


def _rows(
    source: Source, name: str, options: DiabetesOptions
) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the header with each row, checked, its label rewritten."""
    labels = LABELS[options.label]
    with source.text(name) as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            _check_header(source.label(name), header, options)
            label = header.index(LABEL)
            for number, row in enumerate(reader, start=2):
                if not row:
                    continue
                if len(row) != len(header) or row[label] not in labels:
                    raise DataError(
                        f"{source.label(name)}, row {number}: has {len(row)} cells of "
                        f"{len(header)} or a label other than {', '.join(labels)}; bring the "
                        "published file"
                    )
                row[label] = labels[row[label]]
                yield header, row
        except csv.Error as error:
            raise DataError(
                f"{source.label(name)}, row {reader.line_num}: is not CSV ({error})"
            ) from error


def _check_header(label: str, header: list[str], options: DiabetesOptions) -> None:
    for column in (LABEL, PATIENT):
        if column not in header:
            raise DataError(f"{label}: has no column {column}; bring the published table")
    for option, column in (
        ("--site-column", options.site_column),
        *(("--drop", column) for column in options.drop),
    ):
        if column not in header:
            raise ConfigError(f"{option} {column}: {label} has no such column")
    if len(set(header)) != len(header):
        raise DataError(f"{label}: has a column twice")
