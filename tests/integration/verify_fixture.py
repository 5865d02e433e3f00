"""An honest log of three rounds, and whoever holds the gateway's log key to rewrite it."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from federation_fixture import Parties, SmallFederation, small_federation

from vitalring.errors import LogError
from vitalring.gateway.export import export_log
from vitalring.protocol import checkpoint as notes
from vitalring.protocol import merkle, tiles
from vitalring.protocol.cbor import decode, digest, encode, type_of
from vitalring.protocol.records import (
    AcceptedUpdate,
    GlobalModel,
    LoggedObject,
    Receipts,
    RoundReport,
)
from vitalring.protocol.signing import Signed, sign
from vitalring.tools import verify

ROUNDS = ((0, 1, 2, 3, 4, 5), (0, 2, 4), (0, 1, 2, 3, 5))


@dataclass(frozen=True)
class Honest:
    federation: SmallFederation
    folder: Path


def build(folder, rounds=ROUNDS, **options):
    federation = small_federation(**options)
    parties = Parties(federation, folder / "state")
    for devices in rounds:
        parties.run_round(devices)
    export_log(parties.db, federation.files, folder / "log")
    return federation, parties


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}


def fault(folder, authority=None):
    with pytest.raises(LogError) as caught:
        verify.verify_log(folder, authority)
    return str(caught.value)


class Forger:
    """The content of a log folder, and whoever holds the gateway's log key to rewrite it."""

    def __init__(self, made):
        self.federation = made.federation
        paths = files_of(made.folder)
        size = int((made.folder / "checkpoint").read_bytes().split(b"\n")[1])
        self.entries = []
        for tile in tiles.tiles(size):
            if tile.level is None:
                self.entries += tiles.decode_bundle(paths[tile.path].read_bytes(), tile.width)
        self.objects = {
            digest(p.read_bytes()): p.read_bytes()
            for name, p in paths.items()
            if name.startswith("objects/")
        }
        self.receipts = {
            int(name.split("/")[1]): p.read_bytes()
            for name, p in paths.items()
            if name.startswith("receipts/")
        }
        self.authority = paths["authority"].read_bytes()

    def position(self, kind, number=1):
        """Where the `number`-th entry of a kind stands."""
        found = [i for i, entry in enumerate(self.entries) if self._kind(entry) == kind]
        return found[number - 1]

    def _kind(self, entry):
        if type_of(entry) == AcceptedUpdate.TYPE:
            return "accepted-update"
        return decode(LoggedObject, entry).kind

    def signed(self, kind, number=1):
        return self.objects[decode(LoggedObject, self.entries[self.position(kind, number)]).digest]

    def record(self, cls, kind, number=1):
        return decode(cls, decode(Signed, self.signed(kind, number)).payload)

    def replace_signed(self, kind, content, number=1):
        """Put another signed record in the place of one; the entry then names it."""
        position = self.position(kind, number)
        del self.objects[decode(LoggedObject, self.entries[position]).digest]
        self.objects[digest(content)] = content
        self.entries[position] = encode(LoggedObject(kind, digest(content)))
        return f"objects/{digest(content).hex()}"

    def resign_report(self, number=1, **changes):
        report = replace(self.record(RoundReport, "round-report", number), **changes)
        content = sign(report, [self.federation.log_key.seed])
        path = self.replace_signed("round-report", content, number)
        # Let the model follow, so that the report alone is at fault.
        self.resign_model(number, report=digest(content))
        return path

    def resign_model(self, number=1, key=None, **changes):
        model = replace(self.record(GlobalModel, "global-model", number), **changes)
        content = sign(model, [key or self.federation.aggregator_seed])
        return self.replace_signed("global-model", content, number)

    def resign_receipts(self, number):
        """Receipts that agree with the entries as they are now."""
        plan = digest(self.signed("round-plan", number))
        updates = [decode(AcceptedUpdate, e) for e in self.entries if self._kind(e)[0] == "a"]
        digests = tuple(update.digest for update in updates if update.plan == plan)
        self.receipts[number] = sign(Receipts(plan, digests), [self.federation.log_key.seed])

    def write(self, folder, seed=None):
        """Write the folder with tiles, root and checkpoint that fit the entries."""
        seed = seed or self.federation.log_key.seed
        origin = self.federation.log_key.origin
        root = merkle.root_of(merkle.leaf_hash(entry) for entry in self.entries)
        note = notes.sign(notes.Checkpoint(origin, len(self.entries), root), seed, origin)
        files = {"authority": self.authority, "checkpoint": note}
        files |= tiles.encode_log(self.entries)
        files |= {f"objects/{name.hex()}": content for name, content in self.objects.items()}
        files |= {f"receipts/{number}": content for number, content in self.receipts.items()}
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return folder
