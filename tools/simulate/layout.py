"""Choose a simulation's fleet, draw up its studies and write its roles' configuration files."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vitalring.edge_agent.personal import keep_back, keep_rule
from vitalring.errors import ConfigError, DataError
from vitalring.files import read_file
from vitalring.models.artefact import Artefact
from vitalring.models.catalogue import choose_artefact
from vitalring.models.dataset import (
    DatasetInfo,
    FeatureSchema,
    Records,
    devices,
    holds_tables,
    input_shape,
    load_dataset,
    load_part,
    load_table,
    refuse_by_place,
    require_test,
    split,
)
from vitalring.models.dataset.statistics import question_of
from vitalring.protocol.privacy import MAX_SAMPLED, fits_a_step
from vitalring.protocol.records import StudyPlan
from vitalring.tools import federation, plans, roles
from vitalring.tools.settings import SimulationSettings, StudySettings

Drawn = tuple[StudyPlan, Mapping[str, bytes]]
"""A study's plan and the public objects that it names."""

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
    mean_records: float
    columns: tuple[str, ...]
    """Of tables, in the order of the first device's file; none for other data."""


def choose_fleet(settings: SimulationSettings) -> Fleet:
    """Read the data set and choose its devices. Raises ConfigError or DataError."""
    folder = (settings.data or SHIPPED_DATA).absolute()
    info = load_dataset(folder)
    require_test(folder, info)
    if settings.study.unit == "record":
        refuse_by_place(folder, info)
    train, _ = devices(folder, info)
    wanted = settings.devices or len(train)
    if wanted > len(train):
        raise ConfigError(
            f"{wanted} devices are asked for, {folder} has {len(train)} that train: "
            "ask for fewer, or add devices"
        )
    chosen = train[:wanted]
    columns: tuple[str, ...] = ()
    if holds_tables(folder, info):
        columns = load_table(folder, chosen[0], info).columns
    counts = [len(_training_rows(settings, folder, info, name)) for name in chosen]
    if 0 in counts:
        raise DataError(
            f"{folder}: device {chosen[counts.index(0)]} has no row to train on, all are held out: "
            "hold out fewer rows, or name it in test_devices"
        )
    mean = sum(counts) / len(counts)
    return Fleet(folder, info, chosen, min(counts), max(counts), mean, columns)


def _training_rows(
    settings: SimulationSettings, folder: Path, info: DatasetInfo, name: str
) -> Records:
    """Return the rows that a device will train on; of a table yet to be encoded, without inputs."""
    features = _schema(features_known(settings, folder, info))
    if features is None and holds_tables(folder, info):
        table = split(load_table(folder, name, info), info).train
        nothing = np.zeros((len(table), 0), np.float32)
        records = Records(table.device, nothing, table.y, table.group)
    else:
        records = load_part(folder, name, info, "train", features)
    if settings.personalise == "none":
        return records
    return keep_back(records, keep_rule(settings.study.unit)).train


def _schema(features: bytes | None) -> FeatureSchema | None:
    return FeatureSchema.from_json(features) if features else None


def features_known(settings: SimulationSettings, folder: Path, info: DatasetInfo) -> bytes | None:
    """Return the text of the feature schema, no bytes for windows, None where none is agreed."""
    if not holds_tables(folder, info):
        return b""
    if settings.study.features:
        return read_file(settings.study.features)
    return info.features.to_json() if info.features else None


def draw_statistics(settings: SimulationSettings, fleet: Fleet) -> Drawn:
    """Draw up the study that agrees on the features of tables. Raises ConfigError."""
    if settings.study.unit != "none":
        raise ConfigError(
            f"{fleet.folder} declares no features, and to agree on them takes exact sums, which "
            f"unit {settings.study.unit} forbids: declare [features] in dataset.toml, give the "
            "schema of an earlier study as study.features, or add --unit none"
        )
    question = question_of(fleet.info, fleet.columns)
    plan = plans.statistics_plan_of(
        _of_class(settings.study, fleet), question, fleet.info.classes, len(fleet.devices)
    )
    return plan, federation.question_files(question)


def artefact_of(settings: SimulationSettings, fleet: Fleet, features: bytes) -> Artefact:
    """Return the network that the settings name, or one for this data. Raises ModelError."""
    info = fleet.info
    shape = input_shape(fleet.folder, info, _schema(features))
    study, private = settings.study, settings.study.unit != "none"
    return choose_artefact(study.model, shape, info.kind, info.classes, private=private)


def draw_training(settings: SimulationSettings, fleet: Fleet, features: bytes) -> Drawn:
    """Draw up the study that trains. Raises ConfigError, before anything is written."""
    study = _of_class(_with_room(settings, len(fleet.devices)), fleet)
    artefact = artefact_of(settings, fleet, features)
    plan = plans.plan_of(
        study,
        artefact,
        len(fleet.devices),
        plans.Sizes.of(study.records or fleet.records, fleet.most_records, fleet.mean_records),
        features,
    )
    rate = plan.training.sampling_rate
    if study.unit == "record" and not fits_a_step(fleet.most_records, rate):
        raise ConfigError(
            f"the largest device has {fleet.most_records} records; at a sampling rate of {rate:g}, "
            f"a step may draw more than the {MAX_SAMPLED} that the guarantee is argued for, and "
            f"the device would stay out: use a batch below {plan.training.batch}"
        )
    return plan, federation.artefact_files(artefact, features)


def _of_class(study: StudySettings, fleet: Fleet) -> StudySettings:
    """Return the study, about the kind of data that its data set says. Raises ConfigError."""
    said = fleet.info.data_class
    if study.data_class and said and study.data_class != said:
        raise ConfigError(
            f"study.data_class is {study.data_class}, {fleet.folder / 'dataset.toml'} says {said}: "
            "devices would refuse the study"
        )
    return replace(study, data_class=study.data_class or said)


def _with_room(settings: SimulationSettings, devices: int) -> StudySettings:
    """Return the study, its sums with room for as many devices as are going to sit a round out."""
    away = settings.dropout
    missing = away + 3.0 * math.sqrt(away * (1.0 - away) / devices)
    return replace(settings.study, spare=min(0.9, max(settings.study.spare, missing)))


def write_federation(
    settings: SimulationSettings,
    fleet: Fleet,
    plan: StudyPlan,
    objects: Mapping[str, bytes],
    state: Path,
) -> federation.Made:
    """Make keys and sign the plan below `state`. Raises ConfigError."""
    folder = state / "federation"
    keys = federation.enrol(folder, fleet.devices)
    return federation.init(folder, settings.study, plan, objects, keys)


def write_configs(
    settings: SimulationSettings, fleet: Fleet, made: federation.Made, state: Path, url: str
) -> None:
    """Write every role's configuration file."""
    broker = roles.Broker(url, roles.reconnect_s(settings.timeout_s))
    schedule = roles.schedule(settings.window_s, settings.timeout_s, settings.study.patience)
    for hospital in made.gateways:
        roles.write_gateway(made, hospital, broker)
    for hospital in made.aggregators:
        # Held-out records are the host's; the others sign what they can recompute.
        held_out = fleet.folder if hospital == made.hospitals[0] else None
        roles.write_aggregator(made, hospital, broker, schedule, held_out)
    # Everybody's numbers are asked for once, so nobody sits that round out.
    trains = made.study.study.plan.task == "train"
    floors = roles.floors_of(made.cohort.plan)
    # Who simulates owns all devices; `_of_class` refuses two words that differ.
    said = fleet.info.data_class or settings.study.data_class
    for name in fleet.devices:
        more: dict[str, object] = {
            "cache_dir": state / "cache",
            "accountant": "in-process",
            **({"data_class": said} if said else {}),
            "participation": 1.0 - settings.dropout if trains else 1.0,
            # What reached the broker is sent again only should it have forgotten; sooner, a slow
            # machine would send all updates of a long round several times.
            "retry_s": max(5.0, settings.timeout_s / 4),
            "keep_model": False,
            "personalise": settings.personalise if trains else "none",
            "floors": floors,
        }
        roles.write_agent(made.cohort, broker, name, str(fleet.folder), more)
