"""Charts of the report, as inline SVG. Same values, same bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

_COLORS = ("#1f5f8b", "#c8553d", "#2e8b57", "#8e5ea2", "#c99a2e", "#3aa6b9", "#7a7f87", "#b0478a", "#5b7f2b", "#444c99")
_NOT_LOSSES = {"stage", "step", "rate", "learning_rate"}
_STYLE: Any = {
    "svg.hashsalt": "report",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.edgecolor": "#c5ccd5",
    "axes.labelcolor": "#5b6777",
    "xtick.color": "#5b6777",
    "ytick.color": "#5b6777",
    "path.simplify": True,
}


def loss_charts(curve: Sequence[Mapping[str, Any]]) -> dict[str, Markup]:
    """One chart of all losses for each stage.

    Args:
        curve: lines with ``stage``, ``step`` and losses by name.

    Returns:
        SVG by the stage's title.
    """
    stages = dict.fromkeys(str(line.get("stage", "training")) for line in curve)
    return {
        f"Stage {stage}" if stage.isdigit() else stage.replace("_", " ").capitalize(): _chart(
            [line for line in curve if str(line.get("stage", "training")) == stage]
        )
        for stage in stages
    }


def _chart(lines: Sequence[Mapping[str, Any]]) -> Markup:
    names = dict.fromkeys(
        name for line in lines for name, v in line.items() if name not in _NOT_LOSSES and isinstance(v, (int, float))
    )
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 3.6))
        axes = figure.add_subplot()
        for number, name in enumerate(names):
            told = [(line["step"], line[name]) for line in lines if name in line and line[name] > 0]
            if not told:
                continue
            steps, values = np.array(told, float).T
            color = _COLORS[number % len(_COLORS)]
            axes.plot(steps, values, color=color, linewidth=0.6, alpha=0.25)
            axes.plot(steps, _smoothed(values), color=color, linewidth=1.5, label=name.replace("_", " "))
        axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}".replace(",", "\u202f")))
        axes.grid(True, which="major", color="#e9edf2", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(
                loc="upper left", bbox_to_anchor=(1.0, 1.02), frameon=False, labelcolor="#1b2430", handlelength=1.2
            )
        out = io.BytesIO()
        figure.savefig(out, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
    text = out.getvalue().decode()
    return Markup(text[text.index("<svg") :])


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over a window of a thirtieth of the curve, in the logarithm."""
    width = max(1, len(values) // 30)
    if width == 1:
        return values
    padded = np.pad(np.log(values), (width // 2, width - 1 - width // 2), mode="edge")
    return np.exp(np.convolve(padded, np.full(width, 1 / width), mode="valid"))
