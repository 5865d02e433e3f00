"""Which ring key is whose: what the enrolment office of a gateway knows, for the next roster."""

from contextlib import closing
from pathlib import Path

from vitalring.database import is_made
from vitalring.errors import ConfigError
from vitalring.files import read_file, write_atomic
from vitalring.gateway import enrolment, store
from vitalring.gateway.config import GatewayConfig
from vitalring.gateway.enrolment import EnrolledKey

__all__ = ["EnrolledKey", "read_barred", "read_enrolments", "read_keys", "write_keys"]


def read_enrolments(config: GatewayConfig) -> tuple[EnrolledKey, ...]:
    """Return all keys that a gateway's office knows, by epoch and name.

    Those that devices drew and sent, and those of the file `enrolled` of gateway.toml. The
    gateway may be at work, or not have run yet. Raises ConfigError or StorageError.
    """
    known = {each.key: each for each in (read_keys(config.enrolled) if config.enrolled else ())}
    if is_made(config.state_dir / store.FILE):
        with closing(store.read_store(config.state_dir)) as db:
            known |= {each.key: each for each in enrolment.enrolled(db)}
    return tuple(sorted(known.values(), key=lambda each: (each.epoch, each.name)))


def read_barred(config: GatewayConfig) -> frozenset[str]:
    """Return the devices from which a gateway's office takes no key (SPEC 13.1).

    None before the gateway has run. Raises ConfigError or StorageError.
    """
    if not is_made(config.state_dir / store.FILE):
        return frozenset()
    with closing(store.read_store(config.state_dir)) as db:
        return enrolment.barred(db, enrolment.standing(db).revoked)


def read_keys(path: Path) -> tuple[EnrolledKey, ...]:
    """Read a file of lines `NAME EPOCH KEY`. Raises ConfigError."""
    try:
        return enrolment.parse_keys(read_file(path).decode())
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error


def write_keys(path: Path, keys: tuple[EnrolledKey, ...]) -> None:
    """Write such a file, for its owner alone; it tells which device has which key."""
    write_atomic(path, enrolment.format_keys(keys).encode(), 0o600)
