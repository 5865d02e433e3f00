"""In a child: what attackers get of a data set's studies."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitalring.models.dataset import devices, load_dataset
from vitalring.tools.attack.membership import (
    Defence,
    MembershipSettings,
    measure_membership,
)
from vitalring.tools.attack.source_inference import AttackSettings, measure_source_inference

_DEVICES = 10
_TARGETS = 40


def source_cell(request: Mapping[str, Any]) -> dict[str, Any]:
    """Attack studies without noise and with local noise for records at `request["epsilon"]`.

    A figure is a list over seeds.
    """
    folder = Path(request["data"])
    train, _ = devices(folder, load_dataset(folder))
    settings = AttackSettings(
        devices=min(_DEVICES, len(train)),
        rounds=request["rounds"],
        seeds=request["seeds"],
        targets=_TARGETS,
        alphas=(),
        epsilons=(request["epsilon"],),
        gateway_rounds=0,
    )
    found = measure_source_inference(folder, request["model"] or None, settings)
    studies = found["cases"][0]["studies"]
    return {
        "devices": settings.devices,
        "figures": {f"{study['epsilon']:g}": study["figures"] for study in studies},
    }


def membership_cell(request: Mapping[str, Any]) -> dict[str, Any]:
    """Attack studies of one guarantee.

    Returns the figures by view and attack, as `measure_membership` gives them.
    """
    settings = MembershipSettings(
        defences=(Defence(request["unit"], request["noise"], request["epsilon"]),),
        rows=request["rows"],
        rounds=request["rounds"],
        studies=request["studies"],
    )
    found = measure_membership(Path(request["data"]), request["model"] or None, settings)
    return {
        "members": found["members"],
        "others": found["others"],
        "studies": request["studies"],
        "figures": found["cases"][0]["figures"],
    }
