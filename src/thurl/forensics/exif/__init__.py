"""Detection of generated faces learned from camera settings (arXiv 2501.02207 and 2507.22824)."""
