"""Pool, encoder and learners of a CLDyB recipe: made once by one process, read by all."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from thurl.continual.class_data import ClassData
from thurl.continual.contamination import class_contamination
from thurl.continual.learner import Learner
from thurl.continual.learners import learners_of
from thurl.continual.pool import ClassPool, make_pool, read_pool
from thurl.continual.pool_data import class_data
from thurl.continual.pool_sources import array_samples, folder_samples, hub_samples
from thurl.continual.ranks import Ranks
from thurl.continual.vision_encoders import LoadedEncoder, load_encoder
from thurl.recipe.cldyb import CLDyBRecipe
from thurl.recipe.visualquality_r1_data import fingerprint
from thurl.training.results import write_atomically
from thurl.training.threads import one_thread


__all__ = ["CLDyBStudy", "load_study"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CLDyBStudy:
    """What a search works on.

    Attributes:
        data: samples and features of the pool.
        learners: of the search.
        held_out: of the replay alone.
        known: how well the frozen encoder knows each class, see `class_contamination`.
        encoder_fit: accuracy of an encoder made here on what it was trained on; None for another one.
    """

    data: ClassData
    learners: list[Learner]
    held_out: list[Learner]
    known: dict[str, dict[str, float]]
    encoder_fit: float | None


def load_study(recipe: CLDyBRecipe, folder: Path, ranks: Ranks) -> CLDyBStudy:
    """Pool, features, learners; on every process.

    Args:
        folder: of the run. The pool (`pool/`), an encoder made here (`encoder/`) and features (`cache/`) are kept in
            it and used again while the settings that led to them stay the same.

    Raises:
        ThurlError: data, an encoder or options of learners that cannot be used.
    """
    pool = _pool(recipe, folder, ranks)
    name, fit = _encoder(recipe, pool, folder, ranks)
    loaded = ranks.first_alone(lambda: load_encoder(name))
    learners = learners_of(recipe.learners, loaded.model)
    held_out = learners_of(recipe.replay.held_out, loaded.model)
    state = PartialState()

    def read() -> ClassData:
        return class_data(
            pool,
            loaded.model,
            loaded.preprocess,
            keep_inputs=any(not learner.frozen_encoder for learner in (*learners, *held_out)),
            memory=int(recipe.data.memory * 2**30),
            cache=folder / "cache" / "features",
            device="cpu" if recipe.training.get("use_cpu") else state.device,
        )

    data = ranks.first_alone(read)
    known = ranks.agree(lambda: _known(recipe, data, loaded))
    train = len(data.rows(range(len(data.classes)), "train"))
    logger.info("%d classes, %d training pictures, hash %s", len(data.classes), train, data.pool_hash[:16])
    return CLDyBStudy(data, learners, held_out, known, fit)


def _known(recipe: CLDyBRecipe, data: ClassData, loaded: LoadedEncoder) -> dict[str, dict[str, float]]:
    with one_thread():
        return class_contamination(data, loaded.text_features(data.classes, recipe.model.prompt_template))


def _pool(recipe: CLDyBRecipe, folder: Path, ranks: Ranks) -> ClassPool:
    section = recipe.data
    if section.manifest is not None:
        return read_pool(section.manifest, allow_outside=section.allow_outside)
    place = folder / "pool"

    def build() -> dict[str, Any]:
        if section.digits is not None:
            from thurl.continual.digit_domains import digit_pool

            pool = digit_pool(place, section.seed, sizes=section.digits.sizes, domains=section.digits.domains)
        else:
            samples = []
            for source in section.sources:
                if source.folder is not None:
                    options: dict[str, Any] = {"root": place, "on_corrupt": section.on_corrupt}
                    samples += folder_samples(source.folder, dataset=source.dataset, **options)
                elif source.arrays is not None:
                    samples += array_samples(source.arrays, dataset=source.dataset, root=place)
                else:
                    samples += hub_samples(
                        str(source.hub),
                        dataset=source.dataset,
                        split=source.split,
                        image=source.image,
                        label=source.label,
                        on_corrupt=section.on_corrupt,
                    )
            pool = make_pool(
                samples,
                place,
                caps=(section.cap, None, None),
                seed=section.seed,
                share_names=not section.names_differ,
                on_small=section.on_small,
            )
        pool.save(place / "pool.jsonl")
        return {}

    key = fingerprint(section.model_dump(exclude={"memory", "obtain"}))
    ranks.agree(lambda: _once(place, key, build))
    return read_pool(place / "pool.jsonl", allow_outside=True)


def _encoder(recipe: CLDyBRecipe, pool: ClassPool, folder: Path, ranks: Ranks) -> tuple[str, float | None]:
    """Where the encoder is, and how well it fits what this run trained it on."""
    section = recipe.model.tiny
    if section is None:
        return str(recipe.model.name_or_path), None
    place, seed = folder / "encoder", int(recipe.training.get("seed", 42))

    def build() -> dict[str, Any]:
        from thurl.continual.digit_domains import informed_encoder

        with one_thread():
            encoder, fit = informed_encoder(pool, section.known, seed=seed, **section.model_dump(exclude={"known"}))
        encoder.save_pretrained(place)
        return {"fit": fit}

    key = fingerprint({**section.model_dump(), "seed": seed, "pool": pool.hash, "torch": torch.__version__})
    return str(place), ranks.agree(lambda: _once(place, key, build))["fit"]


def _once(place: Path, key: str, build: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `build` says of what it put into `place`; built again for another key, or where it was not finished."""
    done = place / "complete.json"
    try:
        found = json.loads(done.read_text(encoding="utf-8"))
        if found["key"] == key:
            return dict(found)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    done.unlink(missing_ok=True)
    place.mkdir(parents=True, exist_ok=True)
    found = {"key": key, **build()}
    write_atomically(done, json.dumps(found))
    return found
