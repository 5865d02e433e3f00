"""One tree of errors.

A message says what was wrong, with which value, and what to do. `RefusedError`
carries a reason from a closed list, because reasons are counted and published
in every round's report.
"""

from enum import StrEnum


class VitalRingError(Exception):
    """Base of every error that this project raises on purpose."""


class ConfigError(VitalRingError):
    """A configuration file, option or plan cannot be used as it is."""


class DataError(VitalRingError):
    """A data set's file, row or array cannot be used as it is."""


class RecordError(VitalRingError):
    """Bytes are not the one encoding of the record they should be (SPEC 2)."""


class SignatureError(VitalRingError):
    """A signature, a point or a scalar does not verify."""


class CiphertextError(VitalRingError):
    """A ciphertext or a key is not in the one encoding allowed (SPEC 5)."""


class EncodingRangeError(VitalRingError):
    """A value does not fit the field that the plan gave it (SPEC 4)."""


class LogError(VitalRingError):
    """A proof, a tile or a checkpoint of the log does not verify (SPEC 8)."""


class PrivacyError(VitalRingError):
    """A guarantee cannot be given; nothing may leave the device."""


class ModelError(VitalRingError):
    """An architecture or an artefact cannot be built, loaded or run."""


class DivergenceError(ModelError):
    """Training left the numbers that it may use."""


class StorageError(VitalRingError):
    """A state file cannot be read or written; nothing half-done was kept."""


class TransportError(VitalRingError):
    """The broker cannot be reached or refuses us."""


class Reason(StrEnum):
    """Why an update was refused. The order is the order of the checks, cheap ones first."""

    OVERSIZED = "oversized"
    BAD_CHUNK = "bad_chunk"
    BAD_SEAL = "bad_seal"
    MALFORMED = "malformed"
    UNKNOWN_PLAN = "unknown_plan"
    TOO_LATE = "too_late"
    UNKNOWN_RING = "unknown_ring"
    DOUBLE_SIGNED = "double_signed"
    ROUND_FULL = "round_full"
    BAD_CIPHERTEXT = "bad_ciphertext"
    BAD_SIGNATURE = "bad_signature"


class RefusedError(VitalRingError):
    """An update that is not admitted, with the reason that the round's report counts."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
