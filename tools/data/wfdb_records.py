"""Read records of the MIT-BIH Arrhythmia Database in its published WFDB files."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from vitalring.errors import ConfigError, DataError
from vitalring.tools.data.mitbih import AAMI, SAMPLING_HZ, Beats, beats_of
from vitalring.tools.data.origins import MITBIH
from vitalring.tools.data.source import Source

LEADS = ("MLII", "V5")  # the first of these that a record has
GAIN = 200.0  # ADC units a millivolt, in all 48 records
EXTENSIONS = ("hea", "dat", "atr")


class WfdbRecords:
    """The published folder or zip; `read` is one record's beats.

    Raises:
        ConfigError: the `wfdb` package is not installed.
    """

    def __init__(self, source: Source) -> None:
        try:
            import wfdb  # noqa: PLC0415  heavy, and only this importer needs it
        except ImportError as error:
            raise ConfigError(
                "reading WFDB files needs the package wfdb: pip install 'vitalring[data]'"
            ) from error
        self._wfdb: Any = wfdb
        self._source = source

    def read(self, record: int) -> Beats:
        """Return a record's annotated beats.

        Raises:
            DataError: a file is missing or broken, or is not of this database.
        """
        names = [self._source.need(f"{record}.{end}", MITBIH) for end in EXTENSIONS]
        label = self._source.label(names[0])
        with tempfile.TemporaryDirectory() as folder:
            room = Path(folder)
            for name in names:
                self._source.fetch(name, room)
            try:
                return self._beats(str(room / str(record)), record, label)
            except DataError:
                raise
            except Exception as error:  # the package raises whatever its parsers do
                raise DataError(
                    f"{label}: record {record} cannot be read ({error!r}); download it again"
                ) from error

    def _beats(self, path: str, record: int, label: str) -> Beats:
        header = self._wfdb.rdheader(path)
        # 1. A header may name any file: only the record's own is opened.
        if set(header.file_name) != {f"{record}.dat"}:
            raise DataError(f"{label}: names {header.file_name}; expected {record}.dat alone")
        # 2. The lead.
        lead = next((name for name in LEADS if name in header.sig_name), None)
        if lead is None:
            raise DataError(f"{label}: has leads {header.sig_name}, none of {LEADS}")
        channel = header.sig_name.index(lead)
        # 3. The units that `scale` and the window's length stand for.
        if header.fs != SAMPLING_HZ or header.adc_gain[channel] != GAIN:
            raise DataError(
                f"{label}: {header.fs} Hz and {header.adc_gain[channel]} units a mV; the "
                f"database has {SAMPLING_HZ} Hz and {GAIN:g}"
            )
        signals = self._wfdb.rdrecord(path, channels=[channel], physical=False)
        signal = signals.d_signal[:, 0].astype(np.int64) - header.baseline[channel]
        notes = self._wfdb.rdann(path, "atr")
        beats = [
            (sample, AAMI[symbol])
            for sample, symbol in zip(notes.sample.tolist(), notes.symbol, strict=True)
            if symbol in AAMI
        ]
        if len(beats) < 2:
            raise DataError(f"{label}: record {record} has {len(beats)} annotated beats")
        samples, labels = np.array(sorted(beats, key=lambda beat: beat[0]), dtype=np.int64).T
        return beats_of(signal, samples, labels)
