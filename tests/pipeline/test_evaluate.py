"""From shards and a checkpoint to results.json and the page: every option, and every mistake before work begins."""

import json
import shutil
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pipeline import results, submission
from pipeline.checkpoint import save_weights
from pipeline.evaluate import evaluate, main
from pipeline.identify import identify
from pipeline.metrics import evaluate as measure
from pipeline.model import HSTL
from pipeline.recipe import Recipe
from shards.pack import pack
from tests.pipeline.evaluating import ROOT, Bench, make
from tests.shards.raw_tree import draw_frame

ARCHIVE = ROOT.parent / "shared" / "data" / "mocap-walk.tar.xz"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make(tmp_path_factory.mktemp("evaluate"), num_subjects=4)


def run(bench: Bench, folder: Path, *overrides: str, checkpoint: Path | None = None) -> dict:
    assert evaluate(bench.recipe(folder, *overrides), checkpoint or bench.weights) == folder
    return results.read(folder)


def test_results_hold_every_figure_and_all_that_made_it(bench, tmp_path, capsys):
    found = run(bench, tmp_path / "run", "evaluate.baselines=[untrained, gei]")
    assert [method["kind"] for method in found["methods"]] == ["trained", "untrained", "gei"]
    trained = found["methods"][0]
    embedded = next((tmp_path / "run" / "evaluation" / "embeddings").glob("*"))
    assert len(list((tmp_path / "run" / "evaluation" / "embeddings").glob("*/all.npy"))) == 3, embedded
    assert trained["name"] == "HSTL, trained 7 steps"
    assert trained["metrics"]["counts"] == {"probe": {"NM": 6, "BG": 0, "CL": 6}, "gallery": 12, "unused": 0}
    assert len(trained["metrics"]["by_view"]["NM"]["rank1"]) == 2
    assert trained["breakdown"].keys() == {"confused", "by_length", "by_missing_views"}
    assert sum(row["num_probes"] for row in trained["breakdown"]["by_length"]) == 12
    assert found["data"]["test_sequences"] == 24 and found["data"]["test_subjects"] == 3
    assert len(found["data"]["fingerprint"]) == len(found["checkpoint"]["sha256"]) == 64
    assert found["recipe"]["evaluate"]["protocol"] == found["protocol"] == found["rules"]["name"] == "casia-b"
    assert {"torch", "numpy", "python", "hstl"} <= found["versions"].keys()
    assert found["machine"] == {"device": "cpu", "processes": 1}
    assert (tmp_path / "run" / "report.html").is_file()
    output = capsys.readouterr().out
    assert "missing: BG: no probe sequence (conditions bg-01, bg-02); left out of the mean" in output
    assert "missing: NM: no sequence of nm-06; the others (6) are used" in output


def test_figures_are_those_of_the_embeddings_on_disk(bench, tmp_path):
    import shards

    found = run(bench, tmp_path)
    (embeddings,) = (np.load(file) for file in (tmp_path / "evaluation").glob("embeddings/*/all.npy"))
    index = shards.open(bench.shards).index
    rows = np.flatnonzero(index["split"].to_numpy() == "test").tolist()
    columns = [index.take(rows)[name].to_pylist() for name in ("subject", "condition", "view")]
    wanted = measure(embeddings, *columns, "casia-b")
    assert found["methods"][0]["metrics"] == json.loads(json.dumps(wanted))
    for case in found["methods"][0]["hardest"]:
        assert {case["probe"], case["taken_for"], case["right"]} <= set(rows)


def test_a_frames_limit_is_named_as_inexact_everywhere(bench, tmp_path, capsys):
    argv = [str(ROOT / "recipes" / "demo.yaml"), "--checkpoint", str(bench.weights), f"data={bench.shards}"]
    main([*argv, f"run={tmp_path}", "train.workers=0", "evaluate.baselines=[]", "--frames-limit", "4"])
    found = results.read(tmp_path)
    cut = found["data"]["frames_limit"]
    assert cut["frames"] == 4 and 0 < cut["sequences_cut"] < 24
    sentence = f"Not exact: {cut['sequences_cut']} of 24 sequences were cut to their 4 middle frames"
    assert f"note: {sentence}" in capsys.readouterr().out
    assert sentence in (tmp_path / "report.html").read_text()


def test_cosine_and_bf16_are_options(bench, tmp_path):
    found = run(bench, tmp_path, "evaluate.distance=cosine", "evaluate.precision=bf16")
    assert "Distances are cosine; published figures are Euclidean." in results.notes(found)


def test_evaluating_across_data_sets_says_so_and_keeps_both_results(bench, tmp_path, capsys):
    other = make(tmp_path / "other", num_subjects=3)
    trained = tmp_path / "trained"
    step = trained / "checkpoints" / "step-00000007"
    step.mkdir(parents=True)
    shutil.copy(bench.weights, step / "model.safetensors")
    (step / "COMPLETE").touch()
    recipe = bench.recipe(trained)
    said = {"recipe": {"name": "demo", "data": str(bench.shards)}, "fingerprint": fingerprint(bench.shards)}
    (step / "training.json").write_text(json.dumps(said))
    (trained / "recipe.yaml").write_text("name: as trained\n")
    without_run = recipe.model_dump() | {"run": None}
    assert evaluate(Recipe.model_validate(without_run), trained) == trained
    at_home = results.read(trained)
    assert at_home["data"]["other_than_trained_on"] is False
    kept = sorted((trained / "evaluation" / "embeddings").glob("*"))
    identify("003-nm-02-090", str(bench.shards), trained)  # takes what the evaluation embedded
    assert sorted((trained / "evaluation" / "embeddings").glob("*")) == kept
    capsys.readouterr()
    assert evaluate(Recipe.model_validate(without_run | {"data": str(other.shards)}), trained) == trained
    abroad = results.read(trained)
    assert abroad["data"]["other_than_trained_on"] is True
    assert abroad["checkpoint"]["trained_on"]["fingerprint"] == at_home["data"]["fingerprint"]
    assert "note: Across data sets: trained on" in capsys.readouterr().out
    assert "Across data sets" in (trained / "report.html").read_text()
    kept = sorted((trained / "evaluation").glob("results-*.json"))
    assert [json.loads(path.read_text()) for path in kept if "a" in path.name].count(at_home) == 1
    assert len(kept) == 2
    assert (trained / "recipe.yaml").read_text() == "name: as trained\n"


def fingerprint(folder: Path) -> str:
    return json.loads((folder / "shards.json").read_text())["index_sha256"]


def test_embeddings_of_other_checkpoints_are_deleted_unless_they_are_asked_for(bench, tmp_path, capsys):
    second = tmp_path / "second.safetensors"
    torch.manual_seed(1)
    network = HSTL("demo", 1)
    save_weights(second, network, network.state_dict(), step=8)
    folder, argv = tmp_path / "run" / "evaluation" / "embeddings", [str(ROOT / "recipes" / "demo.yaml")]
    argv += [f"data={bench.shards}", f"run={tmp_path / 'run'}", "train.workers=0", "evaluate.baselines=[gei]"]
    main([*argv, "--checkpoint", str(bench.weights)])
    first = set(folder.glob("*/all.npy"))
    main([*argv, "--checkpoint", str(second), "--keep-embeddings"])
    both = set(folder.glob("*/all.npy"))
    assert len(first) == 2 and len(both) == 3 and first < both
    assert "deleted" not in capsys.readouterr().out
    main([*argv, "--checkpoint", str(bench.weights)])
    assert set(folder.glob("*/all.npy")) == first
    assert "deleted: embeddings of other checkpoints, 0.0 GB (--keep-embeddings" in capsys.readouterr().out
    other = make(tmp_path / "other", num_subjects=3)
    main([*argv, f"data={other.shards}", "--checkpoint", str(bench.weights)])
    assert first < set(folder.glob("*/all.npy"))  # the same checkpoint on other data


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluate.protocol=oumvlp"], r"'oumvlp' finds no gallery sequence .*whose conditions are cl-01, nm-01"),
        (["evaluate.protocol=gait3d"], r"takes its probes from a list.*evaluate\.probes=FILE"),
        (["evaluate.protocol=gait3d", "evaluate.probes=none.json"], r"none\.json does not exist"),
    ],
)
def test_what_cannot_be_evaluated_is_said_before_anything_is_embedded(bench, tmp_path, overrides, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate(bench.recipe(tmp_path / "run", *overrides), bench.weights)
    assert not (tmp_path / "run").exists()


def test_a_command_line_mistake_ends_in_a_message(bench, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main([str(ROOT / "recipes" / "demo.yaml"), "--checkpoint", str(tmp_path / "none"), f"data={bench.shards}"])
    assert ended.value.code == 2
    assert f"no checkpoint {tmp_path / 'none'}" in capsys.readouterr().err


def test_gait3d_takes_its_probes_from_the_published_list(bench, tmp_path):
    (tmp_path / "Gait3D.json").write_text(json.dumps({"PROBE_SET": ["002-nm-05-000", "003-cl-01-090", "999-x-y"]}))
    found = run(bench, tmp_path / "run", "evaluate.protocol=gait3d", f"evaluate.probes={tmp_path / 'Gait3D.json'}")
    metrics = found["methods"][0]["metrics"]
    assert metrics["counts"] == {"probe": {"probe": 2}, "gallery": 22, "unused": 0}
    assert metrics["headline"].keys() == {"rank-1", "rank-5", "rank-10", "mAP", "mINP"}
    assert "1 of 3 listed probes are not in the data, the first is 999-x-y" in metrics["missing"]


def test_a_users_own_protocol_file(bench, tmp_path):
    (tmp_path / "coats.yaml").write_text(
        "name: coats\ngallery: {conditions: ['nm-*']}\nprobes: {in a coat: {conditions: ['cl-*']}}\nranks: [1, 2]\n"
    )
    found = run(bench, tmp_path / "run", f"evaluate.protocol={tmp_path / 'coats.yaml'}")
    assert found["protocol"] == "coats"
    assert found["methods"][0]["metrics"]["headline"].keys() == {"rank-1", "rank-2"}


def test_grew_gives_a_submission_that_the_validator_passes(bench, tmp_path, capsys):
    seed = 0
    for subject in range(1, 13):
        for walk in ("s1", "s2"):
            write_frames(tmp_path / "raw" / "test" / "gallery" / f"{subject:05}" / f"{subject}{walk}", seed := seed + 1)
    for video in ("v1", "v2", "v3"):
        write_frames(tmp_path / "raw" / "test" / "probe" / video, seed := seed + 1)
    pack("grew", tmp_path / "raw", tmp_path / "set", workers=1, progress=False)
    found = run(bench, tmp_path / "run", "evaluate.protocol=grew", f"data={tmp_path / 'set'}")
    assert found["methods"][0]["metrics"]["counts"] == {"probe": {"probe": 12}, "gallery": 12, "unused": 3}
    archive = tmp_path / "run" / "evaluation" / "submission.zip"
    assert submission.faults(archive, *submission.known_names(str(tmp_path / "set"))) == []
    output = capsys.readouterr().out
    assert "note: Unofficial." in output


def write_frames(folder: Path, seed: int) -> None:
    folder.mkdir(parents=True)
    for i in range(3):
        assert cv2.imwrite(str(folder / f"{i:05}.png"), draw_frame(10 * seed + i, 64, 64))


@pytest.mark.skipif(not ARCHIVE.exists(), reason="../shared/data/mocap-walk.tar.xz is not here")
def test_recorded_walks_with_missing_conditions_give_a_readable_report(bench, tmp_path, capsys):
    """Five walks of one person, and those of the two before them in the archive, at a few views."""
    wanted = {"007": {"nm-01", "nm-02", "nm-05", "cl-01"}, "005": {"nm-01"}, "006": {"nm-01"}}
    with tarfile.open(ARCHIVE, "r|xz") as archive:
        for member in archive:
            parts = member.name.split("/")
            if len(parts) > 1 and parts[1] > "007":
                break
            if len(parts) == 5 and parts[2] in wanted.get(parts[1], ()) and parts[3] in ("036", "090"):
                archive.extract(member, tmp_path, filter="data")
    (tmp_path / "partition.yaml").write_text("train: ['002']\ntest: ['005', '006', '007']\n")
    source = tmp_path / "mocap-walk"
    pack("casia-b", source, tmp_path / "set", tmp_path / "partition.yaml", workers=1, progress=False)
    found = run(bench, tmp_path / "run", f"data={tmp_path / 'set'}", "evaluate.frames_limit=12")
    metrics = found["methods"][0]["metrics"]
    assert metrics["counts"] == {"probe": {"NM": 2, "BG": 0, "CL": 2}, "gallery": 8, "unused": 0}
    assert metrics["headline"]["BG"] is None
    missing = " ".join(metrics["missing"])
    for words in ("BG: no probe sequence", "NM: no sequence of nm-06", "CL: no sequence of cl-02", "nm-03, nm-04"):
        assert words in missing
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Missing in the data" in page and "BG: no probe sequence" in page
