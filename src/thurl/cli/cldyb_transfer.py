"""`thurl cldyb transfer`: how hard the sequence found for one learner is for the others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from thurl.cli.cldyb_options import (
    Cache,
    Debug,
    Device,
    Encoder,
    Features,
    Json,
    Memory,
    Outside,
    Overwrite,
    Pool,
    Seeds,
    Workers,
    fresh_seeds,
    load_all,
)
from thurl.cli.output import check_new, echo_json, number, table


__all__ = ["transfer"]


def transfer(
    sequences: Annotated[list[Path], typer.Argument(help="Sequence files, each found for one learner alone.")],
    pool: Pool,
    encoder: Encoder = None,
    features: Features = None,
    learner: Annotated[
        list[str] | None, typer.Option("--learner", "-l", help="A further learner to train on them. Again for more.")
    ] = None,
    seeds: Seeds = "1001,1002,1003",
    output: Annotated[
        list[Path] | None, typer.Option("--output", "-o", help="Write into this .csv or .json. Again for both.")
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
    """Train every learner again on the sequence found for each: AA of all on all, and whether they rank alike."""
    from thurl.continual.transfer import check_transfer_file, owners_of, transfer_table, write_transfer

    for path in output or ():
        check_new("--output", path, overwrite)
        check_transfer_file(path)
    fresh = fresh_seeds(seeds)
    from thurl.continual.prefix_store import PrefixStore
    from thurl.continual.replay import agreements, replay_all, transfer_matrix
    from thurl.continual.sequence_file import benchmark_tasks, read_sequence

    documents = {str(path): read_sequence(path) for path in sequences}
    owners = owners_of(documents)
    names: list[Any] = [*owners.values(), *(learner or ())]
    data, learners, _ = load_all(pool, encoder, features, names, cache, allow_outside, device, memory)
    if any(data.encoder != document.get("encoder") for document in documents.values()):
        typer.echo("warning: another encoder than in the search; the pool is the same", err=True)
    used = [document.get("learner_seed") for document in documents.values()]
    found = replay_all(
        data,
        learners,
        {owner: benchmark_tasks(document, data) for owner, document in zip(owners, documents.values(), strict=True)},
        seeds=fresh,
        search_seed=next((seed for seed in used if seed in fresh), None),
        store=PrefixStore(cache),
        workers=workers,
    )
    matrix = transfer_matrix(found)
    agreement = agreements({f"for {owner}": row for owner, row in matrix.items()})
    more = {"seeds": fresh, "pool_hash": data.pool_hash, "encoder": data.encoder}
    for path in output or ():
        write_transfer(path, matrix, agreement, more)
    if as_json:
        echo_json({**more, "transfer": matrix, "agreement": agreement})
        return
    heading, *rows = transfer_table(matrix)
    table(heading, rows)
    for pair, tau in agreement.items():
        typer.echo(f"Kendall's tau, {pair}: {number(tau)}")
