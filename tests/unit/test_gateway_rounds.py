"""The life of a round: each step once, in order, and all of it or nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
from federation_fixture import Parties, small_federation

from vitalring.database import transaction
from vitalring.edge_agent import announcement
from vitalring.errors import ConfigError, Reason, RecordError, SignatureError
from vitalring.gateway import log, rounds, store
from vitalring.protocol import trust
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.protocol.records import (
    AcceptedUpdate,
    Bundle,
    EncryptedSum,
    GlobalModel,
    LoggedObject,
    RoundPlan,
)
from vitalring.protocol.signing import Signed, sign
from vitalring.protocol.weights import pack_weights


@pytest.fixture(scope="module")
def federation():
    return small_federation()


@pytest.fixture
def parties(federation, tmp_path):
    made = Parties(federation, tmp_path)
    yield made
    made.close_databases()


def state(db):
    """Everything that the database holds."""
    tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return {table: db.execute(f"SELECT * FROM {table}").fetchall() for table in tables}


def resigned(bundle, cls, seed, objects=None, **changes):
    """The same bundle with other fields, signed again."""
    record = replace(decode(cls, decode(Signed, bundle.record).payload), **changes)
    return Bundle(sign(record, [seed]), bundle.objects if objects is None else objects)


def kinds(db):
    found = []
    for entry in log.entries(db, 0, log.size(db)):
        try:
            found.append(decode(LoggedObject, entry).kind)
        except RecordError:
            decode(AcceptedUpdate, entry)
            found.append("update")
    return found


# The study.


def test_the_study_is_logged_once(parties, federation):
    before = state(parties.db)
    parties.log_study()
    assert state(parties.db) == before
    assert kinds(parties.db) == ["federation", "study-plan", "roster", "sum-key"]
    for content in (*federation.files.records.values(), *federation.files.objects.values()):
        assert store.get_object(parties.db, digest(content)) == content


def test_a_log_tells_of_one_study(parties):
    other = small_federation().files
    before = state(parties.db)
    with pytest.raises(ConfigError, match="another roster"):
        rounds.open_study_log(parties.db, parties.federation.log_key, other.records, [])
    assert state(parties.db) == before


# Opening.


def test_a_round_begins_once(parties):
    proposal = parties.propose()
    assert parties.begin(proposal).round == 1
    before = state(parties.db)
    assert parties.begin(proposal) is None
    assert state(parties.db) == before
    current = rounds.latest(parties.db)
    assert (current.number, current.status, current.admitted) == (1, "open", 0)
    assert kinds(parties.db)[4:] == ["round-plan"]


def test_an_announcement_convinces_a_device(parties, federation):
    parties.run_round(range(4))
    parties.begin(parties.propose())
    data = rounds.announcement(parties.db, rounds.latest(parties.db))
    fed = federation.study.federation
    known = announcement.read(data, fed).checkpoint
    assert known.size == log.size(parties.db)
    parties.submit(range(4))
    parties.close()
    parties.finish(parties.conclude())
    parties.begin(parties.propose())
    data = rounds.announcement(parties.db, rounds.latest(parties.db))
    later = announcement.read(data, fed)
    announcement.check_growth(later, known)
    assert later.plan_digest == rounds.latest(parties.db).plan


def refused(parties, proposal, match, error=RecordError):
    before = state(parties.db)
    with pytest.raises(error, match=match):
        parties.begin(proposal)
    assert state(parties.db) == before


def test_a_round_out_of_turn_is_refused(parties, federation):
    first = parties.propose()
    seed = federation.aggregator_seed
    refused(parties, resigned(first, RoundPlan, seed, round=2), "round 1 is next")
    parties.begin(first)
    second = resigned(first, RoundPlan, seed, round=2)
    refused(parties, second, "has no model")
    # Another plan for the round that is open, and for one that is over.
    other = resigned(first, RoundPlan, seed, opens_ms=parties.now_ms + 1)
    refused(parties, other, "has no model")
    parties.submit(range(4))
    parties.close()
    refused(parties, second, "has no model")
    parties.finish(parties.conclude())
    refused(parties, other, "round 2 is next")


def test_a_round_that_comes_after_its_deadline_is_opened_and_ends_without_updates(parties):
    proposal = parties.propose()
    parties.now_ms += 10_000
    assert parties.begin(proposal) is not None
    parties.close()
    assert not parties.finish(parties.conclude()).applied


def test_a_round_that_another_key_signed_is_refused(parties, federation):
    proposal = resigned(parties.propose(), RoundPlan, federation.log_key.seed)
    refused(parties, proposal, "unknown key", SignatureError)


def test_a_round_without_its_weights_is_refused(parties):
    proposal = parties.propose()
    refused(parties, Bundle(proposal.record, ()), "did not come")
    refused(parties, Bundle(proposal.record, (b"something else",)), "did not come")


def test_weights_of_another_size_are_refused(parties, federation):
    short = pack_weights(federation.start()[:-1])
    proposal = resigned(
        parties.propose(), RoundPlan, federation.aggregator_seed, (short,), weights=digest(short)
    )
    refused(parties, proposal, "four each")


def test_objects_that_nobody_signed_for_are_not_kept(parties):
    proposal = parties.propose()
    parties.begin(Bundle(proposal.record, (b"garbage", *proposal.objects)))
    assert store.get_object(parties.db, digest(b"garbage")) is None


def test_a_round_starts_from_the_last_models_weights(parties, federation):
    parties.run_round(range(4))
    other = pack_weights(federation.start() + 1.0)
    proposal = resigned(
        parties.propose(), RoundPlan, federation.aggregator_seed, (other,), weights=digest(other)
    )
    refused(parties, proposal, "other weights")


def test_no_round_after_the_final_model(parties, federation):
    parties.begin(parties.propose())
    parties.submit(range(4))
    parties.close()
    final = resigned(parties.conclude(), GlobalModel, federation.aggregator_seed, final=True)
    parties.finish(final)
    refused(parties, parties.propose(), "final")


# Closing.


def test_updates_are_logged_sorted_by_digest(parties):
    parties.begin(parties.propose())
    parties.submit([3, 0, 5, 1, 4])
    size = log.size(parties.db)
    parties.close({Reason.MALFORMED: 3, Reason.TOO_LATE: 1})
    found = [decode(AcceptedUpdate, e) for e in log.entries(parties.db, size, size + 5)]
    digests = tuple(update.digest for update in found)
    assert list(digests) == sorted(digests)
    current = rounds.latest(parties.db)
    fed = parties.federation.study.federation
    assert trust.open_receipts(current.receipts, fed).digests == digests
    report = trust.open_report(current.report, fed)
    assert (report.status, report.expected, report.admitted) == ("summed", 6, 5)
    assert report.refused == {"malformed": 3, "too_late": 1}
    total = decode(EncryptedSum, store.get_object(parties.db, report.sum))
    assert (total.plan, total.contributions) == (current.plan, digests)
    bundle = decode(Bundle, rounds.sum_bundle(parties.db, current, parties.federation.study))
    assert bundle == Bundle(current.report, (encode(total),))


@pytest.mark.parametrize("devices", [(), (0,), (0, 1, 2)])
def test_below_the_minimum_nothing_is_handed_out(parties, devices):
    parties.begin(parties.propose())
    parties.submit(devices)
    parties.close()
    current = rounds.latest(parties.db)
    fed = parties.federation.study.federation
    report = trust.open_report(current.report, fed)
    assert (report.status, report.admitted, report.sum) == (
        "below_min_cohort",
        len(devices),
        b"",
    )
    assert (
        decode(Bundle, rounds.sum_bundle(parties.db, current, parties.federation.study)).objects
        == ()
    )
    # Nor does the sum stay on disk.
    assert current.sum is None
    for (content,) in parties.db.execute("SELECT content FROM objects"):
        assert b"vitalring/encrypted-sum" not in content
    parties.finish(parties.conclude())
    assert rounds.latest(parties.db).status == "done"


def test_a_round_closes_once(parties):
    parties.begin(parties.propose())
    plan = parties.open_round().plan
    parties.submit(range(4))
    parties.close()
    before = state(parties.db)
    args = (parties.db, parties.federation.log_key, plan, 6, {}, parties.now_ms + 1)
    rounds.close(*args)
    assert state(parties.db) == before
    parties.finish(parties.conclude())
    before = state(parties.db)
    rounds.close(*args)
    assert state(parties.db) == before


def test_a_sum_of_an_open_round_is_not_handed_out(parties):
    parties.begin(parties.propose())
    parties.submit(range(5))
    with pytest.raises(RecordError, match="no report"):
        rounds.sum_bundle(parties.db, rounds.latest(parties.db), parties.federation.study)


# Finishing.


@pytest.fixture
def closed(parties):
    parties.begin(parties.propose())
    parties.submit(range(5))
    parties.close()
    return parties.conclude()


def unfinished(parties, model, match, error=RecordError):
    before = state(parties.db)
    with pytest.raises(error, match=match):
        parties.finish(model)
    assert state(parties.db) == before


def test_a_model_is_taken_once_and_the_sum_is_gone(parties, closed):
    current = rounds.latest(parties.db)
    name = trust.open_report(current.report, parties.federation.study.federation).sum
    assert store.get_object(parties.db, name)
    assert parties.finish(closed).round == 1
    assert store.get_object(parties.db, name) is None
    assert rounds.latest(parties.db).status == "done"
    before = state(parties.db)
    assert parties.finish(closed) is None
    assert state(parties.db) == before


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"round": 2}, "another round"),
        ({"applied": False, "contributions": 0}, "weights changed"),
        ({"contributions": 4}, "counts 4 updates, not"),
        ({"report": b"\x01" * 32}, "another report"),
        ({"plan": b"\x01" * 32}, "not the latest"),
        ({"study": "other"}, "of study other"),
        ({"weights": b"\x01" * 32}, "did not come"),
    ],
    ids=repr,
)
def test_a_model_that_does_not_follow_is_refused(parties, closed, changes, match):
    seed = parties.federation.aggregator_seed
    unfinished(parties, resigned(closed, GlobalModel, seed, **changes), match)
    assert parties.finish(closed).round == 1


def test_a_model_that_another_key_signed_is_refused(parties, closed):
    seed = parties.federation.log_key.seed
    unfinished(parties, resigned(closed, GlobalModel, seed), "unknown key", SignatureError)


def test_a_second_model_of_a_round_is_refused(parties, closed):
    parties.finish(closed)
    other = resigned(closed, GlobalModel, parties.federation.aggregator_seed, final=True)
    unfinished(parties, other, "another model")


def test_a_model_before_the_close_is_refused(parties, federation):
    parties.begin(parties.propose())
    parties.submit(range(5))
    current = rounds.latest(parties.db)
    weights = pack_weights(federation.start())
    model = GlobalModel(
        federation="fed",
        study="study",
        round=1,
        plan=current.plan,
        report=b"\x01" * 32,
        weights=digest(weights),
        contributions=5,
        applied=True,
        final=False,
        evaluation=None,
    )
    bundle = Bundle(sign(model, [federation.aggregator_seed]), (weights,))
    unfinished(parties, bundle, "before the round closed")


def test_weights_do_not_change_without_a_sum(parties, federation):
    parties.begin(parties.propose())
    parties.submit([0])
    parties.close()
    other = pack_weights(federation.start() + 1.0)
    model = resigned(
        parties.conclude(),
        GlobalModel,
        federation.aggregator_seed,
        (other,),
        weights=digest(other),
    )
    unfinished(parties, model, "applied no sum")


# Crashes: each step is one transaction.


class Crash(BaseException):
    pass


@pytest.mark.parametrize("step", ["begin", "close", "finish"])
def test_a_crash_before_the_commit_leaves_nothing(parties, monkeypatch, step):
    def act(name):
        if name == "begin":
            parties.begin(parties.proposal)
        elif name == "close":
            parties.close()
        else:
            parties.finish(parties.model)

    parties.proposal = parties.propose()
    for name in ("begin", "close", "finish"):
        if name == "close":
            parties.submit(range(5))
        if name == "finish":
            parties.model = parties.conclude()
        if name == step:
            before = state(parties.db)
            with monkeypatch.context() as patched:
                # Signing the checkpoint is the last thing that each step does.
                patched.setattr(log, "sign_checkpoint", crash)
                with pytest.raises(Crash):
                    act(name)
            assert state(parties.db) == before
        act(name)
    assert rounds.latest(parties.db).status == "done"


def crash(*_):
    raise Crash


def test_receipts_of_the_newest_rounds(parties):
    assert rounds.recent_receipts(parties.db, 5) == []
    for _ in range(3):
        parties.run_round(range(4))
    parties.begin(parties.propose())
    assert [number for number, _ in rounds.recent_receipts(parties.db, 2)] == [3, 2]
    assert [number for number, _ in rounds.recent_receipts(parties.db, -1)] == [3, 2, 1]
    with transaction(parties.db):
        pass  # no transaction was left open


def test_a_spoiled_sum_ends_its_round_and_not_the_study(parties, federation):
    parties.begin(parties.propose())
    signed = rounds.latest(parties.db).signed_plan
    for device in range(5):
        fields = federation.fields(parties.open_round().plan_digest, rng_seed=device)
        fields[0] = 0  # no honest device weighs nothing
        update = federation.update(signed, device, federation.encrypt(fields))
        assert parties.admit(federation.box(update))
    parties.now_ms += 20_000
    parties.close()
    model = parties.finish(parties.conclude())
    assert not model.applied
    assert model.contributions == 0
    parties.run_round(range(5))
    assert rounds.latest(parties.db).number == 2


def test_a_closed_round_leaves_no_trace_of_the_order_in_which_updates_came(parties):
    parties.begin(parties.propose())
    folder = store_folder(parties.db)
    sums = []
    for device in (4, 1, 3, 0, 2):
        parties.submit([device])
        sums.append(rounds.latest(parties.db).sum)
    digests = [d for (d,) in parties.db.execute("SELECT digest FROM admitted").fetchall()]
    journal = folder / "gateway.sqlite-wal"
    assert all(name in journal.read_bytes() for name in digests)
    parties.now_ms += 20_000
    parties.close()
    assert journal.read_bytes() == b""
    kept = (folder / "gateway.sqlite").read_bytes()
    # What is left is in the order of the log; of the sums the last alone, for the aggregator.
    assert sorted(digests, key=kept.find) in (sorted(digests), sorted(digests, reverse=True))
    assert [total in kept for total in sums] == [False] * 4 + [True]
    parties.finish(parties.conclude())
    assert journal.read_bytes() == b""
    assert sums[-1] not in (folder / "gateway.sqlite").read_bytes()


def store_folder(db):
    return Path(db.execute("PRAGMA database_list").fetchone()[2]).parent
