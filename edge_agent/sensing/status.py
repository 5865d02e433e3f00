"""What a person wants to know of a device's sensors: windows by label, and what went wrong."""

from contextlib import closing
from pathlib import Path
from typing import Any

from vitalring.database import is_made, open_read_only
from vitalring.edge_agent.sensing.buffer import FILE, last_number
from vitalring.edge_agent.sensing.config import SensingConfig

COUNTERS = (
    "samples",
    "windows",
    "gaps",
    "jumps_forward",
    "jumps_backward",
    "off_rate",
    "bad_samples",
    "bad_lines",
    "bad_messages",
    "repeated_messages",
    "bad_marks",
    "bad_annotation_lines",
    "bad_annotation_files",
    "source_faults",
    "source_restarts",
    "unpredicted",
    "dropped_unlabelled",
    "dropped_labelled",
    "expired",
    "dropped_annotations",
)


def sensing_status(config: SensingConfig, state_dir: Path) -> dict[str, Any]:
    """Return windows by label, counts and lag, read beside the running agent.

    `windows` is of those kept, `counts` since the first start. `lag_ms` is how far the newest
    sample of a stream lay behind the device's clock when it was kept. `again_after_power_cut` kept
    windows are not known on the disk to have been handed on to prediction: of a running agent
    mostly those of the newest block, which a power cut now would have handed on again.
    """
    path = state_dir / FILE
    if not is_made(path):
        return {"windows": {"kept": 0}}
    with closing(open_read_only(path)) as db:
        db.execute("BEGIN")
        groups = db.execute("SELECT label, conflict, COUNT(*) FROM windows GROUP BY 1, 2")
        by_label: dict[str, int] = {}
        conflicts = unlabelled = 0
        for label, conflict, count in groups:
            if label is not None:
                by_label[label] = by_label.get(label, 0) + count
            else:
                unlabelled += count
                conflicts += count if conflict else 0
        newest = last_number(db)
        in_reach = db.execute(
            "SELECT COUNT(*) FROM windows WHERE label IS NOT NULL AND number > ?",
            (newest - config.buffer.rows,),
        ).fetchone()[0]
        counters = dict(db.execute("SELECT name, value FROM counters").fetchall())
        again = db.execute(
            "SELECT COUNT(*) FROM windows WHERE number > ?", (counters.get("handed", 0),)
        ).fetchone()[0]
        annotations = db.execute("SELECT origin, COUNT(*) FROM annotations GROUP BY 1").fetchall()
        streams = db.execute("SELECT name, last_us, received_ms FROM streams").fetchall()
    return {
        "windows": {
            "kept": unlabelled + sum(by_label.values()),
            "labels": by_label,
            "unlabelled": unlabelled,
            "conflicts": conflicts,
            "in_reach": in_reach,
            "room_for": config.capacity,
        },
        "annotations": dict(annotations),
        "counts": {name: counters.get(name, 0) for name in COUNTERS},
        "again_after_power_cut": again,
        "streams": {
            name: {
                "last_sample_ms": None if last_us is None else last_us // 1000,
                "lag_ms": None if last_us is None else received_ms - last_us // 1000,
            }
            for name, last_us, received_ms in streams
        },
    }
