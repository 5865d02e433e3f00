"""The page of the papers' tables: its facts, its other tables, and what was not measured."""

from collections.abc import Mapping
from typing import Any

from vitalring.tools.bench.papers.reported import LEDGER_B
from vitalring.tools.bench.papers.shown import Found, Known, estimate, measured, timed, untimed
from vitalring.tools.bench.papers.store import WAITING
from vitalring.tools.bench.papers.text_a import table_a
from vitalring.tools.bench.papers.text_b import figures_b, table_b
from vitalring.tools.measuring.table import Table


def papers_facts(result: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know before the figures mean anything."""
    form, known = result["form"], result["cells"]
    waiting = sum(found["status"] == WAITING for found in known.values())
    whole = sum(measured(found) for found in known.values())
    facts = [_where(known)]
    if form["name"] == "quick":
        facts.append(
            "QUICK FIGURES: they show that everything runs, not how good anything is. At most "
            f"{form['rows']} rows of a device, {form['rounds']} rounds, {form['seeds']} seeds."
        )
    elif form["rows"]:
        facts.append(f"At most {form['rows']:,} rows of a device, drawn at random.")
    facts.append(
        f"{whole} of {len(known)} cells are measured, {waiting} are not run yet; what failed is "
        "named at the end."
    )
    facts += [f"Left out: {name}, {why}" for name, why in result["left_out"].items()]
    short = {
        label: found["result"]["missing_updates"]
        for label, found in known.items()
        if measured(found) and found["result"].get("missing_updates")
    }
    if short:
        lacking = ", ".join(f"{label} {count}" for label, count in short.items())
        facts.append(f"Updates that did not arrive in time, by cell: {lacking}.")
    facts += [
        "Each federated cell of the tables is a run of `vitalring simulate`: broker, gateways, "
        "hospitals, signatures, log. The papers' data are private, so their figures are for other "
        "data: beside each other they show what the protection costs, not who learns better.",
        "Test rows are of people who did not train (diabetes: patients in no other part). "
        "Brackets are 95 % intervals: over patients or rows within a run, over runs by Student's "
        "t where a figure is the mean of several.",
        "Central DP-SGD adds TensorFlow's random numbers: fit for a comparison, not for a "
        "guarantee. `not measured` is no figure; times are taken only while others have less than "
        "a tenth of the cores.",
    ]
    return facts


def papers_tables(result: Mapping[str, Any]) -> list[Table]:
    """Return all tables that something was measured for, and what was not."""
    known = result["cells"]
    tables = [table_a(result, each) for each in result["sets"] if _any(known, f"a/{each['name']}")]
    if _any(known, "b"):
        tables.append(table_b(result))
    for each in result["sets"]:
        tables += figures_b(result, each) if _any(known, f"f/{each['name']}") else ()
    tables += [_central(known)] if any("/central/" in label for label in known) else []
    tables += [_ledger(known["ledger"])] if "ledger" in known else []
    return [*tables, *_missing(known)]


def _central(known: Known) -> Table:
    rows = []
    for label, found in known.items():
        if "/central/" not in label or not measured(found):
            continue
        _, name, _, epsilon, seed = label.split("/")
        got = found["result"]
        rows.append(
            (
                name,
                epsilon,
                seed,
                f"{got['noise_multiplier']:g}",
                f"{got['steps']:,} at {got['sampling_rate']:.4f}",
                *(_stated(got["statement"].get(kind)) for kind in ("RDP", "PLD")),
                estimate(got["accuracy"]),
                estimate(got["macro_f1"]),
            )
        )
    titles = (
        "data",
        "epsilon",
        "seed",
        "noise multiplier",
        "steps at sampling rate",
        "stated by Rényi divergences",
        "stated by loss distributions",
        "accuracy",
        "macro-F1",
    )
    note = (
        "DP-SGD on pooled rows by tensorflow-privacy's Keras optimisers, the same network, noise "
        "by the toolkit's accountant. Stated: epsilon under Poisson sampling, by "
        "`compute_dp_sgd_privacy_statement` of the same numbers; the toolkit takes the lower of "
        "both bounds and charges for its own sampler and lattice, which are not in use here."
    )
    return Table("Central DP-SGD", titles, tuple(rows), (note,))


def _ledger(found: Found) -> Table:
    rows = (
        (
            "transactions, one an update",
            untimed(found, lambda f: f"{f['leaves']:,} leaves"),
            LEDGER_B["transactions"],
        ),
        (
            "rate",
            timed(found, lambda f: f"{f['leaves_per_second']:,.0f} a second"),
            LEDGER_B["rate"],
        ),
        (
            "latency of a round's commit",
            timed(
                found,
                lambda f: (
                    f"{1000 * f['commit_seconds']:.1f} ms, "
                    f"slowest {1000 * f['slowest_commit_seconds']:.1f} ms"
                ),
            ),
            f"{LEDGER_B['latency']} a transaction",
        ),
        (
            "on disk after 10 rounds",
            untimed(found, lambda f: f"{f['bytes'] / 1e6:.2f} MB"),
            LEDGER_B["disk"],
        ),
    )
    note = (
        "One gateway's log: 10 rounds of 150 updates with ring signatures of one ring of 150, "
        "plans, reports and models, each transaction with a signed checkpoint and on disk when it "
        "ends. The paper's is a network of replicas that agree by PBFT; a log that one signs and "
        "everybody checks needs no agreement, and does less: it shows a fork, it does not prevent "
        "one. Weights of models are not counted."
    )
    return Table("Paper B, Table II: the log", ("", "measured", "paper"), rows, (note,))


def _missing(known: Known) -> list[Table]:
    rows = tuple(
        (label, found["status"], found["reason"].replace("|", "/"))
        for label, found in known.items()
        if not measured(found) and found["status"] != WAITING
    )
    return [Table("Not measured", ("cell", "", "why"), rows)] if rows else []


def _where(known: Known) -> str:
    """Return on what machines, and when, the cells were measured."""
    machines = [found["machine"] for found in known.values() if measured(found)]
    if not machines:
        return "Nothing is measured yet."
    dates = sorted({each["date"] for each in machines})
    words = {
        f"{each['processor']} ({each['architecture']}), {each['cores']} cores, {each['system']}, "
        f"Python {each['python']}, vitalring {each['vitalring']}"
        for each in machines
    }
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return f"{when}; {'; '.join(sorted(words))}."


def _stated(value: float | str | None) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "–" if value is None else str(value)


def _any(known: Known, start: str) -> bool:
    return any(label.startswith(f"{start}/") for label in known)
