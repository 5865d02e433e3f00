"""Place axes and words by inches from the top left corner, so that paper keeps its scale."""

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vitalring.tools.drawing import GREY, INK

MAX_NAME = 22
"""Longest name of a class or channel that a picture has room for."""


@dataclass(frozen=True)
class Sheet:
    """A figure whose places are counted in inches."""

    figure: Figure
    width: float
    height: float

    @classmethod
    def of(cls, width: float, height: float) -> "Sheet":
        """Return an empty sheet."""
        return cls(Figure(figsize=(width, height)), width, height)

    def box(
        self, left: float, top: float, width: float, height: float
    ) -> tuple[float, float, float, float]:
        """Return a place in the figure's own coordinates."""
        bottom = self.height - top - height
        return (
            left / self.width,
            bottom / self.height,
            width / self.width,
            height / self.height,
        )

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Add axes."""
        return self.figure.add_axes(self.box(left, top, width, height))

    def head(self, left: float, top: float, title: str, note: str = "") -> None:
        """Write a title, and a note below it."""
        x, y, _, _ = self.box(left, top, 0.0, 0.0)
        self.figure.text(x, y, title, fontsize=10.5, fontweight="bold", color=INK, va="bottom")
        if note:
            step = 0.17 / self.height
            self.figure.text(x, y - step, note, fontsize=8.5, color=GREY, va="bottom")
