"""`vitalring attack` end to end: small studies, and the state folder of a real gateway."""

import hashlib
import json

import numpy as np
import pytest

from vitalring.models.artefact import initial_weights, load_artefact
from vitalring.models.runtime import TrainableModel
from vitalring.protocol.adaptive_clip import next_factor, unclipped
from vitalring.protocol.quantise import decode_sum
from vitalring.tools import cli
from vitalring.tools.attack.pool import deal, load_pool
from vitalring.tools.measuring.virtual import play
from vitalring.tools.plans import plan_of
from vitalring.tools.settings import SERVERS, StudySettings
from vitalring.tools.simulate.layout import SHIPPED_DATA


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out = tmp_path_factory.mktemp("attack")
    arguments = "--devices 4 --rows 24 --rounds 2 --seeds 2 --targets 8 --epsilons 8"
    code = cli.main(
        [
            "attack",
            "source-inference",
            *arguments.split(),
            "--gateway-rounds",
            "2",
            "--window",
            "0.2",
            "--out",
            str(out),
        ]
    )
    assert code == 0
    return out


def test_the_page_holds_every_stage(result):
    content = json.loads((result / "source-inference-mitbih.json").read_text())
    assert [case["name"] for case in content["cases"]] == ["by person", "Dirichlet 0.1"]
    for case in content["cases"]:
        assert [study["epsilon"] for study in case["studies"]] == [0.0, 8.0]
        for study in case["studies"]:
            assert all(
                len(values) == 2 and all(0 <= value <= 1 for value in values)
                for values in study["figures"].values()
            )
            assert study["figures"]["random device"] == [0.25, 0.25]
    page = (result / "source-inference-mitbih.md").read_text()
    assert "What none of this protects" in page
    assert "source-inference-mitbih.svg" in page
    assert (result / "source-inference-mitbih.svg").read_text().startswith("<?xml")


def test_the_gateway_was_a_real_one_and_its_updates_are_gone_afterwards(result):
    content = json.loads((result / "source-inference-mitbih.json").read_text())
    assert [run["epsilon"] for run in content["gateway"]] == [0.0, 8.0]
    for run in content["gateway"]:
        assert run["rounds"] == 2
        # After the round the log names its updates; which look found which state before is luck.
        assert set(run["attacks"]["done"]) == {"strongest features", "all features", "next round"}
        assert run["left_behind"][0] == 0


def test_what_is_attacked_is_what_a_device_would_send():
    pool = load_pool(SHIPPED_DATA, 100)
    artefact = load_artefact("ecg_cnn")
    made = deal(pool.people, None, 3, 40, np.random.default_rng(0))
    plan = plan_of(StudySettings(unit="none", rounds=1), artefact, 3, 40)
    start = initial_weights(artefact, bytes(32))
    (seen,) = play(TrainableModel(artefact), plan, made, start, 1)
    assert seen.updates.shape == (3, artefact.info.dimension)
    # All devices weigh alike, so the sum's mean is that of what is seen of each; Adam, the
    # server's rule without noise, moves no weight by more than its rate allows.
    assert 0 < np.abs(seen.after - start).max() < 0.2
    assert np.linalg.norm(seen.updates, axis=1).max() < 1.3 * plan.codec.clip
    assert np.linalg.norm(seen.client_model(1) - start - seen.updates[1]) < 1e-4


def test_what_is_attacked_of_a_clip_that_follows_a_quantile_is_a_model_too():
    """Updates without their count, as long as the round's clip has made them."""
    pool = load_pool(SHIPPED_DATA, 100)
    artefact = load_artefact("ecg_cnn")
    made = deal(pool.people, None, 3, 40, np.random.default_rng(0))
    settings = StudySettings(
        unit="device",
        noise="local",
        epsilon=8.0,
        rounds=2,
        keep=1.0,
        clip_quantile=0.5,
        clip_rate=1.0,
        server=SERVERS["fedavg"],
    )
    plan = plan_of(settings, artefact, 3, 40)
    start = initial_weights(artefact, bytes(32))
    first, second = play(TrainableModel(artefact), plan, made, start, 1)
    assert first.updates.shape == second.updates.shape == (3, artefact.info.dimension)
    assert first.fields[0].size == 2 + artefact.info.dimension
    for seen in (first, second):
        np.testing.assert_allclose(seen.after - seen.start, seen.updates.mean(axis=0), atol=1e-5)
    # The noise is as much larger or smaller as the clip that it belongs to has become.
    total = np.sum(first.fields, axis=0, dtype=np.uint64)
    rotation = hashlib.sha256(b"1 1").digest()
    mean = decode_sum(total, 3, plan.codec, plan.vector_size, rotation).mean
    factor = next_factor(1.0, unclipped(mean[0], plan.terms), plan.privacy)
    assert factor != 1.0
    assert np.std(second.updates) / np.std(first.updates) == pytest.approx(factor, rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--devices 1", "2 devices"),
        ("--rows 6", "7 rows"),
        ("--seeds 0", "1 or more"),
        ("--gateway-rounds 1", "2 or more"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message, capsys):
    assert cli.main(["attack", "source-inference", *arguments.split()]) == 2
    assert message in capsys.readouterr().err


def test_membership_is_attacked_from_the_command_line(tmp_path):
    arguments = "--studies 5 --rounds 2 --rows 8 --resamples 100 --defences none,record/local/8"
    code = cli.main(["attack", "membership", *arguments.split(), "--out", str(tmp_path)])
    assert code == 0
    content = json.loads((tmp_path / "membership-mitbih-ecg_cnn.json").read_text())
    # Those who train have too few records, so whole people that are held out take part too.
    assert (content["people"], content["members"], content["others"]) == (43, 172, 172)
    assert [case["defence"] for case in content["cases"]] == ["none", "record/local/8"]
    for case in content["cases"]:
        for attacks in case["figures"].values():
            for roc in attacks.values():
                assert roc["auc"]["low"] <= roc["auc"]["value"] <= roc["auc"]["high"]
                assert [0 <= rate["value"] <= 1 for rate in roc["tpr"]] == [True, True]
    page = (tmp_path / "membership-mitbih-ecg_cnn.md").read_text()
    assert "has fewer than 5,000 on a side" in page
    assert "--studies 5 --resamples 100 --out docs/results" in page
    assert (tmp_path / "membership-mitbih-ecg_cnn.svg").read_text().startswith("<?xml")
