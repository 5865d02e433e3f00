"""The work that is measured: a study with an open round, as its parties find it on disk."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitalring.aggregator import goals
from vitalring.aggregator import rounds as aggregator_rounds
from vitalring.aggregator import store as aggregator_store
from vitalring.aggregator.config import AggregatorConfig, load_decrypt
from vitalring.config import load_config
from vitalring.errors import ConfigError
from vitalring.files import read_secret, write_atomic
from vitalring.gateway import log, rounds, store
from vitalring.gateway.config import GatewayConfig, load_keys, load_study
from vitalring.models.artefact import initial_weights, load_artefact
from vitalring.models.dataset import load_device, split
from vitalring.protocol import limits, trust
from vitalring.protocol.cbor import decode
from vitalring.protocol.records import Bundle, StudyPlan
from vitalring.protocol.tiles import Tile
from vitalring.tools.roles import MAX_PAYLOAD_BYTES
from vitalring.tools.settings import SimulationSettings
from vitalring.tools.simulate import layout


@dataclass(frozen=True)
class Work:
    """A prepared study. `device` is the one with the most records; all devices train on these."""

    state: Path
    hospital: Path
    plan: StudyPlan
    devices: tuple[str, ...]
    device: str
    records: int

    @property
    def request(self) -> dict[str, Any]:
        """What the measuring processes are told."""
        return {
            "state": str(self.state),
            "hospital": str(self.hospital),
            "device": self.device,
            "frame_bytes": MAX_PAYLOAD_BYTES,
        }


def prepare(settings: SimulationSettings, state: Path) -> Work:
    """Write a study below `state`, up to the announcement of its first round.

    What a device would have fetched from the broker lies in its cache already.
    Raises ConfigError or DataError.
    """
    fleet = layout.choose_fleet(settings)
    features = layout.features_known(settings, fleet.folder, fleet.info)
    if features is None:
        raise ConfigError(f"{fleet.folder} declares no features: measure with [features] declared")
    plan, objects = layout.draw_training(settings, fleet, features)
    made = layout.write_federation(settings, fleet, plan, objects, state)
    layout.write_configs(settings, fleet, made, state, "mqtt://localhost")
    hospital = made.host
    _open_first_round(hospital, state)
    sizes = {
        name: len(split(load_device(fleet.folder, name, fleet.info), fleet.info).train)
        for name in fleet.devices
    }
    largest = max(sizes, key=lambda name: (sizes[name], name))
    return Work(state, hospital, made.study.study.plan, fleet.devices, largest, sizes[largest])


def write_training(settings: SimulationSettings, work: Work, file: Path) -> dict[str, Any]:
    """Write the device's records and first weights as arrays; return what trains on them.

    For training without the parties around it, in whatever framework.
    """
    fleet = layout.choose_fleet(settings)
    records = split(load_device(fleet.folder, work.device, fleet.info), fleet.info).train
    artefact = load_artefact(work.plan.model.name)
    weights = initial_weights(artefact, work.plan.model.initial_seed)
    np.savez(file, x=records.x, y=records.y, weights=weights)
    return {
        "arrays": str(file),
        "model": work.plan.model.name,
        "training": asdict(work.plan.training),
        "privacy": asdict(work.plan.privacy),
    }


def _open_first_round(hospital: Path, state: Path) -> None:
    config = load_config(GatewayConfig, hospital / "gateway.toml")
    files = load_study(config)
    key = load_keys(config, files.study).log
    db = store.open_store(config.state_dir)
    try:
        rounds.open_study_log(db, key, files.records, list(files.objects.values()))
        proposal = _proposal(hospital, files)
        rounds.begin(db, key, files.study, proposal, _now_ms())
        current = rounds.latest(db)
        if current is None:
            raise AssertionError("a round that began is the latest one")
        write_atomic(state / "announcement", rounds.announcement(db, current))
        write_atomic(state / "checkpoint", log.latest_checkpoint(db) or b"")
        write_atomic(state / "entries", log.tile_bytes(db, Tile(None, 0, log.size(db))))
        weights = trust.peek_round_plan(proposal.record, files.study.federation).weights
        for name, content in db.execute("SELECT digest, content FROM objects"):
            folder = "cache/weights" if name == weights else "cache"
            write_atomic(state / folder / name.hex(), content)
    finally:
        db.close()


def _proposal(hospital: Path, files: trust.StudyFiles) -> Bundle:
    config = load_config(AggregatorConfig, hospital / "aggregator.toml")
    plan = files.study.plan
    artefact, _ = goals.open_artefact(files)
    aggregator = aggregator_rounds.Aggregator(
        study=files.study,
        scheme=files.study.scheme(),
        decrypt=load_decrypt(config, files.study),
        signing_seed=read_secret(config.signing_key, 32),
        goal=goals.training(plan, artefact, lambda _: None),
        # Nobody waits in a measurement, and no machine is too slow for it.
        schedule=aggregator_rounds.Schedule(window_ms=0, timeout_ms=limits.MAX_CLOCK_SKEW_MS * 288),
    )
    db = aggregator_store.open_store(config.state_dir)
    try:
        aggregator_rounds.start(db, aggregator)
        return decode(Bundle, aggregator_rounds.propose(db, aggregator, _now_ms()).proposal)
    finally:
        db.close()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def plain_plan(plan: StudyPlan) -> dict[str, Any]:
    """Return what a reader must know of the work's plan."""
    return {
        "model": plan.model.name,
        "parameters": plan.model.dimension,
        "training": asdict(plan.training),
        "privacy": asdict(plan.privacy),
        "codec": asdict(plan.codec),
    }
