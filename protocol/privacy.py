"""What a plan says about privacy and training, and the sensitivity of a step (SPEC 7).

Rules kept here: a guarantee has one derivation, from the numbers that the
device enforces; a combination that gives none is refused by name; nothing here
is believed because it is signed: `accountant.check_claim` recomputes it.
What a round spends follows from these numbers and the codec's: `guarantee`.
"""

from dataclasses import dataclass
from typing import Annotated, Final, Protocol

from vitalring.errors import ConfigError
from vitalring.protocol import limits
from vitalring.schema import OneOf, Range, Size

LATTICE_BITS: Final = 20
"""The clip is 2^20 steps of the lattice that sums and noise live on (SPEC 7.5)."""

CLIP_SLACK: Final = 2.0**-7
"""Share of the clip that float32 arithmetic may add to the sensitivity (SPEC 7.4)."""

SUM_BITS: Final = 30
"""Sums of chunks are whole multiples of clip / 2^30, so that adding them is exact (SPEC 7.4)."""

MAX_CHUNK: Final = 1024
"""Most records in one chunk for which CLIP_SLACK was argued (SPEC 7.4)."""

MAX_SAMPLED: Final = 2**20
"""Most records in one step: their sum, in steps of SUM_BITS, is a whole float64 (SPEC 7.4)."""

SAMPLER_EPSILON: Final = 2.0**-20
"""What the sampler's last bits can add over all coordinates of a local step (SPEC 7.6)."""

MIN_FACTOR: Final = 2.0**-10
MAX_FACTOR: Final = 2.0**10
"""How far a clip that follows a quantile moves from the plan's (SPEC 7.17)."""

MIN_NOISE_MULTIPLIER: Final = 0.1
MIN_DELTA: Final = 1e-9


@dataclass(frozen=True)
class Privacy:
    """The guarantee a plan claims and the numbers that give it (SPEC 7.1).

    `unit` is what one neighbour differs in, `noise` where noise is added.
    `epsilon` at `delta` is the claim for a whole study. `clip` bounds the L2
    norm of one example's gradient; with unit none and device, 0 leaves
    gradients unbounded. Noise has the standard deviation `noise_multiplier`
    times the clip of the unit: with unit record on a sum of gradients clipped
    at `clip`, with unit device on a sum of updates clipped at the codec's.
    With noise distributed that is what the devices of the smallest sum add
    together, `colluders` of them left out, who may tell their noise or add none.
    `schedule` cuts the study's rounds into as many equal stretches, in each of which
    `noise_multiplier` is multiplied with its factor; none is one stretch, with factor 1
    (SPEC 7.18).
    With `clip_quantile` above 0 the clip of the unit follows that quantile of what
    it clips: a count takes `clip_share` of it, and it moves by at most a factor
    exp(`clip_rate`) a round, from which the guarantee does not change (SPEC 7.17).
    """

    unit: Annotated[str, OneOf(("none", "record", "device"))] = "none"
    noise: Annotated[str, OneOf(("none", "local", "distributed"))] = "none"
    epsilon: Annotated[float, Range(0.0, 100.0)] = 0.0
    delta: Annotated[float, Range(0.0, 0.01)] = 0.0
    clip: Annotated[float, Range(0.0, 1e6)] = 0.0
    noise_multiplier: Annotated[float, Range(0.0, 1e4)] = 0.0
    colluders: Annotated[int, Range(0, limits.MAX_DEVICES)] = 0
    schedule: Annotated[tuple[Annotated[float, Range(0.1, 10.0)], ...], Size(0, 16)] = ()
    clip_quantile: Annotated[float, Range(0.0, 0.99)] = 0.0
    clip_rate: Annotated[float, Range(0.0, 1.0)] = 0.0
    clip_share: Annotated[float, Range(0.0, 0.125)] = 0.0


@dataclass(frozen=True)
class Training:
    """How a device trains in a round; every number is public (SPEC 7.1).

    A record enters a step with probability `sampling_rate`. A noisy sum is
    divided by `batch`, which does not depend on the device's own count of
    records. A device with fewer than `records` does not take part. `proximal`
    is FedProx's mu (Li et al. 2020). `balance` oversample repeats records of
    rare classes until all classes are equal. `class_weights`, one for each
    class or none, multiply the clipped gradients of a class's records; none
    exceeds 1, so that a record still moves the sum by the clip at most.
    """

    sampling_rate: Annotated[float, Range(1e-6, 1.0)]
    steps: Annotated[int, Range(1, 100_000)]
    rounds: Annotated[int, Range(1, limits.MAX_ROUNDS)]
    learning_rate: Annotated[float, Range(1e-6, 100.0)]
    batch: Annotated[int, Range(1, 1_000_000)]
    records: Annotated[int, Range(1, 100_000_000)]
    proximal: Annotated[float, Range(0.0, 100.0)] = 0.0
    balance: Annotated[str, OneOf(("none", "oversample"))] = "none"
    class_weights: Annotated[tuple[Annotated[float, Range(0.0, 1.0)], ...], Size(0, 100)] = ()


@dataclass(frozen=True)
class Spend:
    """What the accountant composes: `steps` Poisson-sampled Gaussian releases.

    `noise_multiplier` is the effective one: standard deviation of the noise
    divided by the enforced sensitivity (SPEC 7.4, 7.13). What a step is not a
    Gaussian release by stands beside it: `epsilon` is the most that a
    sampler's arithmetic adds to a privacy loss, `delta` the chance that a step
    lies outside of what was argued.
    """

    sampling_rate: float
    noise_multiplier: float
    steps: int
    epsilon: float = SAMPLER_EPSILON
    delta: float = 0.0


def check_privacy(privacy: Privacy, training: Training) -> None:
    """Refuse what gives no guarantee, whatever the codec (SPEC 7.1, 7.2).

    Raises ConfigError, which names the field.
    """
    # 1. What goes together.
    if (privacy.unit == "none") != (privacy.noise == "none"):
        raise ConfigError(
            f"privacy.unit is {privacy.unit} with privacy.noise {privacy.noise}: "
            "unit none goes with noise none, and with it alone"
        )
    if privacy.colluders and privacy.noise != "distributed":
        raise ConfigError(
            f"privacy.colluders is {privacy.colluders} with privacy.noise {privacy.noise}: "
            "only distributed noise has shares that others could give away; use 0"
        )
    if privacy.unit == "record" and training.balance != "none":
        raise ConfigError(
            "training.balance is oversample with privacy.unit record: a repeated record would "
            "count more than once against the clip; use balance none"
        )
    if not all(0.0 <= weight <= 1.0 for weight in training.class_weights):
        raise ConfigError(
            f"training.class_weights are {training.class_weights}: each must lie between 0 and 1, "
            "or a record would count more than its clip allows"
        )
    if is_gradient_sum(privacy) and (training.steps != 1 or training.proximal):
        raise ConfigError(
            "privacy.unit record with noise distributed sends one sum of gradients a round: use "
            "training.steps 1 and training.proximal 0"
        )
    if training.learning_rate * training.proximal >= 2.0:
        raise ConfigError(
            f"training.learning_rate * training.proximal is "
            f"{training.learning_rate * training.proximal:g}: from 2 on the pull overshoots and "
            "training diverges; lower one of them"
        )
    _check_quantile(privacy)
    # 2. No privacy is written in one way only; a clip may still steady the training.
    if privacy.unit == "none":
        if privacy != Privacy(clip=privacy.clip):
            raise ConfigError(
                "privacy.unit is none: epsilon, delta and noise_multiplier must be 0, and schedule "
                "empty"
            )
        return
    # 3. A guarantee needs every one of its numbers.
    _check_number("epsilon", privacy.epsilon, 1e-3, 100.0)
    _check_number("delta", privacy.delta, MIN_DELTA, 0.01)
    _check_number("noise_multiplier", privacy.noise_multiplier, MIN_NOISE_MULTIPLIER, 1e4)
    if privacy.unit == "device":
        return
    _check_number("clip", privacy.clip, 1e-6, 1e6)
    # 4. A delta of one record in the data set permits publishing one record.
    if privacy.delta * training.records >= 1.0:
        raise ConfigError(
            f"privacy.delta is {privacy.delta:g}, must lie below "
            f"1 / training.records = {1.0 / training.records:g}"
        )
    if training.steps * training.rounds > 1_000_000:
        raise ConfigError(
            f"training.steps * training.rounds is {training.steps * training.rounds}, "
            "the accountant composes at most 1000000 steps"
        )


def check_of_round(privacy: Privacy) -> None:
    """Refuse numbers whose noise depends on a round that nobody named (SPEC 7.18).

    Raises ConfigError.
    """
    if privacy.schedule:
        raise ConfigError(
            f"privacy.schedule is {privacy.schedule}: noise is that of a round, so train and "
            "protect with its terms, guarantee.at_round"
        )


class Guarantee(Protocol):
    """What says whom a guarantee is for, and who adds its noise: a plan's privacy, or settings."""

    @property
    def unit(self) -> str:
        """Whom it is for."""

    @property
    def noise(self) -> str | None:
        """Who adds it."""


def is_gradient_sum(privacy: Guarantee) -> bool:
    """Tell whether a device sends one clipped gradient sum a round instead of trained weights."""
    return privacy.unit == "record" and privacy.noise == "distributed"


def follows_quantile(privacy: Privacy) -> bool:
    """Tell whether the clip of the unit follows a quantile of what it clips (SPEC 7.17)."""
    return privacy.clip_quantile != 0.0


def fits_a_step(records: int, sampling_rate: float) -> bool:
    """Tell whether a device of so many records never samples more than MAX_SAMPLED in a step.

    Never, but with probability 2^-60 a step, by Bernstein's inequality. A device that found out
    while it trains would tell by its silence how many records it has (SPEC 7.4).
    """
    expected = records * sampling_rate
    spread: float = 10.0 * expected**0.5
    return records <= MAX_SAMPLED or (sampling_rate < 1.0 and expected + spread <= MAX_SAMPLED)


def sensitivity_factor(dimension: int) -> float:
    """L2 sensitivity of the sum on the lattice, as a multiple of the clip (SPEC 7.4).

    1 for the clip, CLIP_SLACK for float32 arithmetic, and sqrt(d) lattice
    steps, since rounding moves each coordinate by at most half a step in
    either of two neighbouring sums.
    """
    if not 1 <= dimension <= limits.MAX_DIMENSION:
        raise ConfigError(
            f"model.dimension is {dimension}, must lie between 1 and {limits.MAX_DIMENSION}"
        )
    lattice_step: float = 2.0**-LATTICE_BITS
    root: float = dimension**0.5
    return 1.0 + CLIP_SLACK + root * lattice_step


def effective_noise_multiplier(privacy: Privacy, dimension: int) -> float:
    """Noise of a local step relative to the sensitivity that the device enforces (SPEC 7.4).

    `dimension` is the number of the model's parameters. Raises ConfigError.
    """
    return privacy.noise_multiplier / sensitivity_factor(dimension)


def _check_quantile(privacy: Privacy) -> None:
    """SPEC 7.17: a clip that follows a quantile needs a noisy sum that its count is in."""
    if not follows_quantile(privacy):
        if privacy.clip_rate or privacy.clip_share:
            raise ConfigError(
                f"privacy.clip_rate is {privacy.clip_rate:g} and privacy.clip_share "
                f"{privacy.clip_share:g} with clip_quantile 0: a fixed clip has 0 for both"
            )
        return
    if privacy.unit == "none":
        raise ConfigError(
            f"privacy.clip_quantile is {privacy.clip_quantile:g} with privacy.unit none: without a "
            "guarantee nobody's clip is counted; use 0"
        )
    if privacy.unit == "record" and privacy.noise == "local":
        raise ConfigError(
            f"privacy.clip_quantile is {privacy.clip_quantile:g} with unit record and noise local: "
            "its gradients never leave the device, and one device has too few records to count; "
            "use noise distributed, or 0"
        )
    _check_number("clip_quantile", privacy.clip_quantile, 0.01, 0.99)
    _check_number("clip_rate", privacy.clip_rate, 1e-3, 1.0)
    _check_number("clip_share", privacy.clip_share, 0.01, 0.125)
    if privacy.unit == "record":
        # So that the clip stays one that training takes, wherever the factor moves it.
        _check_number("clip", privacy.clip, 1e-6 / MIN_FACTOR, 1e6 / MAX_FACTOR)


def _check_number(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"privacy.{name} is {value:g}, must lie between {low:g} and {high:g}")
