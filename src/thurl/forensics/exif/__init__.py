"""Detection of generated faces learned from camera settings (arXiv 2501.02207 and 2507.22824)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thurl.lazy import lazy_names


# name -> module. Resolved on first use, so that reading EXIF does not import torch.
_PUBLIC = {
    "BladesConfig": "thurl.forensics.exif.config",
    "BladesModel": "thurl.forensics.exif.blades",
    "CameraFaces": "thurl.forensics.exif.dataset",
    "Detector": "thurl.forensics.exif.detector",
    "ExifEncoder": "thurl.forensics.exif.encoder",
    "ExifEncoderConfig": "thurl.forensics.exif.config",
    "ExifOrdinalConfig": "thurl.forensics.exif.config",
    "ExifOrdinalModel": "thurl.forensics.exif.ordinal",
    "FaceDetector": "thurl.forensics.exif.scoring",
    "FaceImageProcessor": "thurl.forensics.processing",
    "FeatureTower": "thurl.forensics.exif.features",
    "Rule": "thurl.forensics.exif.scoring",
    "convert_checkpoint": "thurl.forensics.exif.official",
    "evaluate_tables": "thurl.forensics.exif.evaluation",
    "explain": "thurl.forensics.exif.explanations",
    "extract_features": "thurl.forensics.exif.features",
    "fit_binary": "thurl.forensics.exif.fitting",
    "fit_one_class": "thurl.forensics.exif.fitting",
    "load_detector": "thurl.forensics.exif.detector",
    "robustness_report": "thurl.forensics.exif.evaluation",
    "save_detector": "thurl.forensics.exif.detector",
    "scan_folder": "thurl.forensics.exif.scan",
}

__all__ = [
    "BladesConfig",
    "BladesModel",
    "CameraFaces",
    "Detector",
    "ExifEncoder",
    "ExifEncoderConfig",
    "ExifOrdinalConfig",
    "ExifOrdinalModel",
    "FaceDetector",
    "FaceImageProcessor",
    "FeatureTower",
    "Rule",
    "convert_checkpoint",
    "evaluate_tables",
    "explain",
    "extract_features",
    "fit_binary",
    "fit_one_class",
    "load_detector",
    "robustness_report",
    "save_detector",
    "scan_folder",
]

if TYPE_CHECKING:
    from thurl.forensics.exif.blades import BladesModel
    from thurl.forensics.exif.config import BladesConfig, ExifEncoderConfig, ExifOrdinalConfig
    from thurl.forensics.exif.dataset import CameraFaces
    from thurl.forensics.exif.detector import Detector, load_detector, save_detector
    from thurl.forensics.exif.encoder import ExifEncoder
    from thurl.forensics.exif.evaluation import evaluate_tables, robustness_report
    from thurl.forensics.exif.explanations import explain
    from thurl.forensics.exif.features import FeatureTower, extract_features
    from thurl.forensics.exif.fitting import fit_binary, fit_one_class
    from thurl.forensics.exif.official import convert_checkpoint
    from thurl.forensics.exif.ordinal import ExifOrdinalModel
    from thurl.forensics.exif.scan import scan_folder
    from thurl.forensics.exif.scoring import FaceDetector, Rule
    from thurl.forensics.processing import FaceImageProcessor

__getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
