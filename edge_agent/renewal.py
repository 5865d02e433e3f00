"""Renew the model that a device predicts with, from each verified plan and the final model.

Learning comes first: nothing here ever keeps a device from taking part. What cannot be renewed is
logged, and the model of before stays in use.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from vitalring.edge_agent import model_in_use, personal_files
from vitalring.edge_agent.model_in_use import Origin
from vitalring.edge_agent.personal import (
    PersonalSettings,
    keep_back,
    keep_rule,
    personalise,
    with_head,
)
from vitalring.edge_agent.randomness import fresh_generator
from vitalring.edge_agent.workshop import Workshop
from vitalring.errors import VitalRingError
from vitalring.models.dataset import Records
from vitalring.models.export import int8_model
from vitalring.protocol.cbor import digest
from vitalring.protocol.weights import pack_weights

_log = logging.getLogger(__name__)


class Renewal:
    """Keeps the model in use in `state_dir`; with `personal`, under a head of the device's own."""

    def __init__(
        self, state_dir: Path, workshop: Workshop, personal: PersonalSettings | None = None
    ) -> None:
        self._state_dir = state_dir
        self._workshop = workshop
        self._personal = personal

    def to_train_on(self, records: Records, unit: str) -> Records:
        """Return the records that learning may see: what judges a personal head is kept back.

        `unit` is that of the guarantee that learning gives.
        """
        return records if self._personal is None else keep_back(records, keep_rule(unit)).train

    def renew(self, origin: Origin, records: Callable[[], Records]) -> None:
        """Put the model of a verified origin in use if it is newer. Raises nothing of ours.

        `records` returns all labelled records of the device, for a personal head.
        """
        plan = origin.study.plan
        try:
            if self._is_worth_using(origin) and model_in_use.is_due(self._state_dir, origin):
                self._renew(origin, records)
        except (VitalRingError, OSError) as error:
            _log.warning(
                "the model of study %s after round %d is not put in use: %s",
                plan.study,
                origin.round,
                error,
            )

    def _is_worth_using(self, origin: Origin) -> bool:
        """Tell whether the weights have learnt anything: fresh ones say random things."""
        if origin.study.plan.task != "train":
            return False
        return origin.round > 0 or bool(self._workshop.model(origin.study).info.initial)

    def _renew(self, origin: Origin, records: Callable[[], Records]) -> None:
        study, model = origin.study, origin.study.plan.model
        weights = self._workshop.named_weights(origin.weights, model.dimension)
        artefact = self._workshop.artefact(study)
        used, personal = weights, b""
        if self._personal is not None and origin.final:
            # Weights that the next round replaces are not worth the time that a fit takes.
            self._fit_head(origin, artefact.info.head, records)
            head = personal_files.load_head(self._state_dir, weights)
            if head is not None:
                used = with_head(weights, head)
                personal = digest(pack_weights(used))
        about = model_in_use.renew(
            self._state_dir,
            origin,
            int8_model(artefact, used),
            weights,
            artefact.info.input_shape,
            personal=personal,
            features=self._workshop.object(model.features) if model.features else b"",
        )
        _log.info(
            "predicts with study %s after round %d, %s head; %s",
            about.study,
            about.round,
            about.head,
            model_in_use.in_words(about),
        )

    def _fit_head(self, origin: Origin, head: int, records: Callable[[], Records]) -> None:
        """Fit a head to these weights. Where that fails, the device uses that of all."""
        if self._personal is None:
            return
        dimension = origin.study.plan.model.dimension
        try:
            fitted = personalise(
                self._workshop.model(origin.study),
                self._workshop.named_weights(origin.weights, dimension),
                head,
                records(),
                keep_rule(origin.study.plan.privacy.unit),
                self._personal,
                fresh_generator(),
            )
            personal_files.save(self._state_dir, fitted)
        except VitalRingError as error:
            _log.warning("no personal head after round %d: %s", origin.round, error)
            return
        _log.info("personal head after round %d: %s", origin.round, fitted.result.reason)
