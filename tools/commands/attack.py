"""`vitalring attack`: measure what attackers get."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from vitalring.tools.measuring.pages import Page, show
from vitalring.tools.simulate.layout import SHIPPED_DATA


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    actions = parser.add_subparsers(dest="action", required=True)
    source = actions.add_parser(
        "source-inference", help="whose record was it: at every stage of an update's path"
    )
    source.add_argument(
        "--data", type=Path, help="folder of a data set; default: the electrocardiograms shipped"
    )
    source.add_argument("--model", help="network; none takes one that fits the data")
    for name, default, text in (
        ("devices", 10, "devices of a study"),
        ("rows", 200, "most rows of a device"),
        ("rounds", 5, "rounds of a study"),
        ("seeds", 5, "studies of each kind"),
        ("targets", 40, "most records of a device that are asked about"),
        ("gateway-rounds", 6, "rounds of real parties whose gateway is attacked; 0 for none"),
    ):
        source.add_argument(f"--{name}", type=int, default=default, help=text)
    source.add_argument(
        "--alphas", type=_numbers, default=(0.1,), help="Dirichlet label skews, as 0.1,1"
    )
    source.add_argument(
        "--epsilons", type=_numbers, default=(8.0, 1.0), help="guarantees besides none, as 8,1"
    )
    source.add_argument(
        "--window", type=float, default=3.0, help="seconds within which real devices submit"
    )
    source.add_argument("--out", type=Path, help="folder for JSON, Markdown and the picture")
    _add_membership(actions.add_parser("membership", help="was this record trained on"))
    source.set_defaults(attack=_source_inference)
    _add_inversion(actions.add_parser("inversion", help="rebuild records from what was sent"))
    _add_audit(actions.add_parser("audit", help="hold a whole training against its epsilon"))


def _add_membership(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)
    parser.add_argument(
        "--defences",
        default="none,record/local/8",
        help="how studies train: none, none:PASSES or UNIT/NOISE/EPSILON, with commas between",
    )
    for name, default, text in (
        ("rows", 500, "most records of a person; half of them are trained on"),
        ("rounds", 20, "rounds of a study"),
        ("studies", 16, "studies of each kind: each is attacked, the others are its shadows"),
        ("resamples", 200, "bootstrap draws of the records"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    parser.add_argument(
        "--tensorflow-privacy",
        metavar="PYTHON",
        help="interpreter with tensorflow-privacy 0.8.12, whose attacks are run too",
    )
    parser.set_defaults(attack=_membership)


def _add_inversion(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)
    parser.add_argument(
        "--tensorflow", required=True, metavar="PYTHON", help="interpreter with vitalring[models]"
    )
    parser.add_argument(
        "--defences",
        default="none,record/local/8",
        help="how studies train: none, none:PASSES or UNIT/NOISE/EPSILON, with commas between",
    )
    for name, default, text in (
        ("devices", 10, "devices of a cohort, all of which are in its sum"),
        ("rows", 50, "most records of a device"),
        ("seeds", 3, "cohorts"),
        ("targets", 8, "records of a cohort that are asked about"),
        ("dummies", 4, "records that are rebuilt at once from many"),
        ("iterations", 200, "steps of a descent"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    parser.set_defaults(attack=_inversion)


def _add_audit(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)
    parser.add_argument(
        "--defences",
        default="none,record/local/8,record/distributed/8",
        help="how studies train: none, none:PASSES or UNIT/NOISE/EPSILON, with commas between",
    )
    for name, default, text in (
        ("rows", 300, "most records of a person, besides canaries"),
        ("rounds", 20, "rounds of a study"),
        ("canaries", 1000, "canaries of each kind; half of them are trained on, by lot"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    parser.set_defaults(attack=_audit)


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, help="folder of a data set; default: the electrocardiograms shipped"
    )
    parser.add_argument("--model", help="network; none takes one that fits the data")
    parser.add_argument("--out", type=Path, help="folder for JSON, Markdown and the picture")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    code: int = options.attack(options)
    return code


def _membership(options: argparse.Namespace) -> int:
    from vitalring.tools.attack.membership import (  # noqa: PLC0415
        Defence,
        MembershipSettings,
        measure_membership,
    )
    from vitalring.tools.attack.membership_peer import check_peer  # noqa: PLC0415
    from vitalring.tools.attack.membership_text import (  # noqa: PLC0415
        LIMITS,
        membership_facts,
        membership_plot,
        membership_tables,
    )

    settings = MembershipSettings(
        defences=tuple(Defence.from_text(text) for text in options.defences.split(",")),
        rows=options.rows,
        rounds=options.rounds,
        studies=options.studies,
        resamples=options.resamples,
    )
    if options.tensorflow_privacy:
        check_peer(options.tensorflow_privacy)
    result = measure_membership(
        options.data or SHIPPED_DATA,
        options.model,
        settings,
        options.tensorflow_privacy,
        Console(stderr=True).print,
    )
    command = (
        f"vitalring attack membership{'' if options.data is None else ' --data FOLDER'} "
        f"--model {result['model']} --defences {options.defences} --rows {settings.rows} "
        f"--rounds {settings.rounds} --studies {settings.studies} "
        f"--resamples {settings.resamples}"
        f"{' --tensorflow-privacy PYTHON' if options.tensorflow_privacy else ''} --out docs/results"
    )
    title, model = f"Membership inference: {result['dataset']}", result["model"]
    page = Page(
        "membership",
        f"{title}, {model}",
        command,
        membership_facts(result),
        membership_tables(result),
        "Area under the ROC curve, by what the attacker has",
        lambda: membership_plot(result),
        LIMITS,
        model,
    )
    show(page, result, options.out)
    return 0


def _inversion(options: argparse.Namespace) -> int:
    from vitalring.tools.attack.inversion import (  # noqa: PLC0415
        InversionSettings,
        measure_inversion,
    )
    from vitalring.tools.attack.inversion_text import (  # noqa: PLC0415
        MEANING,
        inversion_facts,
        inversion_plot,
        inversion_tables,
    )
    from vitalring.tools.attack.membership import Defence  # noqa: PLC0415

    numbers = ("devices", "rows", "seeds", "targets", "dummies", "iterations")
    settings = InversionSettings(
        defences=tuple(Defence.from_text(text) for text in options.defences.split(",")),
        **{name: getattr(options, name) for name in numbers},
    )
    say = Console(stderr=True).print
    result = measure_inversion(
        options.data or SHIPPED_DATA, options.model, settings, options.tensorflow, say
    )
    command = (
        f"vitalring attack inversion{'' if options.data is None else ' --data FOLDER'} "
        f"--model {result['model']} --tensorflow PYTHON --defences {options.defences} "
        + " ".join(f"--{name} {getattr(options, name)}" for name in numbers)
        + " --out docs/results"
    )
    page = Page(
        "inversion",
        f"Gradient inversion: {result['dataset']}",
        command,
        inversion_facts(result),
        inversion_tables(result),
        "How alike rebuilt and true records are, by what the attacker has",
        lambda: inversion_plot(result),
        MEANING,
    )
    show(page, result, options.out)
    return 0


def _audit(options: argparse.Namespace) -> int:
    from vitalring.tools.attack.audit import AuditSettings, measure_audit  # noqa: PLC0415
    from vitalring.tools.attack.audit_text import (  # noqa: PLC0415
        MEANING,
        audit_facts,
        audit_plot,
        audit_tables,
        broken_claims,
    )
    from vitalring.tools.attack.membership import Defence  # noqa: PLC0415

    numbers = ("rows", "rounds", "canaries")
    settings = AuditSettings(
        defences=tuple(Defence.from_text(text) for text in options.defences.split(",")),
        **{name: getattr(options, name) for name in numbers},
    )
    say = Console(stderr=True).print
    result = measure_audit(options.data or SHIPPED_DATA, options.model, settings, say)
    command = (
        f"vitalring attack audit{'' if options.data is None else ' --data FOLDER'} "
        f"--model {result['model']} --defences {options.defences} "
        + " ".join(f"--{name} {getattr(options, name)}" for name in numbers)
        + " --out docs/results"
    )
    page = Page(
        "audit",
        f"Audit of whole trainings: {result['dataset']}",
        command,
        audit_facts(result),
        audit_tables(result),
        "Lower bounds on epsilon beside the claims, by what the auditor sees",
        lambda: audit_plot(result),
        MEANING,
    )
    show(page, result, options.out)
    return 1 if broken_claims(result) else 0


def _source_inference(options: argparse.Namespace) -> int:
    # Networks and their runtime are loaded only where something is attacked.
    from vitalring.tools.attack.source_inference import (  # noqa: PLC0415
        AttackSettings,
        measure_source_inference,
    )

    settings = AttackSettings(
        devices=options.devices,
        rows=options.rows,
        rounds=options.rounds,
        seeds=options.seeds,
        targets=options.targets,
        alphas=options.alphas,
        epsilons=options.epsilons,
        gateway_rounds=options.gateway_rounds,
        window_s=options.window,
    )
    say = Console(stderr=True).print
    result = measure_source_inference(options.data or SHIPPED_DATA, options.model, settings, say)
    shipped = options.data is None
    _show_source(result, options.out, shipped=shipped)
    return 0


def _show_source(result: dict[str, Any], out: Path | None, *, shipped: bool) -> None:
    from vitalring.tools.attack.plots import attack_plot  # noqa: PLC0415
    from vitalring.tools.attack.text import (  # noqa: PLC0415
        NOT_PROTECTED,
        attack_facts,
        attack_tables,
    )

    page = Page(
        "source-inference",
        f"Source inference: {result['dataset']}",
        _command(result, shipped=shipped),
        attack_facts(result),
        attack_tables(result),
        "Success of source inference, by what the attacker has",
        lambda: attack_plot(result),
        NOT_PROTECTED,
    )
    show(page, result, out)


def _command(result: dict[str, Any], *, shipped: bool) -> str:
    """Return the command that makes such a result; a folder's place is one machine's business."""
    settings = result["settings"]
    listed = {name: ",".join(f"{v:g}" for v in settings[name]) for name in ("alphas", "epsilons")}
    data = "" if shipped else " --data FOLDER"
    return (
        f"vitalring attack source-inference{data} --model {result['model']} "
        f"--devices {settings['devices']} --rows {settings['rows']} "
        f"--rounds {settings['rounds']} --seeds {settings['seeds']} "
        f"--targets {settings['targets']} --alphas {listed['alphas']} "
        f"--epsilons {listed['epsilons']} --gateway-rounds {settings['gateway_rounds']} "
        f"--window {settings['window_s']:g} --out docs/results"
    )


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers such as 8,1") from error
