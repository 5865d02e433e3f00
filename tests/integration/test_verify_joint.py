"""The outside verifier on logs of hospitals that decrypt together: their words and the model's.

A malicious gateway signs whatever log it likes; what hospitals did not sign it cannot add.
"""

from dataclasses import replace

import numpy as np
import pytest
from federation_fixture import NAMES, Parties, small_federation
from verify_fixture import Forger, Honest, fault

from vitalring.gateway import rounds, words
from vitalring.gateway.export import export_log
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.protocol.records import GlobalModel, LoggedObject
from vitalring.protocol.release import ReleaseRefusal, SetCommitment
from vitalring.protocol.signing import Signed, sign
from vitalring.tools import verify

UPDATES = 4
MODEL = 4 + 1 + UPDATES + 1 + 3
"""Where the first round's model stands: behind study, plan, updates, report and commitments."""


def commit(parties, hospital, set_=b"s" * 32):
    current, federation = rounds.latest(parties.db), parties.federation
    word = SetCommitment(
        federation.study.sum_key_digest,
        current.number,
        current.plan,
        digest(current.report),
        set_,
        bytes([hospital]) * 32,
    )
    return sign(word, [federation.aggregator_seeds[hospital]])


def refuse(parties, hospital):
    current = rounds.latest(parties.db)
    word = ReleaseRefusal(current.plan, digest(current.report), "sum_mismatch", b"")
    return sign(word, [parties.federation.aggregator_seeds[hospital]])


def hear(parties, hospital, kind, record):
    federation = parties.federation
    assert words.take(
        parties.db, federation.log_key, federation.study, NAMES[hospital], kind, record
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A round that was applied after three commitments, and one that a hospital refused."""
    folder = tmp_path_factory.mktemp("joint")
    federation = small_federation(secure_sum="threshold-he", hospitals=3, threshold=2)
    parties = Parties(federation, folder / "state")
    mean = np.full(federation.study.plan.model.dimension, 0.25)
    for applied in (True, False):
        parties.begin(parties.propose())
        parties.submit(range(UPDATES))
        parties.now_ms += 20_000
        parties.close()
        for hospital in range(3 if applied else 1):
            hear(parties, hospital, "set-commitment", commit(parties, hospital))
        if not applied:
            hear(parties, 2, "release-refusal", refuse(parties, 2))
        parties.finish(parties.model(mean if applied else None))
    export_log(parties.db, federation.files, folder / "log")
    parties.close_databases()
    return Honest(federation, folder / "log")


def move(forger, start, end):
    """Put the entry at `start` where `end` is."""
    forger.entries.insert(end, forger.entries.pop(start))


def forget(forger, number):
    """Leave out the `number`-th commitment of the log, and the record itself."""
    position = forger.position("set-commitment", number)
    entry = decode(LoggedObject, forger.entries.pop(position))
    del forger.objects[entry.digest]


def insert(forger, position, kind, content):
    forger.objects[digest(content)] = content
    forger.entries.insert(position, encode(LoggedObject(kind, digest(content))))


def resigned(forger, hospital=0, number=1, **changes):
    """A commitment like the `number`-th of the log, with changes, signed by a hospital."""
    word = replace(forger.record(SetCommitment, "set-commitment", number), **changes)
    return sign(word, [forger.federation.aggregator_seeds[hospital]])


def test_an_honest_log_is_accepted(made):
    verdict = verify.verify_log(made.folder, made.federation.authority_key)
    assert [(r.number, r.status, r.admitted) for r in verdict.rounds] == [
        (1, "summed", UPDATES),
        (2, "summed", UPDATES),
    ]
    assert verdict.size == MODEL + 1 + 1 + UPDATES + 1 + 2 + 1
    assert verdict.rounds[0].weights == verdict.rounds[1].weights


def test_the_forgers_own_tools_make_a_sound_log(forger, tmp_path):
    assert forger.position("global-model") == MODEL
    verify.verify_log(forger.write(tmp_path / "log"), None)


def test_too_few_commitments_before_a_model_that_applies(forger, tmp_path):
    forget(forger, 2)
    found = fault(forger.write(tmp_path / "log"))
    assert found.startswith(f"objects/{digest(forger.signed('global-model')).hex()}: ")
    assert "2 hospitals committed" in found


def test_commitments_to_two_sets(forger, tmp_path):
    other = resigned(forger, hospital=1, number=2, set=b"t" * 32)
    forger.replace_signed("set-commitment", other, 2)
    assert "2 hospitals committed" in fault(forger.write(tmp_path / "log"))


def test_a_commitment_counted_twice(forger, tmp_path):
    forget(forger, 3)
    insert(forger, MODEL - 1, "set-commitment", resigned(forger, nonce=b"n" * 32))
    assert "gave this one before" in fault(forger.write(tmp_path / "log"))


def test_a_commitment_behind_the_model(forger, tmp_path):
    move(forger, MODEL - 1, MODEL)
    found = fault(forger.write(tmp_path / "log"))
    assert f"entry {MODEL} is a set-commitment, must be a round-plan" in found


def test_a_commitment_before_the_report(forger, tmp_path):
    move(forger, MODEL - 3, MODEL - 4)
    assert "no round-report follows" in fault(forger.write(tmp_path / "log"))


def test_a_commitment_that_another_signed(forger, tmp_path):
    word = forger.record(SetCommitment, "set-commitment", 3)
    for keys in ([b"x" * 32], forger.federation.aggregator_seeds[1:]):
        path = forger.replace_signed("set-commitment", sign(word, keys), 3)
        found = fault(forger.write(tmp_path / str(len(keys))))
        assert found.startswith(f"{path}: ")


@pytest.mark.parametrize("changes", [{"report": b"\x01" * 32}, {"round": 2}, {"plan": b"p" * 32}])
def test_a_commitment_of_another_round(forger, tmp_path, changes):
    path = forger.replace_signed("set-commitment", resigned(forger, **changes))
    found = fault(forger.write(tmp_path / "log"))
    assert found.startswith(f"{path}: ")
    assert "another round" in found


def test_a_refusal_under_the_name_of_a_commitment(forger, tmp_path):
    refusal = forger.signed("release-refusal")
    forger.replace_signed("set-commitment", refusal, 3)
    assert "objects/" in fault(forger.write(tmp_path / "log"))


def test_a_refused_round_that_is_applied_all_the_same(forger, tmp_path):
    model = forger.record(GlobalModel, "global-model", 2)
    quorum = forger.federation.aggregator_seeds[:2]
    content = sign(replace(model, applied=True, contributions=UPDATES), quorum)
    forger.replace_signed("global-model", content, 2)
    assert "1 hospitals committed" in fault(forger.write(tmp_path / "log"))


def test_words_in_a_study_that_one_key_holder_decrypts(tmp_path):
    federation = small_federation()
    parties = Parties(federation, tmp_path / "state")
    parties.run_round(range(UPDATES))
    export_log(parties.db, federation.files, tmp_path / "honest")
    parties.close_databases()
    forger = Forger(Honest(federation, tmp_path / "honest"))
    model = decode(GlobalModel, decode(Signed, forger.signed("global-model")).payload)
    word = ReleaseRefusal(model.plan, model.report, "too_few", b"")
    position = forger.position("global-model")
    insert(forger, position, "release-refusal", sign(word, [federation.aggregator_seed]))
    assert "no joint key" in fault(forger.write(tmp_path / "log"))
