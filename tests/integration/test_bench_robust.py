"""The comparison on hostile devices: real codec, real limits, attacks that do what they say."""

import json

import numpy as np
import pytest
from shipped_fixture import shipped_part

from vitalring.aggregator.robust import decode_group, norm_limit
from vitalring.errors import EncodingRangeError
from vitalring.models.artefact import initial_weights, load_artefact
from vitalring.models.dataset import Records
from vitalring.models.runtime import TrainableModel
from vitalring.protocol.quantise import Codec, decode_sum
from vitalring.tools import cli
from vitalring.tools.bench.robust import DEFENCES, RobustSettings, measure_robust, run
from vitalring.tools.bench.robust_attacks import ATTACKS, Situation, encoded, radix, turn_labels
from vitalring.tools.bench.robust_devices import Fleet, virtual_devices
from vitalring.tools.bench.skew_devices import load_people

TRAIN, TEST = ("r106", "r109", "r114", "r118"), ("r200",)
SEED = bytes(range(32))
CODEC = Codec(n_max=60, clip=0.5, weight_cap=40)
D = 500


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return shipped_part(tmp_path_factory.mktemp("data"), TRAIN, TEST, every=4)


@pytest.fixture(scope="module")
def fleet(folder):
    people, artefact = load_people(folder), load_artefact("ecg_cnn")
    devices = virtual_devices(people.train, 12, 15, np.random.default_rng(0))
    start = initial_weights(artefact, bytes(32))
    return Fleet(TrainableModel(artefact), 3, devices, people.held_out, start, 2, seed=0)


def situation(*, group, share=0.1, place=0):
    rng = np.random.default_rng([7, place])
    honest = rng.standard_normal(D) * 0.34 / np.sqrt(D)
    return Situation(
        honest=honest,
        trained=2 * honest,
        direction=np.random.default_rng(8).standard_normal(D),
        rows=40,
        codec=CODEC,
        seed=SEED,
        group=group,
        hostile_share=share,
        generator=np.random.default_rng([9, place]),
    )


def decoded(attack, group, decode):
    """Decode a group's sum in which the first device attacks."""
    places = [situation(group=group, place=place) for place in range(group)]
    total = ATTACKS[attack].fields(places[0])
    total = total + sum(encoded(at.honest, at) for at in places[1:])
    fields = (total % radix(CODEC)).astype(np.uint64)
    return decode(fields, group, CODEC, D, SEED).mean


@pytest.mark.parametrize("group", [3, 10, 60])
def test_honest_encoders_pass_whatever_they_are_given(group):
    for attack in ("label flip", "sign flip"):
        assert np.isfinite(decoded(attack, group, decode_group)).all()


def test_a_sign_flip_is_the_negative_and_a_label_flip_what_was_trained():
    at = situation(group=1)
    for name, update in (("sign flip", -at.honest), ("label flip", at.trained)):
        fields = ATTACKS[name].fields(situation(group=1)).astype(np.uint64)
        mean = decode_sum(fields, 1, CODEC, D, SEED).mean
        scaled = update * min(1.0, CODEC.clip / np.linalg.norm(update))
        assert np.linalg.norm(mean - scaled) < 0.03


@pytest.mark.parametrize("attack", ["times 100", "garbage"])
@pytest.mark.parametrize("group", [3, 10, 60])
def test_what_spoils_a_sum_is_refused_in_groups_of_any_size(attack, group):
    with pytest.raises(EncodingRangeError):
        decoded(attack, group, decode_group)


def test_largest_fields_show_in_groups_of_three_and_hide_in_ten():
    decoded("largest fields", 3, decode_sum)
    with pytest.raises(EncodingRangeError, match="honest ones reach"):
        decoded("largest fields", 3, decode_group)
    assert np.linalg.norm(decoded("largest fields", 10, decode_group)) > 0.4 * CODEC.clip


@pytest.mark.parametrize("group", [3, 5, 10])
def test_who_knows_the_limit_turns_a_group_around_and_is_not_seen(group):
    """What stays possible, measured: the reason why a combination is needed besides limits."""
    mean = decoded("under the limit", group, decode_group)
    direction = situation(group=group).direction
    assert 0.7 * CODEC.clip < np.linalg.norm(mean) < norm_limit(group, 255 * group, CODEC, D)
    assert mean @ direction / np.linalg.norm(mean) / np.linalg.norm(direction) < -0.8


def test_turned_labels_are_in_reverse_order():
    records = Records("a", np.zeros((4, 1), np.float32), np.array([0, 1, 2, 0]))
    assert turn_labels(records, 3).y.tolist() == [2, 1, 0, 2]


def test_virtual_devices_hold_rows_of_one_person_and_share_none_while_they_last(folder):
    people = load_people(folder).train
    made = virtual_devices(people, 8, 30, np.random.default_rng(1))
    assert [len(each) for each in made] == [30] * 8
    for first, second, person in zip(made[::2], made[1::2], people, strict=True):
        own = {row.tobytes() for row in person.x}
        parts = [{row.tobytes() for row in each.x} for each in (first, second)]
        assert parts[0] | parts[1] <= own
        assert not parts[0] & parts[1]


def test_limits_refuse_nobody_where_nobody_attacks(fleet):
    runs = [run(fleet, defence, None, 0.0) for defence in DEFENCES[:4]]
    assert runs[0] == runs[1]
    assert [each["groups"] for each in runs] == [1, 1, 4, 4]
    assert all(each["rounds_lost"] == each["left_out_a_round"] == 0 for each in runs)


def test_one_garbage_device_stops_one_sum_and_costs_one_group(fleet):
    plain, limits, trimmed, *_ = (
        run(fleet, defence, ATTACKS["garbage"], 1 / 12) for defence in DEFENCES[:3]
    )
    assert plain["rounds_lost"] == limits["rounds_lost"] == 2
    assert (trimmed["rounds_lost"], trimmed["left_out_a_round"]) == (0, 1)


def test_the_command_writes_a_page_and_a_picture(folder, tmp_path, capsys):
    small = ["--devices", "10", "--rows", "15", "--rounds", "1", "--shares", "0.1"]
    command = ["bench", "robust", "--data", str(folder), "--model", "ecg_cnn", *small]
    assert cli.main([*command, "--out", str(tmp_path)]) == 0
    names = ["robust-mitbih.json", "robust-mitbih.md", "robust-mitbih.svg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    page = (tmp_path / "robust-mitbih.md").read_text()
    assert "| 1 of 10: garbage | all rounds | all rounds |" in page
    assert "](robust-mitbih.svg)" in page
    assert str(folder) not in page
    result = json.loads((tmp_path / "robust-mitbih.json").read_text())
    assert [case["attack"] for case in result["cases"]] == ["", *ATTACKS]
    for case in result["cases"]:
        assert len(case["defences"]) == len(DEFENCES)
        for runs in case["defences"]:
            assert f"{runs[0]['macro_f1']:.3f}" in page
    assert (tmp_path / "robust-mitbih.svg").read_text().startswith("<?xml")
    assert "in spite of hostile devices" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devices", "9"], "10 devices or more"),
        (["--rounds", "0"], "10 devices or more"),
        (["--shares", "1.5"], "between 0 and 1"),
        (["--devices", "10", "--shares", "0.01"], "one device of 10 at least"),
        (["--model", "no_such"], "no_such"),
    ],
)
def test_what_cannot_be_compared_is_refused(folder, arguments, message, capsys):
    command = ["bench", "robust", "--data", str(folder), "--model", "ecg_cnn"]
    assert cli.main([*command, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_measurements_repeat(folder):
    settings = RobustSettings(devices=10, rows=10, rounds=1, shares=(0.2,))
    one, two = (measure_robust(folder, "ecg_cnn", settings)["cases"] for _ in range(2))
    assert one == two
