"""The figures of `vitalring bench path` as tables, for a terminal and for Markdown."""

from collections.abc import Mapping
from typing import Any

from vitalring.tools.bench.path import PLAIN, PROTECTED
from vitalring.tools.measuring.spread import Spread, megabytes, milliseconds, shown
from vitalring.tools.measuring.table import Table

_NONE = "not measured"
_MACHINE = {"processor", "architecture", "cores", "memory", "load", "system", "python"}
_STAGE_NAMES = {
    "train": "train, with clipping and noise",
    "encode": "clip, rotate, round",
    "encrypt": "pack, encrypt",
    "sign": "ring signature",
    "seal": "seal, frame",
}


def path_tables(result: Mapping[str, Any]) -> list[Table]:
    """Return all tables, in the order of reading."""
    return [_memory(result), *_stages(result), _bytes(result), _training(result)]


def path_facts(result: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know to compare the figures with others."""
    facts, work = result["machine"], result["work"]
    training, privacy = work["training"], work["privacy"]
    versions = ", ".join(
        f"{name} {facts[name]}" for name in facts if name not in _MACHINE and name != "date"
    )
    return [
        f"{facts['date']}, {facts['processor']} ({facts['architecture']}), {facts['cores']} cores "
        f"of which each figure uses one, {facts['memory']}, {facts['system']}.",
        f"Load average over the last 1, 5 and 15 minutes, at the end: {facts['load']}. Where it is "
        f"above {facts['cores']}, other programs lengthened the times; the least is nearer to an "
        "idle machine's.",
        f"Python {facts['python']}, {versions}.",
        f"Device {work['device']} with {work['records']} records, model {work['model']} of "
        f"{work['parameters']:,} parameters, steps a round: {training['steps']}, at sampling rate "
        f"{training['sampling_rate']:.3f}, ring of {work['ring']} keys.",
        f"Privacy: unit {privacy['unit']}, noise {privacy['noise']}, epsilon "
        f"{privacy['epsilon']:g} at delta {privacy['delta']:g}, noise multiplier "
        f"{privacy['noise_multiplier']:g}.",
        "Each figure is a median, with the least and the greatest in brackets. "
        f"Memory and start: {work['repeats']} fresh processes. Stages of a later round and of the "
        f"gateway: one process each, over {work['updates']} updates, each by another key on the "
        "same records.",
        "MB are a million bytes. A process's peak is VmHWM.",
    ]


def _memory(result: Mapping[str, Any]) -> Table:
    protected, plain = (result["modes"][mode]["memory"] for mode in (PROTECTED, PLAIN))
    training = result["training"]
    rows = [
        ("agent: train, encrypt, sign, seal", _mb(protected["process_peak_bytes"])),
        ("the same, its whole control group", _mb(protected["group_peak_bytes"])),
        ("agent, 8-bit plaintext sum", _mb(plain["process_peak_bytes"])),
        ("accounting, once a plan, a process of its own", _mb(result["accounting"]["peak_bytes"])),
        ("training alone, TFLite runtime", _mb(training["tflite"]["peak_bytes"])),
    ]
    if "tensorflow" in training:
        rows.append(("training alone, TensorFlow", _mb(training["tensorflow"]["peak_bytes"])))
    notes = []
    if protected["group_peak_bytes"] is None:
        notes.append("A control group needs cgroup v2 with the right to make one.")
    return Table("Peak memory", ("process", "MB"), tuple(rows), tuple(notes))


def _stages(result: Mapping[str, Any]) -> list[Table]:
    protected, plain = (result["modes"][mode]["stages"] for mode in (PROTECTED, PLAIN))
    first, later = "device, first round", "device, later rounds"
    device = [
        (
            _STAGE_NAMES.get(stage, stage),
            _ms(protected[first][stage]),
            _ms(protected[later][stage]),
            _ms(plain[later][stage]),
        )
        for stage in protected[first]
    ]
    servers = [
        (f"{party}: {stage}", _ms(protected[party][stage]), _ms(plain[party][stage]))
        for party in ("gateway", "gateway, once a round", "aggregator")
        for stage in protected[party]
    ]
    return [
        Table(
            "Time on the device, ms",
            ("stage", "first round after a start", "later rounds", "later, 8-bit plaintext"),
            tuple(device),
            (
                "The first round loads network and public key: into training, and into encryption.",
                f"Importing the agent takes {_ms(result['modes'][PROTECTED]['import_seconds'])} ms "
                f"before that; accounting {_ms(result['accounting']['seconds'])} ms once a plan.",
            ),
        ),
        Table(
            "Time on the servers, ms",
            ("stage", "protected", "8-bit plaintext"),
            tuple(servers),
            (
                "The gateway's stages are for one update. `all checks` is what it really runs; "
                "the checks above it are its parts, run once more by themselves.",
            ),
        ),
    ]


def _bytes(result: Mapping[str, Any]) -> Table:
    dimension = result["work"]["parameters"]
    rows = []
    forms = ((PROTECTED, "single-he, sealed, framed"), (PLAIN, "8-bit plaintext, the same way"))
    for mode, form in forms:
        sizes = result["modes"][mode]["bytes"]
        sent = sizes["sent_bytes"]
        rows.append((form, f"{sent:,}", str(sizes["frames"]), f"{sent / dimension:.2f}"))
    exact = result["float32_bytes"]
    rows.append(("float32, bare", f"{exact:,}", "–", f"{exact / dimension:.2f}"))
    note = "Without MQTT's own headers. Float32 is 4 bytes a parameter by arithmetic, not sent."
    titles = ("form", "bytes", "frames", "a parameter")
    return Table("Bytes a device sends in a round", titles, tuple(rows), (note,))


def _training(result: Mapping[str, Any]) -> Table:
    sides = [("TFLite runtime", result["training"]["tflite"])]
    notes = [
        "The same network, records, steps and clipping; the runtime's side draws its noise from "
        "ChaCha20 in integers, as a device does, TensorFlow's with tf.random.normal.",
        "Loading the model includes loading the TFLite runtime.",
    ]
    if "tensorflow" in result["training"]:
        full = result["training"]["tensorflow"]
        sides.append((f"TensorFlow {full['version']}", full))
        notes.append("TensorFlow runs a tf.function, which its first round traces.")
    else:
        notes.append("TensorFlow is left out: no interpreter was given with --tensorflow.")
    rows = [("peak memory, MB", *(_mb(side["peak_bytes"]) for _, side in sides))]
    rows += [
        (f"{stage}, ms", *(_ms(side["times"][stage]) for _, side in sides))
        for stage in result["training"]["tflite"]["times"]
    ]
    titles = ("", *(name for name, _ in sides))
    return Table("The same training in full TensorFlow", titles, tuple(rows), tuple(notes))


def _mb(figure: Mapping[str, Any] | None) -> str:
    return _NONE if figure is None else shown(Spread(**figure), megabytes)


def _ms(figure: Mapping[str, Any]) -> str:
    return shown(Spread(**figure), milliseconds)
