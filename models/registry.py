"""The architectures by name: a new one is one file in `networks/` and one line here."""

from collections.abc import Callable, Mapping

from vitalring.errors import ModelError
from vitalring.models.network import Network
from vitalring.models.networks.cnn1d_small import cnn1d_small
from vitalring.models.networks.ecg_bank import ecg_bank
from vitalring.models.networks.ecg_cnn import ecg_cnn
from vitalring.models.networks.ehr_mlp import ehr_mlp
from vitalring.models.networks.har_bank import har_bank
from vitalring.models.networks.har_cnn import har_cnn
from vitalring.models.networks.har_mlp import har_mlp
from vitalring.models.networks.linear import linear

NETWORKS: Mapping[str, Callable[[], Network]] = {
    "cnn1d_small": cnn1d_small,
    "ecg_bank": ecg_bank,
    "ecg_cnn": ecg_cnn,
    "ehr_mlp": ehr_mlp,
    "har_bank": har_bank,
    "har_cnn": har_cnn,
    "har_mlp": har_mlp,
    "linear": linear,
}


def build(name: str) -> Network:
    """Return the network called `name`.

    Raises:
        ModelError: there is none of that name.
    """
    if name not in NETWORKS:
        raise ModelError(f"no network is called {name!r}; there are {', '.join(sorted(NETWORKS))}")
    return NETWORKS[name]()
