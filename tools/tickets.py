"""Tickets: what vouches for a device that has no key yet, so that it may draw one (SPEC 13.1)."""

import secrets
from collections.abc import Sequence
from pathlib import Path

from vitalring.errors import ConfigError
from vitalring.files import read_file, write_atomic, write_secret
from vitalring.protocol.cbor import decode
from vitalring.protocol.enrolment import TICKET_BYTES, ticket_hash
from vitalring.protocol.records import Federation
from vitalring.protocol.signing import Signed
from vitalring.tools.federation import Layout

TICKET_FILE = "ticket"
"""File of a device's ticket, in the device's own folder."""
LIST_FILE = "tickets.txt"
"""File of the host for its office: the hashes of tickets with the devices' names."""


def of(layout: Layout, name: str) -> bool:
    """Tell whether a device's folder here has its ticket."""
    return (layout.device_folder(name) / TICKET_FILE).exists()


def draw(layout: Layout, names: Sequence[str]) -> Path:
    """Draw a ticket into the folder of each new device; return the list for the office.

    Raises ConfigError where a device's folder is there already, or the host's is not.
    """
    federation = decode(
        Federation, decode(Signed, read_file(layout.public / "federation.cbor")).payload
    )
    host = layout.folder_of(federation.hospitals[0].name)
    if not host.is_dir():
        raise ConfigError(f"{host} is not there: the host alone makes tickets")
    for name in names:
        if layout.device_folder(name).exists():
            raise ConfigError(f"{layout.device_folder(name)} is there already: take another name")
    lines = []
    for name in names:
        ticket = secrets.token_bytes(TICKET_BYTES)
        write_secret(layout.device_folder(name) / TICKET_FILE, ticket)
        lines.append(f"{name} {ticket_hash(ticket).hex()}\n")
    path = host / LIST_FILE
    before = path.read_text() if path.exists() else ""
    write_atomic(path, (before + "".join(lines)).encode(), 0o600)
    return path
