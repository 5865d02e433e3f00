"""The gateway's database as those find it who only ask."""

import pytest

from vitalring.errors import ConfigError
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
