"""The plots of rioecho-bench: their axes and curves, and the format of the files."""

import json
import math
import os
import struct
import sys
from types import SimpleNamespace

import pytest

from rioecho.server import EchoServer
from support.loads import LATENCY, RUN
from support.peers import Command

pytest.importorskip("matplotlib", reason="the extra 'bench' is not installed")
from rioecho.cli import plots

MODULE = "rioecho.cli.bench"


class Latencies:
    """A histogram of the values 1, 2, ... n, listed as HdrHistogram lists them."""

    def __init__(self, n, factor=1.0):
        self.count = n
        self.max = n * factor
        self._factor = factor

    def percentiles(self):
        for i in range(0, self.count, 10):
            yield i * self._factor, 100 * i / self.count, i
        yield self.max, 100.0, self.count


def result(*, rate_asked=None, count=1000, samples=((0.5, 9_000.0, 80.0), (1.0, 11_000.0, 90.0))):
    run = RUN | {"rate_asked": rate_asked, "messages": count}
    return SimpleNamespace(
        to_json=lambda: run,
        histogram=Latencies(count, 20.0),
        histogram_uncorrected=Latencies(count),
        samples=list(samples),
    )


@pytest.fixture(scope="module", autouse=True)
def _fonts():
    """Draw a plot before the tests: Matplotlib keeps its font files open from the first plot on."""
    plots.prepare()
    plots.draw_run(result(rate_asked=5.0)).canvas.draw()


@pytest.fixture
def address():
    with EchoServer() as running:
        host, port = running.addresses[0]
        yield f"{host}:{port}"


def points(line):
    return list(zip(map(float, line.get_xdata()), map(float, line.get_ydata()), strict=True))


def labels(axis, locations):
    return [axis.get_major_formatter()(each, None) for each in locations]


def written(path):
    """Check the format of the plot at ``path``. Returns its width and height in pixels, or None for an SVG file."""
    data = path.read_bytes()
    if path.suffix == ".svg":
        assert data.startswith(b"<?xml")
        assert b"<svg " in data
        return None
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", data[16:24])


@pytest.mark.long
def test_the_percentile_axis_spaces_the_nines_equally():
    latency, _ = plots.draw_run(result(count=90_000)).axes
    assert (latency.get_xscale(), latency.get_yscale()) == ("log", "log")
    assert labels(latency.xaxis, latency.get_xticks()) == [
        "0%",
        "50%",
        "90%",
        "99%",
        "99.9%",
        "99.99%",
    ]
    curve = points(latency.get_lines()[0])
    assert curve[0][0] == 1.0
    assert curve[-1] == (90_000.0, 1_800_000.0)  # the maximum of n values, at 1 / n
    assert curve == sorted(curve)
    assert len(curve) <= plots.POINTS + 1


@pytest.mark.long
def test_the_labels_of_a_long_percentile_axis_do_not_overlap():
    run = RUN | {"messages": 5_000_000}
    latency = plots.draw_comparison([("a", run)]).axes[0]
    assert labels(latency.xaxis, latency.get_xticks())[:2] == ["50%", "90%"]
    assert labels(latency.xaxis, latency.get_xticks())[-1] == "99.9999%"


def test_latency_labels_have_units():
    latency, _ = plots.draw_run(result()).axes
    assert labels(latency.yaxis, [1, 50, 1000, 20_000, 1e6]) == ["1 µs", "50 µs", "1 ms", "20 ms", "1 s"]


@pytest.mark.parametrize("high", [100.1, 1000.0, 1e6])
def test_the_latency_axis_has_several_labels_for_any_range(high):
    run = RUN | {"latency_us": dict.fromkeys(LATENCY, 100.0) | {"max": high}}
    figure = plots.draw_comparison([("a", run), ("b", run)])
    latency = figure.axes[0]
    low, top = latency.get_ylim()
    assert low < 100.0 < high < top
    assert len([tick for tick in latency.get_yticks() if low <= tick <= top]) >= 3


def test_a_closed_loop_has_one_curve_and_an_open_loop_two_and_the_requested_rate():
    latency, rate = plots.draw_run(result()).axes
    assert len(latency.get_lines()) == 1
    assert latency.get_legend() is None
    assert [points(line) for line in rate.get_lines()] == [[(0.0, 9_000.0), (0.5, 9_000.0), (1.0, 11_000.0)]]
    assert rate.get_ylim()[0] == 0

    latency, rate = plots.draw_run(result(rate_asked=20_000.0)).axes
    assert [text.get_text() for text in latency.get_legend().get_texts()] == [
        "corrected: since due",
        "uncorrected: since sent",
    ]
    corrected, uncorrected = (points(line) for line in latency.get_lines())
    assert corrected[-1] == (1000.0, 20_000.0)
    assert uncorrected[-1] == (1000.0, 1000.0)
    assert "requested: 20,000/s" in [text.get_text() for text in rate.get_legend().get_texts()]
    assert rate.get_ylim()[1] > 20_000


@pytest.mark.slow
@pytest.mark.parametrize("samples", [[], [(0.01, 5.0, 1.0)]])
def test_a_run_with_few_or_no_messages_can_be_drawn(samples, tmp_path):
    path = tmp_path / "run.png"
    for count in (0, 1, 2):
        plots.save(plots.draw_run(result(count=count, samples=samples)), str(path))
        assert written(path)


def test_a_comparison_has_a_line_and_a_bar_for_each_run():
    slower = RUN | {"rate": 5_000.0, "latency_us": {name: 2 * us for name, us in LATENCY.items()}}
    latency, rate = plots.draw_comparison([("before", RUN), ("_after $x$", slower)]).axes
    assert [len(points(line)) for line in latency.get_lines()] == [5, 5]
    for x, (percentile, us) in zip(
        points(latency.get_lines()[0]), [(50, 33.0), (90, 52.0), (99, 99.0), (99.9, 1200.0)], strict=False
    ):
        assert math.isclose(x[0], 100 / (100 - percentile))
        assert x[1] == us
    assert [text.get_text().strip("\N{ZERO WIDTH SPACE}") for text in latency.get_legend().get_texts()] == [
        "before",
        r"_after \$x\$",
    ]
    assert [patch.get_width() for patch in rate.patches] == [10_000.0, 5_000.0]
    assert {text.get_text() for text in rate.texts} == {"10,000", "5,000"}
    assert rate.yaxis_inverted()  # the first run is at the top, as in the table


def test_more_runs_than_colours_have_distinct_lines():
    latency, _ = plots.draw_comparison([(f"run {i}", RUN) for i in range(10)]).axes
    styles = {(line.get_color(), line.get_linestyle()) for line in latency.get_lines()}
    assert len(styles) == 10


@pytest.mark.long
@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["run.png", "run.svg", "run.PNG"])
def test_the_suffix_selects_the_format_and_the_width_is_twice_that_of_a_readme(name, tmp_path):
    path = tmp_path / name
    plots.save(plots.draw_run(result(rate_asked=5.0)), str(path))
    size = written(path)
    assert size is None or 1600 <= size[0] <= 2000


@pytest.mark.long
@pytest.mark.sampled(1)
@pytest.mark.parametrize(("name", "options"), [("run.png", ()), ("run.svg", ("--rate", "2000"))])
def test_the_command_draws_a_run(address, tmp_path, name, options):
    path = tmp_path / name
    with Command(MODULE, address, "-d", "0.4", "-c", "4", *options, "--plot", path) as bench:
        assert bench.status() == 0, bench.err.text
        assert "rate" in bench.out.text
    written(path)


@pytest.mark.long
@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "name", [r"$\frac$", "\u6e2c\u8a66", os.fsdecode(b"\xff")], ids=["dollars", "no glyph", "no text"]
)
def test_the_title_shows_the_target_literally(name, tmp_path):
    if not sys.platform.startswith("linux") and not name.isprintable():
        pytest.skip("this system has no such file names")
    made = result()
    made.to_json().update(target=f"unix:{name}")
    figure = plots.draw_run(made)
    plots.save(figure, str(tmp_path / "x.png"))
    shown = f"unix:{name}" if name.isprintable() else repr(f"unix:{name}")
    assert figure.get_suptitle().startswith(f"{shown}: 50 connections")
    assert written(tmp_path / "x.png")


@pytest.mark.slow
def test_the_user_s_matplotlib_settings_do_not_affect_the_plot(tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.size: banana\n")
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(RUN))
    arguments = ("compare", tmp_path / "a.json", tmp_path / "b.json", "--plot", tmp_path / "x.png")
    environment = {"MPLBACKEND": "none such", "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "PATH": ""}
    with Command(MODULE, *arguments, environment=environment) as bench:
        assert bench.status() == 0, bench.err.text
        assert bench.err.text == ""
    assert written(tmp_path / "x.png")


@pytest.mark.slow
def test_the_command_draws_a_comparison(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(RUN))
    path = tmp_path / "both.png"
    with Command(MODULE, "compare", tmp_path / "a.json", tmp_path / "b.json", "--plot", path) as bench:
        assert bench.status() == 0, bench.err.text
        assert "1.00x" in bench.out.text
        assert bench.err.text == ""
    assert written(path)
