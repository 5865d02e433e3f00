"""Activity recognition: archives laid out as published, and arrays."""

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitalring.errors import ConfigError, DataError
from vitalring.models.dataset import check_dataset, devices, load_dataset, load_device
from vitalring.tools.data.har import TEST_SUBJECTS, cut
from vitalring.tools.data.importing import import_data

PEOPLE = {"train": (1, 3), "test": (2, 4)}
EACH = 12  # windows of a person
# As published: numbered, and some names are given to several features.
NAMES = "".join(f"{n} {'energy()-1,8' if n in (303, 317) else f'f{n}-X'}\n" for n in range(1, 562))


def text(array, form="%.7e"):
    data = io.StringIO()
    np.savetxt(data, array, fmt=form)
    return data.getvalue()


def zipped(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def uci_files(top="UCI HAR Dataset", inertial=True):
    rng = np.random.default_rng(3)
    files, signals, features = {f"{top}/README.txt": "", f"{top}/features.txt": NAMES}, {}, {}
    for part, people in PEOPLE.items():
        subject = np.repeat(people, EACH)
        y = np.tile(np.arange(1, 7), len(subject) // 6)
        x = rng.uniform(-1, 1, (len(subject), 561))
        files[f"{top}/{part}/X_{part}.txt"] = text(x)
        files[f"{top}/{part}/y_{part}.txt"] = text(y, "%d")
        files[f"{top}/{part}/subject_{part}.txt"] = text(subject, "%d")
        features[part] = x
        for kind in ("body_acc", "body_gyro", "total_acc") if inertial else ():
            for axis in "xyz":
                signal = rng.normal(size=(len(subject), 128))
                signals[part, f"{kind}_{axis}"] = signal
                name = f"{top}/{part}/Inertial Signals/{kind}_{axis}_{part}.txt"
                files[name] = text(signal)
    return files, signals, features


def hapt_files(top=""):
    """Two recordings of each person; labels of 128 to 400 samples with gaps between."""
    rng = np.random.default_rng(4)
    files, labels, signals = {}, [], {}
    people = sorted((*PEOPLE["train"], *PEOPLE["test"]))
    for i, person in enumerate((*people, *people), 1):
        first = 20
        for activity in (1, 2, 3, 7, 4, 5, 6, 12):
            last = first + int(rng.integers(100, 400))
            labels.append((i, person, activity, first, last))
            first = last + int(rng.integers(1, 60))
        signal = rng.normal(size=(first + 10, 6)).round(6)
        signals[i] = signal
        files[f"{top}RawData/acc_exp{i:02d}_user{person:02d}.txt"] = text(signal[:, :3], "%.6f")
        files[f"{top}RawData/gyro_exp{i:02d}_user{person:02d}.txt"] = text(signal[:, 3:], "%.6f")
    files[f"{top}RawData/labels.txt"] = text(np.array(labels), "%d")
    for part, chosen in PEOPLE.items():
        big, subject = part.title(), np.repeat(chosen, EACH)
        files[f"{top}{big}/X_{part}.txt"] = text(rng.uniform(-1, 1, (len(subject), 561)))
        files[f"{top}{big}/y_{part}.txt"] = text(np.tile(np.arange(1, 13), len(chosen)), "%d")
        files[f"{top}{big}/subject_id_{part}.txt"] = text(subject, "%d")
    return files, labels, signals


def loaded(folder):
    info = load_dataset(folder)
    train, test = devices(folder, info)
    assert train == ("subject-01", "subject-03")
    assert test == ("subject-02", "subject-04")
    return info, {name: load_device(folder, name, info) for name in train + test}


def test_uci_har_windows_are_total_acceleration_and_angular_velocity(tmp_path):
    files, signals, _ = uci_files()
    # The archive's page packs the data set's zip into another one.
    inner = zipped(tmp_path / "UCI HAR Dataset.zip", files).read_bytes()
    path = zipped(tmp_path / "outer.zip", {"UCI HAR Dataset.zip": inner, "UCI HAR.names": ""})
    lines = import_data(path, "uci-har", tmp_path / "out", {})
    info, found = loaded(tmp_path / "out")
    assert (info.kind, info.sampling_hz) == ("windows", 50)
    assert info.classes[0] == "walking"
    assert info.classes[5] == "laying"
    assert info.channels[:4:3] == ("acceleration x", "angular velocity x")
    assert info.units == ("g",) * 3 + ("rad/s",) * 3
    x = found["subject-03"].x  # the second person of the train files
    assert x.shape == (EACH, 128, 6)
    assert np.allclose(x[:, :, 0], signals["train", "total_acc_x"][EACH:], atol=1e-6)
    assert np.allclose(x[:, :, 5], signals["train", "body_gyro_z"][EACH:], atol=1e-6)
    assert found["subject-03"].y.tolist() == [0, 1, 2, 3, 4, 5] * 2
    assert lines[0].startswith(f"4 devices: {4 * EACH} rows (walking 8, ")


@pytest.mark.parametrize("first", [None, 265])
def test_uci_har_features(tmp_path, first):
    files, _, features = uci_files()
    path = zipped(tmp_path / "har.zip", files)
    options = {"use": "features"} if first is None else {"use": "features", "first": first}
    import_data(path, "uci-har", tmp_path / "out", options)
    info, found = loaded(tmp_path / "out")
    assert info.kind == "tabular"
    assert np.allclose(found["subject-02"].x, features["test"][:EACH, :first], atol=1e-6)
    assert len(info.inputs) == (first or 561)
    assert (info.inputs[0], info.inputs[264]) == ("f1-X", "f265-X")
    if first is None:
        assert (info.inputs[302], info.inputs[316]) == ("energy()-1,8 (303)", "energy()-1,8 (317)")
    assert check_dataset(tmp_path / "out").complaints == ()


def test_without_inertial_signals_the_features_are_used(tmp_path):
    path = zipped(tmp_path / "har.zip", uci_files(inertial=False)[0])
    import_data(path, "uci-har", tmp_path / "out", {})
    assert loaded(tmp_path / "out")[0].kind == "tabular"
    with pytest.raises(DataError, match="holds no train/Inertial Signals"):
        import_data(path, "uci-har", tmp_path / "no", {"use": "windows"})


@pytest.mark.parametrize("activities", [6, 12])
def test_hapt_recordings_are_cut_where_they_are_labelled(tmp_path, activities):
    files, labels, signals = hapt_files()
    path = zipped(tmp_path / "hapt.zip", files)
    import_data(path, "hapt", tmp_path / "out", {"activities": activities})
    info, found = loaded(tmp_path / "out")
    assert len(info.classes) == activities
    expected, left_out = [], 0
    for experiment, person, activity, first, last in labels:
        for start in range(first - 1, last, 64):
            if start + 128 <= last and person == 2:
                if activity <= activities:
                    window = signals[experiment][start : start + 128]
                    expected.append((activity - 1, window))
                else:
                    left_out += 1
    assert [y for y, _ in expected] == found["subject-02"].y.tolist()
    windows = np.stack([window for _, window in expected])
    assert np.allclose(found["subject-02"].x, windows, atol=1e-6)
    assert (left_out > 0) == (activities == 6)


def test_hapt_features_are_the_published_windows(tmp_path):
    files = hapt_files("HAPT Data Set/")[0]
    # This release does not number its lines.
    files["HAPT Data Set/features.txt"] = "".join(f"tBodyAcc-{n} \r\n" for n in range(1, 562))
    path = zipped(tmp_path / "hapt.zip", files)
    import_data(path, "hapt", tmp_path / "out", {"use": "features", "first": 10})
    info, found = loaded(tmp_path / "out")
    assert info.inputs == tuple(f"tBodyAcc-{n}" for n in range(1, 11))
    assert found["subject-04"].x.shape == (6, 10)  # the transitions are left out


def test_arrays_of_recordings_windows_and_features(tmp_path):
    _, labels, signals = hapt_files()
    counts = {i: np.rint(signal * 700).astype(np.int16) for i, signal in signals.items()}
    units = {"acc_g_per_lsb": 1 / 700, "gyro_rad_s_per_lsb": 1 / 350}
    person = {row[0]: row[1] for row in labels}
    np.savez(
        tmp_path / "raw.npz",
        signals=np.concatenate(list(counts.values())),
        exp_id=np.array(list(counts)),
        subject=np.array([person[i] for i in counts]),
        offset=np.cumsum([0, *(len(signal) for signal in counts.values())]),
        labels=np.array(labels),
        **units,
    )
    import_data(tmp_path / "raw.npz", "arrays", tmp_path / "raw", {})
    _, found = loaded(tmp_path / "raw")
    # The same windows as arrays, in another order.
    x, y, subject = [], [], []
    for i in reversed(counts):
        mine = [(a, first, last) for e, _, a, first, last in labels if e == i]
        windows, activity = cut(counts[i], mine)
        x.append(windows)
        y.append(activity)
        subject.append(np.full(len(windows), person[i]))
    np.savez(
        tmp_path / "windows.npz",
        X=np.concatenate(x),
        y=np.concatenate(y),
        subject=np.concatenate(subject),
        **units,
    )
    import_data(tmp_path / "windows.npz", "arrays", tmp_path / "windows", {})
    _, again = loaded(tmp_path / "windows")
    for name, records in found.items():
        assert records.x.dtype == np.float32
        assert {row.tobytes() for row in records.x} == {row.tobytes() for row in again[name].x}
    with np.load(tmp_path / "raw" / "devices" / "subject-01.npz") as archive:
        assert archive["x"].dtype == np.int16
    assert np.isclose(np.abs(found["subject-01"].x[:, :, 3:]).max() / 2, 3, atol=2)
    np.savez(
        tmp_path / "features.npz",
        X=np.zeros((48, 265), np.float32),
        y=np.tile(np.arange(1, 7), 8),
        subject=np.repeat([1, 2, 3, 4], 12),
    )
    import_data(tmp_path / "features.npz", "arrays", tmp_path / "features", {"first": 9})
    info, found = loaded(tmp_path / "features")
    assert (info.kind, info.inputs) == ("tabular", ())
    assert found["subject-01"].x.shape == (12, 9)


def test_arrays_that_nobody_knows_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", X=np.zeros(3), z=np.zeros(3))
    with pytest.raises(DataError, match=r"\['X', 'z'\], which are none of those known"):
        import_data(tmp_path / "a.npz", "arrays", tmp_path / "out", {})
    raw = {"signals": np.zeros((200, 6)), "exp_id": [1], "subject": [1], "offset": [0, 200]}
    np.savez(tmp_path / "c.npz", **raw, labels=np.zeros((1, 4)))
    with pytest.raises(DataError, match=r"have shapes .*\(1, 4\)"):
        import_data(tmp_path / "c.npz", "arrays", tmp_path / "out", {})
    np.savez(tmp_path / "b.npz", X=np.array([object()], dtype=object), y=1, subject=1)
    with pytest.raises(DataError, match="intact"):
        import_data(tmp_path / "b.npz", "arrays", tmp_path / "out", {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train/y_train.txt": "1\n2\n"}, "24 rows of data, 2 labels"),
        ({"train/y_train.txt": "1\nwalking\n"}, "not a table of numbers"),
        ({"test/X_test.txt": ""}, "empty"),
        ({"features.txt": "1 a\n2 b\n"}, "names 2 features, the rows have 561"),
        ({"test/X_test.txt": None}, r"holds no test/X_test\.txt"),
        ({"train/subject_train.txt": b"\xff\xfe1\n"}, "not UTF-8"),
        ({"test/subject_test.txt": "1\n" * 24}, "some that are held out"),
    ],
)
def test_a_broken_archive_is_named_and_nothing_is_left(tmp_path, change, message):
    files, _, _ = uci_files(inertial=False)
    for name, content in change.items():
        del files[f"UCI HAR Dataset/{name}"]
        if content is not None:
            files[f"UCI HAR Dataset/{name}"] = content
    path = zipped(tmp_path / "har.zip", files)
    with pytest.raises(DataError, match=message):
        import_data(path, "uci-har", tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


def test_a_label_beyond_its_recording_is_refused(tmp_path):
    files, _, _ = hapt_files()
    files["RawData/labels.txt"] += "1 1 1 100 99999\n"
    path = zipped(tmp_path / "hapt.zip", files)
    with pytest.raises(DataError, match=r"recording 1 of person 1: .* 100 to 99999"):
        import_data(path, "hapt", tmp_path / "out", {})


def test_options_of_other_sources_are_refused(tmp_path):
    path = zipped(tmp_path / "har.zip", uci_files(inertial=False)[0])
    for options, message in (
        ({"beats": 3}, "--beats does not belong"),
        ({"activities": 12}, "transitions are in HAPT"),
        ({"use": "windows", "first": 5}, "--use features"),
        ({"use": "features", "first": 900}, "has 561 features"),
    ):
        with pytest.raises(ConfigError, match=message):
            import_data(path, "uci-har", tmp_path / "out", options)


def test_nine_of_thirty_people_are_held_out():
    assert len(TEST_SUBJECTS) == 9
    assert set(TEST_SUBJECTS) < set(range(1, 31))


@given(
    segments=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 900), st.integers(0, 500))),
)
def test_windows_lie_within_their_segment(segments):
    signal = np.arange(1400)[:, None]
    chosen = [(activity, first, first + length) for activity, first, length in segments]
    x, y = cut(signal, chosen)
    assert x.shape == (len(y), 128, 1)
    at = 0
    for activity, first, last in chosen:
        n = max(0, (last - first + 1 - 128) // 64 + 1)
        for window in x[at : at + n]:
            assert first - 1 <= window[0, 0] <= window[-1, 0] <= last - 1
            assert (np.diff(window[:, 0]) == 1).all()
        assert (y[at : at + n] == activity).all()
        at += n
    assert at == len(y)
