"""Make the shipped ECG data set from the heartbeats of the MIT-BIH Arrhythmia Database.

    python tools/make_mitbih_subset.py SOURCE_NPZ OUT_FOLDER

SOURCE_NPZ holds every annotated beat of the 48 records: `X` int16 (beats, 216), one lead at
360 Hz in ADC units (200 per mV, offset removed), 90 samples before the annotated beat and 126
from it on; `y` the AAMI class 0 N, 1 S, 2 V, 3 F, 4 Q; `record`; `sample`; and `rr_prev`,
`rr_next`, the distances to the neighbouring beats in samples, -1 at a record's ends.

What is kept, the same at every run:
- one record is one device: DS1 of de Chazal et al. 2004 ("Automatic classification of heartbeats
  using ECG morphology and heartbeat interval features", IEEE TBME 51(7)) trains, DS2 is held
  out. Record 202 is left out, because it is the same person as 201 of DS1;
- classes N, S and V; fusion beats (F) and beats that nobody could classify (Q) are left out;
- at most 300 beats a record: S and V up to 100 each, the rest N, each class evenly spaced in
  time (of m beats the ones at ⌊(i + ½)·m/k⌋), so that classes are less unequal than in life.

The RR numbers use every beat of the record and no label.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

# fmt: off
DS1 = (101, 106, 108, 109, 112, 114, 115, 116, 118, 119, 122,
       124, 201, 203, 205, 207, 208, 209, 215, 220, 223, 230)
DS2 = (100, 103, 105, 111, 113, 117, 121, 123, 200, 210, 212,
       213, 214, 219, 221, 222, 228, 231, 232, 233, 234)
# fmt: on
BEATS = 300  # at most, of one record
RARE = 100  # at most, of S and of V
NEIGHBOURS = 10  # beats on either side that make the local mean RR
PER_UNIT = 1000  # RR deviations are stored in thousandths

_HEAD = """\
# Heartbeats of the MIT-BIH Arrhythmia Database, N, S and V only; see ATTRIBUTION.
# Made by tools/make_mitbih_subset.py. One record is one device. Channels of x:
#   0  one ECG lead, in mV after `scale` (modified limb lead II)
#   1  8 · (RR before the beat / mean RR of the 21 beats around it - 1)
#   2  8 · (RR after the beat / mean RR of the 21 beats around it - 1)
#   3  8 · (RR before the beat / median RR of the record - 1)
# Channels 1 to 3 are constant over the window and know no label.
"""


def evenly(rows: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.int64]:
    """Return k of `rows`, evenly spaced; all of them when there are no more than k."""
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
    source: dict[str, npt.NDArray[np.int64]], record: int
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """Return x int16 (n, 216, 4) and y uint8 (n) of one record, in order of time."""
    rows = np.flatnonzero(source["record"] == record)
    rows = rows[np.argsort(source["sample"][rows], kind="stable")]
    labels = source["y"][rows]
    side = deviations(source["rr_prev"][rows], source["rr_next"][rows])
    rare = [evenly(np.flatnonzero(labels == label), RARE) for label in (1, 2)]
    normal = evenly(np.flatnonzero(labels == 0), BEATS - len(rare[0]) - len(rare[1]))
    kept = np.sort(np.concatenate([normal, *rare]))
    ecg = source["X"][rows[kept]].astype(np.int16)[:, :, None]
    constant = np.broadcast_to(side[kept][:, None, :], (len(kept), ecg.shape[1], 3))
    return np.concatenate([ecg, constant], axis=2), labels[kept].astype(np.uint8)


def dataset_toml() -> str:
    """Return the text of `dataset.toml`."""
    held_out = ", ".join(f'"r{record}"' for record in DS2)
    return (
        f'{_HEAD}name = "mitbih"\nkind = "windows"\nclasses = ["N", "S", "V"]\n'
        f"sampling_hz = 360\nscale = [0.005, 0.008, 0.008, 0.008]\ntest_devices = [{held_out}]\n"
    )


def main() -> int:
    """Write the data set's folder; ATTRIBUTION beside it is kept by hand."""
    parser = argparse.ArgumentParser(description="Make the shipped ECG data set.")
    parser.add_argument("source", type=Path, help="npz file with every beat")
    parser.add_argument("out", type=Path, help="folder to write")
    options = parser.parse_args()
    with np.load(options.source) as archive:
        source = {name: archive[name] for name in archive.files}
    (options.out / "devices").mkdir(parents=True, exist_ok=True)
    (options.out / "dataset.toml").write_text(dataset_toml(), encoding="utf-8")
    for record in DS1 + DS2:
        x, y = device(source, record)
        path = options.out / "devices" / f"r{record}.npz"
        np.savez_compressed(path, x=x, y=y)
        print(f"{path}: {len(y)} beats, N/S/V {np.bincount(y, minlength=3).tolist()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
