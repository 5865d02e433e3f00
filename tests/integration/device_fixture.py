"""A device with everything real but the network, which is small enough to train in no time."""

import contextlib

import numpy as np

from vitalring.edge_agent import state
from vitalring.edge_agent.agent import Agent
from vitalring.edge_agent.budget import CHARGED, UNACCOUNTED, Budget
from vitalring.edge_agent.config import Floors
from vitalring.edge_agent.keyring import Keyring
from vitalring.edge_agent.workshop import Workshop
from vitalring.errors import TransportError
from vitalring.gateway import log, rosters, rounds, store
from vitalring.models.dataset import Records
from vitalring.protocol.cbor import digest, encode
from vitalring.protocol.records import PlanAnnouncement

FLOORS = Floors(ring=3, cohort=4, epsilon=8.0, delta=1e-5, allow_plain_sum=True)


def linear(spends, delta):
    """A stand-in accountant whose figures can be done in the head: one per 100 steps."""
    return sum(spend.steps for spend in spends) / 100


class LineModel:
    """One linear unit; has what training asks of a model."""

    physical_batch = 16

    def gradient_sum(self, weights, x, y, clip):
        features = x.reshape(len(x), -1)
        gradients = (features @ weights - y)[:, None] * features
        norms = np.linalg.norm(gradients, axis=1)
        factors = np.minimum(1.0, clip / np.maximum(norms, 1e-12))
        total = (gradients * factors[:, None]).sum(axis=0)
        return total.astype(np.float32), 0.0, norms.astype(np.float32)


class LineWorkshop(Workshop):
    """A workshop whose studies train a linear unit: no test here is about TFLite."""

    def model(self, study):
        return LineModel()


def workshop_of(parties, folder):
    def fetch(name):
        content = store.get_object(parties.db, name)
        if content is None:
            raise TransportError(f"nobody has {name.hex()}")
        return content

    return LineWorkshop(parties.federation.study.federation, folder / "cache", fetch)


def keyring(folder, pair, epoch=1):
    """A folder with this one key, as a device has it on its disk."""
    keys = Keyring(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not keys.is_erased(epoch):
        keys.path(epoch).write_bytes(pair.secret)
        keys.path(epoch).chmod(0o600)
    return keys


class FixedRecords:
    """A source of rows that a test made."""

    def __init__(self, rows, data_classes=("",)):
        self.rows = rows
        self.data_classes = data_classes

    def records(self, _study):
        return self.rows


def device(
    parties,
    folder,
    number=0,
    *,
    floors=FLOORS,
    participation=1.0,
    accountant=linear,
    records=120,
    pair=None,
    caught_up=True,
    data_classes=("",),
):
    """An agent on the state in `folder`, which is made if it is not there."""
    rng = np.random.default_rng(number)
    dimension = parties.federation.study.plan.model.dimension
    rows = Records(
        f"d{number}",
        rng.normal(size=(records, dimension)).astype(np.float32),
        rng.integers(0, 2, records),
    )
    pair = pair or parties.federation.devices[number]
    db = state.open_state(folder)
    agent = Agent(
        db,
        Budget(db),
        keyring(folder / "keys", pair),
        FixedRecords(rows, data_classes),
        floors,
        participation,
        workshop_of(parties, folder),
        accountant,
    )
    if caught_up:
        catch_up(agent, parties)
    return agent


@contextlib.contextmanager
def devices(parties, folder):
    """Yield what makes devices, each in a folder of its own; close their databases in the end."""
    made = []

    def make(number=0, **options):
        made.append(device(parties, folder / f"device{number}", number, **options))
        return made[-1]

    yield make
    for agent in made:
        agent.db.close()


def catch_up(agent, parties):
    agent.catch_up(log.latest_checkpoint(parties.db), lambda tile: log.tile_bytes(parties.db, tile))


def announced(parties):
    """The announcement of the round that is open."""
    return rounds.announcement(parties.db, rounds.latest(parties.db))


def announce_round(parties):
    """Begin a round, and return what the gateway says of it."""
    parties.begin(parties.propose())
    return announced(parties)


def announce(parties, signed_plan, roster=None):
    """What a gateway would announce that logs whatever plan it is given."""
    db = parties.db
    with db:
        position = log.append_object(db, "round-plan", signed_plan)
        note = log.sign_checkpoint(db, parties.federation.log_key)
    size, roster = log.size(db), rosters.position(db) if roster is None else roster
    return encode(
        PlanAnnouncement(
            signed_plan,
            position,
            log.inclusion(db, position, size),
            roster,
            log.inclusion(db, roster, size),
            note,
            log.recent_consistency(db, size),
        )
    )


def charges(agent):
    """Rounds on the device's budget, each as often as it was charged."""
    entries = Budget(agent.db).entries()
    return [(e.kind, e.round) for e in entries if e.kind in (CHARGED, UNACCOUNTED)]


def statuses(agent):
    return dict(agent.db.execute("SELECT round, status FROM rounds").fetchall())


def name_of(signed_plan):
    return digest(signed_plan)
