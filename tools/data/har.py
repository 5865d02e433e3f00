"""Activity recognition with a waist smartphone: UCI HAR and its later release, HAPT.

One person is one device. The official division trains on 21 people and holds out 9. Windows have
six channels: acceleration x, y, z in g (gravity included), then angular velocity in rad/s; or
each window is a row of the published features, which lie in [-1, 1].
"""

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from vitalring.errors import ConfigError, DataError
from vitalring.tools.data.folder import NewFolder
from vitalring.tools.data.imported import Imported
from vitalring.tools.data.origins import HAPT, UCI_HAR, Origin
from vitalring.tools.data.source import Source

ACTIVITIES = (
    "walking",
    "walking_upstairs",
    "walking_downstairs",
    "sitting",
    "standing",
    "laying",
    "stand_to_sit",
    "sit_to_stand",
    "sit_to_lie",
    "lie_to_sit",
    "stand_to_lie",
    "lie_to_stand",
)
"""The published numbers of the activities, from 1 on; the last six are postural transitions."""
TEST_SUBJECTS = (2, 4, 9, 10, 12, 13, 18, 20, 24)  # of 30, in both releases
SAMPLING_HZ = 50
WINDOW, STEP = 128, 64  # samples, as published
CHANNELS = (
    "Channels of x: acceleration x, y, z in g (gravity included), then angular velocity x, y, z",
    "in rad/s, of a smartphone at the waist.",
)
NAMES = tuple(f"{kind} {axis}" for kind in ("acceleration", "angular velocity") for axis in "xyz")
UNITS = ("g",) * 3 + ("rad/s",) * 3
_RECORDING = re.compile(r"(?:.*/)?RawData/acc_exp(\d+)_user(\d+)\.txt")

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class HarOptions:
    """What may be chosen.

    `use`: "windows" of the sensors' signals or "features" (None: windows where the files have
    them). `first`: only so many features, from
    the first on (265 are those of the time domain; None: all). `activities`: 6, or 12 with the
    postural transitions (HAPT only).
    """

    use: str | None = None
    first: int | None = None
    activities: int = 6

    def __post_init__(self) -> None:
        if self.use not in (None, "windows", "features"):
            raise ConfigError(f"--use {self.use}: use windows or features")
        if self.activities not in (6, 12):
            raise ConfigError(f"--activities {self.activities}: use 6 or 12")
        if self.first is not None and (self.first < 1 or self.use == "windows"):
            raise ConfigError(f"--first {self.first}: give at least 1, and --use features")

    def settled(self, windows: bool) -> "HarOptions":
        """Return options that say what to use, given whether the files have windows."""
        return self if self.use else replace(self, use="windows" if windows else "features")


@dataclass(frozen=True)
class Rows:
    """Some people's rows: x (n, time, channels) or (n, features), activity number, person."""

    x: Array
    activity: Array
    subject: Array


def cut(
    signal: Array, segments: Sequence[tuple[int, int, int]]
) -> tuple[Array, npt.NDArray[np.int64]]:
    """Cut one recording into windows as HAPT publishes them.

    `signal` (samples, channels); `segments` are (activity, first, last sample), counted from 1,
    the last one included. Windows start at a segment's first sample and every 64 samples from
    there, and lie whole inside the segment. Returns x (n, 128, channels) and activities (n).
    """
    starts: list[int] = []
    activities: list[int] = []
    for activity, first, last in segments:
        if not 1 <= first <= last <= len(signal):
            raise DataError(
                f"labels name samples {first} to {last} of a recording that has {len(signal)}"
            )
        found = range(first - 1, last - WINDOW + 1, STEP)
        starts += found
        activities += [activity] * len(found)
    rows = np.array(starts, dtype=np.int64)[:, None] + np.arange(WINDOW)[None, :]
    return signal[rows], np.array(activities, dtype=np.int64)


def subject_name(subject: int) -> str:
    """Return the device id of a person."""
    return f"subject-{subject:02d}"


def import_har(source: Source, options: HarOptions, folder: NewFolder) -> Imported:
    """Write the people of the published UCI HAR zip or folder into `folder`."""
    if options.activities != 6:
        raise ConfigError("--activities 12: UCI HAR has six; the transitions are in HAPT")
    options = options.settled(
        source.find("train/Inertial Signals/total_acc_x_train.txt") is not None
    )
    parts = [_uci_part(source, part, options) for part in ("train", "test")]
    names = _feature_names(source, options) if options.use == "features" else ()
    return _write(parts, UCI_HAR, options, folder, names=names)


def import_hapt(source: Source, options: HarOptions, folder: NewFolder) -> Imported:
    """Write the people of the published HAPT zip or folder into `folder`."""
    options = options.settled(source.find("RawData/labels.txt") is not None)
    if options.use == "features":
        parts = [_hapt_part(source, part, options) for part in ("Train", "Test")]
        names = _feature_names(source, options)
        return _write(parts, HAPT, options, folder, names=names)
    return _write(_recordings(source), HAPT, options, folder)


def import_har_arrays(
    source: Source, arrays: dict[str, Array], options: HarOptions, folder: NewFolder
) -> Imported:
    """Write people whose windows, recordings or features are in one `.npz`.

    Arrays: `X` and `y`, `subject` for windows (rows, 128, 6) or features (rows, features); or
    `signals`, `offset`, `exp_id`, `subject`, `labels` for recordings; and for int16 signals
    `acc_g_per_lsb` and `gyro_rad_s_per_lsb`. Raises DataError.
    """
    label = source.label(source.names[0])
    options = options.settled("signals" in arrays or arrays["X"].ndim == 3)
    scale = None
    if {"acc_g_per_lsb", "gyro_rad_s_per_lsb"} <= set(arrays):
        units = (float(arrays["acc_g_per_lsb"]), float(arrays["gyro_rad_s_per_lsb"]))
        scale = (units[0],) * 3 + (units[1],) * 3
    if "signals" in arrays:
        if options.use != "windows":
            raise ConfigError(f"{label} holds recordings: use --use windows")
        shapes = [arrays[key].shape for key in ("exp_id", "subject", "offset", "labels", "signals")]
        n = len(arrays["exp_id"])
        if shapes[:3] != [(n,), (n,), (n + 1,)] or shapes[3][1:] != (5,) or shapes[4][1:] != (6,):
            raise DataError(
                f"{label}: exp_id, subject, offset, labels and signals have shapes {shapes}; "
                "for n recordings they are (n), (n), (n + 1), (segments, 5) and (samples, 6)"
            )
        return _write(_array_recordings(arrays), HAPT, options, folder, scale=scale)
    x = arrays["X"]
    if x.ndim != (3 if options.use == "windows" else 2):
        raise ConfigError(
            f"{label}: array 'X' has shape {x.shape}: --use "
            f"{'features' if x.ndim == 2 else 'windows'} fits it"
        )
    if not len(x) == len(arrays["y"]) == len(arrays["subject"]):
        raise DataError(f"{label}: arrays X, y and subject have unlike lengths")
    x = _first(x, options, source) if x.ndim == 2 else x
    rows = Rows(x, arrays["y"], arrays["subject"])
    return _write([rows], UCI_HAR if x.ndim == 2 else HAPT, options, folder, scale=scale)


def _write(
    parts: Sequence[Rows] | Iterator[Rows],
    origin: Origin,
    options: HarOptions,
    folder: NewFolder,
    *,
    scale: tuple[float, ...] | None = None,
    names: Sequence[str] = (),
) -> Imported:
    """Write one device for each person, rows in the order of the source.

    `names` are those of features.
    """
    people: dict[int, list[tuple[Array, Array]]] = {}
    left_out = 0
    for rows in parts:
        kept = (rows.activity >= 1) & (rows.activity <= options.activities)
        left_out += int(len(kept) - kept.sum())
        for subject in np.unique(rows.subject[kept]).tolist():
            mine = np.flatnonzero(kept & (rows.subject == subject))
            people.setdefault(subject, []).append((rows.x[mine], rows.activity[mine]))
    held_out = [subject for subject in TEST_SUBJECTS if subject in people]
    if not held_out or len(held_out) == len(people):
        raise DataError(
            f"the files hold the people {sorted(people)}: there must be some that are held out "
            f"({TEST_SUBJECTS}) and some that train"
        )
    width = people[held_out[0]][0][0].shape[-1]
    if names and len(names) != width:
        raise DataError(
            f"features.txt names {len(names)} features, the rows have {width}; bring the files of "
            "one release together"
        )
    for subject in sorted(people):
        x = np.concatenate([part[0] for part in people[subject]])
        y = np.concatenate([part[1] for part in people[subject]]).astype(np.uint8) - np.uint8(1)
        folder.arrays(subject_name(subject), x, y)
    signal = options.use == "windows"
    table: dict[str, object] = {
        "name": f"{'hapt' if origin is HAPT else 'uci-har'}-{options.use}",
        "kind": "windows" if signal else "tabular",
        "classes": ACTIVITIES[: options.activities],
    }
    if signal:
        table |= {"sampling_hz": SAMPLING_HZ, "channels": NAMES, "units": UNITS}
    elif names:
        table["inputs"] = names
    if scale is not None:
        table["scale"] = scale
    table["test_devices"] = [subject_name(subject) for subject in held_out]
    kind = (
        f"windows of {WINDOW} samples at {SAMPLING_HZ} Hz, six channels"
        if signal
        else f"the published features, the first {options.first} of them"
        if options.first
        else "the published features"
    )
    return Imported(
        origin,
        ACTIVITIES[: options.activities],
        table,
        (
            f"{origin.name}; see PROVENANCE.txt.",
            "Made by `vitalring data import`. One person is one device.",
            *(CHANNELS if signal else ("Rows of x are the published features, in [-1, 1].",)),
        ),
        (
            kind,
            f"the official division: {len(people) - len(held_out)} people train, "
            f"{len(held_out)} are held out",
            f"rows of other activities left out: {left_out}",
        ),
        range(options.activities),
    )


def _uci_part(source: Source, part: str, options: HarOptions) -> Rows:
    def column(name: str) -> Array:
        return _numbers(source, source.need(f"{part}/{name}_{part}.txt", UCI_HAR), np.int64)

    activity, subject = column("y"), column("subject")
    if options.use == "features":
        x = _numbers(source, source.need(f"{part}/X_{part}.txt", UCI_HAR), np.float32)
        x = _first(x, options, source)
    else:
        names = [f"{s}_{axis}" for s in ("total_acc", "body_gyro") for axis in "xyz"]
        channels = [
            _numbers(
                source,
                source.need(f"{part}/Inertial Signals/{name}_{part}.txt", UCI_HAR),
                np.float32,
            )
            for name in names
        ]
        if len({channel.shape for channel in channels}) != 1 or channels[0].ndim != 2:
            raise DataError(f"the inertial signals of {part} have unlike lengths; bring them again")
        x = np.stack(channels, axis=2)
    return _rows(x, activity, subject, part)


def _hapt_part(source: Source, part: str, options: HarOptions) -> Rows:
    def read(name: str, dtype: type) -> Array:
        member = f"{part}/{name}_{part.lower()}.txt"
        return _numbers(source, source.need(member, HAPT), dtype)

    x = _first(read("X", np.float32), options, source)
    return _rows(x, read("y", np.int64), read("subject_id", np.int64), part)


def _feature_names(source: Source, options: HarOptions) -> tuple[str, ...]:
    """Return the published features' names; none where the archive has no list of them.

    A line is a name, or its number and a name. Some names are given to several features; these
    keep their number.
    """
    name = source.find("features.txt")
    if name is None:
        return ()
    with source.text(name) as file:
        lines = [line.strip() for line in file if line.strip()]
    plain = [line.removeprefix(f"{number} ").strip() for number, line in enumerate(lines, start=1)]
    counts = Counter(plain)
    names = [
        f"{text} ({number})" if counts[text] > 1 else text
        for number, text in enumerate(plain, start=1)
    ]
    return tuple(names[: options.first])


def _first(x: Array, options: HarOptions, source: Source) -> Array:
    if options.first is not None and options.first > x.shape[-1]:
        raise ConfigError(f"--first {options.first}: {source.names[0]} has {x.shape[-1]} features")
    return x[:, : options.first]


def _rows(x: Array, activity: Array, subject: Array, part: str) -> Rows:
    if not len(x) == len(activity) == len(subject):
        raise DataError(
            f"{part}: {len(x)} rows of data, {len(activity)} labels and {len(subject)} people; "
            "bring the files of one release together"
        )
    return Rows(x, activity, subject)


def _recordings(source: Source) -> Iterator[Rows]:
    """Yield the windows of each raw recording of the HAPT zip."""
    labels = _numbers(source, source.need("RawData/labels.txt", HAPT), np.int64)
    if labels.ndim != 2 or labels.shape[1] != 5:
        raise DataError("RawData/labels.txt must have five numbers a line; bring it again")
    recordings = [match for name in source.names if (match := _RECORDING.fullmatch(name))]
    if not recordings:
        source.need("RawData/acc_exp01_user01.txt", HAPT)
    for match in recordings:
        name, experiment, user = match[0], int(match[1]), int(match[2])
        partner = name.replace("/acc_", "/gyro_") if "/" in name else name
        if partner not in source.names:
            raise DataError(f"{source.label(name)}: has no {partner} beside it; bring both")
        acc, gyro = (_numbers(source, each, np.float32) for each in (name, partner))
        if acc.shape != gyro.shape or acc.ndim != 2 or acc.shape[1] != 3:
            raise DataError(
                f"{source.label(name)}: has shape {acc.shape}, its partner {gyro.shape}; both have "
                "one sample of three axes a line"
            )
        yield _windows(np.concatenate([acc, gyro], axis=1), labels, experiment, user)


def _array_recordings(arrays: dict[str, Array]) -> Iterator[Rows]:
    offset, labels = arrays["offset"], arrays["labels"]
    for i, experiment in enumerate(arrays["exp_id"].tolist()):
        signal = arrays["signals"][offset[i] : offset[i + 1]]
        yield _windows(signal, labels, experiment, int(arrays["subject"][i]))


def _windows(signal: Array, labels: Array, experiment: int, subject: int) -> Rows:
    mine = labels[(labels[:, 0] == experiment) & (labels[:, 1] == subject)]
    segments = [(int(a), int(first), int(last)) for _, _, a, first, last in mine]
    try:
        x, activity = cut(signal, segments)
    except DataError as error:
        raise DataError(f"recording {experiment} of person {subject}: {error}") from error
    return Rows(x, activity, np.full(len(activity), subject))


def _numbers(source: Source, name: str, dtype: type) -> Array:
    """Read a text file of numbers, one row a line. Raises DataError naming the row."""
    with source.text(name) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty file is complained of below
        try:
            found: Array = np.loadtxt(file, dtype=dtype, ndmin=1)
        except UnicodeDecodeError:
            raise
        except ValueError as error:
            raise DataError(
                f"{source.label(name)}: is not a table of numbers ({error}); bring it again"
            ) from error
    if not found.size or not np.isfinite(found).all():
        raise DataError(
            f"{source.label(name)}: is empty or holds no finite numbers; bring it again"
        )
    return found
