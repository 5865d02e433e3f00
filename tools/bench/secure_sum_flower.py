"""Measured by an interpreter with Flower: its SecAgg+, by its own client mod and server functions.

Stands alone: where this runs there is no vitalring. Flower's defaults hold (clipping range 8,
quantisation to 2**22, modulus 2**32); every client has the greatest weight, which costs no
precision. Times are processor seconds of all threads.
"""

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

from flwr.app import ConfigRecord, Context, Message, Metadata, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import (
    Code,
    FitRes,
    Status,
    bytes_to_ndarray,
    ndarrays_to_parameters,
)
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_extract,
    get_parameters_shape,
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.compat.common.recorddict_compat import fitres_to_recorddict

CLIPPING_RANGE = 8.0
QUANTIZATION_RANGE = 1 << 22
MODULUS_RANGE = 1 << 32
MAX_WEIGHT = 1000


class Client:
    """One client, who answers the server's messages through Flower's mod."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.context = Context(
            run_id=1, node_id=number, node_config={}, state=RecordDict(), run_config={}
        )
        self.sent_bytes = 0
        self.seconds: dict[str, float] = {}

    def answer(
        self, stage: str, configs: dict[str, Any], fit: RecordDict | None = None
    ) -> ConfigRecord:
        """Take a stage's message and return the reply's configuration record."""
        content = RecordDict({RECORD_KEY_CONFIGS: ConfigRecord({Key.STAGE: stage, **configs})})
        message = Message(content=content, metadata=_metadata(self.number))
        began = time.process_time()
        reply = secaggplus_mod(message, self.context, lambda asked, _: Message(fit, reply_to=asked))
        self.seconds[stage] = time.process_time() - began
        record = reply.content.config_records[RECORD_KEY_CONFIGS]
        self.sent_bytes += sum(map(_size, record.values()))
        return record


def update(number: int, dimension: int) -> npt.NDArray[np.float32]:
    """Return the update (dimension,) of norm 1 that every side takes for device `number`."""
    vector = np.random.default_rng(number).standard_normal(dimension)
    scaled: npt.NDArray[np.float32] = (vector / np.linalg.norm(vector)).astype(np.float32)
    return scaled


def device(request: dict[str, Any]) -> dict[str, Any]:
    """Run clients who are all one another's neighbours; the server's part is only to forward.

    The first `clients` of them have an update, the others one parameter: they are there to
    give their shares.
    """
    folder, shares = Path(request["folder"]), request["shares"]
    clients = [Client(number) for number in range(1, shares + 1)]
    setup = {
        Key.SAMPLE_NUMBER: shares,
        Key.SHARE_NUMBER: shares,
        Key.THRESHOLD: request["threshold"],
        Key.CLIPPING_RANGE: CLIPPING_RANGE,
        Key.TARGET_RANGE: QUANTIZATION_RANGE,
        Key.MOD_RANGE: MODULUS_RANGE,
        Key.MAX_WEIGHT: float(MAX_WEIGHT),
    }
    keys = {}
    for client in clients:
        reply = client.answer(Stage.SETUP, setup)
        keys[str(client.number)] = [reply[Key.PUBLIC_KEY_1], reply[Key.PUBLIC_KEY_2]]
    letters: dict[int, list[tuple[int, bytes]]] = {client.number: [] for client in clients}
    for client in clients:
        reply = client.answer(Stage.SHARE_KEYS, keys)
        sent = zip(reply[Key.DESTINATION_LIST], reply[Key.CIPHERTEXT_LIST], strict=True)
        for to, letter in sent:
            letters[to].append((client.number, letter))
    for client in clients:
        post = letters[client.number]
        full = client.number <= request["clients"]
        dimension = request["dimension"] if full else 1
        parameters = ndarrays_to_parameters([update(client.number, dimension)])
        fit = FitRes(Status(Code.OK, ""), parameters, MAX_WEIGHT, {})
        reply = client.answer(
            Stage.COLLECT_MASKED_VECTORS,
            {
                Key.CIPHERTEXT_LIST: [letter for _, letter in post],
                Key.SOURCE_LIST: [source for source, _ in post],
            },
            fitres_to_recorddict(fit, keep_input=False),
        )
        for place, content in enumerate(reply[Key.MASKED_PARAMETERS]):
            (folder / f"{client.number}-{place}").write_bytes(content)
    collected: dict[int, list[str]] = {client.number: [] for client in clients}
    numbers = [client.number for client in clients]
    for client in clients:
        asked = {Key.ACTIVE_NODE_ID_LIST: numbers, Key.DEAD_NODE_ID_LIST: []}
        reply = client.answer(Stage.UNMASK, asked)
        for owner, share in zip(reply[Key.NODE_ID_LIST], reply[Key.SHARE_LIST], strict=True):
            collected[owner].append(share.hex())
    (folder / "shares.json").write_text(json.dumps(collected))
    full = clients[: request["clients"]]
    return {"samples": [client.seconds for client in full], "bytes": full[0].sent_bytes}


def server(request: dict[str, Any]) -> dict[str, Any]:
    """Add masked vectors, over and over the same; take the masks of one of each away."""
    folder, clients = Path(request["folder"]), request["clients"]
    total: Any = None
    added, once = [], None
    for turn in range(request["additions"]):
        content = [(folder / f"{turn % clients + 1}-{place}").read_bytes() for place in (0, 1)]
        began = time.process_time()
        vector = [bytes_to_ndarray(part) for part in content]
        total = vector if total is None else parameters_addition(total, vector)
        added.append({"add": time.process_time() - began})
        if turn + 1 == clients:
            once = total
    masked = parameters_mod(total if once is None else once, MODULUS_RANGE)
    removed = []
    shares = json.loads((folder / "shares.json").read_text())
    for number in range(1, clients + 1):
        owned = [bytes.fromhex(share) for share in shares[str(number)]]
        began = time.process_time()
        seed = combine_shares(owned)
        mask = pseudo_rand_gen(seed, MODULUS_RANGE, get_parameters_shape(masked))
        masked = parameters_subtraction(masked, mask)
        removed.append({"unmask": time.process_time() - began})
    whole = once is not None and clients == request["shares"]
    error = _error(masked, clients, request["dimension"]) if whole else None
    return {"added": added, "removed": removed, "error": error}


def _error(masked: list[npt.NDArray[np.int64]], clients: int, dimension: int) -> float:
    """Return the error of the mean in units of the mean, both root mean squares."""
    factor, vectors = factor_extract(parameters_mod(masked, MODULUS_RANGE))
    decoded = dequantize(vectors, CLIPPING_RANGE, QUANTIZATION_RANGE)[0]
    mean = (decoded - (clients - 1) * CLIPPING_RANGE) * (QUANTIZATION_RANGE / factor)
    true = sum(update(number, dimension).astype(float) for number in range(1, clients + 1))
    return float(np.linalg.norm(mean - true / clients) / np.linalg.norm(true / clients))


def _metadata(number: int) -> Metadata:
    """Return what Flower's server would write on a message to a client."""
    return Metadata(
        run_id=1,
        message_id="message",
        src_node_id=0,
        dst_node_id=number,
        reply_to_message_id="",
        group_id="1",
        created_at=time.time(),
        ttl=3600.0,
        message_type="train",
    )


def _size(value: object) -> int:
    if isinstance(value, list):
        return sum(map(_size, value))
    return len(value) if isinstance(value, bytes) else 8


def peak_bytes() -> int:
    """Return the most memory that this process has held: VmHWM of proc(5), in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    found = {"device": device, "server": server}[asked["role"]](asked)
    print(json.dumps({**found, "peak_bytes": peak_bytes(), "version": version("flwr")}))
