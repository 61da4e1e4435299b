from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.checkpoint import save_weights
from pipeline.cli import app
from pipeline.model import HSTL
from shards.walkers import write


def hstl(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "raw"
    write(folder, 2, frames=4, views=("090",), progress=False, workers=1)
    return folder


@pytest.fixture(scope="module")
def packed(raw: Path) -> Path:
    (raw.parent / "partition.yaml").write_text("train: [001]\ntest: [002]\n")
    to = raw.parent / "shards"
    code, output = hstl(
        "pack",
        "--layout",
        "casia-b",
        "--source",
        raw,
        "--to",
        to,
        "--partition",
        raw.parent / "partition.yaml",
        "--quiet",
    )
    assert code == 0, output
    return to


def test_walkers_refuse_a_folder_that_is_not_empty(raw: Path) -> None:
    code, output = hstl("walkers", raw, "--subjects", 1)
    assert code == 2 and str(raw.name) in output and "error" in output


def test_pack_refuses_a_finished_data_set(raw: Path, packed: Path) -> None:
    before = sorted(path.name for path in packed.iterdir())
    code, output = hstl(
        "pack", "--layout", "casia-b", "--source", raw, "--to", packed, "--partition", raw.parent / "partition.yaml"
    )
    assert code == 2 and "shards.json" in output
    assert sorted(path.name for path in packed.iterdir()) == before


@pytest.mark.parametrize("kind", ["missing", "empty", "another layout"])
def test_a_source_that_cannot_be_packed_leaves_nothing(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    if kind != "missing":
        source.mkdir()
    if kind == "another layout":
        (source / "Silhouette_000-00" / "00001").mkdir(parents=True)
        (source / "Silhouette_000-00" / "00001" / "0001.png").touch()
    code, output = hstl("pack", "--layout", "casia-b", "--source", source, "--to", tmp_path / "out", "--quiet")
    assert code == 2 and "source" in output and "Traceback" not in output
    assert not (tmp_path / "out" / "shards.json").exists()


def test_an_unknown_layout_names_the_known_ones(raw: Path, tmp_path: Path) -> None:
    code, output = hstl("pack", "--layout", "casiab", "--source", raw, "--to", tmp_path / "out")
    assert code == 2 and "casia-b" in output


def test_verify_passes_then_fails_on_a_flipped_bit(packed: Path, tmp_path: Path) -> None:
    import shutil

    assert hstl("verify", packed, "--quiet")[0] == 0
    damaged = shutil.copytree(packed, tmp_path / "damaged")
    shard = next(damaged.glob("train-*.tar"))
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    code, output = hstl("verify", damaged, "--quiet")
    assert code == 1 and shard.name in output


def test_show_draws_a_sequence(packed: Path, tmp_path: Path) -> None:
    code, output = hstl("show", packed, "001-nm-01-090", "--to", tmp_path / "walk.png")
    assert code == 0 and "nm-01" in output
    assert (tmp_path / "walk.png").read_bytes().startswith(b"\x89PNG")


def test_show_names_what_is_missing(packed: Path) -> None:
    assert "--to is missing" in hstl("show", packed, "001-nm-01-090")[1]
    assert hstl("show", packed / "nowhere")[0] == 2


def test_report_of_a_run_without_results_says_what_to_run(tmp_path: Path) -> None:
    code, output = hstl("report", tmp_path)
    assert code == 2 and "pipeline.evaluate" in output


def test_convert_there_and_back(tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "demo.yaml"
    network = HSTL("demo", 3)
    save_weights(tmp_path / "a.safetensors", network, network.state_dict())
    assert hstl("convert", tmp_path / "a.safetensors", tmp_path / "b.pt", "--recipe", recipe)[0] == 0
    code, output = hstl("convert", tmp_path / "b.pt", tmp_path / "c.safetensors", "--recipe", recipe)
    assert code == 0 and "demo, 25 parts, 3 classes" in output
    assert (tmp_path / "c.safetensors").read_bytes()[-4096:] == (tmp_path / "a.safetensors").read_bytes()[-4096:]
    other = recipe.with_stem("casia-b")
    code, output = hstl("convert", tmp_path / "b.pt", tmp_path / "d.safetensors", "--recipe", other)
    assert code == 2 and "25 parts, this variant has 73" in output
    assert not (tmp_path / "d.safetensors").exists()
