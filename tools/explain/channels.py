"""What the channels of a window are called, and in which unit they are shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vitalring.errors import ConfigError
from vitalring.models.dataset import DatasetInfo

MILLIVOLT: Final = "mV"


@dataclass(frozen=True)
class Channel:
    """A channel's name and unit."""

    name: str
    unit: str = ""

    @property
    def label(self) -> str:
        """Name and unit."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    def shown(self, value: float) -> str:
        """Return a value as text, with its unit."""
        number = f"{value:.2f}".replace("-", "−")
        return f"{number} {self.unit}".strip()


def channels_of(info: DatasetInfo, count: int) -> tuple[Channel, ...]:
    """Return the channels as `dataset.toml` names them, or numbered ones without units."""
    if not info.channels:
        return tuple(Channel(f"channel {number}") for number in range(count))
    units = info.units or ("",) * count
    return tuple(Channel(*pair) for pair in zip(info.channels, units, strict=True))


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
