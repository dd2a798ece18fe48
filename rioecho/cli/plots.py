"""The plots of rioecho-bench: latency by percentile beside the rate, for one run or several.

The drawing functions import Matplotlib, without pyplot: no window is opened and no state is shared between figures.
Percentiles use HdrHistogram's logarithmic axis, on which 90%, 99%, 99.9% and so on are equally spaced. A plot is sized
for the width of a README, about 800 pixels.
"""

from __future__ import annotations

import argparse
import logging
import os
import warnings

from rioecho.cli import USAGE_ERROR, complain, leave, reason
from rioecho.cli.tables import LATENCIES, number, setting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from matplotlib.axes import Axes as _Axes
    from matplotlib.figure import Figure as _Figure

    from rioecho.bench import Histogram, Result
    from rioecho.cli.tables import Run

SUFFIXES = (".png", ".svg")
#: Okabe and Ito's palette, which is distinguishable with any kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
#: Maximum number of points of a line; a curve with more percentiles is thinned out.
POINTS = 2000


def picture(text: str) -> str:
    """Convert an argument to the name of a plot's file."""
    if os.path.splitext(text)[1].lower() not in SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text!r} ends neither in .png nor in .svg")
    return text


def refuse_undrawable(prog: str, plot: str | None) -> None:
    """Exit with a usage error if a plot is requested and Matplotlib is not installed, or cannot be used."""
    if plot is None:
        return
    try:
        prepare()
    except ImportError:
        complain(prog, "--plot needs Matplotlib: pip install 'rioecho[bench]'")
        leave(USAGE_ERROR)
    except OSError as error:
        # Without a writable directory for its cache it tries the temporary one, and fails if there is none either.
        complain(
            prog, f"--plot: {reason(error)}; Matplotlib needs a directory it can write to: set MPLCONFIGDIR to one"
        )
        leave(USAGE_ERROR)


def prepare() -> None:
    """Import Matplotlib without the user's settings. Raises ``ImportError`` if it is missing or does not work."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # hide its warnings about caches and fonts
    os.environ.pop("MPLBACKEND", None)  # an unknown backend would be an error
    import matplotlib.backends.backend_agg
    import matplotlib.backends.backend_svg
    import matplotlib.figure

    matplotlib.rcdefaults()


def draw_run(result: Result) -> _Figure:
    """Draw one run: the latency (corrected and uncorrected in an open loop) and the rate over time."""
    run = result.to_json()
    figure, latency, rate = _figure()
    figure.suptitle(setting(run), x=0.01, ha="left", fontsize=10, parse_math=False)
    asked = run["rate_asked"]
    curves = [_curve(_all_percentiles(result.histogram), result.histogram.count)]
    _percentile_line(latency, curves[0], COLOURS[0], "corrected: since due" if asked else None)
    if asked:
        curves.append(_curve(_all_percentiles(result.histogram_uncorrected), result.histogram_uncorrected.count))
        _percentile_line(latency, curves[1], COLOURS[1], "uncorrected: since sent", dashed=True)
        latency.legend(loc="upper left", frameon=False)
    _latency_axes(latency, curves)

    # A sample covers the time up to it, so the first one begins at 0.
    times = [0.0, *(elapsed for elapsed, _, _ in result.samples)]
    rates = [value for _, value, _ in result.samples]
    rates = [*rates[:1], *rates] or [0.0]
    rate.plot(times, rates, color=COLOURS[0], linewidth=1.6, label="achieved" if asked else None)
    rate.fill_between(times, rates, color=COLOURS[0], alpha=0.15, linewidth=0)
    if asked:
        rate.axhline(asked, color=COLOURS[1], linestyle="--", linewidth=1.4, label=f"requested: {number(asked)}/s")
        rate.legend(loc="lower right", frameon=False)
    rate.set_title("messages per second", fontsize=10)
    rate.set_xlabel("seconds")
    rate.set_ylim(0, (max([*rates, asked or 0.0]) or 1.0) * 1.15)
    rate.set_xlim(0, max([*times, 0.1]))
    rate.yaxis.set_major_formatter(_short)
    return figure


def draw_comparison(runs: Sequence[tuple[str, Run]]) -> _Figure:
    """Draw several runs: for each a line through the percentiles in its file, and a bar for its rate."""
    figure, latency, rate = _figure()
    curves = [_curve(_held_percentiles(run), run["messages"]) for _, run in runs]
    for index, ((name, _), curve) in enumerate(zip(runs, curves, strict=True)):
        dashed = index >= len(COLOURS)  # the colours repeat
        _percentile_line(latency, curve, COLOURS[index % len(COLOURS)], _plain(name), marked=True, dashed=dashed)
    latency.legend(loc="upper left", frameon=False)
    _latency_axes(latency, curves)

    for index, (_, run) in enumerate(runs):
        value = run["rate"]
        rate.barh(index, value, height=0.6, color=COLOURS[index % len(COLOURS)])
        rate.annotate(number(value), (value, index), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
    rate.set_yticks(range(len(runs)), [_plain(_shortened(name)) for name, _ in runs])
    rate.invert_yaxis()
    rate.set_xlim(0, (max((run["rate"] for _, run in runs), default=0.0) or 1.0) * 1.25)
    rate.xaxis.set_major_formatter(_short)
    rate.locator_params(axis="x", nbins=4)
    rate.set_title("messages per second", fontsize=10)
    rate.grid(visible=False, axis="y")
    return figure


def save(figure: _Figure, path: str) -> None:
    """Write the figure as PNG or SVG, according to the suffix of ``path``."""
    kind = os.path.splitext(path)[1].lower().removeprefix(".")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a character that the font lacks is drawn as a box
        figure.savefig(path, format=kind, dpi=200)


def _figure() -> tuple[_Figure, _Axes, _Axes]:
    """Return an empty figure and its left and right axes."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True}):
        figure = Figure(figsize=(9, 3.9), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for axes in (left, right):
        axes.grid(visible=True, color="#dddddd", linewidth=0.8)
        axes.tick_params(labelsize=9)
    return figure, left, right


def _curve(percentiles: Iterable[tuple[float, float]], count: int) -> list[tuple[float, float]]:
    """Return points of 1 / (1 - quantile) and latency, the latter at least 0.1 us for the logarithmic axis.

    The maximum of ``count`` values, whose quantile is 1, is placed at the quantile 1 - 1 / ``count``.
    """
    last = max(float(count), 10.0)
    points = [(min(last, 100 / (100 - p)) if p < 100 else last, max(us, 0.1)) for p, us in percentiles]
    if len(points) > POINTS:
        step = len(points) // POINTS + 1
        points = [*points[:-1:step], points[-1]]
    return points


def _all_percentiles(histogram: Histogram) -> list[tuple[float, float]]:
    return [(percentile, us) for us, percentile, _ in histogram.percentiles()] if histogram.count else []


def _held_percentiles(run: Run) -> list[tuple[float, float]]:
    latency = run["latency_us"]
    names = [name for name in LATENCIES if name.startswith("p")]
    held = [(float(name[1:]), latency[name]) for name in names] + [(100.0, latency["max"])]
    return [(p, us) for p, us in held if us is not None]


def _percentile_line(
    axes: _Axes,
    points: Sequence[tuple[float, float]],
    colour: str,
    label: str | None,
    *,
    marked: bool = False,
    dashed: bool = False,
) -> None:
    axes.plot(
        [x for x, _ in points],
        [us for _, us in points],
        color=colour,
        label=label,
        linewidth=1.8,
        linestyle="--" if dashed else "-",
        marker="o" if marked else None,
        markersize=4,
    )


def _latency_axes(axes: _Axes, curves: Iterable[list[tuple[float, float]]]) -> None:
    """Set the scales, ticks and limits of the axes for the curves."""
    from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator

    points = [point for curve in curves for point in curve] or [(10.0, 1.0)]
    values = [us for _, us in points]
    last = max(x for x, _ in points)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(1, last * 1.1)
    ends = [1, 2] if last < 1e5 else [2]  # on a long axis the labels of 0% and 50% would overlap
    axes.xaxis.set_major_locator(FixedLocator([*ends, *(10**n for n in range(1, 10) if 10**n <= last * 1.1)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(_percentile)
    # Show at least a decade, so that small variations do not look large, and leave room for the legend above the lines.
    low, high = min(values), max(values)
    widen = max(1.0, 10 / (high / low)) ** 0.5
    low, high = low / widen / 1.2, high * widen * 1.2
    legend = axes.get_legend()
    share = min(0.35, 0.02 + 0.075 * len(legend.get_texts())) if legend else 0.0
    axes.set_ylim(low, high * (high / low) ** (share / (1 - share)))
    decades = high / low
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 200 else (1.0,)))
    axes.yaxis.set_major_formatter(_latency)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title("latency by percentile", fontsize=10)
    axes.set_xlabel("percentile")


def _percentile(x: float, _: object = None) -> str:
    if x <= 1:
        return "0%"
    # For x a power of ten, 100 - 100 / x has as many nines as x has zeros.
    return f"{100 - 100 / x:.10g}%"


def _latency(us: float, _: object = None) -> str:
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if us >= size:
            return f"{us / size:g} {unit}"
    return f"{us:g} µs"


def _short(value: float, _: object = None) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _plain(name: str) -> str:
    """Escape a file name for use as a label: $...$ would be mathematics, and a leading _ hides it from the legend."""
    name = name.replace("$", r"\$")
    return f"\N{ZERO WIDTH SPACE}{name}" if name.startswith("_") else name


def _shortened(name: str, longest: int = 14) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
