"""What a log shows of two gateways that agreed on a round's updates (SPEC 8.17).

Each gateway's log stands by itself: the set that both signed is the set of its updates, and
the other one's report, which it took with the model, says of the round what its own says.
"""

from vitalring.errors import LogError
from vitalring.protocol import trust, two_server
from vitalring.protocol.agreement import open_agreed, open_share_report, set_digest
from vitalring.protocol.cbor import digest
from vitalring.protocol.records import GlobalModel, RoundPlan, RoundReport
from vitalring.tools.log_folder import Entry, LogFolder, RoundEntries, blame


def whose_log(origin: str, study: trust.Study) -> int:
    """Return the number of the hospital whose log has this name. Raises LogError."""
    count = len(study.federation.hospitals) if study.shared else 1
    for hospital in range(count):
        if trust.log_origin(study.federation, hospital) == origin:
            return hospital
    raise LogError(f"checkpoint: {origin!r} is the name of none of this study's logs")


def check_agreed(
    files: LogFolder,
    study: trust.Study,
    plan: RoundPlan,
    logged: RoundEntries,
    report: RoundReport,
) -> None:
    """Check that both gateways signed the set of a summed round, and only such a one."""
    entry = logged.agreed
    if not study.shared:
        if entry is not None:
            raise entry.fault("is a set of two gateways, of which this study has one")
        return
    if (entry is not None) != (report.status == "summed"):
        at = entry or logged.plan
        raise at.fault(f"has a report {report.status}, and that does not fit the agreed set")
    if entry is None:
        if logged.updates:
            raise logged.updates[0][0].fault("is an update of a round without an agreed set")
        return
    with blame(entry.object_path):
        agreed = open_agreed(files.record(entry), study.federation)
        name = logged.plan.value.digest
        digests = tuple(update.digest for _, update in logged.updates)
        if (agreed.plan, agreed.round) != (name, plan.round):
            raise LogError("the set is of another round")
        if (agreed.count, agreed.set) != (len(digests), set_digest(name, digests)):
            raise LogError("the set is not that of the log's updates")


def check_peer(
    files: LogFolder,
    study: trust.Study,
    plan: RoundPlan,
    logged: RoundEntries,
    hospital: int,
) -> Entry | None:
    """Check the other gateway's report; return the one that the model must name, if not ours."""
    entry = logged.peer
    if not study.shared:
        if entry is not None:
            raise entry.fault("is the report of another gateway, of which this study has none")
        return None
    if entry is None:
        at = logged.model or logged.plan
        raise at.fault("is not preceded by the other gateway's report")
    report = _peer_report(files, study, entry, hospital)
    with blame(entry.object_path):
        if (report.plan, report.round) != (logged.plan.value.digest, plan.round):
            raise LogError("the other gateway's report is of another round")
    return entry if hospital == two_server.SEED else None


def reports_of(
    files: LogFolder,
    study: trust.Study,
    plan: RoundPlan,
    model: GlobalModel,
    logged: RoundEntries,
    hospital: int,
) -> tuple[bytes, ...]:
    """Return digests of both reports, the first gateway's first; the model follows from both."""
    if logged.peer is None or logged.report is None:
        return ()
    with blame(logged.peer.object_path):
        trust.check_model_follows(model, plan, _peer_report(files, study, logged.peer, hospital))
    own, peer = (digest(files.record(entry)) for entry in (logged.report, logged.peer))
    return (own, peer) if hospital == two_server.VECTOR else (peer, own)


def _peer_report(files: LogFolder, study: trust.Study, entry: Entry, hospital: int) -> RoundReport:
    other = two_server.VECTOR if hospital == two_server.SEED else two_server.SEED
    with blame(entry.object_path):
        return open_share_report(files.record(entry), study.federation, other)
