"""A hospital recomputes claims from exported logs, and names the one that does not hold."""

import json
import shutil
from dataclasses import replace

import pytest
from audit_fixture import terms_of
from federation_fixture import SOME_PRIVACY, Parties, small_federation

from vitalring.edge_agent.accountant import epsilon
from vitalring.errors import LogError
from vitalring.gateway.export import export_log
from vitalring.protocol.guarantee import budget_allowances, study_spend
from vitalring.tools.cli import main
from vitalring.tools.privacy_audit import audit_log, together
from vitalring.tools.verify import verify_log


def exported(folder, rounds=2, **options):
    """The log of a study that ran so many of its rounds, each with five devices."""
    federation = small_federation(**options)
    parties = Parties(federation, folder / "state")
    for _ in range(rounds):
        parties.run_round((0, 1, 2, 3, 4))
    export_log(parties.db, federation.files, folder / "log")
    parties.close_databases()
    return federation, folder / "log"


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("local"), privacy=SOME_PRIVACY)


@pytest.fixture(scope="module", params=["record", "device"])
def shared(request, tmp_path_factory):
    terms = terms_of(request.param, "distributed", 8, shares=3, sigma=4.0, bits=12)
    return exported(
        tmp_path_factory.mktemp(request.param),
        name=request.param,
        privacy=replace(terms.privacy, epsilon=30.0),
        codec=terms.codec,
        training=replace(terms.training, rounds=10),
        secure_sum="single-he",
    )


def test_figures_are_recomputed_from_the_plan(local):
    federation, log = local
    audit, terms = audit_log(log, federation.authority_key)
    assert terms == federation.study.plan.terms
    assert (audit.rounds_planned, audit.rounds_logged) == (40, 2)
    assert (audit.fewest, audit.groups) == (5, 1)
    assert audit.planned == epsilon(study_spend(terms), 1e-5) <= SOME_PRIVACY.epsilon
    assert audit.so_far == epsilon(study_spend(terms, 2), 1e-5)
    assert audit.of_a_record == audit.so_far < audit.planned
    assert (audit.shares, audit.differences) == (None, ())


def test_shared_noise_counts_honest_devices_and_a_device_costs_a_record_more(shared):
    _, log = shared
    audit, terms = audit_log(log, None)
    assert (audit.shares, audit.min_cohort, audit.privacy.colluders) == (3, 4, 1)
    (of_a_record,) = budget_allowances(terms, 2)
    assert audit.of_a_record == epsilon([of_a_record.whole], 1e-5)
    assert (audit.of_a_record > audit.so_far) == (audit.privacy.unit == "device")
    assert audit.differences == ()


def test_where_rounds_have_groups_each_group_is_a_sum_of_its_own(tmp_path, capsys):
    """Of 11 updates in two groups the smaller sum has five; 7 and 6 updates make one group."""
    federation = small_federation(
        devices=11, n_max=11, secure_sum="threshold-he", hospitals=3, threshold=2, groups=2
    )
    parties = Parties(federation, tmp_path / "state")
    for updates in (7, 11, 6):
        parties.begin(parties.propose())
        parties.submit(range(updates))
        parties.now_ms += 20_000
        parties.close()
        parties.finish(parties.model(None))
    export_log(parties.db, federation.files, tmp_path / "log")
    parties.close_databases()
    audit, _ = audit_log(tmp_path / "log", None)
    assert (audit.min_cohort, audit.groups, audit.fewest) == (4, 2, 5)
    assert main(["privacy", "audit", str(tmp_path / "log")]) == 0
    out = capsys.readouterr().out
    assert "sums        of 5 updates or more were opened, of up to 2 groups a round" in out


def test_a_false_claim_is_named_where_verifying_stops(tmp_path, capsys):
    _, log = exported(tmp_path, privacy=replace(SOME_PRIVACY, epsilon=1.0))
    with pytest.raises(LogError, match="the plan claims epsilon 1 at delta"):
        verify_log(log, None)
    audit, _ = audit_log(log, None)
    (difference,) = audit.differences
    assert difference.startswith("the plan claims epsilon 1 at delta 1e-05, its own numbers spend ")
    assert audit.so_far < audit.planned
    assert main(["privacy", "audit", str(log)]) == 1
    out = capsys.readouterr().out
    assert f"DIFFERS     {difference}" in out
    assert "Every claim holds" not in out


def test_noise_that_nothing_accounts_for_is_named(tmp_path):
    """Shared noise on a grid so coarse that its shape costs more delta than there is."""
    terms = terms_of("device", "distributed", 8, shares=3, sigma=8.0, bits=4)
    _, log = exported(
        tmp_path,
        privacy=replace(terms.privacy, delta=2e-9, epsilon=100.0),
        codec=terms.codec,
        training=replace(terms.training, rounds=10_000),
        secure_sum="single-he",
    )
    audit, _ = audit_log(log, None)
    assert audit.planned is None
    assert "10000 rounds cannot be accounted for" in audit.differences[0]


def test_a_log_that_is_not_sound_is_no_evidence(local, tmp_path, capsys):
    log = shutil.copytree(local[1], tmp_path / "log")
    (log / "left-over").write_bytes(b"")
    with pytest.raises(LogError, match="left-over: does not belong to this log"):
        audit_log(log, None)
    assert main(["privacy", "audit", str(local[1]), str(log), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [study["study"] for study in found["studies"]] == ["study"]
    assert "left-over" in found["faults"][0]
    # Half of the evidence gives no total.
    assert found["together"]["epsilon"] is None


def test_several_studies_of_one_record_compose(local, shared, tmp_path, capsys):
    audited = [audit_log(log, None) for _, log in (local, shared)]
    both = together(audited, 1e-5)
    parts = [audit.of_a_record for audit, _ in audited]
    assert max(parts) < both < sum(parts)
    assert main(["privacy", "audit", str(local[1]), str(shared[1])]) == 0
    out = capsys.readouterr().out
    assert f"together   epsilon {both:.4f} at delta 1e-05 of a record that is in all" in out
    assert "Every claim holds." in out
    # One study without a guarantee, and nothing bounds the whole.
    _, none = exported(tmp_path, rounds=1)
    assert together([*audited, audit_log(none, None)], 1e-5) is None
    assert main(["privacy", "audit", str(local[1]), str(none)]) == 0
    assert "no bound: study has no guarantee" in capsys.readouterr().out


def test_a_runs_output_folder_will_do_and_the_authority_counts(local, capsys):
    federation, log = local
    key = federation.authority_key.hex()
    assert main(["privacy", "audit", str(log.parent), "--authority", key, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["studies"][0]["planned"] <= 8.0
    assert main(["privacy", "audit", str(log), "--authority", "00" * 32]) == 1
    assert "not sound: authority: holds key" in capsys.readouterr().err
