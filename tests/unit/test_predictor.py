"""Windows in, results out: one line each, whatever happens to the model, the disk or a window."""

import json
import threading
from dataclasses import dataclass

import numpy as np
import pytest
from wearer_fixture import input_shape, int8_of, put_in_use, weights_of, windows

from vitalring.edge_agent import model_in_use
from vitalring.edge_agent.inference import Int8Model
from vitalring.edge_agent.predictor import Counts, CurrentModel, Predictor, open_model
from vitalring.edge_agent.results import FileSink
from vitalring.errors import ModelError, StorageError


@dataclass(frozen=True, eq=False)
class Window:
    number: int
    start_ms: int
    end_ms: int
    x: np.ndarray


def window(number, x=None):
    rows = windows(1, seed=number)[0] if x is None else x
    return Window(number, 1000 * number, 1000 * number + 600, rows)


class ListSink:
    """Keeps lines; `gate` holds the writer up, `fail` makes it fail."""

    def __init__(self):
        self.lines, self.models, self.closed = [], [], False
        self.gate = threading.Event()
        self.gate.set()
        self.written = threading.Semaphore(0)
        self.fail = False

    def write(self, line):
        self.gate.wait(60)
        if self.fail:
            raise StorageError("the disk is full")
        self.lines.append(json.loads(line))
        self.written.release()

    def model(self, about):
        self.models.append(about)

    def close(self):
        self.closed = True

    def wait(self, count=1):
        for _ in range(count):
            assert self.written.acquire(timeout=60)


def test_every_window_has_its_line_in_order(tmp_path):
    about = put_in_use(tmp_path)
    sink = ListSink()
    with Predictor(tmp_path, sink) as predictor:
        for number in range(300):
            predictor.on_window(window(number))
    assert sink.closed
    assert [line["window"] for line in sink.lines] == list(range(300))
    assert predictor.counts == Counts(predicted=300)
    assert sink.models == [about]
    model = Int8Model(int8_of(weights_of()), input_shape(), 3)
    for line in sink.lines[:20]:
        said = model.predict(window(line["window"]).x)
        assert line["class"] == about.classes[said.label]
        assert line["start_ms"] == 1000 * line["window"]
        assert line["latency_ms"] > 0


def test_windows_before_the_first_model_say_so(tmp_path):
    sink = ListSink()
    with Predictor(tmp_path, sink) as predictor:
        predictor.on_window(window(0))
        sink.wait()
        put_in_use(tmp_path)
        predictor.on_window(window(1))
    assert sink.lines[0] == {
        "window": 0,
        "start_ms": 0,
        "class": None,
        "reason": "no verified model yet",
    }
    assert sink.lines[1]["class"] in ("N", "S", "V")
    assert predictor.counts == Counts(predicted=1, without_model=1)


def test_a_model_renewed_between_windows_predicts_the_next_one(tmp_path):
    put_in_use(tmp_path, 1, 3)
    sink = ListSink()
    with Predictor(tmp_path, sink) as predictor:
        for number, (seed, round_number) in enumerate([(1, 3), (2, 4), (3, 5)]):
            put_in_use(tmp_path, seed, round_number)
            predictor.on_window(window(number))
            sink.wait()
    assert [line["round"] for line in sink.lines] == [3, 4, 5]
    assert len({line["model"] for line in sink.lines}) == 3
    assert [about.round for about in sink.models] == [3, 4, 5]
    for number, line in enumerate(sink.lines):
        model = Int8Model(int8_of(weights_of(number + 1)), input_shape(), 3)
        said = model.predict(window(number).x).probabilities
        assert list(line["probabilities"].values()) == pytest.approx(said.tolist(), abs=1e-4)


@pytest.mark.parametrize("kind", ["model-int8", "weights", "in-use"])
def test_a_renewal_that_cannot_be_read_leaves_the_model_of_before(tmp_path, kind, caplog):
    put_in_use(tmp_path, 1, 3)
    sink = ListSink()
    with Predictor(tmp_path, sink) as predictor:
        predictor.on_window(window(0))
        sink.wait()
        put_in_use(tmp_path, 2, 4)
        path = next((tmp_path / model_in_use.FOLDER).glob(f"{kind}*"))
        path.write_bytes(path.read_bytes() + b" ")
        predictor.on_window(window(1))
        sink.wait()
        assert "the model of before stays in use" in caplog.text
        put_in_use(tmp_path, 3, 5)
        predictor.on_window(window(2))
    assert [line["round"] for line in sink.lines] == [3, 3, 5]


def test_a_damaged_model_is_never_loaded(tmp_path):
    put_in_use(tmp_path)
    path = next((tmp_path / model_in_use.FOLDER).glob("model-int8*"))
    path.write_bytes(bytes(100))
    with pytest.raises(ModelError, match=path.name):
        open_model(tmp_path)
    assert CurrentModel(tmp_path).get() is None


def test_a_window_that_does_not_fit_is_refused_and_the_next_is_predicted(tmp_path):
    put_in_use(tmp_path)
    sink = ListSink()
    broken = windows(1)[0].copy()
    broken[0, 0] = np.nan
    with Predictor(tmp_path, sink) as predictor:
        for number, x in enumerate([broken, np.zeros((2, 2), np.float32), None]):
            predictor.on_window(window(number, x))
    reasons = [line.get("reason", "") for line in sink.lines]
    assert "nan at [0, 0]" in reasons[0]
    assert "has shape (2, 2)" in reasons[1]
    assert sink.lines[2]["class"] is not None
    assert predictor.counts == Counts(predicted=1, refused=2)


def test_sensing_is_not_held_up_by_a_disk_that_stands_still(tmp_path):
    put_in_use(tmp_path)
    sink = ListSink()
    sink.gate.clear()
    predictor = Predictor(tmp_path, sink, max_waiting=4, room_timeout_s=0.01)
    for number in range(20):
        predictor.on_window(window(number))
    # Four wait, and one or none is with the writer.
    assert predictor.counts.overrun in (15, 16)
    sink.gate.set()
    predictor.close()
    assert len(sink.lines) + predictor.counts.overrun == 20
    assert predictor.counts.predicted == len(sink.lines)


def test_a_result_that_cannot_be_written_is_counted(tmp_path):
    put_in_use(tmp_path)
    sink = ListSink()
    sink.fail = True
    with Predictor(tmp_path, sink) as predictor:
        predictor.on_window(window(0))
    assert predictor.counts == Counts(unwritten=1)


def test_a_fault_in_one_window_does_not_end_the_stream(tmp_path):
    put_in_use(tmp_path)
    sink = ListSink()
    with Predictor(tmp_path, sink) as predictor:
        predictor.on_window(window(0, "no array"))
        predictor.on_window(window(1))
    assert [line["window"] for line in sink.lines] == [1]
    assert predictor.counts == Counts(predicted=1, refused=1)


def test_results_go_to_a_file(tmp_path):
    put_in_use(tmp_path)
    path = tmp_path / "results.jsonl"
    with Predictor(tmp_path, FileSink(path, 2**20, 2)) as predictor:
        for number in range(5):
            predictor.on_window(window(number))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["window"] for line in lines] == list(range(5))
