"""Heartbeats: from WFDB files as published, and from arrays of beats."""

import zipfile
from dataclasses import replace

import numpy as np
import pytest
import wfdb

from vitalring.errors import ConfigError, DataError
from vitalring.models.dataset import devices, load_dataset, load_device
from vitalring.tools.data.importing import import_data
from vitalring.tools.data.mitbih import (
    AAMI,
    BEFORE,
    DS1,
    DS2,
    PACED,
    MitbihOptions,
    beats_of,
    deviations,
    device,
)

RECORDS = (101, 100)  # one of DS1, one of DS2
LENGTH = 20_000
SYMBOLS = ["N", "L", "A", "V", "F", "Q", "/", "+", "~", "N"]


def write_record(folder, record, leads=("MLII", "V1"), gain=200, seed=0):
    """Write a record as published: format 212, ADC zero 1024, beats and other annotations."""
    rng = np.random.default_rng([seed, record])
    signal = rng.integers(600, 1400, (LENGTH, len(leads)))
    wfdb.wrsamp(
        str(record),
        fs=360,
        units=["mV"] * len(leads),
        sig_name=list(leads),
        d_signal=signal,
        fmt=["212"] * len(leads),
        adc_gain=[gain] * len(leads),
        baseline=[1024] * len(leads),
        write_dir=str(folder),
    )
    samples = np.cumsum(rng.integers(150, 400, 70))
    samples = np.concatenate([[40], samples[samples < LENGTH - 300], [LENGTH - 50]])
    symbols = [SYMBOLS[i % len(SYMBOLS)] for i in range(len(samples))]
    wfdb.wrann(str(record), "atr", samples, symbols, write_dir=str(folder))
    return signal, samples, symbols


@pytest.fixture
def published(tmp_path):
    folder = tmp_path / "mit-bih-arrhythmia-database-1.0.0"
    folder.mkdir()
    written = {record: write_record(folder, record) for record in RECORDS}
    # The second record has its MLII lead in the second place, as 114 has.
    written[101] = write_record(folder, 101, leads=("V5", "MLII"))
    return folder, written


def as_arrays(path, written):
    """Write the same beats in the form of one array file."""
    columns = {key: [] for key in ("X", "y", "record", "sample", "rr_prev", "rr_next")}
    for record, (signal, samples, symbols) in written.items():
        kept = [(s, AAMI[a]) for s, a in zip(samples.tolist(), symbols, strict=True) if a in AAMI]
        lead = 1 if record == 101 else 0
        for i, (sample, label) in enumerate(kept):
            if sample < 90 or sample + 126 > LENGTH:
                continue
            columns["X"].append(signal[sample - 90 : sample + 126, lead] - 1024)
            columns["y"].append(label)
            columns["record"].append(record)
            columns["sample"].append(sample)
            columns["rr_prev"].append(sample - kept[i - 1][0] if i else -1)
            columns["rr_next"].append(kept[i + 1][0] - sample if i + 1 < len(kept) else -1)
    np.savez(path, **{key: np.array(value) for key, value in columns.items()})
    return path


def contents(folder):
    info = load_dataset(folder)
    train, test = devices(folder, info)
    return info, {name: load_device(folder, name, info) for name in train + test}


def test_wfdb_files_and_arrays_make_the_same_devices(published, tmp_path):
    folder, written = published
    options = {"records": RECORDS}
    import_data(folder, "mitbih", tmp_path / "a", options)
    import_data(as_arrays(tmp_path / "b.npz", written), "arrays", tmp_path / "b", options)
    info, first = contents(tmp_path / "a")
    _, second = contents(tmp_path / "b")
    assert info.classes == ("N", "S", "V")
    assert info.test_devices == ("r100",)
    assert info.channels[0] == "ECG lead"
    assert info.units == ("mV", "× 12.5 %", "× 12.5 %", "× 12.5 %")
    assert set(first) == set(second) == {"r100", "r101"}
    for name, records in first.items():
        assert np.array_equal(records.x, second[name].x)
        assert np.array_equal(records.y, second[name].y)
    signal, samples, symbols = written[101]
    beats = [s for s, a in zip(samples, symbols, strict=True) if AAMI.get(a, 9) < 3 and s >= 90]
    lead = signal[beats[0] - 90 : beats[0] + 126, 1] - 1024
    assert np.allclose(first["r101"].x[0, :, 0], lead * 0.005)
    # The last beat, 50 samples before the end, has no whole window.
    assert len(first["r101"]) == len(beats) - (AAMI.get(symbols[-1], 9) < 3)


def test_a_zip_is_read_as_published(published, tmp_path):
    folder, _ = published
    path = tmp_path / "mit-bih.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"{folder.name}/{file.name}")
    import_data(folder, "mitbih", tmp_path / "a", {"records": RECORDS})
    import_data(path, "mitbih", tmp_path / "b", {"records": RECORDS})
    for name in ("r100", "r101"):
        file = f"devices/{name}.npz"
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    text = (tmp_path / "b" / "PROVENANCE.txt").read_text()
    assert "mit-bih.zip" in text
    assert "Open Data Commons Attribution" in text
    assert "Moody" in text


def test_other_classes_are_left_out_and_counted_or_kept(published, tmp_path):
    folder, _ = published
    import_data(folder, "mitbih", tmp_path / "three", {"records": RECORDS})
    import_data(folder, "mitbih", tmp_path / "five", {"records": RECORDS, "classes": 5})
    _, three = contents(tmp_path / "three")
    info, five = contents(tmp_path / "five")
    assert info.classes == ("N", "S", "V", "F", "Q")
    kept = sum(len(records) for records in five.values())
    left_out = kept - sum(len(records) for records in three.values())
    counts = np.bincount(np.concatenate([r.y for r in five.values()]), minlength=5)
    assert left_out == counts[3] + counts[4] > 0
    text = (tmp_path / "three" / "PROVENANCE.txt").read_text()
    assert f"{counts[3]} F, {counts[4]} Q" in text


def test_the_usual_division_leaves_out_paced_records_and_one_of_the_same_person():
    train, held_out = MitbihOptions().chosen()
    assert (len(train), len(held_out)) == (22, 21)
    assert not {*train, *held_out} & {*PACED, 202}
    train, held_out = MitbihOptions(with_202=True, paced=True).chosen()
    assert len({*train, *held_out}) == 48
    assert 202 in held_out
    assert set(PACED) <= set(train)
    assert not set(DS1) & set(DS2)


def test_records_must_be_in_use_and_on_both_sides():
    with pytest.raises(ConfigError, match="names 102"):
        MitbihOptions(records=(101, 100, 102)).chosen()
    with pytest.raises(ConfigError, match="DS2"):
        MitbihOptions(records=(101,)).chosen()
    with pytest.raises(ConfigError, match="--classes 4"):
        MitbihOptions(classes=4)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "101.atr").unlink(), "physionet.org"),
        (lambda f: (f / "101.dat").write_bytes(b"12"), "cannot be read"),
        (lambda f: (f / "101.hea").write_text("nothing"), "cannot be read"),
        (lambda f: (f / "101.atr").write_bytes(b""), "101"),
        (lambda f: write_record(f, 101, leads=("V1", "V2")), "none of"),
        (lambda f: write_record(f, 101, gain=100), "units a mV"),
        (
            lambda f: (f / "101.hea").write_text(
                (f / "101.hea").read_text().replace("101.dat", "secret.dat")
            ),
            "expected 101.dat",
        ),
    ],
)
def test_a_broken_record_is_named_and_nothing_is_left(published, tmp_path, break_it, message):
    folder, _ = published
    break_it(folder)
    with pytest.raises(DataError, match=message):
        import_data(folder, "mitbih", tmp_path / "out", {"records": RECORDS})
    assert not (tmp_path / "out").exists()


def test_all_records_must_be_there(published, tmp_path):
    folder, written = published
    with pytest.raises(DataError, match=r"no 106\.hea"):
        import_data(folder, "mitbih", tmp_path / "out", {})
    with pytest.raises(DataError, match="no beat of 106"):
        import_data(as_arrays(tmp_path / "b.npz", written), "arrays", tmp_path / "out", {})


def test_a_record_is_thinned_evenly_in_time():
    rng = np.random.default_rng(1)
    samples = np.cumsum(rng.integers(200, 300, 500))
    labels = rng.choice(3, 500, p=[0.6, 0.3, 0.1])
    beats = beats_of(rng.integers(-99, 99, samples[-1] + 500), samples, labels)
    x, y = device(beats, 3, 120)
    assert x.shape == (120, 216, 4)
    counts = np.bincount(y)
    assert counts[1] == counts[2] == 40
    whole, _ = device(beats, 3, None)
    assert len(whole) == 500


def test_distances_know_the_neighbours_and_not_the_label():
    samples = np.array([100, 400, 700, 850, 1300, 1600])
    beats = beats_of(np.zeros(2000, np.int64), samples, np.zeros(6, np.int64))
    assert beats.rr_prev.tolist() == [-1, 300, 300, 150, 450, 300]
    assert beats.rr_next.tolist() == [300, 300, 150, 450, 300, -1]
    numbers = deviations(beats.rr_prev, beats.rr_next)
    assert numbers[3, 2] == -500  # half of the record's median
    assert numbers[3, 1] > 0 > numbers[3, 0]
    other = replace(beats, label=np.ones(6, np.int64))
    assert np.array_equal(device(beats, 3, None)[0], device(other, 3, None)[0])


def test_windows_begin_ninety_samples_before_the_beat():
    signal = np.arange(3000)
    beats = beats_of(signal, np.array([89, 90, 1000, 2874, 2875]), np.zeros(5, np.int64))
    assert beats.ecg[:, BEFORE].tolist() == [90, 1000, 2874]
    assert beats.rr_prev.tolist() == [1, 910, 1874]


def test_beats_in_millivolts_are_refused(tmp_path):
    columns = dict.fromkeys(("y", "record", "sample", "rr_prev", "rr_next"), np.zeros(3, int))
    np.savez(tmp_path / "b.npz", X=np.zeros((3, 216), np.float32), **columns)
    with pytest.raises(DataError, match="float32; give signed integers"):
        import_data(tmp_path / "b.npz", "arrays", tmp_path / "out", {})
