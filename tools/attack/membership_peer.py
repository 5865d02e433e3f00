"""The membership attacks of tensorflow-privacy on the same models, in a process of its own."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitalring.tools.measuring.child import require_modules, run_script

_SCRIPT = Path(__file__).with_name("membership_tensorflow.py")


def check_peer(python: str) -> None:
    """Raise ConfigError unless the interpreter has tensorflow-privacy's tests of privacy."""
    require_modules(
        python,
        ["tensorflow_privacy.privacy.privacy_tests.membership_inference_attack"],
        "tensorflow-privacy==0.8.12",
    )


def attack_with_peer(
    python: str,
    probabilities: npt.NDArray[np.float32],
    y: npt.NDArray[np.int64],
    confidences: npt.NDArray[np.float64],
    members: npt.NDArray[np.bool_],
) -> Mapping[str, Any]:
    """Attack the first study, and return ROC areas and true-positive rates by attack.

    probabilities (n, classes) are the first study's; confidences (studies, n) and members
    (studies, n) all studies', for its likelihood ratio. Raises ConfigError.
    """
    with tempfile.TemporaryDirectory(prefix="vitalring-attack-") as folder:
        arrays = Path(folder) / "arrays.npz"
        np.savez(arrays, probabilities=probabilities, y=y, confidences=confidences, members=members)
        return run_script(_SCRIPT, {"arrays": str(arrays)}, python=python)
