"""Questions with checkable answers for language models: readers, prompts, extraction, evaluation, a tiny model."""
