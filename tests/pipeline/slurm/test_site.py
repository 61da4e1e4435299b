"""Site files are strict, and say what is wrong with them."""

from pathlib import Path

import pytest

from pipeline.slurm.site import EXAMPLE, Site, load_site

ROOT = Path(__file__).parents[3]


def write(folder: Path, text: str) -> Path:
    (folder / "site.yaml").write_text(text)
    return folder / "site.yaml"


def test_without_a_file_a_cluster_needs_nothing() -> None:
    assert load_site(None) == Site()


def test_the_documented_example_loads_and_shows_every_key() -> None:
    text = (ROOT / EXAMPLE).read_text()
    load_site(ROOT / EXAMPLE)
    assert [key for key in Site.model_fields if f"{key}:" not in text] == []


def test_values_are_taken_as_written(tmp_path: Path) -> None:
    site = load_site(write(tmp_path, "sbatch: {account: gait, mem: 0, exclusive: true}\nsetup: [module load cuda]\n"))
    assert site.sbatch == {"account": "gait", "mem": 0, "exclusive": True}
    assert site.setup == ("module load cuda",)


def test_a_file_that_is_not_there_names_the_example(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no site file .*; copy {EXAMPLE}"):
        load_site(tmp_path / "site.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modules: [cuda]", "modules: unknown key; a site file takes sbatch, gpus_by, setup, container"),
        ("sbatch: {output: x.log}", "sbatch.output: hstl submit sets this one"),
        ("sbatch: {--account: gait}", "sbatch.--account: write a long option of sbatch without its dashes"),
        ("sbatch: {mem: [1]}", r"sbatch.mem: takes a text, a number or true, not \[1\]"),
        ("sbatch: {mem: false}", "sbatch.mem: takes a text, a number or true, not False"),
        ('sbatch: {comment: "a\\nb"}', "sbatch.comment: must be one line"),
        ("environment: {AWS_SECRET_ACCESS_KEY: x}", "AWS_SECRET_ACCESS_KEY: looks like a credential"),
        ("environment: {a-b: x}", "environment.a-b: no name of an environment variable"),
        ("environment: {A: true}", "environment.A: takes a text or a number, not True"),
        ("gpus_by: gpu", "gpus_by: input should be 'gpus-per-node' or 'gres', not 'gpu'"),
        ("join_seconds: 1", "join_seconds: input should be greater than or equal to 10, not 1"),
        ("setup: module load cuda", "setup: .* not 'module load cuda'"),
        ("- a", "holds list, not keys with values"),
        ("a: [", "is not YAML"),
    ],
)
def test_faults_are_named_by_place_and_value(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        load_site(write(tmp_path, text))
    assert "site.yaml" in str(raised.value)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)gpus_by: .*modules: "):
        load_site(write(tmp_path, "modules: []\ngpus_by: x\n"))
