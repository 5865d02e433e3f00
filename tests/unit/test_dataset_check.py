"""Broken folders: every complaint names the file, the row or array, and the cure."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vitalring.errors import DataError
from vitalring.models.dataset import (
    check_dataset,
    devices,
    input_shape,
    load_dataset,
    load_device,
    load_table,
    refuse_by_place,
    split,
)
from vitalring.models.dataset.statistics import answer, count, question_of
from vitalring.protocol.limbs import from_limbs, to_limbs

WINDOWS = 'name = "w"\nkind = "windows"\nclasses = ["N", "V"]\nsampling_hz = 50\n'
TABULAR = 'name = "t"\nkind = "tabular"\nclasses = ["no", "yes"]\nlabel = "ill"\nmissing = ["?"]\n'


def windows(folder: Path, toml: str = 'test_devices = ["c"]\n') -> Path:
    (folder / "devices").mkdir(parents=True)
    (folder / "dataset.toml").write_text(WINDOWS + toml)
    for name in "abc":
        save(folder, name)
    return folder


def save(folder: Path, name: str, **arrays: np.ndarray) -> None:
    rows = {"x": np.ones((6, 5, 2)), "y": np.array([0, 1] * 3)} | arrays
    np.savez(folder / "devices" / f"{name}.npz", **rows)


def table(folder: Path, toml: str = "test_fraction = 0.3\n") -> Path:
    (folder / "devices").mkdir(parents=True)
    (folder / "dataset.toml").write_text(TABULAR + toml)
    for number, name in enumerate("abc"):
        lines = [
            f"{40 + n},{'fm?'[n % 3]},{n % 7 + number},{['no', 'yes'][n % 2]}" for n in range(40)
        ]
        put(folder, name, "\n".join(["age,sex,dose,ill", *lines]))
    return folder


def put(folder: Path, name: str, text: str | bytes) -> None:
    data = text if isinstance(text, bytes) else text.encode()
    (folder / "devices" / f"{name}.csv").write_bytes(data)


def edit(folder: Path, name: str, old: str, new: str, times: int = 1) -> None:
    path = folder / "devices" / f"{name}.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, times))


def toml(folder: Path, old: str, new: str) -> None:
    path = folder / "dataset.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_a_good_folder_of_windows(tmp_path: Path) -> None:
    checked = check_dataset(windows(tmp_path / "w"))
    assert checked.good
    assert checked.notes == ()
    assert checked.shape == (5, 2)
    assert checked.features is None
    assert [(d.device, d.rows, d.classes, d.train, d.test) for d in checked.devices] == [
        ("a", 6, (3, 3), 6, 0),
        ("b", 6, (3, 3), 6, 0),
        ("c", 6, (3, 3), 0, 6),
    ]


def test_a_good_folder_of_tables(tmp_path: Path) -> None:
    folder = table(tmp_path / "t")
    # b has its columns in another order, and lacks a category.
    rows = [line.split(",") for line in (folder / "devices/b.csv").read_text().splitlines()]
    put(folder, "b", "\n".join(",".join([r[3], r[1].replace("m", "f"), r[0], r[2]]) for r in rows))
    checked = check_dataset(folder)
    assert checked.complaints == ()
    assert checked.features is not None
    assert checked.features.columns == ("age", "dose", "sex")
    assert checked.shape == (checked.features.inputs,) == (5,)
    # The sites agree on the same features through the sum.
    info = load_dataset(folder)
    tables = [
        split(load_table(folder, name, info), info).train for name in devices(folder, info)[0]
    ]
    question = question_of(info, tables[0].columns)
    limbs = [to_limbs(count(question, each), question.widths) for each in tables]
    totals = from_limbs(np.sum(limbs, axis=0, dtype=np.uint64), question.widths, 3)
    features = answer(question, totals)
    assert features == checked.features
    for name in "abc":
        records = load_device(folder, name, info, features)
        assert records.x.shape == (40, *input_shape(folder, info, features))
        assert (records.x[:, 2:].sum(axis=1) == 1).all()


BROKEN_WINDOWS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no toml": (lambda f: (f / "dataset.toml").unlink(), r"dataset\.toml: cannot be read"),
    "not toml": (lambda f: toml(f, "kind =", "kind"), r"dataset\.toml: is not TOML"),
    "unknown key": (
        lambda f: toml(f, "sampling_hz", "sampling_rate = 1\nsampling_hz"),
        r"dataset\.toml: unknown key 'sampling_rate'; allowed: channels",
    ),
    "NaN": (
        lambda f: save(f, "b", x=np.full((6, 5, 2), np.nan)),
        r"b\.npz: array 'x', row 0: holds NaN.*drop the 6 such rows",
    ),
    "shape between devices": (
        lambda f: save(f, "b", x=np.ones((6, 4, 2))),
        r"b\.npz: array 'x' has rows of shape \(4, 2\), but other devices have \(5, 2\)",
    ),
    "dimensions": (lambda f: save(f, "b", x=np.ones(6)), r"b\.npz: array 'x' has shape \(6,\)"),
    "channels": (
        lambda f: toml(f, "sampling_hz", 'channels = ["a", "b", "c"]\nsampling_hz'),
        r"a\.npz: array 'x' has 2 channels, but channels in dataset.toml has 3 names; give one",
    ),
    "units": (
        lambda f: toml(f, "sampling_hz", 'channels = ["a", "b"]\nunits = ["g"]\nsampling_hz'),
        r"dataset\.toml: units has 1 texts, channels has 2; give one unit for each",
    ),
    "scale": (
        lambda f: toml(f, "sampling_hz", "scale = [1, 2, 3]\nsampling_hz"),
        r"a\.npz: array 'x' has 2 channels, but scale in dataset.toml has 3 factors",
    ),
    "empty device": (
        lambda f: save(f, "b", x=np.ones((0, 5, 2)), y=np.zeros(0, int)),
        r"b\.npz: array 'y' holds no row; remove the file",
    ),
    "label outside": (
        lambda f: save(f, "b", y=np.array([0, 1, 2, 0, 0, 0])),
        r"b\.npz: array 'y', row 2: label 2 is outside the 2 classes",
    ),
    "test device missing": (
        lambda f: (f / "devices/c.npz").unlink(),
        r"dataset\.toml: test_devices names 'c', but .*c\.npz does not exist; add the file",
    ),
    "array missing": (
        lambda f: np.savez(f / "devices/b.npz", x=np.ones((6, 5, 2))),
        r"b\.npz: array 'y' is missing; write it with",
    ),
    "not npz": (
        lambda f: (f / "devices/b.npz").write_text("x"),
        r"b\.npz: is not an intact .npz file",
    ),
    "stray file": (
        lambda f: (f / "devices/notes.txt").write_text("x"),
        r"notes\.txt: is not a device's file; name it <id>\.npz",
    ),
    "csv": (lambda f: put(f, "d", "x,y\n"), r"d\.csv: windows do not come as csv"),
    "no devices": (
        lambda f: [path.unlink() for path in (f / "devices").iterdir()],
        r"devices: holds no device; put one \.npz file",
    ),
}

BROKEN_TABLES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no label key": (
        lambda f: toml(f, 'label = "ill"\n', ""),
        r"a\.csv: dataset\.toml does not say which column is the label",
    ),
    "label column missing": (
        lambda f: edit(f, "b", "ill", "sick"),
        r"b\.csv: line 1: column 'ill' is missing.*names it as label",
    ),
    "label outside": (
        lambda f: edit(f, "b", "yes", "Yes", 2),
        r"b\.csv: line 3: label 'Yes' is none of the classes .*\(2 such rows\); correct",
    ),
    "ragged row": (
        lambda f: edit(f, "b", "41,m,2,yes", "41,m,2"),
        r"b\.csv: line 3: has 3 cells, but the header has 4; give each",
    ),
    "not utf-8": (
        lambda f: put(f, "b", "age,sex,dose,ill\n1,männlich,1,no\n".encode("latin-1")),
        r"b\.csv: line 2, byte 4: is not UTF-8; save the file as UTF-8",
    ),
    "duplicate header": (
        lambda f: edit(f, "b", "sex", "age"),
        r"b\.csv: line 1: column 'age' stands there twice; rename",
    ),
    "site lacks a column": (
        lambda f: put(f, "b", "age,sex,ill\n1,f,no\n2,m,yes\n"),
        r"b\.csv: line 1: column 'dose' is missing, but this study has it; add it",
    ),
    "site has a column more": (
        lambda f: put(f, "b", "age,sex,dose,zip,ill\n1,f,1,9,no\n2,m,2,9,yes\n"),
        r"b\.csv: line 1: column 'zip' is none of this study's; remove it, or add it to ignore",
    ),
    "empty device": (
        lambda f: put(f, "b", "age,sex,dose,ill\n"),
        r"b\.csv: holds no row; remove the file",
    ),
    "text in a declared number": (
        lambda f: (
            toml(
                f,
                "test_fraction",
                "features.age = {mean = 60, std = 9}\nfeatures.dose = {mean = 1, std = 1}\n"
                'features.sex = {categories = ["f", "m"]}\ntest_fraction',
            ),
            edit(f, "b", "41,", "old,"),
        )[0],
        r"b\.csv: line 3: column 'age' holds 'old', but it is a number",
    ),
    "beyond fixed point": (
        lambda f: edit(f, "b", "41,", "41000000000,"),
        r"b\.csv: line 3: column 'age' holds '41000000000', beyond ±2\^32.*larger unit",
    ),
    "two formats": (
        lambda f: np.savez(f / "devices/d.npz", x=np.ones((2, 3)), y=[0, 1]),
        r"d\.npz: is \.npz, but a\.csv is not; use one format",
    ),
    "two files of a device": (
        lambda f: np.savez(f / "devices/a.npz", x=np.ones((2, 3)), y=[0, 1]),
        r"a\.npz: the same device has a\.csv too; keep one",
    ),
    "nothing to test": (
        lambda f: toml(f, "test_fraction = 0.3", "test_fraction = 0.0000001"),
        r"dataset\.toml: no row of any device is left to test on; raise test_fraction",
    ),
    "test device missing": (
        lambda f: toml(f, "test_fraction = 0.3", 'test_devices = ["z"]'),
        r"dataset\.toml: test_devices names 'z', but .*z\.csv does not exist",
    ),
}


@pytest.mark.parametrize(
    ("held_out", "keys"),
    [
        ("test_fraction = 0.3", "test_fraction"),
        ('test_devices = ["c"]\nvalidation_fraction = 0.2', "validation_fraction"),
        ("test_fraction = 0.3\nvalidation_fraction = 0.2", "test_fraction and validation_fraction"),
    ],
)
def test_windows_held_out_by_place_are_noted_and_refused_for_records(
    tmp_path: Path, held_out: str, keys: str
) -> None:
    folder = windows(tmp_path / "w", held_out + "\n")
    checked = check_dataset(folder)
    assert checked.good
    (note,) = checked.notes
    with pytest.raises(DataError) as refused:
        refuse_by_place(folder, load_dataset(folder))
    for said in (note, str(refused.value).removeprefix(f"{folder / 'dataset.toml'}: ")):
        assert said.startswith(f"{keys} of windows moves its border")
        assert "hold out whole devices with test_devices and validation_devices" in said
    for fit in (windows(tmp_path / "devices"), table(tmp_path / "t", held_out + "\n")):
        refuse_by_place(fit, load_dataset(fit))
        assert check_dataset(fit).notes == ()


@pytest.mark.parametrize("name", BROKEN_WINDOWS)
def test_broken_windows(tmp_path: Path, name: str) -> None:
    break_it, match = BROKEN_WINDOWS[name]
    check_broken(windows(tmp_path / "w"), break_it, match)


@pytest.mark.parametrize("name", BROKEN_TABLES)
def test_broken_tables(tmp_path: Path, name: str) -> None:
    break_it, match = BROKEN_TABLES[name]
    check_broken(table(tmp_path / "t"), break_it, match)


def check_broken(folder: Path, break_it: Callable[[Path], None], match: str) -> None:
    assert check_dataset(folder).complaints == ()
    break_it(folder)
    checked = check_dataset(folder)
    assert not checked.good
    assert checked.shape is None
    assert any(re.search(match, line) for line in checked.complaints), checked.complaints
    assert all(line.startswith(str(folder)) and "\n" not in line for line in checked.complaints)


def test_every_complaint_is_collected(tmp_path: Path) -> None:
    folder = windows(tmp_path / "w", 'test_devices = ["c", "d"]\n')
    save(folder, "a", x=np.full((6, 5, 2), np.inf), y=np.array([9] * 6))
    save(folder, "b", y=np.zeros(5, int))
    (folder / "devices" / "notes.txt").write_text("x")
    complaints = "\n".join(check_dataset(folder).complaints)
    for part in ("'d'", "notes.txt", "array 'y', row 0: label 9", "row 0: holds NaN", "has 5"):
        assert part in complaints
    assert len(complaints.splitlines()) == 5

    folder = table(tmp_path / "t", 'nonsense = 1\nscale = []\ntest_fraction = "half"\n')
    complaints = "\n".join(check_dataset(folder).complaints)
    for part in ("'nonsense'", "scale is []", "test_fraction is 'half'"):
        assert part in complaints

    folder = table(tmp_path / "u")
    edit(folder, "a", "age,sex,dose,ill", "age,,dose,sick")
    edit(folder, "a", "41,m,1,yes", "41")
    edit(folder, "b", "yes", "y")
    edit(folder, "c", "41,", "-1e30,")
    complaints = "\n".join(check_dataset(folder).complaints)
    for part in ("column 2", "'ill' is missing", "line 3: has 1 cells", "label 'y'", "±2^32"):
        assert part in complaints


def test_many_complaints_of_one_file_are_counted(tmp_path: Path) -> None:
    folder = table(tmp_path / "t")
    put(folder, "a", "\n".join(["age,sex,dose,ill", *["1"] * 500]))
    put(folder, "b", "\n".join(["age,sex,dose,ill", *(f"1,f,1,{n}" for n in range(500))]))
    complaints = check_dataset(folder).complaints
    assert len(complaints) == 42
    assert any("500 rows in all" in line for line in complaints)
    assert any("500 different labels in all" in line for line in complaints)


def test_notes_say_what_looks_unintended(tmp_path: Path) -> None:
    folder = table(tmp_path / "t")
    toml(folder, '["no", "yes"]', '["no", "yes", "unsure"]')
    lines = [f"{n},f,0.00{n % 9},no,name {n}" for n in range(60)]
    text = "\n".join(["age,sex,dose,ill,who", *lines])
    for name, content in (("a", text), ("b", text.replace("41,", "n/a,")), ("c", text)):
        put(folder, name, content)
    checked = check_dataset(folder)
    assert checked.good
    notes = "\n".join(checked.notes)
    assert "b.csv: column 'age' is a category, for 1 of its 60 cells are texts" in notes
    assert "'n/a' on line 43" in notes
    assert "column 'who' has 60 different texts in 60 cells" in notes
    assert "column 'dose' spreads by 0.0025 only" in notes
    assert "no device has a row of class 'unsure'" in notes
