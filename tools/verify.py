"""`vitalring verify`: check a study's log from outside, from its public files alone (SPEC 8.16).

Rules kept here: nothing is believed because a party says so, only because a signature, a
digest or a recomputation bears it out; the first fault ends the check and is named with its
file; every file of the folder is accounted for, so none can be changed unseen.
"""

import argparse
import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vitalring.edge_agent import accountant
from vitalring.errors import LogError, VitalRingError
from vitalring.protocol import trust
from vitalring.protocol.checkpoint import Checkpoint
from vitalring.protocol.privacy import follows_quantile
from vitalring.protocol.records import Federation, StudyPlan
from vitalring.protocol.trust import FEATURES_FILE
from vitalring.tools import log_shares
from vitalring.tools.log_checks import (
    RoundVerdict,
    check_round,
    follow_rosters,
    open_logged_study,
)
from vitalring.tools.log_folder import LogFolder, blame, file_digest, history
from vitalring.tools.plan_text import clip_line, schedule_in_words

SECOND_LOG = "-2"
"""What follows `log` in the name of the folder of a second gateway's log."""


@dataclass(frozen=True)
class RosterVerdict:
    """A roster of the log, and the first round that it counted in."""

    epoch: int
    serial: int
    devices: int
    digest: bytes
    first_round: int


@dataclass(frozen=True)
class Verdict:
    """What a sound log proves. `findings` are true and worth knowing, but no faults.

    `final_weights` is the SHA-256 of the newest model's weights. `epsilon` is what the whole
    study spends by its own numbers, at most what its plan claims.
    """

    federation: str
    plan: StudyPlan
    authority_key: bytes
    size: int
    root: bytes
    rosters: tuple[RosterVerdict, ...]
    rounds: tuple[RoundVerdict, ...]
    updates: int
    final_weights: bytes | None
    epsilon: float
    findings: tuple[str, ...]
    hospital: int = 0
    """Whose log this is, where two gateways have one each."""


@dataclass(frozen=True)
class SoundLog:
    """A log whose records are signed and fit one another; its claims are yet to be recomputed."""

    federation: Federation
    study: trust.Study
    plan_path: str
    checkpoint: Checkpoint
    rosters: tuple[RosterVerdict, ...]
    rounds: tuple[RoundVerdict, ...]
    hospital: int


def read_log(folder: Path, authority_key: bytes | None) -> SoundLog:
    """Check the records in `folder`; without `authority_key` believe the one in the folder.

    Raises LogError, whose message begins with the path of the file at fault.
    """
    # 1. Plain files alone. Whether each belongs shows in step 9.
    files = LogFolder(folder)
    # 2. Objects hash to their names.
    files.check_objects()
    # 3. The authority says who the hospitals are.
    federation = files.federation(authority_key)
    # 4. A log of this federation signed the checkpoint.
    checkpoint = files.checkpoint(federation)
    # 5. The tiles are those of the checkpoint.
    entries = files.entries(checkpoint)
    # 6. The entries stand in an order that the protocol allows.
    study_entries, rounds = history(entries)
    # 7. The study's records are signed and fit one another.
    study, weights = open_logged_study(files, study_entries, federation)
    hospital = log_shares.whose_log(checkpoint.origin, study)
    # 8. Each round keeps to the study and follows from the one before.
    verdicts: list[RoundVerdict] = []
    rosters = [_roster(study, 1)]
    for number, logged in enumerate(rounds, 1):
        if verdicts and verdicts[-1].final:
            raise logged.plan.fault("follows on the model that was called final")
        study = follow_rosters(files, study, logged)
        if logged.rosters:
            rosters.append(_roster(study, number))
        factor = verdicts[-1].next_factor if verdicts else 1.0
        verdicts.append(check_round(files, study, number, logged, weights, hospital, factor))
        weights = verdicts[-1].weights or weights
    # 9. No file is left over.
    files.require_all_asked()
    return SoundLog(
        federation,
        study,
        study_entries[1].object_path,
        checkpoint,
        tuple(rosters),
        tuple(verdicts),
        hospital,
    )


def verify_log(folder: Path, authority_key: bytes | None) -> Verdict:
    """Check the log in `folder`, and that its study spends no more privacy than it claims.

    Without `authority_key` the one in the folder is believed. Raises LogError as `read_log`.
    """
    log = read_log(folder, authority_key)
    plan, verdicts = log.study.plan, log.rounds
    with blame(log.plan_path):
        epsilon = accountant.check_claim(plan.terms, accountant.epsilon)
    return Verdict(
        federation=log.federation.name,
        plan=plan,
        authority_key=log.federation.authority_key,
        size=log.checkpoint.size,
        root=log.checkpoint.root,
        rosters=log.rosters,
        rounds=verdicts,
        updates=sum(verdict.admitted for verdict in verdicts),
        final_weights=next((v.weights for v in reversed(verdicts) if v.weights), None),
        epsilon=epsilon,
        findings=tuple(_findings(plan, verdicts, key_from_folder=authority_key is None)),
        hospital=log.hospital,
    )


def verify_folder(folder: Path, authority_key: bytes | None) -> Verdict:
    """Check a log's folder, or a run's output folder with its `log/` and `weights.bin`.

    Raises LogError as `verify_log` does.
    """
    if not (folder / "log").is_dir():
        return verify_log(folder, authority_key)
    try:
        verdict = verify_log(folder / "log", authority_key)
    except LogError as error:
        raise LogError(f"log/{error}") from error
    verdict = _with_second_log(folder, "log", verdict, authority_key)
    _check_statistics(folder, authority_key)
    weights = folder / "weights.bin"
    if weights.is_file() and file_digest(weights, weights.name) != verdict.final_weights:
        raise LogError("weights.bin: these are not the weights of the log's newest model")
    if not weights.is_file():
        finding = "there is no weights.bin here to hold against the log's newest model"
        verdict = replace(verdict, findings=(*verdict.findings, finding))
    return verdict


def _with_second_log(
    folder: Path, beside: str, first: Verdict, authority_key: bytes | None
) -> Verdict:
    """Check a second gateway's log, if there is one, and that both tell of the same rounds."""
    name = f"{beside}{SECOND_LOG}"
    if not (folder / name).is_dir():
        return first
    try:
        second = verify_log(folder / name, authority_key)
    except LogError as error:
        raise LogError(f"{name}/{error}") from error
    if first.hospital == second.hospital or first.authority_key != second.authority_key:
        raise LogError(f"{name}/checkpoint: not the log of this study's other gateway")
    for ours, theirs in zip(first.rosters, second.rosters, strict=False):
        if ours != theirs:
            raise LogError(
                f"{name}/checkpoint: another roster counts from round {theirs.first_round} on "
                f"than in {beside}/"
            )
    for one, other in zip(first.rounds, second.rounds, strict=False):
        if one.weights and other.weights and one != other:
            raise LogError(
                f"{name}/checkpoint: round {one.number} is another one than in {beside}/"
            )
    finding = f"the second gateway's log, root {second.root.hex()}, tells of the same rounds"
    return replace(first, findings=(*first.findings, finding))


def _check_statistics(folder: Path, authority_key: bytes | None) -> None:
    """Check the log of the study that agreed on features, where the run had one."""
    if not (folder / "statistics").is_dir():
        return
    try:
        verdict = verify_log(folder / "statistics", authority_key)
    except LogError as error:
        raise LogError(f"statistics/{error}") from error
    _with_second_log(folder, "statistics", verdict, authority_key)
    path = folder / FEATURES_FILE
    if file_digest(path, path.name) != verdict.final_weights:
        raise LogError(f"{path.name}: these are not the features that the sites agreed on")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vitalring verify`."""
    parser.add_argument(
        "folder",
        type=Path,
        metavar="FOLDER",
        help="a log's folder, or the output folder of a simulation",
    )
    parser.add_argument(
        "--authority",
        type=public_key,
        metavar="HEX",
        help="the authority's public key, received by another way than the folder",
    )


def run(args: argparse.Namespace) -> int:
    """Print what the log proves and return 0, or its first fault in one line and return 1."""
    try:
        verdict = verify_folder(args.folder, args.authority)
    except VitalRingError as error:
        # What a folder says reaches a terminal: no control characters of its making.
        text = " ".join(str(error).split())
        shown = "".join(char if char.isprintable() else "?" for char in text)
        print(f"not sound: {shown}", file=sys.stderr)
        return 1
    print("\n".join(_summary(verdict)))
    return 0


def _roster(study: trust.Study, first_round: int) -> RosterVerdict:
    roster = study.roster
    name = study.roster_digest
    return RosterVerdict(roster.epoch, roster.serial, len(roster.keys), name, first_round)


def fingerprint(key: bytes) -> str:
    """Return 80 bits of a key's SHA-256, in groups that can be read out over a telephone."""
    text = hashlib.sha256(key).hexdigest()[:20]
    return " ".join(text[at : at + 4] for at in range(0, len(text), 4))


def _findings(
    plan: StudyPlan, rounds: Sequence[RoundVerdict], *, key_from_folder: bool
) -> Iterator[str]:
    if key_from_folder:
        yield (
            "the authority's key was taken from the folder itself: compare its fingerprint "
            "with one that you received by another way"
        )
    if plan.secure_sum == "plain":
        yield "updates were added in clear: the gateway could read each of them"
    if plan.privacy.unit == "none":
        yield "the study claims no differential privacy"
    for verdict in rounds:
        if verdict.status == "below_min_cohort":
            yield f"round {verdict.number} had too few updates; nothing was decrypted"
    if rounds and rounds[-1].weights is None:
        yield f"round {rounds[-1].number} is not finished: it has no model yet"


def _summary(verdict: Verdict) -> Iterator[str]:
    plan, privacy = verdict.plan, verdict.plan.privacy
    yield f"The log of study {plan.study} in federation {verdict.federation} is sound."
    yield f"  authority    fingerprint {fingerprint(verdict.authority_key)}"
    yield f"  log          {verdict.size} entries, root {verdict.root.hex()}"
    yield f"  rounds       {len(verdict.rounds)} with {verdict.updates} updates, each counted once"
    for roster in verdict.rosters:
        yield (
            f"  roster       {roster.serial} of epoch {roster.epoch}, {roster.devices} devices, "
            f"from round {roster.first_round} on: {roster.digest.hex()}"
        )
    weights = verdict.final_weights
    yield f"  final model  {f'weights {weights.hex()}' if weights else 'none yet'}"
    if plan.data_class:
        yield f"  data         {plan.data_class}"
    claim = "none"
    if privacy.unit != "none":
        claim = (
            f"unit {privacy.unit}, noise {privacy.noise}: epsilon {privacy.epsilon:g} at delta "
            f"{privacy.delta:g} claimed, {verdict.epsilon:.4f} recomputed"
        )
        if privacy.schedule:
            claim += f", noise times {schedule_in_words(plan.terms)}"
        if privacy.noise == "distributed":
            claim += f", with {privacy.colluders} colluders in a sum of the fewest devices"
    yield f"  privacy      {claim}"
    if follows_quantile(privacy):
        yield f"  clip         {clip_line(plan)}"
    for finding in verdict.findings:
        yield f"  note         {finding}"


def public_key(text: str) -> bytes:
    """Read a public key from the command line."""
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise argparse.ArgumentTypeError("a public key is 64 hexadecimal digits, small letters")
    return bytes.fromhex(text)
