"""Start a gateway from its configuration file, and say how it is doing."""

import json
import threading
import time
from pathlib import Path
from typing import Any

from vitalring.files import read_secret, write_secret
from vitalring.gateway import log, rosters, rounds, share_service, store
from vitalring.gateway.config import GatewayConfig, load_keys, load_study
from vitalring.gateway.export import export_log
from vitalring.gateway.service import Gateway, subscriptions
from vitalring.gateway.share_service import ShareGateway
from vitalring.mqtt import Link, PersistentSession, new_client_id
from vitalring.protocol import trust


def run_gateway(config: GatewayConfig, stop: threading.Event) -> None:
    """Run the gateway until `stop` is set. Raises ConfigError or StorageError at the start."""
    db = store.open_store(config.state_dir)
    try:
        files = load_study(config, rosters.newest(db))
        keys = load_keys(config, files.study)
        session = PersistentSession(_session_id(config.state_dir / "session"))
        shared = files.study.shared
        listens = subscriptions(files.study)
        if shared:
            role = trust.log_of(files.study.federation, keys.log.public)
            listens = share_service.subscriptions(files.study, role)
        link = Link(config.broker, listens, session=session)
        gateway = (ShareGateway if shared else Gateway)(
            db,
            files,
            keys,
            link,
            config.broker.max_payload_bytes,
            config.chunks,
            lambda: time.time_ns() // 1_000_000,
            config.kept_updates,
        )
        with link:
            gateway.run(stop)
    finally:
        db.close()


def _session_id(path: Path) -> str:
    """Return the id under which the broker queues updates while the gateway is away."""
    wanted = new_client_id()
    if path.exists() and path.stat().st_size != len(wanted):
        path.unlink()  # a crash while it was written; no broker has seen it
    if not path.exists():
        write_secret(path, wanted.encode())
    return read_secret(path, len(wanted)).decode()


def status(config: GatewayConfig) -> dict[str, Any]:
    """Return what a person wants to know of a gateway, for `vitalring gateway status`.

    Raises ConfigError where it has not run yet.
    """
    db = store.read_store(config.state_dir)
    try:
        files = load_study(config, rosters.newest(db))
        roster = files.study.roster
        current = rounds.latest(db)
        note = log.latest_checkpoint(db)
        signed = rounds.last_report(db)
        report = trust.open_report(signed, files.study.federation) if signed else None
        return {
            "federation": files.study.federation.name,
            "study": files.study.plan.study,
            "devices": len(roster.keys),
            "roster": {
                "epoch": roster.epoch,
                "serial": roster.serial,
                "digest": files.study.roster_digest.hex(),
            },
            "log_entries": log.size(db),
            "checkpoint": note.decode() if note else None,
            "round": None
            if current is None
            else {
                "number": current.number,
                "status": current.status,
                "admitted": current.admitted,
                "expected": len(roster.keys),
            },
            "refused_in_last_report": None if report is None else report.refused,
        }
    finally:
        db.close()


def status_text(config: GatewayConfig) -> str:
    """Return the status as text for a terminal."""
    return json.dumps(status(config), indent=2)


def export(config: GatewayConfig, folder: Path) -> None:
    """Write the log into `folder`, for anybody to verify."""
    db = store.read_store(config.state_dir)
    try:
        files = load_study(config, rosters.newest(db))
        export_log(db, files, folder)
    finally:
        db.close()
