"""The strict group: what it refuses, and its arithmetic against plain integers."""

import importlib
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl import bindings

from vitalring.errors import ConfigError, SignatureError
from vitalring.protocol import group

VECTORS = Path(__file__).parents[1] / "vectors"
sys.path.insert(0, str(VECTORS))
reference = importlib.import_module("reference_lsag")
FROZEN = json.loads((VECTORS / "lsag.json").read_text())

scalars = st.integers(1, group.ORDER - 1)


def encode(value):
    return value.to_bytes(32, "little")


@pytest.mark.parametrize("name", FROZEN["bad_points"])
def test_bad_points_are_refused_everywhere(name):
    data = bytes.fromhex(FROZEN["bad_points"][name])
    with pytest.raises(SignatureError, match="canonical point"):
        group.decode_point(data)
    with pytest.raises(SignatureError, match="no group element"):
        group.mul(encode(5), data)
    with pytest.raises(reference.InvalidError, match="point"):
        reference.decode_point(data)


@pytest.mark.parametrize("k", range(1, 8))
def test_torsion_is_refused(k):
    torsion = reference.torsion_points()[k]
    point = reference.encode_point(reference.add(reference.BASE, torsion))
    with pytest.raises(SignatureError, match="canonical point"):
        group.decode_point(point)
    with pytest.raises(SignatureError, match="no group element"):
        group.mul(encode(8), point)


@pytest.mark.parametrize("data", [b"", bytes(31), bytes(33), "x" * 32, bytearray(32), None])
def test_what_is_not_32_bytes_is_refused(data):
    with pytest.raises(SignatureError, match="point has 32 bytes"):
        group.decode_point(data)
    with pytest.raises(SignatureError, match="scalar has 32 bytes"):
        group.decode_scalar(data)


@given(st.binary(min_size=32, max_size=32))
@settings(max_examples=100, deadline=None)
def test_points_are_those_of_the_second_implementation(data):
    try:
        expected = reference.decode_point(data)
    except reference.InvalidError:
        with pytest.raises(SignatureError):
            group.decode_point(data)
    else:
        assert reference.encode_point(expected) == group.decode_point(data)


@pytest.mark.parametrize("value", [0, group.ORDER, group.ORDER + 1, 2**255, 2**256 - 1])
def test_scalars_out_of_range_are_refused(value):
    with pytest.raises(SignatureError, match="scalar is"):
        group.decode_scalar(encode(value))


@given(st.integers(0, 2**256 - 1))
def test_scalars_have_one_encoding(value):
    if 0 < value < group.ORDER:
        assert group.decode_scalar(encode(value)) == encode(value)
    else:
        with pytest.raises(SignatureError):
            group.decode_scalar(encode(value))


def test_a_refused_scalar_is_not_in_the_message():
    secret = encode(group.ORDER + 123456789)
    with pytest.raises(SignatureError) as caught:
        group.decode_scalar(secret)
    assert secret.hex() not in str(caught.value)
    assert str(group.ORDER + 123456789) not in str(caught.value)


@given(scalars, scalars)
@settings(deadline=None)
def test_scalar_arithmetic_is_that_of_integers(a, b):
    assert group.scalar_add(encode(a), encode(b)) == encode((a + b) % group.ORDER)
    assert group.scalar_sub(encode(a), encode(b)) == encode((a - b) % group.ORDER)
    assert group.scalar_mul(encode(a), encode(b)) == encode(a * b % group.ORDER)


@given(scalars, scalars)
@settings(max_examples=20, deadline=None)
def test_points_follow_the_group_law(a, b):
    left, right = group.base_mul(encode(a)), group.base_mul(encode(b))
    assert left == reference.encode_point(reference.mul(a, reference.BASE))
    assert group.mul(encode(b), left) == group.mul(encode(a), right)
    assert group.add(left, right) == reference.encode_point(
        reference.mul((a + b) % group.ORDER, reference.BASE)
    )


def test_a_point_less_itself_is_the_identity_which_nothing_else_accepts():
    point = group.base_mul(encode(7))
    assert group.sub(point, point) == group.IDENTITY
    assert group.add(group.IDENTITY, point) == point
    assert group.sub(group.base_mul(encode(9)), point) == group.base_mul(encode(2))
    with pytest.raises(SignatureError):
        group.decode_point(group.IDENTITY)
    with pytest.raises(SignatureError):
        group.mul(encode(1), group.IDENTITY)


def test_zero_times_a_point_is_refused():
    with pytest.raises(SignatureError):
        group.base_mul(bytes(32))
    with pytest.raises(SignatureError):
        group.mul(bytes(32), group.base_mul(encode(1)))


def test_adding_what_is_no_point_is_refused():
    for operation in (group.add, group.sub):
        with pytest.raises(SignatureError, match="not on the curve"):
            operation(group.base_mul(encode(1)), encode(2))


@given(st.binary(max_size=80), st.binary(max_size=80))
@settings(max_examples=60, deadline=None)
def test_hashing_is_that_of_the_second_implementation(domain, part):
    point = group.hash_to_point(domain, part)
    assert point == reference.encode_point(reference.hash_to_point(domain, part))
    assert group.decode_point(point) == point
    scalar = reference.hash_to_scalar(domain, part)
    assert group.hash_to_scalar(domain, part) == encode(scalar)


@pytest.mark.parametrize("half", [bytes(32), encode(1), b"\xff" * 32, encode(2**255 - 20)])
def test_elligator_at_its_edges(half):
    ours = bindings.crypto_core_ed25519_from_uniform(half)
    assert ours == reference.encode_point(reference.elligator(half))


@pytest.mark.parametrize("vector", FROZEN["hashes"], ids=lambda v: v["domain"] or "empty")
def test_frozen_hashes(vector):
    domain, part = bytes.fromhex(vector["domain"]), bytes.fromhex(vector["part"])
    assert group.hash_to_point(domain, part).hex() == vector["point"]
    assert group.hash_to_scalar(domain, part).hex() == vector["scalar"]


@given(st.lists(st.binary(max_size=6), max_size=4), st.lists(st.binary(max_size=6), max_size=4))
def test_frames_are_unambiguous(a, b):
    assert (group.frame(*a) == group.frame(*b)) == (a == b)


def test_hash_to_point_is_no_known_multiple_of_the_base_point():
    # The published mistake: Hp(m) = hash(m) * G makes every tag computable from the public key.
    domain, part = b"domain", b"part"
    digest = group.hash_parts(domain, part)
    reduce = bindings.crypto_core_ed25519_scalar_reduce
    naive = [
        group.hash_to_scalar(domain, part),
        reduce(digest[:32] + bytes(32)),
        reduce(digest[32:] + bytes(32)),
        group.scalar_add(reduce(digest[:32] + bytes(32)), reduce(digest[32:] + bytes(32))),
    ]
    naive += [group.scalar_mul(encode(8), scalar) for scalar in naive]
    assert group.hash_to_point(domain, part) not in [group.base_mul(k) for k in naive]


def test_random_scalars_are_scalars_and_differ():
    drawn = {group.decode_scalar(group.random_scalar()) for _ in range(50)}
    assert len(drawn) == 50


def test_random_scalars_are_never_zero(monkeypatch):
    draws = iter([bytes(64), encode(group.ORDER) + bytes(32), encode(7) + bytes(32)])
    monkeypatch.setattr(group.secrets, "token_bytes", lambda _: next(draws))
    assert group.random_scalar() == encode(7)


@pytest.mark.parametrize("version", ["1.6.2", "1.6.10", "1.7", "2.0.0", "1.6.2.post1"])
def test_sound_releases(version):
    group.require_sound_library(version)


@pytest.mark.parametrize("version", ["1.6.1", "1.5.0", "1.6", "0.9.9", "", "unknown"])
def test_unsound_releases_are_refused(version):
    with pytest.raises(ConfigError, match="CVE-2025-69277"):
        group.require_sound_library(version)


def test_the_probe_is_the_base_point_plus_the_point_of_order_two():
    order_two = (0, reference.P - 1)
    probe = reference.encode_point(reference.add(reference.BASE, order_two))
    assert probe == group._TORSION_PROBE


def test_a_library_that_accepts_the_probe_is_refused(monkeypatch):
    monkeypatch.setattr(bindings, "crypto_core_ed25519_is_valid_point", lambda _: True)
    with pytest.raises(ConfigError, match="accepts a point outside the group"):
        group.require_sound_library("1.6.2")


def test_a_minimal_library_is_refused(monkeypatch):
    monkeypatch.setattr(bindings, "has_crypto_core_ed25519", False)
    with pytest.raises(ConfigError, match="minimal build"):
        group.require_sound_library("1.6.2")
