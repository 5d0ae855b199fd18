"""Policy update in which the K completions of a prompt share one pass over it.

TRL repeats picture and prompt for each completion. Here a group becomes one packed row: the prompt without its last
token, then for each completion the last prompt token again followed by the completion (a *segment*). A token sees the
prompt and the earlier part of its own segment, with the positions it has in the plain layout, so log-probabilities
and gradients are those of the plain layout up to rounding. The vision tower runs once per group. It is one ordinary
call of the model: DDP, LoRA and gradient checkpointing work unchanged.

`layout` says which token goes where, `attention` is the one part of the language model that has to know, `cost`
estimates what is saved, `update` joins them for the trainer. Equality is tested on CPU in float32 and
float64, speed and memory are measured there (`benchmarks/grpo_prefix.py`); neither has been on a GPU yet.

Letters in shapes: N rows (completions), P padded prompt length, C padded completion length, G groups, L packed length.
"""

from __future__ import annotations

from thurl.rl.shared_prefix.update import PrefixSharing, PrefixSharingMode, split_whole_groups, unsupported


__all__ = ["PrefixSharing", "PrefixSharingMode", "split_whole_groups", "unsupported"]
