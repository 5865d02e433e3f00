"""`vitalring federation`: make keys, roster, plan and configuration files of a study."""

import argparse
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from vitalring.aggregator.rounds import PATIENCE, Schedule
from vitalring.config import load_config
from vitalring.edge_agent.config import DEVICE_ID, RETRY_S, AgentConfig
from vitalring.errors import ConfigError
from vitalring.files import read_file, write_atomic
from vitalring.gateway.mosquitto import aggregator_users, cohort_user, second_gateway_user
from vitalring.models.artefact import Artefact
from vitalring.models.catalogue import choose_artefact, is_of_one_size, load_of_one_size
from vitalring.models.dataset import FeatureSchema, load_dataset, load_table
from vitalring.models.dataset import devices as list_devices
from vitalring.models.dataset.statistics import question_of
from vitalring.mqtt import BrokerConfig
from vitalring.protocol import trust
from vitalring.protocol.records import StudyPlan
from vitalring.tools import federation, plans, roles, tickets
from vitalring.tools.commands import founding, keys, office, rosters
from vitalring.tools.founding import is_founded, our_hospital, take_key
from vitalring.tools.settings import StudySettings, hospitals_of
from vitalring.tools.simulate import layout
from vitalring.tools.verify import verify_log

_MOST_S = 1e9
"""Longest time of a round, in seconds, of which its schedule has room for whole milliseconds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    actions = parser.add_subparsers(dest="action", required=True)
    make = actions.add_parser(
        "init", help="write a new federation, with all its keys, on one machine"
    )
    make.add_argument("folder", type=Path, help="a new folder")
    make.add_argument("--config", type=Path, required=True, help="study.toml")
    make.add_argument(
        "--devices",
        required=True,
        help="how many devices to enrol, or a file with one device name a line",
    )
    make.add_argument(
        "--agree-on",
        type=Path,
        metavar="FOLDER",
        help="make the study in which sites agree on the features of their tables; the folder "
        "has dataset.toml and a table of which the header alone is read",
    )
    configure = actions.add_parser(
        "configure", help="write the configuration of this hospital's services"
    )
    configure.add_argument("folder", type=Path)
    configure.add_argument("--authority", required=True, help="its public key, 64 hex digits")
    configure.add_argument("--key", type=Path, help="folder of the ceremony of a joint key")
    configure.add_argument(
        "--patience",
        type=int,
        default=0,
        help="rounds without a better macro-F1 that end the study; default: 0, never",
    )
    newcomers = actions.add_parser(
        "tickets", help="as the host: make folders of new devices, which draw their own keys"
    )
    newcomers.add_argument("folder", type=Path)
    newcomers.add_argument("--authority", required=True, help="its public key, 64 hex digits")
    newcomers.add_argument("--devices", required=True, help="file with one device name a line")
    newcomers.add_argument("--config", type=Path, help="study.toml, before there is a roster")
    for each in (make, configure, newcomers, office.add_arguments(actions)):
        _add_service_arguments(each)

    features = actions.add_parser(
        "features", help="write the features that sites agreed on, for `features` in study.toml"
    )
    features.add_argument("log", type=Path, help="log folder of the study that agreed on them")
    features.add_argument("--authority", help="the authority's public key, 64 hex digits")
    features.add_argument("--out", type=Path, default=Path("features.json"))
    founding.add_arguments(actions)
    rosters.add_arguments(actions)
    keys.add_arguments(actions)


def _add_service_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe what is written into the services' configuration files."""
    parser.add_argument("--broker-url", required=True, help="such as mqtts://server:8883")
    parser.add_argument(
        "--broker-folder",
        type=Path,
        help="what `vitalring gateway init` wrote, or a folder with this hospital's part of its "
        "tls folder",
    )
    parser.add_argument("--held-out", type=Path, help="data set on which models are evaluated")
    parser.add_argument(
        "--data",
        default="data",
        help="folder of a device's data, as its agent sees it: absolute, or from agent.toml's "
        "folder; default: data",
    )
    parser.add_argument(
        "--data-class",
        help="the study's class of data, if all devices' owners say that their records are of it; "
        "left out, each owner writes it",
    )
    for name, default_s, text in (
        ("window", Schedule.window_ms / 1000, "devices submit at a random time within it"),
        ("timeout", Schedule.timeout_ms / 1000, "a round that lacks updates ends after it"),
        ("retry", AgentConfig.retry_s, "a device without a receipt submits again after it"),
    ):
        parser.add_argument(
            f"--{name}",
            type=float,
            default=default_s,
            metavar="SECONDS",
            help=f"{text}; default: {default_s:g}",
        )


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    if options.action == "configure":
        return _configure(options)
    if options.action == "tickets":
        return _tickets(options)
    if options.action == "office":
        return office.run(options, _broker)
    if options.action == "keys":
        return keys.run(options)
    if options.action in rosters.ACTIONS:
        return rosters.run(options)
    if options.action in founding.ACTIONS:
        return founding.run(options, _drawn, _names)
    return _features(options) if options.action == "features" else _init(options)


def _features(options: argparse.Namespace) -> int:
    key = bytes.fromhex(options.authority) if options.authority else None
    verdict = verify_log(options.log, key)
    if not verdict.rounds or not verdict.final_weights:
        raise ConfigError(f"the log in {options.log} has no result yet")
    if verdict.plan.task != "statistics":
        raise ConfigError(
            f"the log in {options.log} is of study {verdict.plan.study}, which trains a network: "
            "give the log of the study that `federation init --agree-on` made"
        )
    text = read_file(options.log / "objects" / verdict.final_weights.hex())
    schema = FeatureSchema.from_json(text)
    write_atomic(options.out, text)
    print(f"{options.out}: {schema.inputs} inputs, agreed on in study {verdict.plan.study}")
    return 0


def _drawn(settings: StudySettings, devices: int, agree_on: Path | None) -> layout.Drawn:
    """Draw up the plan that the settings describe, and the objects that it names."""
    if agree_on is not None:
        info = load_dataset(agree_on)
        ids = sum(list_devices(agree_on, info), ())
        question = question_of(info, load_table(agree_on, ids[0], info).columns)
        plan = plans.statistics_plan_of(settings, question, info.classes, devices)
        return plan, federation.question_files(question)
    text = read_file(settings.features) if settings.features else b""
    artefact = _artefact(settings, text)
    plan = plans.plan_of(settings, artefact, devices, settings.records, text)
    return plan, federation.artefact_files(artefact, text)


def _artefact(settings: StudySettings, features: bytes) -> Artefact:
    """Return the network that the settings name. Raises ConfigError or ModelError."""
    private = settings.unit != "none"
    shape = (FeatureSchema.from_json(features).inputs,) if features else settings.input
    if shape and settings.classes:
        kind = "tabular" if len(shape) == 1 else "windows"
        return choose_artefact(settings.model, shape, kind, settings.classes, private=private)
    without, with_guarantee = ("ehr_mlp", "linear") if features else ("ecg_cnn", "ecg_bank")
    name = settings.model or (with_guarantee if private else without)
    if not shape and not settings.classes and is_of_one_size(name):
        return load_of_one_size(name)
    missing = "classes" if shape else "input" if settings.classes else "input and classes"
    raise ConfigError(
        f"{name} takes data of any size, and study.toml does not say {missing}: write "
        'input = [128, 6], or [inputs], and classes = ["...", "..."], as the data has them'
        if not is_of_one_size(name)
        else f"study.toml says only one of input and classes: {missing} is missing; write both, "
        f"or neither for the size and class names of {name}"
    )


def _init(options: argparse.Namespace) -> int:
    """Write a federation's folder, whole or not at all."""
    settings = load_config(StudySettings, options.config)
    names = _names(options.devices)
    hospitals = federation.hospital_names(hospitals_of(settings)[0])
    shared = settings.secure_sum == "two-server"
    broker = _broker(options, roles.users_of(settings.cohort, hospitals, shared=shared))
    folder: Path = options.folder
    if folder.exists():
        raise ConfigError(f"{folder} exists already: name a new folder")
    plan, objects = _drawn(settings, len(names), options.agree_on)
    _check_owners_word(options, plan)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        keys = federation.enrol(partial, names)
        made = federation.init(partial, settings, plan, objects, keys)
        _write_roles(options, settings.patience, made, broker, names)
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for line in federation.describe(made):
        print(line)
    print(f"\nkeep {folder / 'authority'} offline; copy each folder of {folder / 'devices'}")
    print(f"to its device, and each folder of {folder / 'hospitals'} with {folder / 'public'}")
    print("to that hospital's server")
    _tell_owners(options, plan)
    if shared:
        print(f"\n{made.hospitals[0]} runs broker, gateway and aggregator, {made.hospitals[1]} a")
        print("gateway: whoever has the secrets of both can read single updates")
    elif len(made.hospitals) > 1:
        print(f"\n{made.hospitals[0]} runs gateway and broker. This machine has seen all shares of")
        print("the key: for a real study let each hospital make its own, docs/keys.md says how")
    return 0


def _configure(options: argparse.Namespace) -> int:
    """Write what runs on this hospital's own machine, after the ceremony of its key."""
    folder, key = options.folder, founding.authority_key(options.authority)
    if complaint := PATIENCE.complaint(options.patience):
        raise ConfigError(f"--patience {complaint} rounds, and 0 is never")
    layout, name = federation.Layout(folder), our_hospital(folder, key)
    if options.key is not None:
        take_key(folder, options.key, key)
    files = trust.open_study_files(lambda file: read_file(layout.public / file), key)
    made = federation.Made(layout, key, files)
    hosting = name == made.hospitals[0]
    _check_owners_word(options, files.study.plan)
    roster = files.study.roster
    shared = files.study.shared
    users = roles.users_of(roster.cohort, made.hospitals, shared=shared)
    ours = [second_gateway_user(name) if shared else aggregator_users(made.hospitals)[name]]
    broker = _broker(options, users if hosting else ours)
    devices = sorted(path.name for path in (folder / "devices").glob("*") if path.is_dir())
    _write_roles(options, options.patience, made, broker, devices if hosting else [], [name])
    for line in federation.describe(made):
        print(line)
    running = (("gateway", made.gateways), ("aggregator", made.aggregators))
    services = [service for service, hospitals in running if name in hospitals]
    print("\nstart here:")
    for service in services:
        path = layout.folder_of(name) / f"{service}.toml"
        print(f"  vitalring {service} run --config {path}")
    if hosting:
        print(f"copy each folder of {folder / 'devices'} to its device")
        _tell_owners(options, made.cohort.plan)
    return 0


def _tickets(options: argparse.Namespace) -> int:
    """Write folders of new devices of a federation, with tickets in the place of keys."""
    folder, key = options.folder, founding.authority_key(options.authority)
    cohort, ids = _cohort(folder, key, options.config), _names(options.devices)
    broker = _broker(options, [cohort_user(cohort.name)])
    _check_owners_word(options, cohort.plan)
    path = tickets.draw(cohort.layout, ids)
    _write_agents(options, cohort, broker, ids)
    print(f"{len(ids)} devices; copy each one's folder of {folder / 'devices'} to it, then")
    if is_founded(folder):
        config = path.with_name("gateway.toml")
        print(f"  vitalring gateway enrolment tickets {path} --config {config}")
    else:
        print("enrol them with `vitalring federation office`")
    _tell_owners(options, cohort.plan)
    return 0


def _cohort(folder: Path, key: bytes, config: Path | None) -> federation.Cohort:
    """Return what devices are given, of a study that has a roster or, with `config`, has none."""
    layout = federation.Layout(folder)
    if is_founded(folder):
        files = trust.open_study_files(lambda file: read_file(layout.public / file), key)
        return federation.Made(layout, key, files).cohort
    if config is None:
        raise ConfigError(f"{folder} has no roster yet: give --config study.toml")
    signed = read_file(layout.public / "federation.cbor")
    opened = trust.open_federation(signed, key)
    plan = trust.open_study_plan(read_file(layout.public / "study.cbor"), opened)
    return federation.Cohort(layout, key, signed, load_config(StudySettings, config).cohort, plan)


def _write_roles(
    options: argparse.Namespace,
    patience: int,
    made: federation.Made,
    broker: roles.Broker,
    devices: list[str],
    hospitals: Sequence[str] = (),
) -> None:
    """Write the files of some hospitals, or of all, and of devices."""
    schedule = roles.schedule(options.window, options.timeout, patience)
    for hospital in hospitals or made.hospitals:
        hosting = hospital == made.hospitals[0]
        if hospital in made.gateways:
            roles.write_gateway(made, hospital, broker)
        if hospital not in made.aggregators:
            continue
        # Made for all at once, only the host's folder of records is on this machine.
        held_out = options.held_out if hosting or hospitals else None
        _check_held_out(held_out, made.cohort.plan)
        roles.write_aggregator(made, hospital, broker, schedule, held_out)
    _write_agents(options, made.cohort, broker, devices)


def _check_held_out(folder: Path | None, plan: StudyPlan) -> None:
    """Refuse a data set of another class: devices with such data would stay out (SPEC 7.19)."""
    if folder is None or not (folder / "dataset.toml").exists():
        return
    said = load_dataset(folder).data_class
    if said and said != plan.data_class:
        raise ConfigError(
            f"{folder / 'dataset.toml'} says data_class {said}, the study "
            f"{plan.data_class or 'none'}: devices with such records would refuse it; write "
            f'data_class = "{said}" into study.toml'
        )


def _write_agents(
    options: argparse.Namespace,
    cohort: federation.Cohort,
    broker: roles.Broker,
    devices: Sequence[str],
) -> None:
    """Write the files of devices; one with a ticket knows where it is."""
    more = {
        "retry_s": options.retry,
        "floors": roles.floors_of(cohort.plan),
        **({"data_class": options.data_class} if options.data_class else {}),
    }
    for name in devices:
        ticket = {"ticket": tickets.TICKET_FILE} if tickets.of(cohort.layout, name) else {}
        roles.write_agent(cohort, broker, name, options.data, {**ticket, **more})


def _check_owners_word(options: argparse.Namespace, plan: StudyPlan) -> None:
    """Refuse files of devices that would refuse the study. Raises ConfigError."""
    if options.data_class and options.data_class != plan.data_class:
        raise ConfigError(
            f"--data-class is {options.data_class}, the study's {plan.data_class or 'none'}: "
            "devices with such records would refuse it"
        )


def _tell_owners(options: argparse.Namespace, plan: StudyPlan) -> None:
    """Say what only the owners of devices can: of what class their records are (SPEC 7.19)."""
    if plan.data_class and not options.data_class:
        print("\neach device takes part only if its owner says the class of its records: unless")
        print(f'dataset.toml does, write data_class = "{plan.data_class}" into its agent.toml')


def _broker(options: argparse.Namespace, users: Sequence[str]) -> roles.Broker:
    """Return the broker that the options describe, checked before anything is written."""
    if not 0 <= options.window <= options.timeout or not 0.001 <= options.timeout <= _MOST_S:
        raise ConfigError(
            f"--window {options.window:g} --timeout {options.timeout:g}: "
            f"use 0 <= window <= timeout, both in seconds, and a timeout from 0.001 to {_MOST_S:g}"
        )
    if complaint := RETRY_S.complaint(options.retry):
        raise ConfigError(f"--retry {complaint} seconds: every device would refuse its file")
    url, reconnect_s = options.broker_url, roles.reconnect_s(options.timeout)
    BrokerConfig(url=url)  # refuses an address that no party could use
    if not options.broker_folder:
        return roles.Broker(url, reconnect_s)
    broker = roles.broker_of_folder(options.broker_folder, url, users, reconnect_s)
    for shown in broker.credentials.values():
        for path in (shown.ca_file, shown.certificate_file, shown.key_file):
            if not path.is_file():
                raise ConfigError(
                    f"{path} is missing: make it with `vitalring gateway init` for this "
                    "cohort, and with --hospital for each of several hospitals"
                )
    return broker


def _names(devices: str) -> list[str]:
    if devices.isdecimal():
        width = len(devices)
        return [f"device-{number:0{width}}" for number in range(1, int(devices) + 1)]
    names = read_file(Path(devices)).decode(errors="replace").split()
    for name in names:
        if re.fullmatch(DEVICE_ID, name) is None:
            raise ConfigError(f"{devices}: device name {name!r} must match {DEVICE_ID}")
    if len(set(names)) != len(names):
        raise ConfigError(f"{devices} names a device twice")
    return names
