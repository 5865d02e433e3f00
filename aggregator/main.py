"""Start an aggregator from its configuration file."""

import threading
import time

from vitalring.aggregator import optimisers, rounds, store
from vitalring.aggregator.config import AggregatorConfig, load_decrypt, load_study
from vitalring.aggregator.evaluate import evaluator
from vitalring.aggregator.service import AggregatorService, subscriptions
from vitalring.files import read_secret
from vitalring.models.artefact import artefact_from_bytes, initial_weights
from vitalring.mqtt import Link
from vitalring.protocol import trust
from vitalring.protocol.secure_sum import sum_scheme


def run_aggregator(config: AggregatorConfig, stop: threading.Event) -> None:
    """Run until `stop` is set or the study has its final model.

    Raises ConfigError, DataError, ModelError or StorageError at the start.
    """
    files = load_study(config)
    study = files.study
    model = study.plan.model
    artefact = artefact_from_bytes(
        files.objects[trust.INFO_FILE], files.objects[trust.ARTEFACT_FILE], digest=model.info
    )
    aggregator = rounds.Aggregator(
        study=study,
        scheme=sum_scheme(study.plan.secure_sum, study.plan.codec, model.dimension),
        decrypt=load_decrypt(config, study),
        signing_seed=read_secret(config.signing_key, 32),
        optimiser=optimisers.build(study.plan.server),
        evaluate=evaluator(artefact, config.held_out),
        schedule=config.schedule,
    )
    db = store.open_store(config.state_dir)
    try:
        rounds.start(db, aggregator, initial_weights(artefact, model.initial_seed).astype(float))
        with Link(config.broker, subscriptions(study)) as link:
            AggregatorService(
                db,
                aggregator,
                link,
                config.broker.max_payload_bytes,
                lambda: time.time_ns() // 1_000_000,
            ).run(stop)
    finally:
        db.close()
