"""DeepFake detection that says what was altered: semantics-oriented multitask learning (arXiv 2408.16305)."""
