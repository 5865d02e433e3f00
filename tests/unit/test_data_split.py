"""Data sets made of others: rows dealt anew, and fleets by resampling."""

import csv
import itertools
from collections import Counter

import numpy as np
import pytest

from vitalring.errors import ConfigError, DataError
from vitalring.models.dataset import (
    check_dataset,
    devices,
    load_dataset,
    load_device,
    refuse_by_place,
)
from vitalring.tools.data.folder import NewFolder
from vitalring.tools.data.splitting import SplitOptions, TableOptions, split_data
from vitalring.tools.data.synthesis import SynthOptions, synth_data

PEOPLE = [f"p{i}" for i in range(6)]


def windows(target, held_out=("p4", "p5"), fraction=None, rows=20):
    """Six people; the first value of a window tells the person and the row."""
    table = {"name": "people", "kind": "windows", "classes": ["a", "b", "c"], "sampling_hz": 10}
    table |= {"scale": [0.5, 2], "channels": ["ECG", "steps"], "units": ["mV", ""]}
    table |= {"test_devices": held_out} if fraction is None else {"test_fraction": fraction}
    rng = np.random.default_rng(2)
    with NewFolder(target) as folder:
        for i, person in enumerate(PEOPLE):
            x = np.full((rows, 5, 2), 7, np.int16)
            x[:, 0, 0] = 100 * i + np.arange(rows)
            x[:, 1:, 0] = rng.integers(-50, 50, (rows, 4))
            folder.arrays(person, x, (np.arange(rows) % 3).astype(np.uint8))
        folder.finish(table, [], "")
    return target


def marks(folder, names):
    """Each device's rows by their mark."""
    found = {}
    for name in names:
        with np.load(folder / "devices" / f"{name}.npz") as archive:
            found[name] = archive["x"][:, 0, 0].tolist()
            assert archive["x"].dtype == np.int16
            rows = archive["x"][:, 0, 0] % 100
            assert np.array_equal(archive["y"], rows % 3)
    return found


def table_rows(n=600):
    rng = np.random.default_rng(3)
    for i in range(n):
        ward = rng.choice(["A 1", "B/2", "C", "?"], p=[0.6, 0.3, 0.05, 0.05])
        note = rng.choice(["plain", 'a, "quoted" text', "two\nlines"])
        yield [str(i), f"patient {rng.integers(90)}", ward, note, str(rng.choice(["no", "yes"]))]


HEADER = ["row", "person", "ward", "note", "outcome"]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "Pooled table.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([HEADER, *table_rows()])
    return path


def read(folder):
    found = {}
    for path in (folder / "devices").iterdir():
        with path.open(newline="") as file:
            header, *rows = csv.reader(file)
        assert header == HEADER
        found[path.stem] = rows
    return found


ABOUT = TableOptions("outcome", group="person", ignore=("row",))


def test_held_out_people_keep_their_files_and_train_on_no_device(tmp_path):
    source = windows(tmp_path / "in")
    split_data(source, tmp_path / "out", SplitOptions(devices=8), None)
    out = tmp_path / "out"
    train, test = devices(out, load_dataset(out))
    assert test == ("p4", "p5")
    assert len(train) == 8
    for name in test:
        assert marks(out, [name]) == marks(source, [name])
    dealt = marks(out, train)
    assert {len(rows) for rows in dealt.values()} == {10}
    assert sorted(itertools.chain(*dealt.values())) == [
        100 * i + row for i in range(4) for row in range(20)
    ]
    info = load_dataset(out)
    assert (info.scale, info.sampling_hz) == ((0.5, 2.0), 10.0)
    assert (info.channels, info.units) == (("ECG", "steps"), ("mV", ""))
    assert check_dataset(out).complaints == ()


def test_rows_that_a_fraction_holds_out_are_set_aside_first(tmp_path):
    source = windows(tmp_path / "in", fraction=0.25)
    split_data(source, tmp_path / "out", SplitOptions(devices=5, alpha=1.0), None)
    out = tmp_path / "out"
    train, test = devices(out, load_dataset(out))
    assert test == tuple(f"{person}-held-out" for person in PEOPLE)
    refuse_by_place(out, load_dataset(out))  # what is made serves unit record too
    aside = {row % 100 for rows in marks(out, test).values() for row in rows}
    assert aside == {15, 16, 17, 18, 19}
    used = {row % 100 for rows in marks(out, train).values() for row in rows}
    assert used == set(range(15))
    said = (out / "PROVENANCE.txt").read_text()
    assert "--hold-out" in said
    assert "and stay with their source device\n" in said


def test_whole_devices_can_be_held_out_instead(tmp_path):
    source = windows(tmp_path / "in", fraction=0.25)
    chosen = []
    for devices_ in (3, 7):
        out = tmp_path / f"out{devices_}"
        split_data(source, out, SplitOptions(devices=devices_, hold_out=2, seed=4), None)
        train, test = devices(out, load_dataset(out))
        chosen.append(test)
        kept = {row // 100 for rows in marks(out, test).values() for row in rows}
        dealt = {row // 100 for rows in marks(out, train).values() for row in rows}
        assert len(kept) == 2
        assert not kept & dealt
    assert chosen[0] == chosen[1]  # the same people, whatever is dealt
    with pytest.raises(ConfigError, match="--hold-out 6"):
        split_data(source, tmp_path / "no", SplitOptions(devices=3, hold_out=6), None)


def test_label_skew_is_reproduced_by_its_seed(tmp_path):
    source = windows(tmp_path / "in")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        options = SplitOptions(devices=4, alpha=0.3, seed=seed)
        split_data(source, tmp_path / name, options, None)
    names = devices(tmp_path / "a", load_dataset(tmp_path / "a"))[0]
    a, b, c = (marks(tmp_path / name, names) for name in "abc")
    assert a == b != c


def test_a_pooled_table_by_column(table, tmp_path):
    split_data(table, tmp_path / "out", SplitOptions(by="ward", min_rows=30), ABOUT)
    out = tmp_path / "out"
    found = read(out)
    assert set(found) == {"a-1", "b-2", "rest", "pooled-table-held-out"}
    assert {row[2] for row in found["a-1"]} == {"A 1"}
    assert {row[2] for row in found["rest"]} == {"C", "?"}
    everything = sorted(itertools.chain(*found.values()), key=lambda row: int(row[0]))
    assert everything == list(table_rows())
    info = load_dataset(out)
    assert (info.classes, info.label, info.group) == (("no", "yes"), "outcome", "person")
    assert info.ignore == ("row",)
    assert check_dataset(out).complaints == ()


def test_no_person_of_a_table_trains_and_tests(table, tmp_path):
    about = TableOptions("outcome", group="person", test_fraction=0.3, validation_fraction=0.2)
    split_data(table, tmp_path / "out", SplitOptions(devices=9, alpha=0.5), about)
    found = read(tmp_path / "out")
    test = {row[1] for row in found.pop("pooled-table-held-out")}
    validation = {row[1] for row in found.pop("pooled-table-validation")}
    train = {row[1] for rows in found.values() for row in rows}
    assert len(found) == 9
    assert test
    assert validation
    assert not train & test
    assert not train & validation
    assert not validation & test
    said = (tmp_path / "out" / "PROVENANCE.txt").read_text()
    assert (
        "held-out rows of the whole file were set aside first, a person's rows on one side, as "
        "'pooled-table-held-out', 'pooled-table-validation'\n" in said
    )
    assert "source device" not in said


def test_without_persons_rows_are_held_out(table, tmp_path):
    split_data(table, tmp_path / "out", SplitOptions(devices=3), TableOptions("outcome"))
    found = read(tmp_path / "out")
    assert 80 < len(found["pooled-table-held-out"]) < 160
    said = (tmp_path / "out" / "PROVENANCE.txt").read_text()
    assert "were set aside first, as 'pooled-table-held-out'\n" in said
    assert sum(map(len, found.values())) == 600


def sites(target):
    """Two sites; the columns stand in another order at the second; a person at both."""
    table = {"name": "sites", "kind": "tabular", "classes": ["no", "yes"], "label": "outcome"}
    table |= {"group": "person", "test_devices": ["north"]}
    table["features"] = {"ward": {"categories": ["A 1", "B/2"], "mode": "A 1"}}
    table["ignore"] = ["row", "note"]
    rows = list(table_rows())
    with NewFolder(target) as folder:
        folder.rows("north", HEADER, [row for row in rows if row[2] == "A 1"][:100], 4)
        south = [row[::-1] for row in rows if row[2] == "B/2"]
        folder.rows("south", HEADER[::-1], south, 0)
        folder.finish(table, [], "")
    return target


def test_rows_of_held_out_persons_are_dropped_elsewhere_and_counted(tmp_path):
    source = sites(tmp_path / "in")
    split_data(source, tmp_path / "out", SplitOptions(devices=4, min_rows=3), None)
    with (source / "devices" / "south.csv").open(newline="") as file:
        south = list(csv.DictReader(file))
    found = read(tmp_path / "out")
    north = {row[1] for row in found.pop("north")}
    kept = sorted(row[0] for rows in found.values() for row in rows)
    assert kept == sorted(row["row"] for row in south if row["person"] not in north)
    dropped = len(south) - len(kept)
    assert dropped > 0
    text = (tmp_path / "out" / "PROVENANCE.txt").read_text()
    assert f"{dropped} rows left out: their person is held out elsewhere" in text
    assert load_dataset(tmp_path / "out").features == load_dataset(source).features


@pytest.mark.parametrize(
    ("options", "about", "error", "message"),
    [
        ({"devices": 100}, ABOUT, DataError, "fewer than 10"),
        ({"by": "ward", "min_rows": 80}, ABOUT, DataError, "'rest' would have"),
        ({"devices": 3}, None, ConfigError, "--label"),
        ({"by": "hospital"}, ABOUT, DataError, "no column 'hospital'"),
        ({"devices": 3}, TableOptions("result"), DataError, "no column 'result'"),
        ({"devices": 3}, TableOptions("ward"), DataError, "rows have no label"),
        ({"devices": 3}, TableOptions("outcome", test_fraction=1.5), ConfigError, "fraction"),
        ({"devices": 3, "hold_out": 1}, ABOUT, ConfigError, "--test-fraction"),
        ({}, ABOUT, ConfigError, "either --by"),
        ({"by": "ward", "alpha": 1.0}, ABOUT, ConfigError, "--alpha needs --devices"),
    ],
)
def test_what_cannot_be_split_is_refused_and_nothing_is_left(
    table, tmp_path, options, about, error, message
):
    with pytest.raises(error, match=message):
        split_data(table, tmp_path / "out", SplitOptions(**options), about)
    assert [path.name for path in tmp_path.iterdir()] == [table.name]


def test_devices_that_are_unlike_are_not_mixed(tmp_path):
    source = windows(tmp_path / "in")
    np.savez(source / "devices" / "p1.npz", x=np.zeros((3, 5, 2)), y=np.zeros(3, int))
    with pytest.raises(DataError, match=r"p1\.npz: array 'x' has rows"):
        split_data(source, tmp_path / "out", SplitOptions(devices=3), None)
    with pytest.raises(DataError, match="holds arrays"):
        split_data(source, tmp_path / "out", SplitOptions(by="ward"), None)


def sources_of(folder):
    lines = (folder / "PROVENANCE.txt").read_text().split("(device, source)\n")[1].splitlines()
    return dict(line.split() for line in lines)


def test_each_synthetic_device_is_made_of_one_device_that_trains(tmp_path):
    source = windows(tmp_path / "in")
    synth_data(source, tmp_path / "out", SynthOptions(30), print)
    out = tmp_path / "out"
    info = load_dataset(out)
    train, test = devices(out, info)
    assert (info.channels, info.units) == (("ECG", "steps"), ("mV", ""))
    assert test == ("p4", "p5")
    assert marks(out, test) == marks(source, test)
    origin = sources_of(out)
    assert set(origin) == set(train)
    assert len(train) == 30
    made = marks(out, train)
    for name, rows in made.items():
        assert len(rows) == 20
        assert {f"p{row // 100}" for row in rows} == {origin[name]}
        assert len(set(rows)) < 20  # drawn with replacement
    turns = Counter(origin.values())
    assert set(turns) == {"p0", "p1", "p2", "p3"}
    assert max(turns.values()) - min(turns.values()) <= 1
    assert len({tuple(rows) for rows in made.values()}) == 30
    for text in ((out / "dataset.toml").read_text(), (out / "README.txt").read_text()):
        assert "Resampled: 30 synthetic devices made of the rows of 4 devices" in text
    assert check_dataset(out).complaints == ()


def test_rows_held_out_on_a_source_are_never_resampled(tmp_path):
    source = windows(tmp_path / "in", fraction=0.25)
    synth_data(source, tmp_path / "out", SynthOptions(12, rows=50), print)
    out = tmp_path / "out"
    train, test = devices(out, load_dataset(out))
    assert all(len(rows) == 50 for rows in marks(out, train).values())
    assert max(row % 100 for rows in marks(out, train).values() for row in rows) == 14
    assert min(row % 100 for rows in marks(out, test).values() for row in rows) == 15


def test_jitter_moves_the_signal_and_keeps_constant_channels_constant(tmp_path):
    source = windows(tmp_path / "in", rows=60)
    synth_data(source, tmp_path / "plain", SynthOptions(4), print)
    synth_data(source, tmp_path / "noisy", SynthOptions(4, jitter=0.5), print)
    info = load_dataset(source)
    origin = sources_of(tmp_path / "noisy")
    for name in devices(tmp_path / "noisy", load_dataset(tmp_path / "noisy"))[0]:
        plain, noisy = (load_device(tmp_path / f, name, info).x for f in ("plain", "noisy"))
        moved = noisy[:, :, 0] - plain[:, :, 0]
        spread = load_device(source, origin[name], info).x[:, :, 0].std()
        assert 0.4 * spread < moved.std() < 0.6 * spread
        assert np.array_equal(noisy[:, :, 1], plain[:, :, 1])


def test_a_fleet_of_tables(tmp_path, table):
    split_data(table, tmp_path / "in", SplitOptions(by="ward", min_rows=10), ABOUT)
    synth_data(tmp_path / "in", tmp_path / "out", SynthOptions(7, rows=30), print)
    found, real = read(tmp_path / "out"), read(tmp_path / "in")
    assert sorted(found["pooled-table-held-out"]) == sorted(real["pooled-table-held-out"])
    for name, origin in sources_of(tmp_path / "out").items():
        assert len(found[name]) == 30
        assert all(row in real[origin] for row in found[name])
    assert set(sources_of(tmp_path / "out").values()) == {"a-1", "b-2", "c", "unknown"}
    with pytest.raises(ConfigError, match="--jitter is for arrays"):
        synth_data(tmp_path / "in", tmp_path / "no", SynthOptions(7, jitter=0.1), print)


def test_a_device_is_the_same_in_fleets_of_any_size(tmp_path):
    source = windows(tmp_path / "in")
    synth_data(source, tmp_path / "nine", SynthOptions(9, seed=3), print)
    synth_data(source, tmp_path / "five", SynthOptions(5, seed=3), print)
    synth_data(source, tmp_path / "other", SynthOptions(5, seed=4), print)
    five = marks(tmp_path / "five", [f"synth-{i}" for i in range(1, 6)])
    nine = marks(tmp_path / "nine", list(five))
    assert five == nine
    assert five != marks(tmp_path / "other", list(five))


@pytest.mark.parametrize(
    "options", [{"devices": 0}, {"devices": 3, "rows": 0}, {"devices": 3, "jitter": -1}]
)
def test_a_fleet_that_cannot_be_is_refused(options):
    with pytest.raises(ConfigError):
        SynthOptions(**options)
