"""Hospital encounters: a table in the published form becomes sites."""

import csv
import gzip
import io
import zipfile

import numpy as np
import pytest

from vitalring.errors import ConfigError, DataError
from vitalring.models.dataset import check_dataset, load_dataset, load_table, split
from vitalring.tools.data.importing import import_data

HEADER = [
    "encounter_id",
    "patient_nbr",
    "race",
    "weight",
    "admission_type_id",
    "discharge_disposition_id",
    "admission_source_id",
    "time_in_hospital",
    "diag_1",
    "diag_2",
    "diag_3",
    "readmitted",
]


def rows(n=400, seed=5):
    rng = np.random.default_rng(seed)
    return [
        [
            str(1000 + i),
            str(rng.integers(0, 150)),
            str(rng.choice(["Caucasian", "AfricanAmerican", "?"])),
            "?" if i % 50 else "[75-100)",
            str(rng.integers(1, 4)),
            str(rng.integers(1, 30)),
            str(rng.choice(["1", "7", "4", "17"], p=[0.3, 0.5, 0.1, 0.1])),
            str(rng.integers(1, 14)),
            str(rng.choice(["250.83", "V57", "414", "?"])),
            "276",
            "?",
            str(rng.choice(["NO", ">30", "<30"])),
        ]
        for i in range(n)
    ]


def text(found, header=HEADER):
    data = io.StringIO()
    csv.writer(data).writerows([header, *found])
    return data.getvalue().encode()


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "diabetic_data.csv"
    path.write_bytes(text(rows()))
    return path


def sites(folder):
    found = {}
    for path in sorted((folder / "devices").iterdir()):
        with path.open(newline="") as file:
            found[path.stem] = list(csv.DictReader(file))
    return found


def test_three_sites_by_admission_source(table, tmp_path):
    import_data(table, "diabetes130", tmp_path / "out", {"min_rows": 10})
    found = sites(tmp_path / "out")
    assert set(found) == {"emergency-room", "other-sources", "physician-referral"}
    assert {row["admission_source_id"] for row in found["emergency-room"]} == {"7"}
    assert {row["admission_source_id"] for row in found["physician-referral"]} == {"1"}
    assert {row["admission_source_id"] for row in found["other-sources"]} == {"4", "17"}
    # No row is lost or doubled; cells stay as they are, but for the label.
    back = sorted(
        (list(row.values()) for site in found.values() for row in site), key=lambda row: row[0]
    )
    expected = [[*row[:-1], "no" if row[-1] == "NO" else "yes"] for row in rows()]
    assert back == expected
    info = load_dataset(tmp_path / "out")
    assert (info.label, info.group, info.missing) == ("readmitted", "patient_nbr", ("?",))
    assert "encounter_id" in info.ignore
    assert check_dataset(tmp_path / "out").complaints == ()


def test_no_patient_is_on_two_sides_even_at_two_sites(table, tmp_path):
    import_data(table, "diabetes130", tmp_path / "out", {"min_rows": 10})
    folder = tmp_path / "out"
    info = load_dataset(folder)
    sides = {"train": set(), "validation": set(), "test": set()}
    for name in ("emergency-room", "other-sources", "physician-referral"):
        parts = split(load_table(folder, name, info), info)
        for side, part in parts._asdict().items():
            sides[side] |= set(part.group.tolist())
    assert all(sides.values())
    assert not sides["train"] & sides["test"]
    assert not sides["train"] & sides["validation"]
    assert not sides["validation"] & sides["test"]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("any", {"NO": "no", ">30": "yes", "<30": "yes"}),
        ("within30", {"NO": "no", ">30": "no", "<30": "yes"}),
        ("three", {"NO": "no", ">30": "later", "<30": "within30"}),
    ],
)
def test_labels(table, tmp_path, label, expected):
    import_data(table, "diabetes130", tmp_path / "out", {"label": label, "min_rows": 10})
    back = {
        row["encounter_id"]: row["readmitted"]
        for site in sites(tmp_path / "out").values()
        for row in site
    }
    assert back == {row[0]: expected[row[-1]] for row in rows()}
    assert set(load_dataset(tmp_path / "out").classes) == set(expected.values())


def test_archives_as_published(table, tmp_path):
    plain = table.read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("dataset_diabetes/diabetic_data.csv", plain)
        archive.writestr("dataset_diabetes/IDs_mapping.csv", "admission_type_id,description\n")
    (tmp_path / "any-name.csv.gz").write_bytes(gzip.compress(plain))
    import_data(table, "diabetes130", tmp_path / "0", {"min_rows": 10})
    for i, (path, kind) in enumerate(
        [
            (tmp_path / "a.zip", "diabetes130"),
            (tmp_path / "any-name.csv.gz", "diabetes130"),
            (tmp_path / "any-name.csv.gz", "arrays"),
        ],
        1,
    ):
        import_data(path, kind, tmp_path / str(i), {"min_rows": 10})
        assert sites(tmp_path / str(i)) == sites(tmp_path / "0")
    text_ = (tmp_path / "1" / "PROVENANCE.txt").read_text()
    assert "a.zip" in text_
    assert "CC BY 4.0" in text_
    assert "min_rows = 10" in text_


def test_sites_by_another_column_and_columns_left_out(table, tmp_path):
    options = {"site_column": "race", "drop": ("weight", "encounter_id"), "min_rows": 10}
    import_data(table, "diabetes130", tmp_path / "out", options)
    found = sites(tmp_path / "out")
    assert set(found) == {"africanamerican", "caucasian", "unknown"}
    assert "weight" not in found["caucasian"][0]
    assert load_dataset(tmp_path / "out").ignore == ()


def test_values_named_or_with_few_rows(table, tmp_path):
    import_data(table, "diabetes130", tmp_path / "out", {"sites": ("17", "7"), "min_rows": 10})
    assert set(sites(tmp_path / "out")) == {"17", "emergency-room", "other-sources"}
    options = {"site_column": "discharge_disposition_id", "min_rows": 15}
    import_data(table, "diabetes130", tmp_path / "few", options)
    found = sites(tmp_path / "few")
    assert "rest" in found
    assert all(len(site) >= 15 for site in found.values())
    with pytest.raises(ConfigError, match="--sites 99"):
        import_data(table, "diabetes130", tmp_path / "no", {"sites": ("99",)})


@pytest.mark.parametrize(
    ("content", "options", "error", "message"),
    [
        (b"", {}, DataError, "no column readmitted"),
        (text([], HEADER), {}, DataError, "no row"),
        (text([["1"] * 12]), {}, DataError, "row 2: .*label"),
        (text([rows(1)[0][:5]]), {}, DataError, "row 2: has 5 cells"),
        (text(rows(3)) + b'"open', {}, DataError, "not CSV|cells"),
        (text(rows(3)) + b"\xff\n", {}, DataError, "UTF-8"),
        (text(rows(3)), {"drop": ("readmitted",)}, ConfigError, "needs it"),
        (text(rows(3)), {"drop": ("height",)}, ConfigError, "no such column"),
        (text(rows(3)), {"site_column": "hospital"}, ConfigError, "no such column"),
        (text(rows(3)), {"label": "ever"}, ConfigError, "--label ever"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, content, options, error, message):
    path = tmp_path / "diabetic_data.csv"
    path.write_bytes(content)
    with pytest.raises(error, match=message):
        import_data(path, "diabetes130", tmp_path / "out", options)
    assert not (tmp_path / "out").exists()
