"""Which rows of a table train: a function of each row alone, whatever else the file holds."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitalring.models.dataset import (
    check_dataset,
    devices,
    load_dataset,
    load_device,
    load_part,
    load_table,
    split,
)
from vitalring.models.dataset.lots import array_lots, group_lots, table_lots
from vitalring.models.dataset.split import divide

CSV_TOML = """
name = "ward"
kind = "tabular"
classes = ["no", "yes"]
label = "ill"
missing = ["?"]
ignore = ["number"]
test_fraction = 0.3
validation_fraction = 0.2
"""
NPZ_TOML = """
name = "ward"
kind = "tabular"
classes = ["no", "yes"]
test_fraction = 0.3
validation_fraction = 0.2
"""
FEATURES = """
[features]
age = {mean = 50, std = 10}
ward = {categories = ["a", "b"], mode = "a"}
"""
GOLDEN = {
    "numbers": 0x5E0DDE6C7AF72242,
    "cells": 0x5642B5D33389D8E0,
    "group": 0x99263AD24799C9A0,
}
COLUMNS = ("age", "ward", "ill", "number")

Row = tuple[str, ...]
Numbers = tuple[float, ...]

# Few values, so that equal rows are frequent.
text_rows = st.lists(
    st.tuples(
        st.sampled_from(["61", "62", "61.0", "?", "", "47.5"]),
        st.sampled_from(["a", "b", "b,c", "ä", "?"]),
        st.sampled_from(["no", "yes"]),
    ),
    min_size=2,
    max_size=12,
)
number_rows = st.lists(
    st.tuples(st.sampled_from([0.0, -0.0, 1.5, -2.25]), st.integers(0, 3), st.integers(0, 1)),
    min_size=2,
    max_size=12,
)
on_files = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def prepared(folder: Path, toml: str) -> Path:
    (folder / "devices").mkdir(parents=True, exist_ok=True)
    (folder / "dataset.toml").write_text(toml)
    return folder


def sides(parts: tuple[object, object, object], n: int) -> list[int]:
    """Return each row's part: 0 train, 1 validation, 2 test."""
    found = np.full(n, -1)
    for part, rows in enumerate(parts):
        assert (found[rows] == -1).all()
        found[rows] = part
    assert (found >= 0).all()
    return found.tolist()


def of_csv(
    folder: Path, rows: Sequence[Row], columns: Sequence[str] = COLUMNS, device: str = "a"
) -> list[int]:
    """Write rows, each numbered in a column that is no feature, and return their parts."""
    with (folder / "devices" / f"{device}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for number, row in enumerate(rows):
            writer.writerow(dict(zip(COLUMNS, (*row, str(number)), strict=True)))
    info = load_dataset(folder)
    return sides(divide(load_table(folder, device, info), info), len(rows))


def of_npz(folder: Path, rows: Sequence[Numbers], device: str = "a") -> list[int]:
    x = np.array([row[:2] for row in rows], np.float64)
    y = np.array([row[2] for row in rows], np.int64)
    np.savez(folder / "devices" / f"{device}.npz", x=x, y=y)
    info = load_dataset(folder)
    return sides(divide(load_device(folder, device, info), info), len(rows))


def check_each_row_alone(of: Callable[..., list[int]], rows: Sequence[object], data: st.DataObject):
    """Leave each row out in turn, and order them anew: no other row changes its part."""
    whole = of(rows)
    for place in range(len(rows)):
        if len(rows) > 1:
            without = [*rows[:place], *rows[place + 1 :]]
            assert of(without) == [*whole[:place], *whole[place + 1 :]]
    order = data.draw(st.permutations(range(len(rows))))
    assert of([rows[n] for n in order]) == [whole[n] for n in order]


@given(rows=text_rows, data=st.data())
@on_files
def test_a_csv_row_more_or_less_changes_no_other(
    tmp_path: Path, rows: list[Row], data: st.DataObject
) -> None:
    folder = prepared(tmp_path, CSV_TOML)
    check_each_row_alone(lambda some: of_csv(folder, some), rows, data)


@given(rows=number_rows, data=st.data())
@on_files
def test_a_row_of_numbers_more_or_less_changes_no_other(
    tmp_path: Path, rows: list[Numbers], data: st.DataObject
) -> None:
    folder = prepared(tmp_path, NPZ_TOML)
    check_each_row_alone(lambda some: of_npz(folder, some), rows, data)


def people(n: int) -> list[Row]:
    return [(f"{20 + k / 64}", "ab"[k % 2], ("no", "yes")[k % 3 == 0]) for k in range(n)]


@pytest.mark.parametrize("place", [0, 1, 500, 999, 1000])
def test_of_a_long_table_one_row_is_the_difference(tmp_path: Path, place: int) -> None:
    folder, rows = prepared(tmp_path, CSV_TOML), people(1001)
    whole = of_csv(folder, rows)
    assert of_csv(folder, rows[:place] + rows[place + 1 :]) == whole[:place] + whole[place + 1 :]
    numbers = [(float(row[0]), k % 7, k % 2) for k, row in enumerate(rows)]
    folder = prepared(tmp_path / "npz", NPZ_TOML)
    parts = of_npz(folder, numbers)
    assert of_npz(folder, numbers[:place] + numbers[place + 1 :]) == (
        parts[:place] + parts[place + 1 :]
    )


def test_shares_are_near_the_fractions(tmp_path: Path) -> None:
    found = np.bincount(of_csv(prepared(tmp_path / "csv", CSV_TOML), people(6000))) / 6000
    np.testing.assert_allclose(found, [0.5, 0.2, 0.3], atol=0.025)
    numbers = [(k / 8, k % 5, k % 2) for k in range(6000)]
    found = np.bincount(of_npz(prepared(tmp_path / "npz", NPZ_TOML), numbers)) / 6000
    np.testing.assert_allclose(found, [0.5, 0.2, 0.3], atol=0.025)


def test_a_row_has_one_side_at_every_device_and_in_every_order_of_columns(tmp_path: Path) -> None:
    folder, rows = prepared(tmp_path, CSV_TOML), people(300)
    here = of_csv(folder, rows)
    assert of_csv(folder, rows, ("number", "ill", "ward", "age"), device="b") == here
    assert len(set(here)) == 3
    folder = prepared(tmp_path / "npz", NPZ_TOML)
    numbers = [(k / 8, k % 5, k % 2) for k in range(300)]
    assert of_npz(folder, numbers) == of_npz(folder, numbers, device="b")


def test_marks_of_unknown_cells_and_blanks_do_not_count(tmp_path: Path) -> None:
    folder, rows = prepared(tmp_path, CSV_TOML), people(300)
    unknown, empty = ([(mark, *row[1:]) for row in rows] for mark in ("?", " "))
    assert of_csv(folder, unknown) == of_csv(folder, empty)
    spread = [tuple(f" {cell} " for cell in row) for row in rows]
    assert of_csv(folder, spread) == of_csv(folder, rows)


def test_encoded_rows_stay_where_their_texts_were(tmp_path: Path) -> None:
    folder, rows = prepared(tmp_path, CSV_TOML + FEATURES), people(400)
    texts = of_csv(folder, rows)
    info = load_dataset(folder)
    records = load_device(folder, "a", info)
    assert sides(divide(records, info), 400) == texts
    # A part of them is divided as it was in the whole.
    some = records.take(np.arange(0, 400, 3))
    assert sides(divide(some, info), len(some)) == texts[::3]
    assert [
        len(load_part(folder, "a", info, part)) for part in ("train", "validation", "test")
    ] == [texts.count(part) for part in range(3)]


def test_a_device_whose_every_row_is_drawn_has_none_to_train_on(tmp_path: Path) -> None:
    folder, rows = prepared(tmp_path, CSV_TOML), people(300)
    whole = of_csv(folder, rows)
    tested = [row for row, part in zip(rows, whole, strict=True) if part == 2]
    assert set(of_csv(folder, tested)) == {2}
    assert [
        len(part)
        for part in split(load_table(folder, "a", load_dataset(folder)), load_dataset(folder))
    ] == [0, 0, len(tested)]
    (complaint,) = check_dataset(folder).complaints
    assert "no row of any device is left to train on; hold out fewer rows" in complaint


def test_the_label_and_every_cell_count() -> None:
    def lot(cells: dict[str, str], label: int = 0) -> int:
        one = np.zeros(1, np.int32)
        made = {name: ((text,), one) for name, text in cells.items()}
        return int(table_lots(made, np.array([label]))[0])

    row = {"age": "61", "ward": "a"}
    others = [
        lot(row, 1),
        lot({**row, "age": "62"}),
        lot({"age": "a", "ward": "61"}),
        lot({"agew": "61", "ard": "a"}),
        lot({"age": "61"}),
    ]
    assert len({lot(row), *others}) == 6
    assert lot(row) == lot(dict(reversed(row.items())))


def test_lots_are_the_documented_hashes() -> None:
    """Another value would move rows of installed devices from test to training."""
    x, y = np.array([[0.0, 1.5], [-0.0, 1.5]], np.float32), np.array([1, 1])
    assert array_lots(x, y).tolist() == [GOLDEN["numbers"]] * 2
    cells = {"age": (("61",), np.zeros(1, np.int32)), "sex": (("",), np.zeros(1, np.int32))}
    assert table_lots(cells, np.array([1])).tolist() == [GOLDEN["cells"]]
    assert group_lots(["p1"]).tolist() == [GOLDEN["group"]]
    assert array_lots(x[:0], y[:0]).shape == table_lots(cells, y[:0]).shape == (0,)


def test_lots_of_many_rows_are_those_of_each(tmp_path: Path) -> None:
    n = 9000  # more than are hashed at a time
    codes = (np.arange(n) % 101).astype(np.int32)
    texts, y = tuple(map(str, range(101))), np.arange(n) % 2
    whole = table_lots({"age": (texts, codes)}, y)
    assert whole.shape == (n,)
    for start in (0, 4095, 4096, 8999):
        one = slice(start, start + 1)
        assert table_lots({"age": (texts, codes[one])}, y[one])[0] == whole[start]


def test_a_folder_that_only_trains(tmp_path: Path) -> None:
    toml = CSV_TOML.replace("test_fraction = 0.3\nvalidation_fraction = 0.2", "test_devices = []")
    folder = prepared(tmp_path, toml)
    assert of_csv(folder, people(30)) == [0] * 30
    info = load_dataset(folder)
    assert devices(folder, info) == (("a",), ())
    checked = check_dataset(folder)
    assert checked.good
    assert any("test_devices is empty" in note for note in checked.notes)
