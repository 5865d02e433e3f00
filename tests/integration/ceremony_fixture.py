"""Three hospitals at a table that agree on a key, with everything on it within reach of a test."""

import copy

from vitalring.aggregator.ceremony import Ceremony
from vitalring.aggregator.ceremony_checks import Agreed
from vitalring.aggregator.ceremony_store import MemoryStore
from vitalring.aggregator.key_messages import pack, unpack
from vitalring.protocol.quantise import Codec
from vitalring.protocol.signing import public_key
from vitalring.protocol.threshold.params import choose_threshold_params
from vitalring.protocol.threshold.pieces import Access

CONTEXT = bytes(range(32))
SEEDS = [bytes([10 + h]) * 32 for h in range(3)]
NAMES = ("north", "east", "west")


def agreed_of(threshold):
    params = choose_threshold_params(
        Codec(n_max=20, clip=1.0, weight_cap=1), 200, Access(3, threshold), releases=10
    )
    keys = tuple(map(public_key, SEEDS))
    return Agreed(params, CONTEXT, "north-sea", "hearts", NAMES, keys)


AGREED = {2: agreed_of(2), 3: agreed_of(3)}


class Table:
    """Three hospitals with a common exchange; `files` and each one's own things can be changed."""

    def __init__(self, threshold):
        self.agreed = AGREED[threshold]
        self.files = {}
        self.stores = [MemoryStore(self.files) for _ in SEEDS]

    def party(self, hospital):
        """A new object each time: nothing may depend on what an earlier one remembered."""
        return Ceremony(self.agreed, hospital, SEEDS[hospital], self.stores[hospital])

    def round(self):
        """Let everybody act on what lies there now, so that all make the same step."""
        before, made = dict(self.files), {}
        statuses = []
        for hospital, store in enumerate(self.stores):
            store.exchange = dict(before)
            statuses.append(self.party(hospital).advance())
            made |= store.exchange
            store.exchange = self.files
        self.files.update(made)
        return statuses

    def message(self, cls, hospital):
        for data in self.files.values():
            message = unpack(data, self.agreed.identity_keys)
            if isinstance(message.record, cls) and message.record.hospital == hospital:
                return message
        raise AssertionError

    def replace(self, cls, hospital, record, objects=()):
        """Let a hospital have said something else, and know no better itself."""
        old = self.message(cls, hospital).data
        new = pack(record, SEEDS[hospital], objects)
        for things in (self.files, *(store.own for store in self.stores)):
            for name, data in things.items():
                if data == old:
                    things[name] = new


def states(threshold):
    """The table after each round of everybody's `advance`, up to the signed key."""
    table, made = Table(threshold), []
    while not made or not all(status.done for status in made[-1][1]):
        statuses = table.round()
        assert all(status.ended is None for status in statuses)
        made.append((copy.deepcopy(table), statuses))
        if all(status.compare for status in statuses):
            for hospital in range(3):
                table.party(hospital).confirm(statuses[0].fingerprint)
    return made


def table_unpack(table):
    return lambda data: unpack(data, table.agreed.identity_keys)
