"""A study whose updates two gateways share: by function calls, by services, and as a whole."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from federation_fixture import FOLLOWING, Parties, small_federation
from gateway_fixture import HandLink
from rich.console import Console
from two_gateways_fixture import ShareGateway, agree, split_update

import vitalring
from vitalring.aggregator import rounds as aggregator_rounds
from vitalring.aggregator import store as aggregator_store
from vitalring.aggregator import two_sums
from vitalring.errors import LogError, RecordError, SignatureError
from vitalring.gateway import rounds, share_service, store
from vitalring.gateway.config import GatewayKeys
from vitalring.gateway.export import export_log
from vitalring.gateway.share_service import PATIENCE_MS
from vitalring.gateway.share_service import ShareGateway as Service
from vitalring.mqtt import Message
from vitalring.protocol import blobs, chunks, sealing, topics
from vitalring.protocol.adaptive_clip import next_factor, unclipped
from vitalring.protocol.agreement import UpdateShare, both_halves, messages_of
from vitalring.protocol.cbor import decode, encode
from vitalring.protocol.quantise import decode_sum
from vitalring.protocol.records import Bundle, SealedUpdate
from vitalring.protocol.two_server import ROLES, SEED, VECTOR, Shares
from vitalring.protocol.update import rotation_seed
from vitalring.tools.verify import verify_folder, verify_log


@pytest.fixture(scope="module")
def federation():
    return small_federation(secure_sum="two-server", hospitals=2, min_cohort=3, n_max=8)


class World:
    """Aggregator and two gateways of one study, driven by function calls."""

    def __init__(self, federation, folder):
        self.federation = federation
        self.parties = Parties(federation, folder / "parties")
        self.pair = [ShareGateway(federation, role, folder) for role in ROLES]

    def close(self):
        self.parties.close_databases()
        for gateway in self.pair:
            gateway.db.close()

    def begin(self, devices=range(5)):
        """Open a round and let devices submit; returns their fields."""
        proposal, made = self.parties.propose(), []
        for gateway in self.pair:
            gateway.begin(proposal)
        for device in devices:
            halves, fields = split_update(self.federation, proposal.record, device)
            made.append(fields)
            for role, gateway in enumerate(self.pair):
                assert gateway.admit(halves[role])
        return made

    def bundles(self):
        return tuple(
            decode(Bundle, rounds.sum_bundle(g.db, rounds.latest(g.db), self.federation.study))
            for g in self.pair
        )

    def joined(self, bundles=None):
        closing = self.pair[0].closing
        bundles = bundles or self.bundles()
        return two_sums.join(self.federation.study, closing.plan, closing.digest, bundles)

    def conclude(self):
        """Let the aggregator make the model, and both gateways log it."""
        joined, db = self.joined(), self.parties.aggregator_db
        aggregator = replace(self.parties.aggregator, decrypt=joined.decrypt)
        model = aggregator_rounds.conclude(db, aggregator, joined.bundle, joined.reports)
        bundle = decode(Bundle, aggregator_store.latest(db).model)
        for gateway in self.pair:
            rounds.finish(gateway.db, gateway.log_key, self.federation.study, bundle)
        return model

    def export(self, folder):
        for gateway, name in zip(self.pair, ("log", "log-2"), strict=True):
            export_log(gateway.db, self.federation.files, folder / name)
        return folder


@pytest.fixture
def world(federation, tmp_path):
    made = World(federation, tmp_path)
    yield made
    made.close()


# By function calls.


def test_the_model_is_that_of_the_sum_of_both(world):
    fields = world.begin()
    agree(*world.pair)
    model = world.conclude()
    assert (model.applied, model.contributions) == (True, 5)
    plan, name = world.federation.study.plan, world.pair[0].closing.digest
    total = np.sum(fields, axis=0, dtype=np.uint64)
    mean = decode_sum(total, 5, plan.codec, plan.model.dimension, rotation_seed(name)).mean
    state = aggregator_store.load_state(world.parties.aggregator_db, 1)
    np.testing.assert_allclose(state.weights - world.federation.start(), mean)


def test_a_clip_that_follows_a_quantile_follows_the_sum_of_both(tmp_path):
    """Shares, too, have the count in them."""
    following = small_federation(secure_sum="two-server", hospitals=2, min_cohort=3, **FOLLOWING)
    world = World(following, tmp_path)
    fields = world.begin()
    agree(*world.pair)
    model = world.conclude()
    plan, name = following.study.plan, world.pair[0].closing.digest
    total = np.sum(fields, axis=0, dtype=np.uint64)
    mean = decode_sum(total, 5, plan.codec, plan.vector_size, rotation_seed(name)).mean
    assert model.unclipped == unclipped(mean[0], plan.terms)
    assert model.clip_factor == next_factor(1.0, model.unclipped, plan.privacy) != 1.0
    state = aggregator_store.load_state(world.parties.aggregator_db, 1).weights
    np.testing.assert_allclose(state[1:] - following.start()[1:], mean[1:])
    world.begin((0, 1, 3, 4))
    agree(*world.pair)
    world.conclude()
    folder = world.export(tmp_path / "run")
    for log in ("log", "log-2"):
        factors = [r.clip_factor for r in verify_log(folder / log, following.authority_key).rounds]
        assert factors == [1.0, model.clip_factor]
    world.close()


def test_both_logs_verify_alone_and_together(world, tmp_path):
    for devices in (range(5), (0, 2, 4)):
        world.begin(devices)
        agree(*world.pair)
        world.conclude()
    folder = world.export(tmp_path / "run")
    key = world.federation.authority_key
    verdicts = [verify_log(folder / name, key) for name in ("log", "log-2")]
    assert [verdict.hospital for verdict in verdicts] == [VECTOR, SEED]
    assert verdicts[0].rounds == verdicts[1].rounds
    assert verdicts[0].root != verdicts[1].root
    assert all(len(verdict.reports) == 2 for verdict in verdicts[0].rounds)
    assert any("second gateway" in finding for finding in verify_folder(folder, key).findings)


def test_a_round_on_which_they_did_not_agree_changes_nothing(world, tmp_path):
    """One gateway gave up and the other gave its sum: one sum alone is not applied."""
    world.begin()
    one, other = world.pair
    sets = one.hold(), other.hold()
    halves = one.take_set(sets[1]), other.take_set(sets[0])
    one.take_half(halves[1])
    one.settle()
    other.give_up()
    for gateway in world.pair:
        gateway.close()
    model = world.conclude()
    assert (model.applied, model.contributions) == (False, 0)
    folder = world.export(tmp_path / "run")
    for name in ("log", "log-2"):
        assert verify_log(folder / name, None).rounds[0].weights == model.weights


def test_a_sum_that_was_not_agreed_on_is_no_sum(world):
    """A gateway leaves its report and its sum of another set in place of the agreed one."""
    world.begin()
    agree(*world.pair)
    first, second = world.bundles()
    with pytest.raises(RecordError, match="without the sum"):
        world.joined((Bundle(first.record, second.objects), second))
    with pytest.raises(RecordError, match="without the sum"):
        world.joined((first, Bundle(second.record, second.objects[:1])))
    with pytest.raises(RecordError, match="different agreed sets"):
        world.joined((Bundle(first.record, (first.objects[0], b"another")), second))
    with pytest.raises(SignatureError):
        world.joined((second, first))


def test_a_model_without_the_other_gateways_report_is_not_logged(world):
    world.begin()
    agree(*world.pair)
    joined, db = world.joined(), world.parties.aggregator_db
    aggregator = replace(world.parties.aggregator, decrypt=joined.decrypt)
    aggregator_rounds.conclude(db, aggregator, joined.bundle)
    bundle = decode(Bundle, aggregator_store.latest(db).model)
    for gateway in world.pair:
        with pytest.raises(RecordError, match="came without the report"):
            rounds.finish(gateway.db, gateway.log_key, world.federation.study, bundle)


@pytest.mark.parametrize("role", ROLES)
def test_a_log_without_the_agreed_set_is_not_sound(world, tmp_path, role):
    world.begin()
    liar = world.pair[role]
    sets = [gateway.hold() for gateway in world.pair]
    halves = [g.take_set(sets[1 - r]) for r, g in enumerate(world.pair)]
    for r, gateway in enumerate(world.pair):
        gateway.take_half(halves[1 - r])
        gateway.settle()
    world.pair[1 - role].close()
    expected = len(world.federation.devices)
    rounds.close(liar.db, liar.log_key, liar.closing.plan, expected, {}, liar.now_ms)
    world.conclude()
    folder = world.export(tmp_path / "run")
    name = ("log", "log-2")[role]
    with pytest.raises(LogError, match="agreed set"):
        verify_log(folder / name, None)
    verify_log(folder / ("log", "log-2")[1 - role], None)


def test_one_log_twice_is_not_two_logs(world, tmp_path):
    world.begin()
    agree(*world.pair)
    world.conclude()
    folder = world.export(tmp_path / "run")
    shutil.rmtree(folder / "log-2")
    shutil.copytree(folder / "log", folder / "log-2")
    with pytest.raises(LogError, match="other gateway"):
        verify_folder(folder, None)


# By services.


class Services:
    """Two gateways' services, whose retained words reach each other when a test says so."""

    def __init__(self, federation, folder):
        self.federation, self.folder = federation, folder
        self.parties = Parties(federation, folder / "parties")
        self.now_ms = self.parties.now_ms
        self.links = [HandLink(), HandLink()]
        self.keys = [
            GatewayKeys(g.log_key, g.sealing_key)
            for g in (ShareGateway(federation, role, folder / "keys") for role in ROLES)
        ]
        self.services = [None, None]
        self.dbs = [None, None]
        for role in ROLES:
            self.start(role)

    def start(self, role):
        """Start a gateway, or kill and start it."""
        if self.dbs[role] is not None:
            self.dbs[role].close()
        self.dbs[role] = store.open_store(self.folder / f"service{role}")
        self.services[role] = Service(
            self.dbs[role],
            self.federation.files,
            self.keys[role],
            self.links[role],
            1 << 20,
            chunks.ChunkLimits(),
            lambda: self.now_ms,
        )

    def close(self):
        self.parties.close_databases()
        for db in self.dbs:
            db.close()

    def tell(self, topic, payload):
        for service in self.services:
            service.take(Message(topic, payload, retained=True, packet_id=1))

    def propose(self):
        proposal = self.parties.propose()
        self.tell(topics.propose_topic("fed"), _whole(encode(proposal)))
        return proposal

    def submit(self, proposal, devices, roles=ROLES):
        for device in devices:
            halves, _ = split_update(self.federation, proposal.record, device)
            for role in roles:
                box = sealing.seal(encode(halves[role]), bytes(self.keys[role].sealing.public_key))
                frames = chunks.split(box, 1 << 20, bytes(chunks.TRANSFER_ID_BYTES))
                uplink = topics.share_topic if role == SEED else topics.uplink_topic
                for frame in frames:
                    topic = uplink("fed", "ward", 1)
                    self.services[role].take(Message(topic, frame, False, 1))

    def carry(self, from_):
        """Bring what one gateway says to the other, as the broker does on subscribing."""
        for topic, payload in list(self.links[from_].retained.items()):
            if "/inner/gateway/" in topic:
                self.services[1 - from_].take(Message(topic, payload, True, 1))

    def turn(self, times=1):
        for _ in range(times):
            for role in ROLES:
                self.services[role].tick()
                self.carry(role)

    def status(self, role):
        current = rounds.latest(self.dbs[role])
        return current.status, current.admitted


def _whole(content):
    message, pieces = blobs.split(content, 1 << 20)
    assert not pieces
    return message


@pytest.fixture
def services(federation, tmp_path):
    made = Services(federation, tmp_path)
    yield made
    made.close()


def test_services_close_a_complete_round_at_once(services):
    services.submit(services.propose(), range(6))
    services.turn(4)
    assert [services.status(role) for role in ROLES] == [("closed", 6), ("closed", 6)]
    held = topics.gateway_topic("fed", "south", "sum")
    assert held in services.links[SEED].retained
    assert topics.sum_topic("fed") in services.links[VECTOR].retained


def test_services_close_when_one_has_all_of_the_others(services):
    """Devices 4 and 5 reach only the first gateway; the second has all and need not wait."""
    proposal = services.propose()
    services.submit(proposal, range(4))
    services.submit(proposal, (4, 5), roles=[VECTOR])
    services.turn(4)
    assert [services.status(role)[0] for role in ROLES] == ["open", "open"]
    services.now_ms += 20_000
    services.turn(4)
    assert [services.status(role) for role in ROLES] == [("closed", 4), ("closed", 4)]


def test_a_silent_gateway_ends_the_round_without_a_sum(services):
    services.submit(services.propose(), range(5))
    services.now_ms += 10_001
    services.services[VECTOR].tick()
    assert services.status(VECTOR)[0] == "open"
    services.now_ms += PATIENCE_MS
    services.services[VECTOR].tick()
    assert services.status(VECTOR) == ("closed", 0)
    services.turn(3)
    assert services.status(SEED) == ("closed", 0)


def test_killed_services_come_to_the_same_sum(federation, tmp_path):
    """Kill both gateways after each turn: what was said is said again, and the round closes."""
    services = Services(federation, tmp_path)
    services.submit(services.propose(), range(5))
    services.now_ms += 10_001
    said = {}
    for _ in range(6):
        for role in ROLES:
            services.services[role].tick()
            for topic, payload in services.links[role].retained.items():
                if topic.endswith(("/held", "/half")) and payload:
                    assert said.setdefault(topic, payload) == payload
            services.start(role)
            services.carry(role)
            services.services[role]._publisher.all()
    assert [services.status(role) for role in ROLES] == [("closed", 5), ("closed", 5)]
    services.close()


def test_words_of_an_earlier_round_and_of_strangers_change_nothing(services):
    proposal = services.propose()
    services.submit(proposal, range(5))
    for payload in (b"", b"\x00", _whole(b"no record"), _whole(encode(proposal))):
        for step in ("held", "half", "sum", "logged"):
            for hospital in ("north", "south"):
                services.tell(topics.gateway_topic("fed", hospital, step), payload)
        services.turn()
    services.now_ms += 10_001
    services.turn(4)
    assert [services.status(role) for role in ROLES] == [("closed", 5), ("closed", 5)]


def test_subscriptions_are_to_own_halves_alone(federation):
    first, second = (share_service.subscriptions(federation.study, role) for role in ROLES)
    assert any("/up/" in each for each in first)
    assert not any("/share/" in each for each in first)
    assert any("/share/" in each for each in second)
    assert not any("/up/" in each for each in second)


# As a whole.


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("simulation") / "out"
    quiet = Console(file=(out.parent / "printed.txt").open("w"))
    return vitalring.simulate(
        console=quiet,
        out=out,
        devices=5,
        min_cohort=4,
        rounds=2,
        local_epochs=0.34,
        alone=False,
        window_s=0.0,
        secure_sum="two-server",
        model="ecg_cnn",
    )


def test_a_simulation_has_two_gateways_and_two_logs(finished):
    report = json.loads((finished.folder / "report.json").read_text())
    assert (report["secure_sum"], report["hospitals"]) == ("two-server", 2)
    assert [row["admitted"] for row in report["rounds"]] == [5, 5]
    assert (finished.folder / "processes" / "gateway-hospital-2.log").is_file()
    verdict = verify_folder(finished.folder, None)
    assert verdict.updates == 10
    second = verify_log(finished.folder / "log-2", None)
    # 4 study records; each round a plan, 5 updates, the set, two reports and a model.
    assert verdict.size == second.size == 4 + 2 * (1 + 5 + 1 + 2 + 1)


def test_a_change_in_the_second_log_is_found(finished, tmp_path):
    for name, fault in (("checkpoint", "log-2/checkpoint"), ("receipts/1", "log-2/receipts/1")):
        folder = shutil.copytree(finished.folder, tmp_path / fault.replace("/", "-"))
        path = folder / "log-2" / name
        path.write_bytes(path.read_bytes()[:-2])
        with pytest.raises(LogError, match=fault):
            verify_folder(folder, None)


def test_the_second_log_of_another_run_is_found(finished, world, tmp_path):
    world.begin()
    agree(*world.pair)
    world.conclude()
    other = world.export(tmp_path / "other")
    folder = shutil.copytree(finished.folder, tmp_path / "run")
    shutil.rmtree(folder / "log-2")
    shutil.copytree(other / "log-2", folder / "log-2")
    with pytest.raises(LogError, match="log-2"):
        verify_folder(folder, None)


def test_a_simulated_device_sends_about_two_bytes_a_parameter(finished):
    report = json.loads((finished.folder / "report.json").read_text())
    sent, parameters = report["bytes"]["update"], report["parameters"]
    assert 11 / 8 * parameters < sent < 2.3 * parameters


def test_what_a_device_keeps_becomes_one_message_for_each_gateway():
    update = SealedUpdate(bytes(32), 0, bytes(64), bytes(96))
    shares = Shares(b"a vector", b"a seed")
    halves = tuple(decode(UpdateShare, m) for m in messages_of(encode(both_halves(update, shares))))
    assert halves == (UpdateShare(update, b"a vector"), UpdateShare(update, b"a seed"))
    assert messages_of(encode(update)) == (encode(update),), "any other mode has one message"
