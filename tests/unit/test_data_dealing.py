"""`vitalring data deal`: fleets of virtual devices, each of one person's records."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitalring.errors import ConfigError, DataError
from vitalring.models.dataset import check_dataset, devices, load_dataset, load_device, split
from vitalring.tools.cli import main
from vitalring.tools.data.dealing import DealOptions, deal_data
from vitalring.tools.data.folder import NewFolder
from vitalring.tools.data.partition import within_people

SIZES = {"p0": 3, "p1": 11, "p2": 40, "p3": 26, "p4": 8, "p5": 9}


def windows(target, **held_out):
    """Six people; the first value of a window tells the person and the row."""
    table = {"name": "people", "kind": "windows", "classes": ["a", "b"], "sampling_hz": 10}
    table |= {"scale": [0.5, 2], "channels": ["ECG", "steps"], "units": ["mV", ""]}
    with NewFolder(target) as folder:
        for i, (person, rows) in enumerate(SIZES.items()):
            x = np.full((rows, 5, 2), 7, np.int16)
            x[:, 0, 0] = 100 * i + np.arange(rows)
            folder.arrays(person, x, (np.arange(rows) % 2).astype(np.uint8))
        folder.finish(table | (held_out or {"test_devices": ["p5"]}), [], "")
    return target


def marks(folder, names, part="train"):
    """Each device's rows by their mark, of what trains or else of all."""
    info = load_dataset(folder)
    found = {}
    for name in names:
        records = load_device(folder, name, info)
        records = split(records, info).train if part == "train" else records
        rows = np.rint(records.x[:, 0, 0] / 0.5).astype(int)
        assert np.array_equal(records.y, rows % 100 % 2)
        found[name] = rows.tolist()
    return found


def sources_of(folder):
    lines = (folder / "PROVENANCE.txt").read_text().split("(device, source)\n")[1].splitlines()
    return dict(line.split() for line in lines)


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    devices=st.integers(1, 200),
    seed=st.integers(0, 99),
)
def test_people_get_devices_in_proportion(sizes, devices, seed):
    generator = np.random.default_rng(seed)
    if devices < len(sizes):
        with pytest.raises(ConfigError, match=f"{len(sizes)} people"):
            within_people(sizes, devices, generator)
        return
    if sum(sizes) < devices:
        with pytest.raises(DataError, match=f"cannot make {devices} devices"):
            within_people(sizes, devices, generator)
        return
    dealt = within_people(sizes, devices, generator)
    assert sum(map(len, dealt)) == devices
    for n, parts in zip(sizes, dealt, strict=True):
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(n))
        assert min(map(len, parts)) >= 1
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    # Nobody could give a device away without having larger ones than whoever took it.
    for n, parts in zip(sizes, dealt, strict=True):
        for other, theirs in zip(sizes, dealt, strict=True):
            if len(parts) > 1:
                assert n / (len(parts) - 1) >= other / len(theirs)


def test_every_record_is_on_one_virtual_device_of_its_person(tmp_path):
    source = windows(tmp_path / "in", test_devices=["p5"], validation_devices=["p4"])
    out = tmp_path / "out"
    deal_data(source, out, DealOptions(20))
    info = load_dataset(out)
    train, test = devices(out, info)
    assert (test, info.validation_devices) == (("p5",), ("p4",))
    assert marks(out, ["p4", "p5"], "all") == marks(source, ["p4", "p5"], "all")
    assert (info.channels, info.units, info.scale) == (("ECG", "steps"), ("mV", ""), (0.5, 2))
    origin = sources_of(out)
    dealt = marks(out, train)
    assert set(origin) == set(train)
    assert len(train) == 20
    for name, rows in dealt.items():
        assert {f"p{row // 100}" for row in rows} == {origin[name]}
    everything = marks(source, ["p0", "p1", "p2", "p3"])
    assert sorted(chain(*dealt.values())) == sorted(chain(*everything.values()))
    assert Counter(origin.values()) == {"p0": 1, "p1": 3, "p2": 10, "p3": 6}
    assert check_dataset(out).complaints == ()


def test_rows_held_out_on_a_device_are_not_dealt(tmp_path):
    source = windows(tmp_path / "in", test_fraction=0.25, validation_fraction=0.25)
    out = tmp_path / "out"
    deal_data(source, out, DealOptions(12))
    train, _ = devices(out, load_dataset(out))
    info = load_dataset(source)
    wanted = [
        100 * i + row
        for i, name in enumerate(SIZES)
        for row in range(len(split(load_device(source, name, info), info).train))
    ]
    assert len(train) == 12
    assert sorted(chain(*marks(out, train).values())) == wanted


def test_the_seed_decides_who_gets_what(tmp_path):
    source = windows(tmp_path / "in")
    made = {}
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        deal_data(source, tmp_path / name, DealOptions(15, seed))
        train, _ = devices(tmp_path / name, load_dataset(tmp_path / name))
        made[name] = marks(tmp_path / name, train)
    assert made["one"] == made["again"]
    assert made["one"] != made["other"]


def test_what_cannot_be_dealt_is_said_and_leaves_nothing(tmp_path):
    source = windows(tmp_path / "in")
    with pytest.raises(DataError, match="88 rows to train on cannot make 89 devices"):
        deal_data(source, tmp_path / "out", DealOptions(89))
    with pytest.raises(ConfigError, match="5 people"):
        deal_data(source, tmp_path / "out", DealOptions(4))
    with pytest.raises(ConfigError, match="--devices 0"):
        DealOptions(0)
    tables = tmp_path / "tables"
    with NewFolder(tables) as folder:
        for site in ("east", "west"):
            folder.rows(site, ["age", "fell"], [["70", "no"], ["80", "yes"]], 1)
        folder.finish(
            {
                "name": "falls",
                "kind": "tabular",
                "classes": ["no", "yes"],
                "label": "fell",
                "test_devices": ["west"],
            },
            [],
            "",
        )
    with pytest.raises(DataError, match="tables by site"):
        deal_data(tables, tmp_path / "out", DealOptions(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "tables"]


def test_an_interrupted_deal_leaves_nothing(tmp_path, monkeypatch, capsys):
    source = windows(tmp_path / "in")
    write = np.savez_compressed

    def full(path, **arrays):
        if path.stem == "virtual-7":
            raise OSError("no space left on device")
        write(path, **arrays)

    monkeypatch.setattr(np, "savez_compressed", full)
    assert main(["data", "deal", str(source), "--devices", "9", "--out", str(tmp_path / "o")]) == 2
    assert "no space left" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_command_makes_a_sound_fleet(tmp_path, capsys):
    source = windows(tmp_path / "in")
    out = str(tmp_path / "out")
    words = ["data", "deal", str(source), "--devices", "30", "--seed", "2", "--out", out]
    assert main(words) == 0
    assert "PROVENANCE.txt" in capsys.readouterr().out
    assert main(["data", "check", out]) == 0
    assert "train: 88 rows on 30 devices" in capsys.readouterr().out
