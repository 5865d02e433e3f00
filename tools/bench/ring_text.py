"""What `vitalring bench ring` found, as facts and tables."""

from collections.abc import Callable, Mapping
from typing import Any

from vitalring.gateway.waiting import MOST, PASSES
from vitalring.tools.bench.ring_admission import FORGED_SHARE
from vitalring.tools.measuring.machine import in_words
from vitalring.tools.measuring.spread import Spread, milliseconds, shown
from vitalring.tools.measuring.table import Table

_OPERATIONS = {
    "base": "base point times a scalar",
    "multiply": "point times a scalar, the point checked",
    "add": "sum of two points",
    "decode": "check of an encoding",
    "hash to point": "hash to a point",
}


def ring_facts(result: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know to compare the figures with others."""
    batch = result["sizes"]["batch"]
    return [
        in_words(result["machine"]),
        "Milliseconds of one core's processor time, on libsodium through PyNaCl: medians, "
        "with the least and the greatest in brackets.",
        f"Batches hold {batch} signatures over {batch} messages, by as many signers as the "
        "ring has keys, one each where it has enough.",
    ]


def ring_tables(result: Mapping[str, Any]) -> list[Table]:
    """Return all tables."""
    return [
        _suites(result),
        _batches(result),
        _admission(result),
        _operations(result),
        _multiplications(result),
    ]


def _suites(result: Mapping[str, Any]) -> Table:
    rows = []
    for size, found in result["rings"].items():
        for suite, name in (("lsag", "1 (LSAG)"), ("one-of-many", "2 (one of many)")):
            measured = found[suite]
            if measured is not None:
                rows.append(
                    (
                        f"{int(size):,}",
                        name,
                        f"{measured['bytes']:,}",
                        *(_time(measured[what]) for what in ("ring", "sign", "verify")),
                    )
                )
    return Table(
        "Both suites, one signature",
        ("ring", "suite", "bytes", "ring made, once an epoch", "sign", "verify alone"),
        tuple(rows),
        tuple(_crossings(result)),
    )


def _crossings(result: Mapping[str, Any]) -> list[str]:
    """Say from which measured ring on suite 2 is ahead, and stays so."""
    both = {
        int(size): found for size, found in result["rings"].items() if found["lsag"] is not None
    }
    batch = result["sizes"]["batch"]

    def first(ahead: Callable[[Mapping[str, Any]], bool]) -> str:
        sizes = sorted(both)
        behind = [size for size in sizes if not ahead(both[size])]
        later = [size for size in sizes if not behind or size > behind[-1]]
        return f"from {later[0]:,} keys" if later else "at no size measured with both"

    def median(found: Mapping[str, Any], suite: str, what: str) -> float:
        return float(found[suite][what]["median"])

    if not both:
        return []
    smaller = first(lambda found: found["one-of-many"]["bytes"] < found["lsag"]["bytes"])
    signs = first(lambda f: median(f, "one-of-many", "sign") < median(f, "lsag", "sign"))
    alone = first(lambda f: median(f, "one-of-many", "verify") < median(f, "lsag", "verify"))
    batched = first(
        lambda f: median(f, "one-of-many", "batch") / batch < median(f, "lsag", "verify")
    )
    return [
        f"Of the sizes measured, suite 2 is smaller {smaller}, signs faster {signs}, verifies "
        f"faster alone {alone} and in batches {batched}."
    ]


def _batches(result: Mapping[str, Any]) -> Table:
    batch = result["sizes"]["batch"]
    rows = []
    for size, found in result["rings"].items():
        measured = found["one-of-many"]
        radices = " × ".join(map(str, measured["radices"]))
        rows.append(
            (
                f"{int(size):,}",
                f"{radices} = {measured['members']:,}",
                _time(measured["batch"], 1 / batch),
                f"{batch / measured['batch']['median']:,.0f}",
                _time(measured["batch with one bad"], 1 / batch),
                _time(measured["garbage"]),
            )
        )
    return Table(
        f"Suite 2 in batches of {batch}",
        (
            "ring",
            "places",
            "a signature",
            "signatures a second",
            "a signature, one in the batch bad",
            "refusal of a signature on another message",
        ),
        tuple(rows),
        (
            "The bad one proves its tag, as whoever has a key can, in the ring or not, so that "
            "only passes over the ring find it: two, the second with each signature weighted by "
            "its place in the batch. What proves no tag is refused before any pass.",
        ),
    )


def _limits(result: Mapping[str, Any]) -> list[str]:
    """Say what an update's admission consists of, and what a forgery with a key costs."""
    found = result["admission"]
    honest, forged = found["seconds"]["honest"], found["seconds"]["forged with a key"]
    share = honest["verify"]["median"] / honest["all"]["median"]
    said = [f"Of honest traffic, {share:.0%} of the time goes into signatures."]
    measured = result["rings"].get(str(found["ring"]))
    if measured is not None:
        pass_s = measured["multiplications"]["libsodium"]["median"]
        more_s = (forged["verify"]["median"] - honest["verify"]["median"]) * found["updates"]
        cost_s = more_s / found["forged"]
        said.append(
            f"A forgery with a key costs {milliseconds(cost_s)} ms, as much as "
            f"{cost_s / pass_s:.1f} times {found['ring']:,} multiplications and additions, of "
            f"which a pass over the ring consists ({milliseconds(pass_s)} ms): that is what limits "
            "the rate then."
        )
    return said


def _admission(result: Mapping[str, Any]) -> Table:
    found = result["admission"]
    rows = []
    for name, stages in found["seconds"].items():
        rows.append(
            (
                name if name == "honest" else f"{FORGED_SHARE:.0%} {name}",
                *(_time(stages[stage]) for stage in ("screen", "verify", "count", "all")),
                f"{1 / stages['all']['median']:,.0f}",
            )
        )
    return Table(
        f"Admission in one ring of {found['ring']:,}",
        (
            "traffic",
            "open, decode, check",
            "verify signatures",
            "add, commit",
            "all, an honest update",
            "honest updates a second and core",
        ),
        tuple(rows),
        (
            f"{found['updates']} honest updates of {found['parameters']:,} parameters, "
            f"{found['update_bytes']:,} bytes each, encrypted to a joint key and kept for the "
            f"hospitals; {found['forged']} more are forged. Batches of up to {MOST}, {PASSES} "
            "passes over the ring in a step, all time divided by the honest ones. Forged without "
            "a key: a signature of somebody else on other ciphertexts. Forged with a key: its tag "
            "is proven, so that only passes over the ring find it. Load average at its end "
            f"{found['load']}.",
            " ".join(_limits(result)),
        ),
    )


def _operations(result: Mapping[str, Any]) -> Table:
    own, other = (result["operations"][name] for name in ("edwards25519", "ristretto255"))
    rows = tuple(
        (
            words,
            shown(Spread(**own[name]), _microseconds),
            "not measured" if other is None else shown(Spread(**other[name]), _microseconds),
        )
        for name, words in _OPERATIONS.items()
    )
    notes = ["Microseconds. A multiplication of an Ed25519 point pays for its check each time."]
    if other is not None and other["accepts_alias"]:
        notes.append(
            "The library measured for ristretto255 accepts a second encoding of a point, with "
            "its highest bit set, which a caller would have to refuse."
        )
    return Table(
        "Operations of two groups",
        ("operation", "Ed25519's prime-order group (PyNaCl)", "ristretto255 (rbcl)"),
        rows,
        tuple(notes),
    )


def _multiplications(result: Mapping[str, Any]) -> Table:
    rows = []
    for size, found in result["rings"].items():
        measured = found["multiplications"]
        rows.append(
            (
                f"{int(size):,}",
                *(_time(measured[way]) for way in ("libsodium", "buckets", "tables")),
                f"{measured['tables_build_seconds']:,.2f} s",
            )
        )
    return Table(
        "A pass over the ring: all keys times as many numbers",
        (
            "keys",
            "libsodium: multiply and add",
            "buckets over libsodium's sum",
            "buckets over Python's integers",
            "their tables, once an epoch",
        ),
        tuple(rows),
        ("The first is what the project does; the others are measured, not used.",),
    )


def _time(figure: Mapping[str, Any], share: float = 1.0) -> str:
    return shown(Spread(**figure), lambda seconds: milliseconds(seconds * share))


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.1f}"
