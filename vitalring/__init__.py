"""Federated learning for wearables.

This package is the floor that every room stands on: errors, typed tables, the
connection to a broker. The rooms lie in the repository's top-level folders;
the links beside this file are for type checkers and editors.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitalring.tools.simulate.api import simulate as simulate

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Load `simulate` only when it is asked for: a device imports this package too."""
    if name == "simulate":
        from vitalring.tools.simulate.api import simulate  # noqa: PLC0415

        return simulate
    raise AttributeError(f"module 'vitalring' has no attribute {name!r}")
