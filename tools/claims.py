"""Claims over files: what a verifier asks, a device answers and the verifier checks (SPEC 6.22).

Rules kept here: a device's answer rests on a log folder that it checked itself as far as the
answer goes; a verifier believes no request but one whose secret lies before it.
"""

import secrets
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from vitalring.database import is_made, open_read_only
from vitalring.edge_agent import state
from vitalring.edge_agent.config import AgentConfig
from vitalring.edge_agent.keyring import Keyring
from vitalring.errors import ConfigError, LogError
from vitalring.files import read_secret, write_atomic, write_secret
from vitalring.protocol import claim_records, group, lsag, merkle, trust
from vitalring.protocol.cbor import digest, encode
from vitalring.protocol.checkpoint import MAX_NOTE_BYTES, Checkpoint
from vitalring.protocol.claim_records import Claim, Counted, Evidence
from vitalring.protocol.update import round_context
from vitalring.tools.log_checks import follow_rosters
from vitalring.tools.log_folder import LogFolder, history
from vitalring.tools.verify import Verdict, verify_log

_NONCE_BYTES = 32


@dataclass(frozen=True)
class Made:
    """A claim that a device made, the request it answers, and the round that it is about."""

    data: bytes
    request: bytes
    round: int
    ring: int
    """Number of keys in the ring."""


@dataclass(frozen=True)
class Shown:
    """What a claim shows its verifier. `verdict` is the log folder's, where there was one."""

    claim: Claim
    counted: Counted
    verdict: Verdict | None


def ask(out: Path, secret: Path) -> bytes:
    """Write a fresh request and its secret; return the request's bytes.

    Raises ConfigError where the secret's file exists, StorageError.
    """
    pair = lsag.keygen()
    data = claim_records.request(pair, secrets.token_bytes(_NONCE_BYTES))
    write_secret(secret, pair.secret)
    write_atomic(out, data)
    return data


def prove(config: AgentConfig, number: int, request: Path, log: Path) -> Made:
    """Return the device's claim of its update in round `number` of the log in a folder.

    Raises ConfigError where the device has no key of that epoch, LogError where the log does
    not hold the update or is not sound, RecordError or SignatureError.
    """
    # 1. Somebody can make what we are asked for, so that it will convince nobody else.
    question = _read(request, claim_records.ClaimRequest.MAX_BYTES)
    asked = claim_records.open_request(question)
    # 2. The update is in a log of our authority's federation, its epoch's key is still here,
    #    and it is ours.
    authority = bytes.fromhex(config.authority_key)
    evidence, own = find_update(log_of(log), authority, Keyring(config.ring_keys).require, number)
    # 3. That log goes on from the one that this device knows.
    _require_known(log_of(log), authority, config.state_dir)
    data = claim_records.claim(asked, own, evidence, authority)
    # 4. It is what its verifier will take.
    _, counted = claim_records.open_claim(data, asked, authority)
    return Made(data, question, counted.plan.round, len(counted.ring))


def verify(
    claim: Path, request: Path, secret: Path, log: Path | None, authority: bytes | None
) -> Shown:
    """Check a claim that answers one's own request; `log` or `authority` is given, or both.

    Raises ConfigError where the request is not one's own, else what was wrong with claim or log.
    """
    # 1. The request is our own: with another's, a claim would say nothing.
    asked = claim_records.open_request(_read(request, claim_records.ClaimRequest.MAX_BYTES))
    if lsag.KeyPair.of(read_secret(secret, group.SCALAR_BYTES)).public != asked.key:
        raise ConfigError(
            f"{secret} is not the secret of {request}: a claim for another's request could be "
            "of that other's making"
        )
    # 2. The log at hand is sound.
    verdict = None
    if log is not None:
        verdict = verify_log(log_of(log), authority)
        authority = verdict.authority_key
    if authority is None:
        raise ConfigError("give the log's folder or the authority's key, or both")
    # 3. The claim is sound.
    data = _read(claim, Claim.MAX_BYTES)
    opened, counted = claim_records.open_claim(data, asked, authority)
    # 4. Both are the same log.
    if log is not None:
        checkpoint, leaves = _leaves(log_of(log), authority)
        claim_records.require_prefix(counted.checkpoint, leaves, checkpoint)
    return Shown(opened, counted, verdict)


def find_update(
    folder: Path, authority: bytes, key_of: Callable[[int], lsag.KeyPair], number: int
) -> tuple[Evidence, lsag.KeyPair]:
    """Return what shows the update of a device in a round of the log in `folder`, and its key.

    `key_of` returns the device's ring key of an epoch, or raises ConfigError. Raises
    ConfigError where that is not in the roster, LogError where the log does not hold such an
    update, or is at fault.
    """
    # 1. A log of the authority's federation, with its tiles.
    files = LogFolder(folder)
    federation = files.federation(authority)
    checkpoint = files.checkpoint(federation)
    entries = files.entries(checkpoint)
    study_entries, rounds = history(entries)
    # 2. The key is in the roster that counted in the round.
    if not 1 <= number <= len(rounds):
        raise LogError(f"the log has {len(rounds)} rounds; round {number} is none of them")
    named, study_plan, roster, sum_key = (files.record(entry) for entry in study_entries)
    study = trust.open_study(federation, study_plan, roster, sum_key)
    for earlier in rounds[:number]:
        study = follow_rosters(files, study, earlier)
        roster = files.record(earlier.rosters[-1]) if earlier.rosters else roster
    keys = key_of(study.roster.epoch)
    if keys.public not in study.roster.keys:
        raise ConfigError(
            f"this device's ring key {keys.public.hex()} is not in the log's roster, of cohort "
            f"{study.roster.cohort} and epoch {study.roster.epoch}, that counted in round "
            f"{number}: the device was not enrolled; nothing can be claimed"
        )
    # 3. The round has an update with the key's tag.
    logged = rounds[number - 1]
    signed_plan = files.record(logged.plan)
    plan = trust.open_round_plan(signed_plan, study)
    if digest(signed_plan) != logged.plan.value.digest:
        raise logged.plan.fault(f"is not what stands in {logged.plan.object_path}")
    tag = lsag.tag_of(keys.secret, round_context(plan))
    found = [entry for entry, u in logged.updates if u.signature[: group.POINT_BYTES] == tag]
    if not found:
        raise LogError(
            f"round {number} of the log holds no update of this device: it took no part, its "
            "update was not counted, or the round is not over"
        )
    # 4. The log holds it at its place.
    leaves = [merkle.leaf_hash(encode(entry.value)) for entry in entries]
    evidence = Evidence(
        federation=named,
        study_plan=study_plan,
        roster=roster,
        sum_key=sum_key,
        round_plan=signed_plan,
        checkpoint=files.read("checkpoint", MAX_NOTE_BYTES, "every log folder holds one"),
        entry=encode(found[0].value),
        index=found[0].position,
        inclusion=tuple(merkle.inclusion_proof(leaves, found[0].position)),
    )
    return evidence, keys


def log_of(folder: Path) -> Path:
    """Return the log's folder, given it or the output folder of a simulation."""
    return folder / "log" if (folder / "log").is_dir() else folder


def _leaves(folder: Path, authority: bytes) -> tuple[Checkpoint, list[bytes]]:
    """Return a log's checkpoint and the hashes of its entries."""
    files = LogFolder(folder)
    checkpoint = files.checkpoint(files.federation(authority))
    return checkpoint, [merkle.leaf_hash(encode(e.value)) for e in files.entries(checkpoint)]


def _require_known(folder: Path, authority: bytes, state_dir: Path) -> None:
    """Refuse a log that is not the one this device follows, where both can be compared."""
    path = state_dir / "agent.sqlite"
    if not is_made(path):
        return
    with closing(open_read_only(path)) as db:
        known = state.known_checkpoint(db)
    checkpoint, leaves = _leaves(folder, authority)
    # A second gateway's log has another name, and an older export is no less true.
    if known and known.origin == checkpoint.origin and known.size <= checkpoint.size:
        claim_records.require_prefix(known, leaves, checkpoint)


def _read(path: Path, most: int) -> bytes:
    """Read a stranger's file of bounded size. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
