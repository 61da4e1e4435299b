"""The page: whole, self-contained, escaped, honest, and right in a real browser."""

import json
import re
from html.parser import HTMLParser
from io import StringIO

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from pipeline.metrics import assess, evaluate
from pipeline.report import table, write_report
from pipeline.report.charts import Line, chart, thinned
from pipeline.report.pictures import MAX_FRAMES, sprite
from tests.pipeline.browsing import opened, walks

EVIL = "<script>alert(1)</script>'\"&"
VIEWS = ["000", "018", "036", "054", "072", "090", "108", "126", "144", "162", "180"]


class FakeShards:
    """The few things of a shard set that the page asks for; silhouettes are a block that moves."""

    name, fingerprint = "casia-b", "f" * 64

    def __init__(self, subjects, conditions, views):
        frames = [12 + i % 30 for i in range(len(subjects))]
        columns = {"subject": subjects, "condition": conditions, "view": views, "frames": frames}
        self.index = pa.table(columns)

    def read(self, rows):
        return [self._silhouettes(row) for row in rows]

    def _silhouettes(self, row):
        frames = self.index["frames"][row].as_py()
        silhouettes = np.zeros((frames, 64, 64), np.uint8)
        for t in range(frames):
            silhouettes[t, 8:60, 20 + t % 12 : 36 + t % 12] = 255
        return silhouettes


def write_run(run, noise=(1.2, 6.0, 4.0), recipe="demo"):
    """A run folder as training and evaluation leave it, without BG."""
    conditions = [f"nm-0{i}" for i in range(1, 7)] + ["cl-01", "cl-02"]
    sequences = [(s, c, v) for s in ("075", "076", EVIL, "078", "079") for c in conditions for v in VIEWS]
    columns = [list(column) for column in zip(*sequences, strict=True)]
    rng = np.random.default_rng(0)
    who = rng.standard_normal((5, 4, 8))[np.unique(columns[0], return_inverse=True)[1]]
    methods = []
    shards = FakeShards(*columns)
    frames = shards.index["frames"].to_pylist()
    kinds = (("trained", "HSTL, trained 300 steps"), ("untrained", "HSTL, untrained"), ("gei", "nearest GEI"))
    for (kind, name), level in zip(kinds, noise, strict=True):
        embeddings = (who + level * rng.standard_normal(who.shape)).astype(np.float32)
        found = assess(embeddings, *columns, "casia-b", frames=frames, num_hardest=4)
        methods.append(
            {
                "name": name,
                "kind": kind,
                "metrics": found.metrics,
                "hardest": found.hardest if kind == "trained" else [],
                "breakdown": found.breakdown,
            }
        )
    results = {
        "format": 1,
        "created": "2025-01-02T03:04:05+00:00",
        "protocol": "casia-b",
        "recipe": {"name": recipe},
        "data": {
            "url": "out",
            "name": "casia-b",
            "fingerprint": shards.fingerprint,
            "test_subjects": 5,
            "test_sequences": 440,
        },
        "checkpoint": {"path": "checkpoints/step-00000300", "step": 300, "sha256": "c" * 64},
        "versions": {"torch": "2.13.0"},
        "methods": methods,
        "verdict": "",
    }
    (run / "evaluation").mkdir(parents=True, exist_ok=True)
    (run / "evaluation" / "results.json").write_text(json.dumps(results))
    steps = [
        {"step": s, "loss": 3 / s, "triplet": 1 / s, "cross_entropy": 2 / s, "lr": 1e-4} for s in [*range(1, 301), 300]
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps) + '{"step": 301, "lo')
    (run / "recipe.yaml").write_text("name: demo\nnote: " + EVIL + "\n")
    return results, shards


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    run = tmp_path_factory.mktemp("a run")
    results, shards = write_run(run)
    return run, results, shards, write_report(run, shards)


class Checked(HTMLParser):
    """Tags that open and close in order, and every address that a browser would load."""

    void = frozenset(["meta", "link", "br", "img", "input", "hr"])

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.addresses = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_parses_and_needs_nothing_else(made):
    html = made[3].read_text()
    page = Checked()
    page.feed(html)
    assert page.open == []
    assert "script" not in page.tags
    assert page.addresses == ["data:,"]
    assert "http:" not in html
    assert "https:" not in html
    assert set(re.findall(r"url\((.{0,15})", html)) == {"data:image/png;"}


def test_the_page_says_the_figures(made):
    _, results, _, path = made
    html = path.read_text()
    for method in results["methods"]:
        for rate in method["metrics"]["headline"].values():
            assert rate is None or f"{rate:.1f}" in html
    cells = results["methods"][0]["metrics"]["by_view"]["CL"]["rank1"]
    for i, row in enumerate(cells):
        for j, rate in enumerate(row):
            assert f'title="probe {VIEWS[i]}, gallery {VIEWS[j]}: {rate:.2f} %">{rate:.1f}<' in html
    assert "BG: no probe sequence (conditions bg-01, bg-02); left out of the mean" in html
    assert "c" * 64 in html
    assert "f" * 64 in html
    assert html.count('class="walker"') == 3 * len(results["methods"][0]["hardest"]) > 0
    assert html.count("<polyline") == 2 * 3 + 4 + 3  # CMC of two conditions, training curves, rank-1 over length
    breakdown = results["methods"][0]["breakdown"]
    for pair in breakdown["confused"]:
        assert f"<td>{pair['num_probes']} of {pair['of']}</td>" in html
    for row in breakdown["by_length"]:
        assert f"frames ({row['num_probes']:,} probes)" in html
    assert "No gallery view lacks a sequence of any probe" in html


def test_names_from_the_data_are_escaped(made):
    html = made[3].read_text()
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_data_that_is_not_the_benchmark_is_not_set_beside_published_figures(made, tmp_path):
    html = made[3].read_text()
    assert "Not comparable with published figures: the recipe is the demo" in html
    assert html.index("for orientation only") < html.index("HSTL (ICCV 2023)")
    results, _ = write_run(tmp_path, recipe="casia-b")
    results["data"] |= {"test_subjects": 50, "test_sequences": 5485}
    (tmp_path / "evaluation" / "results.json").write_text(json.dumps(results))
    real = write_report(tmp_path).read_text()
    assert "Not comparable" not in real
    assert "for orientation only" not in real
    assert "98.1" in real


def test_a_network_that_does_not_beat_its_baselines_is_said_so_first(tmp_path):
    _, shards = write_run(tmp_path, noise=(6.0, 6.0, 1.0))
    html = write_report(tmp_path, shards).read_text()
    verdict = re.search(r'<p class="verdict failed" role="alert">(.*?)</p>', html)
    assert verdict is not None
    assert "does not beat" in verdict[1]
    assert "nearest GEI" in verdict[1]
    assert verdict.start() < html.index("<table")


def test_what_is_missing_is_said_and_the_rest_is_shown(tmp_path):
    results, shards = write_run(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "recipe.yaml").unlink()
    bare = write_report(tmp_path).read_text()
    assert "no metrics.jsonl" in bare
    assert "silhouettes were not at hand" in bare
    assert "name: demo" in bare
    shards.fingerprint = "0" * 64
    assert "is not the one that was evaluated" in write_report(tmp_path, shards).read_text()
    for method in results["methods"]:
        method["hardest"] = []
    (tmp_path / "evaluation" / "results.json").write_text(json.dumps(results))
    (tmp_path / "metrics.jsonl").write_text("")
    html = write_report(tmp_path, shards).read_text()
    assert "No probe was taken for somebody else" in html
    assert "holds no step yet" in html
    assert not list(tmp_path.glob("*.part"))


def test_a_protocol_of_one_gallery_has_no_maps_and_shows_its_note(tmp_path):
    rng = np.random.default_rng(1)
    names = [f"{s:02}" for s in range(20) for _ in range(2)]
    values = rng.standard_normal((40, 1, 4)).astype(np.float32)
    figures = evaluate(values, names, ["a", "b"] * 20, ["0"] * 40, "grew")
    (tmp_path / "evaluation").mkdir()
    methods = [{"name": "one", "kind": "trained", "metrics": figures, "hardest": []}]
    results = {"format": 1, "protocol": "grew", "data": {"name": "grew"}, "methods": methods}
    (tmp_path / "evaluation" / "results.json").write_text(json.dumps(results))
    html = write_report(tmp_path).read_text()
    assert "Unofficial" in html
    assert "Rank-1 by view" not in html
    assert "rank-20" in html


def test_missing_gallery_views_and_notes_are_shown(tmp_path):
    results, shards = write_run(tmp_path)
    results["data"] |= {
        "other_than_trained_on": True,
        "frames_limit": {"frames": 9, "sequences_cut": 70},
    }
    results["checkpoint"]["trained_on"] = {"url": "s3://elsewhere", "recipe": "demo", "fingerprint": "e" * 64}
    results["methods"][0]["breakdown"]["by_missing_views"] = [
        {"missing": 0, "num_probes": 200, "rank1": 80.0},
        {"missing": 3, "num_probes": 20, "rank1": 41.5},
    ]
    (tmp_path / "evaluation" / "results.json").write_text(json.dumps(results))
    html = write_report(tmp_path, shards).read_text()
    assert "Rank-1 over missing gallery views" in html
    assert '<th scope="row">3</th><td>20</td>' in html
    assert "41.5" in html
    assert "Across data sets: trained on s3://elsewhere (fingerprint eeeeeeeeeeee)" in html
    assert "Not exact: 70 of 440 sequences were cut to their 9 middle frames" in html
    assert "the network was trained on other data; sequences were cut by a frames limit" in html


def test_no_results_says_what_to_run(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"results\.json does not exist: evaluate the run first.*pipeline\.evaluate"
    ):
        write_report(tmp_path)
    (tmp_path / "evaluation").mkdir()
    path = tmp_path / "evaluation" / "results.json"
    for text, message in (("{", "is not JSON"), ('{"format": 2}', "not a results file of format 1")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_table_on_screen(made):
    console = Console(file=StringIO(), width=100)
    results = made[1]
    console.print(table(results))
    lines = console.file.getvalue().splitlines()
    assert lines[0].startswith("casia-b by casia-b")
    assert lines[-1].startswith("identical views left out")
    assert [word for word in ("NM", "BG", "CL", "mean") if word in lines[2]] == ["NM", "BG", "CL", "mean"]
    rows = [line for line in lines if any(method["name"] in line for method in results["methods"])]
    assert len(rows) == 3
    for row, method in zip(rows, results["methods"], strict=True):
        found = re.findall(r"\d+\.\d|–", row)
        assert found == ["–" if r is None else f"{r:.1f}" for r in method["metrics"]["headline"].values()]


def test_sprite_holds_the_frames_in_order():
    import base64

    import cv2

    silhouettes = np.random.default_rng(0).integers(0, 256, (50, 64, 64), dtype=np.uint8)
    made = sprite(silhouettes)
    coded = np.frombuffer(base64.b64decode(made.uri.split(",")[1]), np.uint8)
    alpha = cv2.imdecode(coded, cv2.IMREAD_UNCHANGED)[..., 3]
    assert made.num_frames == MAX_FRAMES
    assert alpha.shape == (64, 64 * MAX_FRAMES)
    for i in range(MAX_FRAMES):
        assert (alpha[:, 64 * i : 64 * (i + 1)] == silhouettes[10 + i]).all()
    assert sprite(silhouettes[:1]).num_frames == 1


def test_charts():
    drawn = chart([Line("a", [(1, 0.0), (100, 10.0)]), Line("b", [])], "step", "loss", x_log=True)
    assert drawn.lines == [("a", 0, [(drawn.left, drawn.bottom), (drawn.right, 10)])]
    assert [text for _, text in drawn.x_ticks] == ["1", "3", "10", "30", "100"]
    assert [text for _, text in drawn.y_ticks] == ["0", "2.5", "5", "7.5", "10"]
    flat = chart([Line("lr", [(5, 1e-4)])], "step", "lr", x_log=True)
    assert all(np.isfinite(flat.lines[0][2][0]))
    points = [(float(x), 2.0 * x) for x in range(1, 5001)]
    few = thinned(points)
    assert len(few) <= 240
    assert few == sorted(few)
    np.testing.assert_allclose([y for _, y in few], [2 * x for x, _ in few])
    assert thinned(points[:9]) == points[:9]


def test_in_a_browser_nothing_is_loaded_nothing_complains_and_the_walkers_walk(made, browser):
    page, troubles = opened(browser, made[3], viewport={"width": 1200, "height": 900})
    assert walks(page)
    assert page.evaluate("document.getAnimations().length") == page.locator(".walker").count()
    assert page.evaluate("window.alert.toString()").endswith("{ [native code] }")
    assert troubles == []


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_in_a_browser_no_page_is_wider_than_its_screen(made, browser, width):
    page, _ = opened(browser, made[3], viewport={"width": width, "height": 800})
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


CONTRASTS = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const light = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  return [...document.querySelectorAll('.map td:not(.empty):not(.mean)')].map(cell => {
    const style = getComputedStyle(cell), ink = light(style.color), shade = light(style.backgroundColor);
    return Math.max(ink, shade) / Math.min(ink, shade);
  });
}"""


def test_in_a_browser_dark_mode_changes_the_colours_and_every_number_stays_readable(made, browser):
    papers = {}
    for scheme in ("light", "dark"):
        page, _ = opened(browser, made[3], color_scheme=scheme)
        papers[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) == 3 * 2 * 121
        assert min(contrasts) >= 4.5, scheme
    assert papers["light"] != papers["dark"]


def test_in_a_browser_bars_are_as_long_as_their_shares(made, browser):
    page, _ = opened(browser, made[3], viewport={"width": 1200, "height": 900})
    shares = [pair["num_probes"] / pair["of"] for pair in made[1]["methods"][0]["breakdown"]["confused"]]
    measure = "b => { const w = getComputedStyle(b), c = b.firstElementChild; return c.offsetWidth / "
    measure += "(b.clientWidth - parseFloat(w.paddingLeft) - parseFloat(w.paddingRight)); }"
    drawn = [bar.evaluate(measure) for bar in page.locator(".pairs .bar").all()]
    assert drawn == pytest.approx(shares, abs=0.02)


@pytest.mark.parametrize("still", ["reduced motion", "print"])
def test_in_a_browser_there_is_a_still_strip_instead_of_motion(made, browser, still):
    page, _ = opened(browser, made[3], reduced_motion="reduce" if still == "reduced motion" else None)
    if still == "print":
        page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.querySelector('.walker')).animationName") == "none"
    frame, strip = page.evaluate("(w => [w.offsetHeight, w.offsetWidth])(document.querySelector('.walker'))")
    assert strip >= 3 * frame
