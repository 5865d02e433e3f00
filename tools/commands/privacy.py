"""`vitalring privacy`: what a device spent, and whether studies keep what they claim."""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vitalring.config import load_config
from vitalring.edge_agent.accountant import epsilon
from vitalring.edge_agent.config import AgentConfig
from vitalring.edge_agent.spending import Spending, StudySpending, spending
from vitalring.errors import PrivacyError, VitalRingError
from vitalring.tools.privacy_audit import Audit, audit_log, together
from vitalring.tools.privacy_text import audit_lines, spending_lines, together_line
from vitalring.tools.verify import public_key

_DAMAGED = "nothing is allowed: no round is trained and nothing is sent"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    actions = parser.add_subparsers(dest="action", required=True)

    report = actions.add_parser("report", help="device: what was spent, on what, what is left")
    report.add_argument("--config", type=Path, required=True, help="agent.toml of the device")
    report.add_argument("--json", action="store_true", help="for machines")

    audit = actions.add_parser(
        "audit", help="hospital: what studies claim and spend, recomputed from their logs alone"
    )
    audit.add_argument(
        "logs", type=Path, nargs="+", metavar="LOG", help="a log's folder, or a run's output folder"
    )
    audit.add_argument(
        "--authority",
        type=public_key,
        metavar="HEX",
        help="the authority's public key, received by another way than the folder",
    )
    audit.add_argument(
        "--delta", type=float, default=1e-5, help="for several logs together; default 1e-5"
    )
    audit.add_argument("--json", action="store_true", help="for machines")


def run(options: argparse.Namespace) -> int:
    """Run the command; 1 where a budget is damaged, a log not sound or a claim does not hold."""
    return _report(options) if options.action == "report" else _audit(options)


def _report(options: argparse.Namespace) -> int:
    config = load_config(AgentConfig, options.config)
    try:
        # This process ends with its answer, so that it needs no child for its memory.
        found = spending(config, epsilon)
    except PrivacyError as error:
        if options.json:
            _print_json({"sound": False, "fault": _clean(error), "allowed": False})
        else:
            print(f"The budget of this device cannot be relied on: {_clean(error)}")
            print(f"{_DAMAGED}, until its state is restored or it is enrolled anew.")
        return 1
    if options.json:
        _print_json(_spending_dict(found))
    else:
        print("\n".join(spending_lines(found)))
    return 0


def _spending_dict(found: Spending) -> dict[str, Any]:
    return {
        "sound": True,
        "delta": found.delta,
        "classes": [{**asdict(each), "epsilon_left": each.epsilon_left} for each in found.classes],
        "studies": [_study_dict(study) for study in found.studies],
    }


def _study_dict(study: StudySpending) -> dict[str, Any]:
    return {**asdict(study), "plan": study.plan.hex(), "rounds_left": study.rounds_left}


def _audit(options: argparse.Namespace) -> int:
    audited, faults = [], []
    for folder in options.logs:
        try:
            audited.append(audit_log(folder, options.authority))
        except VitalRingError as error:
            faults.append(f"{folder}: not sound: {_clean(error)}")
    audits = [audit for audit, _ in audited]
    total = together(audited, options.delta) if len(audited) > 1 and not faults else None
    if options.json:
        _print_json(
            {
                "studies": [asdict(audit) for audit in audits],
                "together": {"epsilon": total, "delta": options.delta},
                "faults": faults,
            }
        )
    else:
        _print_audits(audits, faults)
        if len(audits) > 1 and not faults:
            print(together_line(audits, total, options.delta))
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults or any(audit.differences for audit in audits) else 0


def _print_audits(audits: Iterable[Audit], faults: list[str]) -> None:
    for audit in audits:
        print("\n".join(audit_lines(audit)))
        print()
    if not faults and not any(audit.differences for audit in audits):
        print("Every claim holds.")


def _print_json(content: Mapping[str, Any]) -> None:
    print(json.dumps(content, indent=2))


def _clean(error: Exception) -> str:
    """Return one line: what strangers' files say reaches a terminal."""
    text = " ".join(str(error).split())
    return "".join(char if char.isprintable() else "?" for char in text)
