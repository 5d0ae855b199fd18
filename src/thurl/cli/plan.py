"""`thurl plan`."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

import typer

from thurl.errors import UsageError
from thurl.recipe.shipped import find_recipe


__all__ = ["register"]

_SIZE = re.compile(r"(\d+)x(\d+)")


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("plan")(plan)


def plan(
    recipe: Annotated[str, typer.Argument(help="Recipe file, or the name of one that ships.", metavar="RECIPE")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.key=value ...", metavar="[OVERRIDES]...", show_default=False)
    ] = None,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="GPUs that train.")] = 1,
    gpu_memory: Annotated[
        float | None,
        typer.Option("--gpu-memory", min=0.1, help="Memory of one GPU in GiB; that of --device when left out."),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="a100, h100 or h200: also predict the seconds of a step.")
    ] = None,
    zero: Annotated[
        int | None,
        typer.Option("--zero", min=0, max=3, help="ZeRO stage, where the launcher's file decides and not the recipe."),
    ] = None,
    picture: Annotated[
        str | None,
        typer.Option("--picture", help="Size of the pictures, WIDTHxHEIGHT; KADID's 512x384 when left out."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output, in bytes and seconds.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Predict memory and time of a run, without GPU, weights or data. Exit code 1 when it cannot fit."""
    from thurl.recipe.plan import make_plan
    from thurl.recipe.validate import load_recipe
    from thurl.rl.plan.time import device_named

    size = None if picture is None else _SIZE.fullmatch(picture)
    if picture is not None and (size is None or not all(int(side) for side in size.groups())):
        raise UsageError(f"`--picture {picture}` is no size; write WIDTHxHEIGHT in pixels, for example 512x384")
    chosen = None if device is None else device_named(device)
    if gpu_memory is None and chosen is None:
        raise UsageError("say how large a GPU is: `--gpu-memory GIB`, or `--device a100`")
    loaded = load_recipe(find_recipe(recipe), overrides or (), processes=gpus)
    made = make_plan(
        loaded.recipe,
        gpus=gpus,
        memory=gpu_memory if gpu_memory is not None else chosen.memory,
        zero=zero,
        picture=None if size is None else (int(size[1]), int(size[2])),
        device=chosen,
    )
    typer.echo(json.dumps(made.as_json(), indent=2) if as_json else _text(made, chosen))
    if not made.fits:
        for problem in made.problems:
            typer.echo(f"does not fit: {problem}", err=True)
        raise typer.Exit(1)


def _text(made: Any, device: Any) -> str:
    run, model = made.run, made.model
    kind = "LoRA" if run.adapter else "all weights" if run.train_vision and run.train_language else "part of the model"
    split = f"ZeRO-{run.zero}" if run.zero else "DDP" if run.gpus > 1 else "one process"
    lines = [
        f"{model.parameters / 1e6:,.1f} M parameters, {kind}; {run.gpus} x {_size(made.device_memory)}, {split}",
        f"prompt {run.prompt} tokens ({run.patches // model.merge**2} of the picture), answer at most {run.answer}; "
        f"{run.images:g} pictures x {run.completions} answers per device, {run.micro_batches} times per step",
    ]
    for phase, parts in made.phases.items():
        lines += ["", f"{phase:<32}{_size(sum(parts.values())):>12}"]
        lines += [f"  {name:<30}{_size(size):>12}" for name, size in parts.items() if size]
    lines += ["", f"{'usable on each device':<32}{_size(made.usable):>12}"]
    if made.seconds is not None:
        lines += ["", f"{'seconds of a step on ' + device.name:<32}{sum(made.seconds.values()):>12.2f}"]
        lines += [f"  {name:<30}{value:>12.2f}" for name, value in made.seconds.items()]
        lines.append(
            f"  (arithmetic: {device.compute_share:.0%} of {device.flops / 1e12:.0f} TFLOP/s, "
            f"{device.bandwidth_share:.0%} of {device.bandwidth / 1e12:.2f} TB/s; not measured on a GPU)"
        )
    lines += ["", "assumed: " + "; ".join(made.assumptions)]
    return "\n".join(lines)


def _size(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"
