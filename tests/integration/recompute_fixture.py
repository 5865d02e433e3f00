"""What a gateway has of a closed round, and a hospital that recomputes it."""

from contextlib import contextmanager

import pytest
from federation_fixture import Parties

from vitalring.aggregator.recompute import Recomputation, RefusalError
from vitalring.gateway import rounds
from vitalring.protocol import trust
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.protocol.records import EncryptedSum, Receipts, RoundReport, SealedUpdate
from vitalring.protocol.release import SetPart
from vitalring.protocol.signing import sign
from vitalring.protocol.update import digest_of

DEVICES = 5


class Round:
    """What a gateway has of a closed round, and what it makes hospitals believe."""

    def __init__(self, parties):
        self.parties, self.federation = parties, parties.federation
        current = rounds.latest(parties.db)
        self.plan, self.report, self.receipts = (
            current.signed_plan,
            current.report,
            current.receipts,
        )
        rows = parties.db.execute("SELECT content FROM contributions ORDER BY digest").fetchall()
        self.contents = [row[0] for row in rows]
        self.updates = [decode(SealedUpdate, content) for content in self.contents]

    @property
    def name(self):
        return digest(self.plan)

    @property
    def opened(self):
        return trust.open_round_plan(self.plan, self.federation.study)

    def add(self, updates):
        scheme, total = self.federation.scheme, None
        for update in updates:
            residues = scheme.decode(update.ciphertexts)
            total = residues if total is None else scheme.add(total, residues)
        return scheme.encode_sum(total)

    def told(self, digests, total, admitted=None):
        """Report and receipts that a lying gateway signs over digests and a sum of its choice."""
        seed = self.federation.log_key.seed
        digests = tuple(digests)
        report = RoundReport(
            plan=self.name,
            round=1,
            status="summed",
            expected=len(self.federation.devices),
            admitted=len(digests) if admitted is None else admitted,
            refused={},
            sum=digest(encode(EncryptedSum(self.name, digests, total))),
            opened_ms=0,
            closed_ms=1,
            admission_ms=0,
        )
        return sign(report, [seed]), sign(Receipts(self.name, digests), [seed])

    def lie(self, updates, total=None):
        """Tell of these updates as if they were the round's."""
        updates = sorted(updates, key=digest_of)
        signed = self.told(map(digest_of, updates), total or self.add(updates))
        return *signed, [encode(update) for update in updates]


@contextmanager
def closed_round(federation, folder):
    """A round that every device had its update counted in."""
    parties = Parties(federation, folder)
    parties.begin(parties.propose())
    parties.submit(range(DEVICES))
    parties.now_ms += 20_000
    parties.close()
    yield Round(parties)
    parties.close_databases()


def recomputation(closed, spool, report=None, receipts=None, **options):
    return Recomputation(
        closed.federation.study,
        closed.plan,
        report or closed.report,
        receipts or closed.receipts,
        spool,
        **options,
    )


def answer(state, contents, now_s=0.0):
    """Answer one request from a gateway that has these encoded updates."""
    request = state.requests(now_s)
    state.feed_part(
        SetPart(
            request.plan,
            request.first,
            tuple(contents[request.first : request.first + request.count]),
        )
    )


def result(closed, spool, report=None, receipts=None, contents=None, **options):
    state = recomputation(closed, spool, report, receipts, **options)
    while not state.complete:
        answer(state, closed.contents if contents is None else contents)
    return state.result()


def refused(closed, spool, *lie, **options):
    with pytest.raises(RefusalError) as caught:
        result(closed, spool, *lie, **options)
    return caught.value.refused
