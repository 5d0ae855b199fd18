"""Options that the commands of `thurl cldyb` share, and what they load with them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thurl.errors import UsageError


if TYPE_CHECKING:
    from thurl.continual.class_data import ClassData
    from thurl.continual.learner import Learner
    from thurl.continual.vision_encoders import LoadedEncoder

__all__ = [
    "Cache",
    "Debug",
    "Device",
    "Encoder",
    "Features",
    "Json",
    "Learners",
    "Memory",
    "Outside",
    "Overwrite",
    "Pool",
    "Seeds",
    "Workers",
    "fresh_seeds",
    "load_all",
]

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
Seeds = Annotated[str, typer.Option("--seeds", help="Fresh seeds, by commas.")]
Outside = Annotated[bool, typer.Option("--allow-outside", help="Accept pictures outside the manifest's folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")]


def fresh_seeds(text: str) -> list[int]:
    """`--seeds` as numbers.

    Raises:
        UsageError: something else.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--seeds is {text!r}; give whole numbers by commas") from None


def load_all(
    pool: Path,
    encoder: str | None,
    features: Path | None,
    names: list[Any],
    cache: Path | None,
    allow_outside: bool,
    device: str | None,
    memory: float,
) -> tuple[ClassData, list[Learner], LoadedEncoder | None]:
    """Samples, learners and, unless features come from a file, the encoder; see the options."""
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
