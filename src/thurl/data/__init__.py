"""Rated pictures: opening them safely, reading label files, splitting, and degrading photographs."""
