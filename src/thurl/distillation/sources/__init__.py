"""Labelled pictures from files: train and test parts of one size, ready for distillation."""

from thurl.distillation.sources.cifar import load_cifar
from thurl.distillation.sources.digits import load_digits
from thurl.distillation.sources.folders import load_folder
from thurl.distillation.sources.idx import load_idx
from thurl.distillation.sources.imagenet import SUBSETS, load_imagenet_subset
from thurl.distillation.sources.patches import load_patches


__all__ = ["SUBSETS", "load_cifar", "load_digits", "load_folder", "load_idx", "load_imagenet_subset", "load_patches"]
