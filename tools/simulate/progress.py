"""Live progress on a terminal, plain lines where output is piped."""

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from vitalring.tools.simulate.watch import RoundResult, Standing


class Display:
    """Shows rounds as they go. With a pipe there is no bar and one line a round."""

    def __init__(self, console: Console, rounds: int) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=rounds)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def standing(self, now: Standing | None) -> None:
        """Show what the open round does."""
        if now is not None:
            what = f"round {now.round}: {now.admitted} updates"
            self._bar.update(self._task, description=what)

    def finished(self, result: RoundResult, rounds: int) -> None:
        """Show a finished round of `rounds`."""
        report, evaluation = result.report, result.model.evaluation
        self._bar.update(self._task, completed=report.round)
        text = f"round {report.round:>3}/{rounds}  {report.admitted}/{report.expected} updates"
        if evaluation is not None:
            text += f"  accuracy {evaluation.accuracy:.3f}  macro-F1 {evaluation.macro_f1:.3f}"
        if report.status != "summed":
            text += "  below min_cohort: no sum, model unchanged"
        if report.refused:
            refusals = ", ".join(f"{reason} {count}" for reason, count in report.refused.items())
            text += f"  refused: {refusals}"
        self.say(text + f"  {(report.closed_ms - report.opened_ms) / 1000:.1f} s")

    def comparing(self, what: str, done: int, total: int) -> None:
        """Show how far a comparison has come."""
        self._bar.update(self._task, description=what, completed=done, total=total)
