"""`vitalring data import`: choose the importer, write the folder, say where it came from."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vitalring.errors import ConfigError, DataError
from vitalring.tools.data.diabetes import DiabetesOptions, import_diabetes
from vitalring.tools.data.folder import NewFolder
from vitalring.tools.data.har import (
    HarOptions,
    import_hapt,
    import_har,
    import_har_arrays,
)
from vitalring.tools.data.imported import Imported
from vitalring.tools.data.mitbih import ARRAYS as BEAT_ARRAYS
from vitalring.tools.data.mitbih import BeatArrays, MitbihOptions, import_mitbih
from vitalring.tools.data.provenance import provenance, rows_by_class
from vitalring.tools.data.source import Source
from vitalring.tools.data.wfdb_records import WfdbRecords

Importer = Callable[[Source, Any, NewFolder], Imported]


def _mitbih(source: Source, options: MitbihOptions, folder: NewFolder) -> Imported:
    return import_mitbih(WfdbRecords(source).read, options, folder)


def _beat_arrays(source: Source, options: MitbihOptions, folder: NewFolder) -> Imported:
    return import_mitbih(BeatArrays(source, source.names[0]).read, options, folder)


def _har_arrays(source: Source, options: HarOptions, folder: NewFolder) -> Imported:
    return import_har_arrays(source, source.arrays(source.names[0]), options, folder)


@dataclass(frozen=True)
class Kind:
    """An importer and the class of its options."""

    run: Importer
    options: type


KINDS: Mapping[str, Kind] = {
    "mitbih": Kind(_mitbih, MitbihOptions),
    "uci-har": Kind(import_har, HarOptions),
    "hapt": Kind(import_hapt, HarOptions),
    "diabetes130": Kind(import_diabetes, DiabetesOptions),
}
ARRAYS = "arrays"
_ARRAY_KINDS = (
    (BEAT_ARRAYS, Kind(_beat_arrays, MitbihOptions)),
    (
        frozenset({"signals", "offset", "exp_id", "subject", "labels"}),
        Kind(_har_arrays, HarOptions),
    ),
    (frozenset({"X", "y", "subject"}), Kind(_har_arrays, HarOptions)),
)
"""What is recognised by the arrays that a file holds."""


def import_data(path: Path, kind: str, target: Path, given: Mapping[str, object]) -> list[str]:
    """Make the folder `target` of the files at `path`; return lines that count its rows.

    `given` are the options that the user set; each kind knows its own.

    Raises:
        ConfigError: an option does not fit, or `target` is in use.
        DataError: a file is missing or is not what it should be.
        StorageError: the folder cannot be written.
    """
    with Source(path) as source, NewFolder(target) as folder:
        chosen = _kind_of_arrays(source) if kind == ARRAYS else KINDS[kind]
        own = {field.name for field in fields(chosen.options)}
        for name in given:
            if name not in own:
                raise ConfigError(
                    f"--{name.replace('_', '-')} does not belong to these files; options: "
                    + ", ".join(f"--{option.replace('_', '-')}" for option in sorted(own))
                )
        options = chosen.options(**given)
        made = chosen.run(source, options, folder)
        lines = rows_by_class(folder.tally, made.keys, made.classes)
        text = provenance(
            f"vitalring data import --as {kind}",
            made.origin,
            source.used,
            asdict(options),
            made.steps,
            lines,
        )
        folder.finish(made.table, made.head, text)
    return lines


def _kind_of_arrays(source: Source) -> Kind:
    """Recognise a single file by what it holds."""
    name = source.names[0]
    if len(source.names) > 1:
        raise ConfigError(f"--as {ARRAYS} takes one .npz or csv file, not {len(source.names)}")
    if name.endswith((".csv", ".csv.gz")):
        return KINDS["diabetes130"]
    held = set(source.arrays(name))
    for wanted, kind in _ARRAY_KINDS:
        if wanted <= held:
            return kind
    raise DataError(
        f"{source.label(name)}: holds the arrays {sorted(held)}, which are none of those known: "
        + "; ".join(", ".join(sorted(wanted)) for wanted, _ in _ARRAY_KINDS)
    )
