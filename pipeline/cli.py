"""`hstl`: data sets in and out, reports, conversion. Training and evaluation go through `accelerate launch`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipeline.world import USER_MISTAKES, is_users_mistake

app = typer.Typer(
    name="hstl",
    help="Gait recognition with HSTL: pack silhouettes, look at shards, report runs.\n\n"
    "Training and evaluation: accelerate launch --config_file accelerate_configs/zero2.yaml -m pipeline.train RECIPE",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
out = Console()

Url = Annotated[str, typer.Argument(help="folder or URL of packed shards")]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress bar")]


@contextmanager
def _mistakes_explained() -> Iterator[None]:
    """Mistakes of the user's end in their message and exit code 2, not in a traceback."""
    try:
        yield
    except USER_MISTAKES as error:
        if not is_users_mistake(error):
            raise
        Console(stderr=True).print(f"[bold red]error:[/] {_escape(str(error))}", soft_wrap=True)
        raise typer.Exit(2) from None


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


@app.command()
def walkers(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="folder to make")],
    subjects: Annotated[int, typer.Option(help="people")] = 24,
    seed: Annotated[int, typer.Option(help="same seed, same bytes")] = 0,
    workers: Annotated[int | None, typer.Option(help="processes; all cores unless given")] = None,
    quiet: Quiet = False,
) -> None:
    """Draw procedural people who walk, as a raw CASIA-B tree of PNG silhouettes."""
    from shards.walkers import write

    with _mistakes_explained():
        summary = write(folder, subjects, seed, workers=workers, progress=not quiet)
    out.print(
        f"{summary.subjects} subjects, {summary.sequences} sequences, {summary.frames} frames in {folder} "
        f"({summary.frames / summary.seconds:.0f} frames/s)"
    )


@app.command()
def pack(
    layout: Annotated[str, typer.Option(help="layout of the raw data: casia-b, oumvlp, grew, gait3d or opengait")],
    source: Annotated[Path, typer.Option(help="folder of the raw data")],
    to: Annotated[str, typer.Option(help="folder or URL (s3://, gs://, az://) for the shards")],
    partition: Annotated[
        str | None,
        typer.Option(help="who trains, who tests: casia-b, oumvlp or a YAML file; the layout's unless given"),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="processes; all cores unless given")] = None,
    shard_size: Annotated[float, typer.Option(help="megabytes a shard, about")] = 32,
    level: Annotated[
        int, typer.Option(help="compression, 1 to 12: 12 is a tenth smaller, packing nine times the work")
    ] = 7,
    quiet: Quiet = False,
) -> None:
    """Pack raw silhouettes into WebDataset shards with an index; goes on where a killed run stopped."""
    from shards.pack import pack as pack_shards

    with _mistakes_explained():
        summary = pack_shards(layout, source, to, partition, workers, shard_size, progress=not quiet, level=level)
    out.print(summary)


@app.command()
def verify(
    url: Url,
    workers: Annotated[int | None, typer.Option(help="processes; all cores unless given")] = None,
    state: Annotated[Path | None, typer.Option(help="file that lets a stopped check go on")] = None,
    quiet: Quiet = False,
) -> None:
    """Check every byte against the index and the checksums; exit code 1 if any is wrong."""
    from shards.verify import verify as verify_shards

    with _mistakes_explained():
        report = verify_shards(url, progress=not quiet, workers=workers, state=state)
    out.print(report)
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def show(
    url: Url,
    key: Annotated[str | None, typer.Argument(help="a sequence, such as 001-nm-01-090; several unless given")] = None,
    to: Annotated[Path | None, typer.Option(help="PNG file to draw")] = None,
) -> None:
    """Sum up a data set, and draw a sequence or a sheet of several."""
    from shards.show import contact_sheet, describe

    with _mistakes_explained():
        if to is None and key is not None:
            raise ValueError(f"--to is missing: name the PNG file that {key} is to be drawn into")
        out.print(describe(url))
        if to is not None:
            out.print(f"drawn: {contact_sheet(url, to, [key] if key else [])}")


@app.command()
def runs(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="[FOLDER...]", help="folders of runs; runs/ unless given")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """List runs: how far each is, whether it lives, its loss, speed and rank-1; the newest first."""
    import json
    from datetime import UTC, datetime

    from rich.text import Text

    from pipeline.runs import list_runs, show

    now = datetime.now(UTC)
    with _mistakes_explained():
        found = list_runs(folders or [Path("runs")], now)
    if as_json:
        typer.echo(json.dumps([run.to_dict() for run in found], indent=1))
    elif not found:
        out.print("no runs there: a run is a folder with a recipe.yaml")
    else:
        for part in show(found, now, out.width):
            out.print(part, soft_wrap=isinstance(part, Text))  # a path is to be copied


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="folders of evaluated runs, or results files")],
    json_file: Annotated[Path | None, typer.Option("--json", help="write the comparison here, too")] = None,
) -> None:
    """Set runs beside one another and beside the published figures, and say what is comparable."""
    import json

    from pipeline.compare import compare as compare_runs

    with _mistakes_explained():
        comparisons = compare_runs(runs)
        if json_file is not None:
            json_file.write_text(json.dumps([one.to_dict() for one in comparisons], indent=1))
    for one in comparisons:
        out.print(one, soft_wrap=True)


@app.command()
def identify(
    probe: Annotated[str, typer.Argument(help="folder of one walk's PNG frames, or a key of the gallery's data set")],
    gallery: Annotated[str, typer.Option(help="folder or URL of packed shards")],
    checkpoint: Annotated[Path, typer.Option(help="a run's or a checkpoint's folder, safetensors, or a released .pt")],
    variant: Annotated[str | None, typer.Option(help="network of a released file, such as casia-b")] = None,
    split: Annotated[str, typer.Option(help="sequences to search: test, train or all")] = "test",
    top: Annotated[int, typer.Option(help="people and sequences to list", min=1)] = 10,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the answer here, too")] = None,
    html: Annotated[Path | None, typer.Option(help="write a page with pictures here, too")] = None,
    cache: Annotated[Path | None, typer.Option(help="folder that keeps the gallery's embeddings")] = None,
) -> None:
    """Search a gallery for the people whose walk is nearest to a probe's."""
    import json

    from pipeline.identify import identify as search
    from pipeline.identify import write_page

    with _mistakes_explained():
        answer, frames, shard_set = search(
            probe, gallery, checkpoint, variant=variant, split=split, top=top, cache=cache
        )
        if json_file is not None:
            json_file.write_text(json.dumps(answer.to_dict(), indent=1))
        if html is not None:
            write_page(html, answer, frames, shard_set)
    out.print(answer, soft_wrap=True)


@app.command("check-submission")
def check_submission(
    file: Annotated[Path, typer.Argument(help="submission.zip or submission.csv, as GREW's server takes it")],
    data: Annotated[str | None, typer.Option(help="GREW's packed shards: probes and gallery are checked, too")] = None,
) -> None:
    """Check a submission before it is sent; exit code 1 if anything is wrong."""
    from pipeline.submission import faults, known_names

    with _mistakes_explained():
        found = faults(file, *(known_names(data) if data else (None, None)))
    for fault in found:
        out.print(f"{file}: {fault}", soft_wrap=True, markup=False)
    if found:
        raise typer.Exit(1)
    against = f"against {data}" if data else "its form alone; --data checks probes and gallery, too"
    out.print(f"{file}: nothing wrong ({against})", soft_wrap=True, markup=False)


@app.command()
def fault(
    folder: Annotated[Path, typer.Argument(metavar="RUN/faults/STEP", help="what training left of a step it refused")],
) -> None:
    """Run a step that was not finite again, on this machine: its losses, and the gradients that are not finite."""
    from pipeline.faults import repeat
    from pipeline.recipe import load

    with _mistakes_explained():
        found = repeat(folder, load(folder.parents[1] / "recipe.yaml").loss)
    for one in found.recorded:
        said = ", ".join(f"{name} {value}" for name, value in one["losses"].items())
        out.print(f"recorded on rank {one['rank']}: {said}; gradients not finite: {len(one['gradients'])}")
        out.print(f"  sequences: {', '.join(one['sequences'])}", soft_wrap=True, markup=False)
    said = ", ".join(f"{name} {value:.6g}" for name, value in found.losses.items())
    out.print(f"step {found.step} again, in fp32 on the whole batch: {said}")
    out.print(f"gradients not finite: {', '.join(found.gradients) or 'none'}", soft_wrap=True, markup=False)


@app.command()
def submit(
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE... [key.path=value...]", help="recipes, and values in place of theirs"),
    ],
    nodes: Annotated[int, typer.Option(help="nodes", min=1)] = 1,
    gpus_per_node: Annotated[int, typer.Option(help="GPUs of a node, a process each; 0 trains on CPUs", min=0)] = 1,
    processes_per_node: Annotated[
        int | None, typer.Option(help="processes of a node without GPUs; 1 unless given", min=1)
    ] = None,
    cpus_per_node: Annotated[
        int | None,
        typer.Option(help="cores of a node; a process and its loader workers have one each unless given", min=1),
    ] = None,
    partition: Annotated[str | None, typer.Option(help="SLURM's partition")] = None,
    time: Annotated[str | None, typer.Option(help="limit of a start: minutes, H:MM:SS or D-HH:MM:SS")] = None,
    launch: Annotated[Path, typer.Option(help="launch file")] = Path("accelerate_configs/zero2.yaml"),
    site: Annotated[Path | None, typer.Option(help="what your cluster needs; see accelerate_configs/slurm")] = None,
    run: Annotated[Path | None, typer.Option(help="folder of the run, or of the runs of several recipes")] = None,
    save_seconds: Annotated[
        float, typer.Option(help="longest time of a save: the job is told 60 s + twice it ahead", min=0)
    ] = 30,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="write the job, and say how to submit it")] = False,
) -> None:
    """Train as a SLURM job that saves and requeues itself when it is interrupted; several recipes are an array."""
    from pipeline import slurm

    with _mistakes_explained():
        recipes, overrides = slurm.recipes_and_overrides(arguments)
        resources = slurm.Resources(
            nodes, gpus_per_node, processes_per_node, cpus_per_node, partition, time, save_seconds
        )
        written = slurm.prepare(recipes, overrides, resources, slurm.load_site(site), launch, run)
        job = None if dry_run else slurm.submit(written)
    for note in written.notes:
        out.print(f"note: {note}", soft_wrap=True, markup=False)
    for folder in written.runs:
        out.print(f"run: {folder}", soft_wrap=True, markup=False)
    if job is None:
        out.print(f"written, not submitted; submit it with\n  {written.command}", soft_wrap=True, markup=False)
    else:
        out.print(f"job {job}; its log: {written.folder}/job-{job}*.log", soft_wrap=True, markup=False)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="folder of a run")]) -> None:
    """Write RUN/report.html from the run's metrics and results."""
    import json

    import shards
    from pipeline.report import write_report

    with _mistakes_explained():
        results = run / "evaluation" / "results.json"
        shard_set = shards.open(json.loads(results.read_text())["data"]["url"]) if results.is_file() else None
        page = write_report(run, shard_set)
    out.print(f"report: {page}")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="released .pt, our safetensors, a checkpoint or a run")],
    to: Annotated[Path, typer.Argument(metavar="OUT", help=".pt (as released) or .safetensors (ours)")],
    recipe: Annotated[Path, typer.Option(help="recipe that says the variant, which released files do not")],
) -> None:
    """Rewrite a released checkpoint as ours, or ours as released."""
    from pipeline.checkpoint.convert import convert as convert_weights
    from pipeline.recipe import load

    with _mistakes_explained():
        network = convert_weights(source, to, load(recipe).network.variant)
        out.print(f"{to}: {network.variant.name}, {network.variant.parts} parts, {network.num_classes} classes")


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="a run, a checkpoint or a weights file")],
    to: Annotated[Path, typer.Argument(metavar="OUT", help="a file ending in .onnx, or a folder for from_pretrained")],
    recipe: Annotated[Path | None, typer.Option(help="recipe of the variant, for released files")] = None,
) -> None:
    """Write a network as ONNX, or as a folder for `HSTL.from_pretrained` and the hub."""
    from pipeline.checkpoint import read_weights, to_network
    from pipeline.checkpoint.convert import export_onnx, export_pretrained
    from pipeline.recipe import load

    with _mistakes_explained():
        network = to_network(read_weights(checkpoint), load(recipe).network.variant if recipe else None)
        if to.suffix == ".onnx":
            export_onnx(network, to)
        else:
            export_pretrained(network, to, checkpoint if (checkpoint / "recipe.yaml").is_file() else None)
        out.print(f"written: {to}")


if __name__ == "__main__":
    app()
