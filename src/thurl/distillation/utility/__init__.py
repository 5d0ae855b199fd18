"""Utility losses: how far a synthetic set is from doing what the real one does."""
