"""`vitalring claim`: a device shows one verifier that a counted update was its own (SPEC 6.22)."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from vitalring.config import load_config
from vitalring.edge_agent.config import AgentConfig
from vitalring.errors import ConfigError, VitalRingError
from vitalring.files import write_secret
from vitalring.tools import claims
from vitalring.tools.verify import fingerprint, public_key


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    actions = parser.add_subparsers(dest="action", required=True)

    ask = actions.add_parser("ask", help="verifier: make a request, for one claim")
    ask.add_argument("--out", type=Path, required=True, help="the request, for the device")
    ask.add_argument("--secret", type=Path, help="what stays here; default: OUT.secret")

    prove = actions.add_parser("prove", help="device: claim its update in a round")
    prove.add_argument("--config", type=Path, required=True, help="agent.toml of the device")
    prove.add_argument("--round", type=int, required=True, help="number of the round")
    prove.add_argument("--request", type=Path, required=True, help="what the verifier sent")
    prove.add_argument("--log", type=Path, required=True, help="folder of the study's log")
    prove.add_argument("--out", type=Path, required=True, help="the claim, for the verifier")

    verify = actions.add_parser("verify", help="verifier: check a claim")
    verify.add_argument("claim", type=Path, help="what the device sent")
    verify.add_argument("--request", type=Path, required=True, help="what the device was sent")
    verify.add_argument("--secret", type=Path, help="what stayed here; default: REQUEST.secret")
    verify.add_argument("--log", type=Path, help="folder of the study's log, checked as a whole")
    verify.add_argument(
        "--authority",
        type=public_key,
        metavar="HEX",
        help="the authority's public key, received by another way than claim and folder",
    )


def run(options: argparse.Namespace) -> int:
    """Run the command; `verify` returns 1 where the claim does not hold."""
    if options.action == "ask":
        return _ask(options.out, options.secret or _beside(options.out))
    if options.action == "prove":
        return _prove(options)
    return _verify(options)


def _ask(out: Path, secret: Path) -> int:
    data = claims.ask(out, secret)
    print(f"{out}: send it to the device; fingerprint {fingerprint(data)}, to be read out")
    print(f"{secret}: keep it here, from everybody; whoever has it can make such claims")
    return 0


def _prove(options: argparse.Namespace) -> int:
    if options.out.exists():
        raise ConfigError(f"{options.out} exists already and is not overwritten; move it away")
    config = load_config(AgentConfig, options.config)
    made = claims.prove(config, options.round, options.request, options.log)
    write_secret(options.out, made.data)
    print(f"{options.out}: shows that the update of round {made.round} was this device's, to the")
    print(f"  maker of the request with fingerprint {fingerprint(made.request)}")
    print("  and to nobody else. Compare the fingerprint with that maker before you send it.")
    print(f"  The {made.ring - 1} others of the ring then have one device fewer to hide among.")
    return 0


def _verify(options: argparse.Namespace) -> int:
    secret = options.secret or _beside(options.request)
    if options.log is None and options.authority is None:
        raise ConfigError("give the log's folder or the authority's key, or both")
    try:
        shown = claims.verify(
            options.claim, options.request, secret, options.log, options.authority
        )
    except ConfigError:
        raise
    except VitalRingError as error:
        # What strangers' files say reaches a terminal: no control characters of their making.
        text = " ".join(str(error).split())
        clean = "".join(char if char.isprintable() else "?" for char in text)
        print(f"not shown: {clean}", file=sys.stderr)
        return 1
    print("\n".join(_summary(shown, key_given=options.authority is not None)))
    return 0


def _summary(shown: claims.Shown, *, key_given: bool) -> Iterator[str]:
    claim, counted = shown.claim, shown.counted
    study, plan = counted.study, counted.plan
    yield f"The holder of ring key {claim.key.hex()} made this update."
    yield f"  authority    fingerprint {fingerprint(study.federation.authority_key)}"
    yield f"  study        {study.plan.study} in federation {study.federation.name}"
    yield f"  round        {plan.round} of cohort {plan.cohort}, epoch {plan.epoch}"
    yield f"  update       {counted.update.digest.hex()}"
    yield (
        f"  log          entry {claim.evidence.index} of {counted.checkpoint.size}, "
        f"root {counted.checkpoint.root.hex()}"
    )
    yield f"  ring         {len(counted.ring)} keys"
    if shown.verdict is not None:
        number = plan.round - 1
        yield f"  outcome      {shown.verdict.rounds[number].status}"
    if not key_given:
        yield (
            "  note         the authority's key was taken from the folder itself: compare its "
            "fingerprint with one that you received by another way"
        )
    if shown.verdict is None:
        yield "  note         the log as a whole was not checked: give --log for that"
    yield "  note         this is shown to you alone; you could have made it yourself"


def _beside(request: Path) -> Path:
    return request.with_name(f"{request.name}.secret")
