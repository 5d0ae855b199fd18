"""Editing vision transformers: a few failing pictures and their right labels in, a small reversible change out.

Paper: "Learning Where to Edit Vision Transformers" (NeurIPS 2024, arXiv 2411.01948).
"""
