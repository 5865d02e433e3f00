"""The modes of the sum behind one interface: what is added is what comes out."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitalring.aggregator.key import generate
from vitalring.errors import CiphertextError, ConfigError
from vitalring.protocol.bfv import choose_params
from vitalring.protocol.quantise import Codec, field_count
from vitalring.protocol.secure_sum import LATER_SUMS, SECURE_SUMS, sum_scheme, update_encryptor

DIMENSION = 12
SMALL = Codec(n_max=10, clip=1.0, weight_cap=10)
WIDE = Codec(n_max=10_000, clip=1.0, weight_cap=10, bits=16, noise_width=1 << 24)
CODECS = (SMALL, WIDE)
fields_of = {
    codec: st.lists(
        st.integers(0, codec.field_max),
        min_size=field_count(codec, DIMENSION),
        max_size=field_count(codec, DIMENSION),
    ).map(lambda values: np.array(values, np.uint64))
    for codec in CODECS
}
drawn = st.sampled_from(CODECS).flatmap(
    lambda codec: st.tuples(st.just(codec), st.lists(fields_of[codec], min_size=1, max_size=5))
)


def no_key(_):
    raise AssertionError("a plain sum needs no key")


@given(drawn)
def test_a_plain_sum_is_the_sum(case):
    codec, updates = case
    scheme = sum_scheme("plain", codec, DIMENSION)
    device = update_encryptor("plain", codec, DIMENSION, b"")
    sent = [device.encrypt(fields) for fields in updates]
    assert {len(data) for data in sent} == {scheme.update_bytes}
    total = scheme.decode(sent[0])
    for data in sent[1:]:
        total = scheme.add(total, scheme.decode(data))
        total = scheme.decode_sum(scheme.encode_sum(total))
    np.testing.assert_array_equal(
        scheme.open_sum(total, len(sent), no_key), np.sum(updates, axis=0)
    )


def test_the_largest_plain_sum_does_not_wrap():
    scheme = sum_scheme("plain", WIDE, DIMENSION)
    assert WIDE.field_max * WIDE.n_max < 2**63
    total = np.full(field_count(WIDE, DIMENSION), WIDE.field_max * WIDE.n_max, np.uint64)
    np.testing.assert_array_equal(scheme.decode_sum(scheme.encode_sum(total)), total)


def test_a_plain_field_beyond_the_codecs_is_refused():
    scheme = sum_scheme("plain", WIDE, DIMENSION)
    fields = np.zeros(field_count(WIDE, DIMENSION), "<u4")
    fields[3] = WIDE.field_max
    scheme.decode(fields.tobytes() + bytes(16))
    fields[3] += 1
    with pytest.raises(CiphertextError, match=f"exceeds {WIDE.field_max}"):
        scheme.decode(fields.tobytes() + bytes(16))


def test_equal_plain_updates_differ_in_bytes():
    scheme = update_encryptor("plain", WIDE, DIMENSION, b"")
    fields = np.zeros(field_count(WIDE, DIMENSION), np.uint64)
    assert scheme.encrypt(fields) != scheme.encrypt(fields)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("read", ["decode", "decode_sum"])
@pytest.mark.parametrize("change", [-1, 1])
def test_another_length_is_refused(codec, read, change):
    scheme = sum_scheme("plain", codec, DIMENSION)
    good = scheme.update_bytes if read == "decode" else 8 * field_count(codec, DIMENSION)
    getattr(scheme, read)(bytes(good))
    with pytest.raises(CiphertextError, match="bytes, not the"):
        getattr(scheme, read)(bytes(good + change))


@given(st.binary(max_size=80))
def test_random_bytes_are_fields_or_refused(data):
    scheme = sum_scheme("plain", SMALL, DIMENSION)
    try:
        fields = scheme.decode(data)
    except CiphertextError:
        return
    # The last 16 bytes are random: they make equal updates differ.
    assert update_encryptor("plain", SMALL, DIMENSION, b"").encrypt(fields)[:-16] == data[:-16]


def test_an_encrypted_sum_is_the_sum():
    params = choose_params(SMALL, DIMENSION)
    key = generate(params)
    scheme = sum_scheme("single-he", SMALL, DIMENSION)
    device = update_encryptor("single-he", SMALL, DIMENSION, key.public_key())
    rng = np.random.default_rng(5)
    updates = rng.integers(0, SMALL.field_max + 1, (SMALL.n_max, field_count(SMALL, DIMENSION)))
    sent = [device.encrypt(fields.astype(np.uint64)) for fields in updates]
    assert {len(data) for data in sent} == {scheme.update_bytes}
    assert len(set(sent)) == len(sent)
    total = scheme.decode(sent[0])
    for data in sent[1:]:
        total = scheme.decode_sum(scheme.encode_sum(scheme.add(total, scheme.decode(data))))
    opened = scheme.open_sum(total, len(sent), key.decrypt)
    np.testing.assert_array_equal(opened, updates.sum(axis=0))


def test_a_bad_key_is_refused():
    with pytest.raises(CiphertextError):
        update_encryptor("single-he", SMALL, DIMENSION, b"no key")


@pytest.mark.parametrize("make", [sum_scheme, lambda *a: update_encryptor(*a, b"")])
def test_modes_are_refused_by_name(make):
    for mode in LATER_SUMS:
        with pytest.raises(
            ConfigError, match=f"secure sum {mode} is not available in this version"
        ):
            make(mode, SMALL, DIMENSION)
    with pytest.raises(
        ConfigError,
        match=r"'rot13' is not known: use one of threshold-he, single-he, "
        "two-server, plain",
    ):
        make("rot13", SMALL, DIMENSION)
    assert set(LATER_SUMS).isdisjoint(SECURE_SUMS)


def test_a_gateway_adds_without_loading_seal():
    program = (
        "import sys; from vitalring.protocol.quantise import Codec;"
        "from vitalring.protocol.secure_sum import sum_scheme;"
        "sum_scheme('single-he', Codec(n_max=10, clip=1.0, weight_cap=10), 12);"
        "sys.exit('tenseal' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
