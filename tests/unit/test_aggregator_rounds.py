"""The aggregator: rounds in order, one sum a round, and only sums that are large enough."""

import dataclasses

import numpy as np
import pytest
from federation_fixture import SOME_PRIVACY, Parties, seed, small_federation

from vitalring.aggregator import optimisers
from vitalring.aggregator import rounds as aggregator_rounds
from vitalring.aggregator import store as aggregator_store
from vitalring.errors import RecordError, SignatureError
from vitalring.gateway import rounds
from vitalring.protocol import trust
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.protocol.quantise import decode_sum
from vitalring.protocol.records import Bundle, EncryptedSum, Evaluation
from vitalring.protocol.signing import sign
from vitalring.protocol.update import rotation_seed
from vitalring.protocol.weights import unpack_weights


class Watched:
    """The key holder's part, with a count of how often it was used."""

    def __init__(self, decrypt):
        self._decrypt = decrypt
        self.uses = 0

    def __call__(self, total):
        self.uses += 1
        return self._decrypt(total)


@pytest.fixture(scope="module")
def small():
    return small_federation(secure_sum="single-he", privacy=SOME_PRIVACY, study_rounds=3)


@pytest.fixture
def parties(small, tmp_path):
    parties = Parties(small, tmp_path)
    parties.key = Watched(small.decryption.decrypt)
    parties.aggregator = dataclasses.replace(parties.aggregator, decrypt=parties.key)
    yield parties
    parties.close_databases()


def close_round(parties, devices):
    """Open and close a round; return what the gateway tells the aggregator of it."""
    parties.begin(parties.propose())
    parties.submit(devices)
    parties.now_ms += 20_000
    parties.close()
    closed = rounds.latest(parties.db)
    return decode(Bundle, rounds.sum_bundle(parties.db, closed, parties.federation.study))


def conclude(parties, bundle):
    return aggregator_rounds.conclude(parties.aggregator_db, parties.aggregator, bundle)


def report_of(parties, bundle):
    return trust.open_report(bundle.record, parties.federation.study.federation)


def signed_report(parties, report, **changes):
    changed = dataclasses.replace(report, **changes)
    return sign(changed, [parties.federation.log_key.seed])


def latest(parties):
    return aggregator_store.latest(parties.aggregator_db)


def weights_of(parties, record):
    """The weights in the bundle of the latest model."""
    bundle = decode(Bundle, latest(parties).model)
    assert digest(bundle.objects[0]) == record.weights
    return unpack_weights(bundle.objects[0], parties.federation.study.plan.model.dimension)


def test_a_round_adds_the_average_of_its_updates(parties):
    bundle = close_round(parties, range(5))
    model = conclude(parties, bundle)
    plan, name = parties.federation.study.plan, latest(parties).plan
    total = np.sum([parties.federation.fields(name, rng_seed=d) for d in range(5)], axis=0)
    mean = decode_sum(total, 5, plan.codec, plan.model.dimension, rotation_seed(name)).mean
    wanted = (parties.federation.start() + mean).astype(np.float32)
    np.testing.assert_array_equal(weights_of(parties, model), wanted)
    assert (model.contributions, model.applied, model.final) == (5, True, False)
    assert parties.key.uses == 1


def test_a_proposal_follows_its_study_and_the_last_weights(parties):
    bundle = decode(Bundle, encode(parties.propose()))
    plan = trust.open_round_plan(bundle.record, parties.federation.study)
    assert plan.round == 1
    assert plan.weights == digest(bundle.objects[0])
    parties.begin(bundle)
    parties.end_round(range(4))
    model = decode(Bundle, latest(parties).model)
    second = parties.propose()
    assert second.objects == model.objects
    assert trust.open_round_plan(second.record, parties.federation.study).round == 2


def test_the_same_sum_again_changes_nothing(parties):
    bundle = close_round(parties, range(4))
    assert conclude(parties, bundle) is not None
    before = latest(parties)
    assert conclude(parties, bundle) is None
    assert latest(parties) == before
    assert parties.key.uses == 1


def test_a_round_without_a_sum_keeps_the_weights(parties):
    model = conclude(parties, close_round(parties, range(3)))
    assert (model.contributions, model.applied) == (0, False)
    start = parties.federation.start().astype(np.float32)
    np.testing.assert_array_equal(weights_of(parties, model), start)
    assert parties.key.uses == 0


def test_a_report_that_no_log_key_signed_is_refused(parties):
    bundle = close_round(parties, range(4))
    report = report_of(parties, bundle)
    for key in (seed("a thief"), parties.federation.aggregator_seed):
        with pytest.raises(SignatureError):
            conclude(parties, Bundle(sign(report, [key]), bundle.objects))
    assert parties.key.uses == 0


@pytest.mark.parametrize("fault", ["none", "two", "other", "changed"])
def test_the_sum_is_the_one_that_the_report_names(parties, fault):
    bundle = close_round(parties, range(4))
    total = bundle.objects[0]
    objects = {
        "none": (),
        "two": (total, total),
        "other": (b"another",),
        "changed": (total[:-1] + bytes([total[-1] ^ 1]),),
    }[fault]
    with pytest.raises(RecordError, match="without the sum that its report names"):
        conclude(parties, Bundle(bundle.record, objects))
    assert parties.key.uses == 0


@pytest.mark.parametrize(
    "changes",
    [
        lambda total: {"plan": bytes(32)},
        lambda total: {"contributions": total.contributions[:-1]},
        lambda total: {"contributions": (*total.contributions, bytes(32))},
        lambda total: {"contributions": (total.contributions[0],) * 4},
    ],
)
def test_the_sum_fits_its_report_even_if_a_gateway_signed_otherwise(parties, changes):
    bundle = close_round(parties, range(4))
    total = decode(EncryptedSum, bundle.objects[0])
    forged = encode(dataclasses.replace(total, **changes(total)))
    record = signed_report(parties, report_of(parties, bundle), sum=digest(forged))
    with pytest.raises(RecordError, match="does not fit its report"):
        conclude(parties, Bundle(record, (forged,)))
    assert parties.key.uses == 0


def test_a_sum_below_the_studys_floor_is_never_decrypted(parties):
    # A gateway that signs whatever helps it presents three updates as a full round.
    parties.begin(parties.propose())
    parties.submit(range(3))
    current = rounds.latest(parties.db)
    digests = tuple(
        sorted(d for (d,) in parties.db.execute("SELECT digest FROM admitted").fetchall())
    )
    total = encode(EncryptedSum(current.plan, digests, current.sum))
    parties.now_ms += 20_000
    parties.close()
    honest = trust.open_report(
        rounds.latest(parties.db).report, parties.federation.study.federation
    )
    record = signed_report(parties, honest, status="summed", sum=digest(total))
    with pytest.raises(RecordError, match="holds 3 updates; none below 4 is decrypted"):
        conclude(parties, Bundle(record, (total,)))
    assert parties.key.uses == 0


def test_a_round_that_promises_larger_sums_than_its_study_keeps_its_word(parties):
    honest = parties.propose()
    plan = trust.open_round_plan(honest.record, parties.federation.study)
    record = sign(dataclasses.replace(plan, min_cohort=5), [parties.federation.aggregator_seed])
    proposal = Bundle(record, honest.objects)
    parties.aggregator_db.execute(
        "UPDATE rounds SET proposal = ?, plan = ?", (encode(proposal), digest(record))
    )
    parties.begin(proposal)
    parties.submit(range(4))
    current = rounds.latest(parties.db)
    digests = tuple(d for (d,) in parties.db.execute("SELECT digest FROM admitted").fetchall())
    total = encode(EncryptedSum(current.plan, digests, current.sum))
    parties.now_ms += 20_000
    parties.close()
    report = trust.open_report(
        rounds.latest(parties.db).report, parties.federation.study.federation
    )
    forged = signed_report(parties, report, status="summed", sum=digest(total))
    with pytest.raises(RecordError, match="holds 4 updates; none below 5 is decrypted"):
        conclude(parties, Bundle(forged, (total,)))
    assert parties.key.uses == 0


def test_weights_beyond_float32_are_not_applied_and_do_not_end_the_study(parties):
    bundle = close_round(parties, range(4))
    goal = parties.aggregator.goal
    runaway = dataclasses.replace(
        goal.optimiser, apply=lambda state, mean: goal.optimiser.apply(state, mean + 1e300)
    )
    parties.aggregator = dataclasses.replace(
        parties.aggregator, goal=dataclasses.replace(goal, optimiser=runaway)
    )
    model = conclude(parties, bundle)
    assert (model.contributions, model.applied) == (0, False)
    start = parties.federation.start().astype(np.float32)
    np.testing.assert_array_equal(weights_of(parties, model), start)
    assert parties.finish(decode(Bundle, latest(parties).model)) is not None


def test_one_sum_a_round_is_released_and_the_promise_outlives_a_crash(parties):
    bundle = close_round(parties, range(5))
    report, total = report_of(parties, bundle), decode(EncryptedSum, bundle.objects[0])

    def crash(_):
        raise KeyboardInterrupt

    crashing = dataclasses.replace(parties.aggregator, decrypt=crash)
    with pytest.raises(KeyboardInterrupt):
        aggregator_rounds.conclude(parties.aggregator_db, crashing, bundle)
    # The difference of two sums would be one device's update.
    scheme = parties.federation.scheme
    one = scheme.decode_sum(total.ciphertexts)
    other = encode(dataclasses.replace(total, ciphertexts=scheme.encode_sum(scheme.add(one, one))))
    record = signed_report(parties, report, sum=digest(other))
    with pytest.raises(RecordError, match="another sum of round 1 was released already"):
        conclude(parties, Bundle(record, (other,)))
    assert parties.key.uses == 0
    # The promised one still is.
    assert conclude(parties, bundle).applied
    assert parties.key.uses == 1


def test_reports_of_other_rounds_are_refused(parties):
    old = close_round(parties, range(4))
    conclude(parties, old)
    parties.finish(decode(Bundle, latest(parties).model))
    parties.propose()
    with pytest.raises(RecordError, match="which is not the latest round"):
        conclude(parties, old)


def test_the_last_round_of_the_plan_is_final(parties):
    for number in (1, 2, 3):
        model = conclude(parties, close_round(parties, range(4)))
        assert model.final == (number == 3)
        parties.finish(decode(Bundle, latest(parties).model))


def evaluations(scores):
    left = iter(scores)
    return lambda _: Evaluation(0.5, next(left), 1.0, ((1, 0), (0, 1)))


@pytest.mark.parametrize(
    ("scores", "patience", "rounds_until_final"),
    [
        ((0.5, 0.4), 1, 2),
        ((0.5, 0.5), 1, 2),
        ((0.4, 0.5, 0.45), 1, 3),
        ((0.5, 0.4, 0.4), 0, 3),
    ],
)
def test_a_study_ends_when_it_no_longer_improves(parties, scores, patience, rounds_until_final):
    schedule = dataclasses.replace(parties.aggregator.schedule, patience=patience)
    goal = dataclasses.replace(parties.aggregator.goal, evaluate=evaluations(scores))
    parties.aggregator = dataclasses.replace(parties.aggregator, goal=goal, schedule=schedule)
    finals = []
    while not (finals and finals[-1]):
        finals.append(conclude(parties, close_round(parties, range(3))).final)
        parties.finish(decode(Bundle, latest(parties).model))
    assert len(finals) == rounds_until_final


def test_a_schedule_may_end_a_study_early(parties):
    schedule = dataclasses.replace(parties.aggregator.schedule, rounds=1)
    parties.aggregator = dataclasses.replace(parties.aggregator, schedule=schedule)
    assert conclude(parties, close_round(parties, range(4))).final


def test_the_servers_state_reads_back_with_its_memory(parties):
    state = optimisers.ServerState(np.arange(4.0), (np.ones(4), -np.ones(4)))
    aggregator_store.save_state(parties.aggregator_db, 7, state)
    read = aggregator_store.load_state(parties.aggregator_db, 7)
    np.testing.assert_array_equal(read.weights, state.weights)
    np.testing.assert_array_equal(read.memory, state.memory)
    assert "decrypt" not in repr(parties.aggregator)
