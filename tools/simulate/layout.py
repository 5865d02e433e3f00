"""Write everything a simulated federation needs, as its roles' own configuration files."""

from dataclasses import dataclass
from pathlib import Path

from vitalring.errors import ConfigError
from vitalring.models.artefact import load_artefact
from vitalring.models.dataset import DatasetInfo, devices, load_dataset, load_device, split
from vitalring.protocol.privacy import MAX_SAMPLED, fits_a_step
from vitalring.protocol.records import StudyPlan
from vitalring.tools import federation, roles
from vitalring.tools.settings import SimulationSettings

SHIPPED_DATA = Path(__file__).resolve().parent.parent / "datasets" / "mitbih"


@dataclass(frozen=True)
class Fleet:
    """The data set and the devices that take part."""

    folder: Path
    info: DatasetInfo
    devices: tuple[str, ...]
    records: int
    """Fewest records on a device, which a simulation may know."""
    most_records: int


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
    return Fleet(folder, info, chosen, min(counts), max(counts))


def make_plan(settings: SimulationSettings, fleet: Fleet) -> StudyPlan:
    """Return the study's plan. Raises ConfigError, before anything is written."""
    study = settings.study
    plan = federation.plan_of(
        study,
        load_artefact(study.model),
        fleet.info.classes,
        len(fleet.devices),
        study.records or fleet.records,
    )
    rate = plan.training.sampling_rate
    if study.unit == "record" and not fits_a_step(fleet.most_records, rate):
        raise ConfigError(
            f"the largest device has {fleet.most_records} records; at a sampling rate of {rate:g}, "
            f"a step may draw more than the {MAX_SAMPLED} that the guarantee is argued for, and "
            f"the device would stay out: use a batch below {study.batch}"
        )
    return plan


def write_federation(
    settings: SimulationSettings, fleet: Fleet, plan: StudyPlan, state: Path
) -> federation.Made:
    """Make keys and sign the plan below `state`. Raises ConfigError."""
    study = settings.study
    folder = state / "federation"
    keys = federation.enrol(folder, study, fleet.devices)
    return federation.init(folder, study, load_artefact(study.model), plan, keys)


def write_configs(
    settings: SimulationSettings, fleet: Fleet, made: federation.Made, state: Path, url: str
) -> None:
    """Write every role's configuration file."""
    broker = roles.Broker(url, roles.reconnect_s(settings.timeout_s))
    schedule = roles.schedule(settings.window_s, settings.timeout_s, settings.study.patience)
    roles.write_gateway(made, broker)
    roles.write_aggregator(made, broker, schedule, fleet.folder)
    for name in fleet.devices:
        more: dict[str, object] = {
            "cache_dir": state / "cache",
            "accountant": "in-process",
            "participation": 1.0 - settings.dropout,
            "retry_s": 5.0,
            "floors": roles.floors_of(made),
        }
        roles.write_agent(made, broker, name, str(fleet.folder), more)
