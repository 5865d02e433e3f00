"""The papers' tables: arithmetic, which cells there are, and resumption."""

import dataclasses
import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest

from vitalring.errors import ConfigError, DataError
from vitalring.models import metrics
from vitalring.tools.bench.papers import settings as papers_settings
from vitalring.tools.bench.papers.cells import MECHANISMS, SIDES, Setup, _settings, cells_of
from vitalring.tools.bench.papers.command import DEFAULT_PLAN
from vitalring.tools.bench.papers.data import Prepared, folder_digest, prepare, refuse_unfit
from vitalring.tools.bench.papers.dpsgd_process import CHUNK, chunks_of, stated_epsilon
from vitalring.tools.bench.papers.ledger import ledger_cell
from vitalring.tools.bench.papers.measuring import CellError, known_cells, measure_cells
from vitalring.tools.bench.papers.played import played_cell
from vitalring.tools.bench.papers.reported import (
    FIGURE_B,
    TABLE_A,
    convergence,
    scores_of,
)
from vitalring.tools.bench.papers.settings import (
    FULL,
    QUICK,
    load_papers,
    load_study,
    offered,
    with_unit,
)
from vitalring.tools.bench.papers.shown import estimate, percent
from vitalring.tools.bench.papers.store import DISTURBED, FAILED, MEASURED, WAITING, Cell, Store
from vitalring.tools.bench.papers.studies import study_cell
from vitalring.tools.bench.papers.text_a import SEEN, VIEWS
from vitalring.tools.bench.papers.watching import Watch
from vitalring.tools.cli import main
from vitalring.tools.settings import SimulationSettings
from vitalring.tools.simulate.api import apply_changes
from vitalring.tools.simulate.layout import SHIPPED_DATA

SETS = ("hapt", "mitbih", "diabetes")
SCORE = {"value": 0.8, "low": 0.7, "high": 0.9}


@pytest.fixture(scope="module")
def plan():
    return load_papers(DEFAULT_PLAN)


@pytest.fixture
def setup(plan, tmp_path):
    def make(form=QUICK, names=SETS, **changes):
        data = {
            name: Prepared(tmp_path / name, f"{name} {form.name}".ljust(64, "0"), None)
            for name in names
        }
        sites = data.get(plan.sites.data)
        return dataclasses.replace(Setup(plan, form, data, sites, tmp_path), **changes)

    return make


# Arithmetic


def test_convergence_is_the_first_round_within_half_a_point_of_the_best():
    assert convergence([0.5, 0.7, 0.796, 0.79, 0.8]) == 3
    assert convergence([0.5, 0.7, 0.7949, 0.8]) == 4
    assert convergence([0.5, 0.7, 0.795, 0.8]) == 3  # half a point, exactly
    assert convergence([0.8, 0.1]) == 1
    with pytest.raises(ConfigError, match="no round"):
        convergence([])


def test_scores_are_means_over_classes():
    confusion = [[6, 2, 0], [1, 3, 0], [0, 1, 1]]
    scores = scores_of(confusion)
    assert scores.accuracy == pytest.approx(10 / 14)
    assert scores.precision == pytest.approx((6 / 7 + 3 / 6 + 1 / 1) / 3)
    assert scores.recall == pytest.approx((6 / 8 + 3 / 4 + 1 / 2) / 3)
    assert scores.f1 == pytest.approx(metrics.macro_f1(np.array(confusion)))


def test_an_interval_is_students_and_one_run_has_none():
    # Half a width is 4.303 · s / √3, with s = 0.01.
    assert percent([0.80, 0.81, 0.82]) == "81.0 (78.5–83.5)"
    assert percent([0.8]) == "80.0"


def test_what_is_no_number_is_shown_as_none():
    assert estimate({"value": None, "low": None, "high": None}) == "–"
    assert estimate({"value": 0.5, "low": None, "high": 0.7}) == "0.500 (?–0.700)"


def test_a_step_of_central_training_has_room_for_every_batch():
    generator = np.random.default_rng(0)
    for batch, rows in ((1, 50), (256, 2000), (1024, 80_000)):
        room = chunks_of(batch) * CHUNK
        assert (generator.binomial(rows, batch / rows, 100_000) <= room).all()


def test_the_epsilon_of_a_privacy_statement_is_the_one_under_poisson_sampling():
    text = (
        "Epsilon with each example occurring once per epoch:        12.345\n"
        "    Epsilon assuming Poisson sampling (*):                      0.998\n"
    )
    assert stated_epsilon(text) == 0.998
    assert stated_epsilon("no such line") is None


# Which cells there are


def test_each_row_of_paper_a_is_its_mechanisms(setup):
    cells = cells_of(setup())
    for name in SETS:
        study = {
            row: cells[f"a/{name}/{row}/study"].request["settings"]["study"] for row in MECHANISMS
        }
        sums = {row: each["secure_sum"] for row, each in study.items()}
        assert sums == {
            "plain": "plain",
            "all": "threshold-he",
            "dp": "plain",
            "he": "threshold-he",
            "smpc": "two-server",
        }
        private = {row for row, each in study.items() if each["unit"] != "none"}
        assert private == {"all", "dp"}
        # An update in clear has no protection but its own noise.
        assert study["dp"]["noise"] == "local"
        assert study["dp"]["unit"] == study["all"]["unit"]
        assert study["dp"]["epsilon"] == study["all"]["epsilon"]
    assert set(TABLE_A) == {"centralised", *MECHANISMS}
    assert set(SEEN) == set(VIEWS) == set(MECHANISMS)


def test_the_quick_form_is_small_and_never_passes_for_the_full_one(setup):
    quick, full = cells_of(setup(QUICK)), cells_of(setup(FULL))
    assert not {cell.key for cell in quick.values()} & {cell.key for cell in full.values()}
    for label, cell in quick.items():
        if cell.kind in ("study", "pooled"):
            assert cell.request["settings"]["study"]["rounds"] <= QUICK.rounds, label
    seeds = [label for label in full if label.startswith("b/private/study/")]
    assert len(seeds) == 10
    assert len({full[label].key for label in seeds}) == 10
    assert {label.split("/")[1] for label in full if label.startswith("b/")} == set(SIDES)


def test_figure_2_has_every_epsilon_for_each_unit_that_is_offered(setup, monkeypatch):
    cells = cells_of(setup(FULL, tensorflow="python"))
    units, refused = offered()
    assert ("record", "local") in units
    for unit, noise in units:
        for epsilon, _ in FIGURE_B:
            study = cells[f"f/mitbih/{unit}-{noise}/{epsilon:g}/0"].request["settings"]["study"]
            assert (study["unit"], study["noise"] or "local") == (unit, noise)
            assert study["epsilon"] == epsilon
            assert cells[f"f/mitbih/central/{epsilon:g}/0"].request["epsilon"] == epsilon
    assert len(units) + len(refused) == 4

    def only_local(privacy, _training):
        if privacy.noise != "local":
            raise ConfigError("not here")

    monkeypatch.setattr(papers_settings, "check_privacy", only_local)
    assert offered() == (
        (("record", "local"), ("device", "local")),
        {"record/distributed": "not here", "device/distributed": "not here"},
    )


def test_only_what_was_asked_for_and_given_is_measured(setup):
    assert {label.split("/")[0] for label in cells_of(setup(tables=("b",)))} == {"b"}
    labels = cells_of(setup(names=("mitbih",)))
    assert {label.split("/")[1] for label in labels if label != "ledger"} == {"mitbih"}
    assert not any("central/" in label for label in labels)


def test_the_sites_may_have_fewer_rows_than_the_set_that_they_are_of(plan, setup):
    few = Prepared(Path("few"), "f" * 64, None)
    cells = cells_of(setup(sites=few))
    digests = {label: cell.request.get("digest") for label, cell in cells.items()}
    assert {digests[label] for label in cells if label.startswith("b/")} == {few.digest}
    assert digests["a/diabetes/plain/study"] != few.digest
    sites = dataclasses.replace(plan.sites, rows=500)
    assert [sites.rows_in(form) for form in (FULL, QUICK)] == [500, QUICK.rows]
    assert dataclasses.replace(sites, rows=0).rows_in(FULL) == 0


def test_a_study_that_leaves_its_noise_to_its_unit_has_that_of_its_unit():
    device = apply_changes(SimulationSettings(), {"unit": "device", "noise": None})
    assert with_unit((device,), "device", "distributed") is device
    local = with_unit((device,), "device", "local")
    assert local is not device
    assert local.study.noise == "local"


def test_the_plan_names_studies_that_are_there(plan):
    for each in plan.sets:
        assert load_study(each.study).study.unit == "none"
        assert all(load_study(path).study.unit != "none" for path in each.private)
    assert load_study(plan.sites.private).study.unit != "none"
    site = tomllib.loads(plan.sites.study.read_text())["study"]
    # Fifty epochs, as the paper has.
    assert site["rounds"] * site["local_epochs"] == 50


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('data = "diabetes"', 'data = "elsewhere"'), "one of them"),
        (
            ('private = ["mitbih-distributed.toml", "mitbih-local.toml"]', "private = []"),
            "names no",
        ),
        (('name = "hapt"', 'name = "mitbih"'), "a name of its own"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(tmp_path, change, says):
    text = DEFAULT_PLAN.read_text()
    assert change[0] in text
    path = tmp_path / "papers.toml"
    path.write_text(text.replace(*change, 1))
    with pytest.raises(ConfigError, match=says):
        load_papers(path)


# Cells on disk, and going on


def cell(name, **request):
    return Cell("study", name, request)


def test_a_cell_is_found_again_by_what_decides_it(tmp_path):
    store = Store(tmp_path)
    first = cell("first", a=1, b={"c": 0.5})
    measure_cells({"x": first}, store, tmp_path, lambda _: None, lambda *_: {"accuracy": 0.5})
    same = Cell("study", "another name", {"b": {"c": 0.5}, "a": 1}, {"data": "elsewhere"})
    assert store.load(same).result == {"accuracy": 0.5}
    assert store.load(cell("first", a=2, b={"c": 0.5})) is None
    assert store.load(Cell("pooled", "first", {"a": 1, "b": {"c": 0.5}})) is None


def test_a_second_call_goes_on_where_the_first_was_killed(tmp_path):
    cells = {str(n): cell(f"cell {n}", n=n) for n in range(4)}
    ran, said = [], []

    def run(each, room):
        if each.request["n"] == 2 and not ran.count(2):
            ran.append(2)
            (room / "state").write_text("half")
            raise KeyboardInterrupt
        ran.append(each.request["n"])
        # What a killed run left is there, for it to go on.
        assert (room / "state").exists() == (each.request["n"] == 2)
        return {"n": each.request["n"]}

    store, room = Store(tmp_path / "cells"), tmp_path / "runs"
    with pytest.raises(KeyboardInterrupt):
        measure_cells(cells, store, room, said.append, run)
    assert [found.status for found in known_cells(cells, store).values()] == [
        MEASURED,
        MEASURED,
        WAITING,
        WAITING,
    ]
    known = measure_cells(cells, store, room, said.append, run)
    assert ran == [0, 1, 2, 2, 3]
    assert [found.result["n"] for found in known.values()] == [0, 1, 2, 3]
    assert not list(room.iterdir())


def test_a_failure_is_said_kept_with_its_reason_and_tried_again(tmp_path):
    store, said = Store(tmp_path), []

    def fail(_cell, _room):
        raise CellError("the network is too small")

    cells = {"x": cell("one", a=1), "y": cell("two", a=2)}
    known = measure_cells(cells, store, tmp_path, said.append, fail)
    assert [found.status for found in known.values()] == [FAILED, FAILED]
    assert sum("FAILED: the network is too small" in line for line in said) == 2
    assert store.load(cells["x"]).reason == "the network is too small"
    known = measure_cells(cells, store, tmp_path, said.append, lambda *_: {"a": 1})
    assert all(found.whole for found in known.values())


def test_times_of_a_busy_machine_are_none_and_are_taken_again(tmp_path):
    store = Store(tmp_path)
    cells = {"t": Cell("time", "time", {}), "p": Cell("pooled", "pooled", {})}
    busy = {"round_seconds": 9.0, "disturbed": True, "others": 0.6}
    known = measure_cells(cells, store, tmp_path, lambda _: None, lambda *_: busy)
    assert known["t"].status == DISTURBED
    assert "60%" in known["t"].reason
    # Training learnt what it learnt; its time alone is not shown.
    assert known["p"].status == MEASURED
    quiet = busy | {"disturbed": False}
    left = measure_cells(cells, store, tmp_path, lambda _: None, lambda *_: quiet, times=False)
    assert left["t"].status == DISTURBED
    known = measure_cells(cells, store, tmp_path, lambda _: None, lambda *_: quiet)
    assert known["t"].status == MEASURED


def test_what_is_no_number_is_kept_as_none(tmp_path):
    store, each = Store(tmp_path), cell("one")
    measure_cells(
        {"x": each}, store, tmp_path, lambda _: None, lambda *_: {"a": [float("nan"), 1.0]}
    )
    assert store.load(each).result == {"a": [None, 1.0]}


def test_a_damaged_cell_is_named(tmp_path):
    store, each = Store(tmp_path), cell("one")
    measure_cells({"x": each}, store, tmp_path, lambda _: None, lambda *_: {})
    (path,) = tmp_path.glob("study-*.json")
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ConfigError, match=path.name):
        store.load(each)


# Data


def test_the_quick_forms_data_are_few_rows_of_each_device(tmp_path):
    source = SHIPPED_DATA
    small = prepare(source, 7, tmp_path)
    assert small.folder != source
    sizes = []
    for path in sorted((small.folder / "devices").iterdir()):
        with np.load(path) as some, np.load(source / "devices" / path.name) as every:
            sizes.append(len(some["y"]))
            assert some["x"].dtype == every["x"].dtype
    assert max(sizes) <= 7
    assert len(sizes) == len(list((source / "devices").iterdir()))
    assert prepare(source, 7, tmp_path) == small
    assert prepare(source, 0, tmp_path).digest == folder_digest(source) != small.digest


def test_a_folder_among_the_devices_is_named(tmp_path):
    shutil.copytree(SHIPPED_DATA, tmp_path / "data")
    (tmp_path / "data" / "devices" / "old").mkdir()
    with pytest.raises(DataError, match="old: is no file"):
        folder_digest(tmp_path / "data")


def test_sites_agree_on_features_before_anything_runs(tmp_path):
    source = tmp_path / "sites"
    (source / "devices").mkdir(parents=True)
    (source / "dataset.toml").write_text(
        'name = "s"\nkind = "tabular"\nclasses = ["no", "yes"]\nlabel = "y"\ntest_fraction = 0.2\n'
    )
    for site in ("a", "b", "c"):
        rows = "".join(
            f"{n},{'red' if n % 3 else 'blue'},{'yes' if n % 2 else 'no'}\n" for n in range(60)
        )
        (source / "devices" / f"{site}.csv").write_text("number,colour,y\n" + rows)
    room = tmp_path / "room"
    made = prepare(source, 50, room)
    schema = json.loads(made.features.read_text())
    assert {each["column"] for each in schema["features"]} == {"number", "colour"}
    assert len((made.folder / "devices" / "a.csv").read_text().splitlines()) == 51


# What is measured in a child


def test_the_log_holds_every_update_of_every_round(tmp_path):
    got = ledger_cell({"rounds": 3, "updates": 20, "repeats": 2, "room": str(tmp_path)})
    # Plan, report and model are leaves too.
    assert got["leaves"] == 3 * (20 + 3)
    assert got["bytes"] > 3 * 20 * got["signature_bytes"]
    assert got["slowest_commit_seconds"] >= got["commit_seconds"] > 0
    assert not list(tmp_path.iterdir())


def test_a_run_that_came_to_its_end_before_it_was_kept_is_not_run_again(tmp_path):
    out = tmp_path / "run"
    (out / "log").mkdir(parents=True)
    (out / "log" / "checkpoint").write_text("x" * 100)
    report = {
        "status": "finished",
        "dataset": "beats",
        "model": "ecg_cnn",
        "parameters": 4096,
        "devices": 3,
        "secure_sum": "plain",
        "privacy": {"unit": "none"},
        "rounds": [{"accuracy": 0.5, "expected": 3, "admitted": 2}],
        "rounds_on": "test",
        "bytes": {"update": 100},
        "log": {"leaves": 9},
        "test": {
            **dict.fromkeys(("accuracy", "macro_f1", "auroc"), SCORE),
            "confusion": [],
            "rows": 4,
        },
    }
    (out / "report.json").write_text(json.dumps(report))
    plain = load_study(load_papers(DEFAULT_PLAN).sets[1].study)
    # There are no data in this folder, so nothing could be run.
    request = {"settings": _settings(plain), "data": str(tmp_path), "room": str(tmp_path)}
    got = study_cell(request)
    assert (got["missing_updates"], got["log_bytes"], got["curve"]) == (1, 100, [0.5])


def test_a_point_is_played_with_the_noise_of_its_plan(tmp_path):
    settings = apply_changes(
        load_study(DEFAULT_PLAN.parent / "mitbih-distributed.toml"), {"rounds": 2, "epsilon": 5.0}
    )
    request = {"settings": _settings(settings), "data": str(SHIPPED_DATA)}
    got = played_cell(request)
    assert (got["rounds"], got["devices"], got["parameters"]) == (2, 22, 63)
    assert 4.5 < got["privacy"]["spent"] <= 5.0
    again = played_cell(request)
    # Noise follows no seed: two runs of one plan differ, and the accounting does not.
    assert again["confusion"] != got["confusion"]
    assert again["privacy"] == got["privacy"]


def test_a_watch_sees_this_process():
    with Watch() as watch:
        held = np.ones(4_000_000)
    assert watch.peaks["self"] > held.nbytes
    assert 0.0 <= watch.others <= 1.0


# The command


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--tables", "z"], "name some of"),
        (["--data", "wards=x"], "the plan names hapt, mitbih, diabetes"),
    ],
)
def test_the_command_refuses_what_it_does_not_know(words, says, tmp_path, capsys):
    assert main(["bench", "papers", *words, "--quick", "--out", str(tmp_path)]) == 2
    assert says in capsys.readouterr().err


def test_data_that_a_study_would_refuse_is_refused_before_any_cell_is_measured(setup, tmp_path):
    cells = cells_of(setup(FULL, names=("mitbih",), tables=("f",)))
    (tmp_path / "mitbih").mkdir()
    about = 'name = "m"\nkind = "windows"\nclasses = ["N", "V"]\nsampling_hz = 360\n'
    toml = tmp_path / "mitbih" / "dataset.toml"
    toml.write_text(about + "test_fraction = 0.2\n")
    with pytest.raises(DataError, match="test_fraction of windows"):
        refuse_unfit(cells.values())
    refuse_unfit(
        cell
        for cell in cells.values()
        if cell.request.get("settings", {"study": {"unit": ""}})["study"]["unit"] != "record"
    )
    toml.write_text(about + 'test_devices = ["r200"]\n')
    refuse_unfit(cells.values())


def test_the_command_measures_a_cell_and_does_not_measure_it_again(tmp_path, capsys):
    words = ["bench", "papers", "--quick", "--tables", "ledger", "--out", str(tmp_path)]
    code = main(words)
    (kept,) = (tmp_path / "cells").glob("ledger-*.json")
    found = json.loads(kept.read_text())["found"]
    # On a machine at rest it is measured, on a busy one its times are none.
    assert (code, found["status"]) in ((0, MEASURED), (1, DISTURBED))
    assert "1 of 1: the log" in capsys.readouterr().err
    assert "1,530 leaves" in (tmp_path / "papers.md").read_text() or code == 1
    assert main([*words, "--no-run"]) == code
    assert "1 of 1" not in capsys.readouterr().err
    assert Path(kept).exists()
