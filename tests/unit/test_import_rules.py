"""Who may import whom. Rooms meet only through `protocol`; a device loads no more than it needs."""

import ast
import functools
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("protocol", "models", "edge_agent", "gateway", "aggregator", "tools")
FLOOR = "floor"
MAY_IMPORT = {
    FLOOR: {FLOOR},
    "protocol": {FLOOR, "protocol"},
    "models": {FLOOR, "models"},
    "edge_agent": {FLOOR, "edge_agent", "protocol", "models"},
    "gateway": {FLOOR, "gateway", "protocol"},
    "aggregator": {FLOOR, "aggregator", "protocol", "models"},
    "tools": {FLOOR, *ROOMS},
}
FOREIGN = {
    FLOOR: {"paho"},
    "protocol": {"cbor2", "nacl", "numpy", "tenseal", "zstandard"},
    "edge_agent": {"dp_accounting", "nacl", "numpy", "randomgen"},
    "gateway": {"cryptography", "nacl", "numpy"},
    "aggregator": {"nacl", "numpy"},
}
ONLY_IN = {
    "tenseal": {"protocol/seal.py"},
    "zstandard": {"protocol/seal.py"},
    "dp_accounting": {"edge_agent/accountant.py"},
    "randomgen": {"edge_agent/randomness.py"},
    "tflite_runtime": {"models/runtime.py"},
    "ai_edge_litert": {"models/runtime.py"},
    "paho": {"vitalring/mqtt.py", "vitalring/mqtt_connection.py"},
}
# The model-building environment's packages, in the modules that run there and nowhere else.
BUILDING = {"tensorflow", "tensorflow_privacy", "tf2onnx", "onnx", "onnxruntime"}
BUILDERS = {
    "models/convert.py",
    "models/imported",
    "models/layers",
    "models/network.py",
    "models/networks",
    "models/trace.py",
    # What the device's own path is measured against.
    "tools/bench/tensorflow_process.py",
    "tools/bench/papers/dpsgd_process.py",
    # Attacks, in processes of that environment.
    "tools/attack/inversion_tensorflow.py",
    "tools/attack/membership_tensorflow.py",
}


@dataclass(frozen=True)
class Import:
    """One name that a file imports, wherever in the file; `lazy` inside a function."""

    file: str
    room: str
    name: str
    lazy: bool

    @property
    def top(self):
        return self.name.split(".")[0]

    @property
    def to_room(self):
        """The room of a `vitalring` module, None for foreign ones."""
        parts = self.name.split(".")
        if parts[0] != "vitalring":
            return None
        return parts[1] if len(parts) > 1 and parts[1] in ROOMS else FLOOR


def imports_of(path):
    file = path.relative_to(ROOT).as_posix()
    room = file.split("/")[0]
    return list(_walk(ast.parse(path.read_text()), file, room if room in ROOMS else FLOOR, False))


def _walk(node, file, room, lazy):
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
        for child in node.orelse:
            yield from _walk(child, file, room, lazy)
        return
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(file, room, alias.name, lazy)
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{file} has a relative import"
        for alias in node.names:
            yield Import(file, room, f"{node.module}.{alias.name}", lazy)
    # `importlib.import_module("x")` and `__import__("x")` import as well.
    if isinstance(node, ast.Call) and "import" in ast.dump(node.func):
        for argument in node.args[:1]:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield Import(file, room, argument.value, True)
    inner = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, file, room, inner)


@functools.cache
def all_imports():
    folders = [ROOT / room for room in ROOMS]
    files = [file for folder in folders for file in folder.rglob("*.py")]
    files += list((ROOT / "vitalring").glob("*.py"))
    return [found for file in files for found in imports_of(file)]


def violations(rule):
    return sorted({f"{i.file} imports {i.name}" for i in all_imports() if rule(i)})


def test_the_walk_sees_what_it_should():
    found = {(i.file, i.name, i.lazy) for i in all_imports()}
    assert ("edge_agent/agent.py", "vitalring.protocol.trust", False) in found
    assert ("protocol/secure_sum.py", "vitalring.protocol.seal.Encryptor", True) in found
    assert ("vitalring/__init__.py", "vitalring.tools.simulate.api.simulate", True) in found
    assert {i.room for i in all_imports()} == {FLOOR, *ROOMS}


def test_rooms_import_only_what_they_may():
    def rule(found):
        if (found.file, found.name) == (
            "vitalring/__init__.py",
            "vitalring.tools.simulate.api.simulate",
        ):
            return not found.lazy
        return found.to_room is not None and found.to_room not in MAY_IMPORT[found.room]

    assert violations(rule) == []


def test_rooms_use_only_their_own_foreign_packages():
    def rule(found):
        known = found.room in FOREIGN and found.to_room is None
        ours = FOREIGN.get(found.room, set()) | sys.stdlib_module_names
        return known and found.top not in ours

    assert violations(rule) == []


def test_some_packages_have_one_door():
    def rule(found):
        doors = ONLY_IN.get(found.top)
        return doors is not None and found.file not in doors and found.room != "tools"

    assert violations(rule) == []


def test_the_accountant_loads_its_library_only_when_asked():
    assert violations(lambda found: found.top == "dp_accounting" and not found.lazy) == []


def test_only_model_builders_see_tensorflow():
    def rule(found):
        builder = any(found.file == b or found.file.startswith(f"{b}/") for b in BUILDERS)
        return found.top in BUILDING and not builder

    assert violations(rule) == []


def test_one_module_can_decrypt():
    def rule(found):
        decrypts = found.name.endswith(".Decryptor") and found.file != "aggregator/key.py"
        whole = found.name == "vitalring.protocol.seal" and found.file != "aggregator/key.py"
        # `tools` makes the key of a simulation's hospital and starts its aggregator.
        holds = found.name.startswith("vitalring.aggregator.key")
        return decrypts or whole or (holds and found.room not in ("aggregator", "tools"))

    assert violations(rule) == []


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        (
            "vitalring.edge_agent.main",
            "tensorflow scipy dp_accounting rich matplotlib amqtt cryptography jinja2 "
            "vitalring.gateway vitalring.aggregator vitalring.tools",
        ),
        (
            "vitalring.gateway.main",
            "tenseal tensorflow scipy dp_accounting rich matplotlib amqtt tflite_runtime "
            "ai_edge_litert vitalring.models vitalring.edge_agent vitalring.aggregator "
            "vitalring.tools",
        ),
        (
            "vitalring.aggregator.main",
            "tensorflow scipy dp_accounting rich matplotlib amqtt vitalring.gateway "
            "vitalring.edge_agent vitalring.tools",
        ),
        ("vitalring", "numpy nacl cbor2 paho rich vitalring.tools vitalring.protocol"),
        ("vitalring.tools.cli", "tensorflow scipy dp_accounting matplotlib amqtt tenseal"),
    ],
)
def test_a_fresh_interpreter_loads_no_more_than_the_party_needs(module, absent):
    program = f"import sys, {module}; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    loaded = set(done.stdout.split())
    assert module in loaded
    assert loaded & set(absent.split()) == set()
