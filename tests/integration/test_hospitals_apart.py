"""Three hospitals with a folder each: cards, roster, key, certificates, two rounds, a sound log.

What a hospital's staff types, as docs/keys.md and docs/gateway.md say it, on one machine.
"""

import json
import re
import shutil
import sys

import pytest
from mosquitto_fixture import Mosquitto
from services_fixture import Process, wait_for

from vitalring.gateway.certificates import AUTHORITY
from vitalring.models.dataset import devices, load_dataset
from vitalring.tools.cli import main
from vitalring.tools.simulate.layout import SHIPPED_DATA
from vitalring.tools.verify import verify_log

pytestmark = pytest.mark.mosquitto

NAMES = ("north", "south", "west")
STUDY = """\
federation = "fed"
study = "hearts"
cohort = "ward-3"
rounds = 2
records = 170
data_class = "heart-rhythm"
min_cohort = 4
secure_sum = "threshold-he"
hospitals = 3
"""


class Hospitals:
    """Folders of three hospitals and the authority, and what they print."""

    def __init__(self, folder, capsys):
        self.folder, self.capsys = folder, capsys
        self.config, self.names = folder / "study.toml", folder / "devices.txt"
        self.config.write_text(STUDY)
        train, _ = devices(SHIPPED_DATA, load_dataset(SHIPPED_DATA))
        self.devices = list(train[:5])
        self.names.write_text("\n".join(self.devices))

    def say(self, *words):
        assert main(["federation", *map(str, words)]) == 0
        return self.capsys.readouterr().out

    def home(self, name):
        return self.folder / name

    def found(self):
        """Cards to the authority, its public files to all, the roster around."""
        cards = []
        for name in NAMES:
            self.say("hospital", self.home(name), "--name", name)
            cards += ["--card", self.home(name) / f"{name}.card"]
        office = self.folder / "office"
        said = self.say(
            "assemble", office, "--config", self.config, "--devices", self.names, *cards
        )
        self.authority = re.search(r"authority +([0-9a-f]{64})", said)[1]
        for name in NAMES:
            shutil.copytree(office / "public", self.home(name) / "public")
        of = ("--authority", self.authority)
        self.say("enrol", self.home("north"), "--config", self.config, "--devices", self.names, *of)
        roster = self.home("north") / "public" / "roster.cbor"
        for name in NAMES[1:]:
            shutil.copy(roster, self.home(name) / "public")
            said = self.say("sign", self.home(name), *of)
            roster = self.home(name) / "public" / "roster.cbor"
        assert "signed by all" in said
        for name in NAMES[:-1]:
            shutil.copy(roster, self.home(name) / "public")

    def make_key(self):
        """The ceremony, its files carried by hand."""
        for name in NAMES:
            home = self.home(name)
            identity = home / "hospitals" / name / "identity.seed"
            self.say(
                *("keys", "start", home / "key", "--study", home / "public"),
                *("--identity", identity, "--authority", self.authority),
            )
        for step in range(6):
            self._carry()
            said = [self.say("keys", "next", self.home(name) / "key") for name in NAMES]
            if all("fingerprint" in each for each in said) and step < 5:
                heard = self.say("keys", "fingerprint", self.home("north") / "key").strip()
                for name in NAMES:
                    self.say("keys", "fingerprint", self.home(name) / "key", "--heard", heard)
        assert all("done" in each for each in said), said

    def _carry(self):
        for name in NAMES:
            for path in (self.home(name) / "key" / "exchange").iterdir():
                for other in NAMES:
                    target = self.home(other) / "key" / "exchange" / path.name
                    if not target.exists():
                        shutil.copy(path, target)

    def configure(self, broker):
        """Each hospital gets its certificate from the host, and writes its own configuration."""
        for name in NAMES:
            tls = self.home(name) / "broker" / "tls"
            if name == "north":
                shutil.copytree(broker.folder / "tls", tls)
            else:
                tls.mkdir(parents=True)
                own = f"aggregator-{name}"
                for part in (f"{AUTHORITY}.pem", f"{own}.pem", f"{own}.key"):
                    shutil.copy2(broker.folder / "tls" / part, tls)
            said = self.say(
                *("configure", self.home(name), "--authority", self.authority),
                *("--key", self.home(name) / "key"),
                *("--broker-url", f"mqtts://localhost:{broker.port}"),
                *("--broker-folder", self.home(name) / "broker"),
                *("--held-out", SHIPPED_DATA, "--data", SHIPPED_DATA),
                *("--window", 0, "--timeout", 300, "--retry", 5),
            )
            assert "2 of 3 hospitals" in said
            assert ("gateway run" in said) == (name == "north")


def test_hospitals_on_machines_of_their_own_train_together(tmp_path, capsys):
    hospitals = Hospitals(tmp_path, capsys)
    hospitals.found()
    hospitals.make_key()
    broker = Mosquitto(tmp_path / "broker", hospitals=NAMES)
    hospitals.configure(broker)
    broker.start()
    host = hospitals.home("north")
    gateway = host / "hospitals" / "north" / "gateway.toml"
    commands = {"gateway": ["gateway", "run", "--config", gateway]}
    for name in NAMES:
        config = hospitals.home(name) / "hospitals" / name / "aggregator.toml"
        commands[name] = ["aggregator", "run", "--config", config]
    commands["agents"] = ["agent", "run"]
    for name in hospitals.devices:
        commands["agents"] += ["--config", host / "devices" / name / "agent.toml"]
    program = [sys.executable, "-m", "vitalring.tools.cli"]
    processes = [
        Process(name, [*program, *words], tmp_path / f"{name}.log")
        for name, words in commands.items()
    ]
    try:
        for process in processes:
            process.start()
        aggregators = [process for process in processes if process.name in NAMES]
        wait_for(
            "the final model",
            lambda: all(process.code == 0 for process in aggregators),
        )
    finally:
        for process in processes:
            process.end_whatever()
        broker.stop()
    assert main(["gateway", "export", "--config", str(gateway), str(tmp_path / "log")]) == 0
    capsys.readouterr()
    config = hospitals.home("west") / "hospitals" / "west" / "aggregator.toml"
    assert main(["aggregator", "status", "--config", str(config)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["hospital"], told["round"], told["refusals"]) == ("west", 2, [])
    assert told["model"]["final"] and told["model"]["applied"]
    assert told["key"]["failed_checks"] == 0
    verdict = verify_log(tmp_path / "log", bytes.fromhex(hospitals.authority))
    assert [len(verdict.rounds), verdict.updates] == [2, 10]
