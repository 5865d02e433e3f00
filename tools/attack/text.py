"""The figures of `vitalring attack source-inference` as sentences and tables."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from vitalring.tools.attack.gateway_attack import WHERE
from vitalring.tools.attack.least_loss import KNOWN
from vitalring.tools.attack.source_inference import privacy_name
from vitalring.tools.measuring.intervals import interval
from vitalring.tools.measuring.machine import in_words
from vitalring.tools.measuring.table import Table

ATTACKS: Final = (
    ("with names: one round", "device", "named/device"),
    ("with names: all rounds", "device", "named/device, all rounds"),
    ("anonymous: one round", "slot", "anonymous/slot"),
    ("anonymous: one round", "device", "anonymous/device"),
    ("anonymous: all rounds, linked", "device", "anonymous/device, all rounds"),
    *(
        row
        for k in KNOWN
        for row in (
            (f"anonymous, {k} known: one round", "device", f"known {k}/device"),
            (f"anonymous, {k} known: all rounds, linked", "device", f"known {k}/device, chained"),
        )
    ),
    ("the opened sums and global models", "device", "sum/device"),
    *((f"the opened sums, {k} known", "device", f"sum, known {k}/device") for k in KNOWN),
)
"""What the attacker has, whether it finds a slot or names a device, and the figure's name."""

CONTROLS: Final = (
    ("a device at random", "random device"),
    ("always the largest device", "largest device"),
    ("how many records of each class each device has", "label mix known"),
    *((f"{k} known a device, and no model at all", f"no update, known {k}/device") for k in KNOWN),
)

_LINKS: Final = (
    ("an update with its device's next one, nothing known", "anonymous/next round"),
    *((f"a slot with its device, {k} known: one round", f"known {k}/slot's device") for k in KNOWN),
    *(
        (f"a slot with its device, {k} known: all, linked", f"known {k}/slot's device, chained")
        for k in KNOWN
    ),
)

_GATEWAY: Final = ("strongest features", "all features", "next round")

NOT_PROTECTED: Final = """
## What none of this protects

- **The address, without a relay.** The broker, and who watches its line, sees the sender's address beside each message, whatever is in it.
- **Being online.** Who is absent in a round did not send; over many rounds the intersection of who was online narrows down to a device. Which rings sent is public.
- **Hospitals at or above the threshold.** Together with what they fetched they have updates in clear, without names: the rows `anonymous`, and those with known records where they know some of their own patients'.
- **Invented devices in the roster.** Who controls all but one of a sum's updates has the last one in clear, and the ring has one honest member.
- **Records that are known already.** Who has some of a person's records finds others like them without any update: the last baselines. Encryption and rings have no part in this.

The figures are of these attacks, data and networks. A better attack finds more in updates in clear. That a classifier finds nothing in ciphertexts is no proof; that rests on the encryption ([SPEC.md](../../protocol/SPEC.md), 5 and 12).
"""  # noqa: E501 - paragraphs of a page


def attack_facts(result: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know before the figures mean anything."""
    settings = result["settings"]
    trained = result["cases"][0]["studies"][0]["training"]
    noisy = [study["training"] for study in result["cases"][0]["studies"][1:]]
    return [
        in_words(result["machine"]) + f" {result['cpu_seconds'] / 60:.1f} minutes of CPU.",
        f"Data set {result['dataset']}: {result['people']} people or sites; {settings['devices']} "
        f"devices of {settings['rows']} rows at most in each study. Model {result['model']}, "
        f"{result['parameters']:,} parameters. All devices have equally many rows.",
        "Source inference (Hu et al. 2021): every record that was trained on goes to the client "
        "model with the least loss on it. Asked about: "
        f"{settings['targets']} records a device. A slot is a message, a device is who sent it: "
        "finding the slot names nobody as long as slots have no names.",
        f"{settings['seeds']} studies of {settings['rounds']} rounds for each cell, each with its "
        "own devices, first weights and coins: mean, and the 95 % interval of the mean by "
        "Student's t. One round is the mean over a study's rounds; all rounds adds up the losses.",
        f"Without noise {trained['steps']} steps a round at sampling rate "
        f"{trained['sampling_rate']:g}"
        + (
            f", with noise {noisy[0]['steps']} at {noisy[0]['sampling_rate']:g}; unit record, "
            "delta 1e-5, epsilon for the whole study"
            if noisy
            else ""
        )
        + ": what the toolkit plans where its user names no numbers. An update in clear is what "
        "its fields decode to, clipped and rounded as a device sends it.",
        "`k known` is an attacker who has k records of each device, with their owner, beside "
        "those that it is asked about. `Linked`: rounds are joined by the likeness of updates.",
    ]


def attack_tables(result: Mapping[str, Any]) -> list[Table]:
    """Return success by stage, links, and what a gateway holds."""
    tables = []
    for case in result["cases"]:
        tables += [_records(case), _links(case)]
    if result["gateway"]:
        tables.append(_gateway(result))
    return tables


def _records(case: Mapping[str, Any]) -> Table:
    studies = case["studies"]
    rows = [
        (what, level, *(_cell(study, name) for study in studies)) for what, level, name in ATTACKS
    ]
    rows += [
        (f"no update: {what}", "device", *(_cell(study, name) for study in studies))
        for what, name in CONTROLS
    ]
    learnt = "; ".join(
        f"{privacy_name(study['epsilon'])} accuracy {_cell(study, 'accuracy')}, macro-F1 "
        f"{_cell(study, 'macro_f1')}"
        for study in studies
    )
    return Table(
        f"Records whose source was found: devices {case['name']}",
        ("the attacker has", "finds the", *(privacy_name(study["epsilon"]) for study in studies)),
        tuple(rows),
        (
            "The first rows are of updates in clear, with names or anonymous; encryption leaves "
            "the rows of the opened sums, which hospitals see, and of the global models, which "
            "everybody sees. Rows that begin with `no update` are the baselines: what an attack "
            "must beat before it has learnt anything from updates.",
            f"Global model on held-out rows after the last round: {learnt}.",
        ),
    )


def _links(case: Mapping[str, Any]) -> Table:
    studies = case["studies"]
    rows = [
        (what, *(_cell(study, name) for study in studies))
        for what, name in _LINKS
        if name in studies[0]["figures"]
    ]
    rows.append(("at random", *(_cell(study, "random device") for study in studies)))
    return Table(
        f"Slots that were linked: devices {case['name']}",
        ("the attacker links", *(privacy_name(study["epsilon"]) for study in studies)),
        tuple(rows),
        ("Updates in clear without names. Each device has one slot in a round.",),
    )


def _gateway(result: Mapping[str, Any]) -> Table:
    runs, count = result["gateway"], result["settings"]["devices"]
    rows = []
    for run in runs:
        name = privacy_name(run["epsilon"])
        rows += [
            (f"{name}: {words}", *(_tested(run["attacks"][where][attack]) for attack in _GATEWAY))
            for where, words in WHERE.items()
            if where in run["attacks"]
        ]
        rows.append(
            (f"{name}: control, updates in clear", *(_rounds(run["control"][a]) for a in _GATEWAY))
        )
    read = "; ".join(
        f"{privacy_name(run['epsilon'])} {_rounds(run['read as updates'])}"
        for run in runs
        if run["read as updates"]
    )
    left = [run["left_behind"] for run in runs]
    return Table(
        "What a real gateway holds",
        ("the attacker has", "named, few features", "named, all features", "linked to the next"),
        tuple(rows),
        (
            f"{result['settings']['gateway_rounds']} rounds of a simulation with broker, gateway, "
            "hospitals and a joint key (threshold-he) for each; the gateway's database was copied "
            "with its write-ahead log. Features: place in the files and rank of it, "
            "ring index, lengths, bytes of digest, tag, signature and ciphertexts, their "
            "histograms and means by part; watched live, the time and order in which a "
            "look at the database every 20 ms found the updates. The classifier is told "
            "the senders of all rounds but the one that it is asked about, which no attacker "
            f"knows. Share of slots, mean over rounds with its 95 % interval; at random "
            f"1/{count} = {1 / count:.2f}. p says how often the attack does as well or better "
            "when the senders are dealt at random (permutation test, 0.01 at least): where "
            "nothing is to be found, one cell in twenty is at 0.05 or below. Judge by p: each "
            "round is named by what was learnt from the others, so rounds are not independent "
            "and the intervals are a little too narrow.",
            "The control gives the same classifiers updates in clear, of the same plan and "
            "devices, so that a blind classifier is not taken for a safe encryption. Where noise "
            "hides the device in the clear update too, the control finds as little.",
            "Source inference on the ciphertexts, their bytes read as if they were fields in "
            f"clear: {read or 'not measured'} of the records; at random {1 / count:.2f}.",
            f"Of {sum(total for _, total in left)} ciphertexts that were deleted when their round "
            f"had its model, {sum(found for found, _ in left)} were found in the files afterwards.",
        ),
    )


def _tested(found: Mapping[str, Any]) -> str:
    return f"{_rounds(found['shares'])}, p {found['chance']:.2f}"


def _cell(study: Mapping[str, Any], name: str) -> str:
    return _rounds(study["figures"][name])


def _rounds(values: Sequence[float]) -> str:
    if not values:
        return "–"
    found = interval(values)
    if found.low is None or found.high is None or found.high - found.low < 1e-9:
        return f"{found.mean:.2f}"
    return f"{found.mean:.2f} ({max(0.0, found.low):.2f}–{min(1.0, found.high):.2f})"
