"""Who is this? Folders and keys against a gallery, as table, JSON and a page in a real browser."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import shards
from pipeline.cli import app
from pipeline.identify import identify, nearest, read_probe, write_page
from tests.pipeline.browsing import opened, walks
from tests.pipeline.evaluating import Bench, make


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make(tmp_path_factory.mktemp("identify"), num_subjects=4)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


def test_nearest_equals_the_naive_loop_and_ties_keep_their_order():
    rng = np.random.default_rng(0)
    known = rng.integers(0, 3, (40, 2, 3)).astype(np.float32)
    order, distances = nearest(known[7], known)
    wanted = np.sqrt(((known - known[7]).astype(np.float64) ** 2).sum(2)).mean(1)
    np.testing.assert_allclose(distances, wanted, rtol=1e-7)
    assert order.tolist() == sorted(range(40), key=lambda i: (np.float32(wanted[i]), i))


def test_a_folder_finds_the_very_walk_it_is(bench, cache):
    folder = bench.shards.parent / "raw" / "003" / "nm-02" / "090"
    answer, frames, _ = identify(str(folder), str(bench.shards), bench.weights, top=5, cache=cache)
    assert (answer.sequences[0].key, answer.subjects[0].subject) == ("003-nm-02-090", "003")
    assert answer.sequences[0].distance < 1e-4 < answer.sequences[1].distance
    assert [found.rank for found in answer.sequences] == [1, 2, 3, 4, 5]
    assert [found.distance for found in answer.sequences] == sorted(found.distance for found in answer.sequences)
    assert (answer.gallery_sequences, answer.gallery_subjects) == (24, 3)
    assert len({found.subject for found in answer.subjects}) == len(answer.subjects) == 3
    assert frames.shape[1:] == (64, 64)


def test_a_key_is_left_out_of_the_gallery(bench, cache):
    answer, _, _ = identify("003-nm-02-090", str(bench.shards), bench.weights, top=99, cache=cache)
    keys = [found.key for found in answer.sequences]
    assert len(keys) == 23 and "003-nm-02-090" not in keys


def test_the_split_is_chosen(bench, cache):
    answer, _, _ = identify("003-nm-02-090", str(bench.shards), bench.weights, split="train", cache=cache)
    assert {found.subject for found in answer.sequences} == {"001"}
    with pytest.raises(ValueError, match=r"no sequences of split 'tests' \(it has .*choose --split"):
        identify("003-nm-02-090", str(bench.shards), bench.weights, split="tests", cache=cache)


def test_a_second_search_embeds_nothing_anew(bench, tmp_path):
    identify("003-nm-02-090", str(bench.shards), bench.weights, cache=tmp_path)
    (kept,) = tmp_path.glob("*/all.npy")
    before = kept.stat().st_mtime_ns
    identify("002-nm-02-090", str(bench.shards), bench.weights, cache=tmp_path)
    assert list(tmp_path.glob("*/*.npy")) == [kept] and kept.stat().st_mtime_ns == before


def test_probes_that_cannot_be_used_say_why(bench, tmp_path):
    shard_set = shards.open(bench.shards)
    with pytest.raises(ValueError, match=r"'009-x' is no folder of PNG frames, and as a key: .*no sequence '009-x'"):
        read_probe("009-x", shard_set)
    with pytest.raises(ValueError, match=r"holds no usable frame \(no file \*\.png\)"):
        read_probe(str(tmp_path), shard_set)
    (tmp_path / "1.png").touch()
    with pytest.raises(ValueError, match=r"1 left out: frame's file has no bytes"):
        read_probe(str(tmp_path), shard_set)


def test_some_bad_frames_are_left_out_and_counted(bench, tmp_path):
    for path in (bench.shards.parent / "raw" / "003" / "nm-02" / "090").glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    good = len(list(tmp_path.iterdir()))
    (tmp_path / "zz.png").touch()
    frames, row, remarks = read_probe(str(tmp_path), shards.open(bench.shards))
    assert (len(frames), row, remarks) == (good, None, ["frames: 1 left out: frame's file has no bytes"])


def test_by_command_line_as_table_json_and_page(bench, cache, tmp_path):
    made = [tmp_path / "a.json", tmp_path / "pages" / "a.html"]
    command = ["identify", "003-nm-02-090", "--gallery", bench.shards, "--checkpoint", bench.weights, "--top", 3]
    command += ["--json", made[0], "--html", made[1], "--cache", cache]
    result = CliRunner().invoke(app, [str(part) for part in command])
    assert result.exit_code == 0, result.output
    assert "nearest people" in result.output and "nearest sequences" in result.output
    answer = json.loads(made[0].read_text())
    assert len(answer["sequences"]) == 3
    assert f"{answer['sequences'][0]['distance']:.4f}" in result.output
    page = made[1].read_text()
    assert page.count('class="walker"') == 1 + 3 + 3
    assert "http:" not in page and "https:" not in page and "<script" not in page
    assert set(re.findall(r"url\((.{0,15})", page)) == {"data:image/png;"}
    result = CliRunner().invoke(app, ["identify", "none", *map(str, command[2:])])
    assert result.exit_code == 2 and "is no folder of PNG frames" in " ".join(result.output.split())


def test_names_on_the_page_are_escaped(bench, cache, tmp_path):
    from dataclasses import replace

    answer, frames, shard_set = identify("003-nm-02-090", str(bench.shards), bench.weights, top=1, cache=cache)
    page = write_page(tmp_path / "a.html", replace(answer, probe="<script>"), frames, shard_set).read_text()
    assert "<script" not in page and "&lt;script&gt;" in page


@pytest.fixture(scope="module")
def page_file(bench, cache, tmp_path_factory) -> Path:
    folder = bench.shards.parent / "raw" / "003" / "nm-02" / "000"
    answer, frames, shard_set = identify(str(folder), str(bench.shards), bench.weights, top=5, cache=cache)
    return write_page(tmp_path_factory.mktemp("page") / "a.html", answer, frames, shard_set)


def test_in_a_browser_nothing_is_loaded_nothing_complains_and_the_walkers_walk(page_file, browser):
    page, troubles = opened(browser, page_file, viewport={"width": 1200, "height": 900})
    assert walks(page)
    walkers = page.locator(".walker")
    assert walkers.count() == 1 + 3 + 5  # the probe, three people, five sequences
    assert page.evaluate("document.getAnimations().length") == walkers.count()
    assert {box["width"] for box in (walker.bounding_box() for walker in walkers.all())} == {96}
    assert "subject 003" in page.locator(".hit").first.inner_text()
    assert "distance 0.0000" in page.locator(".hit").first.inner_text()
    assert troubles == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1200])
def test_in_a_browser_the_page_fits_its_screen_in_both_schemes(page_file, browser, width, scheme):
    page, troubles = opened(browser, page_file, viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    channels = "getComputedStyle(document.body).%s.match(/\\d+/g).map(Number)"
    paper, ink = (sum(page.evaluate(channels % name)) for name in ("backgroundColor", "color"))
    assert (paper > 600 and ink < 150) if scheme == "light" else (paper < 100 and ink > 600)
    drawn = page.locator(".hit .walker").first.evaluate("w => getComputedStyle(w).backgroundColor")
    assert drawn == page.evaluate("getComputedStyle(document.body).color")  # silhouettes in the scheme's own ink
    assert troubles == []


def test_in_a_browser_bars_grow_with_the_distances(page_file, browser):
    page, _ = opened(browser, page_file, viewport={"width": 1200, "height": 900})
    lengths = page.locator(".hits").nth(1).locator(".bar span").evaluate_all("all => all.map(b => b.offsetWidth)")
    assert len(lengths) == 5 and lengths == sorted(lengths) and lengths[0] <= 1 < lengths[-1]


@pytest.mark.parametrize("still", ["reduced motion", "print"])
def test_in_a_browser_there_is_a_still_strip_instead_of_motion(page_file, browser, still):
    page, _ = opened(browser, page_file, reduced_motion="reduce" if still == "reduced motion" else None)
    if still == "print":
        page.emulate_media(media="print")
    assert page.evaluate("document.getAnimations().length") == 0
