"""A model in use on a device: real artefacts and weights, under a study of the small federation."""

import dataclasses
from pathlib import Path

import numpy as np
from federation_fixture import SmallFederation, small_federation

from vitalring.edge_agent import model_in_use
from vitalring.models.artefact import initial_weights, load_artefact
from vitalring.models.dataset import Records, load_dataset, load_device
from vitalring.models.export import int8_model
from vitalring.protocol import trust
from vitalring.protocol.cbor import digest
from vitalring.protocol.signing import sign
from vitalring.protocol.weights import pack_weights

NETWORK = "ecg_cnn"
OPENS_MS = 1_700_000_000_000


def weights_of(seed=1):
    """Weights (d,) that differ from seed to seed."""
    return initial_weights(load_artefact(NETWORK), bytes([seed]) * 32)


def int8_of(weights):
    return int8_model(load_artefact(NETWORK), weights)


def input_shape():
    return load_artefact(NETWORK).info.input_shape


def windows(count, seed=0):
    shape = (count, *input_shape())
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def study_of(classes=("N", "S", "V")):
    study = small_federation().study
    model = dataclasses.replace(study.plan.model, classes=classes)
    return dataclasses.replace(study, plan=dataclasses.replace(study.plan, model=model))


def origin(weights, *, round_number=3, opens_ms=None, final=False, study=None):
    """Where verified weights come from; a later round opened later."""
    return model_in_use.Origin(
        study=study or study_of(),
        round=round_number,
        final=final,
        weights=digest(pack_weights(weights)),
        record=digest(b"the record of round %d" % round_number),
        opens_ms=OPENS_MS + 1000 * round_number if opens_ms is None else opens_ms,
        signatures=2,
        log_entries=0 if final else 40,
    )


def put_in_use(state_dir: Path, seed=1, round_number=3, **more):
    """Renew the model in use with the weights of a seed; return what is said of it."""
    weights = weights_of(seed)
    return model_in_use.renew(
        state_dir,
        origin(weights, round_number=round_number),
        int8_of(weights),
        weights,
        input_shape(),
        **more,
    )


def real_federation(study_rounds=2):
    """The small federation, with a study that trains a real network."""
    artefact = load_artefact(NETWORK)
    base = small_federation(dimension=artefact.info.dimension, study_rounds=study_rounds)
    objects = {
        trust.ARTEFACT_FILE: artefact.model,
        trust.INFO_FILE: artefact.info.to_json(),
        **{trust.companion_file(digest(each)): each for each in artefact.companions},
    }
    plan = base.study.plan
    model = dataclasses.replace(
        plan.model,
        name=NETWORK,
        artefact=digest(artefact.model),
        info=artefact.digest,
        classes=artefact.info.classes,
        companions=tuple(digest(each) for each in artefact.companions),
    )
    records = dict(zip(trust.STUDY_FILES, base.files.records.values(), strict=True))
    records["study.cbor"] = sign(dataclasses.replace(plan, model=model), [base.authority_seed])
    files = trust.open_study_files((records | objects).__getitem__, base.authority_key)
    return SmallFederation(files, base.devices, None)


def beats(device="r106", count=300):
    """Real records of one person, who has two kinds of beats."""
    folder = Path(__file__).parents[2] / "tools" / "datasets" / "mitbih"
    rows = load_device(folder, device, load_dataset(folder))
    return Records(device, rows.x[:count], rows.y[:count])
