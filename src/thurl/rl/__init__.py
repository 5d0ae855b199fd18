"""VisualQuality-R1: prompts, parsing, rewards, sampler, GRPO trainer, scorer and evaluation (arXiv 2505.14460)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thurl.lazy import lazy_names


# name -> module. Resolved on first use, so that parsing a score does not import trl.
_PUBLIC = {
    "DatasetBlockSampler": "thurl.rl.sampler",
    "FormatReward": "thurl.rl.rank_reward",
    "QualityEvalCallback": "thurl.rl.eval_callback",
    "QualityScore": "thurl.rl.scorer",
    "QualityScorer": "thurl.rl.scorer",
    "RankGRPOConfig": "thurl.rl.trainer",
    "RankGRPOTrainer": "thurl.rl.trainer",
    "RankReward": "thurl.rl.rank_reward",
    "RankRewardOptions": "thurl.rl.rewards",
    "ThresholdReward": "thurl.rl.rank_reward",
    "build_rank_dataset": "thurl.rl.dataset",
    "format_reward": "thurl.rl.parsing",
    "parse_score": "thurl.rl.parsing",
    "thurstone_fidelity_rewards": "thurl.rl.rewards",
}

__all__ = [
    "DatasetBlockSampler",
    "FormatReward",
    "QualityEvalCallback",
    "QualityScore",
    "QualityScorer",
    "RankGRPOConfig",
    "RankGRPOTrainer",
    "RankReward",
    "RankRewardOptions",
    "ThresholdReward",
    "build_rank_dataset",
    "format_reward",
    "parse_score",
    "thurstone_fidelity_rewards",
]

if TYPE_CHECKING:
    from thurl.rl.dataset import build_rank_dataset
    from thurl.rl.eval_callback import QualityEvalCallback
    from thurl.rl.parsing import format_reward, parse_score
    from thurl.rl.rank_reward import FormatReward, RankReward, ThresholdReward
    from thurl.rl.rewards import RankRewardOptions, thurstone_fidelity_rewards
    from thurl.rl.sampler import DatasetBlockSampler
    from thurl.rl.scorer import QualityScore, QualityScorer
    from thurl.rl.trainer import RankGRPOConfig, RankGRPOTrainer

__getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
