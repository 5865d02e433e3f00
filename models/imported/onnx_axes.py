"""ONNX nodes that move, add, drop or join axes."""

from typing import Any

import numpy as np

from vitalring.models.imported.onnx_chain import CURE, ONE, WINDOW, Axis, Chain, called, settings_of
from vitalring.models.imported.parts import Flatten


def nothing(_chain: Chain, _node: Any) -> None:  # noqa: ANN401
    """Stand for a node that does nothing when a network is used."""


def transpose(chain: Chain, node: Any) -> None:  # noqa: ANN401
    """Read Transpose; the batch must stay first."""
    perm = settings_of(node).get("perm") or list(range(len(chain.axes)))[::-1]
    chain.axes = [chain.axes[place] for place in perm]
    if chain.axes[0].name != "n":
        chain.refuse(node, "moves the batch", "leave the batch first")


def squeeze(chain: Chain, node: Any) -> None:  # noqa: ANN401
    """Read Squeeze."""
    axes = chain.given_axes(node)
    axes = axes or [i for i, axis in enumerate(chain.axes) if axis.length == 1 and i]
    gone = {axis % len(chain.axes) for axis in axes}
    if any(chain.axes[place].length != 1 or place == 0 for place in gone):
        chain.refuse(node, "drops an axis longer than 1", CURE)
    chain.axes = [axis for place, axis in enumerate(chain.axes) if place not in gone]
    chain.settle()


def unsqueeze(chain: Chain, node: Any) -> None:  # noqa: ANN401
    """Read Unsqueeze."""
    axes = chain.given_axes(node)
    total = len(chain.axes) + len(axes)
    for place in sorted(axis % total for axis in axes):
        chain.axes.insert(place, Axis(ONE, 1))


def flatten(chain: Chain, node: Any) -> None:  # noqa: ANN401
    """Read Flatten from axis 1 on."""
    if settings_of(node).get("axis", 1) != 1:
        chain.refuse(node, "flattens another axis than the first", "flatten from axis 1 on")
    _flatten(chain, node)


def reshape(chain: Chain, node: Any) -> None:  # noqa: ANN401
    """Read Reshape: moved ones, a flatten, or channels in groups and back."""
    if len(node.input) < 2 or node.input[1] not in chain.constants:
        chain.refuse(
            node, "takes its shape from the data", "export with fixed lengths, or simplify it"
        )
    lengths = [axis.length for axis in chain.axes]
    wanted = [int(n) for n in chain.constants[node.input[1]]]
    wanted = [lengths[i] if n == 0 and i < len(lengths) else n for i, n in enumerate(wanted)]
    # The batch is 1 here; an exporter may have written it as -1.
    rest = int(np.prod(lengths[1:]))
    after = list(wanted[1:])
    if after.count(-1) == 1 and wanted[0] != -1:
        known = int(np.prod([n for n in after if n != -1]))
        after = [rest // known if n == -1 else n for n in after]
    if -1 in after or int(np.prod(after)) != rest:
        chain.refuse(node, f"makes {wanted} of {lengths}", "keep the batch apart")
    long = [axis for axis in chain.axes[1:] if axis.length != 1]
    if [n for n in after if n != 1] == [axis.length for axis in long]:
        left = iter(long)
        chain.axes = [chain.axes[0], *(Axis(ONE, 1) if n == 1 else next(left) for n in after)]
        chain.settle()
    elif after == [rest]:
        _flatten(chain, node)
    elif chain.ungrouped and after == [axis.length for axis in chain.ungrouped[1:]]:
        chain.axes, chain.ungrouped = chain.ungrouped, []
    elif len(after) == 2 and _groups(chain, after[0]):
        # Groups of channels, as exporters write a group normalisation.
        chain.ungrouped = chain.axes
        chain.axes = [chain.axes[0], Axis("group", after[0]), Axis("rest", after[1])]
    else:
        chain.refuse(node, f"makes {after} of {lengths[1:]}", "only flatten or move axes")


def _flatten(chain: Chain, node: Any) -> None:  # noqa: ANN401
    long = [axis for axis in chain.axes[1:] if axis.name != ONE]
    if len(long) == 2:
        if long[0].name in WINDOW:
            chain.resolve(long[1].name, "c")
        first = next(axis for axis in chain.axes[1:] if axis.name in ("t", "c"))
        chain.parts.append(Flatten(called(node), channels_first=first.name == "c"))
        total = long[0].length * long[1].length
    else:
        total = int(np.prod([axis.length for axis in long]))
    chain.axes = [chain.axes[0], Axis("f", total)]


def _groups(chain: Chain, groups: int) -> bool:
    """Tell whether channels can be grouped, as exporters write a group normalisation."""
    return len(chain.axes) == 3 and chain.named(1, "c") and chain.axes[1].length % groups == 0
