"""The architectures by name: a new one is one file in `networks/` and one line here."""

from collections.abc import Callable, Mapping

from vitalring.errors import ModelError
from vitalring.models.network import Network
from vitalring.models.networks.ecg_cnn import ecg_cnn

NETWORKS: Mapping[str, Callable[[], Network]] = {
    "ecg_cnn": ecg_cnn,
}


def build(name: str) -> Network:
    """Return the network called `name`.

    Raises:
        ModelError: there is none of that name.
    """
    if name not in NETWORKS:
        raise ModelError(f"no network is called {name!r}; there are {', '.join(sorted(NETWORKS))}")
    return NETWORKS[name]()
