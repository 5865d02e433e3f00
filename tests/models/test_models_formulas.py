"""What the fixed trunks of `har_bank` and `ecg_bank` say of signals whose answer is known."""

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from vitalring.models.networks import ecg_bank, har_bank  # noqa: E402

pytestmark = pytest.mark.tensorflow


def activity(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Upwards, downwards (B, 6) and log energies (B, 8, 6), undone to g, rad/s and energies."""
    scale, shift = har_bank._scales()
    features = har_bank._features(tf.constant(x, tf.float32), scale, shift).numpy()
    features = (features - shift) / scale
    logs = features[:, 12:].reshape(-1, len(har_bank.BANDS), 6)
    return features[:, :6], features[:, 6:12], np.exp(logs) - har_bank.FLOOR


def test_gravity_is_in_the_means_and_in_no_band() -> None:
    x = np.zeros((2, 128, 6))
    x[0, :, 1], x[1, :, 1] = 1.0, -1.0
    upwards, downwards, energies = activity(x)
    np.testing.assert_allclose(upwards, [[0, 1, 0, 0, 0, 0], [0] * 6], atol=1e-6)
    np.testing.assert_allclose(downwards, [[0] * 6, [0, 1, 0, 0, 0, 0]], atol=1e-6)
    assert np.abs(energies).max() < 1e-4


@pytest.mark.parametrize("band", range(len(har_bank.BANDS)))
def test_a_sine_is_loudest_in_its_own_band_and_at_the_top_of_its_range(band: int) -> None:
    times = np.arange(128) / har_bank.RATE_HZ
    x = np.zeros((1, 128, 6))
    x[0, :, 3] = np.sin(2 * np.pi * har_bank.BANDS[band][1] * times)
    _, _, energies = activity(x)
    assert energies[0, :, [0, 1, 2, 4, 5]].max() < 1e-6
    # A wider filter is louder, so bands are compared by what each can be.
    most = [np.abs(har_bank.gabor(*one) @ har_bank._cosine(*one)) / np.pi for one in har_bank.BANDS]
    shares = energies[0, :, 3] / most
    assert shares.argmax() == band
    assert shares[band] == pytest.approx(1, abs=0.3)  # few periods fit into a window


def test_activities_stay_within_the_features_range() -> None:
    """Two g of gravity and sines, or no movement at all, are not cut off."""
    times = np.arange(128) / har_bank.RATE_HZ
    scale, shift = har_bank._scales()
    for size in (0.0, 2.0):
        sines = [np.sin(2 * np.pi * hertz * times) for _, hertz in har_bank.BANDS]
        x = np.repeat(size * np.array(sines)[:, :, None], 6, 2) + size / 2
        features = har_bank._features(tf.constant(x, tf.float32), scale, shift).numpy()
        assert np.abs(features).max() < har_bank.FEATURE_RANGE


def beats(rows: int = 20) -> np.ndarray:
    rng = np.random.default_rng(5)
    times = (np.arange(ecg_bank.SAMPLES) - 90) / ecg_bank.RATE_HZ
    x = np.zeros((rows, ecg_bank.SAMPLES, 4))
    for row in x:
        width, size = rng.uniform(0.01, 0.04), rng.uniform(0.5, 2) * rng.choice([-1, 1])
        row[:, 0] = size * np.exp(-((times / width) ** 2)) + rng.normal(0, 0.01, times.size)
        row[:, 1:] = rng.normal(0, 1, 3)
    return x.astype(np.float32)


def features_of(x: np.ndarray) -> np.ndarray:
    scaled = ecg_bank._features(tf.constant(x)).numpy()
    return scaled * np.array(ecg_bank.DEVIATIONS) + np.array(ecg_bank.CENTRES)


def test_the_electrodes_gain_and_offset_change_the_size_alone() -> None:
    x = beats()
    louder = x.copy()
    louder[:, :, 0] = 2 * louder[:, :, 0] + 0.3
    before, after = features_of(x), features_of(louder)
    np.testing.assert_allclose(after[:, 15] - before[:, 15], np.log(2), atol=0.05)
    rest = [place for place in range(20) if place != 15]
    np.testing.assert_allclose(after[:, rest], before[:, rest], atol=0.06)


def test_beats_upside_down_have_the_same_features() -> None:
    x = beats()
    turned = x.copy()
    turned[:, :, 0] *= -1
    np.testing.assert_allclose(features_of(turned), features_of(x), atol=1e-4)


def test_shapes_are_those_of_numpy() -> None:
    """A second implementation, in another order of operations."""
    x = beats().astype(np.float64)
    e = x[:, :, 0] - x[:, :, 0].mean(1, keepdims=True)
    deviation = np.sqrt((e**2).mean(1) + ecg_bank.NOISE**2)
    e = e / deviation[:, None]
    window = np.hanning(7)[1:-1]
    smooth = np.array([np.convolve(row, window / window.sum(), "same") for row in e])
    near, slope = smooth[:, 60:130], np.diff(smooth)[:, 60:130]
    wanted = [np.maximum(np.abs(near) - level, 0).mean(1) for level in ecg_bank.LEVELS]
    wanted += [np.maximum(np.abs(slope) - level, 0).mean(1) for level in ecg_bank.SLOPES]
    wanted += [np.log(deviation)]
    for width, hertz in ecg_bank.BANDS:
        times = (np.arange(width) - width // 2) / 360
        kernel = np.hanning(width + 2)[1:-1] * np.exp(2j * np.pi * hertz * times)
        kernel = kernel.real - np.hanning(width + 2)[1:-1] * kernel.real.sum() / (width + 1) * 2
        kernel /= np.linalg.norm(kernel)
        found = np.array([np.convolve(row, kernel, "same")[60:130] for row in e])
        wanted.append(np.log(ecg_bank.FLOOR + np.abs(found).mean(1)))
    np.testing.assert_allclose(
        features_of(x.astype(np.float32))[:, 6:], np.array(wanted).T, atol=2e-3
    )


def test_rhythm_by_hand() -> None:
    x = np.zeros((2, 216, 4), np.float32)
    x[0, :, 1:], x[1, :, 1:] = (-2, 3, -1), (1, -1, -2)
    found = features_of(x)[:, :6]
    np.testing.assert_allclose(found, [[-2, 3, -1, 6, 3, 0], [1, -1, -2, 0, 0, 3]], atol=1e-5)
