"""An hour of recording through an agent that trains and predicts at the same time.

With VITALRING_HAPT set to the file of HAPT's raw recordings, several people's recordings with the
authors' annotations, in csv with gaps between them; otherwise shipped heartbeats, one after
another. The hour is played faster than it was recorded; everything else is as on a device: the
project's own commands, a real broker, one process for each role.
"""

import contextlib
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import services_fixture
from services_fixture import Hospital, vitalring, wait_for

from vitalring.config import load_config
from vitalring.edge_agent.config import AgentConfig
from vitalring.edge_agent.sensing.buffer import Buffer
from vitalring.edge_agent.sensing.labels import Annotation, verdict
from vitalring.models.dataset import load_dataset

pytestmark = [pytest.mark.long, pytest.mark.mosquitto]

HAPT = os.environ.get("VITALRING_HAPT")
SPEED = 20
HOUR_S = 3600
ROUNDS = 12
ROWS = 1000
START_MS = 1_700_000_000_000
LONGEST_S = 600
MOST_GROWTH_MB = 8.0
ACTIVITIES = (
    "walking", "walking_upstairs", "walking_downstairs", "sitting", "standing", "laying",
)  # fmt: skip


@dataclass
class Hour:
    """A recording with its annotations, and the windows that offline cutting gives."""

    sensor: str
    classes: tuple
    annotations: list
    windows: list  # (start_ms, end_ms, x)
    gaps: int
    model: str


def write_table(path, annotations):
    lines = [f"{each.start_ms},{each.end_ms},{each.label}" for each in annotations]
    partial = path.with_suffix(".new")
    partial.write_text("\n".join(["start,end,label", *lines, ""]))
    partial.replace(path)


def hapt(folder, file):
    """Devices of five people, one held out, and an hour of others with pauses in between."""
    with np.load(file) as arrays:
        raw, offset, exp_id = arrays["signals"], arrays["offset"], arrays["exp_id"]
        subject, marks = arrays["subject"], arrays["labels"]
        scale = [float(arrays["acc_g_per_lsb"])] * 3 + [float(arrays["gyro_rad_s_per_lsb"])] * 3
    marks = marks[marks[:, 2] <= len(ACTIVITIES)]
    data = folder / "data"
    (data / "devices").mkdir(parents=True)
    (data / "dataset.toml").write_text(
        f'name = "hapt"\nkind = "windows"\nclasses = {json.dumps(ACTIVITIES)}\n'
        f'sampling_hz = 50\nscale = {scale}\ntest_devices = ["p06"]\n'
    )
    for person in range(1, 7):
        x, y = [], []
        for index in np.flatnonzero(subject == person):
            signal = raw[offset[index] : offset[index + 1]]
            for _, _, activity, first, last in marks[marks[:, 0] == exp_id[index]]:
                for begin in range(first - 1, last - 128 + 1, 64):
                    x.append(signal[begin : begin + 128])
                    y.append(activity - 1)
        np.savez(data / "devices" / f"p0{person}.npz", x=np.stack(x), y=np.array(y))
    hour = Hour("", ACTIVITIES, [], [], gaps=-1, model="har_cnn")
    now_ms, left, lines = START_MS, HOUR_S * 50, []
    for index in np.flatnonzero(subject > 6):
        signal = raw[offset[index] : offset[index + 1]][:left]
        if not len(signal):
            break
        rows = zip(range(now_ms, now_ms + 20 * len(signal), 20), signal.tolist(), strict=True)
        lines += [f"{t},{','.join(map(str, row))}" for t, row in rows]
        for begin in range(0, len(signal) - 128 + 1, 64):
            at = now_ms + 20 * begin
            x = signal[begin : begin + 128].astype(np.float32) * np.float32(scale)
            hour.windows.append((at, at + 2560, x))
        hour.annotations += [
            Annotation(now_ms + 20 * int(first - 1), now_ms + 20 * int(last), ACTIVITIES[a - 1])
            for _, _, a, first, last in marks[marks[:, 0] == exp_id[index]]
            if first <= len(signal)
        ]
        now_ms += 20 * len(signal) + 5000
        left -= len(signal)
        hour.gaps += 1
    (folder / "hour.csv").write_text("\n".join([*lines, ""]))
    hour.sensor = (
        "sampling_hz = 50\nchannels = 6\nwindow = 128\nstride = 64\n"
        f'scale = {scale}\n[sensor.replay]\npath = "{folder / "hour.csv"}"\n'
    )
    return data, ("p01", "p02", "p03", "p04", "p05"), hour


def heartbeats(folder):
    """The shipped devices, and an hour of the beats of one of them."""
    data, names = services_fixture.DATA, services_fixture.DEVICES[:5]
    with np.load(data / "devices" / f"{names[0]}.npz") as arrays:
        x, y = arrays["x"], arrays["y"]
    beats = HOUR_S * 360 // 216
    order = np.arange(beats) % len(x)
    signal = x[order].reshape(-1, x.shape[2])
    np.savez(folder / "hour.npz", signal=signal, rate=360.0, start_ms=START_MS)
    scale, classes = [0.005, 0.008, 0.008, 0.008], ("N", "S", "V")
    starts_us = START_MS * 1000 + np.rint(np.arange(beats + 1) * 216 * (1e6 / 360)).astype(np.int64)
    hour = Hour("", classes, [], [], gaps=0, model="ecg_cnn")
    for beat, row in enumerate(order):
        begin, end = int(starts_us[beat]) // 1000, -(-int(starts_us[beat + 1]) // 1000)
        hour.annotations.append(Annotation(begin, end, classes[y[row]]))
        values = x[row].astype(np.float32) * np.float32(scale)
        hour.windows.append((begin, end, values))
    hour.sensor = (
        "sampling_hz = 360\nchannels = 4\nwindow = 216\nstride = 216\n"
        f'scale = {scale}\n[sensor.replay]\npath = "{folder / "hour.npz"}"\n'
    )
    return data, names, hour


def go_live(device, table, hour):
    """Turn a device with a data set into one with a sensor."""
    config = device / "agent.toml"
    kept = [
        line for line in config.read_text().splitlines()
        if not line.startswith(("data =", "device ="))
    ]  # fmt: skip
    config.write_text(
        f'data_class = "{load_dataset(services_fixture.DATA).data_class}"\n'
        + "\n".join(kept)
        + f"\n[sensor]\n{hour.sensor}speed = {SPEED}\n"
        + f'[labels]\nclasses = {json.dumps(hour.classes)}\nannotations = "{table}"\n'
        + f'[buffer]\nrows = {ROWS}\n[results]\nfile = "results.jsonl"\n'
    )
    return load_config(AgentConfig, config)


def resident_mb(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("the agent has ended")


def results(device):
    """What was said of each window: {number: [line, ...]}."""
    said = {}
    for path in sorted(device.glob("results.jsonl*")):
        for line in path.read_text().splitlines():
            parsed = json.loads(line)
            said.setdefault(parsed["window"], []).append(parsed)
    return said


def test_an_hour_of_recording_trains_and_predicts_in_flat_memory(tmp_path, monkeypatch, capsys):
    data, names, hour = hapt(tmp_path, HAPT) if HAPT else heartbeats(tmp_path)
    monkeypatch.setattr(services_fixture, "DATA", data)
    monkeypatch.setattr(services_fixture, "DEVICES", names)
    hospital = Hospital(
        tmp_path / "hospital", rounds=ROUNDS, devices=len(names), min_cohort=4,
        window_s=2.0, timeout_s=15.0, retry_s=5.0, study=f'model = "{hour.model}"\n',
        # The accountant of the live device runs in a process of its own, as on a device.
        in_process=slice(1, None),
        agents=None,
    )  # fmt: skip
    device, table = hospital.device(names[0]), tmp_path / "annotations.csv"
    config = go_live(device, table, hour)
    # What the clinician has written by now; the rest comes late, for windows long cut.
    early = hour.annotations[: len(hour.annotations) // 3]
    write_table(table, early)
    memory = []
    with hospital:
        agent = hospital.agents[0]
        began = time.monotonic()
        late = False
        while (handed := len(results(device))) < len(hour.windows):
            assert time.monotonic() - began < LONGEST_S, f"{handed} windows\n{hospital.tail()}"
            assert agent.code is None, hospital.tail()
            memory.append((handed, resident_mb(agent._process.pid)))
            if not late and handed > len(hour.windows) // 3:
                write_table(table, hour.annotations)
                late = True
            time.sleep(1.0)
        took = time.monotonic() - began
        wait_for(
            "all labels",
            lambda: _labelled(device) == len(_labels(hour)),
        )
        status = json.loads(vitalring("agent", "status", "--config", device / "agent.toml"))
        wal = (device / "state" / "sensing.sqlite-wal").stat().st_size
        said = results(device)
        for process in hospital.agents:
            assert process.end() == 0, hospital.tail()
    # 1. No window is lost or doubled, on the disk and in what the wearer was told.
    with contextlib.closing(Buffer(config.state_dir, config.sensing)) as buffer:
        kept = buffer.windows_after(0, 10**6)
        labels = dict(buffer.db.execute("SELECT number, label FROM windows WHERE label NOT NULL"))
    assert [window.start_ms for window in kept] == [start for start, _, _ in hour.windows]
    assert [window.number for window in kept] == list(range(1, len(kept) + 1))
    for window, (_, _, x) in zip(kept, hour.windows, strict=True):
        assert np.array_equal(window.x, x)
    assert sorted(said) == list(range(1, len(kept) + 1))
    assert {len(lines) for lines in said.values()} == {1}
    counts = status["sensing"]["counts"]
    assert (counts["gaps"], counts["windows"]) == (hour.gaps, len(kept))
    assert counts["off_rate"] == counts["bad_lines"] == counts["bad_samples"] == 0
    # 2. Labels are those of the annotations, the late ones too.
    assert labels == _labels(hour)
    # 3. It trained, and predicted with what rounds brought while more of them went on.
    assert status["rounds"].get("counted", 0) >= 3, status["rounds"]
    assert set(status["rounds"]) <= {"counted", "ready", "missed", "charged"}
    used = [lines[0].get("round") for _, lines in sorted(said.items())]
    assert len({number for number in used if number is not None}) >= 3
    assert used[-1] is not None
    # 4. Memory is flat: the last fifth of the hour against the third fifth, when the bounded
    # set of records is full and every part has been at work.
    size = len(hour.windows)
    middle = [mb for handed, mb in memory if 0.4 * size <= handed < 0.6 * size]
    end = [mb for handed, mb in memory if handed >= 0.8 * size]
    growth = float(np.median(end) - np.median(middle))
    with capsys.disabled():
        sys.stdout.write(
            f"\n{len(kept)} windows of {HOUR_S} s in {took:.0f} s, "
            f"{len(labels)} labelled, rounds {status['rounds']}, models of rounds "
            f"{sorted({n for n in used if n is not None})}; resident {np.median(middle):.1f} MB, "
            f"then {np.median(end):.1f} MB, most {max(mb for _, mb in memory):.1f} MB; "
            f"write-ahead log {wal / 1e6:.1f} MB\n"
        )
    assert growth < MOST_GROWTH_MB
    assert wal < 32e6


def _labels(hour):
    """The definition: {number: label}."""
    about = sorted(hour.annotations, key=lambda each: each.start_ms)
    found = {}
    first = 0
    for number, (start, end, _) in enumerate(hour.windows, 1):
        while first < len(about) and about[first].end_ms <= start:
            first += 1
        near = [each for each in about[first : first + 8] if each.start_ms < end]
        said = verdict(start, end, near, 0.5)
        if said.label is not None:
            found[number] = said.label
    return found


def _labelled(device):
    status = json.loads(vitalring("agent", "status", "--config", device / "agent.toml"))
    return sum(status["sensing"]["windows"]["labels"].values())
