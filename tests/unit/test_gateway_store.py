"""The gateway's database as those find it who only ask, and that of an earlier version."""

import pytest

from vitalring.aggregator import store as aggregator_store
from vitalring.database import open_database
from vitalring.errors import ConfigError, StorageError
from vitalring.gateway import log, store


def test_whoever_asks_before_the_gateway_ran_makes_no_database(tmp_path):
    with pytest.raises(ConfigError, match="has not run yet"):
        store.read_store(tmp_path / "gateway")
    assert list(tmp_path.iterdir()) == []


def test_it_is_read_beside_the_gateway(tmp_path):
    db = store.open_store(tmp_path)
    beside = store.read_store(tmp_path)
    assert log.size(beside) == 0
    beside.close()
    db.close()


@pytest.mark.parametrize(("role", "layout"), [(store, 5), (aggregator_store, 2)])
def test_a_database_with_records_that_are_read_no_more_is_refused_at_the_start(
    tmp_path, role, layout
):
    """Its tables are the same: it would open, and fail at the first record."""
    open_database(tmp_path / role.FILE, role.SCHEMA, layout).close()
    with pytest.raises(StorageError, match=r"are not read: .* found the federation anew"):
        role.open_store(tmp_path)
