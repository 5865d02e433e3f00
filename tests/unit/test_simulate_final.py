"""The final model on held-out rows, and the pooled model beside it, on real networks and files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vitalring.aggregator import optimisers
from vitalring.aggregator.evaluate import evaluator, final_rows, has_validation, round_rows
from vitalring.errors import DataError, VitalRingError
from vitalring.models import metrics
from vitalring.models.artefact import initial_weights, load_artefact
from vitalring.models.dataset import load_dataset, load_table, split
from vitalring.models.runtime import TrainableModel
from vitalring.protocol.privacy import Training
from vitalring.protocol.records import ServerOptimiser
from vitalring.tools.attack.pool import load_pool
from vitalring.tools.bench.skew_devices import load_people
from vitalring.tools.settings import SimulationSettings
from vitalring.tools.simulate.alone import Task, train_alone
from vitalring.tools.simulate.apart import run_apart
from vitalring.tools.simulate.api import simulate
from vitalring.tools.simulate.final import evaluate_final, evaluation_of, label_counts
from vitalring.tools.simulate.layout import choose_fleet
from vitalring.tools.simulate.one_place import Recipe, train_rounds, training_rows
from vitalring.tools.simulate.pooled import PooledTask, pooled_recipe, train_pooled

ARTEFACT = load_artefact("ecg_cnn")
SHAPE = ARTEFACT.info.input_shape
SIZES = {"a": 40, "b": 25, "c": 30, "d": 35}


def write_folder(folder: Path, held_out: str) -> Path:
    """Four devices whose classes differ in where the wave is."""
    (folder / "devices").mkdir(parents=True)
    (folder / "dataset.toml").write_text(
        'name = "waves"\nkind = "windows"\nclasses = ["N", "S", "V"]\nsampling_hz = 360\n'
        + held_out
    )
    generator = np.random.default_rng(4)
    for name, size in SIZES.items():
        y = generator.integers(0, 2 if name == "d" else 3, size)
        x = generator.normal(0, 0.1, (size, *SHAPE)).astype(np.float32)
        for row, label in enumerate(y):
            x[row, 20 + 60 * label : 60 + 60 * label, 0] += 1.0
        np.savez(folder / "devices" / f"{name}.npz", x=x, y=y)
    return folder


def training(**changes: object) -> Training:
    numbers = {
        "sampling_rate": 0.3,
        "steps": 4,
        "rounds": 5,
        "learning_rate": 0.5,
        "batch": 9,
        "records": 1,
    }
    return Training(**{**numbers, **changes})


def recipe(**changes: object) -> Recipe:
    server = ServerOptimiser(name="fedavg", learning_rate=1.0, momentum=0.0)
    return Recipe(ARTEFACT, bytes(32), training(**changes), 1.0, server)


def first_weights() -> np.ndarray:
    return initial_weights(ARTEFACT, bytes(32)).astype(np.float64)


def test_without_validation_rounds_are_evaluated_on_the_test_rows(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, 'test_devices = ["c", "d"]')
    assert not has_validation(load_dataset(folder))
    for rows in (round_rows(folder), final_rows(folder)):
        assert rows.devices == ("c", "d")
        assert np.bincount(rows.owner).tolist() == [30, 35]
        assert len(rows.x) == len(rows.y) == 65


@pytest.mark.parametrize(
    ("held_out", "validated", "tested"),
    [
        ('test_devices = ["d"]\nvalidation_devices = ["b"]', {"b": 25}, {"d": 35}),
        ('test_devices = ["d"]\nvalidation_fraction = 0.2', {"a": 8, "b": 5, "c": 6}, {"d": 35}),
        (
            "test_fraction = 0.2\nvalidation_fraction = 0.2",
            {"a": 8, "b": 5, "c": 6, "d": 7},
            {"a": 8, "b": 5, "c": 6, "d": 7},
        ),
    ],
)
def test_rounds_never_see_the_test_rows_where_validation_rows_are_declared(
    held_out: str, validated: dict[str, int], tested: dict[str, int], tmp_path: Path
) -> None:
    folder = write_folder(tmp_path, held_out)
    assert has_validation(load_dataset(folder))
    rounds, final = round_rows(folder), final_rows(folder)
    for rows, wanted in ((rounds, validated), (final, tested)):
        assert dict(zip(rows.devices, np.bincount(rows.owner), strict=True)) == wanted
    seen = {window.tobytes() for window in rounds.x}
    assert not seen & {window.tobytes() for window in final.x}
    trained = training_rows(folder, tuple(validated), None, personal=False)
    if "validation_fraction" in held_out:
        assert not (seen | {window.tobytes() for window in final.x}) & {
            window.tobytes() for window in trained.x
        }


def test_the_aggregator_evaluates_rounds_on_validation_rows(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, 'test_devices = ["d"]\nvalidation_devices = ["b"]')
    found = evaluator(ARTEFACT, folder)(first_weights())
    assert sum(map(sum, found.confusion)) == SIZES["b"]
    assert evaluator(ARTEFACT, None)(first_weights()) is None


def test_final_evaluation_by_hand(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, 'test_devices = ["b", "c", "d"]')
    info = load_dataset(folder)
    found = evaluate_final(folder, info, None, ARTEFACT, first_weights(), seed=1, draws=60)
    rows = final_rows(folder)
    model = TrainableModel(ARTEFACT)
    p = model.probabilities(first_weights().astype(np.float32), rows.x)
    predicted = p.argmax(axis=1)
    confusion = metrics.confusion_matrix(rows.y, predicted, 3)
    assert found.resampled == "devices"
    assert found.figures.clusters == 3
    assert np.array_equal(found.evaluation.confusion, confusion)
    assert found.estimate("auroc").value == pytest.approx(metrics.auroc(rows.y, p))
    assert [each.value for each in found.by_class("recall")] == pytest.approx(
        metrics.recall(confusion).tolist()
    )
    assert found.rows == tuple(np.bincount(rows.y))
    assert found.holders == (3, 3, 2)  # device d has no V
    assert [device.device for device in found.devices] == ["b", "c", "d"]
    for place, device in enumerate(found.devices):
        mine = rows.owner == place
        assert device.rows == mine.sum() == SIZES[device.device]
        assert device.accuracy == pytest.approx(np.mean(predicted[mine] == rows.y[mine]))
    # The rounds' evaluation of the same weights on the same rows is the very same.
    assert evaluator(ARTEFACT, folder)(first_weights()) == found.evaluation


def test_rows_held_out_on_every_device_are_resampled_as_rows(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "test_fraction = 0.5")
    info = load_dataset(folder)
    found = evaluate_final(folder, info, None, ARTEFACT, first_weights(), seed=1, draws=20)
    assert found.resampled == "rows"
    assert found.figures.clusters == sum(found.rows) == 66


def test_a_patient_at_two_sites_is_resampled_as_one(tmp_path: Path) -> None:
    (tmp_path / "devices").mkdir()
    (tmp_path / "dataset.toml").write_text(
        'name = "t"\nkind = "tabular"\nclasses = ["0", "1"]\nlabel = "y"\ngroup = "who"\n'
        "test_fraction = 0.6\n[features]\nage = {mean = 50, std = 10}\n"
    )
    for site in ("north", "south"):
        lines = [f"p{n % 20},{30 + n},{n % 2}" for n in range(60)]
        (tmp_path / "devices" / f"{site}.csv").write_text("\n".join(["who,age,y", *lines]) + "\n")
    rows = final_rows(tmp_path)
    assert rows.group is not None
    p = np.full((len(rows.y), 2), 0.5, np.float32)
    found = evaluation_of(load_dataset(tmp_path), rows, p, seed=0, draws=20)
    assert found.resampled == "groups"
    # Every patient has three rows at each of the two sites, on one side at both.
    assert found.figures.clusters == len(rows.y) / 6


def test_a_site_whose_every_row_is_held_out_is_named(tmp_path: Path) -> None:
    (tmp_path / "devices").mkdir()
    (tmp_path / "dataset.toml").write_text(
        'name = "t"\nkind = "tabular"\nclasses = ["0", "1"]\nlabel = "y"\n'
        "test_fraction = 0.5\n[features]\nage = {mean = 50, std = 10}\n"
    )
    lines = [f"{30 + n},{n % 2}" for n in range(60)]
    (tmp_path / "devices" / "north.csv").write_text("\n".join(["age,y", *lines]) + "\n")
    # One row, sixty times: all of them are on one side.
    drawn = [line for line in lines if _trains(tmp_path, line)]
    held_out = next(line for line in lines if line not in drawn)
    assert 15 < len(drawn) < 45
    (tmp_path / "devices" / "south.csv").write_text("\n".join(["age,y", *[held_out] * 60]) + "\n")
    with pytest.raises(DataError, match="device south has no row to train on"):
        choose_fleet(SimulationSettings(data=tmp_path))


def _trains(folder: Path, line: str) -> bool:
    """Tell whether a site with this row alone would train on it."""
    (folder / "devices" / "south.csv").write_text(f"age,y\n{line}\n")
    info = load_dataset(folder)
    return len(split(load_table(folder, "south", info), info).train) == 1


def test_counts_of_labels(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, 'test_devices = ["d"]')
    counts = label_counts(folder, load_dataset(folder), None, ("a", "b"))
    assert sum(counts["train"]) == 65
    assert sum(counts["test"]) == 35
    assert counts["test"][2] == 0


def test_pooled_training_makes_as_many_passes_in_batches_of_the_same_size(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, 'test_devices = ["b", "c"]')
    plan = recipe(rounds=40, learning_rate=1.0)
    shares: list[float] = []
    found = train_pooled(PooledTask(folder, ("a", "d"), None, plan, 3, 1), shares.append)
    how = found.training
    assert (how.rows, how.devices) == (75, 2)
    # 40 rounds of 4 steps with a rate of 0.3 are 48 passes; a device's batch is 0.3 of 75 / 2 rows.
    assert how.passes == pytest.approx(48, rel=0.1)
    assert how.batch == pytest.approx(11.25, rel=0.1)
    assert how.steps == 320
    assert shares == [pytest.approx(n / 80) for n in range(1, 81)]
    before = evaluate_final(folder, load_dataset(folder), None, ARTEFACT, first_weights(), 1)
    after = found.evaluation
    assert after.evaluation.loss < before.evaluation.loss
    assert after.estimate("macro_f1").value > before.estimate("macro_f1").value
    # The same rows, the same draws: the difference can be taken.
    gain = after.figures.difference(before.figures, "macro_f1")
    assert gain.low <= gain.value <= gain.high


def test_pooling_one_device_changes_nothing() -> None:
    assert pooled_recipe(recipe(), 1) == recipe()


def test_pooled_training_has_no_server_whose_momentum_could_throw_it_off() -> None:
    plan = recipe()
    momentum = replace(plan, server=replace(plan.server, name="momentum", momentum=0.9))
    assert pooled_recipe(momentum, 3) == pooled_recipe(plan, 3)


def test_pooling_devices_that_take_all_records_is_the_same_descent_momentum_and_all(
    tmp_path: Path,
) -> None:
    folder = write_folder(tmp_path, 'test_devices = ["d"]')
    plan = recipe(sampling_rate=1.0, steps=1, rounds=3)
    plan = replace(plan, server=replace(plan.server, name="momentum", momentum=0.9))
    assert pooled_recipe(plan, 3) == plan
    parts = [training_rows(folder, (name,), None, None) for name in ("a", "b")]
    whole = training_rows(folder, ("a", "b"), None, None)
    pooled = train_rounds(plan, whole.x, whole.y, seed=0)
    model, optimiser = TrainableModel(ARTEFACT), optimisers.build(plan.server)
    state = optimiser.init(first_weights())
    for _ in range(3):
        start = state.weights.astype(np.float32)
        sums = [model.gradient_sum(start, each.x, each.y, 1.0)[0] for each in parts]
        state = optimiser.apply(state, -0.5 * np.sum(sums, axis=0) / len(whole))
    np.testing.assert_allclose(pooled.weights, state.weights, atol=1e-5)


def test_training_in_one_place_is_the_plan_s_own(tmp_path: Path) -> None:
    """One round of one step at rate 1 is a step of gradient descent, whatever FedProx says."""
    folder = write_folder(tmp_path, 'test_devices = ["d"]')
    rows = training_rows(folder, ("b",), None, personal=False)
    plan = recipe(sampling_rate=1.0, steps=1, rounds=1, proximal=5.0)
    trained = train_rounds(plan, rows.x, rows.y, seed=0)
    start = initial_weights(ARTEFACT, bytes(32))
    gradient, _, _ = TrainableModel(ARTEFACT).gradient_sum(start, rows.x, rows.y, 1.0)
    np.testing.assert_allclose(trained.weights, start - 0.5 * gradient / len(rows), atol=1e-6)
    assert trained.examples == 25


def test_records_kept_back_for_personal_heads_are_kept_back_here_too(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, 'test_devices = ["d"]')
    whole = training_rows(folder, ("a", "b"), None, personal=False)
    less = training_rows(folder, ("a", "b"), None, personal=True)
    assert 0.75 * len(whole) < len(less) < 0.9 * len(whole)


def test_a_folder_with_nothing_to_test_on_is_refused(tmp_path: Path) -> None:
    (tmp_path / "devices").mkdir()
    (tmp_path / "dataset.toml").write_text(
        'name = "w"\nkind = "windows"\nclasses = ["N", "S", "V"]\nsampling_hz = 1\n'
        "test_fraction = 0.5\n"
    )
    x = np.zeros((1, *SHAPE), np.float32)
    np.savez(tmp_path / "devices" / "a.npz", x=x, y=np.zeros(1, np.int64))
    with pytest.raises(DataError, match="no row is held out"):
        final_rows(tmp_path)


def begun(folder: Path, out: Path, unit: str) -> Exception:
    """Begin a study that is refused at last for its number of devices, if for nothing before."""
    with pytest.raises(VitalRingError) as refused:
        simulate(data=folder, out=out, unit=unit, devices=9)
    assert not out.exists()
    return refused.value


def test_a_study_of_unit_record_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    by_place = write_folder(tmp_path / "place", "test_fraction = 0.2")
    refused = begun(by_place, tmp_path / "out", "record")
    assert isinstance(refused, DataError)
    assert "place/dataset.toml: test_fraction of windows" in str(refused)
    assert "hold out whole devices with test_devices" in str(refused)
    for unit in ("none", "device"):
        assert "9 devices are asked for" in str(begun(by_place, tmp_path / "out", unit))
    by_devices = write_folder(tmp_path / "devices", 'test_devices = ["d"]')
    assert "9 devices are asked for" in str(begun(by_devices, tmp_path / "out", "record"))


def test_a_folder_that_only_trains_cannot_be_evaluated(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", "test_devices = []")
    assert "test_devices is empty" in str(begun(folder, tmp_path / "out", "record"))
    for load in (load_people, lambda place: load_pool(place, 10)):
        with pytest.raises(DataError, match=r"test_devices is empty.*name some devices"):
            load(folder)


def test_devices_alone_and_the_pooled_model_in_processes_of_their_own(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", 'test_devices = ["d"]')
    plan = recipe(rounds=1, steps=1)
    task = PooledTask(folder, ("a", "b"), None, plan, seed=3, draws_seed=1)
    shares: list[float] = []
    apart = run_apart(train_pooled, (task,), tmp_path / "log", shares.append)
    assert shares == [0.5, 1.0]
    here = train_pooled(task)
    assert apart.evaluation.evaluation == here.evaluation.evaluation
    tasks = [Task(folder, name, None, plan, 0) for name in ("a", "b")]
    found = {result.device: result for result in train_alone(tasks, 1, tmp_path / "log")}
    assert set(found) == {"a", "b"}
    assert all(0 <= result.accuracy <= 1 for result in found.values())
