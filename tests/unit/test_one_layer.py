"""One dense layer on features that are read out of a network: the same numbers, only sooner."""

from dataclasses import replace

import numpy as np
import pytest

from vitalring.errors import ModelError
from vitalring.models.artefact import load_artefact
from vitalring.models.catalogue import find_artefact
from vitalring.models.dataset import Records
from vitalring.models.runtime import TrainableModel
from vitalring.tools.bench.one_layer import has_one_layer, with_features

BANKS = ("har_bank", "ecg_bank")


def artefact_of(name):
    return load_artefact(name) if name in BANKS else find_artefact(name, (23,), ("no", "yes"))


def records(artefact, sizes=(5, 41)):
    rng = np.random.default_rng(3)
    made = []
    for number, n in enumerate(sizes):
        x = rng.normal(0.0, 1.5, (n, *artefact.info.input_shape)).astype(np.float32)
        made.append(Records(f"d{number}", x, rng.integers(0, len(artefact.info.classes), n)))
    return made


@pytest.mark.parametrize("name", [*BANKS, "linear"])
@pytest.mark.parametrize("clip", [0.3, 1e6])
def test_the_layer_does_what_the_network_does(name, clip):
    artefact = artefact_of(name)
    network = TrainableModel(artefact)
    plain = records(artefact)
    layer, read = with_features(artefact, plain)
    assert [len(each) for each in read] == [5, 41]
    weights = np.random.default_rng(4).normal(0.0, 0.4, artefact.info.dimension).astype(np.float32)
    for before, after in zip(plain, read, strict=True):
        assert after.device == before.device
        wanted = network.gradient_sum(weights, before.x, before.y, clip)
        found = layer.gradient_sum(weights, after.x, after.y, clip)
        assert np.allclose(found[0], wanted[0], atol=2e-4)
        assert found[1] == pytest.approx(wanted[1], rel=1e-4)
        assert np.allclose(found[2], wanted[2], rtol=1e-4)
        likely = network.probabilities(weights, before.x)
        assert np.allclose(layer.probabilities(weights, after.x), likely, atol=1e-4)


def test_clipped_gradients_are_no_longer_than_the_clip():
    artefact = artefact_of("linear")
    layer, (one, _) = with_features(artefact, records(artefact))
    weights = np.zeros(artefact.info.dimension, np.float32)
    for row in range(len(one)):
        each = one.take(slice(row, row + 1))
        gradient, _, norms = layer.gradient_sum(weights, each.x, each.y, 0.25)
        assert norms[0] > 0.25
        assert np.linalg.norm(gradient) == pytest.approx(0.25, rel=1e-5)


def test_networks_of_more_layers_are_refused():
    assert [has_one_layer(artefact_of(name).info) for name in (*BANKS, "linear")] == [True] * 3
    artefact = load_artefact("ecg_cnn")
    assert not has_one_layer(artefact.info)
    with pytest.raises(ModelError, match="more than one layer"):
        with_features(artefact, records(artefact))
    # One that only claims to be a single layer is found out by what it computes.
    claims = replace(artefact.info, head=artefact.info.dimension, blocks=((4096, 0.0),))
    with pytest.raises(ModelError):
        with_features(replace(artefact, info=claims), records(artefact))
