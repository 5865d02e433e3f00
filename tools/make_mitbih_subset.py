"""Make the shipped ECG data set from the heartbeats of the MIT-BIH Arrhythmia Database.

    python tools/make_mitbih_subset.py SOURCE_NPZ OUT_FOLDER

SOURCE_NPZ holds every annotated beat of the 48 records: `X` int16 (beats, 216), one lead at
360 Hz in ADC units (200 per mV, offset removed), 90 samples before the annotated beat and 126
from it on; `y` the AAMI class 0 N, 1 S, 2 V, 3 F, 4 Q; `record`; `sample`; and `rr_prev`,
`rr_next`, the distances to the neighbouring beats in samples, -1 at a record's ends.

What is kept, the same at every run, is what `vitalring data import --as mitbih --beats 300`
keeps: DS1 trains and DS2 is held out, without record 202 (the same person as 201 of DS1);
classes N, S and V; at most 300 beats a record, S and V up to 100 each, the rest N, each class
evenly spaced in time, so that classes are less unequal than in life.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from vitalring.tools.data.folder import toml
from vitalring.tools.data.mitbih import (
    DS1,
    DS2,
    BeatArrays,
    MitbihOptions,
    device,
    device_name,
    toml_head,
    toml_table,
)
from vitalring.tools.data.source import Source

OPTIONS = MitbihOptions(beats=300)


def dataset_toml() -> str:
    """Return the text of `dataset.toml`."""
    head = toml_head(OPTIONS.classes, "ATTRIBUTION", "tools/make_mitbih_subset.py")
    return "".join(f"# {line}\n" for line in head) + toml(toml_table(OPTIONS))


def main() -> int:
    """Write the data set's folder; ATTRIBUTION beside it is kept by hand."""
    parser = argparse.ArgumentParser(description="Make the shipped ECG data set.")
    parser.add_argument("source", type=Path, help="npz file with every beat")
    parser.add_argument("out", type=Path, help="folder to write")
    options = parser.parse_args()
    (options.out / "devices").mkdir(parents=True, exist_ok=True)
    (options.out / "dataset.toml").write_text(dataset_toml(), encoding="utf-8")
    with Source(options.source) as source:
        beats = BeatArrays(source, options.source.name)
        for record in DS1 + DS2:
            x, y = device(beats.read(record), OPTIONS.classes, OPTIONS.beats)
            path = options.out / "devices" / f"{device_name(record)}.npz"
            np.savez_compressed(path, x=x, y=y)
            print(f"{path}: {len(y)} beats, N/S/V {np.bincount(y, minlength=3).tolist()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
