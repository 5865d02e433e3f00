"""A device's part with a clip that follows a quantile: the count goes through all that an update
goes through, and one record or device moves both together by no more than it moved one.
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalring.edge_agent import contribution, dpsgd
from vitalring.edge_agent.contribution import learn, protect, with_count
from vitalring.edge_agent.randomness import fresh_generator
from vitalring.errors import PrivacyError
from vitalring.models.dataset import Records
from vitalring.protocol import adaptive_clip
from vitalring.protocol.adaptive_clip import count_unit, unclipped, update_clip
from vitalring.protocol.guarantee import Terms, gradient_scale, noise_of, sensitivity
from vitalring.protocol.integer_noise import width_for
from vitalring.protocol.privacy import CLIP_SLACK, MAX_CHUNK, Privacy, Training
from vitalring.protocol.quantise import Codec, decode_sum, encode_update, grid_step

DIMENSION = 64
SEED = b"s" * 32
ONE_STEP = Training(sampling_rate=1.0, steps=1, rounds=5, learning_rate=0.5, batch=20, records=1)
START = np.zeros(DIMENSION, np.float32)


def terms_of(unit: str, noise: str = "distributed", share: float = 0.1) -> Terms:
    """Terms of nine honest devices at multiplier 2, with fields that the noise fits."""
    privacy = Privacy(
        unit,
        noise,
        8.0,
        1e-5,
        1.0,
        2.0,
        colluders=1 if noise == "distributed" else 0,
        clip_quantile=0.5,
        clip_rate=0.2,
        clip_share=share,
    )
    rounding = "plain" if unit == "record" else "bounded"
    codec = Codec(n_max=20, clip=0.5, weight_cap=1, bits=14, rounding=rounding)
    terms = Terms(privacy, ONE_STEP, codec, 1 + DIMENSION, 10)
    width = width_for(noise_of(terms).deviation)
    return replace(terms, codec=replace(codec, noise_width=width))


RECORD, DEVICE, LOCAL = terms_of("record"), terms_of("device"), terms_of("device", "local")


@dataclass
class Linear:
    """A model whose gradient is the record itself, clipped; it learns the mean record."""

    physical_batch: int = 2048

    def gradient_sum(self, weights, x, y, clip):
        norms = np.linalg.norm(x, axis=1)
        scale = np.minimum(1.0, clip / np.maximum(norms, 1e-12))
        return (x * scale[:, None]).sum(0).astype(np.float32), 0.0, norms


class Wobbling(Linear):
    """Computes the records of a chunk as wrongly as is allowed, to one side or the other.

    Which one depends on how many there are, so that one record more moves all of them.
    """

    def gradient_sum(self, weights, x, y, clip):
        total, loss, norms = super().gradient_sum(weights, x.astype(np.float64), y, clip)
        side = 1.0 + (-1.0) ** len(x) * 2.0**-20
        return (total.astype(np.float64) * side).astype(np.float32), loss, norms * side


def of_lengths(*lengths: float, direction: int = 0) -> Records:
    x = np.outer(lengths, np.eye(DIMENSION)[direction]).astype(np.float32)
    return Records("d", x, np.zeros(len(x), np.int64))


def total_of(model, rows, terms=RECORD, factor=1.0):
    """Gradient sum and count in clips: what is sent, before it is scaled to an update."""
    sent = learn(model, START, rows, terms, fresh_generator(), factor)
    return -sent / gradient_scale(ONE_STEP) / terms.privacy.clip


def test_records_are_counted_beside_their_gradients():
    rows = of_lengths(0.2, 0.2, 3.0)
    total = total_of(Linear(), rows)
    clip = update_clip(1.0, 0.1)
    assert total.shape == (1 + DIMENSION,)
    assert total[0] == pytest.approx(0.1 * (0.5 + 0.5 - 0.5), rel=1e-6)
    assert total[1] == pytest.approx(0.2 + 0.2 + clip, rel=1e-6)
    # A fixed clip has no such coordinate, and all of itself for the gradient.
    fixed = replace(RECORD.privacy, clip_quantile=0.0, clip_rate=0.0, clip_share=0.0)
    plain = total_of(Linear(), rows, replace(RECORD, privacy=fixed, dimension=DIMENSION))
    assert plain.shape == (DIMENSION,)
    assert plain[0] == pytest.approx(1.4, rel=1e-6)


@pytest.mark.parametrize("factor", [2.0**-10, 0.3, 1.0, 7.7, 2.0**10])
def test_a_factor_scales_the_clip_and_nothing_that_is_sent(factor):
    """In units of the factor a device with longer gradients sends what one with shorter ones did.

    So the noise of the study, which no factor touches, is as good as it was.
    """
    lengths = (0.2, 0.95, 1.01, 3.0)
    rows = of_lengths(*(factor * np.array(lengths)))
    total = total_of(Linear(), rows, factor=factor)
    assert np.allclose(total, total_of(Linear(), of_lengths(*lengths)), atol=1e-5)
    update = factor * np.eye(DIMENSION)[3] * 0.4
    for terms in (DEVICE, LOCAL):
        scaled = with_count(update, terms, factor)
        assert np.allclose(scaled, with_count(update / factor, terms, 1.0), atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-6, 1e6), st.floats(0.01, 0.125), st.floats(2.0**-10, 2.0**10))
def test_a_devices_update_and_count_are_within_the_clip(length, share, factor):
    terms = terms_of("device", share=share)
    made = with_count(length * np.eye(DIMENSION)[1], terms, factor)
    assert np.linalg.norm(made) <= terms.codec.clip * (1.0 + 1e-12)
    assert abs(made[0]) <= share * terms.codec.clip * (1.0 + 1e-12)


def moved_by_the_last(terms, model=None, count=MAX_CHUNK, length=1.0, last=30.0):
    """How far one record moves a full chunk of others in the middle of the ramp, in clips.

    Its own gradient points away from theirs, so that it has all of its length.
    """
    model = model or Wobbling()
    middle = update_clip(1.0, terms.privacy.clip_share) * length
    others = of_lengths(*[middle] * (count - 1))
    one = of_lengths(last, direction=1)
    more = Records("d", np.vstack([others.x, one.x]), np.zeros(count, np.int64))
    return np.linalg.norm(total_of(model, more, terms) - total_of(model, others, terms))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.125])
@pytest.mark.parametrize("length", [15 / 16, 1.0, 1.06])
@pytest.mark.parametrize("last", [0.0, 0.5, 1.0, 30.0])
def test_a_record_moves_its_whole_chunk_by_its_sensitivity_at_most(share, length, last):
    moved = moved_by_the_last(terms_of("record", share=share), length=length, last=last)
    assert moved <= 1.0 + CLIP_SLACK
    if last == 30.0:
        assert moved > 0.98, "its clip is used"


def test_a_count_that_jumps_at_the_clip_is_caught(monkeypatch):
    """Why there is a ramp: last bits of others' norms would be counted by the hundred."""
    monkeypatch.setattr(
        adaptive_clip, "within", lambda norms, clip: (norms <= clip).astype(np.float64)
    )
    assert moved_by_the_last(RECORD) > 10.0


def test_a_count_outside_of_the_clip_is_caught(monkeypatch):
    """With the gradient at the whole clip, both together are longer: without the slack's help."""
    monkeypatch.setattr(dpsgd, "update_clip", lambda clip, share: clip)
    moved = moved_by_the_last(terms_of("record", share=0.125), Linear(), count=2)
    assert moved > 1.0
    monkeypatch.undo()
    assert moved_by_the_last(terms_of("record", share=0.125), Linear(), count=2) <= 1.0


@pytest.mark.parametrize("size", [0.1, 1.0, 30.0])
def test_one_record_moves_the_fields_by_its_sensitivity_at_most(size):
    x = np.random.default_rng(1).normal(size=(31, DIMENSION)).astype(np.float32)
    x[-1] *= size
    codec = replace(RECORD.codec, noise_width=0)
    pair = [
        encode_update(
            learn(Linear(), START, Records("d", rows, np.zeros(len(rows))), RECORD, secret),
            1,
            codec,
            SEED,
            rng=np.random.default_rng(5),
        ).fields.astype(np.int64)
        for rows, secret in ((x[:-1], fresh_generator()), (x, fresh_generator()))
    ]
    assert np.linalg.norm(pair[1] - pair[0]) <= sensitivity(RECORD)


@pytest.mark.parametrize("terms", [DEVICE, LOCAL])
def test_a_device_is_within_its_bound_whatever_it_counts(terms, monkeypatch):
    monkeypatch.setattr(
        contribution, "noise_share", lambda _, noise: np.zeros(noise.coordinates, np.int64)
    )
    vector = np.concatenate([[1e6], np.ones(DIMENSION)])
    for made in (with_count(1e9 * np.ones(DIMENSION), terms, 1.0), vector):
        fields = protect(made, 30, terms, SEED, fresh_generator()).fields
        grid = fields[1:].astype(np.int64) - terms.codec.offset
        assert grid.size == 1 + DIMENSION
        assert np.linalg.norm(grid) <= sensitivity(terms)


@pytest.mark.parametrize("terms", [RECORD, DEVICE])
def test_a_sum_tells_the_share_that_was_within_the_clip(terms):
    """Of 20 devices through encoding, noise, summing and decoding, as exactly as SPEC 7.17 says."""
    by_record = terms is RECORD
    if not by_record:
        terms = replace(terms, privacy=replace(terms.privacy, noise_multiplier=0.1))
    fields = []
    for number in range(20):
        if by_record:
            lengths = np.where(np.arange(20) < 14, 0.3, 2.0)
            made = learn(Linear(), START, of_lengths(*lengths), terms, fresh_generator())
        else:
            made = with_count((0.1 if number < 14 else 2.0) * np.eye(DIMENSION)[0], terms, 1.0)
        fields.append(protect(made, 30, terms, SEED, fresh_generator()).fields)
    decoded = decode_sum(sum(fields), 20, terms.codec, terms.dimension, SEED).mean
    noise = noise_of(terms)
    spread = noise.deviation / np.sqrt(20) * grid_step(terms.codec, terms.dimension)
    error = spread / abs(count_unit(terms))
    sigma, counted = terms.privacy.noise_multiplier, 20 * (20 if by_record else 1)
    assert error == pytest.approx(sigma * np.sqrt(20 / noise.shares) / (0.1 * counted))
    assert unclipped(decoded[0], terms) == pytest.approx(0.7, abs=5 * error)
    assert error < 0.08


@pytest.mark.parametrize("norms", [np.ones(2), np.ones((3, 1))])
def test_norms_that_cannot_be_counted_end_the_training(norms):
    class Broken(Linear):
        def gradient_sum(self, weights, x, y, clip):
            return super().gradient_sum(weights, x, y, clip)[0], 0.0, norms

    with pytest.raises(PrivacyError, match="they cannot be counted"):
        learn(Broken(), START, of_lengths(0.2, 0.2, 3.0), RECORD, fresh_generator())


@pytest.mark.parametrize("lie", [np.array([-1e30, np.inf, 1e38]), np.array([0.0, np.nan, np.nan])])
def test_a_norm_that_lies_moves_the_count_by_its_share_at_most(lie):
    class Lying(Linear):
        def gradient_sum(self, weights, x, y, clip):
            total, loss, _ = super().gradient_sum(weights, x, y, clip)
            return total, loss, lie

    total = total_of(Lying(), of_lengths(0.2, 0.2, 0.2))
    assert total[0] == pytest.approx(0.1 * (0.5 - 0.5 - 0.5), rel=1e-6)


def test_class_weights_multiply_gradients_and_not_counts():
    training = replace(ONE_STEP, class_weights=(0.25, 1.0))
    terms = replace(RECORD, training=training)
    rows = of_lengths(0.4, 0.4)
    rows = Records("d", rows.x, np.array([0, 1]))
    total = total_of(Linear(), rows, terms)
    assert total[0] == pytest.approx(0.1 * 1.0, rel=1e-6)
    assert total[1] == pytest.approx(0.4 * 1.25, rel=1e-6)
