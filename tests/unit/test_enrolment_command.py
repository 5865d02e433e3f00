"""The enrolment office on the command line: tickets, calls, lists."""

import json
import stat
from contextlib import closing

import pytest

from vitalring.config import load_config
from vitalring.edge_agent.config import AgentConfig
from vitalring.files import read_secret
from vitalring.gateway import enrolment as kept
from vitalring.gateway import rounds, store
from vitalring.gateway.config import GatewayConfig, load_keys, load_study
from vitalring.gateway.office import Office
from vitalring.protocol import enrolment, lsag, trust
from vitalring.tools.cli import main
from vitalring.tools.enrolments import (
    EnrolledKey,
    read_barred,
    read_enrolments,
    read_keys,
    write_keys,
)

STUDY = """
federation = "north-sea"
study = "hearts"
cohort = "ward-1"
unit = "none"
secure_sum = "single-he"
records = 50
rounds = 3
min_cohort = 3
n_max = 9
"""


class Host:
    """A host's folder, its gateway's database, and what commands said."""

    def __init__(self, folder, authority, capsys):
        self.folder, self.authority, self.capsys = folder, authority, capsys
        self.home = folder / "hospitals" / "hospital-1"
        self.config = load_config(GatewayConfig, self.home / "gateway.toml")

    def run(self, *words, code=0):
        assert main([*map(str, words)]) == code
        said = self.capsys.readouterr()
        return said.out if code == 0 else said.err

    def office(self, *words, code=0):
        config = ("--config", self.home / "gateway.toml")
        return self.run("gateway", "enrolment", *words, *config, code=code)

    def newcomers(self, *names, code=0):
        (self.folder.parent / "new.txt").write_text("\n".join(names))
        return self.run(
            "federation", "tickets", self.folder, "--authority", self.authority,
            "--devices", self.folder.parent / "new.txt", "--broker-url", "mqtt://127.0.0.1:1883",
            code=code,
        )  # fmt: skip

    def start_gateway(self):
        """Do what a gateway does at its start."""
        files = load_study(self.config)
        with closing(store.open_store(self.config.state_dir)) as db:
            key = load_keys(self.config, files.study).log
            rounds.open_study_log(db, key, files.records, list(files.objects.values()))

    def answer(self, answer_of):
        """Hand the office an answer to the call that is open."""
        study = load_study(self.config).study
        with closing(store.open_store(self.config.state_dir)) as db:
            office = Office(db, study.federation, load_keys(self.config, study).sealing)
            call = enrolment.open_call(kept.current_call(db), study.federation)
            box = enrolment.seal(answer_of(call), study.federation.hospitals[0].sealing_key)
            return office.check(box, study.roster_digest, call.closes_ms)


@pytest.fixture
def host(tmp_path, capsys):
    (tmp_path / "study.toml").write_text(STUDY)
    words = ["federation", "init", tmp_path / "fed", "--config", tmp_path / "study.toml"]
    words += ["--devices", "5", "--broker-url", "mqtt://127.0.0.1:1883"]
    assert main([*map(str, words)]) == 0
    said = capsys.readouterr().out
    authority = next(line for line in said.splitlines() if line.startswith("auth")).split()[-1]
    return Host(tmp_path / "fed", authority, capsys)


@pytest.fixture
def opened(host):
    host.start_gateway()
    host.office("open", "--epoch", 2, "--days", 2)
    return host


def keys_of(path, *names):
    """A file of keys of the first epoch."""
    write_keys(path, tuple(EnrolledKey(name, 1, lsag.keygen().public) for name in names))
    return path


def test_the_host_knows_whose_keys_it_drew_and_tells_nobody(host):
    keys = read_enrolments(host.config)
    assert [(each.name, each.epoch) for each in keys] == [(f"device-{n}", 1) for n in range(1, 6)]
    study = trust.open_study_files(
        lambda name: (host.folder / "public" / name).read_bytes(), bytes.fromhex(host.authority)
    ).study
    assert sorted(each.key for each in keys) == list(study.roster.keys)
    for each in keys:
        secret = read_secret(host.folder / "devices" / each.name / "keys" / "ring-1.key", 32)
        assert lsag.KeyPair.of(secret).public == each.key
    assert stat.S_IMODE(host.config.enrolled.stat().st_mode) == 0o600
    for path in (host.folder / "public").iterdir():
        assert b"device-1" not in path.read_bytes()


def test_newcomers_get_a_folder_with_a_ticket_and_no_key(host):
    said = host.newcomers("anna", "ben")
    assert "2 devices" in said
    assert "gateway enrolment tickets" in said
    config = load_config(AgentConfig, host.folder / "devices" / "anna" / "agent.toml")
    ticket = read_secret(config.ticket, enrolment.TICKET_BYTES)
    assert not config.ring_keys.exists()
    listed = kept.parse_tickets((host.home / "tickets.txt").read_text())
    assert listed[enrolment.ticket_hash(ticket)] == "anna"
    assert stat.S_IMODE((host.home / "tickets.txt").stat().st_mode) == 0o600
    assert "is there already: take another name" in host.newcomers("carl", "ben", code=2)
    assert not (host.folder / "devices" / "carl").exists()
    host.newcomers("carl")
    assert len(kept.parse_tickets((host.home / "tickets.txt").read_text())) == 3


def test_before_the_gateway_ran_there_is_no_office(host):
    assert "the gateway has not run yet" in host.office("open", "--epoch", 1, code=2)
    assert not (host.config.state_dir / store.FILE).exists()


def test_what_the_office_knows_can_be_read_while_its_gateway_begins(host):
    """The database's file is there before its tables are."""
    named = read_enrolments(host.config)
    host.config.state_dir.mkdir()
    (host.config.state_dir / store.FILE).touch()
    assert read_enrolments(host.config) == named
    assert read_barred(host.config) == frozenset()
    assert "6: 0 removed, 1 added" in host.run(
        "federation", "roster", host.folder, "--authority", host.authority, "--enrol-from",
        keys_of(host.folder.parent / "keys.txt", "anna"),
    )  # fmt: skip


def test_a_ticket_from_folder_to_roster(host):
    host.newcomers("anna")
    host.start_gateway()
    assert "1 new tickets, 0 known" in host.office("tickets", host.home / "tickets.txt")
    assert "0 new tickets, 1 known" in host.office("tickets", host.home / "tickets.txt")
    assert host.office("list").splitlines()[0] == "no call is open"
    assert "for keys of epoch 1" in host.office("open", "--epoch", 1)
    assert f"epoch 1  {'anna':32} no key yet" in host.office("list")
    ticket = read_secret(host.folder / "devices" / "anna" / "ticket", 32)
    pair = lsag.keygen()
    host.answer(lambda call: enrolment.with_ticket(call, pair, ticket))
    said = host.office("list")
    assert said.count("in the roster") == 5
    assert f"{'anna':32} {pair.public.hex()[:16]}  waits for a roster" in said
    assert "no key yet" not in said
    host.run("federation", "roster", host.folder, "--authority", host.authority, "--enrol")
    study = load_study(host.config).study
    assert pair.public in study.roster.keys
    assert len(study.roster.keys) == 6


def test_names_go_with_keys_into_the_next_epoch(opened):
    old = read_secret(opened.folder / "devices" / "device-2" / "keys" / "ring-1.key", 32)
    new = lsag.keygen()
    taken = opened.answer(lambda call: enrolment.with_previous(call, new, 1, lsag.KeyPair.of(old)))
    assert taken == EnrolledKey("device-2", 2, new.public)
    said = opened.office("list")
    assert "call for epoch 2, until" in said
    assert said.count("no key yet") == 4
    path = opened.folder.parent / "keys.txt"
    assert "6 keys" in opened.office("export", path)
    assert EnrolledKey("device-2", 2, new.public) in read_keys(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_who_is_barred_is_neither_taken_nor_waited_for(opened):
    opened.office("bar", "device-3")
    said = opened.office("list")
    assert "barred   device-3" in said
    assert f"epoch 2  {'device-3':32} no key yet" not in said
    opened.office("bar", "device-3", "--lift")
    assert "barred" not in opened.office("list")
    assert "knows no device 'nobody'" in opened.office("bar", "nobody", code=2)


def test_a_call_is_closed_and_opened_anew(opened):
    assert "closed" in opened.office("close")
    assert opened.office("list").splitlines()[0] == "no call is open"
    assert "closed" in opened.office("close")
    opened.office("open", "--epoch", 1)
    assert "call for epoch 1" in opened.office("list")
    for days in (0, -1, 367):
        assert "--days" in opened.office("open", "--epoch", 1, f"--days={days}", code=2)
    assert "not of epoch 3" in opened.office("open", "--epoch", 3, code=2)
    assert "call for epoch 1" in opened.office("list")


def test_refusals_are_listed(opened):
    with closing(store.open_store(opened.config.state_dir)) as db:
        kept.count_refused(db, {"bad_seal": 2, "revoked": 1})
    said = opened.office("list")
    assert "refused 2 times: bad_seal" in said
    assert "refused 1 times: revoked" in said


@pytest.mark.parametrize("content", [b"\xff", b"anna", b"anna 12", b"no name " + b"0" * 64])
def test_a_file_that_lists_no_tickets_is_named(opened, tmp_path, content):
    (tmp_path / "bad.txt").write_bytes(content)
    assert "bad.txt: " in opened.office("tickets", tmp_path / "bad.txt", code=2)


def test_the_gateways_status_goes_on_beside_it(opened):
    status = json.loads(opened.run("gateway", "status", "--config", opened.home / "gateway.toml"))
    assert status["devices"] == 5
