"""Hostile ciphertexts: each is refused by name or harmless, and the honest sum stays exact.

The attacker is a member of the roster, so its ring signature is valid, and its bytes meet the
gateway's real admission. What nobody can refuse is an encryption of a plaintext that is out of
range, or of what another device encrypted; and c0 of an encryption may be moved by anybody who
can sign it, which the noise of the sum shows, or else is an encryption of another plaintext
(SPEC 5.10). Under a joint key whatever is wrong with c1, which the key multiplies, fails the
check before anything else of the sum is opened (SPEC 5.20).
"""

from itertools import combinations
from math import prod

import numpy as np
import pytest
from hostile_fixture import ACCOMPLICE, HONEST, HOSTILE, Gateway, packed, random_residues

from vitalring.errors import CiphertextError, EncodingRangeError, Reason
from vitalring.protocol import seal
from vitalring.protocol.ciphertext import POLYNOMIALS, decode_ciphertexts, shorten
from vitalring.protocol.packing import unpack_fields
from vitalring.protocol.seal import to_ntt
from vitalring.protocol.threshold import modular
from vitalring.protocol.threshold.encoding import decode_polynomials, polynomial_bytes

# What is refused by its form.


def truncated(house):
    return [house.good[:size] for size in (0, 1, 8, len(house.good) // 2, len(house.good) - 1)]


def random_bytes(house):
    rng, size = np.random.default_rng(1), len(house.good)
    return [rng.bytes(n) for n in (1, 100, size - 8, size + 8, 2 * size)]


def trailing_garbage(house):
    return [house.good + tail for tail in (b"\0", bytes(8), b"\xff" * 1024, house.good)]


def other_numbers_of_polynomials(house):
    """One, three and sixteen, of whole polynomials that are in range."""
    whole = decode_ciphertexts(house.good, house.bfv)[0]
    primes = house.bfv.data_primes
    size = polynomial_bytes(primes, house.bfv.degree)
    last = house.good[-size:]
    assert (decode_polynomials(last, 1, primes, house.bfv.degree)[0] == whole[1]).all()
    return [last, house.good + last, house.good + 14 * last]


def transparent(house):
    """c1 = 0 modulo every prime or one of them: nothing is hidden, or too little."""
    whole = house.decode(house.good)
    size = polynomial_bytes(house.bfv.data_primes, house.bfv.degree)
    found = [bytes(len(house.good)), house.good[:-size] + bytes(size)]
    for j in range(len(house.bfv.data_primes)):
        changed = whole.copy()
        changed[:, 1, j] = 0
        found.append(packed(house, changed))
    return found


def residues_out_of_range(house):
    """One residue that equals its prime, or all the bits there are, in each polynomial."""
    found = [b"\xff" * len(house.good)]
    whole = house.decode(house.good)
    for polynomial in range(POLYNOMIALS):
        for j, prime in enumerate(house.bfv.data_primes):
            if polynomial == 0 and prime not in house.bfv.sent_primes:
                continue
            for value in (prime, (1 << prime.bit_length()) - 1):
                changed = whole.copy()
                changed[0, polynomial, j, 17] = value
                found.append(packed(house, changed))
    return found


def seals_own_files(house):
    """SEAL's serialised ciphertext, as sent before this encoding, and one of three polynomials."""
    name = seal._data_id(seal.make_context(house.bfv))
    whole = house.decode(house.good)[0]
    three = np.concatenate([whole, whole[:1]])
    return [
        seal._ciphertext_frame(rows, name, ntt=flag)
        for rows in (whole, three)
        for flag in (False, True)
    ]


@pytest.mark.parametrize(
    "kind",
    [
        truncated,
        random_bytes,
        trailing_garbage,
        other_numbers_of_polynomials,
        transparent,
        residues_out_of_range,
        seals_own_files,
    ],
    ids=lambda f: f.__name__,
)
def test_what_is_no_ciphertext_is_refused_and_the_sum_stays_exact(house, gateway, kind):
    assert packed(house, house.decode(house.good)) == house.good
    for ciphertexts in kind(house):
        update = house.signed_by(HOSTILE, ciphertexts)
        assert gateway.refuses(update) is Reason.BAD_CIPHERTEXT
    assert gateway.is_exact()
    # The round goes on, and its signer may still send what is right.
    gateway.admit(house.updates[HOSTILE])
    assert gateway.is_exact((*HONEST, HOSTILE))


# What is well formed and no encryption.


def wrong_form(house):
    """What a wrong NTT flag was: polynomials in NTT form, sent as coefficients."""
    whole, primes = house.decode(house.good), house.bfv.data_primes
    turned = np.stack([to_ntt(row, primes) for row in whole[0]])[None]
    return shorten(turned, house.bfv)


def halves_of_two(house):
    """c0 of one encryption and c1 of another."""
    whole = house.decode(house.good)
    whole[:, 1] = house.decode(house.updates[ACCOMPLICE].ciphertexts)[:, 1]
    return whole


def random_c1(house):
    whole = house.decode(house.good)
    whole[:, 1] = random_residues(house)[:, 1]
    return whole


def random_c0(house):
    whole = house.decode(house.good)
    whole[:, 0] = random_residues(house)[:, 0]
    return whole


@pytest.mark.parametrize(
    "kind",
    [random_residues, wrong_form, halves_of_two, random_c1, random_c0],
    ids=lambda f: f.__name__,
)
def test_a_well_formed_ciphertext_that_is_no_encryption_is_never_taken_for_a_sum(
    house, gateway, kind
):
    """No gateway can tell it from an encryption. Who decrypts refuses: the round is lost."""
    gateway.admit(house.signed_by(HOSTILE, packed(house, kind(house))))
    total = gateway.total
    stage = "check" if house.mode == "threshold-he" else "noise"
    with pytest.raises(CiphertextError, match=stage):
        house.open(total)
    # What was counted before it is untouched.
    rest = modular.subtract(total, kind(house), house.bfv.data_primes)
    assert (unpack_fields(house.open(rest), house.bfv, 3) == house.honest_fields).all()


def test_a_shift_of_c1_that_hunts_the_key(house, gateway):
    """q/t added to c1 moves the plaintext by the key itself (SPEC 5.10)."""
    whole, primes = house.decode(house.good), house.bfv.data_primes
    q, t = prod(primes), house.bfv.plain_modulus
    shift = house.residues([(q + t // 2) // t] + [0] * (house.bfv.degree - 1))
    whole[0, 1] = modular.add(whole[0, 1], shift, primes)
    gateway.admit(house.signed_by(HOSTILE, packed(house, whole)))
    if house.mode == "threshold-he":
        with pytest.raises(CiphertextError, match="check"):
            house.open(gateway.total)
        return
    # The one key holder sees its own key, and nothing says so but places that should be empty.
    moved = house.open(gateway.total)[0].astype(np.int64)
    right = house.open(house.total((*HONEST, HOSTILE)))[0].astype(np.int64)
    secret = modular.centre(house.secret, primes)[0]
    assert ((moved - right - secret) % t == 0).all()
    with pytest.raises(EncodingRangeError):
        unpack_fields(moved.astype(np.uint64)[None], house.bfv, 4)


def with_c0_moved(house, steps, place):
    """The hostile device's residues with c0 moved by so many plaintext steps at one place."""
    whole, primes = house.decode(house.good), house.bfv.data_primes
    step = prod(primes) / house.bfv.plain_modulus
    # A multiple of the first prime, as every short c0 is.
    shift = round(steps * step / primes[0]) * primes[0]
    for j, prime in enumerate(primes):
        whole[0, 0, j, place] = (int(whole[0, 0, j, place]) + shift) % prime
    return whole


def test_a_c0_between_two_plaintexts_loses_the_round_whoever_decrypts(houses, tmp_path):
    """The check says nothing of it, and the noise convicts no hospital; the key is not in it."""
    house = houses["threshold-he"]
    gateway = Gateway(house, tmp_path)
    gateway.admit(house.signed_by(HOSTILE, packed(house, with_c0_moved(house, 0.5, 3))))
    for members in combinations(range(3), 2):
        with pytest.raises(CiphertextError, match="do not decrypt this sum"):
            house.open(gateway.total, members)
    gateway.parties.close_databases()


def test_a_c0_moved_by_whole_steps_is_an_encryption_of_another_plaintext(houses, tmp_path):
    """Whoever may sign could have encrypted that; no party can check the range of a field."""
    house = houses["threshold-he"]
    gateway = Gateway(house, tmp_path)
    gateway.admit(house.signed_by(HOSTILE, packed(house, with_c0_moved(house, 5, 3))))
    fields = unpack_fields(house.open(gateway.total), house.bfv, 4)
    expected = house.honest_fields + house.fields[HOSTILE]
    expected[3] += np.uint64(5)
    assert (fields == expected).all()
    gateway.parties.close_databases()


def test_a_copy_counts_as_another_update_of_the_same_plaintext(house, gateway):
    """Within a ring it is refused; from another ring nobody can tell, if a gateway gave it away."""
    rings = [house.updates[device].ring for device in range(6)]
    copied = next(device for device in HONEST if rings[device] != rings[HOSTILE])
    gateway.admit(house.signed_by(HOSTILE, house.updates[copied].ciphertexts))
    fields = unpack_fields(house.open(gateway.total), house.bfv, 4)
    assert (fields == house.honest_fields + house.fields[copied]).all()


# Pairs that cancel one another.


def negative(house, residues):
    primes = house.bfv.data_primes
    return modular.subtract(np.zeros_like(residues), residues, primes)


def test_a_pair_that_cancels_is_refused_where_the_sum_would_show_its_content(house, tmp_path):
    """Alone in a round, the second of them would leave a transparent sum."""
    gateway = Gateway(house, tmp_path, devices=())
    residues = house.decode(house.good)
    gateway.admit(house.updates[HOSTILE])
    opposite = house.signed_by(ACCOMPLICE, packed(house, negative(house, residues)))
    assert gateway.refuses(opposite) is Reason.BAD_CIPHERTEXT
    for device in HONEST:
        gateway.admit(house.updates[device])
    assert gateway.is_exact((*HONEST, HOSTILE))
    gateway.parties.close_databases()


def test_a_pair_that_cancels_among_honest_updates_adds_nothing(house, gateway):
    """As two devices that send zeros: an honest sum, of two more devices than gave to it."""
    residues = house.decode(house.good)
    gateway.admit(house.updates[HOSTILE])
    gateway.admit(house.signed_by(ACCOMPLICE, packed(house, negative(house, residues))))
    fields = unpack_fields(house.open(gateway.total), house.bfv, 5)
    assert (fields == house.honest_fields).all()


def test_a_pair_of_no_encryptions_that_cancels_shows_nothing_and_adds_nothing(house, gateway):
    residues = random_residues(house)
    gateway.admit(house.signed_by(HOSTILE, packed(house, residues)))
    gateway.admit(house.signed_by(ACCOMPLICE, packed(house, negative(house, residues))))
    fields = unpack_fields(house.open(gateway.total), house.bfv, 5)
    assert (fields == house.honest_fields).all()


def test_the_opposite_of_the_whole_sum_is_refused(house, gateway):
    """Only a gateway that conspires could tell a device what to send."""
    opposite = packed(house, negative(house, house.total()))
    assert gateway.refuses(house.signed_by(HOSTILE, opposite)) is Reason.BAD_CIPHERTEXT
    assert gateway.is_exact()
