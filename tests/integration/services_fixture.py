"""A hospital's services as processes, made by the project's own commands.

`Hospital` writes a broker and a federation as an operator would and runs the roles; a
`Process` can be killed and started again at any moment. What happened is read from the
exported log and the devices' states afterwards (`Outcome`), not believed.

Run as a program, this file is `vitalring` with a fault: the process dies by SIGKILL at a named
point of the code, once for each marker file that is not there yet.
"""

import contextlib
import importlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
import types
from dataclasses import dataclass, field
from pathlib import Path

from mosquitto_fixture import lasting_port, mosquitto_program

from vitalring.edge_agent import budget
from vitalring.edge_agent.keyring import Keyring
from vitalring.gateway.mosquitto import GATEWAY
from vitalring.models.dataset import load_dataset
from vitalring.mqtt import BrokerConfig, Link, Message
from vitalring.protocol import lsag, tiles, topics, trust
from vitalring.protocol.cbor import decode, digest, type_of
from vitalring.protocol.records import AcceptedUpdate, GlobalModel, LoggedObject, RoundReport
from vitalring.protocol.release import ReleaseRefusal
from vitalring.protocol.signing import Signed
from vitalring.protocol.update import round_context

FEDERATION = "ward-net"
COHORT = "ward-1"
DATA = Path(__file__).resolve().parents[2] / "tools" / "datasets" / "mitbih"
DEVICES = ("r101", "r106", "r108", "r109", "r112", "r114")
GENEROUS_S = 600.0

FAULTS = {
    # name: (module, what is wrapped, whether the process dies before or after it)
    "gateway-begin": ("vitalring.gateway.rounds", "begin", "after"),
    "gateway-judge": ("vitalring.gateway.admission", "judge", "after"),
    "gateway-count": ("vitalring.gateway.admission", "count", "after"),
    "gateway-close": ("vitalring.gateway.rounds", "close", "after"),
    "gateway-finish": ("vitalring.gateway.rounds", "finish", "after"),
    "aggregator-propose": ("vitalring.aggregator.rounds", "propose", "after"),
    "aggregator-release": ("vitalring.aggregator.goals", "decode_group", "before"),
    "aggregator-conclude": ("vitalring.aggregator.rounds", "conclude", "after"),
    "agent-charge": ("vitalring.edge_agent.agent", "learn", "before"),
    "agent-outbox": ("vitalring.edge_agent.state", "put_outbox", "after"),
    "agent-submit": ("vitalring.edge_agent.daemon", "submit", "after"),
    "agent-settle": ("vitalring.edge_agent.state", "settle", "before"),
}


def wait_for(what, condition, timeout_s=GENEROUS_S):
    """Return the first true value of `condition`; fail with `what` when none comes."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.05)
    return found


class Process:
    """A process that may be killed, ended and started again."""

    def __init__(self, name, command, log):
        self.name = name
        self.command = [str(word) for word in command]
        self.log = log
        self._process = None

    def start(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )

    @property
    def code(self):
        """The exit code, or None while it runs."""
        return None if self._process is None else self._process.poll()

    def kill(self):
        """End it as a power cut would."""
        self._process.kill()
        self._process.wait()

    def end(self, timeout_s=GENEROUS_S):
        """Ask it to end; return its exit code."""
        if self.code is None:
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout_s)

    def end_whatever(self):
        if self._process is not None and self._process.poll() is None:
            self.kill()


class Broker(Process):
    """Mosquitto on the folder that `vitalring gateway init` wrote."""

    def __init__(self, folder, port):
        command = [mosquitto_program(), "-c", folder / "mosquitto.conf"]
        super().__init__("broker", command, folder / "stderr.log")
        self.folder = folder
        self.port = port

    def forget(self):
        """Lose everything that was kept, while it does not run."""
        for path in (self.folder / "data").iterdir():
            path.unlink()


def vitalring(*words):
    """Run a command to its end; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "vitalring.tools.cli", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Hospital:
    """One hospital with its broker, gateway, aggregator and devices, made by commands alone.

    `faults` are names of FAULTS; each strikes once, in whichever process comes there first.
    `in_process` chooses the devices that account within the agent's own process. `agents`
    processes share the devices; None is one each. `clocks` are seconds by which the agents'
    clocks are ahead. `study` is more of study.toml. `shared`: two gateways hold shares.
    """

    def __init__(
        self,
        folder,
        *,
        rounds,
        devices=3,
        min_cohort=3,
        window_s=0.5,
        timeout_s=60,
        retry_s=2,
        faults=(),
        in_process=slice(None),
        agents=1,
        clocks=(),
        study="",
        hospitals=1,
        shared=False,
    ):
        self.folder = folder
        self.devices = DEVICES[:devices]
        folder.mkdir(exist_ok=True)
        self.markers = folder / "faults"
        self.markers.mkdir()
        self.logs = folder / "logs"
        self.logs.mkdir()
        port = lasting_port()
        names = [f"hospital-{number}" for number in range(1, hospitals + 1)]
        mode = "threshold-he" if hospitals > 1 else "single-he"
        mode = "two-server" if shared else mode
        vitalring(
            "gateway", "init", folder / "broker", "--federation", FEDERATION,
            "--cohort", COHORT, "--host", "localhost", "--port", port, "--bind", "127.0.0.1",
            *(word for name in (names if hospitals > 1 else ()) for word in ("--hospital", name)),
            *(("--second-gateway", names[1]) if shared else ()),
        )  # fmt: skip
        # What a killed broker forgets at most, as an operator would choose it.
        (folder / "broker" / "local.d" / "save.conf").write_text("autosave_interval 1\n")
        (folder / "study.toml").write_text(
            f'federation = "{FEDERATION}"\ncohort = "{COHORT}"\nrounds = {rounds}\n'
            f'records = 250\ndata_class = "{load_dataset(DATA).data_class}"\n'
            f"min_cohort = {min_cohort}\n"
            f'secure_sum = "{mode}"\nhospitals = {hospitals}\n{study}'
        )
        (folder / "names.txt").write_text("\n".join(self.devices))
        vitalring(
            "federation", "init", folder / "federation", "--config", folder / "study.toml",
            "--devices", folder / "names.txt", "--broker-folder", folder / "broker",
            "--broker-url", f"mqtts://localhost:{port}", "--held-out", DATA, "--data", DATA,
            "--window", window_s, "--timeout", timeout_s, "--retry", retry_s,
        )  # fmt: skip
        homes = [folder / "federation" / "hospitals" / name for name in names]
        self.home, self.homes = homes[0], homes
        # A process of its own for each accounting after each kill would be most of the work.
        for name in self.devices[in_process]:
            config = self.device(name) / "agent.toml"
            config.write_text('accountant = "in-process"\n' + config.read_text())
        self.broker = Broker(folder / "broker", port)
        self.gateway = self._role(
            "gateway", ["gateway", "run", "--config", self.gateway_toml], faults
        )
        self.second_gateway = (
            self._role(
                "gateway-2", ["gateway", "run", "--config", homes[1] / "gateway.toml"], faults
            )
            if shared
            else None
        )
        self.aggregators = [
            self._role(
                "aggregator" if home == self.home else f"aggregator-{home.name}",
                ["aggregator", "run", "--config", home / "aggregator.toml"],
                faults,
            )
            for home in (homes[:1] if shared else homes)
        ]
        self.aggregator = self.aggregators[0]
        self.agents = []
        for index in range(agents or len(self.devices)):
            words = ["agent", "run"]
            for name in self.devices[index :: agents or len(self.devices)]:
                words += ["--config", self.device(name) / "agent.toml"]
            clock = [f"clock={clocks[index]}"] if clocks else []
            self.agents.append(self._role(f"agent-{index}", words, [*faults, *clock]))

    def _role(self, name, words, faults):
        program = ["-m", "vitalring.tools.cli"]
        if faults:
            program = [__file__, self.markers, ",".join(faults)]
        return Process(name, [sys.executable, *program, *words], self.logs / f"{name}.log")

    @property
    def gateway_toml(self):
        return self.home / "gateway.toml"

    @property
    def processes(self):
        second = [self.second_gateway] if self.second_gateway else []
        return [self.broker, self.gateway, *second, *self.aggregators, *self.agents]

    def device(self, name):
        return self.folder / "federation" / "devices" / name

    def __enter__(self):
        for process in self.processes:
            process.start()
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes):
            process.end_whatever()

    def standing(self):
        """Return (round, status, admitted) of the gateway's newest round, or None."""
        path = self.home / "gateway" / "gateway.sqlite"
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db,
        ):
            return db.execute(
                "SELECT round, status, admitted FROM rounds ORDER BY round DESC LIMIT 1"
            ).fetchone()
        return None

    def retained(self, *more):
        """Return every retained message, as the gateway's credentials let one read them."""
        tls = self.broker.folder / "tls"
        config = BrokerConfig(
            url=f"mqtts://localhost:{self.broker.port}",
            ca_file=tls / "ca.pem",
            certificate_file=tls / f"{GATEWAY}.pem",
            key_file=tls / f"{GATEWAY}.key",
        )
        names = ("plan/+", "receipts/#", "object/+", "log/#", "inner/#", *more)
        found = {}
        with Link(config, [f"vr1/{FEDERATION}/{name}" for name in names]) as link:
            link.wait_connected(GENEROUS_S)
            # The broker sends retained messages in answer to the subscription: when one published
            # afterwards comes back, all of them are here.
            last = topics.receipts_topic(FEDERATION, COHORT, 999)
            link.publish(last, b"end", retain=False)
            while True:
                message = link.receive(GENEROUS_S)
                assert message is not None
                if not isinstance(message, Message):
                    continue
                link.ack(message)
                if message.topic == last:
                    return found
                if message.retained:
                    found[message.topic] = message.payload

    def unsettled(self):
        """Return how many updates wait for a receipt, all devices together."""
        return sum(len(rows) for rows in self._states("SELECT plan FROM outbox").values())

    def device_rounds(self):
        """Return {device: {plan digest: status}}."""
        found = self._states("SELECT plan, status FROM rounds")
        return {name: dict(rows) for name, rows in found.items()}

    def _states(self, query):
        found = {}
        for name in self.devices:
            path = self.device(name) / "state" / "agent.sqlite"
            with contextlib.closing(sqlite3.connect(path)) as db:
                found[name] = db.execute(query).fetchall()
        return found

    def export(self):
        """Export the log with the command, have it verified by the command, and read it."""
        folder = self.folder / "log"
        vitalring("gateway", "export", folder, "--config", self.gateway_toml)
        authority = (self.folder / "federation" / "public").joinpath("federation.cbor").read_bytes()
        said = vitalring("verify", folder)
        assert "is sound" in said
        return Outcome.read(self, folder, authority, said)

    def said(self, name, text):
        """Count a text in what a process wrote."""
        return (self.logs / f"{name}.log").read_text(errors="replace").count(text)

    def tail(self):
        """Return the last lines of all logs, for a failed test."""
        return "\n".join(
            f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-15:])
            for path in sorted(self.logs.iterdir())
        )


@dataclass
class LoggedRound:
    """A round as the exported log has it."""

    plan: bytes
    context: bytes
    digests: list = field(default_factory=list)
    tags: list = field(default_factory=list)
    report: RoundReport | None = None
    model: GlobalModel | None = None
    refusals: list = field(default_factory=list)


@dataclass
class Outcome:
    """The exported log, and what each device's own state says."""

    hospital: Hospital
    folder: Path
    rounds: list
    verdict: str

    @classmethod
    def read(cls, hospital, folder, signed_federation, verdict):
        authority = bytes.fromhex((folder / "authority").read_text().strip())
        federation = trust.open_federation(signed_federation, authority)
        size = int((folder / "checkpoint").read_text().splitlines()[1])
        rounds = []
        for tile in tiles.tiles(size):
            if tile.level is not None:
                continue
            bundle = (folder / tile.path).read_bytes()
            for entry in tiles.decode_bundle_start(bundle, tile.width):
                if type_of(entry) == AcceptedUpdate.TYPE:
                    update = decode(AcceptedUpdate, entry)
                    assert update.plan == rounds[-1].plan
                    rounds[-1].digests.append(update.digest)
                    rounds[-1].tags.append(update.signature[:32])
                    continue
                logged = decode(LoggedObject, entry)
                record = (folder / "objects" / logged.digest.hex()).read_bytes()
                assert digest(record) == logged.digest
                if logged.kind == "round-plan":
                    plan = trust.peek_round_plan(record, federation)
                    rounds.append(LoggedRound(logged.digest, round_context(plan)))
                elif logged.kind == "round-report":
                    rounds[-1].report = trust.open_report(record, federation)
                elif logged.kind == "release-refusal":
                    refusal = decode(ReleaseRefusal, decode(Signed, record).payload)
                    rounds[-1].refusals.append(refusal.reason)
                elif logged.kind == "global-model":
                    rounds[-1].model = decode(GlobalModel, decode(Signed, record).payload)
        return cls(hospital, folder, rounds, verdict)

    @property
    def updates(self):
        return sum(len(logged.tags) for logged in self.rounds)

    @property
    def refused(self):
        total = {}
        for logged in self.rounds:
            for reason, count in logged.report.refused.items():
                total[reason] = total.get(reason, 0) + count
        return total

    def check(self, rounds, min_cohort):
        """Hold every promise against the log."""
        # 1. Every round ended, and its model follows from its report.
        assert len(self.rounds) == rounds
        for logged in self.rounds:
            assert logged.report.admitted == len(logged.tags)
            enough = len(logged.tags) >= min_cohort
            assert logged.report.status == ("summed" if enough else "below_min_cohort")
            assert logged.model is not None, "a round without its model"
            # Hospitals that decrypt together may refuse a round, and say why.
            assert logged.model.applied == enough or logged.refusals
        assert [logged.model.final for logged in self.rounds] == [False] * (rounds - 1) + [True]
        # 2. No device counts twice in a round, and every tag is a device of ours.
        owners = self._owners()
        for logged in self.rounds:
            assert len(set(logged.tags)) == len(logged.tags)
            assert len(set(logged.digests)) == len(logged.digests)
            assert set(logged.tags) <= set(owners[logged.plan])
        # 3. What a device was told is counted is in the log, and what is in the log its device
        #    knows of.
        states = self.hospital.device_rounds()
        for logged in self.rounds:
            in_log = {owners[logged.plan][tag] for tag in logged.tags}
            told = {name for name, seen in states.items() if seen.get(logged.plan) == "counted"}
            assert told == in_log, (told, in_log, states)
        # 4. Each device paid once for every round in which it made an update, and no others.
        for name in self.hospital.devices:
            assert self._charges(name) == sorted(states[name])

    def _owners(self):
        """{plan: {tag: device}} of every device's key, which only the test has all of."""
        keys = {
            name: Keyring(self.hospital.device(name) / "keys").require(1).secret
            for name in self.hospital.devices
        }
        return {
            logged.plan: {lsag.tag_of(key, logged.context): name for name, key in keys.items()}
            for logged in self.rounds
        }

    def _charges(self, name):
        path = self.hospital.device(name) / "state" / "agent.sqlite"
        with contextlib.closing(sqlite3.connect(path)) as db:
            entries = budget.Budget(db).entries()
        kinds = (budget.CHARGED, budget.UNACCOUNTED)
        return sorted(entry.round_plan for entry in entries if entry.kind in kinds)


def _arm(name, markers):
    """Make the process die at a fault's point, unless it has struck already."""
    module_name, attribute, moment = FAULTS[name]
    module = importlib.import_module(module_name)
    original = getattr(module, attribute)

    def struck(*args, **kwargs):
        if moment == "before":
            die()
        result = original(*args, **kwargs)
        if moment == "after":
            die()
        return result

    def die():
        try:
            (markers / name).touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(module, attribute, struck)


def _shift_clock(ahead_s):
    """Let the agent's clock be wrong; what measures durations stays right."""
    module = importlib.import_module("vitalring.edge_agent.main")
    right = time.time_ns
    module.time = types.SimpleNamespace(time_ns=lambda: right() + ahead_s * 10**9)


def main():
    markers, names, *words = sys.argv[1:]
    role = words[0]
    for name in names.split(","):
        if name.startswith("clock="):
            _shift_clock(int(name.removeprefix("clock=")))
        elif name.startswith(role) and not (Path(markers) / name).exists():
            _arm(name, Path(markers))
    cli = importlib.import_module("vitalring.tools.cli")
    sys.exit(cli.main(words))


if __name__ == "__main__":
    main()
