"""What a report says of a run, from what its parties left behind."""

import pytest
from federation_fixture import SOME_PRIVACY, Parties, small_federation

from vitalring.edge_agent.accountant import epsilon
from vitalring.gateway.export import export_log
from vitalring.protocol.guarantee import study_spend
from vitalring.tools.privacy_audit import audit_log
from vitalring.tools.simulate import watch
from vitalring.tools.simulate.results import privacy_dict


@pytest.fixture
def parties(tmp_path):
    made = Parties(small_federation(privacy=SOME_PRIVACY), tmp_path / "hospital")
    yield made
    made.close_databases()


def test_an_open_round_is_spent_as_an_audit_of_the_log_counts_it(parties, tmp_path):
    study = parties.federation.study
    assert watch.logged_rounds(parties.folder) == 0
    assert privacy_dict(study, 0)["spent"] == 0.0
    parties.run_round((0, 1, 2, 3, 4))
    parties.begin(parties.propose())
    assert len(watch.finished_rounds(parties.folder, study, 0)) == 1
    logged = watch.logged_rounds(parties.folder)
    export_log(parties.db, parties.federation.files, tmp_path / "log")
    audit, terms = audit_log(tmp_path / "log", None)
    assert logged == audit.rounds_logged == 2
    assert privacy_dict(study, logged)["spent"] == audit.so_far
    assert audit.so_far > epsilon(study_spend(terms, 1), SOME_PRIVACY.delta)
