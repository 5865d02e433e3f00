"""`vitalring agent`: a device's part."""

import argparse
import json
from pathlib import Path

from vitalring.config import load_config
from vitalring.edge_agent.config import AgentConfig
from vitalring.edge_agent.keyring import Keyring
from vitalring.edge_agent.main import run_agents
from vitalring.edge_agent.status import status
from vitalring.errors import ConfigError
from vitalring.tools import mark, predict
from vitalring.tools.commands.services import add_parent_option, stop_on_signals


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    actions = parser.add_subparsers(dest="action", required=True)
    run_parser = actions.add_parser("run", help="take part in a study until stopped")
    add_parent_option(run_parser)
    run_parser.add_argument(
        "--config",
        type=Path,
        action="append",
        required=True,
        help="agent.toml of the device; repeated for the virtual devices of a simulation",
    )

    predict_parser = actions.add_parser(
        "predict", help="predict windows with the model that the device has in use"
    )
    predict.add_arguments(predict_parser)

    mark.add_arguments(actions.add_parser("mark", help="label what the wearer feels"))

    status_parser = actions.add_parser("status", help="say what a device did and spent")
    status_parser.add_argument("--config", type=Path, required=True, help="agent.toml")

    erase_parser = actions.add_parser(
        "erase-key", help="erase the ring key of an epoch that is over, for good"
    )
    erase_parser.add_argument("--config", type=Path, required=True, help="agent.toml")
    erase_parser.add_argument("--epoch", type=int, required=True, help="number of the epoch")
    erase_parser.add_argument("--yes", action="store_true", help="yes, the key is to be erased")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    if options.action == "status":
        print(json.dumps(status(load_config(AgentConfig, options.config)), indent=2))
        return 0
    if options.action == "predict":
        return predict.run(options)
    if options.action == "mark":
        return mark.run(options)
    if options.action == "erase-key":
        config = load_config(AgentConfig, options.config)
        return _erase_key(Keyring(config.ring_keys), options.epoch, meant=options.yes)
    configs = [load_config(AgentConfig, path) for path in options.config]
    run_agents(configs, stop_on_signals(options))
    return 0


def _erase_key(keys: Keyring, epoch: int, *, meant: bool) -> int:
    path = keys.path(epoch)
    if not meant:
        raise ConfigError(
            f"{path} cannot be restored: the device takes no further part under it, and its "
            "updates can no longer be claimed; if that is meant, give --yes"
        )
    keys.erase(epoch)
    print(f"{path}: erased, as far as this disk forgets; nobody can tell any more which")
    print("  updates were made with it. Erase copies and backups of it too.")
    return 0
