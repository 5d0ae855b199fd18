"""Rate-utility dataset distillation: a synthetic data set as an overfitted image codec, and its compressed file."""
