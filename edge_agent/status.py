"""What a person wants to know of a device: rounds, outbox, privacy budget, model and sensors."""

from contextlib import closing
from dataclasses import asdict
from typing import Any

from vitalring.database import is_made, open_read_only
from vitalring.edge_agent import accountant, model_in_use, rosters, state
from vitalring.edge_agent.budget import Budget
from vitalring.edge_agent.config import AgentConfig
from vitalring.edge_agent.sensing.status import sensing_status
from vitalring.edge_agent.spending import by_class
from vitalring.errors import ConfigError


def status(config: AgentConfig) -> dict[str, Any]:
    """Return rounds by outcome, updates that wait, and epsilon spent by class of data.

    With the model in use, and of a device with a live sensor the windows by label and counts.
    Opens the state for reading only, beside a running agent. Raises
    ConfigError where there is no state, PrivacyError where the budget is damaged.
    """
    path = config.state_dir / "agent.sqlite"
    if not is_made(path):
        raise ConfigError(f"{path} does not exist: the agent has not run yet")
    with closing(open_read_only(path)) as db:
        rounds = dict(db.execute("SELECT status, COUNT(*) FROM rounds GROUP BY status").fetchall())
        known, roster = state.known_checkpoint(db), rosters.known(db, config.cohort)
        entries = Budget(db).entries()
        sensing = config.sensing
        return {
            "rounds": rounds,
            "waiting": [
                {"round": pending.round, "attempts": pending.attempts}
                for pending in state.outbox(db)
            ],
            "log": {"entries": known.size, "root": known.root.hex()} if known else None,
            # To be compared outside the gateway, with a hospital or another device.
            "roster": {**asdict(roster), "digest": roster.digest.hex()} if roster else None,
            "privacy": {
                "classes": [
                    asdict(each) for each in by_class(entries, config, accountant.epsilon_in_child)
                ],
                "delta": config.floors.delta,
            },
            "model": model_in_use.describe(config.state_dir),
            **({"sensing": sensing_status(sensing, config.state_dir)} if sensing else {}),
        }
