"""Hospitals with a joint key and small sums, and a network between them that a test controls.

Keys, ciphertexts, signatures and databases are real; the network reorders, repeats, and does to
messages what a test asks for.
"""

import dataclasses
import functools
import random
import secrets

import numpy as np
from federation_fixture import seed, small_federation

from vitalring.aggregator.release import Opened, Party, Refused, Release
from vitalring.aggregator.release_store import RELEASE_SCHEMA
from vitalring.database import open_database
from vitalring.errors import VitalRingError
from vitalring.protocol import secure_sum
from vitalring.protocol.cbor import decode, digest
from vitalring.protocol.packing import pack_fields, unpack_fields
from vitalring.protocol.records import Hospital
from vitalring.protocol.seal import Encryptor
from vitalring.protocol.signing import Signed, public_key, sign
from vitalring.protocol.threshold.joint_key import contribute, join
from vitalring.protocol.threshold.pieces import Access

PATIENCE_MS = 1_000
PLAN, REPORT = digest(b"plan"), digest(b"report")
CONTEXT = b"k" * 32


@dataclasses.dataclass(frozen=True)
class UpdateSet:
    """Updates whose sum may be decrypted: ciphertexts, and the fields that they sum to."""

    updates: tuple
    fields: np.ndarray
    digests: tuple[bytes, ...]


class World:
    """A federation whose hospitals have made a key."""

    def __init__(self, access: Access, groups: int = 1) -> None:
        self.access = access
        small = small_federation(min_cohort=2).study
        hospitals = tuple(
            Hospital(f"h{h}", *(public_key(self.seed(h, k)) for k in range(3)), self.key(h))
            for h in range(access.hospitals)
        )
        plan = dataclasses.replace(
            small.plan,
            secure_sum="threshold-he",
            quorum=access.threshold,
            threshold=access.threshold,
            groups=groups,
            combine="median" if groups > 1 else "mean",
        )
        self.study = dataclasses.replace(
            small,
            federation=dataclasses.replace(small.federation, hospitals=hospitals),
            plan=plan,
        )
        self.scheme = self.study.scheme()
        self.params = secure_sum.threshold_params(plan.codec, plan.vector_size, self.study.joint)
        self.pieces, key = _keys(self.params, access)
        self.encryptor = Encryptor(self.params.bfv, key)
        self.sets = [self.make_set(number) for number in range(2)]

    @staticmethod
    def seed(hospital, kind):
        return seed(f"hospital {hospital}, key {kind}")

    def key(self, hospital):
        return public_key(self.seed(hospital, "aggregator"))

    def party(self, hospital, **changes):
        held = tuple(self.pieces[p] for p in self.access.held_by(hospital))
        party = Party(
            self.study,
            self.params,
            hospital,
            self.seed(hospital, "aggregator"),
            held,
            PATIENCE_MS,
        )
        return dataclasses.replace(party, **changes)

    def make_set(self, number, shift_c1=False):
        """Encrypt three updates; `shift_c1` moves one's c1 by q/t, so that the key shows."""
        bfv, rng = self.params.bfv, np.random.default_rng(number)
        fields = rng.integers(0, bfv.field_max + 1, (3, bfv.fields), dtype=np.uint64)
        updates = [self.encryptor.encrypt(pack_fields(row, bfv)) for row in fields]
        if shift_c1:
            shifted = updates[0].copy()
            q = int(np.prod([int(p) for p in bfv.data_primes], dtype=object))
            for j, prime in enumerate(bfv.data_primes):
                step = q // bfv.plain_modulus % prime
                shifted[:, 1, j, 0] = (int(shifted[0, 1, j, 0]) + step) % prime
            updates[0] = shifted
        digests = sorted(digest(f"{number} {i}".encode()) for i in range(3))
        return UpdateSet(tuple(updates), fields.sum(axis=0), tuple(digests))

    def total(self, updates):
        return functools.reduce(self.scheme.add, updates)

    def sums(self, chosen):
        """Return the groups' sums of a set: cut in two by the seed's first bit."""

        def make(seed):
            assert (len(seed) == 32) == (self.study.plan.groups > 1)
            if not seed:
                return [self.total(chosen.updates)]
            first = seed[0] % 3
            rest = [u for i, u in enumerate(chosen.updates) if i != first]
            return [chosen.updates[first], self.total(rest)]

        return make

    def release(
        self, db, hospital, chosen, number=1, plan=PLAN, report=REPORT, sums=None, **changes
    ):
        return Release(
            db,
            self.party(hospital, **changes),
            plan,
            report,
            number,
            chosen.digests,
            self.scheme.encode_sum(self.total(chosen.updates)),
            sums or self.sums(chosen),
        )

    def opened(self, outcome, chosen):
        """Tell whether an outcome is exactly the sum of a set."""
        if not isinstance(outcome, Opened):
            return False
        count, bfv = len(chosen.updates), self.params.bfv
        fields = [unpack_fields(plain, bfv, count) for plain in outcome.plaintexts]
        return np.array_equal(np.sum(fields, axis=0), chosen.fields)


@functools.cache
def _keys(params, access):
    made = [contribute(h, CONTEXT, params) for h in range(access.hospitals)]
    pieces = {piece.index: piece for dealt, _ in made for piece in dealt}
    return pieces, join([c for _, c in made], CONTEXT, params)


@functools.cache
def world(hospitals, threshold, groups=1):
    return World(Access(hospitals, threshold), groups)


def open_db(path):
    db = open_database(path, RELEASE_SCHEMA, 1)
    # Tests kill objects, not machines.
    db.execute("PRAGMA synchronous=OFF")
    return db


class Node:
    """A hospital's release on its database; it can be killed and begun again."""

    def __init__(self, world, hospital, path, chosen, **how) -> None:
        self.world, self.hospital, self.path = world, hospital, path
        self.chosen, self.how = chosen, how
        self.ever_said = {}
        self.complaints = []
        self.start()

    def start(self):
        self.db = open_db(self.path)
        self.release = self.world.release(self.db, self.hospital, self.chosen, **self.how)

    def restart(self):
        self.db.close()
        self.start()

    def said(self):
        """Return what it says, which is what it said before, and perhaps more."""
        said = self.release.said()
        assert said == {**said, **self.ever_said}, "a message changed or is gone"
        self.ever_said = dict(said)
        return said

    def hear(self, sender, step, attempt, content):
        try:
            self.release.hear(sender, step, attempt, content)
        except VitalRingError as error:
            assert f"hospital {sender}" in str(error)
            self.complaints.append(str(error))

    @property
    def outcome(self):
        return self.release.outcome


class Network:
    """Carries what nodes say to the others: shuffled, repeated, and through `tamper`.

    `tamper(sender, receiver, step, attempt, content)` returns what arrives, None for nothing.
    """

    def __init__(self, nodes, rng, tamper=lambda s, r, step, a, content: content) -> None:
        self.nodes, self.rng, self.tamper = list(nodes), rng, tamper
        self.now_ms = 1_000_000
        self.sent = {}
        self.queue = []

    def collect(self):
        for node in self.nodes:
            for (step, attempt), content in node.said().items():
                name = (id(node), step, attempt)
                if self.sent.get(name) != content:
                    self.sent[name] = content
                    self.send(node, step, attempt, content)

    def send(self, node, step, attempt, content):
        for other in self.nodes:
            if other is not node:
                copies = self.rng.choice([1, 1, 2])
                self.queue += [(node.hospital, other, step, attempt, content)] * copies

    def replay_to(self, receiver):
        """Bring everything that stands again, as a broker does after a connection."""
        for node in self.nodes:
            if node is not receiver:
                for (step, attempt), content in node.ever_said.items():
                    self.queue.append((node.hospital, receiver, step, attempt, content))

    def run(self, pauses=8):
        """Carry messages until none is left, `pauses` times, each after some patience."""
        for _ in range(pauses):
            self.settle()
            self.now_ms += PATIENCE_MS
        self.settle()

    def settle(self):
        while True:
            for node in self.nodes:
                self.advance(node)
            self.collect()
            if not self.queue:
                return
            # Some at a time: what is done in between differs from run to run.
            for _ in range(self.rng.randint(1, len(self.queue))):
                self.deliver(self.queue.pop(self.rng.randrange(len(self.queue))))

    def advance(self, node):
        node.release.advance(self.now_ms)

    def deliver(self, message):
        sender, receiver, step, attempt, content = message
        content = self.tamper(sender, receiver.hospital, step, attempt, content)
        if content is not None:
            receiver.hear(sender, step, attempt, content)


def begin(tmp_path, world, rng=None, tamper=None, chosen=None, **how):
    """Make a node of each hospital, all with one set, and a network."""
    chosen = chosen or world.sets[0]
    nodes = [
        Node(world, h, tmp_path / f"{h}.sqlite", chosen, **how)
        for h in range(world.access.hospitals)
    ]
    rng = rng or random.Random(1)
    return nodes, Network(nodes, rng, tamper or (lambda s, r, step, a, content: content))


def resigned(world, hospital, cls, content, **changes):
    """A hospital's record with other fields, signed by it."""
    record = dataclasses.replace(decode(cls, decode(Signed, content).payload), **changes)
    return sign(record, [world.seed(hospital, "aggregator")])


def random_residues(shape, primes):
    """Residues of shape (..., primes, degree) that decode, and mean nothing."""
    rows = [
        np.frombuffer(secrets.token_bytes(8 * int(np.prod(shape))), "<u8").reshape(shape) % prime
        for prime in map(np.uint64, primes)
    ]
    return np.stack(rows, axis=-2).astype(np.uint64)


def reasons(nodes):
    return [n.outcome.reason if isinstance(n.outcome, Refused) else n.outcome for n in nodes]


def opens(nodes):
    return [n.world.opened(n.outcome, n.chosen) for n in nodes]


def opened_record(cls, content):
    return decode(cls, decode(Signed, content).payload)


def rows(node, query, *values):
    return node.db.execute(query, values).fetchall()
