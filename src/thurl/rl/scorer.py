"""Scoring pictures with a vision-language model.

Three ways to a score:

- "think": the model reasons, then answers; `n_samples` answers are drawn, their mean is the score;
- "direct": the same without reasoning, for use as a reward or an evaluation model;
- "expected": no drawing; the probability-weighted mean over the digits of the answer (`thurl.rl.expected`).

What is guaranteed about repetition: a drawn answer depends on the seed and the pixels (`thurl.rl.seeded`), never on
the place in a batch, the other pictures or a global random state, which is not touched. The logits behind it differ
by rounding when batch size or padding do, so a draw can flip where two candidates are that close. Measured on a
tiny model on a CPU, batch of 8 against one by one: float32 logits differ by 2e-6 and none of 40 answers of 64 tokens
changed; bfloat16 logits by 0.03 and 6 of 40 changed (scores of mode "expected": by 1e-6 and 0.008). In bfloat16 use
`batch_size=1` where a score must repeat to the last digit.

An answer that holds no usable score is `ok=False` with score NaN and the text kept; the official inference code writes
a random number instead.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from thurl.data.images import ImageError, open_image
from thurl.data.records import RatedImage
from thurl.errors import DataError, UsageError
from thurl.hub.fetch import snapshot
from thurl.rl.decoding import Decoding, QualityScore, failed_score, make_decoding, read_answer, summarise_answers
from thurl.rl.expected import NEGLIGIBLE, OPENING, expected_score, find_answer_tokens
from thurl.rl.prompts import PRESETS, PROMPT_FILE, PromptPreset, load_prompt
from thurl.rl.seeded import ForcedTokens, SeededSampling, image_digest, sample_key


if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Comparison", "Decoding", "QualityScore", "QualityScorer"]

logger = logging.getLogger(__name__)

ImageLike = Any  # path, bytes, PIL.Image.Image or RatedImage

_OFFICIAL_NAME = "VisualQuality-R1-7B"


@dataclass(frozen=True)
class Comparison:
    """Two scores and the Thurstone probability that the first picture is the better one (arXiv 2505.14460, Eq. 1)."""

    a: QualityScore
    b: QualityScore
    preference: float


class QualityScorer:
    """A vision-language model together with its processor and the question it is asked.

    Args:
        model: an image-text-to-text model of transformers, or a PEFT model around one.
        processor: its processor. Padding is set to the left, which generation needs.
        preset: question; `PRESETS["thurl"]` when None.
        name: how results call the model.
        weights: identifies the weights in results (a commit or `weights_fingerprint`).
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        preset: PromptPreset | str | None = None,
        *,
        name: str | None = None,
        weights: str | None = None,
    ):
        self.model = model
        self.processor = processor
        self.preset = _resolve_preset(preset) or PRESETS["thurl"]
        self.name = name or getattr(model, "name_or_path", "") or type(model).__name__
        self.weights = weights
        tokenizer = self.tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        image_processor = getattr(processor, "image_processor", None)
        patch, merge = (getattr(image_processor, key, None) for key in ("patch_size", "merge_size"))
        self._min_side = patch * merge if isinstance(patch, int) and isinstance(merge, int) else 1

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: Any = "auto",
        preset: PromptPreset | str | None = None,
        base_model: str | None = None,
        revision: str | None = None,
        attn_implementation: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> QualityScorer:
        """Load a model folder, a Hub repository or a PEFT adapter folder.

        Args:
            name_or_path: see `thurl.rl.loading.load_vision_language_model`, also for errors and the other arguments.
            device: "cpu", "cuda", "cuda:1"; None takes the first GPU when there is one.
            preset: a `PromptPreset` or a name in `PRESETS`. None takes `thurl_prompt.json` beside the model, else
                "official" for the released VisualQuality-R1-7B checkpoints, else "thurl".
        """
        from thurl.rl.loading import load_vision_language_model, local_folder, weights_fingerprint

        chosen = _resolve_preset(preset)
        model, processor = load_vision_language_model(
            name_or_path,
            dtype=dtype,
            base_model=base_model,
            revision=revision,
            attn_implementation=attn_implementation,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
        )
        folder = local_folder(name_or_path)
        if chosen is None:
            chosen = load_prompt(folder or snapshot(os.fspath(name_or_path), [PROMPT_FILE], revision=revision))
        if chosen is None:
            base = os.path.basename(os.fspath(name_or_path).rstrip("/\\"))
            chosen = PRESETS["official" if base.startswith(_OFFICIAL_NAME) else "thurl"]
            logger.info("%s brings no thurl_prompt.json: asked with preset %r", name_or_path, chosen.name)
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        weights = weights_fingerprint(folder) if folder else getattr(model.config, "_commit_hash", None)
        return cls(model.to(device), processor, chosen, name=os.fspath(name_or_path), weights=weights)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer inside the processor."""
        return getattr(self.processor, "tokenizer", self.processor)

    def settings(self) -> dict[str, Any]:
        """What identifies the scores besides `Decoding.settings`: model, question, picture sizes, precision."""
        size = getattr(getattr(self.processor, "image_processor", None), "size", None)
        return {
            "model": self.name,
            "weights": self.weights,
            "prompt": asdict(self.preset),
            "image_size": {key: value for key, value in dict(size).items() if value is not None} if size else None,
            "dtype": str(getattr(self.model, "dtype", "")).removeprefix("torch."),
            "attention": getattr(getattr(self.model, "config", None), "_attn_implementation", None),
        }

    def score(
        self,
        images: Iterable[ImageLike] | ImageLike,
        *,
        decoding: Decoding | None = None,
        batch_size: int = 8,
        errors: Literal["raise", "mark"] = "raise",
        **options: Any,
    ) -> list[QualityScore]:
        """Score pictures.

        Args:
            images: paths, encoded bytes, PIL pictures or `RatedImage`s; a single one is taken as a list of one.
            decoding: all decoding settings at once; **options: single fields of `Decoding` (`mode`, `n_samples`,
                `seed`, `temperature`, `top_k`, `top_p`, `max_new_tokens`, ...).
            batch_size: answers generated together.
            errors: "raise" stops at a picture that cannot be opened; "mark" returns it with `ok=False`.

        Returns:
            One `QualityScore` per picture, in order.

        Raises:
            ImageError: a picture cannot be opened and `errors="raise"`.
            UsageError: settings that make no sense, or mode "describe".
        """
        decoding = make_decoding(decoding, options)
        if decoding.mode == "describe":
            raise UsageError("mode 'describe' gives no score: use `describe`, or mode think, direct or expected")
        images = _as_list(images)
        if decoding.mode == "expected":
            return self._score_expected(images, decoding, batch_size, errors)
        answers: list[list[tuple[float, str, str]]] = [[] for _ in images]
        problems: dict[int, str] = {}
        for attempt in range(decoding.resample + 1):
            if attempt == 0:
                wanted = [(i, k) for i in range(len(images)) for k in range(decoding.n_samples)]
            else:
                wanted = [(i, k) for i, row in enumerate(answers) for k, a in enumerate(row) if math.isnan(a[0])]
            for rows, pictures in self._batches(images, wanted, batch_size, errors, problems):
                digests = {id(picture): image_digest(picture) for picture in pictures}
                keys = [
                    sample_key(decoding.seed, digests[id(picture)], k, attempt)
                    for picture, (_, k) in zip(pictures, rows, strict=True)
                ]
                for (i, k), (text, ended) in zip(rows, self._generate(pictures, keys, decoding), strict=True):
                    value, reason = read_answer(text, ended, decoding)
                    if attempt == 0:
                        answers[i].append((value, text, reason))
                    elif not math.isnan(value):
                        answers[i][k] = (value, text, reason)
        return [
            failed_score(problems[i]) if i in problems else summarise_answers(answers[i]) for i in range(len(images))
        ]

    def describe(
        self,
        images: Iterable[ImageLike] | ImageLike,
        *,
        batch_size: int = 8,
        decoding: Decoding | None = None,
        **options: Any,
    ) -> list[str]:
        """A free description of the quality of each picture; arguments and errors as `score`."""
        decoding = make_decoding(decoding, {**options, "mode": "describe"})
        images = _as_list(images)
        texts: list[str] = []
        for _, pictures in self._batches(images, [(i, 0) for i in range(len(images))], batch_size, "raise", {}):
            keys = [sample_key(decoding.seed, image_digest(picture), 0) for picture in pictures]
            texts += [text for text, _ in self._generate(pictures, keys, decoding)]
        return texts

    def compare(self, a: ImageLike, b: ImageLike, *, decoding: Decoding | None = None, **options: Any) -> Comparison:
        """Score two pictures and give the probability that `a` is the better one.

        The variances are those of the drawn answers (8 by default), in mode "expected" those of the answer's
        distribution.

        Raises:
            UsageError: a single answer per picture, which has no variance.
            ImageError: a picture cannot be opened.
        """
        from thurl.ranking import preference_probability

        batch_size = options.pop("batch_size", 8)
        if decoding is None and "n_samples" not in options and options.get("mode") != "expected":
            options["n_samples"] = 8
        decoding = make_decoding(decoding, options)
        if decoding.mode != "expected" and decoding.n_samples < 2:
            raise UsageError(
                f"`n_samples` is {decoding.n_samples}: a comparison needs a variance, so at least 2 answers per "
                "picture, or mode 'expected'"
            )
        first, second = self.score([a, b], decoding=decoding, batch_size=batch_size)
        numbers = torch.tensor([first.score, second.score, first.std**2, second.std**2], dtype=torch.float64)
        preference = float(preference_probability(*numbers))
        return Comparison(first, second, preference)

    def _score_expected(
        self, images: Sequence[ImageLike], decoding: Decoding, batch_size: int, errors: str
    ) -> list[QualityScore]:
        tokens = find_answer_tokens(self.tokenizer)
        problems: dict[int, str] = {}
        first: dict[int, torch.Tensor] = {}
        mass: dict[int, float] = {}
        everything = [(i, 0) for i in range(len(images))]
        for rows, pictures in self._batches(images, everything, batch_size, errors, problems):
            (logits,) = self._forced_logits(pictures, [OPENING] * len(rows), [tokens.point])[:1]
            digits = logits.log_softmax(-1)[:, list(tokens.first)].exp()  # (B, 5)
            for (i, _), row in zip(rows, digits, strict=True):
                mass[i] = float(row.sum())
                first[i] = row / row.sum()
        point = {i: [0.0] * 5 for i in first}
        decimals = {i: [[0.1] * 10 for _ in range(5)] for i in first}
        if decoding.decimals:
            branches = [
                (i, d)
                for i, row in first.items()
                for d in range(5)
                if mass[i] >= decoding.min_mass and row[d] > NEGLIGIBLE
            ]
            for rows, pictures in self._batches(images, branches, batch_size, errors, problems):
                openings = [f"{OPENING}{d + 1}" for _, d in rows]
                after_digit, after_point = self._forced_logits(pictures, openings, [tokens.point, tokens.decimals[0]])
                continues = after_digit.softmax(-1)[:, tokens.point].tolist()  # (B,)
                tenths = after_point[:, list(tokens.decimals)].softmax(-1).tolist()  # (B, 10)
                for (i, d), p, q in zip(rows, continues, tenths, strict=True):
                    point[i][d], decimals[i][d] = p, q
        scores = []
        for i in range(len(images)):
            if i in problems:
                scores.append(failed_score(problems[i]))
            elif not mass[i] >= decoding.min_mass:
                reason = (
                    f"the digits 1 to 5 have probability {mass[i]:.2g} after {OPENING}, below {decoding.min_mass:g}"
                )
                scores.append(replace(failed_score(reason), samples=(math.nan,), mass=mass[i]))
            else:
                mean, std = expected_score(first[i].tolist(), point[i], decimals[i])
                scores.append(QualityScore(mean, std, "", True, samples=(mean,), texts=("",), mass=mass[i]))
        return scores

    def _batches(
        self,
        images: Sequence[ImageLike],
        wanted: Sequence[tuple[int, int]],
        batch_size: int,
        errors: str,
        problems: dict[int, str],
    ) -> Iterator[tuple[list[tuple[int, int]], list[Image.Image]]]:
        """Batches of (image index, anything) with their opened pictures; a picture is held only while it is needed."""
        if batch_size < 1:
            raise UsageError(f"`batch_size` is {batch_size}: it must be at least 1")
        rows: list[tuple[int, int]] = []
        pictures: list[Image.Image] = []
        held: tuple[int, Image.Image] | None = None
        for row in wanted:
            i = row[0]
            if i in problems:
                continue
            if held is None or held[0] != i:
                try:
                    held = (i, self._open(images[i]))
                except ImageError as error:
                    if errors == "raise":
                        raise
                    problems[i] = str(error)
                    continue
            rows.append(row)
            pictures.append(held[1])
            if len(rows) == batch_size:
                yield rows, pictures
                rows, pictures = [], []
        if rows:
            yield rows, pictures

    def _open(self, image: ImageLike) -> Image.Image:
        return open_image(image.image if isinstance(image, RatedImage) else image, min_side=self._min_side)

    def _encode(self, pictures: Sequence[Image.Image], mode: str, openings: Sequence[str] | None = None) -> Any:
        """Model inputs, left-padded; `openings` is text already written in the assistant's turn."""
        prompt = self.processor.apply_chat_template(
            self.preset.messages(mode), tokenize=False, add_generation_prompt=True
        )
        texts = [prompt + opening for opening in openings or [""] * len(pictures)]
        bos = getattr(self.tokenizer, "bos_token", None)
        inputs = self.processor(
            text=texts,
            images=[[picture] for picture in pictures],
            padding=True,
            padding_side="left",
            # The chat template has written the special tokens already.
            add_special_tokens=not (bos and prompt.startswith(bos)),
            return_tensors="pt",
        )
        image_token = getattr(self.processor, "image_token_id", None)
        kinds = inputs.get("mm_token_type_ids")
        if kinds is not None and image_token is not None:
            # Padding on different sides would move the image positions silently (TRL issue #5785).
            if not torch.equal(inputs["input_ids"] == image_token, kinds == 1):
                raise DataError(
                    "the processor marks other positions as image than those of its image tokens: its padding sides "
                    "disagree; load it with AutoProcessor and leave the padding side to the scorer"
                )
        return inputs.to(self._device)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _run(self, inputs: Any, processors: list[Any], new_tokens: int, *, logits: bool = False) -> Any:
        from transformers import GenerationConfig, LogitsProcessorList

        # Everything a checkpoint's generation_config.json could change is set: Qwen2.5-VL ships a repetition penalty
        # of 1.05 and a temperature of 1e-6, neither of which the model was trained with.
        own = getattr(self.model, "generation_config", None)
        config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            num_return_sequences=1,
            temperature=1.0,
            top_k=50,
            top_p=1.0,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            max_new_tokens=new_tokens,
            use_cache=True,  # a Trainer with gradient checkpointing switches it off in the model's configuration
            eos_token_id=getattr(own, "eos_token_id", None) or self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            output_logits=logits,
            return_dict_in_generate=logits,
        )
        # Module by module: a frozen part may be in evaluation mode inside a model that trains.
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            with torch.no_grad():
                return self.model.generate(
                    **inputs, generation_config=config, logits_processor=LogitsProcessorList(processors)
                )
        finally:
            for module in training:
                module.training = True

    def _generate(
        self, pictures: Sequence[Image.Image], keys: Sequence[int], decoding: Decoding
    ) -> list[tuple[str, bool]]:
        """One answer per picture and whether it ended by itself."""
        inputs = self._encode(pictures, decoding.mode)
        length = inputs["input_ids"].shape[1]
        processors = []
        if decoding.temperature > 0:
            rows = torch.tensor(keys, dtype=torch.int64, device=self._device)
            processors = [SeededSampling(rows, length, decoding.temperature, decoding.top_k, decoding.top_p)]
        new = self._run(inputs, processors, decoding.new_tokens)[:, length:]  # (B, T)
        ends = getattr(self.model.generation_config, "eos_token_id", None) or self.tokenizer.eos_token_id
        ends = torch.tensor([ends] if isinstance(ends, int) else ends, device=new.device)
        ended = torch.isin(new, ends).any(dim=1).tolist()
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return list(zip(texts, ended, strict=True))

    def _forced_logits(
        self, pictures: Sequence[Image.Image], openings: Sequence[str], forced: list[int]
    ) -> list[torch.Tensor]:
        """Logits (B, V) in float64 before each of the forced tokens that follow `openings`."""
        inputs = self._encode(pictures, "expected", openings)
        processors = [ForcedTokens(forced, inputs["input_ids"].shape[1])]
        output = self._run(inputs, processors, len(forced), logits=True)
        return [step.to(torch.float64).cpu() for step in output.logits]


def _resolve_preset(preset: PromptPreset | str | None) -> PromptPreset | None:
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise UsageError(f"preset {preset!r} does not exist: choose one of {', '.join(PRESETS)}")
        return PRESETS[preset]
    return preset


def _as_list(images: Iterable[ImageLike] | ImageLike) -> list[ImageLike]:
    from PIL import Image

    if isinstance(images, (str, bytes, os.PathLike, Image.Image, RatedImage)):
        return [images]
    return list(images)
