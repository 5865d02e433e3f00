"""What is said below a picture: the method, the records, and what it does not show."""

from vitalring.tools.explain.examples import RULE
from vitalring.tools.explain.permutation import Permuted
from vitalring.tools.explain.table_pictures import SHOWN
from vitalring.tools.explain.windows import MAX_CLASSES, WindowFindings

LIMITS = (
    "This tells what the model hangs on, not what is so in the body: a model can be right for a "
    "wrong reason, and a part that it ignores may matter to a physician."
)

AS_ABOVE = "Chosen, hidden and coloured as above."
"""Of a sheet that follows on another."""


def of_examples(found: WindowFindings) -> str:
    """Say what a sheet of examples shows."""
    return " ".join(
        (
            f"{RULE} ({found.rows:,} held-out windows; nobody chose).{_classes(found)}",
            _method(found),
            "The class that the model says is explained, also where it is wrong: orange spoke "
            "for it, blue against it.",
            _bars(found),
            LIMITS,
        )
    )


def of_profiles(found: WindowFindings, most: int) -> str:
    """Say what the averages show."""
    parts = [
        f"Up to {most:,} held-out windows of each class, evenly spread over the devices' files; "
        "their own class is explained. Lines and bars are means; grey bands and whiskers span the "
        f"middle half of the windows.{_classes(found)}",
        "Occlusion as in the pictures of typical windows.",
        "Averages over time mean something where windows are cut at an event, as heartbeats are; "
        "elsewhere only how high a curve is, not where.",
    ]
    if found.likeness is not None:
        alike = f"{found.likeness:.2f}".replace("-", "−")
        parts.append(
            f"Check: the maps' rank correlation with those of the same network with its weights "
            f"shuffled is {alike}; near 0 they show the model, near 1 only the signal (Adebayo et "
            "al. 2018)."
        )
    return " ".join((*parts, LIMITS))


def of_reliance(permuted: Permuted, columns: str, rows: int) -> str:
    """Say what the bars of a table show; `rows` are held out in all."""
    some = f"{permuted.rows:,} of {rows:,}" if permuted.rows < rows else f"all {rows:,}"
    count = len(permuted.columns)
    which = f"the {SHOWN} of {count:,} {columns} with the greatest drop of AUROC"
    return " ".join(
        (
            f"Permutation importance (Breiman 2001; Fisher, Rudin and Dominici 2019) on {some} "
            f"held-out rows: one column is shuffled over the rows, all its inputs together, and "
            f"the model's figures fall. Bars are the mean of {permuted.repeats} shuffles, lines "
            "their least and greatest;",
            f"{which if count > SHOWN else f'all {count:,} {columns}'} are shown.",
            "Columns that say the same cover for each other and look unimportant one by one; "
            "shuffling also makes rows that no patient could be. A drop around 0 means that these "
            "rows do not show a use.",
            LIMITS,
        )
    )


def _method(found: WindowFindings) -> str:
    patch, rate = found.patch, found.sampling_hz
    return (
        f"Occlusion (Zeiler and Fergus 2014): {patch.width} samples ({_ms(patch.width / rate)}) at "
        f"{rate:g} Hz are replaced by a straight line between their neighbours, every "
        f"{patch.stride} samples ({_ms(patch.stride / rate)}); the colour is how far the class's "
        "log-odds then fall, ln p/(1−p): by 0.7 halves the odds, by 2.3 divides them by ten."
    )


def _classes(found: WindowFindings) -> str:
    if found.held_out <= MAX_CLASSES:
        return ""
    return f" The {MAX_CLASSES} of {found.held_out} classes with most windows are explained."


def _bars(found: WindowFindings) -> str:
    constant = len(found.searched) < len(found.channels)
    return (
        f"Bars: the whole channel is replaced by that of {found.donors} other held-out windows, as "
        "many of each class, and the drops are averaged"
        + ("; a constant channel can only be hidden so." if constant else ".")
    )


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
