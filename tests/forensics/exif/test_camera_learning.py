"""Files of the simulated camera teach their settings to a small network, and shuffled labels teach nothing.

The whole way of a tiny recipe except its trainer: scenes, JPEG files, scan, manifest, parts, edits, losses.
"""

from __future__ import annotations

import secrets
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from thurl.forensics.exif.camera import write_photographs
from thurl.forensics.exif.coverage import coverage
from thurl.forensics.exif.dataset import CameraFaces, collate_faces
from thurl.forensics.exif.landmarks import with_average_landmarks
from thurl.forensics.exif.losses import ordinal_terms, total_loss
from thurl.forensics.exif.manifest import read_manifest, split_records, write_manifest
from thurl.forensics.exif.scan import scan_folder
from thurl.forensics.exif.tasks import ORDINAL_TASKS
from thurl.forensics.processing import FaceImageProcessor
from thurl.ranking import pairwise_fidelity_loss


CHANCE = 1 - 0.5**0.5
PROCESSOR = FaceImageProcessor(size=40, image_mean=[0.5] * 3, image_std=[0.25] * 3)


def manifest(folder, count, seed):
    write_photographs(folder, count, seed=seed, missing=0.05)
    write_manifest(folder / "manifest.jsonl", scan_folder(folder, group_by="file").records)
    return with_average_landmarks(read_manifest(folder / "manifest.jsonl"))


def network():
    layers, channels = [], 3
    for wide, stride in ((16, 1), (24, 2), (32, 2), (64, 2)):
        layers += [nn.Conv2d(channels, wide, 3, stride, 1), nn.BatchNorm2d(wide), nn.ReLU()]
        channels = wide
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


def train(records, *, steps, seed, lr=1e-3, batch_size=32):
    data = CameraFaces(records, PROCESSOR, seed=seed)
    torch.manual_seed(seed)
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr)
    order = np.random.default_rng(seed)
    losses = []
    while len(losses) < steps:
        data.set_epoch(data.epoch + 1)
        for places in np.array_split(order.permutation(len(data)), len(data) // batch_size):
            batch = collate_faces([data[int(i)] for i in places])
            loss = total_loss(ordinal_terms(net(batch["pixel_values"]), batch["labels"]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return net.eval(), losses


@torch.no_grad()
def judged(net, records):
    """Spearman and mean ranking loss per setting; that of a constant score is CHANCE."""
    data = CameraFaces(records, PROCESSOR, manipulations=None)
    batch = collate_faces([data[i] for i in range(len(data))])
    scores = net(batch["pixel_values"])
    correlations, losses = {}, {}
    for column, task in enumerate(ORDINAL_TASKS):
        labels = batch["labels"][task]
        there = ~labels.isnan()
        correlations[task] = float(spearmanr(scores[there, column], labels[there]).statistic)
        losses[task] = float(pairwise_fidelity_loss(scores[:, column], labels))
    return correlations, losses


def test_from_scenes_to_a_falling_loss(tmp_path):
    records = manifest(tmp_path, 200, seed=11)
    report = coverage(records)
    assert report["photographs"] == 200 and all(item["present"] > 150 for item in report["settings"].values())
    parts = split_records(records, seed=0)
    assert [len(part) for part in parts.values()] == [140, 20, 20, 20]
    assert len({record.sha256 for part in parts.values() for record in part}) == 200
    net, losses = train(parts["train"], steps=40, seed=1, lr=3e-3)
    assert np.mean(losses[-8:]) < np.mean(losses[:8]) - 0.05
    assert judged(net, parts["train"])[0]["iso"] > 0.5


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_settings_are_learned_and_shuffled_labels_are_not(tmp_path):
    """Bars set beforehand: ISO > 0.95, focal length > 0.75, aperture > 0.6, shuffled labels within 0.25 of 0.

    The last one is missed on some seeds (docs/exif.md): a correlation ignores scale, and a score that hardly moves may
    follow the noise of a picture quite well. The ranking losses tell the two apart; their bars were set on seed 1.
    """
    seed = secrets.randbelow(10**6)  # a fresh one each time; the message names it
    records = manifest(tmp_path, 1500, seed=seed)
    learners, held_out = records[:1200], records[1200:]
    learned, losses = judged(train(learners, steps=260, seed=seed)[0], held_out)
    order = np.random.default_rng(seed).permutation(len(learners))
    shuffled = [replace(r, settings=learners[i].settings) for r, i in zip(learners, order, strict=True)]
    control, control_losses = judged(train(shuffled, steps=260, seed=seed)[0], held_out)
    where = f"seed {seed}: learned {learned} {losses}, control {control} {control_losses}"
    assert learned["iso"] > 0.95 and learned["focal_length"] > 0.75 and learned["aperture"] > 0.6, where
    assert all(losses[task] < 0.2 for task in ("iso", "focal_length", "aperture")), where
    assert all(loss > CHANCE - 0.02 for loss in control_losses.values()), where
    assert all(abs(value) < 0.25 for value in control.values()), where
