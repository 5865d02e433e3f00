"""Which model a device predicts with: renewed as a whole, checked at each reading, never older."""

import itertools
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from federation_fixture import START_MS, Parties, seed, small_federation
from hypothesis import given
from hypothesis import strategies as st
from wearer_fixture import input_shape, int8_of, origin, put_in_use, study_of, weights_of

from vitalring.edge_agent import model_in_use
from vitalring.edge_agent.model_in_use import ModelInUse
from vitalring.errors import ModelError, StorageError
from vitalring.gateway import rounds
from vitalring.protocol import trust
from vitalring.protocol.cbor import digest
from vitalring.protocol.records import GlobalModel
from vitalring.protocol.signing import sign
from vitalring.protocol.weights import pack_weights


def folder_of(state):
    return state / model_in_use.FOLDER


def file_of(state, kind):
    return next(folder_of(state).glob(f"{kind}*"))


def test_what_was_put_in_use_is_what_is_read(tmp_path):
    assert model_in_use.load(tmp_path) is None
    assert model_in_use.describe(tmp_path)["state"] == "none"
    about = put_in_use(tmp_path, features=b"{}")
    loaded = model_in_use.load(tmp_path)
    assert loaded.about == about
    assert loaded.int8 == int8_of(weights_of())
    assert np.array_equal(loaded.weights, weights_of())
    assert loaded.features == b"{}"
    assert (about.round, about.head, about.classes) == (3, "global", ("N", "S", "V"))
    said = model_in_use.describe(tmp_path)
    assert said["state"] == "verified"
    assert said["verification"] == (
        "round plan signed by 2 aggregators, quorum 1; in the log of 40 entries"
    )
    json.dumps(said)


def test_only_the_owner_reads_it(tmp_path):
    put_in_use(tmp_path)
    assert folder_of(tmp_path).stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["model-int8", "weights", "features"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_changed_file_is_refused_by_name(tmp_path, kind, damage):
    put_in_use(tmp_path, features=b'{"columns": []}')
    path = file_of(tmp_path, kind)
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content if damage == "flip" else content[:-1])
    with pytest.raises(ModelError, match=path.name):
        model_in_use.load(tmp_path)
    said = model_in_use.describe(tmp_path)
    assert said["state"] == "refused"
    assert path.name in said["reason"]
    # The next plan heals it, even that of the same round.
    assert model_in_use.is_due(tmp_path, origin(weights_of()))
    put_in_use(tmp_path)
    assert model_in_use.load(tmp_path) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"round": 4},
        {"signatures": 3},
        {"final": True},
        {"classes": ["V", "S", "N"]},
        {"int8": "0" * 64},
        {"personal": "1" * 64},
        {"checksum": "0" * 64},
        {"checksum": ""},
        {"round": True},
        {"round": -1},
        {"more": 1},
    ],
)
def test_a_changed_description_is_refused_by_name(tmp_path, change):
    put_in_use(tmp_path)
    path = folder_of(tmp_path) / model_in_use.IN_USE
    path.write_text(json.dumps(json.loads(path.read_text()) | change, indent=2) + "\n")
    with pytest.raises(ModelError):
        model_in_use.load(tmp_path)


def test_another_spelling_of_the_same_description_is_refused(tmp_path):
    put_in_use(tmp_path)
    path = folder_of(tmp_path) / model_in_use.IN_USE
    path.write_text(json.dumps(json.loads(path.read_text())))
    with pytest.raises(ModelError, match=model_in_use.IN_USE):
        model_in_use.load(tmp_path)


@given(st.binary(max_size=200) | st.text(max_size=50).map(str.encode))
def test_any_bytes_are_a_description_or_refused(data):
    with pytest.raises(ModelError):
        ModelInUse.from_json(data)


@given(st.data())
def test_no_byte_of_a_description_can_be_changed(data):
    about = model_in_use.ModelInUse(
        **dict.fromkeys(("study_plan", "record", "weights", "int8"), "0" * 64),
        federation="fed",
        study="s",
        round=1,
        final=False,
        opens_ms=START_MS,
        signatures=1,
        quorum=1,
        log_entries=9,
        classes=("a", "b"),
        input_shape=(3,),
        personal="",
        features="",
    )
    text = bytearray(about.to_json())
    where = data.draw(st.integers(0, len(text) - 1))
    new = data.draw(st.integers(0, 255).filter(lambda value: value != text[where]))
    text[where] = new
    with pytest.raises(ModelError):
        ModelInUse.from_json(bytes(text))


def test_other_weights_than_the_signed_are_refused_and_the_model_of_before_stays(tmp_path):
    before = put_in_use(tmp_path)
    wrong = weights_of(2)
    with pytest.raises(ModelError, match="not those that study"):
        model_in_use.renew(
            tmp_path,
            origin(weights_of(3), round_number=4),
            int8_of(wrong),
            wrong,
            input_shape(),
        )
    assert model_in_use.load(tmp_path).about == before


def test_a_newer_model_takes_the_place_and_leaves_nothing_behind(tmp_path):
    put_in_use(tmp_path, 1, 3, features=b"{}")
    seen = model_in_use.version(tmp_path)
    put_in_use(tmp_path, 2, 4)
    assert model_in_use.version(tmp_path) != seen
    assert model_in_use.load(tmp_path).about.round == 4
    assert len(list(folder_of(tmp_path).iterdir())) == 3


@pytest.mark.parametrize(
    ("now", "then", "due"),
    [
        ((3, False), (4, False), True),
        ((3, False), (3, False), False),
        ((3, False), (2, False), False),
        # The final model comes from the last round that was announced, and ends the study.
        ((3, False), (3, True), True),
        ((3, True), (3, False), False),
        ((3, True), (4, False), True),
    ],
)
def test_a_model_is_replaced_by_a_newer_one_alone(tmp_path, now, then, due):
    weights = weights_of()
    model_in_use.renew(
        tmp_path,
        origin(weights, round_number=now[0], final=now[1]),
        int8_of(weights),
        weights,
        input_shape(),
    )
    later = origin(weights_of(2), round_number=then[0], final=then[1])
    assert model_in_use.is_due(tmp_path, later) is due


def test_a_full_disk_leaves_the_model_of_before(tmp_path, monkeypatch):
    before = put_in_use(tmp_path)
    written = []

    def fail_at_the_last(path, data):
        written.append(path.name)
        if path.name == model_in_use.IN_USE:
            raise StorageError("the disk is full")
        path.write_bytes(data)

    monkeypatch.setattr(model_in_use, "write_atomic", fail_at_the_last)
    with pytest.raises(StorageError):
        put_in_use(tmp_path, 2, 4)
    assert written[-1] == model_in_use.IN_USE
    assert model_in_use.load(tmp_path).about == before


def test_a_reader_meets_one_whole_model_however_often_it_is_renewed(tmp_path):
    put_in_use(tmp_path, 1, 1)
    stop = threading.Event()

    def renew():
        for number in itertools.count(2):
            if stop.is_set():
                return
            put_in_use(tmp_path, number, number)

    writer = threading.Thread(target=renew)
    writer.start()
    rounds_seen = []
    try:
        while len(set(rounds_seen)) < 20:
            loaded = model_in_use.load(tmp_path)
            assert digest(pack_weights(loaded.weights)).hex() == loaded.about.weights
            rounds_seen.append(loaded.about.round)
    finally:
        stop.set()
        writer.join()
    assert rounds_seen == sorted(rounds_seen)


def test_plans_and_final_models_say_where_their_weights_come_from(tmp_path):
    parties = Parties(small_federation(), tmp_path / "parties")
    parties.run_round(range(4))
    parties.begin(parties.propose())
    signed, study = rounds.latest(parties.db).signed_plan, parties.federation.study
    parties.close_databases()
    plan = trust.open_round_plan(signed, study)
    from_plan = model_in_use.of_plan(study, signed, plan, 17)
    assert (from_plan.round, from_plan.final, from_plan.log_entries) == (1, False, 17)
    assert from_plan.weights == plan.weights
    assert from_plan.record == digest(signed)
    model = GlobalModel(
        federation="fed",
        study="study",
        round=2,
        plan=digest(signed),
        report=seed("report"),
        weights=seed("weights"),
        contributions=4,
        applied=True,
        final=True,
        evaluation=None,
    )
    signed_model = sign(model, [parties.federation.aggregator_seed])
    from_model = model_in_use.of_final(study, signed_model, model, plan)
    assert (from_model.round, from_model.final, from_model.signatures) == (2, True, 1)
    assert from_model.opens_ms == plan.opens_ms
    assert from_model.weights == model.weights


def test_classes_of_any_language_come_back(tmp_path):
    weights = weights_of()
    study = study_of(("Schlaf", "éveil", "\N{SNOWMAN}"))
    about = model_in_use.renew(
        tmp_path, origin(weights, study=study), int8_of(weights), weights, input_shape()
    )
    assert model_in_use.load(tmp_path).about.classes == about.classes == study.plan.model.classes
    assert Path(folder_of(tmp_path) / model_in_use.IN_USE).read_bytes().isascii()
