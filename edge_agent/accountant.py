"""How much privacy a list of releases spends: dp-accounting's arithmetic (SPEC 7.7).

Rules kept here: neighbours differ in one record added or removed; every figure
is an upper bound, the lower of two that are both sound (Renyi divergences and
privacy-loss distributions); what the device enforces is accounted, not what
the plan asserts. dp-accounting brings scipy, which is why its imports stand
inside functions: an agent calls `epsilon_in_child`, so that the memory goes
with the child. `python -m vitalring.edge_agent.accountant` is that child: one
JSON request on standard input, one JSON answer on standard output.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any, Final

from vitalring.errors import ConfigError, PrivacyError
from vitalring.protocol.guarantee import Terms, study_spend
from vitalring.protocol.privacy import MIN_DELTA, MIN_NOISE_MULTIPLIER, Spend

Accountant = Callable[[tuple[Spend, ...], float], float]
"""Epsilon of some spends at a delta: either `epsilon` or `epsilon_in_child`."""

LOSS_INTERVAL: Final = 1e-3
"""Grid of the privacy-loss distributions; coarse is pessimistic, never unsound (SPEC 7.7)."""

TIGHT_BELOW: Final = 128.0
"""Largest Renyi bound that is tightened; no plan may claim an epsilon above 100."""

RISK_SHARE: Final = 2.0**-10
"""Share of delta that is set aside for spends which are not quite Gaussian (SPEC 7.7)."""

CHILD_TIMEOUT_S: Final = 300.0
MAX_STEPS: Final = 100_000_000


def epsilon(spends: Sequence[Spend], delta: float) -> float:
    """Epsilon at `delta` of all `spends` composed, by arithmetic in this process (SPEC 7.7).

    Loads scipy (about 65 MB). No spends cost 0. Raises PrivacyError when the
    numbers cannot be accounted.
    """
    merged = _checked(spends, delta)
    if not merged:
        return 0.0
    risk = sum(spend.steps * spend.delta for spend in merged)
    kept = delta * (1.0 - RISK_SHARE) if risk else delta
    try:
        best = _renyi_bound(merged, kept)
        # Loss distributions of hopeless plans are large; a refusal needs no tight figure.
        if best <= TIGHT_BELOW:
            best = min(best, _loss_distribution_bound(merged, kept))
    except (ArithmeticError, ValueError, TypeError, MemoryError) as error:
        raise PrivacyError(f"the accountant failed on {merged}: {error}") from error
    if not 0.0 <= best < math.inf:
        raise PrivacyError(f"no finite epsilon at delta {delta:g} covers {merged}")
    best += sum(spend.steps * spend.epsilon for spend in merged)
    # With M and M' each within `risk` of mechanisms that keep (e, d), P[M] <= e^e P[M'] + d +
    # (1 + e^e) risk.
    if risk and not (best < 700.0 and (1.0 + math.exp(best)) * risk <= delta - kept):
        raise PrivacyError(
            f"what is not Gaussian about {merged} costs more of delta {delta:g} at epsilon "
            f"{best:.3g} than is set aside: use more codec.bits, or a smaller epsilon"
        )
    return best


def epsilon_in_child(spends: Sequence[Spend], delta: float) -> float:
    """Compute `epsilon` in a process of its own, so that the caller stays small.

    Raises PrivacyError on whatever goes wrong in the child.
    """
    request = {"spends": [asdict(spend) for spend in spends], "delta": delta}
    # One thread: thread buffers of the linear algebra library would only cost memory.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    try:
        # -P: a file in the working directory must not pass for a module of ours.
        finished = subprocess.run(
            [sys.executable, "-P", "-m", "vitalring.edge_agent.accountant"],
            input=json.dumps(request, allow_nan=False).encode(),
            capture_output=True,
            timeout=CHILD_TIMEOUT_S,
            env=environment,
            check=True,
        )
        answer = json.loads(finished.stdout)
        value = answer["epsilon"]
    except subprocess.CalledProcessError as error:
        detail = error.stderr.decode(errors="replace").strip()[-400:]
        raise PrivacyError(f"the accounting process failed: {detail}") from error
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
        raise PrivacyError(f"the accounting process gave no answer: {error}") from error
    if type(value) is not float or not 0.0 <= value < math.inf:
        raise PrivacyError(f"the accounting process answered epsilon {value!r}")
    return value


def calibrate(
    epsilon_limit: float,
    delta: float,
    spend_of: Callable[[float], Sequence[Spend]],
    least: float = MIN_NOISE_MULTIPLIER,
) -> float:
    """Smallest `Privacy.noise_multiplier` that keeps a study within `epsilon_limit`.

    `spend_of` returns what the whole study spends with a multiplier, which is
    tried above `least` only. Rounded up at the fourth decimal; the claim check
    of the same numbers then holds.
    Raises ConfigError when no multiplier that a plan may name suffices.
    """
    # A hair below the limit: another processor's last bits must not refuse the plan.
    limit = epsilon_limit * (1.0 - 1e-6)

    def spent(ten_thousandths: int) -> float:
        return epsilon(spend_of(ten_thousandths / 10_000), delta)

    low = round(least * 10_000)
    low_spent, high = math.inf, 2 * low
    while (high_spent := spent(high)) > limit:
        low, low_spent, high = high, high_spent, 2 * high
        if high > 10_000 * 10_000:
            raise ConfigError(
                f"no noise gives epsilon {epsilon_limit:g} at delta {delta:g} over "
                f"{sum(spend.steps for spend in spend_of(least))} steps: allow a larger epsilon "
                "or fewer steps"
            )
    # Invariant: `high` suffices and `low` does not; the search ends at the smallest that does.
    while high - low > 1:
        middle = _between(low, low_spent, high, high_spent, limit)
        middle_spent = spent(middle)
        if middle_spent <= limit:
            high, high_spent = middle, middle_spent
        else:
            low, low_spent = middle, middle_spent
    return high / 10_000


def _between(low: int, low_spent: float, high: int, high_spent: float, limit: float) -> int:
    """Guess where epsilon meets `limit`: it is near a straight line in logarithms.

    The guess leans a little towards the middle, so that the bracket shrinks
    from both ends; a bracket without a slope is halved.
    """
    middle = (low + high) // 2
    if low_spent < math.inf and high_spent > 0.0:
        slope = math.log(low_spent / high_spent)
        share = math.log(low_spent / limit) / slope if slope > 0.0 else 0.5
        share += 0.02 if share < 0.5 else -0.02
        middle = round(math.exp(math.log(low) + share * math.log(high / low)))
    return min(max(middle, low + 1), high - 1)


def check_claim(terms: Terms, accountant: Accountant) -> float:
    """Recompute what a whole study spends and hold it against the plan's claim (SPEC 7.7).

    Returns the recomputed epsilon; 0 for unit none, which claims nothing.
    Raises PrivacyError when the plan claims less than it spends, ConfigError
    for a plan that this version cannot guarantee.
    """
    spends = study_spend(terms)
    if not spends:
        return 0.0
    claim = terms.privacy
    spent = accountant(spends, claim.delta)
    if not spent <= claim.epsilon:
        raise PrivacyError(
            f"the plan claims epsilon {claim.epsilon:g} at delta {claim.delta:g}, "
            f"its own numbers spend {spent:.4f}: it needs more noise, fewer steps or rounds"
        )
    return spent


def merge(spends: Iterable[Spend]) -> tuple[Spend, ...]:
    """Add up the steps of equal mechanisms; order does not matter to composition."""
    counts: dict[tuple[float, float, float, float], int] = {}
    for spend in spends:
        key = (spend.sampling_rate, spend.noise_multiplier, spend.epsilon, spend.delta)
        counts[key] = counts.get(key, 0) + spend.steps
    return tuple(
        Spend(rate, multiplier, count, epsilon, delta)
        for (rate, multiplier, epsilon, delta), count in sorted(counts.items())
        if count
    )


def _checked(spends: Sequence[Spend], delta: float) -> tuple[Spend, ...]:
    if not MIN_DELTA <= delta < 1.0:
        raise PrivacyError(f"delta is {delta:g}, must lie between {MIN_DELTA:g} and 1")
    for spend in spends:
        if not (
            0.0 < spend.sampling_rate <= 1.0
            and 0.0 < spend.noise_multiplier < math.inf
            and 0.0 <= spend.epsilon < math.inf
            and 0.0 <= spend.delta <= 1.0
            and 0 <= spend.steps <= MAX_STEPS
        ):
            raise PrivacyError(f"{spend} is not a mechanism that can be accounted")
    return merge(spends)


def _renyi_bound(spends: Sequence[Spend], delta: float) -> float:
    """Mironov, Talwar, Zhang 2019, "Renyi DP of the Sampled Gaussian Mechanism"."""
    from dp_accounting.rdp import rdp_privacy_accountant  # noqa: PLC0415

    return _composed(rdp_privacy_accountant.RdpAccountant(), spends, delta)


def _loss_distribution_bound(spends: Sequence[Spend], delta: float) -> float:
    """Doroshenko et al. 2022, "Connect the Dots"; both directions of add and remove."""
    from dp_accounting.pld import pld_privacy_accountant  # noqa: PLC0415

    accountant = pld_privacy_accountant.PLDAccountant(value_discretization_interval=LOSS_INTERVAL)
    return _composed(accountant, spends, delta)


def _composed(accountant: Any, spends: Sequence[Spend], delta: float) -> float:  # noqa: ANN401
    from dp_accounting import dp_event  # noqa: PLC0415

    for spend in spends:
        event = dp_event.GaussianDpEvent(spend.noise_multiplier)
        if spend.sampling_rate < 1.0:
            event = dp_event.PoissonSampledDpEvent(spend.sampling_rate, event)
        accountant.compose(event, spend.steps)
    return float(accountant.get_epsilon(delta))


def main() -> int:
    """Answer one request: {"spends": [...], "delta": d} gives {"epsilon": e}."""
    try:
        request = json.load(sys.stdin)
        spends = [Spend(**spend) for spend in request["spends"]]
        answer = {"epsilon": epsilon(spends, request["delta"])}
        json.dump(answer, sys.stdout, allow_nan=False)
    except (PrivacyError, ValueError, KeyError, TypeError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
