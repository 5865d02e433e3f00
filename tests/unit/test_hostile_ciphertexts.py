"""Hostile ciphertexts: each is refused by name or harmless, and the honest sum stays exact.

The attacker is a member of the roster, so its ring signature is valid, and its bytes meet the
gateway's real admission. What nobody can refuse is an encryption of a plaintext that is out of
range, or of what another device encrypted; and c0 of an encryption may be moved by anybody who
can sign it, which the noise of the sum shows, or else is an encryption of another plaintext
(SPEC 5.10). Under a joint key whatever is wrong with c1, which the key multiplies, fails the
check before anything else of the sum is opened (SPEC 5.20).
"""

from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from math import prod

import admission_fixture
import numpy as np
import pytest
from federation_fixture import Parties, small_federation

from vitalring.aggregator.recompute import Recomputation, RefusalError
from vitalring.errors import CiphertextError, EncodingRangeError, Reason, RefusedError
from vitalring.gateway import rounds
from vitalring.protocol import chunks, seal, sealing
from vitalring.protocol.bfv import choose_params
from vitalring.protocol.bits import pack_bits
from vitalring.protocol.cbor import digest, encode
from vitalring.protocol.ciphertext import POLYNOMIALS, add, decode_ciphertexts, shorten
from vitalring.protocol.packing import unpack_fields
from vitalring.protocol.release import SetPart
from vitalring.protocol.seal import from_ntt, to_ntt
from vitalring.protocol.secure_sum import threshold_params
from vitalring.protocol.threshold import modular
from vitalring.protocol.threshold.decryption import (
    combine,
    decode_check,
    decode_part,
    encode_check,
    encode_part,
    key_share,
    open_checks,
)
from vitalring.protocol.threshold.encoding import decode_polynomials, polynomial_bytes
from vitalring.protocol.threshold.joint_key import (
    contribute,
    decode_contribution,
    encode_contribution,
)
from vitalring.protocol.threshold.params import check_noise_bound
from vitalring.protocol.threshold.pieces import decode_piece, encode_piece

MEMBERS, CHALLENGE = (0, 2), b"c" * 32
HONEST = (0, 1, 2)
HOSTILE, ACCOMPLICE = 5, 4


class House:
    """A study with its keys, and updates of three honest devices to its first round."""

    def __init__(self, mode, folder):
        joint = {"hospitals": 3, "threshold": 2} if mode == "threshold-he" else {}
        self.mode = mode
        self.federation = small_federation(secure_sum=mode, min_cohort=2, **joint)
        plan = self.federation.study.plan
        self.scheme = self.federation.scheme
        if joint:
            self.params = threshold_params(plan.codec, plan.model.dimension, self.study.joint)
            self.bfv = self.params.bfv
            self.shares = {h: self.share(h, MEMBERS) for h in MEMBERS}
            whole = sum(piece.ternary.astype(np.int64) for piece in self.federation.pieces)
            self.secret = modular.reduce(whole, self.bfv.data_primes)
        else:
            self.bfv = choose_params(plan.codec, plan.model.dimension)
            whole = from_ntt(self.federation.decryption._secret, self.bfv.primes)
            ternary = modular.centre(whole, self.bfv.primes)[0]
            self.secret = modular.reduce(ternary, self.bfv.data_primes)
        parties = Parties(self.federation, folder)
        self.proposal = parties.propose()
        parties.close_databases()
        self.signed = self.proposal.record
        name = digest(self.signed)
        self.fields = [self.federation.fields(name, rng_seed=device) for device in range(6)]
        self.updates = [
            self.federation.update(
                self.signed, device, ciphertexts=self.federation.encrypt(self.fields[device])
            )
            for device in range(6)
        ]
        self.honest_fields = np.sum([self.fields[device] for device in HONEST], axis=0)

    @property
    def study(self):
        return self.federation.study

    @property
    def good(self):
        """What the hostile device's ciphertexts would be if it were honest."""
        return self.updates[HOSTILE].ciphertexts

    def share(self, hospital, members):
        held = self.params.access.held_by(hospital)
        pieces = [piece for piece in self.federation.pieces if piece.index in held]
        return key_share(hospital, pieces, members, self.params)

    def signed_by(self, device, ciphertexts):
        return self.federation.update(self.signed, device, ciphertexts=ciphertexts)

    def decode(self, ciphertexts):
        return decode_ciphertexts(ciphertexts, self.bfv)

    def total(self, devices=HONEST):
        total = None
        for device in devices:
            residues = self.decode(self.updates[device].ciphertexts)
            total = residues if total is None else add(total, residues, self.bfv)
        return total

    def open(self, total, members=MEMBERS):
        """Open a sum as the hospitals do, the check first; return its coefficients."""
        if self.mode == "single-he":
            return self.federation.decryption.decrypt(total)
        shares = self.shares
        if members != MEMBERS:
            shares = {h: self.share(h, members) for h in members}
        said = {h: share.decrypt(total, CHALLENGE) for h, share in shares.items()}
        open_checks(total, {h: check for h, (check, _) in said.items()}, CHALLENGE, self.params)
        return combine(total, {h: part for h, (_, part) in said.items()}, self.params)

    def phase(self, total):
        """Return c0 + c1 s of the first ciphertext as integers below q, with the whole secret."""
        primes = self.bfv.data_primes
        product = modular.multiply(to_ntt(total[0, 1], primes), to_ntt(self.secret, primes), primes)
        return self.integers(modular.add(total[0, 0], from_ntt(product, primes), primes))

    def integers(self, rows):
        """Return residues (primes, ...) as integers below q."""
        primes, q = self.bfv.data_primes, prod(self.bfv.data_primes)
        weights = [q // p * pow(q // p, -1, p) for p in primes]
        return sum(row.astype(object) * w for row, w in zip(rows, weights, strict=True)) % q

    def residues(self, integers):
        """Return integers (degree,) as residues (primes, degree)."""
        rows = [[int(value) % p for value in integers] for p in self.bfv.data_primes]
        return np.array(rows, dtype=np.uint64)


class Gateway:
    """A gateway whose round is open and has counted the honest updates."""

    def __init__(self, house, folder, devices=HONEST):
        self.house = house
        self.parties = Parties(house.federation, folder)
        self.parties.begin(house.proposal)
        self.current = self.parties.open_round()
        for device in devices:
            self.admit(house.updates[device])

    @property
    def db(self):
        return self.parties.db

    def check(self, box):
        key = self.house.federation.sealing_key
        return admission_fixture.check(self.db, self.current, box, key, self.parties.now_ms)

    def admit(self, update):
        admitted = self.check(self.house.federation.box(update))
        keep = self.house.mode == "threshold-he"
        admission_fixture.fold(self.db, self.current, admitted, 1, keep=keep)

    def refuses(self, update):
        """Return why an update is refused; nothing is written."""
        before = self.db.total_changes
        with pytest.raises(RefusedError) as caught:
            self.admit(update)
        assert self.db.total_changes == before
        return caught.value.reason

    @property
    def total(self):
        return self.house.scheme.decode_sum(rounds.latest(self.db).sum)

    def is_exact(self, devices=HONEST):
        """Tell whether the sum opens to exactly what these devices encrypted."""
        house = self.house
        expected = np.sum([house.fields[device] for device in devices], axis=0)
        fields = unpack_fields(house.open(self.total), house.bfv, len(devices))
        return rounds.latest(self.db).admitted == len(devices) and (fields == expected).all()


@pytest.fixture(scope="module")
def houses(tmp_path_factory):
    return {
        mode: House(mode, tmp_path_factory.mktemp(mode)) for mode in ("threshold-he", "single-he")
    }


@pytest.fixture(params=["threshold-he", "single-he"])
def house(houses, request):
    return houses[request.param]


@pytest.fixture
def gateway(house, tmp_path):
    made = Gateway(house, tmp_path)
    yield made
    made.parties.close_databases()


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


def packed(house, residues):
    """Encode residues without the checks of an honest sender."""
    parts = []
    for pair in residues:
        for polynomial, primes in ((0, house.bfv.sent_primes), (1, house.bfv.data_primes)):
            for prime in primes:
                row = pair[polynomial, house.bfv.data_primes.index(prime)]
                parts.append(pack_bits(row, prime.bit_length()).tobytes())
    return b"".join(parts)


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


def random_residues(house):
    rng = np.random.default_rng(3)
    shape = (house.bfv.ciphertexts, POLYNOMIALS, house.bfv.degree)
    rows = [rng.integers(0, p, shape, dtype=np.uint64) for p in house.bfv.data_primes]
    return shorten(np.stack(rows, axis=2), house.bfv)


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


# Random mutations.


def mutated(rng, data, residue_bytes):
    """Return `data` changed in one of the ways that bytes get hurt, or hurt on purpose."""
    changed = bytearray(data)
    place = int(rng.integers(len(data)))
    some = int(rng.integers(1, 65))
    match int(rng.integers(10)):
        case 0:
            changed[place] ^= 1 << int(rng.integers(8))
        case 1:
            changed[place] ^= int(rng.integers(1, 256))
        case 2:
            for at in rng.integers(len(data), size=some).tolist():
                changed[at] ^= int(rng.integers(1, 256))
        case 3:
            del changed[place:]
        case 4:
            del changed[place : place + some]
        case 5:
            changed[place:place] = rng.bytes(some)
        case 6:
            other = int(rng.integers(len(data)))
            one, two = data[place : place + some], data[other : other + some]
            if len(one) == len(two) and abs(place - other) >= some:
                changed[place : place + some], changed[other : other + some] = two, one
            else:
                changed.reverse()
        case 7:
            # Eight residues anywhere, all bits set: above every prime.
            start = place // residue_bytes * residue_bytes
            changed[start : start + residue_bytes] = b"\xff" * len(
                changed[start : start + residue_bytes]
            )
        case 8:
            changed[place : place + some] = bytes(len(changed[place : place + some]))
        case _:
            changed[place : place + some] = rng.bytes(len(changed[place : place + some]))
    return bytes(changed)


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


# What hospitals read of one another, and of a gateway.


def spoken(house):
    """Valid bytes of each kind that hospitals send one another, with how they are read back."""
    params = house.params
    check, part = house.shares[0].decrypt(house.total(), CHALLENGE)
    pieces, contribution = contribute(0, b"k" * 32, params)
    return {
        "part": (encode_part(part, params), lambda d: encode_part(decode_part(d, params), params)),
        "check": (
            encode_check(check, params),
            lambda d: encode_check(decode_check(d, params), params),
        ),
        "contribution": (
            encode_contribution(contribution, params),
            lambda d: encode_contribution(decode_contribution(d, 0, params), params),
        ),
        "piece": (
            encode_piece(pieces[0]),
            lambda d: encode_piece(decode_piece(d, pieces[0].index, params.bfv.degree)),
        ),
    }


@pytest.mark.parametrize("kind", ["part", "check", "contribution", "piece"])
def test_mutations_of_what_hospitals_send_are_refused_or_the_one_encoding(houses, kind):
    data, again = spoken(houses["threshold-he"])[kind]
    assert again(data) == data
    rng, refused = np.random.default_rng(21), 0
    for _ in range(400):
        content = mutated(rng, data, 50)
        try:
            assert again(content) == content
        except CiphertextError:
            refused += 1
    assert refused > 100


@pytest.fixture(scope="module")
def closed(houses, tmp_path_factory):
    """A closed round: what its gateway says of it, and the updates that it keeps."""
    gateway = Gateway(houses["threshold-he"], tmp_path_factory.mktemp("closed"))
    gateway.parties.now_ms += 20_000
    gateway.parties.close()
    said = rounds.latest(gateway.db)
    rows = gateway.db.execute("SELECT content FROM contributions ORDER BY digest").fetchall()
    yield said, [row[0] for row in rows]
    gateway.parties.close_databases()


def recomputation(house, said, spool):
    return Recomputation(house.study, said.signed_plan, said.report, said.receipts, spool)


def test_mutations_of_a_gateways_answer_are_refused_or_wait_for_another(houses, closed, tmp_path):
    """Of the updates in it, and of the whole: a hospital never adds up anything else."""
    house, (said, contents) = houses["threshold-he"], closed
    rng, fates = np.random.default_rng(22), Counter()
    for number in range(200):
        state = recomputation(house, said, tmp_path / "spool")
        request = state.requests(0.0)
        updates = list(contents)
        if number % 2:
            place = int(rng.integers(len(updates)))
            updates[place] = mutated(rng, updates[place], 50)
        message = encode(SetPart(request.plan, request.first, tuple(updates)))
        if not number % 2:
            message = mutated(rng, message, 50)
        try:
            for frame in chunks.split(message, 1 << 14, rng.bytes(16)):
                state.feed(frame, 0.0)
        except RefusalError as error:
            fates[error.refused.reason] += 1
        else:
            assert not state.complete or updates == contents
            fates["complete" if state.complete else "waits"] += 1
        state.discard()
    assert set(fates) <= {"bad_update", "missing_update", "double_update", "waits", "complete"}
    assert min(fates["bad_update"], fates["waits"]) > 10


def test_a_hospital_adds_up_what_its_gateway_did_and_opens_only_what_passes(houses, tmp_path):
    """A well-formed ciphertext that is no encryption reaches the hospitals; the check stops it."""
    house = houses["threshold-he"]
    gateway = Gateway(house, tmp_path / "gateway")
    gateway.admit(house.signed_by(HOSTILE, packed(house, random_residues(house))))
    gateway.parties.now_ms += 20_000
    gateway.parties.close()
    said = rounds.latest(gateway.db)
    state = recomputation(house, said, tmp_path / "spool")
    request = state.requests(0.0)
    rows = gateway.db.execute("SELECT content FROM contributions ORDER BY digest").fetchall()
    state.feed_part(SetPart(request.plan, request.first, tuple(row[0] for row in rows)))
    made = state.result()
    with pytest.raises(CiphertextError, match="check"):
        house.open(made.total)
    made.discard()
    gateway.parties.close_databases()
