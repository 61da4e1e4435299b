"""What may be asked of SLURM, and by which launch files."""

from pathlib import Path

import pytest

from pipeline.slurm.resources import Resources, check_launch, read_launch, resolve_launch, seconds

LAUNCH_FILES = Path(__file__).parents[3] / "accelerate_configs"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("12:00:00", 43200),
        ("2-0", 172800),
        ("1-02:03", 93780),
        ("1-02:03:04", 93784),
        ("UNLIMITED", None),
    ],
)
def test_times_are_read_as_slurm_reads_them(text: str, expected: int | None) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "2h", "1:2:3:4", "1-", "-5", "1d", "12:00:00 "])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"--time .* is not a time SLURM takes"):
        seconds(text)


def test_the_signal_comes_twice_a_save_and_a_minute_ahead() -> None:
    assert Resources(1, 8).ahead == 120
    assert Resources(1, 8, save_seconds=45.5).ahead == 151
    assert Resources(1, 8, time="3").time == "3"
    with pytest.raises(ValueError, match=r"--time 2 is 120 s, .* told to save 120 s before its end"):
        Resources(1, 8, time="2")
    with pytest.raises(ValueError, match="--save-seconds"):
        Resources(1, 8, save_seconds=40_000)


def test_processes_are_the_gpus_or_said() -> None:
    assert Resources(4, 8).world_size == 32
    assert Resources(2, 0, processes_per_node=3).world_size == 6
    assert Resources(2, 0).world_size == 2
    assert Resources(1, 4, processes_per_node=4).processes == 4
    with pytest.raises(ValueError, match=r"--processes-per-node 2 with --gpus-per-node 4"):
        Resources(1, 4, processes_per_node=2)


def test_cores_are_for_processes_and_their_workers() -> None:
    assert (Resources(1, 4).cpus(workers=2), Resources(1, 4).threads(workers=2)) == (12, 1)
    roomy = Resources(1, 0, processes_per_node=2, cpus_per_node=16)
    assert (roomy.cpus(workers=2), roomy.threads(workers=2)) == (16, 6)
    assert Resources(1, 4, cpus_per_node=2).threads(workers=2) == 1


def test_a_launch_file_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(FileNotFoundError, match=r"accelerate_configs/zero9.yaml; launch files .*zero2\.yaml"):
        read_launch(LAUNCH_FILES / "zero9.yaml")


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", ""])
def test_a_file_that_is_no_launch_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "launch.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"--launch: .*launch\.yaml is no"):
        read_launch(tmp_path / "launch.yaml")


@pytest.mark.parametrize(
    ("launch", "resources", "message"),
    [
        ({"distributed_type": "NO"}, Resources(1, 1), "starts one process .*zero2.yaml"),
        ({"distributed_type": False}, Resources(1, 1), "starts one process .*zero2.yaml"),
        ({"distributed_type": "FSDP"}, Resources(1, 1), "'FSDP', which training does not know"),
        ({"distributed_type": "MULTI_GPU"}, Resources(1, 1), "two processes or more, and 1 node x 1 is one"),
        ({"distributed_type": "MULTI_GPU", "use_cpu": True}, Resources(1, 4), "use_cpu, but --gpus-per-node is 4"),
    ],
)
def test_processes_and_launch_file_must_fit(launch: dict, resources: Resources, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        check_launch(launch, Path("x.yaml"), resources)
    assert "x.yaml" in str(raised.value)


def test_a_missing_deepspeed_file_is_named() -> None:
    launch = {"distributed_type": "DEEPSPEED", "deepspeed_config": {"deepspeed_config_file": "away/zero2.json"}}
    with pytest.raises(FileNotFoundError, match=r"x\.yaml names away/zero2\.json"):
        check_launch(launch, Path("x.yaml"), Resources(1, 1))


@pytest.mark.parametrize("name", ["ddp", "zero1", "zero2", "zero3"])
def test_our_launch_files_fit_many_nodes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(LAUNCH_FILES.parent)
    launch = read_launch(LAUNCH_FILES / f"{name}.yaml")
    check_launch(launch, LAUNCH_FILES / f"{name}.yaml", Resources(4, 8))
    resolved = resolve_launch(launch, Resources(4, 8), Path("/runs/a/deepspeed.json"))
    assert (resolved["num_machines"], resolved["num_processes"], resolved["same_network"]) == (4, 32, True)
    if name != "ddp":
        assert resolved["deepspeed_config"] == {
            "deepspeed_config_file": "/runs/a/deepspeed.json",
            "zero3_init_flag": False,
            "deepspeed_multinode_launcher": "standard",
        }
    assert launch["num_machines"] == 1  # the file's own values are not touched
