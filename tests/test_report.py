"""The presentation of an evaluation: figures, pictures of the navigation world, videos and the page."""

import itertools
import os
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from numpy.typing import NDArray

from poise.data.video import write_video
from poise.envs import Map, Navigate, demonstrate
from poise.envs.pictures import FAILURE, ROUTES, denoising_figure, integrate, routes_figure
from poise.evaluation.plots import success_figure, tradeoff_figure, training_figure
from poise.evaluation.report import Section, Table, write_report

MAP = Map()
HOSTILE = "<script src='https://evil.example/x.js'>alert(\"1\")</script> & <b>"
VOID = {"meta", "img", "source", "br", "hr", "link", "input"}

POLICIES = {
    "diffusion": {"success": 0.95, "success_low": 0.9, "success_high": 0.98, "collision": 0.05, "mode_entropy": 0.97},
    "regression": {"success": 0.25, "success_low": 0.2, "success_high": 0.31, "collision": 0.7, "mode_entropy": None},
}
ROWS = [
    {
        "sampler": sampler,
        "evaluations": n,
        "success": 0.5 + 0.01 * n,
        "success_low": 0.45 + 0.01 * n,
        "success_high": 0.53 + 0.01 * n,
        "plan_ms_median": 0.5 * n,
        "plan_ms_p95": 0.7 * n,
    }
    for sampler, n in itertools.product(("DDIM", "Heun"), (20, 2, 10))
]


class Page(HTMLParser):
    """Every element with its attributes; fails on tags that do not balance."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"{tag} repeats an attribute"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def lines_of(figure: Figure, panel: int) -> list[LineCollection]:
    return [artist for artist in figure.axes[panel].collections if isinstance(artist, LineCollection)]


def test_success_bars_are_as_long_as_success_and_their_errors_span_the_interval() -> None:
    figure = success_figure(POLICIES)
    success, collision, entropy = figure.axes
    tracks, bars, *intervals = success.containers
    assert [bar.get_width() for bar in tracks] == [1, 1]
    assert [bar.get_width() for bar in bars] == [0.95, 0.25]
    spans = [interval.lines[2][0].get_segments()[0][:, 0] for interval in intervals]
    np.testing.assert_allclose(spans, [[0.9, 0.98], [0.2, 0.31]])
    assert [bar.get_width() for bar in collision.containers[1]] == [0.05, 0.7]
    assert [bar.get_width() for bar in entropy.containers[1]] == [0.97]
    assert {"Diffusion", "95.0 %", "90.0 – 98.0", "70.0 %", "0.97", "–"} <= set(texts(figure))


def test_tradeoff_has_a_sorted_line_a_sampler_and_the_periods_of_control() -> None:
    figure = tradeoff_figure(ROWS)
    success, cost = figure.axes
    assert [line.get_label() for line in success.lines] == ["DDIM", "Heun"]
    np.testing.assert_allclose(success.lines[0].get_xydata(), [[2, 0.52], [10, 0.6], [20, 0.7]])
    np.testing.assert_allclose(cost.lines[1].get_xydata(), [[2, 1], [10, 5], [20, 10]])
    assert [line.get_ydata()[0] for line in cost.lines[2:]] == pytest.approx([100, 1000 / 30])
    band = success.collections[0].get_paths()[0].vertices
    for point in ([2, 0.47], [2, 0.55], [20, 0.65], [20, 0.73]):
        assert np.isclose(band, point).all(axis=1).any()
    assert success.get_xscale() == cost.get_xscale() == cost.get_yscale() == "log"
    assert success.get_ylim()[0] <= 0.47
    assert cost.get_ylim()[1] > 100
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["DDIM", "Heun"]


def test_training_smooths_without_bias_and_leaves_out_what_was_not_validated() -> None:
    metrics = [{"step": k, "loss": 2.0, "validation": 3.0 if k % 100 == 0 else None} for k in range(1, 301)]
    raw, smooth, validation = training_figure(metrics).axes[0].lines
    np.testing.assert_allclose(smooth.get_ydata(), 2.0)
    np.testing.assert_allclose(validation.get_xydata(), [[100, 3], [200, 3], [300, 3]])
    ramp = [{"step": k, "loss": 1.0 + k + 50 * (-1) ** k, "validation": None} for k in range(200)]
    raw, smooth = training_figure(ramp).axes[0].lines
    assert len(raw.get_ydata()) == 200
    np.testing.assert_allclose(smooth.get_ydata()[2:-2], 1.0 + np.arange(200)[2:-2], atol=0.6)


@pytest.mark.parametrize(
    ("draw", "rows"),
    [(success_figure, {}), (tradeoff_figure, []), (training_figure, [])],
    ids=["success", "sweep", "loss"],
)
def test_nothing_to_draw_says_so(draw: Callable[[Any], Figure], rows: Any) -> None:
    with pytest.raises(ValueError, match="got nothing to draw, expected at least one row"):
        draw(rows)


def test_a_missing_figure_is_named() -> None:
    with pytest.raises(ValueError, match=r"tradeoff_figure got a row with .*expected also \['plan_ms_p95'\]"):
        tradeoff_figure([{name: value for name, value in ROWS[0].items() if name != "plan_ms_p95"}])


def test_integrate_drives_as_navigate_steps() -> None:
    env = Navigate(3, Map(obstacles=(), half_width=3.0, half_height=3.0))
    observation, _ = env.reset(seed=5)
    generator = np.random.default_rng(0)
    for _ in range(4):
        observation, *_ = env.step(generator.uniform(-0.5, 1, (3, 2)))
    commands = 1.4 * generator.uniform(-1, 1, (3, 12, 2))
    path = integrate(observation["position"], observation["velocity"], commands)
    stepped = np.stack([env.step(commands[:, k])[0]["position"] for k in range(12)], axis=1)
    np.testing.assert_allclose(path, stepped, atol=2e-6)
    alone = integrate(observation["position"][1], observation["velocity"][1], commands[[1, 1]])
    np.testing.assert_allclose(alone, path[[1, 1]])


def test_integrate_rejects_shapes() -> None:
    with pytest.raises(ValueError, match=r"commands has shape \(4, 2\); expected \(P, T, 2\)"):
        integrate(np.zeros(2), np.zeros(2), np.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"velocity has shape \(3, 2\); expected \(2,\) or \(5, 2\)"):
        integrate(np.zeros(2), np.zeros((3, 2)), np.zeros((5, 4, 2)))


def test_demonstrations_have_the_colour_of_their_route() -> None:
    data = demonstrate(MAP, 24, 0, 0.1)
    ends = data["episode_ends"]
    paths = [data["position"][a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    figure = routes_figure(MAP, {"demonstrations": [(path, True) for path in paths]})
    drawn = lines_of(figure, 0)[0]
    # From the uppermost route to the lowest; bit k of a mode says that obstacle k is passed above.
    colours = dict(zip((0b111, 0b101, 0b100, 0b000), ROUTES, strict=True))
    assert set(data["mode"]) == set(colours)
    assert [to_hex(colour) for colour in drawn.get_colors()] == [colours[mode] for mode in data["mode"]]
    np.testing.assert_allclose(drawn.get_segments()[3], paths[3])
    assert figure.axes[0].get_title(loc="right") == "24 of 24 reach the goal"


def test_failures_are_red_and_end_in_a_cross() -> None:
    straight = np.linspace([-0.9, 0.0], [-0.46, 0.0], 9)
    over = np.array([[-0.9, 0.0], [-0.3, 0.4], [0.3, 0.6], [0.85, 0.0]])
    figure = routes_figure(MAP, {"a": [(straight, False), (over, True)], "b": [(over, True)], "c": []})
    solved, failed = lines_of(figure, 0)
    assert [to_hex(colour) for colour in solved.get_colors()] == [ROUTES[0]]
    assert [to_hex(colour) for colour in failed.get_colors()] == [FAILURE]
    (cross,) = figure.axes[0].lines
    assert (cross.get_marker(), cross.get_color()) == ("x", FAILURE)
    np.testing.assert_allclose(cross.get_xydata(), [[-0.46, 0.0]])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["A", "B", "C"]
    assert figure.axes[0].get_title(loc="right") == "1 of 2 reach the goal"


def test_a_crowd_is_thinned_but_counted() -> None:
    path = np.linspace([-0.9, 0.0], [0.8, 0.0], 3)
    figure = routes_figure(MAP, {"many": [(path, k % 5 > 0) for k in range(500)]})
    assert sum(len(lines.get_segments()) for lines in lines_of(figure, 0)) == 100
    assert figure.axes[0].get_title(loc="right") == "400 of 500 reach the goal"
    assert "At most 100" in str(figure.get_label())


def test_denoising_goes_from_noise_to_plans_in_six_panels_within_the_walls() -> None:
    generator = np.random.default_rng(0)
    up, down = (np.linspace([-0.7, 0.05 * s], [0.0, 0.3 * s], 16) for s in (1, -1))
    states = [(t, np.stack([up, down]) + 9 * t * generator.standard_normal((2, 16, 2))) for t in np.linspace(1, 0, 11)]
    figure = denoising_figure(MAP, states, np.array([-0.88, 0.0]), np.array([0.85, 0.0]))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["t = 1.00", "t = 0.80", "t = 0.60", "t = 0.40", "t = 0.20", "t = 0.00"]
    figure.draw_without_rendering()
    for panel, axes in enumerate(figure.axes):
        (lines,) = lines_of(figure, panel)
        assert [to_hex(colour) for colour in lines.get_colors()] == [ROUTES[0], ROUTES[2]]
        np.testing.assert_allclose(lines.get_segments()[0][0], [-0.88, 0.0])
        corners = axes.transData.inverted().transform(lines.get_clip_box().corners())
        np.testing.assert_allclose(np.abs(corners), [[MAP.half_width, MAP.half_height]] * 4)


def frames(count: int, height: int = 48, width: int = 64) -> list[NDArray[np.uint8]]:
    images = np.full((count, height, width, 3), 240, np.uint8)
    for k, image in enumerate(images):
        image[:, : width // 2] = (10 * k, 60, 200)
    return list(images)


@pytest.mark.parametrize(("size", "stored"), [((48, 64), (48, 64)), ((47, 63), (48, 64))], ids=["even", "odd"])
def test_a_video_reads_back(tmp_path: Path, size: tuple[int, int], stored: tuple[int, int]) -> None:
    av = pytest.importorskip("av", reason="PyAV is missing: pip install 'poise[video]'")
    write_video(tmp_path / "new" / "v.mp4", iter(frames(7, *size)), 12.5)
    with av.open(str(tmp_path / "new" / "v.mp4")) as container:
        stream = container.streams.video[0]
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate) == 12.5
    assert np.shape(images) == (7, *stored, 3)
    np.testing.assert_allclose(images[6][20, 10], (60, 60, 200), atol=8)
    assert os.listdir(tmp_path / "new") == ["v.mp4"]


def test_a_bad_video_leaves_the_old_one(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is missing: pip install 'poise[video]'")
    path = tmp_path / "v.mp4"
    path.write_bytes(b"old")
    for bad, message in (
        ([], "got no frames, expected at least one"),
        ([*frames(2), *frames(1, 32)], r"frame 2 of uint8 \(32, 64, 3\), expected uint8 \(48, 64, 3\)"),
        ([np.zeros((4, 4, 3))], r"frame 0 of float64 \(4, 4, 3\), expected uint8 \(H, W, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            write_video(path, bad, 10)
    with pytest.raises(ValueError, match="got rate=0, expected frames a second above 0"):
        write_video(path, frames(1), 0)
    assert os.listdir(tmp_path) == ["v.mp4"]
    assert path.read_bytes() == b"old"


def test_a_video_without_av_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(
        ImportError, match=r"needs the extra 'video' \(import of av halted.*\): pip install 'poise\[video\]'"
    ):
        write_video(tmp_path / "v.mp4", frames(1), 10)


def small_figure(words: str = "words") -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.subplots().set_title(words)
    figure.set_label(f"Caption of {words}")
    return figure


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    (folder / "v.mp4").write_bytes(b"not really a video")
    straight = np.linspace([-0.9, 0.0], [0.8, 0.0], 20)
    figures = (success_figure(POLICIES), tradeoff_figure(ROWS), routes_figure(MAP, {"a": [(straight, True)]}))
    table = Table(("policy", HOSTILE, "ms", "n"), [("a", "95.0 %", 12.5, 1), ("b", "5.0 %", -0.75, None)])
    sections = [
        Section("First", "One.\n\nTwo\nlines.", figures, table),
        Section(HOSTILE, HOSTILE, (small_figure(HOSTILE),), Table((), ()), folder / "v.mp4"),
    ]
    write_report(folder / "r.html", HOSTILE, "Lead.\n \nMore.", sections, HOSTILE)
    return (folder / "r.html").read_text()


def test_the_page_is_balanced_and_needs_nothing_from_outside(page: str) -> None:
    parsed = Page(page)
    assert "http://" not in page
    assert not re.search(r"@import|url\((?!#)", page)
    assert parsed.count("link") == parsed.count("script") == parsed.count("iframe") == 0
    for _, attributes in parsed.elements:
        for name in ("src", "href", "xlink:href", "poster", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert len(page) < 400_000


def test_every_figure_and_the_video_are_inside(page: str) -> None:
    parsed = Page(page)
    assert parsed.count("svg") == 4
    assert parsed.count("figcaption") == 4
    assert parsed.count("video") == 1
    (source,) = [attributes["src"] for tag, attributes in parsed.elements if tag == "source"]
    assert source == "data:video/mp4;base64,bm90IHJlYWxseSBhIHZpZGVv"
    words = " ".join(parsed.words)
    for text in ("Figure 4", "Diversity of routes", "30 Hz control, 33 ms", "1 of 1 reach the goal"):
        assert text in words


def test_references_within_figures_stay_within_them(page: str) -> None:
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids)) > 20
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', page)) <= set(ids)


def test_neutral_colours_of_figures_follow_the_page(page: str) -> None:
    figures = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    used, defined = set(re.findall(r"var\(--(\w+)\)", page)), set(re.findall(r"--(\w+):", page))
    assert {"ink", "muted", "rule", "track", "floor", "wall", "disc"} <= set(re.findall(r"var\(--(\w+)\)", figures))
    assert used <= defined
    assert not re.search(r"#(1b2332|f8f9fb|39445a)", figures)
    dark = page[page.index("@media screen and (prefers-color-scheme: dark)") :].split("}")[0]
    assert {"ink", "floor", "paper", "body"} <= set(re.findall(r"--(\w+):", dark))
    assert "@media print" in page


def test_hostile_text_is_escaped(page: str) -> None:
    parsed = Page(page)
    assert parsed.count("b") == 4
    assert "<script" not in page
    assert "".join(parsed.words).count(HOSTILE) >= 6


def test_paragraphs_and_aligned_numbers(page: str) -> None:
    assert "<p>One.</p><p>Two\nlines.</p>" in page
    assert "<p>Lead.</p><p>More.</p>" in page
    row = '<td>{}</td><td class="number">{}</td><td class="number">{}</td><td class="number">{}</td>'
    assert row.format("a", "95.0 %", "12.5", "1") in page
    assert row.format("b", "5.0 %", "−0.8", "–") in page


def test_a_large_figure_goes_in_as_an_image(tmp_path: Path) -> None:
    figure = Figure(figsize=(2, 1))
    figure.subplots().scatter(*np.random.default_rng(0).random((2, 9000)))
    write_report(tmp_path / "r.html", "t", "", [Section("s", "", (figure,))], "")
    parsed = Page((tmp_path / "r.html").read_text())
    (image,) = [attributes["src"] for tag, attributes in parsed.elements if tag == "img"]
    assert parsed.count("svg") == 0
    assert str(image).startswith("data:image/png;base64,")


def test_the_file_is_replaced_at_once_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "r.html"
    write_report(path, "old", "", [], "")
    with pytest.raises(FileNotFoundError):
        write_report(path, "new", "", [Section("s", "", video=tmp_path / "none.mp4")], "")
    assert "<h1>old</h1>" in path.read_text()

    def fail(*_: object) -> None:
        raise OSError("disk")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk"):
            write_report(path, "new", "", [], "")
    assert "<h1>old</h1>" in path.read_text()
    write_report(path, "new", "", [], "")
    assert "<h1>new</h1>" in path.read_text()
    assert os.listdir(path.parent) == ["r.html"]


def test_a_ragged_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Table got 1 cells in row 1, expected 2: one for each of \['a', 'b'\]"):
        Table(("a", "b"), [(1, 2), (1,)])
