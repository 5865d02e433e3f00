"""Which devices a folder holds, and which of them train."""

from pathlib import Path

from vitalring.errors import DataError
from vitalring.models.dataset.complaints import Complain, refuse
from vitalring.models.dataset.info import DEVICE_ID, DatasetInfo

MAX_DEVICES = 1_000_000
SUFFIXES = {"windows": (".npz",), "tabular": (".csv", ".npz")}


def devices(folder: Path, info: DatasetInfo) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the ids that train and the ids that test, each sorted.

    With `test_devices` the two are disjoint; with `test_fraction` every device is in both, and
    `split` divides its rows. Devices of `validation_devices` are in neither.

    Raises:
        DataError: there is no device, a file is not a device's, or a held-out device has no file.
    """
    found = list_devices(folder, info, refuse)
    held_out = set(info.test_devices or ()) | set(info.validation_devices)
    train = tuple(name for name in found if name not in held_out)
    if info.test_devices is None:
        return train, train
    return train, tuple(sorted(info.test_devices))


def require_test(folder: Path, info: DatasetInfo) -> None:
    """Refuse a data set on which no model can be evaluated.

    Raises:
        DataError: it says that nothing is held out.
    """
    if info.test_devices == ():
        raise DataError(
            f"{folder / 'dataset.toml'}: test_devices is empty, so no row is held out to evaluate "
            "on; name some devices there"
        )


def list_devices(folder: Path, info: DatasetInfo, complain: Complain) -> tuple[str, ...]:
    """Return the ids of all devices of a folder, sorted, whatever their part."""
    room = folder / "devices"
    suffixes = SUFFIXES[info.kind]
    wanted = " or ".join(suffixes)
    try:
        entries = sorted(room.iterdir())
    except OSError as error:
        complain(
            f"{room}: cannot be listed ({error.strerror}); put one {wanted} file for each device "
            "there"
        )
        return ()
    complaints = 0
    found: dict[str, Path] = {}
    for entry in entries:
        if entry.name.startswith("."):
            continue
        message = _stray(entry, found, info)
        if message:
            complain(f"{entry}: {message}")
            complaints += 1
        else:
            found[entry.stem] = entry
    if not found and not complaints:
        complain(f"{room}: holds no device; put one {wanted} file for each device there")
    if len(found) > MAX_DEVICES:
        complain(f"{room}: holds {len(found)} devices, more than {MAX_DEVICES}; make groups")
        return ()
    _check_held_out(folder, info, found, complain)
    return tuple(sorted(found))


def device_file(folder: Path, device_id: str, info: DatasetInfo) -> Path:
    """Return where a device's file is, or the place where it should be.

    Raises:
        DataError: the id is not allowed.
    """
    if not DEVICE_ID.fullmatch(device_id):
        raise DataError(f"device id {device_id!r} is not allowed: letters, digits, '.', '_', '-'")
    places = [folder / "devices" / f"{device_id}{suffix}" for suffix in SUFFIXES[info.kind]]
    return next((place for place in places if place.exists()), places[0])


def _stray(entry: Path, found: dict[str, Path], info: DatasetInfo) -> str | None:
    """Say why a file is not one of the folder's devices, or None."""
    suffixes = SUFFIXES[info.kind]
    if entry.suffix == ".csv" and info.kind == "windows":
        return 'windows do not come as csv; save x and y with numpy.savez, or set kind = "tabular"'
    if entry.suffix not in suffixes or not DEVICE_ID.fullmatch(entry.stem):
        return (
            f"is not a device's file; name it <id>{' or <id>'.join(suffixes)}, the id of at most "
            "64 letters, digits, '.', '_' and '-'"
        )
    if entry.stem in found:
        return f"the same device has {found[entry.stem].name} too; keep one of the two"
    # All that are found so far have one suffix.
    other = next(iter(found.values()), entry)
    if other.suffix != entry.suffix:
        return f"is {entry.suffix}, but {other.name} is not; use one format for all devices"
    return None


def _check_held_out(
    folder: Path, info: DatasetInfo, found: dict[str, Path], complain: Complain
) -> None:
    """Check that held-out devices are there, and others too."""
    path = folder / "dataset.toml"
    for key, names in (
        ("test_devices", info.test_devices or ()),
        ("validation_devices", info.validation_devices),
    ):
        for name in sorted(set(names) - set(found)):
            complain(
                f"{path}: {key} names {name!r}, but {device_file(folder, name, info)} does not "
                "exist; add the file or take the name out"
            )
    if found and not set(found) - set(info.test_devices or ()) - set(info.validation_devices):
        complain(
            f"{path}: test_devices and validation_devices name every device; leave some to train"
        )
