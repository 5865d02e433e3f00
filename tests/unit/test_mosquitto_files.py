"""The written configuration, as text; that Mosquitto obeys it is an integration test."""

import datetime
import stat
from pathlib import Path

import pytest

from vitalring.errors import ConfigError
from vitalring.gateway.mosquitto import (
    BrokerLimits,
    access_list,
    cohort_user,
    configuration,
    write,
)

NOW = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)


def rights(acl):
    """Read an access list as {user: {(right, filter)}}."""
    users, current = {}, None
    for line in acl.splitlines():
        if line.startswith("user "):
            current = users.setdefault(line.removeprefix("user "), set())
        elif line:
            keyword, right, name = line.split(" ")
            assert keyword == "topic"
            current.add((right, name))
    return users


def test_only_the_gateway_reads_uplinks_and_a_cohort_writes_its_own_alone():
    users = rights(access_list("fed", ["a", "b"]))
    assert set(users) == {"gateway", "aggregator", "cohort-a", "cohort-b"}
    for user, granted in users.items():
        readable = {name for right, name in granted if right != "write"}
        writable = {name for right, name in granted if right != "read"}
        for kind in ("/up/", "/enrol/"):
            assert any(kind in name for name in readable) is (user == "gateway")
        assert not any(name.startswith(("#", "+", "$")) for name in readable | writable)
        if user.startswith("cohort-"):
            cohort = user.removeprefix("cohort-")
            assert writable == {f"vr1/fed/up/{cohort}/+", f"vr1/fed/enrol/{cohort}"}
            assert f"vr1/fed/call/{cohort}" in readable
            assert not any("inner" in name for name in readable)


def test_a_hospital_writes_under_its_own_name_alone():
    users = rights(access_list("fed", ["a"], ["north", "south", "east"]))
    aggregators = {"aggregator-north", "aggregator-south", "aggregator-east"}
    assert set(users) == {"gateway", "cohort-a"} | aggregators
    for user in aggregators:
        name = user.removeprefix("aggregator-")
        writable = {topic for right, topic in users[user] if right != "read"}
        assert writable == {
            "vr1/fed/inner/propose",
            "vr1/fed/inner/model",
            "vr1/fed/object/+",
            f"vr1/fed/inner/of/{name}/#",
            f"vr1/fed/inner/want/{name}",
        }
        assert ("read", "vr1/fed/inner/#") in users[user]


def test_each_of_two_gateways_reads_its_own_halves_alone():
    users = rights(access_list("fed", ["a"], ["north", "south"], "south"))
    reads = {
        u: {name for right, name in granted if right != "write"} for u, granted in users.items()
    }
    writes = {
        u: {name for right, name in granted if right != "read"} for u, granted in users.items()
    }
    assert {u for u, names in reads.items() if any("/up/" in n for n in names)} == {"gateway"}
    assert {u for u, names in reads.items() if any("/share/" in n for n in names)} == {
        "gateway-south"
    }
    assert writes["cohort-a"] == {"vr1/fed/up/a/+", "vr1/fed/share/a/+", "vr1/fed/enrol/a"}
    # The second gateway speaks for itself alone, and does not hear the first one's sum.
    assert {name for name in writes["gateway-south"] if "inner" in name} == {
        "vr1/fed/inner/gateway/south/+"
    }
    assert not any(name.endswith(("inner/sum", "inner/#")) for name in reads["gateway-south"])


def test_one_hospital_keeps_the_user_of_old():
    assert access_list("fed", ["a"], ["north"]) == access_list("fed", ["a"])


@pytest.mark.parametrize("hospitals", [["a/b", "c"], ["#", "c"], ["a\ntopic read #", "c"]])
def test_hospitals_that_would_widen_the_access_list_are_refused(hospitals):
    with pytest.raises(ConfigError):
        access_list("fed", ["a"], hospitals)


def test_two_hospitals_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="twice"):
        access_list("fed", ["a"], ["north", "north"])


def test_several_hospitals_have_credentials_of_their_own(tmp_path):
    names = ["north", "south"]
    made = write(tmp_path, "fed", ["a"], ["broker"], hospitals=names, port=8883, now=NOW)
    users = ["gateway", "aggregator-north", "aggregator-south", "cohort-a"]
    assert list(made.credentials) == users
    contents = {made.credentials[user].key_file.read_bytes() for user in users}
    assert len(contents) == len(users)


def test_every_path_is_absolute_and_below_the_folder():
    text = configuration(Path("/srv/broker"), "0.0.0.0", 8883, BrokerLimits(), "vitalring")
    paths = [word for line in text.splitlines() if line[:1] != "#" for word in line.split()[1:]]
    named = [word for word in paths if "/" in word]
    assert len(named) == 7
    assert all(word.startswith("/srv/broker/") for word in named)
    assert "allow_anonymous false" in text
    assert "require_certificate true" in text


@pytest.mark.parametrize(
    ("folder", "bind", "port", "user"),
    [
        ("relative", "0.0.0.0", 8883, "u"),
        ("/a\nlog_type all", "0.0.0.0", 8883, "u"),
        ("/a", "broker.ward", 8883, "u"),
        ("/a", "0.0.0.0\nallow_anonymous true", 8883, "u"),
        ("/a", "0.0.0.0", 0, "u"),
        ("/a", "0.0.0.0", 65536, "u"),
        ("/a", "0.0.0.0", 8883, "u\nallow_anonymous true"),
        ("/a", "0.0.0.0", 8883, ""),
    ],
)
def test_values_that_would_change_the_configuration_are_refused(folder, bind, port, user):
    with pytest.raises(ConfigError):
        configuration(Path(folder), bind, port, BrokerLimits(), user)


@pytest.mark.parametrize("name", ["a/b", "#", "a\ntopic read #", ""])
def test_names_that_would_widen_the_access_list_are_refused(name):
    with pytest.raises(ConfigError):
        access_list("fed", [name])
    with pytest.raises(ConfigError):
        access_list(name, ["a"])


@pytest.mark.parametrize(
    "change",
    [
        {"max_queued_bytes": 0},  # Mosquitto reads 0 as "no limit"
        {"max_connections": -1},
        {"max_keepalive_s": 5},
        {"memory_bytes": 1000},
        {"max_inflight_messages": 0},
    ],
)
def test_limits_that_mosquitto_would_read_as_none_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        BrokerLimits(**change)


def test_writing_again_adds_a_cohort_and_keeps_every_credential(tmp_path):
    first = write(tmp_path / "b", "fed", ["a"], ["broker"], port=8883, now=NOW)
    kept = {path: path.read_bytes() for path in (tmp_path / "b" / "tls").iterdir()}
    second = write(tmp_path / "b", "fed", ["a", "b"], ["broker"], port=8884, now=NOW)
    assert all(path.read_bytes() == data for path, data in kept.items())
    assert set(second.credentials) - set(first.credentials) == {cohort_user("b")}
    assert "listener 8884 " in second.configuration.read_text()
    assert "cohort-b" in second.access_list.read_text()
    assert stat.S_IMODE(second.access_list.stat().st_mode) == 0o600


def test_nothing_is_written_for_a_request_that_cannot_be_met(tmp_path):
    for arguments in (
        {"cohorts": ["A"], "hosts": ["broker"], "port": 8883},
        {"cohorts": ["a"], "hosts": ["broker"], "port": 0},
        {"cohorts": ["a"], "hosts": ["broker"], "port": 8883, "bind": "somewhere"},
    ):
        with pytest.raises(ConfigError):
            write(tmp_path / "b", "fed", now=NOW, **arguments)
    assert not (tmp_path / "b").exists()
