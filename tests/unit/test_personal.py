"""Personal heads on a tiny network of our own: what trains, what judges, what is kept."""

import json
import os
import stat

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitalring.edge_agent import personal_files
from vitalring.edge_agent.personal import (
    KeptBack,
    Personal,
    PersonalResult,
    PersonalSettings,
    Scores,
    keep_back,
    personalise,
    with_head,
)
from vitalring.errors import DataError, ModelError, StorageError
from vitalring.models.dataset import Records
from vitalring.protocol.cbor import digest
from vitalring.protocol.weights import pack_weights

CLASSES, INPUTS = 3, 2
TRUNK, HEAD = INPUTS, INPUTS * CLASSES
SETTINGS = PersonalSettings(epochs=40, learning_rate=0.5, batch=16)


class Softmax:
    """Logits ((x * trunk) @ head): a trunk of scales, and a head (inputs, classes)."""

    physical_batch = 8

    def __init__(self):
        self.seen = []

    def _logits(self, weights, x):
        return (x * weights[:TRUNK]) @ weights[TRUNK:].reshape(INPUTS, CLASSES)

    def probabilities(self, weights, x):
        logits = self._logits(weights, x)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-1e30))
        return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)

    def gradient_sum(self, weights, x, y, clip):
        assert 0 < len(x) <= self.physical_batch
        self.seen.append(x.copy())
        error = self.probabilities(weights, x)
        error[np.arange(len(y)), y] -= 1
        head = weights[TRUNK:].reshape(INPUTS, CLASSES)
        trunk = ((error @ head.T) * x).sum(axis=0)
        gradient = np.concatenate([trunk, ((x * weights[:TRUNK]).T @ error).ravel()])
        return gradient.astype(np.float32), 0.0, np.zeros(len(x), np.float32)


def records(count=300, seed=0, turned=False, classes=CLASSES):
    """Three directions in the plane, one a class; `turned` gives this wearer other ones."""
    rng = np.random.default_rng(seed)
    y = np.sort(rng.integers(0, classes, count))
    angle = 2 * np.pi * (y + (1 if turned else 0)) / CLASSES
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1) + rng.normal(size=(count, 2)) * 0.3
    return Records("d", x.astype(np.float32), y.astype(np.int64))


def global_weights():
    """Weights that know the unturned directions."""
    angle = 2 * np.pi * np.arange(CLASSES) / CLASSES
    head = 4 * np.stack([np.cos(angle), np.sin(angle)])
    return np.concatenate([np.ones(TRUNK), head.ravel()]).astype(np.float32)


def run(data, settings=SETTINGS, model=None):
    generator = np.random.default_rng(1)
    return personalise(
        model or Softmax(), global_weights(), HEAD, data, "order", settings, generator
    )


def rows_of(records):
    return {row.tobytes() for row in records.x}


def test_an_unlike_wearer_gets_a_head_of_its_own():
    done = run(records(turned=True))
    assert done.result.used
    assert done.result.reason == "better than the global head"
    assert done.result.global_head.accuracy < 0.2
    assert done.result.personal_head.accuracy > 0.9
    assert 0 < done.result.epochs <= SETTINGS.epochs
    assert done.base == digest(pack_weights(global_weights()))


def test_the_trunk_stays_and_the_given_weights_too():
    data, start = records(turned=True), global_weights()
    done = personalise(Softmax(), start, HEAD, data, "order", SETTINGS, np.random.default_rng(1))
    np.testing.assert_array_equal(start, global_weights())
    whole = with_head(start, done.head)
    np.testing.assert_array_equal(whole[:TRUNK], start[:TRUNK])
    assert np.abs(whole[TRUNK:] - start[TRUNK:]).min() > 0


def test_the_result_is_what_the_two_heads_reach_on_the_records_that_judge():
    data = records(turned=True)
    judge = keep_back(data, "order").judge
    done = run(data)
    for head, scores in (
        (global_weights()[-HEAD:], done.result.global_head),
        (done.head, done.result.personal_head),
    ):
        predicted = Softmax().probabilities(with_head(global_weights(), head), judge.x).argmax(1)
        assert scores.accuracy == pytest.approx(np.mean(predicted == judge.y))
        for true in range(CLASSES):
            for said in range(CLASSES):
                hits = np.sum((judge.y == true) & (predicted == said))
                assert scores.confusion[true][said] == hits
    assert done.result.rows == len(judge)


def test_what_chooses_and_what_judges_never_trains():
    model, data = Softmax(), records(turned=True)
    parts = keep_back(data, "order")
    run(data, model=model)
    trained = {row.tobytes() for batch in model.seen for row in batch}
    assert trained == rows_of(parts.train)
    assert not trained & (rows_of(parts.choose) | rows_of(parts.judge))


def test_what_judges_chooses_nothing():
    """Whatever the labels of the records that judge, the head is the same one."""
    data = records(turned=True)
    parts = keep_back(data, "order")
    other = KeptBack(
        parts.train, parts.choose, Records("d", parts.judge.x, (parts.judge.y + 1) % CLASSES)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitalring.edge_agent.personal.keep_back", lambda *_: other)
        changed = run(data)
    np.testing.assert_array_equal(changed.head, run(data).head)
    assert not changed.result.used


def test_a_tie_goes_to_the_global_head():
    """So small a step changes no prediction, though it lowers the loss."""
    done = run(records(seed=3), PersonalSettings(epochs=1, learning_rate=1e-4))
    assert done.result.epochs == 1
    assert done.result.reason == "no better than the global head"
    assert not done.result.used


def test_one_measure_that_falls_is_enough_to_refuse(monkeypatch):
    confusions = iter([((8, 2, 0), (4, 6, 0), (0, 0, 0)), ((10, 0, 0), (5, 5, 0), (0, 0, 0))])

    def scores(model, weights, judge):
        del model, weights, judge
        return next(found)

    # Accuracy 0.70 then 0.75; but say that macro-F1 fell.
    found = iter([Scores(0.70, 0.71, next(confusions)), Scores(0.75, 0.70, next(confusions))])
    monkeypatch.setattr("vitalring.edge_agent.personal._scores", scores)
    done = run(records(turned=True))
    assert not done.result.used
    assert done.result.reason == "worse than the global head"


def test_macro_f1_is_over_the_classes_that_a_device_has():
    done = run(records(turned=True, classes=2))
    assert done.result.personal_head.macro_f1 > 0.9
    assert done.result.unseen == (2,)


def test_too_few_records_leave_the_global_head():
    done = run(records(60, turned=True))
    assert len(keep_back(records(60), "order").judge) < 20
    assert not done.result.used
    assert "records can judge, 20 are needed" in done.result.reason
    np.testing.assert_array_equal(done.head, global_weights()[-HEAD:])
    one = run(records(300, turned=True, classes=1))
    assert one.result.reason == "the records that train hold one class only"
    assert not one.result.used


def test_what_cannot_be_personalised_is_refused():
    none = Records("d", np.zeros((0, 2), np.float32), np.zeros(0, np.int64))
    with pytest.raises(DataError, match="without labelled records"):
        run(none)
    for head in (0, TRUNK + HEAD + 1):
        with pytest.raises(ModelError, match="does not fit a network of 8"):
            personalise(
                Softmax(),
                global_weights(),
                head,
                records(),
                "order",
                SETTINGS,
                np.random.default_rng(1),
            )


labels = st.lists(st.integers(0, 4), min_size=1, max_size=120)


def numbered(y, first=0, groups=None):
    """Records whose one feature is their number."""
    x = np.arange(first, first + len(y), dtype=np.float32)[:, None]
    kept = None if groups is None else np.asarray(groups, np.uint64)
    return Records("d", x, np.asarray(y, np.int64), kept)


def numbers(part):
    return set(part.x[:, 0].astype(int).tolist())


@given(labels, st.booleans())
def test_keeping_back_divides_the_records(y, grouped):
    data = numbered(y, groups=[n // 3 for n in range(len(y))] if grouped else None)
    parts = [numbers(part) for part in keep_back(data, "order")]
    assert sum(map(len, parts)) == len(y)
    assert set.union(*parts) == set(range(len(y)))
    for part in keep_back(data, "order"):
        np.testing.assert_array_equal(part.y, np.asarray(y)[part.x[:, 0].astype(int)])


@given(labels)
def test_a_fifth_of_each_class_is_kept_back_and_it_is_the_latest(y):
    parts = keep_back(numbered(y), "order")
    for label in set(y):
        own = [sorted(n for n in numbers(part) if y[n] == label) for part in parts]
        train, choose, judge = own
        assert len(choose) + len(judge) == y.count(label) // 5
        assert len(judge) - len(choose) in (0, 1)
        assert train + choose + judge == sorted(train + choose + judge)


@given(labels, st.lists(st.integers(0, 4), max_size=60), st.integers(0, 60))
def test_what_has_trained_is_never_kept_back_later(y, more, dropped):
    before = keep_back(numbered(y), "order").train
    dropped = min(dropped, len(y) + len(more) - 1)
    after = keep_back(numbered((y + more)[dropped:], first=dropped), "order")
    assert not numbers(before) & (numbers(after.choose) | numbers(after.judge))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60))
def test_a_group_is_on_one_side(groups):
    parts = keep_back(numbered([0] * len(groups), groups=groups), "order")
    sides = [{groups[n] for n in numbers(part)} for part in parts]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]
    assert len(sides[1]) + len(sides[2]) == len(set(groups)) // 5


def some(used=True, base=None):
    scores = Scores(0.5, 0.25, ((1, 2), (3, 4)))
    result = PersonalResult(10, scores, scores, used, "because", 3, (1,))
    weights = global_weights() if base is None else base
    return Personal(np.arange(HEAD, dtype=np.float32), digest(pack_weights(weights)), result)


def test_what_was_saved_is_loaded(tmp_path):
    assert personal_files.load_result(tmp_path) is None
    assert personal_files.load_head(tmp_path, global_weights()) is None
    personal_files.save(tmp_path, some())
    assert personal_files.load_result(tmp_path) == some().result
    np.testing.assert_array_equal(personal_files.load_head(tmp_path, global_weights()), some().head)
    personal_files.save(tmp_path, some(used=False))
    assert personal_files.load_head(tmp_path, global_weights()) is None
    assert not personal_files.load_result(tmp_path).used


def test_only_the_owner_reads_the_files(tmp_path):
    before = os.umask(0)
    try:
        personal_files.save(tmp_path / "state", some())
    finally:
        os.umask(before)
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == [
        "personal-head.bin",
        "personal.json",
    ]
    for path in (tmp_path / "state").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_head_serves_its_own_weights_alone(tmp_path):
    personal_files.save(tmp_path, some())
    later = global_weights()
    later[0] += 1
    assert personal_files.load_head(tmp_path, later) is None


def test_a_pair_of_files_that_do_not_match_counts_as_none(tmp_path):
    personal_files.save(tmp_path, some())
    head = tmp_path / "personal-head.bin"
    content = bytearray(head.read_bytes())
    content[5] ^= 1
    head.write_bytes(bytes(content))
    assert personal_files.load_head(tmp_path, global_weights()) is None
    head.unlink()
    assert personal_files.load_head(tmp_path, global_weights()) is None


@pytest.mark.parametrize("spoil", ["", "[]", "{", '{"base": 1}', '{"x": NaN}', "\xff"])
def test_a_result_that_cannot_be_read_is_named(tmp_path, spoil):
    personal_files.save(tmp_path, some())
    (tmp_path / "personal.json").write_bytes(spoil.encode("latin-1"))
    with pytest.raises(StorageError, match=r"personal\.json"):
        personal_files.load_head(tmp_path, global_weights())


@pytest.mark.parametrize("key", ["accuracy", "macro_f1"])
def test_a_result_with_impossible_numbers_is_refused(tmp_path, key):
    personal_files.save(tmp_path, some())
    path = tmp_path / "personal.json"
    table = json.loads(path.read_text())
    table["result"]["global_head"][key] = 1.5
    path.write_text(json.dumps(table))
    with pytest.raises(StorageError, match=key):
        personal_files.load_result(tmp_path)


def test_a_head_is_not_in_the_representation():
    assert "head=" not in repr(some()).replace("global_head=", "").replace("personal_head=", "")


@given(labels, st.integers(0, 119))
def test_by_lot_one_record_more_changes_no_other(y, place):
    data = numbered(y)
    place %= len(y)
    fewer = data.take(np.delete(np.arange(len(y)), place))
    for whole, without in zip(keep_back(data, "lot"), keep_back(fewer, "lot"), strict=True):
        changed = set(numbers(whole)) ^ set(numbers(without))
        assert changed <= {place}


def test_by_lot_about_a_fifth_is_kept_back_and_half_of_it_judges():
    train, choose, judge = (len(part) for part in keep_back(numbered([0] * 5000), "lot"))
    assert train + choose + judge == 5000
    assert abs(choose - 500) < 100
    assert abs(judge - 500) < 100


def test_by_lot_a_group_stays_together():
    groups = np.arange(200) // 4
    parts = keep_back(numbered([0] * 200, groups=groups.tolist()), "lot")
    sides = [{int(number) // 4 for number in numbers(part)} for part in parts]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
