"""Measured by an interpreter with NVFLARE: its encrypted mean, by its own filters and aggregator.

Stands alone: where this runs there is no vitalring. Key kits come from NVFLARE's provisioning
with its defaults (CKKS, degree 8192, primes of 60, 40 and 40 bits, scale 2**40), and messages
are in NVFLARE's own encoding. Times are processor seconds of all threads.
"""

import json
import logging
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_opt.he.homomorphic_encrypt import serialize_nested_dict
from nvflare.app_opt.he.intime_accumulate_model_aggregator import (
    HEInTimeAccumulateWeightedAggregator,
)
from nvflare.app_opt.he.model_decryptor import HEModelDecryptor
from nvflare.app_opt.he.model_encryptor import HEModelEncryptor
from nvflare.fuel.sec.security_content_service import SecurityContentService
from nvflare.fuel.utils import fobs
from nvflare.lighter.impl.he import HEBuilder

VARIABLE = "weights"


def update(number: int, dimension: int) -> npt.NDArray[np.float32]:
    """Return the update (dimension,) of norm 1 that every side takes for device `number`."""
    vector = np.random.default_rng(number).standard_normal(dimension)
    scaled: npt.NDArray[np.float32] = (vector / np.linalg.norm(vector)).astype(np.float32)
    return scaled


def device(request: dict[str, Any]) -> dict[str, Any]:
    """Encrypt updates as a client's filter does; the first client also makes the key kits."""
    folder = Path(request["folder"])
    if not (folder / "client_context.tenseal").exists():
        builder = HEBuilder()
        builder.initialize(None, None)
        for name, client in (("client", True), ("server", False)):
            kit = builder.get_serialized_context(is_client=client)
            (folder / f"{name}_context.tenseal").write_bytes(kit)
    context = _context(folder)
    encryptor = HEModelEncryptor()
    encryptor.handle_event(EventType.START_RUN, context)
    samples = []
    for number in range(1, request["clients"] + 1):
        dxo = DXO(
            DataKind.WEIGHT_DIFF,
            data={VARIABLE: update(number, request["dimension"])},
            meta={MetaKey.NUM_STEPS_CURRENT_ROUND: 1},
        )
        shareable = dxo.to_shareable()
        began = time.process_time()
        encryptor.process_dxo(dxo, shareable, context).update_shareable(shareable)
        encrypted = time.process_time()
        message = fobs.dumps(shareable)
        done = time.process_time()
        samples.append({"encrypt": encrypted - began, "serialise": done - encrypted})
        (folder / str(number)).write_bytes(message)
    return {"samples": samples, "bytes": len(message)}


def server(request: dict[str, Any]) -> dict[str, Any]:
    """Add updates, over and over the same, as the server's aggregator does; and their mean."""
    folder = Path(request["folder"])
    context = _context(folder)
    aggregator = HEInTimeAccumulateWeightedAggregator()
    aggregator.handle_event(EventType.START_RUN, context)
    added = []
    for turn in range(request["additions"]):
        message = (folder / str(turn % request["clients"] + 1)).read_bytes()
        began = time.process_time()
        shareable = fobs.loads(message)
        loaded = time.process_time()
        shareable.set_peer_props({ReservedKey.IDENTITY_NAME: f"client-{turn}"})
        shareable.add_cookie(AppConstants.CONTRIBUTION_ROUND, 0)
        if not aggregator.accept(shareable, context):
            raise SystemExit("NVFLARE's aggregator refused an update")
        done = time.process_time()
        added.append({"load": loaded - began, "add": done - loaded})
    began = time.process_time()
    dxo = from_shareable(aggregator.aggregate(context))
    serialize_nested_dict(dxo.data)
    message = fobs.dumps(dxo.to_shareable())
    mean = {"mean": time.process_time() - began}
    (folder / "mean").write_bytes(message)
    return {"added": added, "mean": [mean]}


def release(request: dict[str, Any]) -> dict[str, Any]:
    """Decrypt the mean, as each client does by itself."""
    folder = Path(request["folder"])
    context = _context(folder)
    decryptor = HEModelDecryptor()
    decryptor.handle_event(EventType.START_RUN, context)
    message = (folder / "mean").read_bytes()
    samples = []
    for _ in range(request["repeats"]):
        began = time.process_time()
        dxo = from_shareable(fobs.loads(message))
        mean = decryptor.process_dxo(dxo, Shareable(), context).data[VARIABLE]
        samples.append({"decrypt": time.process_time() - began})
    count, clients = request["additions"], request["clients"]
    turns = [count // clients + (number < count % clients) for number in range(clients)]
    updates = (update(number + 1, request["dimension"]).astype(float) for number in range(clients))
    true = sum(turn * vector for turn, vector in zip(turns, updates, strict=True)) / count
    error = float(np.linalg.norm(np.asarray(mean) - true) / np.linalg.norm(true))
    return {"samples": samples, "error": error}


def _context(folder: Path) -> FLContext:
    """Return a context as a running job has it; key kits of a test run are not signed."""
    SecurityContentService.initialize(str(folder))
    context, peer = FLContext(), FLContext()
    context.set_prop(FLContextKey.SECURE_MODE, False)
    context.set_prop(AppConstants.CURRENT_ROUND, 0)
    peer.set_prop(ReservedKey.IDENTITY_NAME, "server")
    context.set_peer_context(peer)
    return context


def peak_bytes() -> int:
    """Return the most memory that this process has held: VmHWM of proc(5), in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    logging.disable(logging.INFO)
    asked = json.loads(sys.argv[1])
    found = {"device": device, "server": server, "release": release}[asked["role"]](asked)
    versions = f"{version('nvflare')} with TenSEAL {version('tenseal')}"
    print(json.dumps({**found, "peak_bytes": peak_bytes(), "version": versions}))
