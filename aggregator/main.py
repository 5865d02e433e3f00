"""Start an aggregator from its configuration file."""

import threading
import time

from vitalring.aggregator import goals, joint_service, rosters, rounds, store
from vitalring.aggregator.channel import Channel
from vitalring.aggregator.config import AggregatorConfig, load_decrypt, load_party, load_study
from vitalring.aggregator.evaluate import evaluator
from vitalring.aggregator.joint_service import JointService
from vitalring.aggregator.service import AggregatorService, subscriptions
from vitalring.files import read_secret
from vitalring.models.dataset.statistics import Question
from vitalring.mqtt import Link
from vitalring.protocol import trust


def run_aggregator(config: AggregatorConfig, stop: threading.Event) -> None:
    """Run until `stop` is set or the study has its final model.

    Raises ConfigError, DataError, ModelError or StorageError at the start.
    """
    db = store.open_store(config.state_dir)
    try:
        files = load_study(config, rosters.newest_record(db))
        study = files.study
        aggregator = rounds.Aggregator(
            study=study,
            scheme=study.scheme(),
            decrypt=load_decrypt(config, study),
            signing_seed=read_secret(config.signing_key, 32),
            goal=_goal(config, files),
            schedule=config.schedule,
        )
        party = load_party(config, study, aggregator.signing_seed) if study.joint else None
        listens = subscriptions(study)
        if party is not None:
            listens = joint_service.subscriptions(study, party.hospital)
        rounds.start(db, aggregator)
        known = rosters.Rosters(db, study, files.records["roster"], config.study)
        known.save()
        with Link(config.broker, listens) as link:
            channel = Channel(link, study.federation.name, config.broker.max_payload_bytes)
            service: AggregatorService | JointService
            if party is None:
                service = AggregatorService(db, aggregator, known, channel, _now_ms)
            else:
                spool = config.state_dir / "updates"
                service = JointService(db, aggregator, party, known, channel, spool, _now_ms)
            service.run(stop)
    finally:
        db.close()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _goal(config: AggregatorConfig, files: trust.StudyFiles) -> goals.Goal:
    plan = files.study.plan
    if plan.task == "statistics":
        return goals.statistics(plan, Question.from_json(files.objects[trust.INFO_FILE]))
    artefact, features = goals.open_artefact(files)
    return goals.training(plan, artefact, evaluator(artefact, config.held_out, features))
