"""What the channels of a window are called, and in which unit they are shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from vitalring.errors import ConfigError

MILLIVOLT: Final = "mV"


@dataclass(frozen=True)
class Channel:
    """A channel's name and unit; a value v of x is shown as `zero` + `factor` · v."""

    name: str
    unit: str = ""
    factor: float = 1.0
    zero: float = 0.0

    @property
    def label(self) -> str:
        """Name and unit."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    def shown(self, value: float) -> str:
        """Return a value as text, with its unit."""
        number = f"{self.zero + self.factor * value:.2f}".replace("-", "−")
        return f"{number} {self.unit}".strip()


def _activity(unit: str, name: str) -> tuple[Channel, ...]:
    return tuple(Channel(f"{name} {axis}", unit) for axis in "xyz")


_ACTIVITY: Final = (*_activity("g", "acceleration"), *_activity("rad/s", "angular velocity"))

# By the names that `vitalring data import` gives; their dataset.toml says the same in words.
KNOWN: Final[Mapping[str, tuple[Channel, ...]]] = {
    "mitbih": (
        Channel("ECG lead", MILLIVOLT),
        Channel("RR before", "× local mean", 1 / 8, 1.0),
        Channel("RR after", "× local mean", 1 / 8, 1.0),
        Channel("RR before", "× record median", 1 / 8, 1.0),
    ),
    "hapt-windows": _ACTIVITY,
    "uci-har-windows": _ACTIVITY,
}


def channels_of(dataset: str, count: int) -> tuple[Channel, ...]:
    """Return the channels of a known data set, or numbered ones without units."""
    known = KNOWN.get(dataset, ())
    if len(known) == count:
        return known
    return tuple(Channel(f"channel {number}") for number in range(count))


def parse_channels(texts: Sequence[str], count: int) -> tuple[Channel, ...]:
    """Return channels from texts such as "ECG:mV" or "RR before". Raises ConfigError."""
    if len(texts) != count:
        raise ConfigError(
            f"--channels names {len(texts)} channels, the windows have {count}; name each once"
        )
    parts = [text.partition(":") for text in texts]
    if not all(name.strip() for name, _, _ in parts):
        raise ConfigError("--channels: a channel has no name; write NAME or NAME:UNIT")
    return tuple(Channel(name.strip(), unit.strip()) for name, _, unit in parts)
