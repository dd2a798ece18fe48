"""The picture in docs/benchmarks.rst: for each row with a goal, the factor by which it beats its peer, and the goal.

Rows are left out whose goal is to use no more processor time than the peer: they are many, and their bars are short.
"""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

#: Okabe and Ito's palette, which is distinguishable with any kind of colour vision.
REACHED, MISSED, GOAL = "#0072B2", "#E69F00", "#000000"
TITLE = "rioecho: how many times as good as its peer, socket.makefile unless another is named; black: the goal"


def draw(results: dict[str, dict[str, Any]], path: str) -> None:
    """Write the picture as PNG or SVG, according to the suffix of ``path``."""
    shown = {
        name: result
        for name, result in results.items()
        if result.get("goal") and "ratio" in result and (result["of"], result["goal"]) != ("cpu", 1.0)
    }
    figure = Figure(figsize=(8, 0.8 + 0.3 * max(len(shown), 1)), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for place, result in enumerate(shown.values()):
        times, goal = (better(value, result["unit"]) for value in (result["ratio"], result["goal"]))
        colour = REACHED if result["verdict"] == "ok" else MISSED
        # Bars begin at 1, equal to the peer; better is to the right.
        axes.barh(place, times - 1, left=1, height=0.62, color=colour)
        axes.plot([goal, goal], [place - 0.42, place + 0.42], color=GOAL, linewidth=2)
        axes.annotate(
            f"{times:.0f}x" if times >= 10 else f"{times:.2f}x",
            (max(times, goal, 1), place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 5, 10, 20, 50], ["as good", "2x", "5x", "10x", "20x", "50x"])
    axes.minorticks_off()
    left, right = axes.get_xlim()
    axes.set_xlim(min(left, 0.8), max(right * 1.4, 4))
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.axvline(1, color="#888888", linewidth=1)
    axes.set_yticks(range(len(shown)), list(shown), fontsize=9)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.grid(visible=True, axis="x", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    figure.suptitle(TITLE, x=0.01, ha="left", fontsize=10)
    figure.savefig(path, dpi=160)


def better(ratio: float, unit: str) -> float:
    """Return the factor of improvement: the ratio of rates, the inverse ratio of times and bytes."""
    return ratio if unit == "/s" else 1 / ratio
