"""Random mutations of a signed update's ciphertexts are refused, noticed, or what they say."""

from collections import Counter
from dataclasses import dataclass
from math import prod

import numpy as np
import pytest
from hostile_fixture import CHALLENGE, HONEST, HOSTILE, Gateway, mutated

from vitalring.errors import CiphertextError, EncodingRangeError, RefusedError
from vitalring.protocol import sealing
from vitalring.protocol.cbor import encode
from vitalring.protocol.ciphertext import add
from vitalring.protocol.packing import unpack_fields
from vitalring.protocol.threshold import modular
from vitalring.protocol.threshold.decryption import combine, open_checks
from vitalring.protocol.threshold.params import check_noise_bound


@dataclass(frozen=True)
class Sum:
    """A sum of right updates, to compare one with a mutation in it to.

    `replaced` are the residues that the mutation stands for; `phase` is c0 + c1 s (degree,).
    """

    total: np.ndarray
    replaced: np.ndarray
    phase: np.ndarray
    coefficients: np.ndarray


def right_sum(house, total):
    replaced = house.decode(house.good)
    total = add(total, replaced, house.bfv)
    return Sum(total, replaced, house.phase(total), house.open(total))


def predicted(house, right, shift):
    """Return the coefficients that a public `shift` of c0 (primes, degree) makes of a sum's.

    And the largest noise that it brings, in plaintext steps: half of one is the most there is.
    """
    q, t = prod(house.bfv.data_primes), house.bfv.plain_modulus
    places = np.flatnonzero(shift.any(axis=0))
    values = (right.phase[places] + house.integers(shift[:, places])) % q
    steps = [(2 * t * int(value) + q) // (2 * q) for value in values]
    noise = [abs(t * int(value) - q * step) / q for value, step in zip(values, steps, strict=True)]
    coefficients = right.coefficients.copy()
    coefficients[0, places] = [step % t for step in steps]
    return coefficients, max(noise, default=0.0)


def joint_fate(house, residues, right, *, read):
    """Say what becomes of a sum with an admitted mutation, and assert that it may.

    `read` tells whether to open the whole of a sum whose check is right.
    """
    primes, q = house.bfv.data_primes, prod(house.bfv.data_primes)
    moved = modular.subtract(residues, right.replaced, primes)
    changed = add(right.total, moved, house.bfv)
    said = {h: share.decrypt(changed, CHALLENGE) for h, share in house.shares.items()}
    checks = {h: check for h, (check, _) in said.items()}
    # 1. Anything wrong with c1 fails the check, and so does c0 where nothing is packed.
    reserved = house.integers(moved[0, 0, :, house.bfv.used :])
    if moved[0, 1].any() or max(reserved) > 0:
        away = max(min(int(value), q - int(value)) for value in reserved)
        if moved[0, 1].any() or away > 2 * check_noise_bound(house.params):
            with pytest.raises(CiphertextError, match="check"):
                open_checks(changed, checks, CHALLENGE, house.params)
            return "check"
        return "reserved coefficients within noise"
    open_checks(changed, checks, CHALLENGE, house.params)
    if not read:
        return "c0 moved"
    # 2. What is left is a c0 moved by what everybody can see: noise, or another plaintext.
    expected, noise = predicted(house, right, moved[0, 0])
    spread = 2 * house.params.smudging_bound * house.bfv.plain_modulus / q
    try:
        opened = combine(changed, {h: part for h, (_, part) in said.items()}, house.params)
    except CiphertextError:
        assert noise > 0.24 - spread
        return "noise"
    assert noise < 0.26 + spread
    assert (opened == expected).all()
    return named(opened, house)


def single_fate(house, residues, right):
    """The same of a sum that one key holder decrypts."""
    moved = modular.subtract(residues, right.replaced, house.bfv.data_primes)
    changed = add(right.total, moved, house.bfv)
    q, t = prod(house.bfv.data_primes), house.bfv.plain_modulus
    phase = house.phase(changed)
    expected = (2 * t * phase + q) // (2 * q) % t
    try:
        opened = house.open(changed)
    except CiphertextError:
        return "noise"
    assert (opened[0] == expected).all()
    return named(opened, house)


def named(opened, house):
    try:
        unpack_fields(opened, house.bfv, 4)
    except EncodingRangeError:
        return "out of range"
    return "another plaintext"


def mutations(house, gateway, count, seed, read_every):
    """Send `count` mutations of an update; return how many met which fate."""
    rng = np.random.default_rng(seed)
    update = house.updates[HOSTILE]
    group = house.bfv.data_primes[0].bit_length()
    key = bytes(house.federation.sealing_key.public_key)
    right = right_sum(house, gateway.total)
    fates, admitted_ones, before = Counter(), 0, gateway.db.total_changes
    for number in range(count):
        # Two of five are signed by the hostile device: only those can get past a gateway.
        signs = number % 5 < 2
        original = house.good if signs else encode(update)
        content = mutated(rng, original, group)
        if content == original:
            fates["unchanged"] += 1
            continue
        if signs:
            content = encode(house.signed_by(HOSTILE, content))
        try:
            admitted = gateway.check(sealing.seal(content, key))
        except RefusedError as error:
            fates[error.reason.value] += 1
            continue
        assert signs, "what nobody signed is admitted"
        admitted_ones += 1
        if house.mode == "threshold-he":
            read = admitted_ones % read_every == 0
            fates[joint_fate(house, admitted.residues, right, read=read)] += 1
        else:
            fates[single_fate(house, admitted.residues, right)] += 1
    # Nothing of all this was written; the sum of the honest ones is what it was, and goes on.
    assert gateway.db.total_changes == before
    assert gateway.is_exact()
    gateway.admit(update)
    assert gateway.is_exact((*HONEST, HOSTILE))
    assert sum(fates.values()) == count
    return fates


REFUSED = {"malformed", "bad_ciphertext", "bad_signature"}


def test_two_thousand_mutations_are_refused_or_harmless(houses, tmp_path):
    gateway = Gateway(houses["threshold-he"], tmp_path)
    fates = mutations(houses["threshold-he"], gateway, 2_000, seed=11, read_every=4)
    gateway.parties.close_databases()
    assert set(fates) >= REFUSED | {"check", "c0 moved", "noise"}
    assert fates["check"] > 100


def test_mutations_under_one_key_are_refused_or_leave_what_their_phase_says(houses, tmp_path):
    """Here a c1 that is no encryption may pass for another plaintext: SPEC 5.10 says so."""
    gateway = Gateway(houses["single-he"], tmp_path)
    fates = mutations(houses["single-he"], gateway, 600, seed=13, read_every=1)
    gateway.parties.close_databases()
    assert set(fates) >= REFUSED | {"noise", "out of range"}


@pytest.mark.long
def test_a_hundred_thousand_mutations_are_refused_or_harmless(houses, tmp_path):
    gateway = Gateway(houses["threshold-he"], tmp_path)
    fates = mutations(houses["threshold-he"], gateway, 100_000, seed=12, read_every=20)
    gateway.parties.close_databases()
    assert set(fates) >= REFUSED | {"unknown_plan", "check", "c0 moved", "noise"}
    assert fates["check"] > 5_000
