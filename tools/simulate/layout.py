"""Write everything a simulated federation needs, as its roles' own configuration files."""

from dataclasses import dataclass
from pathlib import Path

from vitalring.errors import ConfigError
from vitalring.files import write_atomic
from vitalring.models.artefact import load_artefact
from vitalring.models.dataset import DatasetInfo, devices, load_dataset, load_device, split
from vitalring.tools import federation
from vitalring.tools.settings import SimulationSettings

SHIPPED_DATA = Path(__file__).resolve().parent.parent / "datasets" / "mitbih"
LOOPBACK_FRAME_BYTES = 1 << 20


@dataclass(frozen=True)
class Fleet:
    """The data set and the devices that take part."""

    folder: Path
    info: DatasetInfo
    devices: tuple[str, ...]
    records: int
    """Fewest records on a device, which a simulation may know."""


def choose_fleet(settings: SimulationSettings) -> Fleet:
    """Read the data set and choose its devices. Raises ConfigError or DataError."""
    folder = (settings.data or SHIPPED_DATA).absolute()
    info = load_dataset(folder)
    train, _ = devices(folder, info)
    wanted = settings.devices or len(train)
    if wanted > len(train):
        raise ConfigError(
            f"{wanted} devices are asked for, {folder} has {len(train)} that train: "
            "ask for fewer, or add devices"
        )
    chosen = train[:wanted]
    counts = [len(split(load_device(folder, name, info), info)[0]) for name in chosen]
    return Fleet(folder, info, chosen, min(counts))


def write_federation(
    settings: SimulationSettings, fleet: Fleet, state: Path, broker_url: str
) -> federation.Made:
    """Make keys, plan and configuration files below `state`; it must not exist yet."""
    study = settings.study
    artefact = load_artefact(study.model)
    plan = federation.plan_of(
        study, artefact, fleet.info.classes, len(fleet.devices), study.records or fleet.records
    )
    folder = state / "federation"
    keys = [
        federation.enrol(folder / "devices" / name / "ring.key", study) for name in fleet.devices
    ]
    made = federation.init(folder, study, artefact, plan, keys)
    write_configs(settings, fleet, made, state, broker_url)
    return made


def write_configs(
    settings: SimulationSettings,
    fleet: Fleet,
    made: federation.Made,
    state: Path,
    broker_url: str,
) -> None:
    """Write `gateway.toml`, `aggregator.toml` and every device's `agent.toml`."""
    authority = made.authority_key.hex()
    public, private = made.layout.public, made.layout.hospital_folder
    broker = {"url": broker_url, "max_payload_bytes": LOOPBACK_FRAME_BYTES}
    study = settings.study
    gateway: dict[str, object] = {
        "study": public,
        "authority_key": authority,
        "log_key": private / "log.seed",
        "sealing_key": private / "sealing.key",
        "state_dir": state / "gateway",
        "broker": broker,
    }
    write_atomic(state / "gateway.toml", federation.toml(gateway))
    aggregator: dict[str, object] = {
        "study": public,
        "authority_key": authority,
        "signing_key": private / "aggregator.seed",
        "state_dir": state / "aggregator",
        "held_out": fleet.folder,
    }
    if study.secure_sum != "plain":
        aggregator["sum_secret"] = private / "sum.secret"
    aggregator["broker"] = broker
    aggregator["schedule"] = {
        "window_ms": round(settings.window_s * 1000),
        "timeout_ms": round(settings.timeout_s * 1000),
        "patience": study.patience,
    }
    write_atomic(state / "aggregator.toml", federation.toml(aggregator))
    floors = {
        "ring": made.study.study.plan.min_ring,
        "cohort": study.min_cohort,
        "epsilon": study.epsilon,
        "delta": study.delta,
        "allow_no_privacy": study.unit == "none",
    }
    for name in fleet.devices:
        home = made.layout.folder / "devices" / name
        agent: dict[str, object] = {
            "federation": public / "federation.cbor",
            "authority_key": authority,
            "cohort": study.cohort,
            "ring_key": home / "ring.key",
            "data": fleet.folder,
            "device": name,
            "state_dir": home / "state",
            "cache_dir": state / "cache",
            "accountant": "in-process",
            "participation": 1.0 - settings.dropout,
            "retry_s": 5.0,
            "floors": floors,
            "broker": broker,
        }
        write_atomic(home / "agent.toml", federation.toml(agent))
