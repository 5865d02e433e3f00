"""The generator that noise comes from, and the integer noise itself."""

import copy
import multiprocessing
import pickle

import numpy as np
import pytest
from randomgen import ChaCha
from scipy import stats

from vitalring.edge_agent.randomness import (
    MAX_SCALE,
    MIN_SCALE,
    fresh_generator,
    integer_gaussian,
)
from vitalring.errors import PrivacyError


def test_stream_is_chacha20():
    """RFC 8439 appendix A.1, test vector 1: key, counter and nonce zero."""
    words = ChaCha(key=0, counter=0, rounds=20).random_raw(8)
    keystream = np.asarray(words, "<u8").tobytes()
    assert keystream.hex() == (
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
    )
    assert fresh_generator().bit_generator.state["state"]["rounds"] == 20


def test_each_generator_has_its_own_key():
    draws = {fresh_generator().integers(0, 2**63) for _ in range(100)}
    assert len(draws) == 100


def test_numpy_seed_has_no_say():
    np.random.seed(1)
    first = fresh_generator().integers(0, 2**63)
    np.random.seed(1)
    assert fresh_generator().integers(0, 2**63) != first


def test_cannot_be_copied():
    generator = fresh_generator()
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(PrivacyError, match="cannot be copied"):
            duplicate(generator)


def test_does_not_serve_after_a_fork():
    context = multiprocessing.get_context("fork")
    generator = fresh_generator()
    generator.check_process()
    answers = context.SimpleQueue()

    def child():
        try:
            generator.check_process()
        except PrivacyError as error:
            answers.put(str(error))
        else:
            answers.put("served")

    process = context.Process(target=child)
    process.start()
    answer = answers.get()
    process.join()
    assert "forked" in answer


@pytest.mark.parametrize("scale", [MIN_SCALE, 1e5, 1.1 * 2**20, 2.0**33])
def test_noise_is_a_rounded_gaussian(scale):
    """A chi-square test over 200 cells of equal probability, then the fourth moment."""
    draws = integer_gaussian(fresh_generator(), scale, 400_000)
    edges = stats.norm.ppf(np.linspace(0, 1, 201)[1:-1]) * scale
    counts = np.bincount(np.searchsorted(edges, draws), minlength=200)
    expected = 400_000 * np.diff(
        stats.norm.cdf(np.r_[-np.inf, np.ceil(edges) - 0.5, np.inf] / scale)
    )
    assert stats.chisquare(counts, expected).pvalue > 1e-6
    kurtosis = np.mean((draws / scale) ** 4)
    assert abs(kurtosis - 3.0) < 5 * np.sqrt(96 / 400_000)


def test_low_bits_are_uniform():
    """Where a floating-point sampler would leave gaps: the last bits of an integer draw."""
    draws = integer_gaussian(fresh_generator(), 1.1 * 2**20, 400_000)
    counts = np.bincount(draws & 255, minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-6


def test_tails_have_their_mass():
    draws = np.abs(integer_gaussian(fresh_generator(), 2.0**20, 4_000_000)) / 2.0**20
    for bound in (3.0, 4.0, 4.5):
        beyond = int(np.count_nonzero(draws > bound))
        chance = stats.binomtest(beyond, 4_000_000, 2 * stats.norm.sf(bound)).pvalue
        assert chance > 1e-6, f"{beyond} beyond {bound}"


@pytest.mark.parametrize("size", [0, 1, 7, 1000])
def test_size(size):
    noise = integer_gaussian(fresh_generator(), 1e6, size)
    assert noise.shape == (size,)
    assert noise.dtype == np.int64


@pytest.mark.parametrize("scale", [0.0, -1.0, MIN_SCALE / 2, 2 * MAX_SCALE, float("nan")])
def test_refuses_scales_it_cannot_sample(scale):
    with pytest.raises(PrivacyError, match="scale"):
        integer_gaussian(fresh_generator(), scale, 10)
