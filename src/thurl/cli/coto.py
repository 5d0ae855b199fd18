"""`thurl coto interpolate | merge | prune | shapley`: what can be done with adapters after training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thurl.cli.devices import usable_device
from thurl.cli.output import check_plot, echo_json, number, table
from thurl.cli.progress import progress
from thurl.errors import UsageError


if TYPE_CHECKING:
    from thurl.coto.adapters import Adapter
    from thurl.coto.text_loss import TextLoss

__all__ = ["register"]


class Space(StrEnum):
    """Where adapters are combined."""

    factor = "factor"
    delta = "delta"


class MergeMethod(StrEnum):
    """Ways to make one adapter of several."""

    fusion = "fusion"
    align = "align"
    delta = "delta"
    svd = "svd"
    ties = "ties"
    dare_linear = "dare_linear"
    dare_ties = "dare_ties"


class ShapleyMethod(StrEnum):
    """Ways to compute Shapley values."""

    exact = "exact"
    permutation = "permutation"
    mle = "mle"


class By(StrEnum):
    """What the players are."""

    layer = "layer"
    type = "type"
    module = "module"


_Output = Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the new adapter.")]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an adapter that lies in the output folder.")]
_Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
_Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")]
_Plot = Annotated[Path | None, typer.Option("--plot", help="Picture of the result: .png, .svg or .pdf.")]
_Model = Annotated[Path | None, typer.Option("--model", "-m", help="Folder of the base model, a causal LM.")]
_Texts = Annotated[Path | None, typer.Option("--texts", "-t", help='JSON Lines with "text"; the value is their loss.')]
_Batch = Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Texts per pass.")]
_Length = Annotated[int, typer.Option("--max-length", min=2, help="Tokens per text; the rest is cut off.")]
_Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1; default: the first GPU.")]
_Dtype = Annotated[str, typer.Option("--dtype", help="auto, float64, float32, bfloat16 or float16.")]
_Seed = Annotated[int, typer.Option("--seed", help="Seed of the draws.")]

coto = typer.Typer(
    name="coto",
    help="Tools for low-rank adapters: interpolate, merge, prune, Shapley values (CoTo, arXiv 2506.05713).",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    app.add_typer(coto, name="coto")


@coto.command("interpolate")
def interpolate(
    a: Annotated[Path, typer.Argument(help="Adapter folder at 0.", metavar="A")],
    b: Annotated[Path, typer.Argument(help="Adapter folder at 1.", metavar="B")],
    output: _Output = None,
    lam: Annotated[float, typer.Option("--lam", help="Position of the adapter that is written.")] = 0.5,
    space: Annotated[Space, typer.Option("--space", help="Factors, or updates (exact, rank r1 + r2).")] = Space.factor,
    points: Annotated[int, typer.Option("--points", min=3, help="Positions of the loss curve.")] = 11,
    model: _Model = None,
    texts: _Texts = None,
    plot: _Plot = None,
    overwrite: _Overwrite = False,
    as_json: _Json = False,
    batch_size: _Batch = 8,
    max_length: _Length = 512,
    device: _Device = None,
    dtype: _Dtype = "auto",
    debug: _Debug = False,
) -> None:
    """Write an adapter between two others (--output), or measure the loss from one to the other (--model, --texts)."""
    if output is None and model is None:
        raise UsageError("nothing to do: give --output to write an adapter, or --model and --texts for the loss curve")
    _check_plot(plot, needs_model=model is None)
    if (model is None) != (texts is None):
        raise UsageError("--model and --texts go together: the value of an adapter is the base model's loss on texts")
    text_loss = None
    if model is not None and texts is not None:
        text_loss = _text_loss(model, texts, batch_size, max_length, device, dtype)
    from thurl.coto.adapters import read_adapter
    from thurl.coto.interpolate import interpolate as between
    from thurl.coto.interpolate import lmc_curve

    first, second = read_adapter(a), read_adapter(b)
    _warn_of_bases([first, second])
    document: dict[str, Any] = {"a": str(a), "b": str(b), "space": space.value}
    if output is not None:
        adapter = between(first, second, lam, space.value)
        _write(adapter, output, overwrite, {"tool": "interpolate", **document, "lam": lam})
        document.update(lam=lam, **_summary(adapter, output))
    if text_loss is not None:
        with progress("evaluated", points) as advance:

            def loss(adapter: Adapter) -> float:
                value = text_loss(adapter)
                advance()
                return value

            grid = [i / (points - 1) for i in range(points)]
            curve = lmc_curve(first, second, loss, lambdas=grid, space=space.value)
        document.update(lambdas=curve.lambdas, losses=curve.losses, barrier=curve.barrier, barrier_at=curve.at)
        if plot is not None:
            _plot_curve(plot, curve.lambdas, curve.losses, f"{space.value} space")
    if as_json:
        echo_json(document)
        return
    if text_loss is not None:
        table(["lambda", "loss"], list(zip(document["lambdas"], document["losses"], strict=True)))
        typer.echo(
            f"barrier {number(curve.barrier)} at lambda {number(curve.at)} ({space.value} space, nats per token)"
        )
    _say_written(document, plot)


@coto.command("merge")
def merge(
    adapters: Annotated[list[Path], typer.Argument(help="Two or more adapter folders.", metavar="ADAPTERS...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the new adapter.")],
    method: Annotated[MergeMethod, typer.Option("--method", help="How; see the documentation.")] = MergeMethod.fusion,
    weights: Annotated[str | None, typer.Option("--weights", help="1,2,1: one per adapter; default equal.")] = None,
    rank: Annotated[int | None, typer.Option("--rank", min=1, help="Rank after SVD; default the largest.")] = None,
    density: Annotated[float, typer.Option("--density", help="TIES, DARE: part of the entries kept.")] = 0.5,
    space: Annotated[Space, typer.Option("--space", help="TIES, DARE: updates or factors.")] = Space.delta,
    seed: _Seed = 0,
    overwrite: _Overwrite = False,
    as_json: _Json = False,
    debug: _Debug = False,
) -> None:
    """Make one adapter out of several that were trained for different tasks."""
    shares = _numbers("--weights", weights)
    from thurl.coto.adapters import read_adapter
    from thurl.coto.merge import distance_to_mean, merge_tasks

    read = [read_adapter(folder) for folder in adapters]
    _warn_of_bases(read)
    merged = merge_tasks(
        read,
        method.value,
        weights=shares,
        rank=rank,
        density=density,
        space=space.value,
        seed=seed,
    )
    used: dict[str, Any] = {
        "method": method.value,
        "adapters": [str(folder) for folder in adapters],
        "weights": shares,
    }
    if method.value in ("ties", "dare_linear", "dare_ties"):
        used.update(density=density, space=space.value, seed=seed)
    _write(merged, output, overwrite, {"tool": "merge", **used})
    document = {**used, **_summary(merged, output), "distance_to_mean": distance_to_mean(merged, read, shares)}
    if as_json:
        echo_json(document)
        return
    table(
        ["method", "kind", "modules", "ranks", "distance to mean update"],
        [[method.value, merged.kind, len(merged.modules), _ranks(merged), document["distance_to_mean"]]],
    )
    _say_written(document)


@coto.command("prune")
def prune(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder.", metavar="ADAPTER")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the new adapter.")],
    keep: Annotated[str | None, typer.Option("--keep", help="even, odd, low, middle, high, or q_proj,v_proj.")] = None,
    drop: Annotated[str | None, typer.Option("--drop", help="The same, for what goes.")] = None,
    sparsity: Annotated[
        float | None, typer.Option("--sparsity", help="Part of the entries of A and B set to 0.")
    ] = None,
    overwrite: _Overwrite = False,
    as_json: _Json = False,
    debug: _Debug = False,
) -> None:
    """Take layers, kinds of modules or the smallest entries out of an adapter."""
    if sum(choice is not None for choice in (keep, drop, sparsity)) != 1:
        raise UsageError("give one of --keep, --drop and --sparsity; for several prune the result again")
    from thurl.coto.adapters import read_adapter
    from thurl.coto.prune import PARTS, prune_layers, prune_magnitude, prune_types

    before = read_adapter(adapter)
    if sparsity is not None:
        after = prune_magnitude(before, sparsity)
    else:
        named = str(keep if drop is None else drop)
        choose: Any = prune_layers if named in PARTS else prune_types
        after = choose(before, named if named in PARTS else _words(named), keep=drop is None)
    used = {"adapter": str(adapter), "keep": keep, "drop": drop, "sparsity": sparsity}
    _write(after, output, overwrite, {"tool": "prune", **used})
    zeros, entries = _zeros(after)
    document = {
        **used,
        **_summary(after, output),
        "modules_before": len(before.modules),
        "zeros": zeros,
        "entries": entries,
    }
    if as_json:
        echo_json(document)
        return
    table(
        ["kind", "modules", "of", "entries", "zeros"],
        [[after.kind, len(after.modules), len(before.modules), entries, zeros]],
    )
    _say_written(document)


@coto.command("shapley")
def shapley(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder.", metavar="ADAPTER")],
    model: Annotated[Path, typer.Option("--model", "-m", help="Folder of the base model, a causal LM.")],
    texts: Annotated[
        Path, typer.Option("--texts", "-t", help='JSON Lines with "text"; the value is minus their loss.')
    ],
    by: Annotated[By, typer.Option("--by", help="Players: layers, kinds of modules or modules.")] = By.layer,
    method: Annotated[
        ShapleyMethod | None, typer.Option("--method", help="Default: exact up to 12 players, else permutation.")
    ] = None,
    permutations: Annotated[int, typer.Option("--permutations", min=1, help="Pairs of orders (permutation).")] = 16,
    nodes: Annotated[int | None, typer.Option("--nodes", min=1, help="Gauss-Legendre nodes (mle).")] = None,
    samples: Annotated[int | None, typer.Option("--samples", min=1, help="Draws per node (mle).")] = None,
    plot: _Plot = None,
    seed: _Seed = 0,
    as_json: _Json = False,
    batch_size: _Batch = 8,
    max_length: _Length = 512,
    device: _Device = None,
    dtype: _Dtype = "auto",
    debug: _Debug = False,
) -> None:
    """How much each layer of an adapter contributes to the (minus) loss on texts."""
    _check_plot(plot)
    from thurl.coto.adapters import layer_of, read_adapter
    from thurl.coto.shapley import EXACT_LIMIT, at_most, groups_of
    from thurl.coto.shapley import shapley as shapley_of

    read = read_adapter(adapter)
    groups = groups_of(read.modules, by.value)
    chosen = method.value if method else "exact" if len(groups) <= EXACT_LIMIT else "permutation"
    if chosen == "exact" and len(groups) > EXACT_LIMIT:
        raise UsageError(f"{len(groups)} players: exact takes at most {EXACT_LIMIT}; use --method permutation or mle")
    text_loss = _text_loss(model, texts, batch_size, max_length, device, dtype)
    draws: dict[str, Any] = {"permutations": permutations, "nodes": nodes, "samples": samples}
    with progress("coalitions evaluated, at most", at_most(len(groups), chosen, **draws)) as advance:

        def value(loaded: Any) -> float:
            loss = text_loss.loss(loaded)
            advance()
            return -loss

        result = shapley_of(
            text_loss.load(read),
            groups,
            value,
            chosen,
            seed=seed,
            **draws,
        )
    # "Top" means nothing among kinds of modules or over several towers.
    stacks = {(layer_of(path) or ("outside",))[0] for path in read.modules}
    top = result.top_third if by is By.layer and len(stacks) == 1 else math.nan
    document = {
        "adapter": str(adapter),
        "method": chosen,
        "by": by.value,
        "values": dict(zip(result.players, result.values, strict=True)),
        "std_errors": dict(zip(result.players, result.std_errors, strict=True)),
        "v_empty": result.v_empty,
        "v_full": result.v_full,
        "gap": result.gap,
        "top_third": top,
        "cv": result.cv,
        "evaluations": result.evaluations,
    }
    if plot is not None:
        _plot_bars(plot, result.players, result.values, f"Shapley value of each {by.value} (nats per token)")
    if as_json:
        echo_json(document)
        return
    rows = list(zip(result.players, result.values, result.std_errors, strict=True))
    table([by.value, "value", "std error"], rows)
    typer.echo(
        f"minus loss {number(result.v_empty)} without, {number(result.v_full)} with the adapter; sum of values off "
        f"by {result.gap:.1e}; CV {number(result.cv)}; top third {number(top)}; {result.evaluations} coalitions "
        f"({chosen})"
    )
    _say_written({}, plot)


def _text_loss(model: Path, texts: Path, batch_size: int, max_length: int, device: str | None, dtype: str) -> TextLoss:

    from thurl.coto.text_loss import TextLoss, read_texts

    read = read_texts(texts)
    if device is not None:
        usable_device(device)
    return TextLoss(model, read, batch_size=batch_size, max_length=max_length, device=device, dtype=dtype)


def _warn_of_bases(adapters: Sequence[Adapter]) -> None:
    bases = {str(adapter.config.get("base_model_name_or_path")) for adapter in adapters}
    if len(bases) > 1:
        names = ", ".join(sorted(bases))
        typer.echo(f"warning: the adapters name different base models ({names}); the first one's is kept", err=True)


def _write(adapter: Adapter, output: Path, overwrite: bool, note: dict[str, Any]) -> None:
    from thurl.coto.adapters import write_adapter
    from thurl.version import __version__

    write_adapter(adapter, output, overwrite=overwrite, note={"thurl": __version__, **note})


def _summary(adapter: Adapter, output: Path) -> dict[str, Any]:
    return {"output": str(output), "kind": adapter.kind, "modules": len(adapter.modules), "ranks": adapter.ranks}


def _ranks(adapter: Adapter) -> str:
    return ", ".join(str(rank) for rank in adapter.ranks)


def _zeros(adapter: Adapter) -> tuple[int, int]:
    tensors = [tensor for factors in adapter.modules.values() for tensor in (factors.a, factors.b)]
    return sum(int((tensor == 0).sum()) for tensor in tensors), sum(tensor.numel() for tensor in tensors)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(option: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(word) for word in _words(text)]
    except ValueError:
        raise UsageError(f"{option} is {text!r}: numbers with commas between them are needed, as in 1,2,1") from None


def _say_written(document: dict[str, Any], plot: Path | None = None) -> None:
    for target in (document.get("output"), plot):
        if target is not None:
            typer.echo(f"written to {target}")


def _check_plot(plot: Path | None, needs_model: bool = False) -> None:
    if plot is None:
        return
    if needs_model:
        raise UsageError("--plot draws the loss curve: give --model and --texts, too")
    check_plot(plot)


def _plot_curve(path: Path, lambdas: Sequence[float], losses: Sequence[float], title: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(lambdas, losses, marker="o")
    axes.plot([lambdas[0], lambdas[-1]], [losses[0], losses[-1]], linestyle=":", color="grey")
    axes.set(xlabel="lambda", ylabel="loss (nats per token)", title=title)
    _save(figure, path)


def _plot_bars(path: Path, names: Sequence[str], values: Sequence[float], title: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 1 + 0.25 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.barh(list(names), list(values))
    axes.invert_yaxis()
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set(xlabel=title)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
