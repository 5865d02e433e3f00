"""The keys that a hospital makes for itself, and the card by which others know it."""

import secrets
from dataclasses import dataclass, field
from pathlib import Path

from nacl.public import PrivateKey

from vitalring.files import write_secret
from vitalring.protocol import signing
from vitalring.protocol.records import Hospital
from vitalring.protocol.sealing import new_secret


@dataclass(frozen=True)
class HospitalKeys:
    """One hospital's secrets; only their public halves leave it."""

    name: str
    identity: bytes = field(repr=False)
    log: bytes = field(repr=False)
    aggregator: bytes = field(repr=False)
    sealing: PrivateKey = field(repr=False)

    @property
    def card(self) -> Hospital:
        """Return what the federation says of this hospital."""
        return Hospital(
            name=self.name,
            identity_key=signing.public_key(self.identity),
            log_key=signing.public_key(self.log),
            sealing_key=bytes(self.sealing.public_key),
            aggregator_key=signing.public_key(self.aggregator),
        )

    def write(self, folder: Path) -> None:
        """Write each secret to a file of its own. Raises ConfigError where one is there."""
        write_secret(folder / "identity.seed", self.identity)
        write_secret(folder / "log.seed", self.log)
        write_secret(folder / "aggregator.seed", self.aggregator)
        write_secret(folder / "sealing.key", bytes(self.sealing))


def new_hospital(name: str) -> HospitalKeys:
    """Draw a hospital's keys."""
    identity, log, aggregator = (secrets.token_bytes(32) for _ in range(3))
    return HospitalKeys(name, identity, log, aggregator, new_secret())
