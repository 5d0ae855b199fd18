"""Semantics-oriented multitask DeepFake detection by joint embedding (arXiv 2408.16305)."""
