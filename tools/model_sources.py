"""Where a trained model's weights are: a run's folder, a log, or the aggregator's own state.

Rules kept here: what comes from a log is checked as `vitalring verify` checks it before anything
is made of it; what comes from an aggregator's folder is its owner's own.
"""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitalring.aggregator.config import AggregatorConfig, load_study
from vitalring.aggregator.following import weights_of
from vitalring.aggregator.goals import open_artefact
from vitalring.config import load_config
from vitalring.database import open_read_only
from vitalring.errors import ConfigError, StorageError
from vitalring.models.artefact import Artefact, artefact_from_bytes
from vitalring.protocol.records import StudyPlan
from vitalring.protocol.weights import unpack_weights
from vitalring.tools.log_checks import open_logged_study
from vitalring.tools.log_folder import LogFolder, history
from vitalring.tools.verify import verify_folder

CONFIG = "aggregator.toml"
DATABASE = "aggregator.sqlite"


@dataclass(frozen=True)
class TrainedModel:
    """A network, its weights (d,) after `round` rounds, and, for tables, the features' JSON.

    `origin` says where it was found and what was checked.
    """

    artefact: Artefact
    weights: npt.NDArray[np.float32] = field(repr=False)
    round: int
    features: bytes = field(repr=False)
    origin: str


def find_trained(source: Path, authority_key: bytes | None = None) -> TrainedModel:
    """Return the newest model of a run's folder, a log's folder, or an aggregator.

    An aggregator is named by its `aggregator.toml`, the folder with it, or its state folder.

    Raises:
        ConfigError: the source is none of these, or has no model yet.
        LogError: the log does not verify.
        StorageError: the aggregator's database cannot be read.
    """
    if (source / "checkpoint").is_file() or (source / "log").is_dir():
        return _of_log(source, authority_key)
    for config in (source, source / CONFIG, source.parent / CONFIG):
        if config.name == CONFIG and config.is_file():
            return _of_aggregator(config)
    if (source / DATABASE).is_file():
        raise ConfigError(
            f"{source} holds an aggregator's database, but {source.parent / CONFIG} is not there; "
            "name the aggregator.toml that belongs to it"
        )
    raise ConfigError(
        f"{source} holds no trained model: name the output folder of a simulation, a log's "
        "folder, or an aggregator.toml"
    )


def _of_log(folder: Path, authority_key: bytes | None) -> TrainedModel:
    verdict = verify_folder(folder, authority_key)
    if verdict.final_weights is None:
        raise ConfigError(f"{folder}: its log has no model yet; wait for a round")
    files = LogFolder(folder / "log" if (folder / "log").is_dir() else folder)
    federation = files.federation(verdict.authority_key)
    entries, _ = history(files.entries(files.checkpoint(federation)))
    study, _ = open_logged_study(files, entries, federation)
    plan = study.plan

    def read(name: bytes) -> bytes:
        return files.blob(name, "the study plan names it")

    artefact = _logged_artefact(plan, read)
    weights = unpack_weights(read(verdict.final_weights), plan.model.dimension)
    newest = max(one.number for one in verdict.rounds if one.weights)
    features = read(plan.model.features) if plan.model.features else b""
    whose = "the given key" if authority_key else "the key in its folder"
    origin = f"log of study {plan.study}, verified with {whose}"
    return TrainedModel(artefact, weights, newest, features, origin)


def _logged_artefact(plan: StudyPlan, read: Callable[[bytes], bytes]) -> Artefact:
    _require_training(plan)
    model = plan.model
    companions = tuple(read(name) for name in model.companions)
    return artefact_from_bytes(read(model.info), read(model.artefact), companions, model.info)


def _of_aggregator(path: Path) -> TrainedModel:
    config = load_config(AggregatorConfig, path)
    files = load_study(config)
    plan = files.study.plan
    _require_training(plan)
    artefact, features = open_artefact(files)
    number, packed = _newest_state(config.state_dir / DATABASE)
    # The state is float64; what the aggregator publishes of it is float32.
    weights = weights_of(np.frombuffer(packed, "<f8"), plan.terms).astype(np.float32)
    if weights.shape != (artefact.info.dimension,):
        raise StorageError(
            f"{config.state_dir / DATABASE} holds {weights.size} weights, study {plan.study} has "
            f"{artefact.info.dimension}: name the aggregator.toml that belongs to it"
        )
    text = features.to_json() if features is not None else b""
    origin = f"aggregator of study {plan.study}"
    return TrainedModel(artefact, weights, number, text, origin)


def _newest_state(path: Path) -> tuple[int, bytes]:
    """Return the newest round and its weights, while the aggregator may be at work."""
    if not path.is_file():
        raise ConfigError(f"{path} is not there: the aggregator has not run yet")
    query = "SELECT round, weights FROM state ORDER BY round DESC LIMIT 1"
    try:
        with closing(open_read_only(path)) as db:
            row = db.execute(query).fetchone()
    except sqlite3.Error as error:
        raise StorageError(f"{path} cannot be read ({error})") from error
    if row is None or row[0] == 0:
        raise ConfigError(f"{path} has no model yet; wait for the first round to end")
    return int(row[0]), bytes(row[1])


def _require_training(plan: StudyPlan) -> None:
    if plan.task != "train":
        raise ConfigError(
            f"study {plan.study} agrees on features and trains no network; export a study that does"
        )
