"""Topic names (SPEC 3.1 to 3.3): one function for each name, and one strict parser for all of them.

A topic names the federation, the cohort and the round, never a device. Builders raise
`ConfigError`, because a bad name there is our own configuration; `parse` raises
`RecordError`, because a topic there came from a broker.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from vitalring.errors import ConfigError, RecordError

ROOT = "vr1"
MAX_NUMBER = 2**63 - 1
"""Largest round or bundle number: the largest integer that SQLite holds."""
DIGEST_BYTES = 32

_NAME = re.compile(r"[a-z0-9-]{1,32}", re.ASCII)
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


class Kind(StrEnum):
    """What a topic carries; the value is its fixed part, below the federation."""

    PLAN = "plan"
    UPLINK = "up"
    RECEIPTS = "receipts"
    OBJECT = "object"
    CHECKPOINT = "log/checkpoint"
    ENTRIES = "log/entries"
    PROPOSE = "inner/propose"
    SUM = "inner/sum"
    MODEL = "inner/model"
    HOSPITAL = "inner/of"
    WANT = "inner/want"
    SET = "inner/set"
    SHARE = "share"
    CALL = "call"
    ENROL = "enrol"
    GATEWAY = "inner/gateway"


STEPS = (
    "roster",
    "draft",
    "signature",
    "commitment",
    "nonce",
    "promise",
    "check",
    "part",
    "refusal",
)
"""What a hospital says to the others, one topic each."""
GATEWAY_STEPS = ("held", "half", "sum", "logged")
"""What a gateway that holds shares says to the other one and to aggregators, one topic each."""
STEPS_OF_MEMBERS = ("promise", "check", "part")
"""Steps that are said once for each set of members; the others have attempt 0 alone."""


@dataclass(frozen=True)
class Topic:
    """A parsed topic; fields that its kind does not carry are None."""

    kind: Kind
    federation: str
    cohort: str | None = None
    round_number: int | None = None
    digest: bytes | None = None
    bundle: int | None = None
    hospital: str | None = None
    step: str | None = None
    attempt: int | None = None


def check_name(name: str, what: str) -> str:
    """Return `name` when it may stand in a topic: 1 to 32 of a-z, 0-9 and hyphen (SPEC 3.1).

    Raises:
        ConfigError: otherwise; `what` says which name it is.
    """
    if _NAME.fullmatch(name) is None:
        raise ConfigError(f"{what} {name[:40]!r}: use 1 to 32 characters from a-z, 0-9 and hyphen")
    return name


def plan_topic(federation: str, cohort: str) -> str:
    """Return the retained topic of the cohort's current announcement."""
    return f"{_root(federation)}/plan/{check_name(cohort, 'cohort')}"


def uplink_topic(federation: str, cohort: str, round_number: int) -> str:
    """Return the topic that devices write updates of a round to and cannot read."""
    return _of_round(Kind.UPLINK, federation, cohort, round_number)


def share_topic(federation: str, cohort: str, round_number: int) -> str:
    """Return the topic for halves of updates that the second gateway reads, and no device."""
    return _of_round(Kind.SHARE, federation, cohort, round_number)


def receipts_topic(federation: str, cohort: str, round_number: int) -> str:
    """Return the retained topic of the round's receipts."""
    return _of_round(Kind.RECEIPTS, federation, cohort, round_number)


def call_topic(federation: str, cohort: str) -> str:
    """Return the retained topic of the call for ring keys that is open."""
    return f"{_root(federation)}/call/{check_name(cohort, 'cohort')}"


def enrol_topic(federation: str, cohort: str) -> str:
    """Return the topic that devices write enrolments to and cannot read."""
    return f"{_root(federation)}/enrol/{check_name(cohort, 'cohort')}"


def object_topic(federation: str, digest: bytes) -> str:
    """Return the retained topic of the blob with this SHA-256 digest (32 bytes)."""
    if len(digest) != DIGEST_BYTES:
        raise ConfigError(f"object digest has {len(digest)} bytes: a SHA-256 digest has 32")
    return f"{_root(federation)}/object/{digest.hex()}"


def checkpoint_topic(federation: str) -> str:
    """Return the retained topic of the log's last signed checkpoint."""
    return f"{_root(federation)}/log/checkpoint"


def entries_topic(federation: str, bundle: int) -> str:
    """Return the retained topic of one bundle of log entries."""
    return f"{_root(federation)}/log/entries/{_number(bundle, 'bundle')}"


def propose_topic(federation: str) -> str:
    """Return the retained inner topic from aggregator to gateway for the next round's plan."""
    return f"{_root(federation)}/inner/propose"


def sum_topic(federation: str) -> str:
    """Return the retained inner topic from gateway to aggregator for a closed round's sum."""
    return f"{_root(federation)}/inner/sum"


def model_topic(federation: str) -> str:
    """Return the retained inner topic from aggregator to gateway for the signed model."""
    return f"{_root(federation)}/inner/model"


def hospital_topic(federation: str, hospital: str, step: str, attempt: int = 0) -> str:
    """Return the retained inner topic for what one hospital says to the others in a step.

    `step` is one of `STEPS`; `attempt` is the index of the set of members for the
    `STEPS_OF_MEMBERS`, and 0 for the others.
    """
    if step not in STEPS:
        raise ConfigError(f"step {step[:40]!r}: use one of {', '.join(STEPS)}")
    if attempt and step not in STEPS_OF_MEMBERS:
        raise ConfigError(f"step {step} is said once: use attempt 0, not {attempt}")
    name = check_name(hospital, "hospital")
    return f"{_root(federation)}/inner/of/{name}/{step}/{_number(attempt, 'attempt')}"


def want_topic(federation: str, hospital: str) -> str:
    """Return the inner topic from a hospital to the gateway for requests of updates."""
    return f"{_root(federation)}/inner/want/{check_name(hospital, 'hospital')}"


def set_topic(federation: str, hospital: str) -> str:
    """Return the inner topic from the gateway to a hospital for the updates it asked for."""
    return f"{_root(federation)}/inner/set/{check_name(hospital, 'hospital')}"


def gateway_topic(federation: str, hospital: str, step: str) -> str:
    """Return the retained inner topic for what a hospital's gateway says in one of its steps."""
    if step not in GATEWAY_STEPS:
        raise ConfigError(f"step {step[:40]!r}: use one of {', '.join(GATEWAY_STEPS)}")
    return f"{_root(federation)}/inner/gateway/{check_name(hospital, 'hospital')}/{step}"


def hospital_filter(federation: str, step: str | None = None) -> str:
    """Return a subscription to what all hospitals say, in one step or in all of them."""
    if step is None:
        return f"{_root(federation)}/inner/of/+/+/+"
    if step not in STEPS:
        raise ConfigError(f"step {step[:40]!r}: use one of {', '.join(STEPS)}")
    return f"{_root(federation)}/inner/of/+/{step}/{'+' if step in STEPS_OF_MEMBERS else 0}"


def want_filter(federation: str) -> str:
    """Return the gateway's subscription to the requests of all hospitals."""
    return f"{_root(federation)}/inner/want/+"


def uplink_filter(federation: str, cohort: str | None = None) -> str:
    """Return the gateway's subscription to all rounds of one cohort, or of every cohort."""
    return f"{_root(federation)}/up/{_or_any(cohort)}/+"


def share_filter(federation: str, cohort: str | None = None) -> str:
    """Return the second gateway's subscription to all rounds of one cohort, or of every cohort."""
    return f"{_root(federation)}/share/{_or_any(cohort)}/+"


def receipts_filter(federation: str, cohort: str | None = None) -> str:
    """Return a subscription to the receipts of all rounds."""
    return f"{_root(federation)}/receipts/{_or_any(cohort)}/+"


def parse(topic: str) -> Topic:
    """Read a topic name; the inverse of the builders (SPEC 3.3).

    Raises:
        RecordError: when no builder makes exactly this name.
    """
    match topic.split("/"):
        case [root, federation, ("plan" | "call" | "enrol") as kind, cohort] if root == ROOT:
            parsed = Topic(Kind(kind), federation, cohort=cohort)
        case [root, federation, ("up" | "share" | "receipts") as kind, cohort, number] if (
            root == ROOT
        ):
            parsed = Topic(Kind(kind), federation, cohort, round_number=_read_number(number, topic))
        case [root, federation, "object", digest] if root == ROOT and _DIGEST.fullmatch(digest):
            parsed = Topic(Kind.OBJECT, federation, digest=bytes.fromhex(digest))
        case [root, federation, "log", "checkpoint"] if root == ROOT:
            parsed = Topic(Kind.CHECKPOINT, federation)
        case [root, federation, "log", "entries", number] if root == ROOT:
            parsed = Topic(Kind.ENTRIES, federation, bundle=_read_number(number, topic))
        case [root, federation, "inner", ("propose" | "sum" | "model") as kind] if root == ROOT:
            parsed = Topic(Kind(f"inner/{kind}"), federation)
        case [root, federation, "inner", ("want" | "set") as kind, hospital] if root == ROOT:
            parsed = Topic(Kind(f"inner/{kind}"), federation, hospital=hospital)
        case [root, federation, "inner", "gateway", hospital, step] if root == ROOT:
            if step not in GATEWAY_STEPS:
                raise _unknown(topic)
            parsed = Topic(Kind.GATEWAY, federation, hospital=hospital, step=step)
        case [root, federation, "inner", "of", hospital, step, number] if root == ROOT:
            attempt = _read_attempt(step, number, topic)
            parsed = Topic(Kind.HOSPITAL, federation, hospital=hospital, step=step, attempt=attempt)
        case _:
            raise _unknown(topic)
    names = (parsed.federation, parsed.cohort, parsed.hospital)
    if not all(name is None or _NAME.fullmatch(name) for name in names):
        raise _unknown(topic)
    return parsed


def _root(federation: str) -> str:
    return f"{ROOT}/{check_name(federation, 'federation')}"


def _of_round(kind: Kind, federation: str, cohort: str, round_number: int) -> str:
    name = check_name(cohort, "cohort")
    return f"{_root(federation)}/{kind.value}/{name}/{_number(round_number, 'round')}"


def _or_any(cohort: str | None) -> str:
    return "+" if cohort is None else check_name(cohort, "cohort")


def _number(value: int, what: str) -> str:
    if not 0 <= value <= MAX_NUMBER:
        raise ConfigError(f"{what} {value}: use a number from 0 to {MAX_NUMBER}")
    return str(value)


def _read_number(text: str, topic: str) -> int:
    if _NUMBER.fullmatch(text) is None or int(text) > MAX_NUMBER:
        raise _unknown(topic)
    return int(text)


def _read_attempt(step: str, number: str, topic: str) -> int:
    attempt = _read_number(number, topic)
    if step not in STEPS or (attempt and step not in STEPS_OF_MEMBERS):
        raise _unknown(topic)
    return attempt


def _unknown(topic: str) -> RecordError:
    return RecordError(f"topic {topic[:120]!r} is none of SPEC 3.2; drop the message")
