"""Trackers that are installed, writing into a folder of the test and nowhere else."""

import importlib.util
import sys


def trackers_in(folder, monkeypatch):
    """Names for `report_to` of the trackers that are installed; what they write goes below `folder`."""
    places = {
        "TENSORBOARD_LOGGING_DIR": folder / "events",
        "TRACKIO_DIR": folder / "trackio",
        "WANDB_DIR": folder,
        "WANDB_MODE": "offline",
    }
    for name, value in places.items():
        monkeypatch.setenv(name, str(value))
    installed = [name for name in ("tensorboard", "trackio", "wandb") if importlib.util.find_spec(name)]
    if "trackio" in installed:
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] == "trackio" and hasattr(module, "TRACKIO_DIR"):
                monkeypatch.setattr(module, "TRACKIO_DIR", folder / "trackio")
    return installed
