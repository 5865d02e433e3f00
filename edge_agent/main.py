"""Start agents from their configuration files."""

import contextlib
import functools
import threading
import time
from collections.abc import Iterator, Sequence

from vitalring.edge_agent import accountant, state
from vitalring.edge_agent.agent import Agent, RecordSource
from vitalring.edge_agent.budget import Budget
from vitalring.edge_agent.config import AgentConfig
from vitalring.edge_agent.daemon import Daemon, Downlink, Submission, subscriptions
from vitalring.edge_agent.enrolling import Applicant, Enroller
from vitalring.edge_agent.keyring import Keyring
from vitalring.edge_agent.personal import PersonalSettings
from vitalring.edge_agent.predictor import Predictor
from vitalring.edge_agent.records import DataSetRecords, StreamRecords
from vitalring.edge_agent.renewal import Renewal
from vitalring.edge_agent.results import open_sink
from vitalring.edge_agent.sensing.records import SensorRecords
from vitalring.edge_agent.sensing.runner import Sensing
from vitalring.edge_agent.workshop import Workshop
from vitalring.errors import ConfigError
from vitalring.files import read_file, read_secret
from vitalring.mqtt import Dialects, Link, submit
from vitalring.protocol import topics, trust
from vitalring.protocol.enrolment import TICKET_BYTES
from vitalring.protocol.privacy import Spend

_SUBMIT_TIMEOUT_S = 30.0


def run_agents(configs: Sequence[AgentConfig], stop: threading.Event) -> None:
    """Run the agents of one cohort until `stop` is set.

    One configuration is a device; several are the virtual devices of a
    simulation, which share a connection and what is public, nothing else.
    Raises ConfigError, DataError, StorageError or PrivacyError at the start.
    """
    first = configs[0]
    shared = {(read_file(c.federation), c.authority_key, c.cohort, c.broker.url) for c in configs}
    if len(shared) != 1:
        raise ConfigError("agents of one process must share federation, cohort and broker")
    federation = trust.open_federation(
        read_file(first.federation), bytes.fromhex(first.authority_key)
    )
    dialects = Dialects()
    filters = subscriptions(federation, first.cohort)
    with contextlib.ExitStack() as running:
        # First, so that sensors live to the very end and go on where nothing else does.
        sensors = [running.enter_context(each) for each in _sensors(configs, running, stop)]
        link = running.enter_context(Link(first.broker, filters, dialects=dialects))
        downlink = Downlink(link, federation.name, stop)
        cache = first.cache_dir or first.state_dir / "cache"
        workshop = Workshop(federation, cache, downlink.object)
        agents = [_agent(config, workshop) for config in configs]
        submission = Submission(first.broker, federation, first.cohort, dialects, first.retry_s)
        enroller = _enroller(configs, agents, submission)
        try:
            Daemon(agents, downlink, submission, _now_ms, enroller).run(stop)
        finally:
            for agent in agents:
                agent.db.close()
    for sensing in sensors:
        sensing.check()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _sensors(
    configs: Sequence[AgentConfig], running: contextlib.ExitStack, stop: threading.Event
) -> Iterator[Sensing]:
    """Yield the live sensors; `running` closes what takes their windows after they have ended."""
    for config in configs:
        if config.sensing is None:
            continue
        on_window = None
        if config.results is not None:
            predictor = Predictor(config.state_dir, open_sink(config.results))
            on_window = running.enter_context(predictor).on_window
        yield Sensing(config.sensing, config.state_dir, on_window, on_fault=stop.set)


def _records(config: AgentConfig, workshop: Workshop) -> RecordSource:
    if config.sensing is not None:
        return SensorRecords(config.sensing, config.state_dir, config.data_class)
    if config.streams:
        return StreamRecords(
            {
                name: DataSetRecords(stream.data, stream.device, workshop.object, name)
                for name, stream in config.streams.items()
            }
        )
    folder, device = config.data_set
    return DataSetRecords(folder, device, workshop.object, config.data_class)


def _agent(config: AgentConfig, workshop: Workshop) -> Agent:
    db = state.open_state(config.state_dir)
    return Agent(
        db,
        Budget(db),
        Keyring(config.ring_keys),
        _records(config, workshop),
        config.floors,
        config.participation,
        workshop,
        accountant.epsilon_in_child if config.accountant == "child" else _shared_epsilon,
        _renewal(config, workshop),
    )


def _enroller(configs: Sequence[AgentConfig], agents: Sequence[Agent], to: Submission) -> Enroller:
    applicants = [
        Applicant(
            agent.db,
            Keyring(config.ring_keys),
            read_secret(config.ticket, TICKET_BYTES) if config.ticket else None,
        )
        for config, agent in zip(configs, agents, strict=True)
    ]

    def send(box: bytes) -> None:
        topic = topics.enrol_topic(to.federation.name, to.cohort)
        submit(to.broker, topic, [box], _SUBMIT_TIMEOUT_S, dialects=to.dialects)

    return Enroller(applicants, to.federation, to.cohort, send, to.retry_s)


def _renewal(config: AgentConfig, workshop: Workshop) -> Renewal | None:
    personal = PersonalSettings() if config.personalise == "head" else None
    if not config.keep_model and personal is None:
        return None
    return Renewal(config.state_dir, workshop, personal)


@functools.lru_cache(maxsize=256)
def _shared_epsilon(spends: tuple[Spend, ...], delta: float) -> float:
    """Epsilon in this process; virtual devices with equal plans ask the same question."""
    return accountant.epsilon(spends, delta)
