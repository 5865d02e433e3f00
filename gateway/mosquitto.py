"""A Mosquitto 2 configuration for one gateway (SPEC 3.10, 3.11).

Everyone shows a certificate of the hospital's authority; its common name is the user name
that the access list speaks of. Devices write updates that only the gateway reads, and read
what the gateway publishes. The files are derived from their arguments, so writing them again
replaces them; certificates are only added (`gateway.certificates`).
"""

import datetime
import ipaddress
import os
import pwd
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitalring.errors import ConfigError
from vitalring.files import write_atomic
from vitalring.gateway.certificates import AUTHORITY, SERVER, CredentialFiles, provision
from vitalring.protocol.topics import ROOT, check_name

GATEWAY = "gateway"
AGGREGATOR = "aggregator"
_PACKET_OVERHEAD_BYTES = 1024
_SEVERAL = 2


def cohort_user(cohort: str) -> str:
    """Return the user name that all devices of a cohort share."""
    return f"cohort-{check_name(cohort, 'cohort')}"


def aggregator_users(hospitals: Sequence[str]) -> dict[str, str]:
    """Return the user names of aggregators, by hospital: one each where there are several.

    A federation of one hospital has the user `AGGREGATOR`. Raises ConfigError.
    """
    if len(set(hospitals)) != len(hospitals):
        raise ConfigError(f"a hospital is named twice: {', '.join(hospitals)}")
    if len(hospitals) < _SEVERAL:
        return dict.fromkeys(hospitals, AGGREGATOR)
    return {name: f"{AGGREGATOR}-{check_name(name, 'hospital')}" for name in hospitals}


def second_gateway_user(hospital: str) -> str:
    """Return the user name of another hospital's gateway, which holds shares of updates."""
    return f"{GATEWAY}-{check_name(hospital, 'hospital')}"


@dataclass(frozen=True)
class BrokerLimits:
    """What the broker takes on; every figure is enforced by Mosquitto itself.

    `max_payload_bytes` is the largest payload, `max_queued_*` what waits for a gateway that
    is away (beyond it Mosquitto drops, and devices submit again), `max_inflight_messages`
    what one receiver has unacknowledged, `memory_bytes` the whole heap, `save_interval_s`
    how much a kill of the broker may lose.
    """

    max_payload_bytes: int = 2**20
    max_connections: int = 2_000
    max_queued_messages: int = 20_000
    max_queued_bytes: int = 512 * 2**20
    max_inflight_messages: int = 1_000
    memory_bytes: int = 2 * 2**30
    max_keepalive_s: int = 3_600
    session_expiry_days: int = 14
    save_interval_s: int = 10

    def __post_init__(self) -> None:
        """Refuse figures that Mosquitto takes for "no limit" or not at all. Raises ConfigError."""
        for name, high in (
            ("max_payload_bytes", 200_000_000),
            ("max_connections", 1_000_000),
            ("max_queued_messages", 10_000_000),
            ("max_queued_bytes", 2**40),
            ("max_inflight_messages", 65_535),
            ("memory_bytes", 2**40),
            ("max_keepalive_s", 65_535),
            ("session_expiry_days", 3_650),
            ("save_interval_s", 86_400),
        ):
            if not 1 <= getattr(self, name) <= high:
                raise ConfigError(f"{name} is {getattr(self, name)}: use 1 to {high}")
        if self.max_keepalive_s < 10:
            raise ConfigError(f"max_keepalive_s is {self.max_keepalive_s}: Mosquitto wants 10")
        if self.memory_bytes <= self.max_queued_bytes:
            raise ConfigError("memory_bytes must be above max_queued_bytes")


@dataclass(frozen=True)
class BrokerFiles:
    """What `write` wrote; start the broker with `mosquitto -c CONFIGURATION`."""

    configuration: Path
    access_list: Path
    ca_file: Path
    credentials: dict[str, CredentialFiles]
    """Client credentials by user name: gateway, `aggregator_users`, each `cohort_user`."""


def access_list(
    federation: str,
    cohorts: Sequence[str],
    hospitals: Sequence[str] = (),
    second_gateway: str = "",
) -> str:
    """Return Mosquitto's access control list.

    What is not listed is denied, `$SYS` too. A cohort cannot read any uplink, not even its
    own, and no cohort can write another's. Of several `hospitals` each writes under its own
    name alone what it says to the others and asks of the gateway. `second_gateway` is the
    hospital whose gateway reads what devices share with it, and no other uplink.
    """
    root = f"{ROOT}/{check_name(federation, 'federation')}"
    lines = [
        f"user {GATEWAY}",
        # To write there is only for clearing what somebody left retained.
        f"topic readwrite {root}/up/#",
        f"topic readwrite {root}/enrol/#",
        f"topic readwrite {root}/call/+",
        f"topic readwrite {root}/plan/+",
        f"topic readwrite {root}/receipts/#",
        f"topic readwrite {root}/object/+",
        f"topic readwrite {root}/log/#",
        f"topic readwrite {root}/inner/#",
    ]
    users = aggregator_users(hospitals)
    for user in dict.fromkeys(users.values()) or (AGGREGATOR,):
        lines += [
            "",
            f"user {user}",
            f"topic write {root}/inner/propose",
            f"topic write {root}/inner/model",
            f"topic readwrite {root}/object/+",
            f"topic read {root}/inner/#",
            f"topic read {root}/plan/+",
            f"topic read {root}/receipts/#",
            f"topic read {root}/log/#",
        ]
        for hospital in [name for name in hospitals if users[name] == user != AGGREGATOR]:
            lines += [
                f"topic write {root}/inner/of/{hospital}/#",
                f"topic write {root}/inner/want/{hospital}",
            ]
    if second_gateway:
        lines += [
            "",
            f"user {second_gateway_user(second_gateway)}",
            f"topic readwrite {root}/share/#",
            f"topic read {root}/inner/propose",
            f"topic read {root}/inner/model",
            f"topic readwrite {root}/object/+",
            f"topic readwrite {root}/inner/gateway/{second_gateway}/+",
            f"topic read {root}/inner/gateway/+/held",
            f"topic read {root}/inner/gateway/+/half",
        ]
    for cohort in cohorts:
        lines += [
            "",
            f"user {cohort_user(cohort)}",
            f"topic write {root}/up/{cohort}/+",
            *([f"topic write {root}/share/{cohort}/+"] if second_gateway else []),
            f"topic write {root}/enrol/{cohort}",
            f"topic read {root}/call/{cohort}",
            f"topic read {root}/plan/{cohort}",
            f"topic read {root}/receipts/{cohort}/+",
            f"topic read {root}/object/+",
            f"topic read {root}/log/#",
        ]
    return "\n".join(lines) + "\n"


def configuration(
    folder: Path, bind: str, port: int, limits: BrokerLimits, system_user: str
) -> str:
    """Return mosquitto.conf for the absolute `folder`.

    `bind` is an IP address of this machine, "0.0.0.0" or "::" for all. A broker started by
    root becomes `system_user`, who must be able to read the keys.

    Raises:
        ConfigError: for a relative folder, or an address or port that cannot be bound.
    """
    if not folder.is_absolute() or "\n" in str(folder):
        raise ConfigError(f"folder {folder} must be an absolute path on one line")
    if not 1 <= port <= 65_535:
        raise ConfigError(f"port {port}: use 1 to 65535")
    try:
        address = ipaddress.ip_address(bind)
    except ValueError:
        raise ConfigError(f"bind address {bind!r} is not an IP address") from None
    if not system_user or system_user.split() != [system_user]:
        raise ConfigError(f"system user {system_user!r} is not one word")
    return f"""\
# Written by `vitalring gateway init`, which replaces it; own settings belong into local.d/.
user {system_user}
per_listener_settings false
allow_anonymous false
acl_file {folder}/acl
pid_file {folder}/mosquitto.pid

# Client ids and addresses of devices stay out of the log.
connection_messages false
log_dest stderr
log_type error
log_type warning
log_type notice
sys_interval 0

# A killed broker forgets at most the last {limits.save_interval_s} seconds; devices that see no
# receipt submit again, and the gateway publishes its retained messages again.
persistence true
persistence_location {folder}/data/
autosave_interval {limits.save_interval_s}
persistent_client_expiration {limits.session_expiry_days}d

max_packet_size {limits.max_payload_bytes + _PACKET_OVERHEAD_BYTES}
max_queued_messages {limits.max_queued_messages}
max_queued_bytes {limits.max_queued_bytes}
max_inflight_messages {limits.max_inflight_messages}
max_keepalive {limits.max_keepalive_s}
memory_limit {limits.memory_bytes}
queue_qos0_messages false
set_tcp_nodelay true

listener {port} {address}
max_connections {limits.max_connections}
max_qos 1
max_topic_alias 0
allow_zero_length_clientid false
tls_version tlsv1.2
cafile {folder}/tls/{AUTHORITY}.pem
certfile {folder}/tls/{SERVER}.pem
keyfile {folder}/tls/{SERVER}.key
require_certificate true
use_identity_as_username true

include_dir {folder}/local.d
"""


def _system_user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return "mosquitto"  # Without a name we are not root, and Mosquitto ignores the option.


def write(
    folder: Path,
    federation: str,
    cohorts: Sequence[str],
    hosts: Sequence[str],
    *,
    hospitals: Sequence[str] = (),
    second_gateway: str = "",
    port: int,
    now: datetime.datetime,
    bind: str = "0.0.0.0",  # noqa: S104
    limits: BrokerLimits | None = None,
    certificate_days: int = 825,
) -> BrokerFiles:
    """Write configuration, access list and missing certificates below `folder`.

    `hosts` are the names and addresses under which devices reach the broker, `hospitals` the
    names of a federation of several, `second_gateway` one of them whose gateway holds shares
    of updates (SPEC 10.6). `now` is an aware UTC time. Running again with another
    cohort adds its credential and changes no other.

    Raises:
        ConfigError: for a value that cannot be used, or existing files that do not fit.
        StorageError: when a file cannot be written.
    """
    folder = folder.resolve()
    acl = access_list(federation, cohorts, hospitals, second_gateway)
    text = configuration(folder, bind, port, limits or BrokerLimits(), _system_user())
    aggregators = dict.fromkeys(aggregator_users(hospitals).values()) or (AGGREGATOR,)
    second = [second_gateway_user(second_gateway)] if second_gateway else []
    users = [GATEWAY, *second, *aggregators, *(cohort_user(cohort) for cohort in cohorts)]
    name = f"VitalRing {federation}"
    tls = folder / "tls"
    credentials = provision(tls, name, hosts, users, now, certificate_days)
    for path in (folder / "data", folder / "local.d"):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(folder / "acl", acl.encode())
    (folder / "acl").chmod(0o600)  # Mosquitto warns of access lists that others can read
    write_atomic(folder / "mosquitto.conf", text.encode())
    return BrokerFiles(
        configuration=folder / "mosquitto.conf",
        access_list=folder / "acl",
        ca_file=credentials[AUTHORITY].certificate_file,
        credentials={user: credentials[user] for user in users},
    )
