"""The weights of a checkpoint, back in the model they came from.

transformers 5.17 saves a Qwen2.5-VL under the names of the released files and, on resume, looks for the names in
memory (its issue 43701). It finds none, warns, and training goes on from the starting weights with the optimizer of
the trained ones. `load_weights` translates the names and accepts no gap.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from thurl.errors import DataError


__all__ = ["load_weights"]


def load_weights(model: PreTrainedModel, folder: str | Path) -> None:
    """Put the weights that `save_pretrained` wrote into `model`, as they are, each and every one.

    Raises:
        DataError: weights are missing, left over or of another shape, or the model merges weights when it is loaded.
    """
    folder = Path(folder)
    own = model.state_dict()
    names = list(own)
    try:
        # A number instead of each weight goes through the translation that saving makes of the names.
        numbers = {name: torch.tensor(index) for index, name in enumerate(names)}
        name_of = {saved: names[int(number)] for saved, number in revert_weight_conversion(model, numbers).items()}
    except Exception as error:
        raise DataError(
            f"{type(model).__name__} stores its weights in another form than it has in memory ({error}); a checkpoint "
            "of it cannot be resumed from without DeepSpeed or an adapter."
        ) from error
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    files = [SAFE_WEIGHTS_NAME]
    if index.is_file():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    found: set[str] = set()
    problems = []
    with torch.no_grad():
        for file in files:
            for saved, tensor in load_file(folder / file).items():
                name = name_of.get(saved, saved)
                if name not in own or own[name].shape != tensor.shape:
                    problems.append(f"{saved} {tuple(tensor.shape)} has no place in the model")
                    continue
                own[name].copy_(tensor)
                found.add(name)
    places = {own[name].data_ptr() for name in found}  # of two tied weights one is saved
    problems += [f"{name} is missing" for name in names if name not in found and own[name].data_ptr() not in places]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise DataError(f"The weights in {folder} are not those of this model: {'; '.join(problems[:3])}{more}.")
