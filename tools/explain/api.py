"""Explain a trained model on a data set's held-out records, in pictures with their words."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitalring.aggregator.evaluate import HeldOut, final_rows
from vitalring.models.artefact import Artefact
from vitalring.models.dataset import DatasetInfo, FeatureSchema
from vitalring.models.runtime import TrainableModel
from vitalring.tools.explain import (
    figures,
    profile_pictures,
    table_pictures,
    texts,
    window_pictures,
)
from vitalring.tools.explain.channels import channels_of, parse_channels
from vitalring.tools.explain.examples import spread
from vitalring.tools.explain.occlusion import Progress, patch_for
from vitalring.tools.explain.permutation import columns_of, permute
from vitalring.tools.explain.windows import (
    ShownExample,
    WindowFindings,
    explain_windows,
    shuffled_weights,
)
from vitalring.tools.report_text import short


@dataclass(frozen=True)
class Options:
    """How much is explained.

    `records` is the most held-out records of each class (windows) or in all (tables), None for
    the default; `patch_s` the length of a patch in seconds, None for a twelfth of the window;
    `channels` names them instead of `dataset.toml`.
    """

    records: int | None = None
    patch_s: float | None = None
    channels: tuple[str, ...] = ()
    seed: int = 0

    @property
    def of_class(self) -> int:
        """Most windows of each class."""
        return self.records or 100

    @property
    def rows(self) -> int:
        """Most rows of a table."""
        return self.records or 2_000


@dataclass(frozen=True)
class Explanation:
    """A picture (SVG text that needs no other file) with a title, and what there is to say.

    `figures` are the numbers that were drawn, in JSON's types.
    """

    title: str
    text: str
    svg: str = field(repr=False)
    figures: Mapping[str, Any] = field(default_factory=dict, repr=False)


def explain(
    folder: Path,
    info: DatasetInfo,
    features: FeatureSchema | None,
    artefact: Artefact,
    weights: npt.NDArray[np.floating[Any]],
    options: Options,
    progress: Progress = lambda _: None,
) -> tuple[Explanation, ...]:
    """Explain weights (d,) of an artefact on the test rows of a data set.

    Raises DataError, ModelError, and ConfigError for options that do not fit the data.
    """
    rows = final_rows(folder, features)
    model = TrainableModel(artefact)
    plain = weights.astype(np.float32)
    if rows.x.ndim == 2:
        return _of_table(model, plain, rows, features, info, options, progress)
    time, count = rows.x.shape[1:]
    names = options.channels
    found = explain_windows(
        partial(model.probabilities, plain),
        partial(model.probabilities, shuffled_weights(artefact, plain, options.seed)),
        rows,
        info.classes,
        parse_channels(names, count) if names else channels_of(info, count),
        info.sampling_hz,
        patch_for(time, info.sampling_hz, options.patch_s),
        options.of_class,
        progress,
    )
    return (*_examples(found), _profiles(found, options.of_class))


def _examples(found: WindowFindings) -> Sequence[Explanation]:
    words = texts.of_examples(found)
    if window_pictures.is_one_signal(found):
        svg = window_pictures.draw_sheet(found)
        numbers = _numbers(found, (shown for pair in found.examples for shown in pair))
        return [Explanation("What the model looks at: typical windows", words, svg, numbers)]
    shown = [(label, pair) for label, pair in enumerate(found.examples) if any(pair)]
    return [
        Explanation(
            f"What the model looks at: {short(found.classes[label], 40)}",
            words if place == 0 else texts.AS_ABOVE,
            window_pictures.draw_strips(found, pair),
            _numbers(found, pair),
        )
        for place, (label, pair) in enumerate(shown)
    ]


def _numbers(found: WindowFindings, shown: Iterable[ShownExample | None]) -> dict[str, Any]:
    return {"examples": [figures.of_example(found, one) for one in shown if one]}


def _profiles(found: WindowFindings, most: int) -> Explanation:
    return Explanation(
        "What the model looks at: averages by class",
        texts.of_profiles(found, most),
        profile_pictures.draw_profiles(found),
        figures.of_averages(found),
    )


def _of_table(
    model: TrainableModel,
    weights: npt.NDArray[np.float32],
    rows: HeldOut,
    features: FeatureSchema | None,
    info: DatasetInfo,
    options: Options,
    progress: Progress,
) -> tuple[Explanation, ...]:
    schema = features or info.features
    columns = columns_of(schema, rows.x.shape[1], info.inputs or info.channels)
    chosen = spread(len(rows.y), options.rows)
    permuted = permute(
        partial(model.probabilities, weights),
        rows.x[chosen],
        rows.y[chosen],
        columns,
        options.seed,
        progress=progress,
    )
    kind = "columns" if schema else "inputs"
    return (
        Explanation(
            f"What the model relies on: {kind} of the table",
            texts.of_reliance(permuted, kind, len(rows.y)),
            table_pictures.draw_reliance(permuted),
            figures.of_permuted(permuted),
        ),
    )
