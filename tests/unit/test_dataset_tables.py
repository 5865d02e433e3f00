"""csv sites: reading, splitting, oversampling."""

import codecs
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitalring.errors import DataError
from vitalring.models.dataset import (
    Records,
    Table,
    devices,
    holds_tables,
    input_shape,
    load_dataset,
    load_device,
    load_part,
    load_table,
    oversample,
    split,
)

TOML = """
name = "ward"
kind = "tabular"
classes = ["no", "yes"]
label = "ill"
missing = ["?"]
test_fraction = 0.1
"""
CSV = "age,sex,ill\n61,f,no\n?,m,yes\n47.5,,no\n"
FEATURES = """
[features]
age = {mean = 50, std = 10}
sex = {categories = ["m", "f"], mode = "f"}
"""


def write(folder: Path, toml: str = TOML, **files: str | bytes) -> Path:
    (folder / "devices").mkdir(parents=True, exist_ok=True)
    (folder / "dataset.toml").write_text(toml)
    for name, content in (files or {"a": CSV}).items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / "devices" / f"{name}.csv").write_bytes(data)
    return folder


def read(folder: Path, device: str = "a") -> Table:
    return load_table(folder, device, load_dataset(folder))


def cells(table: Table) -> dict[str, list[str]]:
    return {
        name: [column.texts[code] for code in column.codes] for name, column in table.cells.items()
    }


def test_a_table_is_read_as_text(tmp_path: Path) -> None:
    folder = write(tmp_path)
    info = load_dataset(folder)
    assert devices(folder, info) == (("a",), ("a",))
    assert holds_tables(folder, info)
    table = read(folder)
    assert cells(table) == {"age": ["61", "", "47.5"], "sex": ["f", "m", ""]}
    assert table.columns == ("age", "sex")
    assert table.y.tolist() == [0, 1, 0]
    assert table.lines.tolist() == [2, 3, 4]
    assert len(table) == 3


def test_marks_quotes_blanks_and_empty_lines_are_understood(tmp_path: Path) -> None:
    text = ' age , note,ill\r\n 1 ,"a, ""b""\r\nc", yes \r\n\r\n2, ?,no\r\n'
    table = read(write(tmp_path, a=codecs.BOM_UTF8 + text.encode()))
    assert cells(table) == {"age": ["1", "2"], "note": ['a, "b"\r\nc', ""]}
    assert table.y.tolist() == [1, 0]
    assert table.lines.tolist() == [2, 5]


def test_declared_features_encode_a_table(tmp_path: Path) -> None:
    folder = write(tmp_path, TOML + FEATURES)
    info = load_dataset(folder)
    assert input_shape(folder, info) == (4,)
    records = load_device(folder, "a", info)
    expected = [[1.1, 0, 1, 0], [0, 1, 0, 0], [-0.25, 0, 1, 0]]
    np.testing.assert_allclose(records.x, expected, rtol=1e-6)
    assert records.x.dtype == np.float32
    assert not records.x.flags.writeable
    assert records.y.tolist() == [0, 1, 0]


def test_order_of_columns_does_not_matter(tmp_path: Path) -> None:
    folder = write(tmp_path, TOML + FEATURES, a=CSV, b="ill,sex,age\nno,f,61\nyes,m,\nno,?,47.5\n")
    info = load_dataset(folder)
    a, b = (load_device(folder, name, info) for name in "ab")
    np.testing.assert_array_equal(a.x, b.x)


def test_tables_need_features(tmp_path: Path) -> None:
    folder = write(tmp_path)
    info = load_dataset(folder)
    with pytest.raises(DataError, match=r"a\.csv: .* declare \[features\]"):
        load_device(folder, "a", info)
    with pytest.raises(DataError, match=r"a\.csv: .* declare \[features\]"):
        input_shape(folder, info)


def test_arrays_serve_as_tables_that_are_ready(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "devices" / "a.csv").unlink()
    x = np.arange(6.0).reshape(3, 2)
    np.savez(folder / "devices" / "a.npz", x=x, y=[0, 1, 0])
    info = load_dataset(folder)
    assert not holds_tables(folder, info)
    assert input_shape(folder, info) == (2,)
    np.testing.assert_array_equal(load_device(folder, "a", info).x, x)
    with pytest.raises(DataError, match="no table with columns"):
        load_table(folder, "a", info)
    (folder / "dataset.toml").write_text(TOML + 'group = "person"\n')
    with pytest.raises(DataError, match=r"a\.npz: arrays have no columns, so group cannot be"):
        load_device(folder, "a", load_dataset(folder))
    np.savez(folder / "devices" / "a.npz", x=np.zeros((3, 2, 1)), y=[0, 1, 0])
    with pytest.raises(DataError, match="tables are"):
        load_device(folder, "a", info)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "line 1: has no header"),
        ("age;ill\n1;no\n", "line 1: header is 'age;ill'; separate columns by commas"),
        ("age,sex\n1,f\n", "line 1: column 'ill' is missing; dataset.toml names it as label"),
        ("age,age,ill\n1,2,no\n", "line 1: column 'age' stands there twice"),
        ("age,,ill\n1,2,no\n", "line 1: column 2 is named ''"),
        ("ill\nno\n", "line 1: no column is a feature"),
        ("age,ill\n", "holds no row"),
        ("age,ill\n1,no\n\n2\n", "line 4: has 1 cells, but the header has 2"),
        ("age,ill\n1,no\n1,5,no\n", "line 3: has 3 cells, but the header has 2"),
        ("age,ill\n1,no\n1,maybe\n2,maybe\n", r"line 3: label 'maybe' is none .* \(2 such rows"),
        ("age,ill\n1,\n", "line 2: label '' is none of the classes"),
        ("age,ill\n1,?\n", r"line 2: label '\?' is none of the classes"),
        ('age,ill\n"1,no\n', "is not csv"),
        ('age,ill\n"1"2,no\n', "line 2: is not csv"),
        (b"age,ill\n1,no\n\xff,no\n", "line 3, byte 1: is not UTF-8; save the file as UTF-8"),
        ("age,ill\n1,no\n".encode("utf-16"), "line 1, byte 1: is not UTF-8"),
        ("x" * 200_000 + ",ill\n", "is not csv"),
        (",".join(map(str, range(5000))) + "\n", "has 5000 columns, more than 4096"),
    ],
)
def test_a_broken_csv_is_named(tmp_path: Path, content: str | bytes, match: str) -> None:
    folder = write(tmp_path, a=content)
    with pytest.raises(DataError, match=match) as caught:
        read(folder)
    assert str(folder / "devices" / "a.csv") in str(caught.value)


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ("label = 3", "label is 3"),
        ('missing = "?"', "missing is '?'"),
        ("ignore = [1]", "ignore is [1]"),
        ('ignore = ["a", "a"]', "ignore is ['a', 'a']"),
        ('group = ""', "group is ''"),
        ('ignore = ["ill"]', "label 'ill' is in ignore too"),
        ('group = "ill"', "label and group are both 'ill'"),
        ('categories = ["u"]\nignore = ["u"]', "is in ignore and in categories"),
        ("inputs = []", "inputs is []"),
        ('inputs = ["a", "a"]', "inputs is ['a', 'a']"),
        ('units = ["s"]', "unknown key 'units' (it belongs to windows data)"),
        ("sampling_hz = 5", "unknown key 'sampling_hz' (it belongs to windows data)"),
        ("validation_fraction = 0.95", "leave nothing to train on"),
        ("validation_fraction = 0", "validation_fraction is 0"),
        ('validation_fraction = 0.1\nvalidation_devices = ["a"]', "not both"),
        ("features = 3", "features is 3"),
        ("[features]", "features is {}"),
        ("[features]\nage = {mean = 1}", "features: 'age' is {'mean': 1}"),
        ("[features]\nage = {mean = 1, std = 0}", "features: 'age' is"),
        ("[features]\nage = {mean = nan, std = 1}", "features: 'age' is"),
        ('[features]\nsex = {categories = "m"}', "features: 'sex' is"),
        ("[features]\nsex = {categories = []}", "'sex': categories are ()"),
        ('[features]\nsex = {categories = ["m"], mode = "f"}', "mode 'f' is none of"),
        ("[features]\nill = {mean = 1, std = 2}", "label 'ill' is among the features"),
    ],
)
def test_tabular_keys_are_checked(tmp_path: Path, more: str, names: str) -> None:
    key = more.split(" ", maxsplit=1)[0]
    kept = "\n".join(line for line in TOML.splitlines() if line.split(" ")[0] != key)
    folder = write(tmp_path, f"{kept}\n{more}\n")
    with pytest.raises(DataError) as caught:
        load_dataset(folder)
    assert names in str(caught.value)
    assert str(folder / "dataset.toml") in str(caught.value)


def test_rows_of_numbers_may_name_their_inputs_and_csv_has_a_header(tmp_path: Path) -> None:
    named = TOML + 'inputs = ["mean", "spread"]\n'
    folder = write(tmp_path, named)
    with pytest.raises(DataError, match=r"a\.csv: its header names the columns.*remove it"):
        read(folder)
    (folder / "devices" / "a.csv").unlink()
    np.savez(folder / "devices" / "a.npz", x=np.ones((3, 2)), y=np.array([0, 1, 0]))
    info = load_dataset(folder)
    assert info.inputs == ("mean", "spread")
    assert load_device(folder, "a", info).x.shape == (3, 2)
    np.savez(folder / "devices" / "a.npz", x=np.ones((3, 4)), y=np.array([0, 1, 0]))
    with pytest.raises(DataError, match=r"a\.npz: .* has 4 inputs, but inputs .* has 2 names"):
        load_device(folder, "a", info)


def many(rows: int, people: int) -> str:
    lines = [f"{n},p{n % people},{'no' if n % 3 else 'yes'}" for n in range(rows)]
    return "\n".join(["age,person,ill", *lines]) + "\n"


def test_a_part_is_what_split_gives(tmp_path: Path) -> None:
    toml = TOML + 'ignore = ["person"]\nvalidation_fraction = 0.3\n'
    toml += "features.age = {mean = 9, std = 300}\n"
    folder = write(tmp_path, toml, a=many(90, 9))
    info = load_dataset(folder)
    parts = split(load_device(folder, "a", info), info)
    assert min(len(part) for part in parts) > 0
    for name, expected in parts._asdict().items():
        part = load_part(folder, "a", info, name)
        np.testing.assert_array_equal(part.x, expected.x)
        np.testing.assert_array_equal(part.y, expected.y)


def test_rows_are_split_by_lot_and_stay_where_they_are(tmp_path: Path) -> None:
    toml = TOML + "validation_fraction = 0.1\n"
    folder = write(tmp_path, toml, a=many(2000, 50), longer=many(3000, 50))
    info = load_dataset(folder)
    table = read(folder)
    train, validation, test = split(table, info)
    assert [round(len(part), -2) for part in (train, validation, test)] == [1600, 200, 200]
    ages = [list(map(int, cells(part)["age"])) for part in split(table, info)]
    assert sorted(itertools.chain(*ages)) == list(range(2000))
    # The same device with more rows keeps the old ones where they were.
    (folder / "devices" / "a.csv").write_text(many(3000, 50))
    for part, before in zip(split(read(folder), info), ages, strict=True):
        assert [n for n in map(int, cells(part)["age"]) if n < 2000] == before


def test_a_group_stays_on_one_side_at_every_site(tmp_path: Path) -> None:
    toml = TOML + 'group = "person"\nvalidation_fraction = 0.2\n'
    folder = write(tmp_path, toml, a=many(900, 150), b=many(600, 150))
    info = load_dataset(folder)
    sides: dict[int, set[str]] = {}
    for device in "ab":
        table = read(folder, device)
        assert table.columns == ("age",)
        parts = split(table, info)
        for side, part in zip(parts._fields, parts, strict=True):
            assert part.group is not None
            assert part.group.dtype == np.uint64
            for number in part.group.tolist():
                sides.setdefault(number, set()).add(side)
    assert len(sides) == 150
    assert all(len(side) == 1 for side in sides.values())
    assert {side for found in sides.values() for side in found} == {"train", "validation", "test"}


def test_a_row_without_its_group_is_named(tmp_path: Path) -> None:
    text = many(9, 3).replace("4,p1", "4, ").replace("5,p2", "5,?")
    folder = write(tmp_path, TOML + 'group = "person"\n', a=text)
    with pytest.raises(DataError, match=r"a\.csv: line 6: group 'person' is unknown \(2 such"):
        read(folder)


def test_whole_devices_validate_and_test(tmp_path: Path) -> None:
    toml = TOML.replace("test_fraction = 0.1", 'test_devices = ["c"]\nvalidation_devices = ["b"]')
    folder = write(tmp_path, toml, a=CSV, b=CSV, c=CSV)
    info = load_dataset(folder)
    assert devices(folder, info) == (("a",), ("c",))
    lengths = {name: [len(part) for part in split(read(folder, name), info)] for name in "abc"}
    assert lengths == {"a": [3, 0, 0], "b": [0, 3, 0], "c": [0, 0, 3]}
    toml = toml.replace('["b"]', '["c"]')
    with pytest.raises(DataError, match="'c' is in test_devices and validation_devices"):
        load_dataset(write(tmp_path, toml, a=CSV))


@given(
    rows=st.integers(0, 40),
    test=st.floats(0.01, 0.9),
    kind=st.sampled_from(["windows", "tabular"]),
    device=st.sampled_from(["a", "b", "c", "d"]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_parts_hold_every_row_once_and_of_windows_one_trains(
    tmp_path: Path, rows: int, test: float, kind: str, device: str
) -> None:
    head = f'name = "x"\nkind = "{kind}"\nclasses = ["a", "b"]\ntest_fraction = {test}\n'
    more = "sampling_hz = 1\n" if kind == "windows" else ""
    (tmp_path / "dataset.toml").write_text(head + more + "validation_fraction = 0.05\n")
    x = np.arange(rows, dtype=np.float32).reshape(rows, 1)
    info = load_dataset(tmp_path)
    parts = split(Records(device, x, np.zeros(rows, np.int64)), info)
    seen = np.concatenate([part.x[:, 0] for part in parts])
    assert sorted(seen.tolist()) == list(range(rows))
    assert kind == "tabular" or len(parts.train) >= min(rows, 1)


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@given(rows=st.lists(st.tuples(text, text, st.sampled_from(["no", "yes"])), min_size=1, max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_quoted_cells_are_read_back(tmp_path: Path, rows: list[tuple[str, str, str]]) -> None:
    def quoted(cell: str) -> str:
        return '"' + cell.replace('"', '""') + '"'

    lines = ["one,two,ill", *(",".join(map(quoted, row)) for row in rows)]
    table = read(write(tmp_path, a="\r\n".join(lines)))

    def expected(place: int) -> list[str]:
        stripped = [row[place].strip() for row in rows]
        return ["" if cell == "?" else cell for cell in stripped]

    assert cells(table) == {"one": expected(0), "two": expected(1)}


@given(data=st.data())
@settings(
    max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_a_damaged_csv_is_read_or_named(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(b'age,"sex",ill\r\n1,"f",no\r\n"2.5",m,yes\r\n,x,no\r\n')
    edits = st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=4)
    for position, value in data.draw(edits):
        raw[position] = value
    folder = write(tmp_path, a=bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    try:
        table = read(folder)
    except DataError as error:
        assert str(folder / "devices" / "a.csv") in str(error)
    else:
        assert set(table.y.tolist()) <= {0, 1}
        assert all(len(column.codes) == len(table) > 0 for column in table.cells.values())


@given(st.lists(st.integers(0, 4), max_size=60), st.integers(0, 2**32))
def test_oversampling_brings_every_class_to_the_most_common(labels: list[int], seed: int) -> None:
    y = np.array(labels, np.int64)
    index = oversample(y, 5, np.random.default_rng(seed))
    assert set(index.tolist()) == set(range(len(y)))
    counts = np.bincount(y[index], minlength=5)
    most = np.bincount(y, minlength=5).max(initial=0)
    assert all(n in (0, most) for n in counts)
    repeats = np.bincount(index, minlength=len(y))
    for label in range(5):
        own = repeats[y == label]
        assert own.size == 0 or np.ptp(own) <= 1
