"""How much memory and time a GRPO run of a vision-language model takes, from its sizes alone: no weights, no GPU."""
