"""Loading a vision-language model and its processor: a folder, a Hub name, or a PEFT adapter folder.

Safetensors only. A checkpoint that leaves a parameter without a value is refused: it would be scored with random
numbers in that place.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.hub.adapters import adapter_folder, base_of
from thurl.messages import first_line


__all__ = ["load_vision_language_model", "local_folder", "weights_fingerprint"]

logger = logging.getLogger(__name__)

_HUB_SECONDS = 10.0
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def local_folder(name_or_path: str | os.PathLike[str]) -> Path | None:
    """The folder `name_or_path` names, None for the name of a Hub repository.

    Raises:
        MissingRequirementError: it can only be a folder and is not there.
    """
    text = os.fspath(name_or_path)
    path = Path(text).expanduser()
    if text and path.is_dir():
        return path
    looks_local = text.startswith((".", "~", os.sep)) or text.count("/") > 1 or "\\" in text or not text
    if looks_local or path.is_file():
        raise MissingRequirementError(
            f"model {text!r} is not a folder: give a folder written by `save_pretrained` (config.json, *.safetensors, "
            "tokenizer and processor files), an adapter folder, or the name of a Hub repository"
        )
    return None


def weights_fingerprint(folder: Path) -> str:
    """Short hash of the names, sizes and times of the weight files and of the configuration: tells a retrained model
    in the same folder from the old one without reading gigabytes."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(folder.glob("*.safetensors")):
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    for name in ("config.json", "adapter_config.json", *_PROCESSOR_FILES):
        if (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def load_vision_language_model(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: Any = "auto",
    base_model: str | None = None,
    revision: str | None = None,
    attn_implementation: str | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> tuple[Any, Any]:
    """Load model and processor with the Auto classes; key layouts from before transformers 5 load as well.

    Args:
        name_or_path: folder, Hub repository, or either with a PEFT adapter (the base model it names is loaded first).
        dtype: "auto" (as saved), a torch dtype or its name.
        base_model: base of an adapter, when the one named in its configuration has moved.
        revision: commit, tag or branch of a Hub repository.
        attn_implementation: "sdpa", "eager", "flash_attention_2"; None leaves it to transformers.
        min_pixels, max_pixels: area in pixels a picture is resized into; None keeps the processor's.

    Returns:
        (model in evaluation mode, processor)

    Raises:
        MissingRequirementError: model, weights, processor or the adapter's base cannot be found.
        DataError: parameters without a value in the checkpoint, or of another shape.
    """
    folder = local_folder(name_or_path)
    adapter = adapter_folder(os.fspath(name_or_path), revision=revision)
    if adapter is not None:
        return _load_adapter(
            adapter,
            dtype=dtype,
            base_model=base_model,
            attn_implementation=attn_implementation,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
        )
    if folder is not None and not (folder / "config.json").is_file():
        raise MissingRequirementError(
            f"folder {str(folder)!r} holds no model (no config.json) and no adapter (no adapter_config.json): give a "
            "folder written by `save_pretrained`, for example the output folder of a training run"
        )
    source = str(folder) if folder is not None else os.fspath(name_or_path)
    hub = {} if folder is not None else _hub_options(source, revision)
    model = _load_model(source, dtype=dtype, attn_implementation=attn_implementation, hub=hub)
    return model, _load_processor(source, hub=hub, min_pixels=min_pixels, max_pixels=max_pixels)


def _hub_options(name: str, revision: str | None) -> dict[str, Any]:
    """Arguments for loading from the Hub. One short request first: transformers itself retries for minutes."""
    import httpx
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    options: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        cached = isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)
        if not constants.HF_HUB_OFFLINE:
            HfApi().model_info(name, revision=revision, timeout=_HUB_SECONDS)
            return options
        error: Exception = OSError("HF_HUB_OFFLINE is set")
    except GatedRepoError:
        return options  # loading uses the login of this machine and explains what is lacking
    except (RepositoryNotFoundError, HFValidationError) as problem:
        raise _missing(name, "model", problem) from None
    except (httpx.HTTPError, HfHubHTTPError, OSError) as problem:
        error = problem
    if not cached:
        raise _missing(name, "model", error)
    logger.info("%s: the Hub does not answer (%s), using the copy in the cache", name, first_line(error))
    return {**options, "local_files_only": True}


def _load_model(source: str, *, dtype: Any, attn_implementation: str | None, hub: dict[str, Any]) -> Any:
    from transformers import AutoModelForImageTextToText

    options = dict(hub)
    if attn_implementation:
        options["attn_implementation"] = attn_implementation
    try:
        model, info = AutoModelForImageTextToText.from_pretrained(
            source, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
        )
    except OSError as error:
        raise _missing(source, "model", error) from None
    except ValueError as error:
        if "custom code" in str(error):
            raise UsageError(
                f"{source} asks for code of its own to be run, which thurl never does; take a model whose "
                "architecture transformers has"
            ) from None
        if "Unrecognized" not in str(error):
            raise
        raise DataError(f"{source} is no model that takes a picture and a text: {first_line(error)}") from None
    absent = sorted(info["missing_keys"])
    wrong = sorted(str(key) for key in info.get("mismatched_keys") or ())
    if absent or wrong:
        raise DataError(
            f"{source}: {len(absent)} parameters have no value and {len(wrong)} another shape in the checkpoint, for "
            f"example {', '.join((absent + wrong)[:3])}; they would be random. Save the whole model again."
        )
    if info["unexpected_keys"]:
        unexpected = sorted(info["unexpected_keys"])
        logger.warning("%s: %d unused weights, for example %s", source, len(unexpected), ", ".join(unexpected[:3]))
    return model.eval()


def _load_processor(source: str, *, hub: dict[str, Any], min_pixels: int | None, max_pixels: int | None) -> Any:
    from transformers import AutoProcessor

    options = hub | {
        name: value for name, value in (("min_pixels", min_pixels), ("max_pixels", max_pixels)) if value is not None
    }
    try:
        return AutoProcessor.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        raise _missing(source, "processor", error) from None


def _load_adapter(folder: Path, *, dtype: Any, base_model: str | None, attn_implementation: str | None, **pixels: Any):
    from peft import PeftModel

    base = base_of(folder, base_model)
    try:
        base_folder = local_folder(base)
        source = str(base_folder) if base_folder is not None else base
        hub = {} if base_folder is not None else _hub_options(source, None)
        model = _load_model(source, dtype=dtype, attn_implementation=attn_implementation, hub=hub)
    except MissingRequirementError as error:
        raise MissingRequirementError(
            [f"adapter {folder} needs its base model {base!r}; if it has moved, pass `base_model`", *error.problems]
        ) from None
    model = PeftModel.from_pretrained(model, str(folder)).eval()
    own = any((folder / name).is_file() for name in _PROCESSOR_FILES)
    return model, _load_processor(str(folder) if own else source, hub={} if own else hub, **pixels)


def _missing(source: str, what: str, error: Exception) -> MissingRequirementError:
    where = "the folder" if Path(source).is_dir() else "the Hub or the local cache"
    return MissingRequirementError(
        f"{what} {source!r} cannot be loaded from {where} ({first_line(error)}). Check the name, or download it on a "
        f"machine with network (`hf download {source} --local-dir FOLDER`) and pass the folder; weights must be "
        "*.safetensors with config.json, tokenizer and processor files beside them."
    )
