"""A clip that follows a quantile, through encrypted sums: plans, models, log, hospitals, devices.

The first part's devices send made-up vectors, whose first coordinate counts something; the last
one's are real.
"""

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from federation_fixture import FOLLOWING, Parties, small_federation
from joint_fixture import JointWorld, federation_of
from rich.console import Console

import vitalring
from vitalring.aggregator import rounds as aggregator_rounds
from vitalring.aggregator import store as aggregator_store
from vitalring.errors import LogError, RecordError
from vitalring.gateway import log, store
from vitalring.gateway.export import export_log
from vitalring.protocol import trust
from vitalring.protocol.adaptive_clip import count_unit
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.protocol.checkpoint import Checkpoint
from vitalring.protocol.checkpoint import sign as sign_note
from vitalring.protocol.merkle import leaf_hash, root_of
from vitalring.protocol.quantise import decode_sum
from vitalring.protocol.records import Bundle, GlobalModel, LoggedObject, RoundPlan
from vitalring.protocol.signing import Signed, sign
from vitalring.protocol.tiles import decode_bundle, encode_log, tiles
from vitalring.protocol.update import rotation_seed
from vitalring.tools import verify
from vitalring.tools.commands.simulate import summary
from vitalring.tools.simulate.api import Simulation

ROUNDS = ((0, 1, 2, 3, 4, 5), (0, 2, 4), (0, 1, 2, 3, 5), (1, 2, 3, 4, 5))
"""Devices by round; the second has too few for a sum."""


def logged(db, kind):
    """Return the signed records of a kind that a gateway logged, in order."""
    entries = map(named, log.entries(db, 0, log.size(db)))
    return [store.get_object(db, e.digest) for e in entries if e is not None and e.kind == kind]


def opened(db, kind, cls):
    """Return what these records say."""
    return [decode(cls, decode(Signed, each).payload) for each in logged(db, kind)]


def named(entry):
    """Return what an entry names, None for an update."""
    try:
        return decode(LoggedObject, entry)
    except RecordError:
        return None


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Four rounds with encrypted sums; the aggregator's process ends after each."""
    folder = tmp_path_factory.mktemp("following")
    federation = small_federation(secure_sum="single-he", **FOLLOWING)
    parties = Parties(federation, folder / "state")
    for devices in ROUNDS:
        parties.run_round(devices)
        parties.aggregator_db.close()
        parties.aggregator_db = aggregator_store.open_store(parties.folder / "aggregator")
        aggregator_rounds.start(parties.aggregator_db, parties.aggregator)
    export_log(parties.db, federation.files, folder / "log")
    plans = opened(parties.db, "round-plan", RoundPlan)
    models = opened(parties.db, "global-model", GlobalModel)
    yield federation, folder / "log", plans, models, parties
    parties.close_databases()


def test_each_rounds_plan_has_the_factor_of_the_model_before_it(made):
    federation, folder, plans, models, *_ = made
    factors = [plan.clip_factor for plan in plans]
    assert factors == [1.0, *(model.clip_factor for model in models[:-1])]
    assert [model.applied for model in models] == [True, False, True, True]
    # A round without a sum moves nothing, all others do.
    assert factors[2] == factors[1] != factors[0]
    assert models[1].unclipped == 0.0
    assert len({factors[0], factors[2], factors[3], models[3].clip_factor}) == 4
    verdict = verify.verify_log(folder, federation.authority_key)
    assert [each.clip_factor for each in verdict.rounds] == factors
    assert verdict.rounds[-1].next_factor == models[-1].clip_factor
    # The plan's own codec is what the guarantee was derived from, in every round.
    assert {plan.codec for plan in plans} == {federation.study.plan.codec}
    assert {plan.privacy for plan in plans} == {federation.study.plan.privacy}


def test_model_and_factor_are_what_the_fields_of_the_devices_say(made):
    """Recomputed from what the devices encrypted, by the formulas of SPEC 7.17."""
    federation, _, _, models, parties = made
    plan = federation.study.plan
    names = [digest(each) for each in logged(parties.db, "round-plan")]
    factor, weights = 1.0, federation.start()[1:]
    assert federation.start()[0] == 1.0
    for devices, name, model in zip(ROUNDS, names, models, strict=True):
        if not model.applied:
            continue
        total = sum(federation.fields(name, rng_seed=device) for device in devices)
        size = plan.model.dimension + 1
        mean = decode_sum(total, len(devices), plan.codec, size, rotation_seed(name)).mean
        error = np.clip(mean[0] / (plan.privacy.clip_share * plan.codec.clip), -1.0, 1.0)
        assert model.unclipped == pytest.approx(0.5 + error, abs=1e-6)
        weights = weights + factor * mean[1:]
        factor *= np.exp(-0.2 * error)
        assert model.clip_factor == pytest.approx(factor, rel=1e-5)
    state = aggregator_store.load_state(parties.aggregator_db, 4)
    np.testing.assert_allclose(state.weights[1:], weights, rtol=1e-5)
    assert state.weights[0] == models[-1].clip_factor


class Forger:
    """Whoever holds the keys of gateway and aggregator, and rewrites a log's folder."""

    def __init__(self, federation, folder: Path):
        self.federation, self.folder = federation, folder
        size = int((folder / "checkpoint").read_bytes().split(b"\n")[1])
        self.entries = []
        for tile in tiles(size):
            if tile.level is None:
                self.entries += decode_bundle((folder / tile.path).read_bytes(), tile.width)

    def change(self, cls, kind, number, **changes):
        """Sign another record in the place of the `number`-th of a kind; return its path."""
        found = [
            place
            for place, entry in enumerate(self.entries)
            if (said := named(entry)) is not None and said.kind == kind
        ]
        place = found[number - 1]
        old = self.folder / "objects" / decode(LoggedObject, self.entries[place]).digest.hex()
        record = decode(cls, decode(Signed, old.read_bytes()).payload)
        content = sign(replace(record, **changes), [self.federation.aggregator_seed])
        path = self.folder / "objects" / digest(content).hex()
        old.unlink()
        path.write_bytes(content)
        self.entries[place] = encode(LoggedObject(kind, digest(content)))
        for name, data in encode_log(self.entries).items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes(data)
        root = root_of(leaf_hash(entry) for entry in self.entries)
        key = self.federation.log_key
        note = sign_note(Checkpoint(key.origin, len(self.entries), root), key.seed, key.origin)
        (self.folder / "checkpoint").write_bytes(note)
        return f"objects/{digest(content).hex()}"


@pytest.mark.parametrize(
    ("cls", "kind", "number", "changes", "names"),
    [
        # A quorum that chooses a factor by itself.
        (GlobalModel, "global-model", 1, {"clip_factor": 2.0}, "clip_factor of 2, from its share"),
        (GlobalModel, "global-model", 1, {"unclipped": -0.5}, "from its share of -0.5 unclipped"),
        (GlobalModel, "global-model", 2, {"clip_factor": 1.0}, "clip_factor of 1, from its share"),
        (GlobalModel, "global-model", 2, {"unclipped": 0.5}, "of which it has no count"),
        (RoundPlan, "round-plan", 1, {"clip_factor": 0.5}, "clip_factor of 0.5, must be 1"),
        (RoundPlan, "round-plan", 3, {"clip_factor": 1.5}, "the model before it says"),
    ],
)
def test_another_factor_is_found_in_the_log(made, tmp_path, cls, kind, number, changes, names):
    federation, folder, *_ = made
    forger = Forger(federation, Path(shutil.copytree(folder, tmp_path / "log")))
    path = forger.change(cls, kind, number, **changes)
    with pytest.raises(LogError, match=f"(?s)^{path}.*{names}"):
        verify.verify_log(tmp_path / "log", federation.authority_key)


def test_the_last_digit_may_be_another_machines(made):
    *_, plans, models, _ = made
    last = models[-1]
    report = trust.RoundReport(
        last.plan, last.round, "summed", 6, last.contributions, {}, b"s" * 32, 0, 0, 0
    )
    for off in (-1e-5, 1e-5):
        near = replace(last, clip_factor=last.clip_factor * (1.0 + off))
        trust.check_model_follows(near, plans[-1], report)
    far = replace(last, clip_factor=last.clip_factor * 1.00002)
    with pytest.raises(RecordError, match="clip_factor"):
        trust.check_model_follows(far, plans[-1], report)


def test_a_fixed_clip_has_no_factor(tmp_path):
    parties = Parties(small_federation(), tmp_path)
    parties.run_round((0, 1, 2, 3))
    (model,) = opened(parties.db, "global-model", GlobalModel)
    assert (model.clip_factor, model.unclipped) == (1.0, 0.0)
    honest = parties.propose()
    plan = decode(RoundPlan, decode(Signed, honest.record).payload)
    wrong = sign(replace(plan, clip_factor=1.25), parties.federation.aggregator_seeds)
    with pytest.raises(RecordError, match=r"round 2 has a clip_factor of 1\.25, must be 1"):
        parties.begin(Bundle(wrong, honest.objects))
    parties.close_databases()


def test_a_gateway_takes_no_plan_and_no_model_with_another_factor(tmp_path):
    federation = small_federation(secure_sum="single-he", **FOLLOWING)
    parties = Parties(federation, tmp_path)
    parties.begin(parties.propose())
    parties.submit((0, 1, 2, 3))
    parties.close()
    honest = parties.conclude()
    model = decode(GlobalModel, decode(Signed, honest.record).payload)
    wrong = sign(replace(model, clip_factor=1.7), federation.aggregator_seeds)
    with pytest.raises(RecordError, match=r"has a clip_factor of 1\.7, from its share"):
        parties.finish(Bundle(wrong, honest.objects))
    parties.finish(honest)
    proposal = parties.propose()
    plan = decode(RoundPlan, decode(Signed, proposal.record).payload)
    assert plan.clip_factor == model.clip_factor != 1.0
    wrong = sign(replace(plan, clip_factor=1.0), federation.aggregator_seeds)
    with pytest.raises(RecordError, match="the model before it says"):
        parties.begin(Bundle(wrong, proposal.objects))
    parties.begin(proposal)
    parties.close_databases()


def test_a_sum_that_cannot_be_used_leaves_the_clip(tmp_path, monkeypatch):
    """A hostile device can spoil a sum; the study goes on from where it was."""
    parties = Parties(small_federation(secure_sum="single-he", **FOLLOWING), tmp_path)
    parties.run_round((0, 1, 2, 3))
    before = opened(parties.db, "global-model", GlobalModel)[-1].clip_factor
    goal = parties.aggregator.goal
    spoilt = replace(goal.optimiser, apply=lambda s, m: goal.optimiser.apply(s, m + 1e300))
    parties.aggregator = replace(parties.aggregator, goal=replace(goal, optimiser=spoilt))
    parties.run_round((0, 1, 2, 3))
    model = opened(parties.db, "global-model", GlobalModel)[-1]
    assert (model.applied, model.clip_factor, model.unclipped) == (False, before, 0.0)
    parties.close_databases()


# Several hospitals.


@pytest.fixture(scope="module")
def joint():
    return federation_of(study_rounds=40, **FOLLOWING)


@pytest.fixture
def world(tmp_path, monkeypatch, joint):
    made = JointWorld(tmp_path, monkeypatch, joint)
    yield made
    made.stop()


def test_hospitals_agree_on_the_factor_and_one_that_lost_it_takes_it_over(world):
    world.start()
    world.run_rounds(2)
    north, south = world.hospitals[:2]
    # One process ends and starts again, another loses all that it had.
    south.stop()
    south.start()
    north.stop()
    north.lose_database()
    north.start()
    world.run_rounds(4)
    models = world.models()
    assert [model.applied for model in models] == [True] * 4
    expected = world.expected([True] * 4)
    assert models[-1].clip_factor == expected[0]
    assert len({model.clip_factor for model in models}) == 4
    for hospital in world.hospitals:
        assert np.array_equal(hospital.state[1], expected)
    world.check()


def test_a_state_with_another_factor_than_the_model_says_is_refused(joint, tmp_path):
    parties = Parties(joint, tmp_path)
    parties.begin(parties.propose())
    goal, plan = parties.aggregator.goal, joint.study.plan
    size = plan.vector_size
    mean = np.concatenate([[0.3 * count_unit(plan.terms)], np.full(size - 1, 0.1)])
    state = goal.optimiser.apply(goal.optimiser.init(goal.start), mean)
    weights, content = goal.content(state.weights), aggregator_store.state_bytes(state)
    said = GlobalModel(
        "fed", "study", 1, bytes(32), bytes(32), digest(weights), 3, True, False, None,
        digest(content), float(state.weights[0]), 0.8,
    )  # fmt: skip
    bundle = Bundle(b"", (weights, content))
    assert np.array_equal(
        aggregator_rounds.agreed_result(parties.aggregator, said, bundle).after.weights,
        state.weights,
    )
    with pytest.raises(RecordError, match="does not lead to its clip_factor"):
        aggregator_rounds.agreed_result(parties.aggregator, replace(said, clip_factor=1.0), bundle)
    parties.close_databases()


# Devices that train.


def run(out: Path, **changes: object) -> Simulation:
    quiet = Console(file=(out.parent / "printed.txt").open("w"))
    small = {"devices": 6, "alone": False, "window_s": 0.0, "min_cohort": 6, **changes}
    return vitalring.simulate(console=quiet, out=out, **small)


@pytest.mark.parametrize(
    ("unit", "noise", "epsilon", "changes"),
    [
        ("record", "distributed", 20.0, {"clip": 200.0}),
        ("device", "local", 8.0, {"update_clip": 100.0}),
    ],
)
def test_devices_count_what_their_clip_leaves_and_the_clip_comes_down(
    tmp_path, unit, noise, epsilon, changes
):
    """From a clip far too large, which leaves everything as it is: by exp(-rate / 2) a round."""
    result = run(
        tmp_path / "out",
        unit=unit,
        noise=noise,
        rounds=3,
        model="ecg_cnn",
        epsilon=epsilon,
        secure_sum="single-he",
        clip_quantile=0.5,
        clip_rate=1.0,
        **changes,
    )
    report = result.report
    rows, start = report["rounds"], next(iter(changes.values()))
    assert rows[0]["clip"] == start
    assert all(row["status"] == "summed" for row in rows)
    for row, after in itertools.pairwise(rows):
        moved = np.exp(-(row["unclipped"] - 0.5))
        assert after["clip"] == pytest.approx(row["clip"] * moved, rel=1e-5)
    note = report["privacy"]["clip_note"]
    if unit == "record":
        assert rows[0]["unclipped"] == pytest.approx(1.0, abs=0.03)
        assert rows[1]["clip"] == pytest.approx(start * np.exp(-0.5), rel=0.03)
        assert note is None
    else:
        assert "raise clip_share" in note, "six devices are too few to follow"
        assert f"warning: {note}" in "\n".join(summary(result))
    page = (result.folder / "report.html").read_text()
    assert "quantile that the clip follows" in page
    verdict = verify.verify_folder(result.folder, None)
    assert [start * each.clip_factor for each in verdict.rounds] == [r["clip"] for r in rows]
    assert verdict.epsilon <= epsilon
