"""What an importer hands back once the devices' files are written."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vitalring.tools.data.origins import Origin


@dataclass(frozen=True)
class Imported:
    """The rest of a data set's folder.

    `classes` are the data set's, `table` is `dataset.toml`, `head` its comment lines, `steps`
    what was done to the source's rows; `keys` are what the folder's tally counts, in the order of
    `classes`.
    """

    origin: Origin
    classes: tuple[str, ...]
    table: dict[str, object]
    head: tuple[str, ...]
    steps: tuple[str, ...]
    keys: Sequence[Any]
