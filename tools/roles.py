"""Write the roles' configuration files, with paths relative to the file that names them.

So a hospital's folder with `public/` beside it, and a device's folder by
itself, can be copied to where they belong.
"""

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vitalring.edge_agent.accountant import epsilon
from vitalring.edge_agent.config import MAX_EPSILON
from vitalring.errors import ConfigError
from vitalring.files import write_atomic
from vitalring.gateway.certificates import AUTHORITY
from vitalring.gateway.mosquitto import (
    GATEWAY,
    aggregator_users,
    cohort_user,
    second_gateway_user,
)
from vitalring.protocol.guarantee import budget_allowances
from vitalring.protocol.records import StudyPlan
from vitalring.protocol.secure_sum import KEYLESS
from vitalring.tools.federation import KEYS_FOLDER, NAMES_FILE, SUM_KEY_FILE, Cohort, Made

Table = Mapping[str, object]

MAX_PAYLOAD_BYTES = 1 << 20
"""Largest message; the Mosquitto configuration that we write allows as much."""


@dataclass(frozen=True)
class Credentials:
    """Files with which one role comes to the broker."""

    ca_file: Path
    certificate_file: Path
    key_file: Path


@dataclass(frozen=True)
class Broker:
    """Where the broker is, and who shows what to it; a loopback broker asks for nothing.

    After a loss everybody is back within `reconnect_s` of the broker's return.
    """

    url: str
    reconnect_s: float
    credentials: Mapping[str, Credentials] = field(default_factory=dict)


def reconnect_s(timeout_s: float) -> float:
    """Return how long a party may wait between two attempts where rounds last so long."""
    return min(120.0, max(1.0, timeout_s / 20))


def schedule(window_s: float, timeout_s: float, patience: int) -> Table:
    """Return the aggregator's schedule: times in milliseconds there, in seconds here."""
    return {
        "window_ms": round(window_s * 1000),
        "timeout_ms": round(timeout_s * 1000),
        # Of hospitals that work together one may be slow where rounds are slow.
        "turn_ms": round(max(5.0, timeout_s / 4) * 1000),
        "patience_ms": round(max(5.0, timeout_s / 4) * 1000),
        "patience": patience,
    }


def users_of(cohort: str, hospitals: Sequence[str], *, shared: bool = False) -> tuple[str, ...]:
    """Return who comes to a study's broker; `shared` where two gateways hold shares."""
    aggregators = aggregator_users(hospitals)
    others = (
        (aggregators[hospitals[0]], second_gateway_user(hospitals[1]))
        if shared
        else tuple(aggregators.values())
    )
    return (GATEWAY, *others, cohort_user(cohort))


def broker_of_folder(folder: Path, url: str, users: Sequence[str], reconnect_s: float) -> Broker:
    """Return the broker whose configuration `vitalring gateway init` wrote into `folder`."""
    tls = folder / "tls"
    return Broker(
        url,
        reconnect_s,
        {
            user: Credentials(tls / f"{AUTHORITY}.pem", tls / f"{user}.pem", tls / f"{user}.key")
            for user in users
        },
    )


def write_gateway(made: Made, hospital: str, broker: Broker) -> None:
    """Write `gateway.toml` into the folder of a hospital that runs a gateway."""
    home = made.layout.folder_of(hospital)
    named = {"enrolled": NAMES_FILE} if (home / NAMES_FILE).exists() else {}
    user = GATEWAY if hospital == made.hospitals[0] else second_gateway_user(hospital)
    _write(
        home / "gateway.toml",
        {
            "study": _relative(made.layout.public, home),
            "authority_key": made.authority_key.hex(),
            "log_key": "log.seed",
            "sealing_key": "sealing.key",
            "state_dir": "gateway",
            **named,
            "broker": _broker_table(broker, user, home),
        },
    )


def write_aggregator(
    made: Made, hospital: str, broker: Broker, schedule: Table, held_out: Path | None = None
) -> None:
    """Write `aggregator.toml` into a hospital's folder; it evaluates models on `held_out`."""
    home = made.layout.folder_of(hospital)
    table: dict[str, object] = {
        "study": _relative(made.layout.public, home),
        "authority_key": made.authority_key.hex(),
        "signing_key": "aggregator.seed",
        "state_dir": "aggregator",
    }
    if made.study.study.plan.secure_sum not in KEYLESS:
        table["sum_secret"] = SUM_KEY_FILE
    if held_out is not None:
        table["held_out"] = _relative(held_out, home)
    table["broker"] = _broker_table(broker, aggregator_users(made.hospitals)[hospital], home)
    table["schedule"] = schedule
    _write(home / "aggregator.toml", table)


def write_agent(cohort: Cohort, broker: Broker, device: str, data: str, more: Table) -> None:
    """Write `agent.toml`, with copies of all that it names, into the device's folder.

    `data` is the path of its data set as the agent sees it; `more` holds
    further fields of its configuration. Its class of data is there or nowhere:
    a plan does not say what a device's records are (SPEC 7.19).
    """
    home = cohort.layout.device_folder(device)
    write_atomic(home / "federation.cbor", cohort.federation)
    user = cohort_user(cohort.name)
    if user in broker.credentials:
        broker = replace(broker, credentials={user: _copy(broker.credentials[user], home)})
    _write(
        home / "agent.toml",
        {
            "federation": "federation.cbor",
            "authority_key": cohort.authority_key.hex(),
            "cohort": cohort.name,
            "ring_keys": KEYS_FOLDER,
            "data": data,
            "device": device,
            "state_dir": "state",
            "broker": _broker_table(broker, user, home),
            **more,
        },
    )


def floors_of(plan: StudyPlan) -> Table:
    """Return floors for a device that wants no less than the study promises."""
    table: dict[str, object] = {"ring": plan.min_ring, "cohort": plan.min_cohort}
    if plan.secure_sum == "plain":
        table["allow_plain_sum"] = True
    if plan.privacy.unit == "none":
        return {**table, "allow_no_privacy": True}
    if plan.privacy.noise == "distributed":
        table["allow_shared_noise"] = True
    return {**table, "epsilon": _record_epsilon(plan), "delta": plan.privacy.delta}


def _record_epsilon(plan: StudyPlan) -> float:
    """Return what the study spends of a record's privacy, which a device's budget is about.

    With unit device a record has a guarantee of its own, weaker than that of exchanging a device's
    records for none (SPEC 7.16). Raises ConfigError where it is beyond what a device may allow.
    """
    claim = plan.privacy
    if claim.unit == "record":
        return claim.epsilon
    spent = epsilon([each.whole for each in budget_allowances(plan.terms)], claim.delta)
    if spent > MAX_EPSILON:
        raise ConfigError(
            f"epsilon {claim.epsilon:g} for a device is {spent:.1f} for a record exchanged for "
            f"another, and no device allows more than {MAX_EPSILON:g}: use a smaller epsilon"
        )
    # One in a thousand above: another processor's last bits must not refuse the plan.
    return min(MAX_EPSILON, math.ceil(spent * 1001) / 1000)


def toml(table: Table) -> bytes:
    """Write a table as TOML: its values, then the tables in it, whatever their order."""
    lines, tables = [], []
    for name, value in table.items():
        if isinstance(value, Mapping):
            tables.append(f"\n[{name}]\n" + toml(value).decode())
        else:
            lines.append(f"{name} = {_toml_value(value)}\n")
    return "".join(lines + tables).encode()


def _broker_table(broker: Broker, user: str, home: Path) -> Table:
    table: dict[str, object] = {
        "url": broker.url,
        "max_payload_bytes": MAX_PAYLOAD_BYTES,
        "reconnect_s": broker.reconnect_s,
    }
    if user in broker.credentials:
        shown = broker.credentials[user]
        table["ca_file"] = _relative(shown.ca_file, home)
        table["certificate_file"] = _relative(shown.certificate_file, home)
        table["key_file"] = _relative(shown.key_file, home)
    return table


def _copy(credentials: Credentials, home: Path) -> Credentials:
    copies = []
    for source in (credentials.ca_file, credentials.certificate_file, credentials.key_file):
        target = home / source.name
        if not target.exists():
            shutil.copy2(source, target)  # keeps mode 0600 of the key
        copies.append(target)
    return Credentials(*copies)


def _relative(target: Path, start: Path) -> str:
    return os.path.relpath(target.absolute(), start.absolute())


def _write(path: Path, table: Table) -> None:
    write_atomic(path, toml(table))


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
