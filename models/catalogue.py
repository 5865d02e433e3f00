"""Which network a study trains: a shipped one or a built file, at the size of the study's data.

No TensorFlow here. A network of one size must fit the data; its classes take the data's names. A
sizeable network is fitted to the data: the TFLite model is the same for every size, and what the
artefact says of itself, its export table among it, follows from the sizing that is kept with it.
"""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from vitalring.errors import ModelError
from vitalring.models.artefact import (
    SHIPPED,
    SIZING_FILE,
    Artefact,
    Folder,
    read_artefact,
    shipped_names,
)
from vitalring.models.export import export_table_at
from vitalring.models.sizing import Sizing


def find_artefact(model: str, input_shape: tuple[int, ...], classes: tuple[str, ...]) -> Artefact:
    """Return the network `model` for windows (time, channels) or rows (inputs,) and classes.

    `model` is the name of a shipped network, or a path: of the `<name>.json` of a built one, or
    of the folder that holds it.

    Raises:
        ModelError: there is none, or it does not fit the data; the message names what would.
    """
    folder, name = _place(model)
    reference, sizing = read_artefact(folder, name), read_sizing(folder, name)
    if sizing is not None:
        return sized(reference, sizing, input_shape, classes)
    info = reference.info
    if (info.input_shape, len(info.classes)) != (input_shape, len(classes)):
        fitting = ", ".join(_fitting(input_shape, classes)) or "none that is shipped"
        raise ModelError(
            f"{name} takes input {info.input_shape} and {len(info.classes)} classes, but the data "
            f"has {input_shape} and {len(classes)}; networks that fit: {fitting}"
        )
    return replace(reference, info=replace(info, classes=classes))


def suggest_model(
    input_shape: tuple[int, ...], kind: str, classes: tuple[str, ...], *, private: bool = False
) -> str:
    """Return the shipped network for data of this shape where the user names none.

    One made for exactly this size is preferred to a sizeable one, and one of more weights to one of
    fewer; with a guarantee one of fewest weights to all others, for noise grows with their number
    (docs/models.md). `kind` is that of the data set.

    Raises:
        ModelError: no shipped network takes such data.
    """
    names = _fitting(input_shape, classes)
    if not names:
        raise ModelError(
            f"no shipped network takes {kind} of shape {input_shape} and {len(classes)} classes; "
            "build one, and name its file as the model"
        )
    if private:
        return min(names, key=lambda name: find_artefact(name, input_shape, classes).info.dimension)
    return names[0]


def choose_artefact(
    model: str | None,
    input_shape: tuple[int, ...],
    kind: str,
    classes: tuple[str, ...],
    *,
    private: bool = False,
) -> Artefact:
    """Return the network `model`, or the one suggested where that is empty. Raises ModelError."""
    name = model or suggest_model(input_shape, kind, classes, private=private)
    return find_artefact(name, input_shape, classes)


def is_of_one_size(model: str) -> bool:
    """Tell whether a network takes data of one size only. Raises ModelError if there is none."""
    return read_sizing(*_place(model)) is None


def load_of_one_size(model: str) -> Artefact:
    """Return a network of one size, with the names that its own file gives its classes.

    Raises:
        ModelError: there is none.
    """
    return read_artefact(*_place(model))


def read_sizing(folder: Folder, name: str) -> Sizing | None:
    """Return the sizing in `<name>-sizing.json`, or None where there is no such file."""
    file = folder / f"{name}{SIZING_FILE}"
    return Sizing.from_json(file.read_bytes()) if file.is_file() else None


def sized(
    reference: Artefact, sizing: Sizing, input_shape: tuple[int, ...], classes: tuple[str, ...]
) -> Artefact:
    """Return a sizeable network's artefact at another size than its reference.

    Raises:
        ModelError: the network cannot have this size.
    """
    info = sizing.info(reference.info, input_shape, classes)
    if not reference.info.export:
        return Artefact(info, reference.model)
    table = export_table_at(reference, sizing, input_shape, len(classes))
    return Artefact(replace(info, export=sha256(table).hexdigest()), reference.model, (table,))


def _place(model: str) -> tuple[Folder, str]:
    """Return the folder that a network is in, and its name there."""
    if model in shipped_names():
        return SHIPPED, model
    path = Path(model)
    if path.suffix == ".json" and path.is_file():
        return path.parent, path.stem
    if path.is_dir():
        names = sorted(file.stem for file in path.glob("*.tflite") if _beside(file).is_file())
        if len(names) == 1:
            return path, names[0]
        raise ModelError(
            f"{path} holds {len(names)} networks ({', '.join(names) or 'no .tflite with .json'}); "
            "name the .json file of one"
        )
    raise ModelError(
        f"no network is called {model!r}, and no file or folder either; there are "
        f"{', '.join(shipped_names())}"
    )


def _beside(model: Path) -> Path:
    return model.with_suffix(".json")


def _fitting(input_shape: tuple[int, ...], classes: tuple[str, ...]) -> list[str]:
    """Return the shipped networks that take such data: those of one size first, then by weights.

    Most weights come first, since who names no network gets the first.
    """
    exact, open_ = [], []
    for name in shipped_names():
        info, sizing = read_artefact(SHIPPED, name).info, read_sizing(SHIPPED, name)
        if sizing is not None and len(sizing.axes) == len(input_shape):
            open_.append((-info.dimension, name))
        elif sizing is None and (info.input_shape, len(info.classes)) == (
            input_shape,
            len(classes),
        ):
            exact.append((-info.dimension, name))
    return [name for _, name in sorted(exact) + sorted(open_)]
