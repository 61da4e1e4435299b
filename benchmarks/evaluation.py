"""Metrics: all of CASIA-B's figures, ours and the field's way, in one run; and a set as large as OU-MVLP's.

python -m benchmarks.evaluation [--large SEQUENCES] [--parts 50] [--channels 256] [--probe-views 14] [--to FOLDER]

CASIA-B's test split: 5,485 sequences, 73 x 128, 11 views, three conditions. The field's way (GaitSet, OpenGait and what
descends from them): for every condition, probe view and gallery view, pick the sequences by their names, compute the
distances part by part, sort every row, and count. Both get the same embeddings and must come to the same figures.

--large makes SEQUENCES random ones, an identity each subject (14 views, galleries missing at random), as a file where
temporary files lie (TMPDIR), and evaluates it by OU-MVLP's protocol in a process of its own, whose peak memory is
reported.
"""

import argparse
import json
import multiprocessing
import platform
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.metrics import evaluate
from pipeline.metrics.protocols import Protocol, load

CONDITIONS = [*(f"nm-0{i}" for i in range(1, 7)), "bg-01", "bg-02", "cl-01", "cl-02"]
GALLERY, GROUPS = CONDITIONS[:4], {"NM": CONDITIONS[4:6], "BG": CONDITIONS[6:8], "CL": CONDITIONS[8:]}
CASIA_VIEWS = [f"{view:03}" for view in range(0, 181, 18)]
OUMVLP_VIEWS = [f"{view:03}" for view in (*range(0, 91, 15), *range(180, 271, 15))]

Names = tuple[list[str], list[str], list[str]]


def casia_b(noise: float = 5.0) -> tuple[np.ndarray, Names]:
    """Embeddings fp32 [5485, 73, 128] with an identity in each, and their names."""
    rng = np.random.default_rng(0)
    every = [(f"{s:03}", c, v) for s in range(75, 125) for c in CONDITIONS for v in CASIA_VIEWS]
    kept = [every[i] for i in np.sort(rng.permutation(len(every))[:5485])]
    subjects, conditions, views = (list(column) for column in zip(*kept, strict=True))
    who = rng.standard_normal((50, 73, 128), np.float32)[[int(subject) - 75 for subject in subjects]]
    return who + noise * rng.standard_normal(who.shape, np.float32), (subjects, conditions, views)


def field(embeddings: np.ndarray, names: Names) -> dict[str, np.ndarray]:
    """Rank-1 (%) of each condition by probe and gallery view, fp32 throughout; embeddings [n, channels, parts]."""
    subjects, conditions, views = np.array(names[0]), names[1], names[2]
    rates = {group: np.zeros((len(CASIA_VIEWS),) * 2) for group in GROUPS}
    for group, wanted in GROUPS.items():
        for i, probe_view in enumerate(CASIA_VIEWS):
            for j, gallery_view in enumerate(CASIA_VIEWS):
                in_gallery = np.isin(conditions, GALLERY) & np.isin(views, [gallery_view])
                in_probe = np.isin(conditions, wanted) & np.isin(views, [probe_view])
                matrix = _field_distances(embeddings[in_probe], embeddings[in_gallery])
                order = matrix.sort(1)[1].numpy()
                right = subjects[in_probe][:, None] == subjects[in_gallery][order[:, :5]]
                rates[group][i, j] = 100 * (np.cumsum(right, 1)[:, 0] > 0).mean()
    return rates


def _field_distances(probes: np.ndarray, gallery: np.ndarray) -> torch.Tensor:
    x, y = torch.from_numpy(probes), torch.from_numpy(gallery)
    total = torch.zeros(len(x), len(y))
    for part in range(x.shape[2]):
        a, b = x[:, :, part], y[:, :, part]
        squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
        total += F.relu(squared).sqrt()
    return total / x.shape[2]


def compare(repeats: int) -> dict[str, object]:
    """Seconds of both ways, wall and CPU, the best of `repeats`; raises AssertionError where their figures differ."""
    embeddings, names = casia_b()
    as_the_field_has_them = np.ascontiguousarray(embeddings.transpose(0, 2, 1))
    num_threads = torch.get_num_threads()

    def field_with(threads: int) -> dict[str, np.ndarray]:
        torch.set_num_threads(threads)
        try:
            return field(as_the_field_has_them, names)
        finally:
            torch.set_num_threads(num_threads)

    # Its many small operations are often faster on one thread, and always when somebody else needs a core.
    ways = {
        "ours": lambda: evaluate(embeddings, *names, "casia-b"),
        "field, one thread": lambda: field_with(1),
        "field, all threads": lambda: field_with(num_threads),
    }
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        found = {}
        for name, way in ways.items():
            begin, begin_cpu = time.perf_counter(), time.process_time()
            found[name] = way()
            wall[name].append(time.perf_counter() - begin)
            cpu[name].append(time.process_time() - begin_cpu)
    _same_figures(found["ours"], found["field, one thread"])
    best = {name: min(times) for name, times in wall.items()}
    fastest = min(best["field, one thread"], best["field, all threads"])
    return {
        "seconds": best,
        "seconds of CPU": {name: min(times) for name, times in cpu.items()},
        "ratio to the field's faster": fastest / best["ours"],
        "mean rank-1": found["ours"]["headline"]["mean"],
    }


def _same_figures(ours: dict[str, Any], theirs: dict[str, np.ndarray]) -> None:
    off_diagonal = ~np.eye(len(CASIA_VIEWS), dtype=bool)
    for group, rates in theirs.items():
        np.testing.assert_allclose(np.array(ours["by_view"][group]["rank1"]), rates, atol=1e-9)
        mean = np.mean([row[keep].mean() for row, keep in zip(rates, off_diagonal, strict=True)])
        np.testing.assert_allclose(ours["headline"][group], mean, atol=1e-9)


def large(sequences: int, parts: int, channels: int, probe_views: int) -> dict[str, float | int | str]:
    """Makes the set, evaluates it in a process of its own; what it took."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "embeddings.npy"
        begin = time.perf_counter()
        names = _make(path, sequences, parts, channels)
        made = time.perf_counter() - begin
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(_measure, (path, names, probe_views))
    return {
        "sequences": len(names[0]),
        "parts x channels": f"{parts} x {channels}",
        "GB of embeddings": len(names[0]) * parts * channels * 4 / 1e9,
        "probe views": probe_views,
        "seconds to make": made,
        **found,
    }


def _make(path: Path, sequences: int, parts: int, channels: int) -> Names:
    rng = np.random.default_rng(0)
    num_subjects = -(-sequences // (2 * len(OUMVLP_VIEWS) - 1))
    every = [(f"{s:05}", c, v) for s in range(num_subjects) for c in ("00", "01") for v in OUMVLP_VIEWS]
    kept = [every[i] for i in np.sort(rng.permutation(len(every))[:sequences])]
    whole = np.lib.format.open_memmap(path, "w+", np.float32, (len(kept), parts, channels))
    for start in range(0, len(kept), 1024):
        for row in range(start, min(start + 1024, len(kept))):
            identity = np.random.default_rng(int(kept[row][0])).standard_normal((parts, channels), np.float32)
            whole[row] = identity + 4 * rng.standard_normal((parts, channels), np.float32)
    whole.flush()
    subjects, conditions, views = (list(column) for column in zip(*kept, strict=True))
    return subjects, conditions, views


def _measure(path: Path, names: Names, probe_views: int) -> dict[str, float | int | str]:
    before = _peak_gb()
    rules = load("oumvlp").model_dump()
    rules["probes"]["probe"]["views"] = OUMVLP_VIEWS[:: len(OUMVLP_VIEWS) // probe_views][:probe_views]
    last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > 30:
            last = time.monotonic()
            print(f"  {done:,} of {total:,} probes", flush=True)

    begin, cpu = time.perf_counter(), time.process_time()
    embeddings = np.load(path, mmap_mode="r")
    metrics = evaluate(embeddings, *names, Protocol.model_validate(rules), progress=show)
    return {
        "probes": metrics["counts"]["probe"]["probe"],
        "gallery": metrics["counts"]["gallery"],
        "rank-1 (%)": metrics["headline"]["rank-1"],
        "seconds": time.perf_counter() - begin,
        "seconds of CPU": time.process_time() - cpu,
        "peak GiB": _peak_gb(),
        "peak GiB before": before,
    }


def _peak_gb() -> float:
    """Peak resident memory of this process so far, GiB; pages of mapped files count."""
    # Not getrusage: its peak outlives exec, and would be that of the process that made the file.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**20  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--large", type=int, default=0, metavar="SEQUENCES")
    parser.add_argument("--parts", type=int, default=50)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--probe-views", type=int, default=14)
    parser.add_argument("--to", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    figures: dict[str, object] = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }
    if arguments.repeats:
        figures["casia-b"] = compare(arguments.repeats)
    if arguments.large:
        figures["large"] = large(arguments.large, arguments.parts, arguments.channels, arguments.probe_views)
    print(json.dumps(figures, indent=1))
    if arguments.to:
        arguments.to.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
