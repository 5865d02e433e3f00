"""A study with its keys, a gateway with an open round, and a device that sends what it likes."""

import admission_fixture
import numpy as np
import pytest
from federation_fixture import Parties, small_federation
from residues_fixture import integers

from vitalring.errors import RefusedError
from vitalring.gateway import rounds
from vitalring.protocol.bfv import choose_params
from vitalring.protocol.bits import pack_bits
from vitalring.protocol.cbor import digest
from vitalring.protocol.ciphertext import POLYNOMIALS, add, decode_ciphertexts, shorten
from vitalring.protocol.packing import unpack_fields
from vitalring.protocol.seal import from_ntt, to_ntt
from vitalring.protocol.secure_sum import threshold_params
from vitalring.protocol.threshold import modular
from vitalring.protocol.threshold.decryption import combine, key_share, open_checks

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
        return integers(rows, self.bfv.data_primes)

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


def packed(house, residues):
    """Encode residues without the checks of an honest sender."""
    parts = []
    for pair in residues:
        for polynomial, primes in ((0, house.bfv.sent_primes), (1, house.bfv.data_primes)):
            for prime in primes:
                row = pair[polynomial, house.bfv.data_primes.index(prime)]
                parts.append(pack_bits(row, prime.bit_length()).tobytes())
    return b"".join(parts)


def random_residues(house):
    rng = np.random.default_rng(3)
    shape = (house.bfv.ciphertexts, POLYNOMIALS, house.bfv.degree)
    rows = [rng.integers(0, p, shape, dtype=np.uint64) for p in house.bfv.data_primes]
    return shorten(np.stack(rows, axis=2), house.bfv)


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
