"""Build every network's artefact and export table. Needs TensorFlow.

python -m vitalring.models.build FOLDER
"""

import sys
from pathlib import Path

from vitalring.models.convert import build_artefact, sizing_of, write_artefact
from vitalring.models.registry import NETWORKS, build
from vitalring.models.trace import trace


def main() -> int:
    """Build into the folder that the command line names."""
    if len(sys.argv) != 2:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    folder = Path(sys.argv[1])
    for name in NETWORKS:
        network = build(name)
        artefact = build_artefact(network, export=trace(network).to_json())
        write_artefact(artefact, folder, sizing_of(network) if network.sized else None)
        sys.stdout.write(f"{name}: {len(artefact.model)} bytes, {artefact.info.sha256}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
