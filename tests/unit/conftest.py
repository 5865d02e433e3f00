"""A small federation, its gateway and aggregator, and devices, for whoever tests one of them."""

import copy

import pytest
from ceremony_fixture import states, table_unpack
from device_fixture import devices
from federation_fixture import SOME_PRIVACY, Parties, small_federation
from hostile_fixture import Gateway, House

from vitalring.protocol.key_records import STEPS


@pytest.fixture(scope="session")
def small():
    """Keys and signed records, which no test changes."""
    return small_federation(privacy=SOME_PRIVACY)


@pytest.fixture
def parties(small, tmp_path):
    parties = Parties(small, tmp_path / "parties")
    yield parties
    parties.close_databases()


@pytest.fixture
def make(parties, tmp_path):
    """Make devices, each in a folder of its own."""
    with devices(parties, tmp_path) as made:
        yield made


@pytest.fixture(scope="session")
def houses(tmp_path_factory):
    """A study with its keys and updates, under a joint key and under one key."""
    return {
        mode: House(mode, tmp_path_factory.mktemp(mode)) for mode in ("threshold-he", "single-he")
    }


@pytest.fixture(params=["threshold-he", "single-he"])
def house(houses, request):
    return houses[request.param]


@pytest.fixture
def gateway(house, tmp_path):
    """Its round is open and has counted the honest updates."""
    made = Gateway(house, tmp_path)
    yield made
    made.parties.close_databases()


@pytest.fixture(scope="session")
def histories():
    """The tables of a ceremony after each round, by its threshold."""
    return {threshold: states(threshold) for threshold in (2, 3)}


@pytest.fixture
def table_at(histories):
    """Return the table as it stood when all had made the messages of a step and nothing more."""

    def at(step, threshold=2):
        for table, _statuses in histories[threshold]:
            made = [decoded.record for decoded in map(table_unpack(table), table.files.values())]
            counts = [sum(record.hospital == h for record in made) for h in range(3)]
            if counts == [STEPS.index(step) + 1] * 3:
                return copy.deepcopy(table)
        raise AssertionError(step)

    return at


@pytest.fixture
def spool(tmp_path):
    """Where a hospital keeps what it fetches of a round."""
    return tmp_path / "aggregator" / "contributions"
