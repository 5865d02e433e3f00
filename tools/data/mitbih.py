"""Heartbeats of the MIT-BIH Arrhythmia Database: one record is one device.

Each beat is 216 samples at 360 Hz of one lead (modified limb lead II; V5 for the records that
lack it), 90 before the annotated beat and 126 from it on, in ADC units (200 per mV) with the
offset removed, and three numbers about the distances between beats (RR) as constant channels.
The RR numbers use every beat of the record and no label.

DS1 of de Chazal et al. 2004 ("Automatic classification of heartbeats using ECG morphology and
heartbeat interval features", IEEE TBME 51(7)) trains, DS2 is held out. The paced records 102,
104, 107 and 217 are in neither. Record 202 of DS2 is the same person as 201 of DS1, so it is
left out unless asked for.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vitalring.errors import ConfigError, DataError
from vitalring.tools.data.folder import NewFolder
from vitalring.tools.data.imported import Imported
from vitalring.tools.data.origins import MITBIH
from vitalring.tools.data.source import Source

# fmt: off
DS1 = (101, 106, 108, 109, 112, 114, 115, 116, 118, 119, 122,
       124, 201, 203, 205, 207, 208, 209, 215, 220, 223, 230)
DS2 = (100, 103, 105, 111, 113, 117, 121, 123, 200, 210, 212,
       213, 214, 219, 221, 222, 228, 231, 232, 233, 234)
# fmt: on
SAME_PERSON = 202  # as 201; in DS2 of de Chazal et al.
PACED = (102, 104, 107, 217)

CLASSES = ("N", "S", "V", "F", "Q")
AAMI = {
    symbol: label
    for label, symbols in enumerate(("NLRej", "AaJS", "VE", "F", "/fQ"))
    for symbol in symbols
}
"""Annotation symbol → class (ANSI/AAMI EC57): normal, supraventricular, ventricular, fusion,
paced or unclassifiable."""
BEFORE, AFTER = 90, 126  # samples of a beat's window
SAMPLING_HZ = 360
NEIGHBOURS = 10  # beats on either side that make the local mean RR
PER_UNIT = 1000  # RR deviations are stored in thousandths
ARRAYS = frozenset({"X", "y", "record", "sample", "rr_prev", "rr_next"})
SCALE = (0.005, 0.008, 0.008, 0.008)
NAMES = ("ECG lead", "RR before vs mean", "RR after vs mean", "RR before vs median")
UNITS = ("mV", *("× 12.5 %",) * 3)
"""Of the channels after `SCALE`: the RR numbers are in eighths of a mean or median."""
CHANNELS = (
    "  0  one ECG lead, in mV after `scale` (modified limb lead II)",
    "  1  8 · (RR before the beat / mean RR of the 21 beats around it - 1)",
    "  2  8 · (RR after the beat / mean RR of the 21 beats around it - 1)",
    "  3  8 · (RR before the beat / median RR of the record - 1)",
    "Channels 1 to 3 are constant over the window and know no label.",
)


@dataclass(frozen=True)
class MitbihOptions:
    """What may be chosen.

    `classes`: 3 (N, S, V; fusion and unclassifiable beats left out) or 5. `beats`: at most so
    many of a record (None: all), each class but N getting at most an equal share, the rest N,
    evenly spaced in time. `records`: only these (None: all). `paced`: keep paced records, to
    train. `with_202`: keep record 202 in the held-out set.
    """

    classes: int = 3
    beats: int | None = None
    records: tuple[int, ...] | None = None
    paced: bool = False
    with_202: bool = False

    def __post_init__(self) -> None:
        if self.classes not in (3, 5):
            raise ConfigError(f"--classes {self.classes}: use 3 (N, S, V) or 5 (with F and Q)")
        if self.beats is not None and self.beats < self.classes:
            raise ConfigError(f"--beats {self.beats}: keep at least {self.classes} of a record")

    def chosen(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the records that train and those held out."""
        train = DS1 + (PACED if self.paced else ())
        held_out = DS2 + ((SAME_PERSON,) if self.with_202 else ())
        if self.records is None:
            return train, held_out
        unknown = sorted(set(self.records) - {*train, *held_out})
        if unknown:
            raise ConfigError(
                f"--records names {unknown[0]}, which is not among those in use; paced records "
                "need --paced, record 202 (the same person as 201) needs --with-202"
            )
        wanted = set(self.records)
        parts = tuple(r for r in train if r in wanted), tuple(r for r in held_out if r in wanted)
        if not all(parts):
            raise ConfigError("--records must name some of DS1 to train and some of DS2 to test")
        return parts


@dataclass(frozen=True)
class Beats:
    """Beats of one record in order of time.

    `ecg` int16 (n, 216); `label` (n) AAMI class; `rr_prev`, `rr_next` (n): samples to the
    neighbouring annotated beats, -1 at the record's ends.
    """

    ecg: npt.NDArray[np.int16] = field(repr=False)
    label: npt.NDArray[np.int64] = field(repr=False)
    rr_prev: npt.NDArray[np.int64] = field(repr=False)
    rr_next: npt.NDArray[np.int64] = field(repr=False)


def evenly(rows: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.int64]:
    """Return k of `rows`, evenly spaced (those at ⌊(i + ½)·m/k⌋); all of them if m ≤ k."""
    if len(rows) <= k:
        return rows
    positions: npt.NDArray[np.int64] = ((2 * np.arange(k) + 1) * len(rows)) // (2 * k)
    return np.take(rows, positions)


def deviations(
    rr_prev: npt.NDArray[np.int64], rr_next: npt.NDArray[np.int64]
) -> npt.NDArray[np.int16]:
    """Return the three RR numbers (beats, 3) of a whole record, in thousandths, within ±1000.

    A distance that a record's end leaves unknown (-1) counts as the record's median.
    """
    median = np.median(rr_prev[rr_prev > 0])
    before = np.where(rr_prev > 0, rr_prev, median).astype(np.float64)
    after = np.where(rr_next > 0, rr_next, median).astype(np.float64)
    padded = np.pad(before, NEIGHBOURS, mode="edge")
    local = np.convolve(padded, np.full(2 * NEIGHBOURS + 1, 1 / (2 * NEIGHBOURS + 1)), "valid")
    ratios = np.stack([before / local, after / local, before / median], axis=1)
    thousandths: npt.NDArray[np.int16] = np.clip(
        np.rint((ratios - 1) * PER_UNIT), -PER_UNIT, PER_UNIT
    ).astype(np.int16)
    return thousandths


def device(
    beats: Beats, classes: int, most: int | None
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """Return x int16 (n, 216, 4) and y uint8 (n) of one record, in order of time."""
    side = deviations(beats.rr_prev, beats.rr_next)
    rows = [np.flatnonzero(beats.label == label) for label in range(classes)]
    if most is not None:
        rare = [evenly(found, most // classes) for found in rows[1:]]
        rows = [evenly(rows[0], most - sum(map(len, rare))), *rare]
    kept = np.sort(np.concatenate(rows))
    ecg = beats.ecg[kept][:, :, None]
    constant = np.broadcast_to(side[kept][:, None, :], (len(kept), ecg.shape[1], 3))
    return np.concatenate([ecg, constant], axis=2), beats.label[kept].astype(np.uint8)


def beats_of(
    signal: npt.NDArray[np.int64], sample: npt.NDArray[np.int64], label: npt.NDArray[np.int64]
) -> Beats:
    """Cut the windows of annotated beats (sorted by time) out of one record's signal.

    Beats too near the recording's ends are left out, after the distances were taken.
    """
    rr = np.diff(sample)
    rr_prev, rr_next = np.concatenate([[-1], rr]), np.concatenate([rr, [-1]])
    whole = (sample >= BEFORE) & (sample + AFTER <= len(signal))
    rows = sample[whole][:, None] + np.arange(-BEFORE, AFTER)[None, :]
    return Beats(signal[rows].astype(np.int16), label[whole], rr_prev[whole], rr_next[whole])


class BeatArrays:
    """Every beat of the database in one `.npz`.

    Arrays `X` int16 (beats, 216), `y` AAMI class, `record`, `sample`, `rr_prev` and `rr_next`.
    """

    def __init__(self, source: Source, name: str) -> None:
        arrays = source.arrays(name)
        absent = sorted(ARRAYS - set(arrays))
        if absent:
            raise DataError(f"{source.label(name)}: array {absent[0]!r} is missing; bring them all")
        rows = len(arrays["y"])
        if arrays["X"].shape != (rows, BEFORE + AFTER) or any(
            arrays[key].shape != (rows,) for key in ARRAYS - {"X"}
        ):
            raise DataError(
                f"{source.label(name)}: array 'X' has shape {arrays['X'].shape} beside {rows} "
                f"labels; each beat is one row of {BEFORE + AFTER} samples"
            )
        if arrays["X"].dtype.kind != "i":
            raise DataError(
                f"{source.label(name)}: array 'X' has type {arrays['X'].dtype}; give signed "
                "integers, ADC units without their offset, 200 a mV"
            )
        self._arrays = arrays
        self._label = source.label(name)

    def read(self, record: int) -> Beats:
        """Return one record's beats. Raises DataError."""
        rows = np.flatnonzero(self._arrays["record"] == record)
        if not len(rows):
            raise DataError(
                f"{self._label}: array 'record' has no beat of {record}; bring the whole file, or "
                "name those that it has with --records"
            )
        rows = rows[np.argsort(self._arrays["sample"][rows], kind="stable")]
        label, prev, next_ = (
            self._arrays[key][rows].astype(np.int64) for key in ("y", "rr_prev", "rr_next")
        )
        return Beats(self._arrays["X"][rows].astype(np.int16), label, prev, next_)


def toml_head(classes: int, papers: str, maker: str) -> tuple[str, ...]:
    """Return the comment lines of `dataset.toml`."""
    names = "N, S and V only" if classes == 3 else "N, S, V, F and Q"
    return (
        f"Heartbeats of the MIT-BIH Arrhythmia Database, {names}; see {papers}.",
        f"Made by {maker}. One record is one device. Channels of x:",
        *CHANNELS,
    )


def toml_table(options: MitbihOptions) -> dict[str, object]:
    """Return what `dataset.toml` says."""
    _, held_out = options.chosen()
    return {
        "name": "mitbih",
        "kind": "windows",
        "data_class": "heart-rhythm",
        "classes": CLASSES[: options.classes],
        "sampling_hz": SAMPLING_HZ,
        "scale": SCALE,
        "channels": NAMES,
        "units": UNITS,
        "test_devices": [device_name(record) for record in sorted(held_out)],
    }


def device_name(record: int) -> str:
    """Return the device id of a record."""
    return f"r{record}"


def import_mitbih(
    read: Callable[[int], Beats], options: MitbihOptions, folder: NewFolder
) -> Imported:
    """Write the chosen records' devices into `folder`. Raises DataError."""
    train, held_out = options.chosen()
    left_out: Counter[str] = Counter()
    thinned = 0
    for record in (*train, *held_out):
        beats = read(record)
        x, y = device(beats, options.classes, options.beats)
        if not len(y):
            raise DataError(f"record {record} has no beat of {CLASSES[: options.classes]}")
        folder.arrays(device_name(record), x, y)
        other = beats.label[beats.label >= options.classes]
        left_out.update(CLASSES[label] for label in other.tolist())
        thinned += len(beats.label) - len(other) - len(y)
    steps = [
        f"{len(train)} records train, {len(held_out)} are held out (DS1 and DS2 of de Chazal et "
        "al., IEEE TBME 51(7), 2004)",
        f"windows of {BEFORE + AFTER} samples, {BEFORE} before the annotated beat; three numbers "
        "about the distances between beats added as constant channels",
        "beats of other classes left out: "
        + (", ".join(f"{count} {name}" for name, count in sorted(left_out.items())) or "none"),
        "paced records train too: " + ", ".join(map(str, PACED))
        if options.paced
        else "paced records left out: " + ", ".join(map(str, PACED)),
        "record 202 is held out although it is the same person as 201, which trains"
        if SAME_PERSON in held_out
        else "record 202 left out: it is the same person as 201, which trains",
    ]
    if options.beats is not None:
        steps.append(
            f"at most {options.beats} beats a record, {options.beats // options.classes} of each "
            f"class but N, evenly spaced in time: {thinned} beats left out"
        )
    return Imported(
        MITBIH,
        CLASSES[: options.classes],
        toml_table(options),
        toml_head(options.classes, "PROVENANCE.txt", "`vitalring data import`"),
        tuple(steps),
        range(options.classes),
    )
