"""Forensics of pictures: whether a face comes from a camera."""
