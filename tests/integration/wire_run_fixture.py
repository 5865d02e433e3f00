"""All parties over a real broker, with a tap before it: what runs, for tests of what shows."""

import threading
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace

import numpy as np
from device_fixture import FLOORS, FixedRecords, LineWorkshop, keyring, linear
from federation_fixture import START_MS
from gateway_fixture import gateway_of
from mosquitto_fixture import Mosquitto
from wire_fixture import Tap

from vitalring.aggregator import rounds as aggregator_rounds
from vitalring.aggregator import service as aggregator_service
from vitalring.aggregator import store as aggregator_store
from vitalring.aggregator.channel import Channel
from vitalring.aggregator.rosters import Rosters
from vitalring.edge_agent import daemon, state
from vitalring.edge_agent.agent import Agent
from vitalring.edge_agent.budget import Budget
from vitalring.edge_agent.daemon import Daemon, Downlink, Submission
from vitalring.gateway import service as gateway_service
from vitalring.gateway import store as gateway_store
from vitalring.models.dataset import Records
from vitalring.mqtt import BrokerConfig, Dialects, Link
from vitalring.protocol import chunks

WINDOW_MS = 600_000
CLOCK_RATE = 400
FRAME_BYTES = 5_000
WAIT_S = 60.0


class RoundClock:
    """Stands still until every device has an update of the round ready, then runs a window."""

    def __init__(self, devices):
        self._devices = devices
        self._lock = threading.Lock()
        self._stood_ms = START_MS
        self._since = None
        self._ready = 0

    def now_ms(self):
        with self._lock:
            if self._since is None:
                return self._stood_ms
            gone_ms = int((time.monotonic() - self._since) * 1000 * CLOCK_RATE)
            if gone_ms > WINDOW_MS:
                self._stood_ms, self._since = self._stood_ms + WINDOW_MS + 1, None
                return self._stood_ms
            return self._stood_ms + gone_ms

    def ready(self):
        with self._lock:
            self._ready += 1
            if self._ready == self._devices:
                self._ready, self._since = 0, time.monotonic()


class PlainMosquitto(Mosquitto):
    """The broker as the project configures it, but for TLS and what hangs on its certificates."""

    def start(self):
        text = self.files.configuration.read_text()
        words = ("acl_file", "tls_version", "cafile", "certfile", "keyfile", "require_", "use_id")
        lines = [line for line in text.splitlines() if not line.startswith(words)]
        plain = "\n".join(lines).replace("allow_anonymous false", "allow_anonymous true")
        assert plain != text
        self.files.configuration.write_text(plain + "\n")
        super().start()

    def plain(self, port=None):
        url = f"mqtt://127.0.0.1:{port or self.port}"
        return BrokerConfig(url, max_payload_bytes=FRAME_BYTES, reconnect_s=0.2)


@dataclass
class Parties:
    """A run of all parties, each in threads of its own, devices behind the tap."""

    federation: object
    folder: object
    broker: PlainMosquitto
    tap: Tap
    ended: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    @property
    def devices(self):
        return len(self.federation.devices)

    def run(self):
        """Run until every device has the final model. Fails where a party ends before."""
        self.clock, self.stop = RoundClock(self.devices), threading.Event()
        work = [(self.gateway, ()), (self.aggregator, ())]
        work += [(self.device, (number,)) for number in range(self.devices)]
        threads = [threading.Thread(target=target, args=args) for target, args in work]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60.0 * self.federation.study.plan.training.rounds
        ended = 0
        try:
            while ended < 1 + self.devices:
                # Looked at first: who ends in order has said so before its thread is gone.
                at_work = all(thread.is_alive() for thread in threads)
                ended += self.ended.acquire(timeout=1.0)
                assert at_work or ended, "somebody ended before the study"
                assert time.monotonic() < deadline, "the study did not end"
        finally:
            self.stop.set()
            for thread in threads:
                thread.join(WAIT_S)
        assert not any(thread.is_alive() for thread in threads)

    def gateway(self):
        with closing(gateway_store.open_store(self.folder / "gateway")) as db:
            listens = gateway_service.subscriptions(self.federation.study)
            with Link(self.broker.plain(), listens) as link:
                limits = chunks.ChunkLimits()
                now_ms = self.clock.now_ms
                gateway_of(self.federation, db, link, now_ms, limits, FRAME_BYTES).run(self.stop)

    def aggregator(self):
        study = self.federation.study
        made = aggregator_rounds.Aggregator(
            study=study,
            scheme=self.federation.scheme,
            decrypt=self.federation.decryption.decrypt,
            signing_seed=self.federation.aggregator_seed,
            goal=self.federation.goal(),
            schedule=aggregator_rounds.Schedule(window_ms=WINDOW_MS, timeout_ms=2 * WINDOW_MS),
        )
        with closing(aggregator_store.open_store(self.folder / "aggregator")) as db:
            aggregator_rounds.start(db, made)
            known = Rosters(db, study, self.federation.files.records["roster"])
            known.save()
            with Link(self.broker.plain(), aggregator_service.subscriptions(study)) as link:
                channel = Channel(link, study.federation.name, FRAME_BYTES)
                now_ms = self.clock.now_ms
                aggregator_service.AggregatorService(db, made, known, channel, now_ms).run(
                    self.stop
                )
        self.ended.release()

    def device(self, number):
        """One device, unlike the others in all that an owner and a wearer may choose."""
        study, config = self.federation.study, self.broker.plain(self.tap.port)
        folder = self.folder / f"{name_of(number)}{'x' * (number % 7)}"
        skew_ms = 400 * (number % 11 - 5)
        rng = np.random.default_rng(number)
        rows = 100 + 7 * number
        records = Records(
            name_of(number),
            rng.normal(size=(rows, study.plan.model.dimension)).astype(np.float32),
            rng.integers(0, 2, rows),
        )
        with ExitStack() as stack:
            db = stack.enter_context(closing(state.open_state(folder)))
            filters = daemon.subscriptions(study.federation, study.roster.cohort)
            link = stack.enter_context(Link(config, filters))
            downlink = Downlink(link, study.federation.name, self.stop)
            agent = WaitingAgent(
                db,
                Budget(db),
                keyring(folder / "keys", self.federation.devices[number]),
                FixedRecords(records),
                replace(FLOORS, allow_no_privacy=True),
                1.0,
                LineWorkshop(study.federation, folder / "cache", downlink.object),
                linear,
            )
            agent.parties = self
            to = Submission(config, study.federation, study.roster.cohort, Dialects(), 86_400.0)
            now_ms = self.clock.now_ms
            Daemon([agent], downlink, to, lambda: now_ms() + skew_ms).run(self.stop)


class WaitingAgent(Agent):
    """An agent that tells when its update is ready, and when it has the final model."""

    parties = None

    def consider(self, data, now_ms):
        outcome = super().consider(data, now_ms)
        if outcome == "ready":
            self.parties.clock.ready()
        return outcome

    def end_study(self, data):
        super().end_study(data)
        self.parties.ended.release()


def name_of(number):
    return f"bedside-monitor-{number:03d}"
