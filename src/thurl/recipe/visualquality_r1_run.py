"""Runs a VisualQuality-R1 recipe: data, starting model, evaluation, GRPO, evaluation, control, results and report.

The sixty lines that matter are `train`; everything they call is public in `thurl.rl`.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import set_seed

from thurl.data.records import RatedImage
from thurl.recipe.adapters import peft_config
from thurl.recipe.language_cards import VISUALQUALITY_R1, quality_card, quality_metrics
from thurl.recipe.plan import warn_before_start
from thurl.recipe.start import built_once
from thurl.recipe.visualquality_r1 import VisualQualityR1Recipe, prompt_preset
from thurl.recipe.visualquality_r1_coto import rank_trainer
from thurl.recipe.visualquality_r1_data import Study, fingerprint, load_study
from thurl.recipe.visualquality_r1_report import Story, TrainedRun, write_report
from thurl.rl.dataset import build_rank_dataset, shuffle_mos
from thurl.rl.decoding import Decoding
from thurl.rl.eval_callback import QualityEvalCallback
from thurl.rl.prompts import PromptPreset, save_prompt
from thurl.rl.rank_reward import FormatReward, RankReward, ThresholdReward
from thurl.rl.rewards import RankRewardOptions
from thurl.rl.rollouts import RolloutOptions
from thurl.rl.trainer import RankGRPOConfig, RankGRPOTrainer, freeze_parameters
from thurl.training.deepspeed_cpu import prepare_deepspeed_on_cpu
from thurl.training.model_card import write_model_card
from thurl.training.progress import ProgressLines, SaveBeside, quiet_libraries, quiet_trainer
from thurl.training.sharded import whole_parameters


__all__ = ["Way", "run", "run_way", "starting_point", "train"]

logger = logging.getLogger(__name__)

_LOG_FIELDS = {
    "reward": ("reward", ".3f"),
    "rewards/thurstone_fidelity/mean": ("rank", ".3f"),
    "rewards/threshold/mean": ("threshold", ".3f"),
    "rewards/format/mean": ("format", ".2f"),
    "rank/parse_rate": ("parsed", ".0%"),
    "rank/batch_srcc": ("batch SRCC", ".2f"),
    "kl": ("KL", ".3f"),
    "coto/p": ("p", ".2f"),
}


@dataclass(frozen=True)
class Way:
    """What GRPO and supervised fine-tuning on rated pictures do not share.

    `arguments` makes the trainer's configuration of a recipe (keyword arguments win), `trainer` the trainer of recipe,
    configuration, study, model, processor and prompt. `log_fields`: what is printed while it trains. `card`: name and
    paper for the model card.
    """

    arguments: Callable[..., Any]
    trainer: Callable[..., Any]
    log_fields: dict[str, tuple[str, str]]
    story: Story = Story()
    card: Mapping[str, Any] = field(default_factory=lambda: VISUALQUALITY_R1)


def run(recipe: VisualQualityR1Recipe, *, recipe_path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Train, evaluate and report as the recipe says; called by `thurl.recipe.launch` on every process.

    Returns:
        the record of the run, as in the results file.

    Raises:
        ThurlError: data, model or settings that cannot be used; see the modules called.
        StoppedError: SIGTERM came while it trained; the checkpoint is written.
    """
    return run_way(GRPO, recipe, recipe_path, overrides)


def run_way(way: Way, recipe: Any, recipe_path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """`run`, for a recipe with the sections of VisualQuality-R1 and its own way of training."""
    quiet_libraries()
    field = recipe.training.get
    prepare_deepspeed_on_cpu(field("deepspeed"), bool(field("use_cpu")), float(field("ddp_timeout", 1800)))
    args = way.arguments(recipe)
    folder = Path(args.output_dir)
    if PartialState().is_main_process:
        warn_before_start(recipe)
    started = time.perf_counter()
    study = load_study(recipe, folder)
    model_path = starting_point(recipe, study.train, folder, recipe_path, overrides)
    start_seconds = time.perf_counter() - started
    main = train(recipe, args, study, model_path, way=way)
    main.seconds.update(start=start_seconds, total=time.perf_counter() - started)
    control = None
    if recipe.control.shuffle_mos:
        logger.info("Control: the same run on shuffled labels, which must learn nothing")
        shuffled = replace(study, train=shuffle_mos(study.train, recipe.control.seed))
        # A checkpoint named for the run is not one of the control.
        resume = "auto" if args.resume_from_checkpoint else None
        control_args = way.arguments(recipe, output_dir=str(folder / "control"), resume_from_checkpoint=resume)
        control = train(recipe, control_args, shuffled, model_path, name="control", way=way)
    return write_report(recipe, args.seed, study, main, control, recipe_path, overrides, way.story)


def training_arguments(recipe: VisualQualityR1Recipe, **changes: Any) -> RankGRPOConfig:
    """The recipe's `training` section as a trainer configuration; `changes` win."""
    return RankGRPOConfig(
        **{
            **recipe.training,
            "reward_weights": [recipe.reward.accuracy_weight, recipe.reward.format_weight],
            **changes,
        }
    )


def rank_grpo_trainer(
    recipe: VisualQualityR1Recipe, args: RankGRPOConfig, study: Study, model: Any, processor: Any, preset: PromptPreset
) -> RankGRPOTrainer:
    """The trainer of the recipe, with CoTo where it has that section."""
    return rank_trainer(recipe.coto)(
        model,
        reward_funcs=reward_functions(recipe),
        args=args,
        train_dataset=build_rank_dataset(study.train, preset, mode="think" if recipe.data.prompt.think else "direct"),
        processing_class=processor,
        peft_config=peft_config(recipe.adapter) if recipe.adapter else None,
        block_size=recipe.sampler.block_size,
        sampler_weights=recipe.sampler.weights,
        remainder=recipe.sampler.remainder,
        prefix_sharing=recipe.model.prefix_sharing,
        rollouts=RolloutOptions(**recipe.rollouts.model_dump()),
    )


GRPO = Way(training_arguments, rank_grpo_trainer, _LOG_FIELDS)


def train(recipe: Any, args: Any, study: Study, model_path: str, name: str = "", way: Way = GRPO) -> TrainedRun:
    """One run from the model at `model_path`, with evaluation before, during and after."""
    preset = prompt_preset(recipe)
    set_seed(args.seed)  # a new adapter's weights are drawn below
    model, processor = load_model(recipe, args, model_path)
    trainer = way.trainer(recipe, args, study, model, processor, preset)
    quiet_trainer(trainer)
    trainer.add_callback(ProgressLines(way.log_fields, f"{name}: " if name else ""))
    trainer.add_callback(SaveBeside(lambda folder: save_prompt(folder, preset)))
    section = recipe.evaluation
    watch = None
    if section is not None and section.every_steps and study.validation:
        records = study.validation[: section.max_images]
        path = Path(args.output_dir) / "validation.jsonl"
        watch = evaluator(recipe, trainer, preset, records, every=section.every_steps, path=path)
        trainer.add_callback(watch)
    test = evaluator(recipe, trainer, preset, study.test) if study.test else None
    clock = time.perf_counter()
    before = test.evaluate(trainer.model) if test and section.before and not name else None
    began = time.perf_counter()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    saved = time.perf_counter()
    trainer.save_model()
    if trainer.accelerator.is_main_process:
        save_prompt(args.output_dir, preset)
    after = test.evaluate(trainer.model) if test and section.after else None
    seconds = {"training": saved - began, "evaluation": began - clock + time.perf_counter() - saved}
    write_model_card(trainer, quality_card(recipe, way.card), quality_metrics(after))
    if getattr(trainer, "weight_sync", None) is not None:
        trainer.weight_sync.close()  # the control run builds an engine of its own
    log, validation = list(trainer.state.log_history), watch.history if watch else []
    return TrainedRun(log, validation, before, after, seconds, trainer.timing)


def evaluator(
    recipe: VisualQualityR1Recipe, trainer: RankGRPOTrainer, preset: PromptPreset, records: Any, **options: Any
) -> QualityEvalCallback:
    """Evaluation of fixed pictures as the recipe says, by the model as it is in the trainer."""
    section = recipe.evaluation
    return QualityEvalCallback(
        trainer.processing_class,
        records,
        preset=preset,
        decoding=decoding(recipe),
        batch_size=section.batch_size,
        grouping=section.grouping,
        gather=whole_parameters,
        **options,
    )


# -- model ---------------------------------------------------------------------------------------------------------


def starting_point(
    recipe: VisualQualityR1Recipe,
    records: Sequence[RatedImage],
    folder: Path,
    recipe_path: str,
    overrides: Sequence[str] = (),
) -> str:
    """Folder or Hub name of the model to start from; a tiny one is built, warm-started and saved first.

    One process builds it, outside the process group, so that the start does not depend on how many there are; a
    finished start of the same settings is used again.
    """
    if recipe.model.tiny is None:
        return str(recipe.model.name_or_path)
    place = folder / "start"
    key = fingerprint(
        {
            "model": recipe.model.tiny.model_dump(),
            "warm_start": recipe.warm_start.model_dump() if recipe.warm_start else None,
            "data": [source.model_dump() for source in recipe.data.train],
            "prompt": prompt_preset(recipe).text("think"),
            "seed": recipe.training.get("seed"),
        }
    )
    return built_once(place, key, lambda: build_start(recipe, records, place), [__name__, recipe_path, *overrides])


def build_start(recipe: VisualQualityR1Recipe, records: Sequence[RatedImage], place: Path) -> None:
    """Build a tiny model, teach it to see and to answer without any information on scores, and save it."""
    from thurl.rl.tiny import build_tiny_qwen2_5_vl
    from thurl.rl.warm_start import WarmStartOptions, warm_start

    tiny, preset = recipe.model.tiny, prompt_preset(recipe)
    seed = int(recipe.training.get("seed", 42))
    shape = tiny.model_dump(exclude={"seed"})
    model, processor = build_tiny_qwen2_5_vl(seed if tiny.seed is None else tiny.seed, **shape)
    logger.info("Built a Qwen2.5-VL of %d parameters", sum(parameter.numel() for parameter in model.parameters()))
    if recipe.warm_start is not None:
        logger.info("Warm start: it learns to see and to answer in the format, without any information on scores")
        result = warm_start(
            model,
            processor,
            records,
            question=preset.text("think" if recipe.data.prompt.think else "direct"),
            options=WarmStartOptions(**recipe.warm_start.stage_options()),
            seed=seed if recipe.warm_start.seed is None else recipe.warm_start.seed,
        )
        names = ("pretext_accuracy", "pretext_loss", "format_loss")
        measured = ", ".join(f"{name.replace('_', ' ')} {result[name]:.2f}" for name in names if name in result)
        logger.info("Warm start done in %.0f s: %s", result["seconds"], measured)
    model.save_pretrained(place)
    processor.save_pretrained(place)
    save_prompt(place, preset)


def load_model(recipe: VisualQualityR1Recipe, args: RankGRPOConfig, model_path: str) -> tuple[Any, Any]:
    """Model and processor to train, frozen as the recipe says.

    Full fine-tuning without DeepSpeed keeps float32 weights and computes in bfloat16: at a learning rate of 1e-6 an
    update of a bfloat16 weight rounds to nothing. DeepSpeed keeps its own float32 copy, and adapters are float32.
    """
    from thurl.rl.loading import load_vision_language_model

    section = recipe.model
    dtype = section.dtype
    if recipe.adapter is None and not args.deepspeed and (args.bf16 or args.fp16) and dtype in ("auto", "bfloat16"):
        logger.info("model.dtype %s: float32 weights, computed in lower precision (no DeepSpeed, no adapter)", dtype)
        dtype = "float32"
    if section.revision and hasattr(args, "beta"):
        args.model_init_kwargs = {**(args.model_init_kwargs or {}), "revision": section.revision}  # of the reference
    model, processor = load_vision_language_model(
        model_path,
        dtype=dtype,
        revision=section.revision,
        attn_implementation=section.attn_implementation,
        min_pixels=section.min_pixels,
        max_pixels=section.max_pixels,
    )
    if recipe.model.tiny is not None:
        # The trainer would do the same and warn; a saved Qwen2.5-VL configuration keeps these in its text part only.
        model.config.eos_token_id = processor.tokenizer.eos_token_id
        model.config.pad_token_id = processor.tokenizer.pad_token_id
    if section.freeze and recipe.adapter is None:
        freeze_parameters(model, section.freeze)
    return model, processor


def reward_functions(recipe: VisualQualityR1Recipe) -> list[Any]:
    """Ranking (or threshold) reward and format reward; their weights are in the training arguments."""
    section = recipe.reward
    if section.kind == "threshold":
        accuracy: Any = ThresholdReward(section.threshold, section.parse_mode or "strict")
    else:
        block = recipe.sampler.block_size if section.scope == "device" else None
        options = RankRewardOptions(**section.rank_options())
        accuracy = RankReward(parse_mode=section.parse_mode, block_size=block, options=options)
    return [accuracy, FormatReward(section.format_mode)]


def decoding(recipe: VisualQualityR1Recipe) -> Decoding:
    """How evaluation draws answers."""
    section = recipe.evaluation
    names = ("mode", "n_samples", "seed", "temperature", "top_k", "top_p", "max_new_tokens")
    return Decoding(**{name: getattr(section, name) for name in names})


def _main(recipe_path: str, overrides: Sequence[str]) -> None:
    from thurl.recipe.validate import load_recipe

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe = load_recipe(recipe_path, overrides).recipe
    folder = Path(recipe.training["output_dir"])
    starting_point(recipe, load_study(recipe, folder).train, folder, recipe_path, overrides)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2:])
