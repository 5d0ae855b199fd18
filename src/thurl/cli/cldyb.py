"""`thurl cldyb pool|search|replay|report`: sequences of tasks that are hard for continual learners."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thurl.cli.output import check_new, echo_json, table
from thurl.errors import DataError, UsageError


if TYPE_CHECKING:
    from torch import Tensor

    from thurl.continual.class_data import ClassData
    from thurl.continual.learner import Learner
    from thurl.continual.vision_encoders import LoadedEncoder

__all__ = ["register"]

cldyb = typer.Typer(
    name="cldyb",
    help="CLDyB: benchmarks for continual learning that are built while the learners are tested (arXiv 2503.04655).",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    app.add_typer(cldyb)


Pool = Annotated[Path, typer.Option("--pool", help="Manifest of the classes, from `thurl cldyb pool`.")]
Encoder = Annotated[
    str | None,
    typer.Option("--encoder", help="Folder of an MLPEncoder, a ViT, DeiT, DINOv2, CLIP or timm model; or the Hub's."),
]
Features = Annotated[
    Path | None, typer.Option("--features", help="Features of any encoder (.safetensors), for frozen learners.")
]
Learners = Annotated[
    list[str] | None,
    typer.Option("--learner", "-l", help="A learner: name, or name:option=number,option=number. Again for more."),
]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Processes; any number finds the same sequence.")]
Cache = Annotated[
    Path | None, typer.Option("--cache", help="Folder of what was trained: a killed run goes on from it.")
]
Device = Annotated[
    str | None, typer.Option("--device", help="Features are computed on it; the first GPU where there is one.")
]
Memory = Annotated[float, typer.Option("--memory", min=0, help="GiB of prepared pictures each process keeps.")]
Outside = Annotated[bool, typer.Option("--allow-outside", help="Accept pictures outside the manifest's folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")]


@cldyb.command("pool")
def pool(
    sources: Annotated[list[str], typer.Argument(help="Folders of class folders, .npz files, hub:ID of data sets.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Manifest to write, .jsonl.")],
    cap: Annotated[int, typer.Option("--cap", min=1, help="Most training pictures per class.")] = 200,
    seed: Annotated[int, typer.Option("--seed", help="Of the splits.")] = 0,
    names_differ: Annotated[
        bool, typer.Option("--names-differ", help="Classes called alike in two data sets are different things.")
    ] = False,
    skip_small: Annotated[
        bool, typer.Option("--skip-small", help="Leave out classes of one or two pictures.")
    ] = False,
    skip_corrupt: Annotated[bool, typer.Option("--skip-corrupt", help="Leave out pictures that do not open.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Collect classes, give every picture a split by its name, and leave out copies."""
    check_new("--output", output, overwrite)
    from thurl.continual.pool import make_pool
    from thurl.continual.pool_sources import array_samples, folder_samples, hub_samples

    root, corrupt = output.parent, "skip" if skip_corrupt else "error"
    samples = []
    for source in sources:
        if source.startswith("hub:"):
            samples += hub_samples(source.removeprefix("hub:"), on_corrupt=corrupt)
        elif source.endswith(".npz"):
            samples += array_samples(source, root=root)
        else:
            samples += folder_samples(source, root=root, on_corrupt=corrupt)
    made = make_pool(
        samples,
        root,
        caps=(cap, None, None),
        seed=seed,
        share_names=not names_differ,
        on_small="skip" if skip_small else "error",
    )
    made.save(output)
    if as_json:
        echo_json({"output": str(output), "hash": made.hash, "classes": made.counts(), "aliases": made.aliases})
        return
    typer.echo(f"{len(made.images)} pictures of {len(made.classes)} classes, hash {made.hash[:16]}, in {output}")
    for alias, uids in made.aliases.items():
        typer.echo(f"never in one sequence ({alias}): {', '.join(uids)}", err=True)


@cldyb.command("search")
def search(
    pool: Pool,
    output: Annotated[Path, typer.Option("--output", "-o", help="Sequence file to write, .json.")],
    encoder: Encoder = None,
    features: Features = None,
    learner: Learners = None,
    tasks: Annotated[int, typer.Option("--tasks", "-t", min=1, help="Tasks in the sequence.")] = 10,
    classes: Annotated[int, typer.Option("--classes", "-k", min=1, help="Classes per task.")] = 20,
    starts: Annotated[int, typer.Option("--starts", min=1, help="Greedy candidates sampled per node.")] = 30,
    clusters: Annotated[int, typer.Option("--clusters", min=1, help="Children of a node.")] = 6,
    simulations: Annotated[int, typer.Option("--simulations", min=1, help="Per committed task.")] = 24,
    depth: Annotated[int, typer.Option("--depth", min=1, help="Tasks looked ahead.")] = 2,
    exploration: Annotated[float, typer.Option("--exploration", min=0, help="Weight of the exploration term.")] = 0.05,
    pick: Annotated[str, typer.Option("--pick", help="Member of a cluster: uniform, or hardest for SimpleCIL.")] = (
        "uniform"
    ),
    reward: Annotated[str, typer.Option("--reward", help="difficulty, neg_aa or neg_aa_gain.")] = "difficulty",
    aggregate: Annotated[str, typer.Option("--aggregate", help="Over learners: mean, min, max or cvar.")] = "mean",
    easiest: Annotated[bool, typer.Option("--easiest", help="The easiest sequence instead.")] = False,
    quantile: Annotated[
        float | None, typer.Option("--quantile", help="A sequence of this quantile of AA, 0 hard to 1 easy.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the search and its learners.")] = 0,
    baselines: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="Build the baselines of equal budget, too.")
    ] = True,
    template: Annotated[
        str | None,
        typer.Option(
            "--prompt-template", help="For CLIP's zero-shot accuracy, {} the class; 'a photo of a {}.' if not given."
        ),
    ] = None,
    cache: Cache = None,
    workers: Workers = 1,
    device: Device = None,
    memory: Memory = 1.0,
    allow_outside: Outside = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Find a sequence that is hard for all learners given, on average (one learner: for that one)."""
    check_new("--output", output, overwrite)
    names = learner or ["simplecil", "ranpac:width=2000"]
    from thurl.continual.baselines import build_baselines
    from thurl.continual.candidates import Candidates
    from thurl.continual.contamination import class_contamination
    from thurl.continual.evaluator import Evaluator
    from thurl.continual.mdp import RewardSettings, SearchSettings
    from thurl.continual.prefix_store import PrefixStore
    from thurl.continual.report import builder_rows
    from thurl.continual.sampling import keyed_generator
    from thurl.continual.search import most_trainings, random_sequence, search_sequence, with_targets
    from thurl.continual.sequence_file import sequence_document, write_sequence

    settings = SearchSettings(
        tasks=tasks,
        classes_per_task=classes,
        starts=starts,
        clusters=clusters,
        simulations=simulations,
        depth=depth,
        exploration=exploration,
        pick=pick,
        reward=RewardSettings(kind=reward, aggregate=aggregate, easiest=easiest),
        candidates="random" if easiest else "greedy",
        target_quantile=quantile,
        seed=seed,
    )
    data, learners, loaded = _loaded(pool, encoder, features, names, cache, allow_outside, device, memory)
    settings.check_pool(data.groups)
    known = class_contamination(data, _text_features(loaded, data, template))
    with Evaluator(data, learners, seed=seed, store=PrefixStore(cache), workers=workers) as evaluator:
        first = random_sequence(Candidates(evaluator, settings), keyed_generator(seed, "trial"))[:1]
        with evaluator.counted() as trial:
            evaluator.evaluate([first])
        most = most_trainings(settings, len(learners))
        typer.echo(
            f"at most {most} trainings, each about {trial.seconds / trial.trainings:.2g} s at the first task: "
            f"{most * trial.seconds / trial.trainings:.3g} s in one process",
            err=True,
        )
        with evaluator.counted() as references:
            settings = with_targets(evaluator, settings)
        if quantile is not None:
            aims = ", ".join(f"{value:.3f}" for value in settings.reward.targets)
            typer.echo(f"AA to come close to: {aims} ({references.trainings} trainings of references)", err=True)
        found = search_sequence(evaluator, settings, tell=lambda line: typer.echo(line, err=True))
        typer.echo(
            f"{found.cost.trainings} trainings ({found.cost.trained} new), {found.cost.seconds:.1f} s of training, "
            f"{found.wall:.1f} s in all",
            err=True,
        )
        others = build_baselines(evaluator, settings, found.cost.trainings) if baselines else []
        document = sequence_document(evaluator, settings, found, others)
    document["contamination"] = {uid: known[uid] for task in document["tasks"] for uid in task}
    write_sequence(output, document)
    if as_json:
        echo_json({"output": str(output), "tasks": document["tasks"], "metrics": document["found"]["metrics"],
                   "trainings": found.cost.trainings})  # fmt: skip
        return
    heading, *rows = builder_rows(document)
    table(heading, rows)
    typer.echo(f"written to {output}; numbers of a search are selected: check with `thurl cldyb replay`", err=True)


@cldyb.command("replay")
def replay(
    sequence: Annotated[Path, typer.Argument(help="Sequence file of `thurl cldyb search`.")],
    pool: Pool,
    encoder: Encoder = None,
    features: Features = None,
    learner: Learners = None,
    seeds: Annotated[str, typer.Option("--seeds", help="Fresh seeds, by commas.")] = "1001,1002,1003",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write all runs into this .json.")] = None,
    cache: Cache = None,
    workers: Workers = 1,
    device: Device = None,
    memory: Memory = 1.0,
    allow_outside: Outside = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train the learners of the search, or others with --learner, again on a sequence and test them."""
    if output is not None:
        check_new("--output", output, overwrite)
    try:
        fresh = [int(part) for part in seeds.split(",")]
    except ValueError:
        raise UsageError(f"--seeds is {seeds!r}; give whole numbers by commas") from None
    from thurl.continual.prefix_store import PrefixStore
    from thurl.continual.replay import replay as replay_sequence
    from thurl.continual.sequence_file import benchmark_tasks, read_sequence, write_sequence

    document = read_sequence(sequence)
    names: list[Any] = list(learner) if learner else document["learners"]
    data, learners, _ = _loaded(pool, encoder, features, names, cache, allow_outside, device, memory)
    chosen = benchmark_tasks(document, data)
    if data.encoder != document.get("encoder"):
        typer.echo("warning: another encoder than in the search; the pool is the same", err=True)
    found = replay_sequence(
        data,
        learners,
        chosen,
        seeds=fresh,
        search_seed=document.get("learner_seed"),
        store=PrefixStore(cache),
        workers=workers,
    )
    found = {"sequence": sequence.name, "pool_hash": data.pool_hash, "encoder": data.encoder, **found}
    if output is not None:
        write_sequence(output, found)
    if as_json:
        echo_json(found)
        return
    columns = ("aa", "aaa", "ala", "afm", "ar", "ar_ratio")
    rows = [[name, *(entry["mean"][key] for key in columns)] for name, entry in found["learners"].items()]
    table(["learner", *(key.upper() for key in columns)], rows)
    searched = document["found"]["metrics"]
    for name in found["learners"]:
        if name in searched:
            typer.echo(f"{name}: AA was {searched[name]['aa']:.4g} in the search", err=True)


@cldyb.command("report")
def report(
    sequence: Annotated[Path, typer.Argument(help="Sequence file of `thurl cldyb search`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Page to write, .html.")],
    replayed: Annotated[Path | None, typer.Option("--replay", help="File of `thurl cldyb replay --output`.")] = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Show a sequence as one HTML page: trees, accuracies after each task, baselines, contamination."""
    check_new("--output", output, overwrite)
    from thurl.continual.report import write_report
    from thurl.continual.sequence_file import read_sequence

    document = read_sequence(sequence)
    again = None
    if replayed is not None:
        try:
            again = json.loads(replayed.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{replayed}: not a file of `thurl cldyb replay`: {error}") from error
        known = isinstance(again, dict) and again.get("pool_hash") == document["pool_hash"]
        learners = again.get("learners") if known else None
        whole = isinstance(learners, dict) and all(
            {"runs", "mean", "std"} <= set(entry) for entry in learners.values()
        )
        if not whole:
            raise DataError(f"{replayed}: not a replay of a sequence in this pool; replay {sequence} again")
    write_report(output, document, again)
    typer.echo(f"written to {output}")


def _loaded(
    pool: Path,
    encoder: str | None,
    features: Path | None,
    names: list[Any],
    cache: Path | None,
    allow_outside: bool,
    device: str | None,
    memory: float,
) -> tuple[ClassData, list[Learner], LoadedEncoder | None]:
    if (encoder is None) == (features is None):
        raise UsageError("give either --encoder, the folder of an encoder, or --features, a file of features")
    from thurl.cli.devices import usable_device
    from thurl.continual.learners import learners_of, parse_learner
    from thurl.continual.pool import read_pool
    from thurl.continual.pool_data import class_data, class_data_from_features

    options = [parse_learner(name) if isinstance(name, str) else name for name in names]
    if features is not None:
        learners = learners_of(options)
        return class_data_from_features(read_pool(pool, allow_outside=allow_outside), features), learners, None
    assert encoder is not None
    from thurl.continual.vision_encoders import load_encoder
    from thurl.training.progress import quiet_libraries

    quiet_libraries()
    place = usable_device(device)
    loaded = load_encoder(encoder)
    learners = learners_of(options, loaded.model)
    data = class_data(
        read_pool(pool, allow_outside=allow_outside),
        loaded.model,
        loaded.preprocess,
        keep_inputs=any(not learner.frozen_encoder for learner in learners),
        memory=int(memory * 2**30),
        cache=None if cache is None else cache / "features",
        device=place,
    )
    return data, learners, loaded


def _text_features(loaded: LoadedEncoder | None, data: ClassData, template: str | None) -> Tensor | None:
    if loaded is None:
        if template is not None:
            raise UsageError("--prompt-template needs --encoder with a CLIP model; --features has no text tower")
        return None
    return loaded.text_features(data.classes, template)
