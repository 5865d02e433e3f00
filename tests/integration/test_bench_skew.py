"""The comparison on unlike devices: the device's and the server's own code, and honest parts."""

import json
import shutil

import numpy as np
import pytest
from shipped_fixture import shipped_rows, write_part

from vitalring.aggregator import key as keys
from vitalring.errors import ConfigError
from vitalring.models.artefact import initial_weights, load_artefact
from vitalring.models.dataset import Records
from vitalring.models.runtime import TrainableModel
from vitalring.protocol.bfv import choose_params
from vitalring.protocol.ciphertext import add, decode_ciphertexts, encode_ciphertexts
from vitalring.protocol.packing import pack_fields, unpack_fields
from vitalring.protocol.privacy import Training
from vitalring.protocol.quantise import Codec
from vitalring.protocol.records import ServerOptimiser
from vitalring.protocol.seal import Encryptor
from vitalring.tools import cli
from vitalring.tools.bench.learning import Work, learn
from vitalring.tools.bench.skew import SIDES, SkewSettings, measure_skew, summary
from vitalring.tools.bench.skew_devices import (
    load_people,
    make_devices,
    mixes,
    redistribute,
    validation_split,
)

TRAIN = ("r106", "r109", "r114", "r118", "r124", "r201")
TEST = ("r200", "r214")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_folder(tmp_path_factory.mktemp("data"), turned=False)


def small_folder(target, *, turned):
    """A few shipped patients with every third of their rows; `turned` spoils the test labels."""
    rows = {name: shipped_rows(name, every=3) for name in (*TRAIN, *TEST)}
    if turned:
        rows |= {name: (rows[name][0], (rows[name][1] + 1) % 3) for name in TEST}
    return write_part(target, rows, TEST)


@pytest.fixture(scope="module")
def model():
    artefact = load_artefact("ecg_cnn")
    return artefact, TrainableModel(artefact)


def work_of(folder, artefact, server, **changes):
    people = load_people(folder).train
    training = Training(0.5, 2, 2, 0.3, 1, 1, **changes)
    codec = Codec(n_max=len(people), clip=5.0, weight_cap=100)
    start = initial_weights(artefact, bytes(32))
    return Work(people, start, training, codec, server, seed=3)


@pytest.mark.parametrize("name", ["fedavg", "adam"])
def test_encryption_changes_no_weight(folder, model, name):
    """A round's fields go through real ciphertexts and come out as the same sum, bit for bit."""
    artefact, network = model
    work = work_of(folder, artefact, ServerOptimiser(name, 0.1, 0.9))
    params = choose_params(work.codec, artefact.info.dimension)
    key = keys.generate(params)
    encryptor = Encryptor(params, key.public_key())

    def encrypted(fields):
        total = None
        for each in fields:
            sent = encode_ciphertexts(encryptor.encrypt(pack_fields(each, params)), params)
            received = decode_ciphertexts(sent, params)
            total = received if total is None else add(total, received, params)
        return unpack_fields(key.decrypt(total), params, len(fields))

    clear, ciphered = list(learn(network, work)), list(learn(network, work, encrypted))
    assert len(clear) == len(ciphered) == 2
    for one, other in zip(clear, ciphered, strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.abs(clear[0] - work.start).max() > 0


def test_a_study_repeats_and_a_proximal_term_changes_it(folder, model):
    artefact, network = model
    server = ServerOptimiser("fedavg", 1.0, 0.0)
    ends = [
        list(learn(network, work_of(folder, artefact, server, **changes)))[-1]
        for changes in ({}, {}, {"proximal": 1.0})
    ]
    np.testing.assert_array_equal(ends[0], ends[1])
    assert np.abs(ends[0] - ends[2]).max() > 1e-4


def test_small_alpha_makes_devices_unlike_and_large_alpha_alike():
    y = np.repeat([0, 1, 2, 3], 500)
    pool = Records("pool", np.zeros((2000, 1), np.float32), y)
    share = {}
    for alpha in (0.1, 1.0, 100.0):
        made = redistribute([pool], alpha, 20, np.random.default_rng(1))
        counts = np.stack([np.bincount(each.y, minlength=4) for each in made])
        share[alpha] = (counts.max(axis=1) / counts.sum(axis=1)).mean()
        assert sum(map(len, made)) == 2000
    # One class of four is a share of 0.25; Dir(alpha p) with alpha 1 still favours one class.
    assert share[0.1] > 0.9 > share[1.0] > 0.5 > share[100.0] > 0.25


def test_a_device_never_has_its_unseen_rows_and_fits_on_a_part_of_its_own(folder):
    people = load_people(folder)
    devices = make_devices(people.train)
    assert len(devices) == len(TRAIN)
    for device, person in zip(devices, people.train, strict=True):
        fit, own, unseen = (
            {row.tobytes() for row in each.x}
            for each in (device.fit, device.records, device.unseen)
        )
        assert fit < own
        assert not own & unseen
        assert own | unseen == {row.tobytes() for row in person.x}
        # The fifth of a fifth that the device itself keeps back is at the end of each class.
        assert 0.7 < len(device.fit) / len(device.records) < 0.9
    shares = mixes(devices, 3)
    np.testing.assert_allclose(shares.sum(axis=1), 1)


def test_too_few_rows_are_refused():
    few = [Records(str(i), np.zeros((9, 1), np.float32), np.zeros(9, np.int64)) for i in range(4)]
    with pytest.raises(ConfigError, match="0 of 4 devices have 10 records"):
        make_devices(few)
    with pytest.raises(ConfigError, match="too few to set some aside"):
        validation_split(few[:2], np.random.default_rng(0))


def test_the_worst_fifth_is_the_worst_fifth():
    scores = [{"accuracy": a / 10, "macro_f1": 0.5} for a in (9, 1, 5, 7, 3, 8, 6, 2, 10, 4)]
    found = summary(scores)
    assert found["accuracy"] == pytest.approx(0.55)
    assert found["worst_accuracy"] == pytest.approx(0.15)


SMALL = SkewSettings(alphas=(0.1,), rounds=2, search_rounds=1, seeds=1, rates=(0.1, 1.0))


@pytest.fixture(scope="module")
def measured(folder):
    return measure_skew(folder, "ecg_cnn", SMALL)


def test_all_sides_are_measured_on_the_same_work(measured):
    assert [case["alpha"] for case in measured["cases"]] == [0.1, None]
    for case in measured["cases"]:
        assert [side["name"] for side in case["sides"]] == ["FedAvg", "FedProx", "Adam", "Yogi"]
        for side in case["sides"]:
            # As many settings tried, as many rounds, as many seeds.
            assert len(side["tried"]) == 4
            assert [len(curve) for curve in side["curves"]] == [2]
            best = max(side["tried"], key=lambda point: point["macro_f1"])
            assert (side["device_rate"], side["own"]) == (best["device_rate"], best["own"])
            assert side["held_out"][0]["macro_f1"] == side["curves"][0][-1]
        assert 0 <= case["personal"][0]["used"] <= case["devices"]
    assert {len(side.values) for side in SIDES} == {2}


def test_the_search_never_asks_the_held_out_people(measured, tmp_path):
    spoilt = small_folder(tmp_path / "spoilt", turned=True)
    other = measure_skew(spoilt, "ecg_cnn", SMALL)
    for one, two in zip(measured["cases"], other["cases"], strict=True):
        for side, same in zip(one["sides"], two["sides"], strict=True):
            assert side["tried"] == same["tried"]
            assert side["own_rows"] == same["own_rows"]
            assert side["held_out"] != same["held_out"]
        assert one["personal"] == two["personal"]


def test_the_command_writes_a_page_and_a_picture(folder, tmp_path, capsys):
    small = ["--alphas", "100", "--rounds", "1", "--search-rounds", "1", "--seeds", "1"]
    command = ["bench", "skew", "--data", str(folder), "--model", "ecg_cnn", *small]
    command += ["--rates", "0.3"]
    assert cli.main([*command, "--out", str(tmp_path)]) == 0
    names = ["skew-mitbih.json", "skew-mitbih.md", "skew-mitbih.svg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    page = (tmp_path / "skew-mitbih.md").read_text()
    assert "| Dirichlet 100 | FedProx |" in page
    assert "| by person | FedAvg + heads | – |" in page
    assert "](skew-mitbih.svg)" in page
    assert str(folder) not in page
    result = json.loads((tmp_path / "skew-mitbih.json").read_text())
    figure = result["cases"][0]["sides"][0]["held_out"][0]["macro_f1"]
    assert f"{figure:.3f}" in page
    assert (tmp_path / "skew-mitbih.svg").read_text().startswith("<?xml")
    assert "Who learns what" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "nothing would be measured"),
        (["--rates", ","], "nothing would be measured"),
        (["--alphas", "-1"], "use a number above 0"),
        (["--model", "no_such"], "no_such"),
    ],
)
def test_what_cannot_be_compared_is_refused(folder, arguments, message, capsys):
    command = ["bench", "skew", "--data", str(folder), "--model", "ecg_cnn"]
    assert cli.main([*command, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_enough_people_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "two")
    for name in TRAIN[2:]:
        (tmp_path / "two" / "devices" / f"{name}.npz").unlink()
    with pytest.raises(ConfigError, match="too few to set some aside"):
        measure_skew(tmp_path / "two", "ecg_cnn", SMALL)
