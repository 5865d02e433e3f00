"""Central DP-SGD by tensorflow-privacy is the mechanism that was accounted: clip, noise, step."""

from dataclasses import replace

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from vitalring.edge_agent.accountant import epsilon  # noqa: E402
from vitalring.models.network import clipped_gradient_sum  # noqa: E402
from vitalring.models.registry import build  # noqa: E402
from vitalring.protocol.privacy import Spend  # noqa: E402
from vitalring.tools.bench.papers.dpsgd_process import measure  # noqa: E402

pytestmark = pytest.mark.tensorflow

ROWS, INPUTS = 70, 12
RATE, CLIP = 0.3, 0.5


@pytest.fixture
def trained(tmp_path):
    """Return a function that makes one step on all rows, and what it starts from."""
    generator = np.random.default_rng(3)
    x = generator.normal(size=(ROWS, INPUTS)).astype(np.float32)
    y = generator.integers(0, 2, ROWS)
    network = _network()
    start = (0.3 * generator.normal(size=network.layer.dimension)).astype(np.float32)
    np.savez(tmp_path / "arrays.npz", x=x, y=y, start=start, test=x[:5])

    def step(**changes):
        request = {
            "model": "ehr_mlp",
            "optimiser": "sgd",
            "learning_rate": RATE,
            "clip": CLIP,
            "noise_multiplier": 1e-9,
            "batch": ROWS,  # of so many rows: every one is drawn
            "steps": 1,
            "delta": 1e-5,
            "classes": 2,
            "seed": 0,
            "arrays": str(tmp_path / "arrays.npz"),
            "found": str(tmp_path / "found.npz"),
        }
        answer = measure({**request, **changes})
        with np.load(tmp_path / "found.npz") as found:
            return found["weights"] - start, found["probabilities"], answer

    return step, (x, y, start)


def _network():
    network = build("ehr_mlp")
    return replace(network, layer=network.sized((INPUTS,), 2))


def test_a_step_is_the_devices_clipped_sum_over_the_expected_batch(trained):
    step, (x, y, start) = trained
    moved, probabilities, _ = step()
    one_hot = np.eye(2, dtype=np.float32)[y]
    mask = np.ones(ROWS, np.float32)
    total, _, norms = clipped_gradient_sum(_network(), start, x, one_hot, mask, np.float32(CLIP))
    # Some gradients are clipped and some are not, or this shows nothing.
    assert 0 < np.sum(norms.numpy() > CLIP) < ROWS
    np.testing.assert_allclose(moved, -RATE / ROWS * total.numpy(), atol=2e-6)
    assert probabilities.shape == (5, 2)


def test_the_noise_of_a_step_has_the_deviation_that_was_accounted(trained):
    step, _ = trained
    still, _, _ = step()
    moved, _, _ = step(noise_multiplier=4.0)
    noise = moved - still
    wanted = RATE / ROWS * 4.0 * CLIP
    # 12,000 values: the deviation is known to within 3 %, at five standard errors.
    assert noise.std() == pytest.approx(wanted, rel=0.04)
    assert abs(noise.mean()) < 5 * wanted / np.sqrt(noise.size)


def test_the_library_states_the_epsilon_of_the_same_numbers(trained):
    step, _ = trained
    _, _, answer = step(noise_multiplier=2.0, batch=35, steps=4)
    ours = epsilon([Spend(0.5, 2.0, 4, epsilon=0.0)], 1e-5)
    stated = answer["statement"]
    # The toolkit takes the lower of both bounds; the library prints three digits.
    assert ours == pytest.approx(min(stated["RDP"], stated["PLD"]), rel=2e-3)


def test_the_first_step_of_adam_moves_by_its_rate(trained):
    step, _ = trained
    moved, _, _ = step(optimiser="adam", learning_rate=0.01)
    # The first step of Adam is its learning rate along each coordinate that has a gradient.
    assert np.abs(moved).max() == pytest.approx(0.01, rel=1e-3)
