"""PROVENANCE.txt: which files a data set was made of, how, and under which terms."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vitalring import __version__
from vitalring.tools.data.origins import Origin
from vitalring.tools.data.source import Used

_LISTED = 100  # devices that a summary shows one by one


def provenance(
    command: str,
    origin: Origin | None,
    used: Iterable[Used],
    options: Mapping[str, object],
    steps: Iterable[str],
    counts: Iterable[str],
) -> str:
    """Return the file's text; the same sources and options give the same text."""
    lines = [f"Made by `{command}` of vitalring {__version__}.", ""]
    if origin is not None:
        lines += [
            "Source",
            f"  {origin.name}",
            f"  {origin.page}, DOI {origin.doi}",
            f"  Licence: {origin.licence}",
            *(f"  Cite: {work}" for work in origin.cite),
            "",
        ]
    lines += ["Files read (SHA-256, bytes, name)"]
    lines += [f"  {file.sha256}  {file.size}  {file.name}" for file in used]
    lines += ["", "Options", *(f"  {name} = {value}" for name, value in options.items())]
    lines += ["", "What was done", *(f"  - {step}" for step in steps)]
    lines += ["", "Rows", *(f"  {line}" for line in counts), ""]
    return "\n".join(lines)


def rows_by_class(
    tally: Mapping[str, Counter[Any]], keys: Sequence[Any], names: Sequence[str]
) -> list[str]:
    """Return lines that count rows: each device where they are few, then all of them.

    `keys` are what the tally counts, `names` the classes' names in the same order.
    """

    def line(title: str, counter: Mapping[Any, int]) -> str:
        shares = ", ".join(f"{name} {counter[key]}" for key, name in zip(keys, names, strict=True))
        return f"{title}: {sum(counter.values())} rows ({shares})"

    total: Counter[Any] = Counter()
    for counter in tally.values():
        total.update(counter)
    lines = [line(f"{len(tally)} devices", total)]
    if len(tally) <= _LISTED:
        lines += [line(device, tally[device]) for device in sorted(tally)]
    return lines
