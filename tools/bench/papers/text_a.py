"""Paper A's Table 1 with what was measured, beside what the paper reports."""

from collections.abc import Mapping
from typing import Any, Final

from vitalring.errors import ConfigError
from vitalring.tools.bench.papers.cells import MECHANISMS
from vitalring.tools.bench.papers.reported import TABLE_A
from vitalring.tools.bench.papers.shown import (
    NO_FIGURE,
    Found,
    Known,
    claim,
    estimate,
    measured,
    of,
    share,
    timed,
    untimed,
)
from vitalring.tools.measuring.table import Table

SEEN: Final = {
    "plain": ("named/device, all rounds", False),
    "dp": ("named/device, all rounds", True),
    "he": ("sum/device", False),
    "smpc": ("sum/device", False),
    "all": ("sum/device", True),
}
"""What the one who adds up sees in each row: named updates in clear, or the opened sum alone;
and whether its studies have a guarantee."""

VIEWS: Final = {
    "plain": "updates",
    "dp": "updates",
    "he": "models",
    "smpc": "models",
    "all": "models",
}
"""What membership is told from: all updates of a device in clear, or all global models."""


_OTHERS_OF_A_RATE: Final = 1000
"""One false alarm among so many is a rate of 0.1 %."""


def table_a(result: Mapping[str, Any], each: Mapping[str, Any]) -> Table:
    """Return the table of one data set."""
    name, known = each["name"], result["cells"]
    rows = []
    for row, reported in TABLE_A.items():
        kind = "pooled" if row == "centralised" else "study"
        study = known.get(f"a/{name}/{row}/{kind}")
        time = known.get(f"a/{name}/{row}/time")
        rows.append(
            (
                reported.name,
                of(study, lambda found: estimate(found["accuracy"])),
                f"{reported.accuracy:.1f} %",
                of(study, lambda found: estimate(found["macro_f1"])),
                "–" if row == "centralised" else of(study, lambda f: f"{f['update_bytes']:,}"),
                timed(time, lambda found: f"{found['round_seconds']:.2f}"),
                untimed(time, _memory),
                _source(known.get(f"a/{name}/source"), row),
                *_membership(known.get(f"a/{name}/membership/{_guarantee(row)}"), row),
                " / ".join((reported.privacy, reported.communication, reported.computation)),
            )
        )
    titles = (
        "training",
        "accuracy",
        "paper",
        "macro-F1",
        "bytes an update",
        "seconds a round",
        "peak memory, MB",
        "source found",
        "membership AUC",
        "TPR at 0.1 % FPR",
        "paper: privacy / communication / efficiency",
    )
    return Table(f"Paper A, Table 1: {each['title']}", titles, tuple(rows), _notes_a(known, name))


def _notes_a(known: Known, name: str) -> tuple[str, ...]:
    said = "; ".join(
        f"{TABLE_A[row].name}: {_said(known.get(f'a/{name}/{row}/study'))}" for row in ("all", "dp")
    )
    return (
        f"Guarantees. {said}.",
        "Encryption does not change a sum, so plain FL, HE-FL and SMPC-FL differ by chance: each "
        "is a run of its own, with coins of its own. HE-FL: joint key of 3 hospitals, 2 of whom "
        "decrypt; SMPC-FL: shares to two gateways.",
        "Memory: the largest process of an agent's role, which runs several devices here, then "
        "gateway and aggregator; centralised, the training process. Seconds a round, centralised: "
        "as many passes as the devices make in a round.",
        "Source found: share of records that were trained on whose device the one who adds up "
        f"finds (Hu et al. 2021), at random {_random(known.get(f'a/{name}/source'))}; from named "
        "updates of all rounds (plain FL, DP-FL), or from opened sums alone. Where all rows are in "
        "one place, whose they are is known without an attack.",
        _membership_note(known.get(f"a/{name}/membership/none")),
    )


def _source(found: Found | None, row: str) -> str:
    if row == "centralised":
        return "–"
    if found is None or not measured(found):
        return NO_FIGURE
    name, guarded = SEEN[row]
    figures = found["result"]["figures"]
    # Of the studies without noise and with it, the one without is under epsilon 0.
    key = next((e for e in figures if (e != "0") == guarded), None)
    if key is None or name not in figures[key]:
        raise ConfigError(f"the attack gave no figure {name!r}: measure it again")
    return share(figures[key][name], lambda value: f"{value:.2f}")


def _random(found: Found | None) -> str:
    if found is None or not measured(found):
        return NO_FIGURE
    return f"{found['result']['figures']['0']['random device'][0]:.2f}"


def _membership(found: Found | None, row: str) -> tuple[str, str]:
    """Return AUC and rate of the strongest attack on what is seen in a row."""
    if row not in VIEWS:
        return "–", "–"
    if found is None or not measured(found):
        return NO_FIGURE, NO_FIGURE
    strongest = _strongest(found, VIEWS[row])
    return estimate(strongest["auc"]), estimate(strongest["tpr"][0])


def _strongest(found: Found, view: str) -> Mapping[str, Any]:
    attacks: Mapping[str, Any] = found["result"]["figures"][view]
    return max(attacks.values(), key=lambda each: each["auc"]["value"])


def _guarantee(row: str) -> str:
    return MECHANISMS[row][1] if row in MECHANISMS else ""


def _membership_note(found: Found | None) -> str:
    said = (
        "Membership: the strongest of three attacks (Yeom et al. 2018; Carlini et al. 2022, two "
        "scores) on all updates of a record's device, or on all global models; each study trains "
        "on half of every person's records, the other half are the non-members"
    )
    if found is None or not measured(found):
        return f"{said}."
    got = found["result"]
    said += (
        f": {got['members']:,} members and {got['others']:,} others in each of "
        f"{got['studies']} studies. Where all rows are in one place nobody there needs an attack; "
        "of the final model alone, trained without noise, the strongest attack has an AUC of "
        f"{estimate(_strongest(found, 'final')['auc'])}."
    )
    if got["others"] < _OTHERS_OF_A_RATE:
        said += " So few others cannot show a rate of 0.1 %: at most none of them is taken amiss."
    return said


def _said(found: Found | None) -> str:
    """Return the guarantee of a study."""
    if found is None or not measured(found):
        return NO_FIGURE
    privacy = found["result"]["privacy"]
    said = f"{claim(privacy)}, of which {privacy['spent']:.2f} is spent"
    return f"{said} ({privacy['note']})" if privacy.get("note") else said


def _memory(found: Found) -> str:
    peaks = found["peak_bytes"]
    roles = [role for role in ("agent", "gateway", "aggregator") if role in peaks]
    return " / ".join(f"{peaks[role] / 1e6:.0f}" for role in roles or ["self"])
