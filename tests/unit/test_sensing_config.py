"""A device's agent.toml with a live sensor: read whole, and refused with a cure where it is not."""

import pytest

from vitalring.config import load_config
from vitalring.edge_agent.config import AgentConfig
from vitalring.edge_agent.sensing.config import LinesConfig, ReplayConfig, TopicConfig
from vitalring.errors import ConfigError

BASE = f"""
federation = "federation.cbor"
authority_key = "{"0" * 64}"
cohort = "ward-1"
ring_keys = "keys"
state_dir = "state"
"""
BROKER = """
[broker]
url = "mqtts://gateway.example"
"""
SENSOR = """
[sensor]
sampling_hz = 50
channels = 6
window = 128
stride = 64
"""
LINES = """
[sensor.lines]
path = "/dev/ttyUSB0"
baud = 115200
"""
WHOLE = f"""{BASE}{BROKER}{SENSOR}
inputs = [0, 1, 2]
scale = [0.5, 0.5, 0.5]
gap_ms = 50
{LINES}
[labels]
classes = ["rest", "walk"]
min_overlap = 0.6
mark_s = 5
mark_before_s = 10
annotations = "annotations.csv"
button = "button"
[[labels.rules]]
label = "walk"
channel = 5
above = 1.5
for_s = 2
[[labels.rules]]
label = "rest"
channel = 0
below = 60
of = "signal"
[labels.signal]
sampling_hz = 1
channels = 1
[labels.signal.mqtt]
topic = "ward/pulse"
[labels.signal.mqtt.broker]
url = "mqtt://localhost"
[labels.mqtt]
topic = "ward/labels"
[labels.mqtt.broker]
url = "mqtt://localhost"
[buffer]
megabytes = 50
days = 7
rows = 2000
[results]
file = "results.jsonl"
"""


def load(tmp_path, text):
    (tmp_path / "agent.toml").write_text(text)
    return load_config(AgentConfig, tmp_path / "agent.toml")


def test_a_whole_configuration_is_read(tmp_path):
    sensing = load(tmp_path, WHOLE).sensing
    assert isinstance(sensing.sensor.source, LinesConfig)
    assert str(sensing.sensor.source.path) == "/dev/ttyUSB0"
    assert sensing.sensor.width == 3
    assert sensing.sensor.gap_us == 50_000
    assert sensing.labels.annotations == tmp_path / "annotations.csv"
    assert (sensing.labels.press.before_ms, sensing.labels.press.after_ms) == (10_000, 5000)
    assert isinstance(sensing.labels.signal.source, TopicConfig)
    assert [rule.label for rule in sensing.rules("signal")] == ["rest"]
    assert sensing.rules("sensor")[0].threshold.for_us == 2_000_000
    assert sensing.buffer.rows == 2000


def test_a_recording_lies_beside_the_file_that_names_it(tmp_path):
    replay = '[sensor.replay]\npath = "r.npz"\nspeed = 10\n'
    source = load(tmp_path, BASE + BROKER + SENSOR + replay).sensing.sensor.source
    assert source == ReplayConfig(tmp_path / "r.npz", speed=10.0)


def test_a_device_with_a_data_set_has_no_sensor(tmp_path):
    config = load(tmp_path, f'{BASE}data = "data"\ndevice = "d1"\n{BROKER}')
    assert config.sensing is None
    assert config.data_set == (tmp_path / "data", "d1")
    with pytest.raises(ConfigError, match="no data set"):
        _ = load(tmp_path, WHOLE).data_set


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (BASE + BROKER, "none of the three"),
        (f'{BASE}data = "x"\n{BROKER}', "device is missing"),
        (f'{BASE}device = "x"\n{BROKER}', "data is missing"),
        (f'{BASE}data = "x"\ndevice = "y"\n{BROKER}{SENSOR}{LINES}', "more than one of the three"),
        (BASE + BROKER + SENSOR, "0 sources of samples"),
        (f'{BASE}data = "x"\ndevice = "y"\n{BROKER}[buffer]\nrows = 5\n', "there is no .sensor."),
        (
            f'{BASE}data = "x"\ndevice = "y"\n{BROKER}[labels]\nclasses = ["a", "b"]\n',
            "there is no .sensor.",
        ),
        (f"keep_model = false\n{WHOLE}", "keep_model = true"),
        (WHOLE.replace("rows = 2000", "rows = 100000"), "raise the one or lower the other"),
        (WHOLE.replace('label = "walk"', 'label = "run"'), "labels.classes does not name it"),
        (WHOLE.replace("channel = 5", "channel = 6"), "names channel 6"),
        (WHOLE.replace("channel = 0", "channel = 1"), "labels.signal has channels 0 to 0"),
        (WHOLE.replace('classes = ["rest", "walk"]', 'classes = ["walk", "walk"]'), "once"),
        (WHOLE.replace("min_overlap = 0.6", "min_overlap = 0"), "labels.min_overlap"),
        (WHOLE.replace("above = 1.5", ""), "neither above nor below"),
        (WHOLE.replace("window = 128", "windows = 128"), "sensor.windows is not known"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, text, why):
    with pytest.raises(ConfigError, match=why) as caught:
        load(tmp_path, text)
    assert "agent.toml" in str(caught.value)
