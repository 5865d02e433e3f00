"""Measured in a process of its own: a device makes its update, by the agent's own code.

Each update is made by another key of the roster, on the same records, in a
state folder of its own; the first pays for loading model and key.
"""

import json
import sqlite3
import time
from pathlib import Path
from typing import Any

from vitalring.stopwatch import Stages
from vitalring.tools.measuring.child import answer, peak_bytes

_BEGAN = time.perf_counter()


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Make one update for each of `request["keys"]`; write its frames, return what it took."""
    # The agent's process: everything that `vitalring agent run` loads, its MQTT client included.
    import vitalring.edge_agent.main  # noqa: PLC0415, F401
    from vitalring.config import load_config  # noqa: PLC0415
    from vitalring.edge_agent import state  # noqa: PLC0415
    from vitalring.edge_agent.agent import Agent  # noqa: PLC0415
    from vitalring.edge_agent.budget import Budget  # noqa: PLC0415
    from vitalring.edge_agent.config import AgentConfig  # noqa: PLC0415
    from vitalring.edge_agent.keyring import Keyring  # noqa: PLC0415
    from vitalring.edge_agent.records import DataSetRecords  # noqa: PLC0415
    from vitalring.edge_agent.workshop import Workshop  # noqa: PLC0415
    from vitalring.errors import ConfigError  # noqa: PLC0415
    from vitalring.files import read_file  # noqa: PLC0415
    from vitalring.protocol import chunks, sealing, trust  # noqa: PLC0415

    imported = time.perf_counter() - _BEGAN
    folder = Path(request["state"])
    homes = folder / "federation" / "devices"
    config = load_config(AgentConfig, homes / request["device"] / "agent.toml")
    federation = trust.open_federation(
        read_file(config.federation), bytes.fromhex(config.authority_key)
    )
    note = (folder / "checkpoint").read_bytes()
    entries = (folder / "entries").read_bytes()
    announced = (folder / "announcement").read_bytes()
    workshop = Workshop(federation, folder / "cache", _nothing_to_fetch)
    updates = []
    for name in request["keys"]:
        db = state.open_state(Path(request["out"]) / f"{name}-state")
        agent = Agent(
            db,
            Budget(db),
            Keyring(homes / name / "keys"),
            DataSetRecords(*config.data_set, workshop.object, config.data_class),
            config.floors,
            config.participation,
            workshop,
            # Its process was measured by itself; its answer is what that process answered.
            lambda _spends, _delta: request["epsilon"],
        )
        agent.catch_up(note, lambda _tile: entries)
        watch = Stages()
        outcome = agent.consider(announced, time.time_ns() // 1_000_000)
        watch.done("all")
        if outcome != "ready":
            raise ConfigError(f"the device stays out of the measured round: {outcome}")
        pending = state.outbox(db)[0]
        box = sealing.seal(pending.update, federation.hospitals[0].sealing_key)
        frames = chunks.split(box, request["frame_bytes"], bytes(chunks.TRANSFER_ID_BYTES))
        watch.done("seal")
        for index, frame in enumerate(frames):
            (Path(request["out"]) / f"{name}-{index}.frame").write_bytes(frame)
        updates.append(
            {
                "stages": _stages(_noted(db), watch.seconds),
                "update_bytes": len(pending.update),
                "sent_bytes": sum(map(len, frames)),
                "frames": len(frames),
            }
        )
        db.close()
    return {"import": imported, "peak_bytes": peak_bytes(), "updates": updates}


def _noted(db: sqlite3.Connection) -> dict[str, float]:
    """Return the seconds that the agent itself noted for its one round."""
    noted: dict[str, float] = json.loads(db.execute("SELECT timings FROM rounds").fetchone()[0])
    return noted


def _stages(noted: dict[str, float], outside: dict[str, float]) -> dict[str, float]:
    own = {name: noted[name] for name in ("train", "encode", "encrypt", "sign")}
    rest = outside["all"] - sum(own.values())
    return {"check, charge, store": rest, **own, "seal": outside["seal"]}


def _nothing_to_fetch(name: bytes) -> bytes:
    raise LookupError(f"object {name.hex()} is not in the cache")


if __name__ == "__main__":
    answer(measure)
