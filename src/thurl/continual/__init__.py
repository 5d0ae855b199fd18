"""Dynamic benchmarking of continual learners: CLDyB, arXiv 2503.04655 (docs/cldyb.md)."""
