"""Image quality assessment with models of its own: full-reference metrics and evaluation of restored pictures."""
