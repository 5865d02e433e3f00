"""Two gateways of one round, each with half of every update, without a broker between them."""

from dataclasses import replace

import admission_fixture
from federation_fixture import START_MS, SmallFederation, seed

from vitalring.gateway import agreement, log, rounds, store
from vitalring.protocol import sealing, trust, two_server
from vitalring.protocol.agreement import Closing, UpdateShare
from vitalring.protocol.cbor import digest, encode
from vitalring.protocol.records import Bundle, SealedUpdate
from vitalring.protocol.signing import sign
from vitalring.protocol.two_server import ROLES, SEED
from vitalring.protocol.update import round_checks, round_context, update_digest

SECOND_LOG = log.LogKey("log.example/ward/south", seed("log south"))
SECOND_SEALING = sealing.load_secret(seed("sealing south"))


def split_update(federation, signed_plan, device, rng_seed=None):
    """One device's two halves by role, and its fields."""
    name, params = digest(signed_plan), params_of(federation)
    fields = federation.fields(name, rng_seed=device if rng_seed is None else rng_seed)
    shares = two_server.split(fields, params)
    return halves_of(federation, signed_plan, device, shares), fields


def halves_of(federation, signed_plan, device, shares):
    """Sign a link of shares, whatever they are, and put a half for each gateway together."""
    plan, name = trust.open_round_plan(signed_plan, federation.study), digest(signed_plan)
    keys = federation.devices[device]
    ring = next(i for i, ring in enumerate(federation.rings) if keys.public in ring.keys)
    signed = federation.rings[ring].sign(
        keys.secret,
        round_context(plan),
        update_digest(name, ring, shares.link),
    )
    update = SealedUpdate(name, ring, shares.link, signed)
    return tuple(UpdateShare(update, shares.of(role)) for role in ROLES)


def params_of(federation):
    plan = federation.study.plan
    return two_server.share_params(plan.codec, plan.vector_size)


class ShareGateway:
    """One of the two: its database, its keys, the functions of its service."""

    def __init__(self, federation, role, folder):
        self.federation, self.role = federation, role
        first = role != SEED
        self.log_key = SmallFederation.log_key if first else SECOND_LOG
        self.sealing_key = SmallFederation.sealing_key if first else SECOND_SEALING
        self.holder = agreement.Holder(self.log_key, federation.study.federation, role)
        self.scheme = two_server.share_sum(role, params_of(federation))
        self.now_ms = START_MS
        self.db = store.open_store(folder / f"gateway{role}")
        files = federation.files
        rounds.open_study_log(self.db, self.log_key, files.records, list(files.objects.values()))

    def begin(self, proposal: Bundle):
        rounds.begin(self.db, self.log_key, self.federation.study, proposal, self.now_ms)

    @property
    def closing(self):
        latest = rounds.latest(self.db)
        plan = trust.open_round_plan(latest.signed_plan, self.federation.study)
        return Closing(plan, latest.plan)

    def checks(self):
        closing = self.closing
        if agreement.state(self.db, closing.digest) is not None:
            return None
        return round_checks(closing.plan, closing.digest, self.scheme, self.federation.rings)

    def check(self, half):
        box = sealing.seal(encode(half), bytes(self.sealing_key.public_key))
        return admission_fixture.check(
            self.db, self.checks(), box, self.sealing_key, self.now_ms, agreement.open_share
        )

    def admit(self, half):
        admitted = self.check(half)
        if admitted is not None:
            admission_fixture.fold(self.db, self.checks(), admitted, 100, keep=True, add=False)
        return admitted is not None

    def hold(self):
        return agreement.hold(self.db, self.holder, self.closing)

    def take_set(self, theirs):
        return agreement.take_set(self.db, self.holder, self.closing, theirs)

    def take_half(self, half):
        return agreement.take_half(self.db, self.holder, self.closing, half)

    def settle(self):
        agreement.settle(self.db, self.holder, self.closing, self.scheme)

    def give_up(self):
        return agreement.give_up(self.db, self.closing)

    def close(self):
        expected, known = (
            len(self.federation.devices),
            agreement.state(self.db, self.closing.digest),
        )
        plan = self.closing.plan
        rounds.close(self.db, self.log_key, plan, expected, {}, self.now_ms, known.both)

    def lie(self, **changes):
        """Sign a share set that differs from the true one."""
        held = agreement.agreement.ShareSet(self.closing.digest, self.closing.plan.round, ())
        return sign(replace(held, **changes), [self.log_key.seed])


def agree(one, other):
    """Let two gateways that stopped agree, and close the round at both."""
    sets = one.hold(), other.hold()
    halves = one.take_set(sets[1]), other.take_set(sets[0])
    both = one.take_half(halves[1]), other.take_half(halves[0])
    for gateway in (one, other):
        gateway.settle()
        gateway.close()
    return both
