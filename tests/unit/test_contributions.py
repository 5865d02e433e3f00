"""Updates that a gateway keeps for hospitals: what it hands out, when it deletes, what stays."""

import shutil
import sqlite3

import admission_fixture
import numpy as np
import pytest
from federation_fixture import NAMES, Parties, small_federation
from gateway_fixture import HandLink, gateway_of

from vitalring.errors import RecordError, SignatureError
from vitalring.gateway import contributions, log, rounds, store, words
from vitalring.gateway.contributions import KeptUpdates, SetServer, window
from vitalring.gateway.service import subscriptions
from vitalring.mqtt import Message
from vitalring.protocol import chunks, topics, trust
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.protocol.records import LoggedObject, SealedUpdate
from vitalring.protocol.release import (
    ReleaseRefusal,
    SetCommitment,
    SetPart,
    SetRequest,
    commitments_needed,
)
from vitalring.protocol.signing import Signed, sign
from vitalring.protocol.update import digest_of

DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def federation():
    return small_federation(secure_sum="threshold-he", hospitals=3, threshold=2, n_max=5)


@pytest.fixture(scope="module")
def closed(federation, tmp_path_factory):
    """The folder of a gateway whose first round is closed with five updates."""
    folder = tmp_path_factory.mktemp("closed")
    made = Parties(federation, folder)
    close_round(made, range(5))
    made.close_databases()
    return folder


@pytest.fixture
def parties(federation, closed, tmp_path):
    made = Parties(federation, shutil.copytree(closed, tmp_path / "parties"))
    made.now_ms += 20_000
    yield made
    made.close_databases()


def close_round(parties, devices):
    parties.begin(parties.propose())
    parties.submit(devices)
    parties.now_ms += 20_000
    parties.close()


def receipts_of(parties):
    return trust.open_receipts(
        rounds.latest(parties.db).receipts, parties.federation.study.federation
    )


def kept(db):
    return db.execute("SELECT count(*) FROM contributions").fetchone()[0]


# What is kept.


def test_counted_updates_are_kept_as_they_came(parties):
    receipts = receipts_of(parties)
    part = window(parties.db, receipts, SetRequest(receipts.plan, 0, 5), 1 << 20)
    updates = [decode(SealedUpdate, content) for content in part.updates]
    assert tuple(map(digest_of, updates)) == receipts.digests
    assert len(updates) == 5


@pytest.mark.parametrize("mode", ["plain", "single-he"])
def test_one_key_holder_has_nothing_kept(tmp_path, mode):
    parties = Parties(small_federation(secure_sum=mode), tmp_path)
    parties.begin(parties.propose())
    parties.submit(range(4))
    assert kept(parties.db) == 0
    parties.close_databases()


def test_a_round_below_its_minimum_keeps_nothing(federation, tmp_path):
    parties = Parties(federation, tmp_path)
    parties.begin(parties.propose())
    parties.submit(range(3))
    assert kept(parties.db) == 3
    parties.close()
    assert kept(parties.db) == 0
    parties.close_databases()


def test_neither_tables_nor_the_file_tell_in_which_order_updates_came(federation, tmp_path):
    """Once the round is closed, the bytes of each update stand in the order of their digests."""
    proposal, updates = None, []
    for name, order in (("one", (0, 1, 2, 3, 4)), ("two", (3, 4, 1, 0, 2))):
        parties = Parties(federation, tmp_path / name)
        proposal = proposal or parties.propose()
        parties.begin(proposal)
        updates = updates or [federation.update(proposal.record, device) for device in range(5)]
        for device in order:
            parties.admit(federation.box(updates[device]))
        parties.close()
        parties.close_databases()
        content = (tmp_path / name / "gateway" / store.FILE).read_bytes()
        # SQLite cuts content into pages; a short piece is rarely cut itself.
        pieces = {digest_of(u): u.ciphertexts[30_000:30_016] for u in updates}
        places = {d: content.find(piece) for d, piece in pieces.items()}
        assert all(place > 0 for place in places.values())
        assert all(content.count(piece) == 1 for piece in pieces.values())
        assert sorted(places, key=places.__getitem__) == sorted(places)
        assert not (tmp_path / name / "gateway" / f"{store.FILE}-wal").exists()


def test_a_full_disk_at_the_rewriting_does_not_undo_the_close(parties, caplog):
    class Full:
        def execute(self, statement, *values):
            if statement == "VACUUM":
                raise sqlite3.OperationalError("database or disk is full")
            return parties.db.execute(statement, *values)

    rounds._forget_order(Full())
    assert "order of updates" in caplog.text


# When it is deleted.


def commitment(parties, hospital, set_=b"s" * 32, **changes):
    federation, current = parties.federation, rounds.latest(parties.db)
    said = {
        "sum_key": federation.study.sum_key_digest,
        "round": current.number,
        "plan": current.plan,
        "report": digest(current.report),
        "set": set_,
        "nonce": bytes([hospital]) * 32,
    }
    return sign(SetCommitment(**{**said, **changes}), [federation.aggregator_seeds[hospital]])


def refusal(parties, hospital, reason="sum_mismatch", subject=b""):
    current = rounds.latest(parties.db)
    word = ReleaseRefusal(current.plan, digest(current.report), reason, subject)
    return sign(word, [parties.federation.aggregator_seeds[hospital]])


def hear(parties, hospital, record, kind="set-commitment", name=None):
    federation = parties.federation
    return words.take(
        parties.db, federation.log_key, federation.study, name or NAMES[hospital], kind, record
    )


def a_mean(parties):
    return np.full(parties.federation.study.plan.model.dimension, 0.25)


def test_updates_are_deleted_with_the_model(parties):
    for hospital in range(3):
        assert hear(parties, hospital, commitment(parties, hospital))
    parties.finish(parties.model(a_mean(parties)))
    assert kept(parties.db) == 0
    wal = parties.db.execute("PRAGMA database_list").fetchone()[2] + "-wal"
    with open(wal, "rb") as file:  # noqa: PTH123
        assert file.read() == b""


def test_updates_of_a_round_without_end_are_deleted_when_their_time_is_over(parties):
    fed, kept_for = parties.federation.study.federation, KeptUpdates(keep_days=2)
    report = trust.open_report(rounds.latest(parties.db).report, fed)
    closed_ms = report.closed_ms
    assert store.get_object(parties.db, report.sum) is not None
    assert not rounds.delete_overdue(parties.db, fed, kept_for, closed_ms + 2 * DAY_MS)
    assert kept(parties.db) == 5
    assert rounds.delete_overdue(parties.db, fed, kept_for, closed_ms + 2 * DAY_MS + 1)
    assert kept(parties.db) == 0
    assert store.get_object(parties.db, report.sum) is None
    assert not rounds.delete_overdue(parties.db, fed, kept_for, closed_ms + 9 * DAY_MS)
    # Hospitals are told so; the round ends without a sum.
    receipts = receipts_of(parties)
    part = window(parties.db, receipts, SetRequest(receipts.plan, 0, 5), 1 << 20)
    assert part == SetPart(receipts.plan, 0, ())
    parties.finish(parties.model(None))
    assert rounds.latest(parties.db).status == "done"


def test_the_service_deletes_by_its_clock(parties):
    link = HandLink()
    gateway = service(parties, link)
    gateway.tick()
    parties.now_ms += 7 * DAY_MS
    gateway.tick()
    assert kept(parties.db) == 5
    parties.now_ms += 1
    gateway.tick()  # it looks once an hour
    parties.now_ms += 3_600_000
    gateway.tick()
    assert kept(parties.db) == 0


# What is handed out.


def service(parties, link, **options):
    return gateway_of(
        parties.federation,
        parties.db,
        link,
        lambda: parties.now_ms,
        chunks.ChunkLimits(),
        **options,
    )


def test_windows_hold_whole_updates_below_their_limit_and_one_at_least(parties):
    receipts = receipts_of(parties)
    size = parties.federation.scheme.update_bytes
    for limit, expected in ((0, 1), (2 * size, 1), (3 * size, 2), (6 * size, 5)):
        part = window(parties.db, receipts, SetRequest(receipts.plan, 0, 5), limit)
        assert len(part.updates) == expected
        assert expected == 1 or len(encode(part)) <= limit
    part = window(parties.db, receipts, SetRequest(receipts.plan, 3, 10), 6 * size)
    assert len(part.updates) == 2
    part = window(parties.db, receipts, SetRequest(receipts.plan, 5, 10), 6 * size)
    assert part.updates == ()


def server_of(parties, payload=1 << 14, limit=1 << 17):
    fed = parties.federation.study.federation
    return SetServer(parties.db, fed, payload, KeptUpdates(window_bytes=limit))


def drain(server, most=10_000):
    sent = []
    while (frame := server.next()) is not None:
        sent.append(frame)
        assert len(sent) < most
    return sent


def test_requests_are_answered_in_turn_one_window_at_a_time(parties):
    receipts, server = receipts_of(parties), server_of(parties)
    for hospital in (0, 1):
        server.ask(NAMES[hospital], encode(SetRequest(receipts.plan, hospital, 2)))
    sent = drain(server)
    assert all(len(frame) <= 1 << 14 for _, frame in sent)
    turns = [topic for topic, _ in sent]
    assert turns == sorted(turns, key=[topics.set_topic("fed", n) for n in NAMES].index)
    parts = {}
    for hospital in (0, 1):
        reassembler = chunks.Reassembler(chunks.ChunkLimits())
        own = [f for topic, f in sent if topic == topics.set_topic("fed", NAMES[hospital])]
        done = [p for f in own if (p := reassembler.add(f, 0.0)) is not None]
        parts[hospital] = decode(SetPart, done[0])
        assert (parts[hospital].first, len(parts[hospital].updates)) == (hospital, 2)
    assert parts[0].updates[1] == parts[1].updates[0]


def test_a_hospital_that_asks_again_and_again_fills_no_memory(parties):
    receipts, server = receipts_of(parties), server_of(parties)
    request = encode(SetRequest(receipts.plan, 0, 2))
    for number in range(500):
        server.ask(NAMES[0], request)
        server.ask(NAMES[1], encode(SetRequest(receipts.plan, number % 5, 1)))
        server.next()
    held = sum(len(frame) for _, frame in drain(server))
    # The window on its way and one request of each hospital.
    assert held < 3 * (1 << 17) + (1 << 15)


def test_open_rounds_and_unknown_plans_are_not_handed_out(federation, tmp_path):
    parties = Parties(federation, tmp_path)
    parties.begin(parties.propose())
    parties.submit(range(4))
    server = server_of(parties)
    for plan in (rounds.latest(parties.db).plan, b"\x01" * 32):
        server.ask(NAMES[0], encode(SetRequest(plan, 0, 4)))
        assert drain(server) == []
    parties.close_databases()


@pytest.mark.parametrize("payload", [b"", b"\xa0", b"\xff" * 2000])
def test_malformed_requests_and_strangers_are_refused(parties, payload):
    server = server_of(parties)
    with pytest.raises(RecordError):
        server.ask(NAMES[0], payload)
    request = encode(SetRequest(rounds.latest(parties.db).plan, 0, 1))
    with pytest.raises(RecordError, match="no hospital"):
        server.ask("lake", request)
    assert not server.busy


def test_the_service_answers_and_gives_up_what_the_broker_refuses(parties):
    link = HandLink()
    gateway = service(parties, link, max_payload_bytes=1 << 14)
    receipts = receipts_of(parties)
    wanted = topics.want_topic("fed", NAMES[1])
    request = encode(SetRequest(receipts.plan, 0, 5))
    gateway.take(Message(wanted, request, packet_id=1))
    link.refuses = topics.set_topic("fed", NAMES[1])
    gateway.tick()
    assert link.sent == []
    link.refuses = None
    gateway.tick()
    assert link.sent == []  # the rest of that window would be of no use
    gateway.take(Message(wanted, request, packet_id=2))
    for _ in range(100):
        gateway.tick()
    reassembler = chunks.Reassembler(chunks.ChunkLimits())
    done = [p for _, f in link.sent if (p := reassembler.add(f, 0.0)) is not None]
    assert (
        decode(SetPart, done[0]).updates
        == window(parties.db, receipts, SetRequest(receipts.plan, 0, 5), 1 << 22).updates
    )
    assert link.acked == 2


# What hospitals say of it.


def kinds(parties):
    entries = log.entries(parties.db, 0, log.size(parties.db))
    return [decode(LoggedObject, e).kind for e in entries if b"logged-object" in e]


def test_commitments_and_refusals_are_logged_once_before_the_model(parties):
    said = commitment(parties, 0)
    assert hear(parties, 0, said)
    assert not hear(parties, 0, said)
    assert hear(parties, 1, refusal(parties, 1), "release-refusal")
    assert hear(parties, 1, commitment(parties, 1))
    assert hear(parties, 1, refusal(parties, 1, "bad_check"), "release-refusal")
    assert kinds(parties)[-5:] == [
        "round-report",
        "set-commitment",
        "release-refusal",
        "set-commitment",
        "release-refusal",
    ]
    note = log.latest_checkpoint(parties.db)
    assert int(note.split(b"\n")[1]) == log.size(parties.db)
    # Kept as they were signed.
    assert store.get_object(parties.db, digest(said)) == said


def test_a_refusal_is_logged_instead_of_a_model_that_applies(parties):
    assert hear(parties, 2, refusal(parties, 2), "release-refusal")
    parties.finish(parties.model(None))
    assert kinds(parties)[-2:] == ["release-refusal", "global-model"]
    with pytest.raises(RecordError, match="no round is closed"):
        hear(parties, 1, commitment(parties, 1))


def test_words_that_are_not_the_hospitals_own_are_refused(parties):
    own = commitment(parties, 0)
    size = log.size(parties.db)
    with pytest.raises(RecordError, match="topic"):
        hear(parties, 1, own)
    with pytest.raises(RecordError):
        hear(parties, 0, own, "release-refusal")
    twice = sign(decode_commitment(own), parties.federation.aggregator_seeds[:2])
    stranger = sign(decode_commitment(own), [b"x" * 32])
    for record in (twice, stranger):
        with pytest.raises((RecordError, SignatureError)):
            hear(parties, 0, record)
    for changes in (
        {"plan": b"\x01" * 32},
        {"report": b"\x01" * 32},
        {"round": 2},
        {"sum_key": b"\x01" * 32},
    ):
        with pytest.raises(RecordError, match="another round"):
            hear(parties, 0, commitment(parties, 0, **changes))
    assert log.size(parties.db) == size


def decode_commitment(record):
    return decode(SetCommitment, decode(Signed, record).payload)


def test_a_second_commitment_of_a_hospital_is_no_second_vote(parties):
    assert hear(parties, 0, commitment(parties, 0))
    with pytest.raises(RecordError, match="before"):
        hear(parties, 0, commitment(parties, 0, b"t" * 32))
    size = log.size(parties.db)
    for subject in (b"", b"\x01" * 32, b"\x02" * 32):
        try:
            hear(parties, 0, refusal(parties, 0, subject=subject), "release-refusal")
        except RecordError:
            continue
    assert log.size(parties.db) == size + 1


def test_words_before_the_close_are_refused(federation, tmp_path):
    parties = Parties(federation, tmp_path)
    parties.begin(parties.propose())
    current = rounds.latest(parties.db)
    word = ReleaseRefusal(current.plan, b"\x01" * 32, "too_few", b"")
    with pytest.raises(RecordError, match="no round is closed"):
        hear(parties, 0, sign(word, [federation.aggregator_seeds[0]]), "release-refusal")
    parties.close_databases()


def test_a_model_that_applies_a_sum_needs_enough_commitments_to_one_set(parties):
    needed = commitments_needed(parties.federation.study.joint.access)
    assert needed == 3
    model = parties.model(a_mean(parties))
    for hospital in (0, 1):
        hear(parties, hospital, commitment(parties, hospital))
        with pytest.raises(rounds.EarlyModelError, match="committed"):
            parties.finish(model)
    hear(parties, 2, commitment(parties, 2))
    assert parties.finish(model).applied
    assert kinds(parties)[-1] == "global-model"


def test_commitments_to_two_sets_do_not_add_up(parties):
    for hospital, set_ in ((0, b"s" * 32), (1, b"s" * 32), (2, b"t" * 32)):
        hear(parties, hospital, commitment(parties, hospital, set_))
    with pytest.raises(rounds.EarlyModelError):
        parties.finish(parties.model(a_mean(parties)))


def test_a_model_that_came_too_early_is_taken_once_the_last_commitment_is_there(parties):
    link = HandLink()
    gateway = service(parties, link)
    model = encode(parties.model(a_mean(parties)))
    gateway.take(Message(topics.model_topic("fed"), b"\0" + model, retained=True, packet_id=1))
    for hospital in range(3):
        assert rounds.latest(parties.db).status == "closed"
        topic = topics.hospital_topic("fed", NAMES[hospital], "commitment")
        said = b"\0" + commitment(parties, hospital)
        gateway.take(Message(topic, said, retained=True, packet_id=2 + hospital))
        gateway.tick()
    assert rounds.latest(parties.db).status == "done"
    assert link.acked == 4


def test_a_gateway_listens_to_hospitals_only_where_they_decrypt_together(federation):
    heard = set(subscriptions(federation.study))
    assert {
        "vr1/fed/inner/of/+/commitment/0",
        "vr1/fed/inner/of/+/refusal/0",
        "vr1/fed/inner/want/+",
    } <= heard
    assert not any("/of/" in f or "/want/" in f for f in subscriptions(small_federation().study))


def test_a_crash_between_update_and_sum_keeps_neither(federation, tmp_path):
    parties = Parties(federation, tmp_path)
    parties.begin(parties.propose())
    update = federation.update(rounds.latest(parties.db).signed_plan, 0)
    admitted = parties.check(federation.box(update))

    class Crash(BaseException):
        pass

    class Dying:
        in_transaction = property(lambda _: parties.db.in_transaction)

        def execute(self, statement, *values):
            if statement.startswith("INSERT INTO contributions"):
                raise Crash
            return parties.db.execute(statement, *values)

    with pytest.raises(Crash):
        admission_fixture.fold(Dying(), parties.open_round(), admitted, 1, keep=True)
    assert rounds.latest(parties.db).admitted == 0
    assert kept(parties.db) == 0
    assert contributions.any_kept(parties.db) is False
    parties.close_databases()
