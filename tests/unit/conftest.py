"""A small federation, its gateway and aggregator, and devices, for whoever tests one of them."""

import pytest
from device_fixture import devices
from federation_fixture import SOME_PRIVACY, Parties, small_federation


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
