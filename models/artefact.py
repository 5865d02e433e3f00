"""A built network as a device receives it: a TFLite model and what it says about itself.

`<name>.json` states names, shapes and the rule for initial weights, and pins `<name>.tflite` by
SHA-256; the artefact's digest is that of the JSON text, so it covers both. No TensorFlow here.

Initial weights are part of the contract: every party must compute the same ones from a seed. So
the rule is integers and exactly rounded operations: block i of the JSON's `blocks`, [size, limit],
takes size 32-bit little-endian numbers u from SHAKE-256(label || i || seed), and each weight is
float32(((u >> 8) + ½ - 2²³) · 2⁻²³ · limit), computed in float64. A limit of 0 gives zeros.
An imported network may name weights to start from instead; then the seed plays no part.
"""

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitalring.errors import ModelError

MAX_DIMENSION = 10_000_000
EXPORT_FILE, INITIAL_FILE, SIZING_FILE = "-export.json", "-initial.bin", "-sizing.json"

Folder = Path | Traversable
SHIPPED: Folder = resources.files("vitalring.models") / "artefacts"

_LABEL = b"vitalring initial weights 1\0"


@dataclass(frozen=True)
class ArtefactInfo:
    """What a built network says about itself; the JSON file has these keys and no other.

    `input_shape` leaves the batch out; arrays go in `physical_batch` rows at a time. `blocks` are
    (size, limit) runs of the flat weight vector, `dimension` long in all; the last `head` weights
    are those of the last dense layer. The rest are SHA-256 in hex: of the training model, of the
    float32 weights that it starts from, and of the export table. The last two may be "": then
    weights start as `blocks` say, and the network cannot be exported.
    """

    name: str
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    physical_batch: int
    dimension: int
    blocks: tuple[tuple[int, float], ...]
    head: int
    sha256: str
    initial: str
    export: str

    def __post_init__(self) -> None:
        checks = (
            ("name", isinstance(self.name, str) and self.name.isidentifier()),
            ("classes", _tuple_of(self.classes, str) and len(self.classes) >= 2),
            (
                "input_shape",
                _tuple_of(self.input_shape, int) and all(map(_positive, self.input_shape)),
            ),
            ("physical_batch", _positive(self.physical_batch)),
            ("dimension", _positive(self.dimension) and self.dimension <= MAX_DIMENSION),
            ("blocks", self._blocks_fit()),
            ("head", _positive(self.head) and self.head <= self.dimension),
            ("sha256", _digest(self.sha256)),
            ("initial", self.initial == "" or _digest(self.initial)),
            ("export", self.export == "" or _digest(self.export)),
        )
        for key, good in checks:
            if not good:
                raise ModelError(
                    f"artefact {self.name!r}: {key} is {getattr(self, key)!r}, which cannot be; "
                    "build the artefact again"
                )

    def _blocks_fit(self) -> bool:
        for size, limit in self.blocks:
            if not _positive(size) or isinstance(limit, bool):
                return False
            if not isinstance(limit, int | float) or not 0 <= limit < math.inf:
                return False
        return sum(size for size, _ in self.blocks) == self.dimension

    def to_json(self) -> bytes:
        """Return the one text that stands for this record."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode()

    @classmethod
    def from_json(cls, text: bytes) -> "ArtefactInfo":
        """Read what `to_json` wrote, and nothing else.

        Raises:
            ModelError: the text is not the one encoding of a valid record.
        """
        try:
            table = json.loads(text)
            if not isinstance(table, dict) or set(table) != {field.name for field in fields(cls)}:
                raise ModelError("artefact: the JSON does not have the keys of an artefact")
            info = cls(**{key: _tuples(value) for key, value in table.items()})
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ModelError(f"artefact: the JSON cannot be read ({error})") from error
        if info.to_json() != text:
            raise ModelError("artefact: the JSON is not in its one encoding; build it again")
        return info


@dataclass(frozen=True)
class Artefact:
    """A built network whose model bytes are the ones that its info pins.

    `companions` are files that go with it, each found by its SHA-256: weights to start from, and
    the export table. Who does not need one need not have it.
    """

    info: ArtefactInfo
    model: bytes = field(repr=False)
    companions: tuple[bytes, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        found = hashlib.sha256(self.model).hexdigest()
        if found != self.info.sha256:
            raise ModelError(
                f"artefact {self.info.name!r}: the model's SHA-256 is {found}, but its info says "
                f"{self.info.sha256}; fetch or build the artefact again"
            )

    @property
    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of the info's JSON, which pins the model."""
        return hashlib.sha256(self.info.to_json()).digest()

    def companion(self, sha256_hex: str) -> bytes:
        """Return the companion with this SHA-256.

        Raises:
            ModelError: there is none.
        """
        for companion in self.companions:
            if hashlib.sha256(companion).hexdigest() == sha256_hex:
                return companion
        raise ModelError(
            f"artefact {self.info.name!r} has no companion file with SHA-256 {sha256_hex!r}; take "
            "all files of the artefact from where it was built"
        )


def artefact_from_bytes(
    info: bytes, model: bytes, companions: tuple[bytes, ...] = (), digest: bytes | None = None
) -> Artefact:
    """Return an artefact that came from outside; `digest` is the one that a plan names.

    Raises:
        ModelError: the info is malformed, or a digest does not match.
    """
    artefact = Artefact(ArtefactInfo.from_json(info), model, companions)
    if digest is not None and artefact.digest != digest:
        raise ModelError(
            f"artefact {artefact.info.name!r} has digest {artefact.digest.hex()}, but the plan "
            f"names {digest.hex()}; fetch the artefact of this study"
        )
    return artefact


def load_artefact(name: str) -> Artefact:
    """Return an artefact that is shipped with the project; a sizeable one at its reference size.

    Raises:
        ModelError: there is none of that name.
    """
    if name not in shipped_names():
        raise ModelError(f"no network is called {name!r}; there are {', '.join(shipped_names())}")
    return read_artefact(SHIPPED, name)


def read_artefact(folder: Folder, name: str) -> Artefact:
    """Return the artefact whose files `<name>.json`, `<name>.tflite` and so on are in a folder.

    Raises:
        ModelError: a file is missing or is not the one that the JSON pins.
    """

    def content(ending: str) -> bytes:
        try:
            return (folder / f"{name}{ending}").read_bytes()
        except OSError as error:
            raise ModelError(f"artefact {name!r}: {error}; build it again") from error

    info = ArtefactInfo.from_json(content(".json"))
    given = ((info.initial, INITIAL_FILE), (info.export, EXPORT_FILE))
    artefact = Artefact(
        info, content(".tflite"), tuple(content(ending) for digest, ending in given if digest)
    )
    for digest, _ in given:
        if digest:
            artefact.companion(digest)
    return artefact


def shipped_names() -> tuple[str, ...]:
    """Return the names of the networks that are shipped with the project."""
    files = {entry.name for entry in SHIPPED.iterdir()}
    stems = (file.removesuffix(".json") for file in files if file.endswith(".json"))
    return tuple(sorted(stem for stem in stems if f"{stem}.tflite" in files))


def initial_weights(artefact: Artefact, seed: bytes) -> npt.NDArray[np.float32]:
    """Return the weights (dimension,) that a study with this seed begins from.

    Raises:
        ModelError: the artefact names weights to start from, which are missing or malformed.
    """
    info = artefact.info
    if info.initial:
        given = artefact.companion(info.initial)
        if len(given) != 4 * info.dimension:
            raise ModelError(
                f"artefact {info.name!r}: its initial weights have {len(given)} bytes, not "
                f"{4 * info.dimension}; build the artefact again"
            )
        weights = np.frombuffer(given, "<f4").astype(np.float32)
        if not np.isfinite(weights).all():
            raise ModelError(
                f"artefact {info.name!r}: its initial weights are not finite; build it again"
            )
        return weights
    parts = []
    for place, (size, limit) in enumerate(info.blocks):
        stream = hashlib.shake_256(_LABEL + place.to_bytes(4, "little") + seed).digest(4 * size)
        whole = np.frombuffer(stream, "<u4") >> 8
        unit = (whole.astype(np.float64) + 0.5 - 2**23) * 2.0**-23
        parts.append((unit * limit).astype(np.float32))
    drawn: npt.NDArray[np.float32] = np.concatenate(parts)
    return drawn + np.float32(0)  # -0 becomes 0


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _digest(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _tuple_of(value: object, kind: type) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(v, kind) for v in value)


def _tuples(value: Any) -> Any:  # noqa: ANN401
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
