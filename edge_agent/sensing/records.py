"""The labelled windows of a live device as the records of a round.

Which windows a round sees must not break the guarantee for a record (SPEC 7.2), in which two data
sets are neighbours when one has one record more. A record here is a window with a label; without
the label the window is still cut and still has its number. So, for a plan with unit `record`:

- a round sees the labelled windows among the newest `buffer.rows` windows that were ever cut,
  labelled or not. Whether one of them is labelled changes nothing about which others are seen.
  "The newest `rows` labelled windows" would be wrong: with one fewer an older one would take its
  place, neighbours would differ in two records, and twice the privacy would be spent;
- the same windows are never dropped for space (`buffer`), because what is dropped for space does
  depend on the labels of others; windows dropped for age go by their own age alone;
- a window's label depends on what is said of its time, and its samples on nothing that a
  prediction changed, so one record changes no other;
- `rows` is fixed by the configuration and never follows from what was recorded.

The guarantee is for one window. Where windows overlap or a person is long in one state, several
windows tell of one moment, and have the guarantee of a group (SPEC 12.8).

For other plans the bound is one of memory alone, and the newest `rows` labelled windows are seen.
"""

from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitalring.database import is_made, open_read_only
from vitalring.edge_agent.sensing.buffer import FILE, last_number
from vitalring.edge_agent.sensing.config import SensingConfig
from vitalring.edge_agent.sensing.cutting import Window
from vitalring.errors import ConfigError, DataError
from vitalring.models.dataset import Records
from vitalring.protocol.trust import Study


class SensorRecords:
    """A source of records over the buffer that a running `Sensing` fills."""

    def __init__(self, config: SensingConfig, state_dir: Path, data_class: str = "") -> None:
        self._config = config
        self._data_class = data_class
        self._path = state_dir / FILE

    @property
    def data_classes(self) -> tuple[str, ...]:
        """The kind of the windows, as the owner says; "" where nobody does."""
        return (self._data_class,)

    def records(self, study: Study) -> Records:
        """Return the labelled windows as they are now: x float32 (n, time, channels), y (n).

        One transaction reads them, so labels that come meanwhile are all in or all out. Windows
        with labels that are none of the study's classes are left out. Raises DataError where the
        study is not about windows or shares no class with `labels.classes`, StorageError.
        """
        plan = study.plan
        known = self._config.labels.classes if self._config.labels else ()
        classes = {name: index for index, name in enumerate(plan.model.classes)}
        if plan.model.features:
            raise DataError(f"study {plan.study} is about tables; this device has a sensor")
        if not classes.keys() & set(known):
            raise DataError(
                f"study {plan.study} has the classes {', '.join(plan.model.classes)[:200]}; "
                f"labels.classes has none of them"
            )
        return self._snapshot(classes, by_number=plan.privacy.unit == "record")

    def answer(self, study: Study) -> npt.NDArray[np.uint64]:
        """Refuse: windows have no statistics to agree on. Raises DataError."""
        raise DataError(
            f"study {study.plan.study} asks for statistics of a table; this device has a sensor"
        )

    def _snapshot(self, classes: dict[str, int], *, by_number: bool) -> Records:
        sensor, rows = self._config.sensor, self._config.buffer.rows
        with closing(open_read_only(self._path)) as db:
            db.execute("BEGIN")
            oldest = last_number(db) - rows if by_number else 0
            numbers = db.execute(
                "SELECT number, label FROM windows WHERE label IS NOT NULL AND number > ? "
                "ORDER BY number DESC LIMIT ?",
                (oldest, rows),
            )
            chosen = [(number, classes[label]) for number, label in numbers if label in classes]
            chosen.reverse()
            x = np.empty((len(chosen), sensor.window, sensor.width), np.float32)
            for row, (number, _) in enumerate(chosen):
                blob = db.execute("SELECT x FROM samples WHERE number = ?", (number,)).fetchone()[0]
                x[row] = np.frombuffer(blob, "<f4").reshape(sensor.window, sensor.width)
        y = np.array([label for _, label in chosen], np.int64)
        x.flags.writeable = False
        y.flags.writeable = False
        return Records("sensor", x, y)


def newest_windows(config: SensingConfig, state_dir: Path, most: int) -> list[Window]:
    """Return the newest windows of a device's buffer, with labels or without, oldest first.

    Reads beside a running agent. Raises ConfigError where nothing was ever recorded.
    """
    path, sensor = state_dir / FILE, config.sensor
    if not is_made(path):
        raise ConfigError(f"{path} does not exist: the agent has not run with this sensor yet")
    with closing(open_read_only(path)) as db:
        rows = db.execute(
            "SELECT start_ms, end_ms, x, number FROM windows JOIN samples USING (number) "
            "ORDER BY number DESC LIMIT ?",
            (most,),
        ).fetchall()
    shape = sensor.window, sensor.width
    return [
        Window(start, end, np.frombuffer(x, "<f4").reshape(shape), number)
        for start, end, x, number in reversed(rows)
    ]
