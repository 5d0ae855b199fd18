"""Runs one tiny recipe after the other in this process, each of which pushes what it makes; run by test_recipes.py.

    python push_runs.py FOLDER NAME[=USER/REPOSITORY]...

The smallest run of each recipe; HF_ENDPOINT names the Hub. Then what was pushed is loaded by its name on the Hub and
compared with what lies in the folder. Appends one JSON line per run to runs.jsonl: name, exit code, CPU seconds.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

from thurl.hub.push import Destination, push_folder
from thurl.recipe.launch import run_recipe
from thurl.recipe.shipped import find_recipe


NONE = "report.results=null report.html=null"
LLM = (
    "model.tiny={hidden: 16, layers: 1, heads: 1} "
    "pretraining={commands: [copy], lengths: [3], steps: 2, rows: 64, batch: 32} "
    "evaluation.sources.0={format: commands, commands: [copy], split: test, rows: 4, lengths: [3]} "
    "data.train.0={format: commands, commands: [copy], split: train, rows: 64, lengths: [3]} "
    "evaluation.every_steps=null evaluation.before=false control.shuffle_answers=false training.max_steps=1 "
    "training.logging_steps=1 training.per_device_train_batch_size=4 report.results=null report.html=null"
)
VLM = (
    "model.tiny.hidden=16 model.tiny.heads=1 model.tiny.vision_hidden=16 model.tiny.vision_heads=1 warm_start=null "
    "data.train.0.repeats=1 data.validation=[] evaluation.sources.0.repeats=1 evaluation.before=false "
    "evaluation.every_steps=null evaluation.max_new_tokens=4 training.max_steps=1 training.logging_steps=1 "
    "training.warmup_steps=0 training.per_device_train_batch_size=4 control.shuffle_mos=false "
    "report.results=null report.html=null"
)
EXIF = (
    "model.tiny.depths=[1,1] model.tiny.hidden_sizes=[8,12] model.tiny.stem_channels=8 model.tiny.feature_size=6 "
    "data.source.count=80 data.source.size=24 transform.size=24 evaluation.photographs.count=12 "
    "evaluation.photographs.size=24 evaluation.rate=0.1 evaluation.before=false "
    "evaluation.generated={reborn: {format: simulated_fakes, kind: reborn, count: 4, first: 200000, size: 24}} "
    "training.max_steps=1 training.eval_steps=1 training.save_steps=1 training.logging_steps=1 "
    "training.per_device_train_batch_size=8 detector.components=2 detector.pca=null detector.rates=[0.1] "
    f"control.shuffle_settings=false {NONE}"
)
RUNS = {
    "afine": (
        "tiny/afine",
        "model.tiny.hidden=16 model.tiny.image_size=32 model.tiny.projection=4 data.train.0.contents=3 "
        "data.train.0.triplets=6 data.train.0.size=32 data.train.1.contents=3 data.train.1.triplets=6 "
        "data.train.1.size=32 evaluation.sources.0.contents=3 evaluation.sources.0.triplets=6 "
        "evaluation.sources.0.size=32 evaluation.sources.1.contents=3 evaluation.sources.1.triplets=6 "
        "evaluation.sources.1.size=32 training.per_device_train_batch_size=3 training.logging_steps=1 "
        "evaluation.intervals=20 evaluation.before=false naturalness.training.max_steps=1 "
        "fidelity.training.max_steps=1 adapter.training.max_steps=1 control.shuffle_labels=false report.results=null",
    ),
    "exif": ("tiny/exif_ordinal", EXIF),
    "blades": ("tiny/blades", EXIF),
    "deepfake": (
        "tiny/deepfake_mtl",
        "model.tiny={patch_size: 16, hidden: 8, layers: 1, heads: 2} "
        "data.sources=[{format: drawn, people: {train: 4, outer: 2, val: 2}, frames: 2}] "
        "evaluation.sources=[{format: drawn, dataset: other, people: {test: 3}, frames: 2, seed: 9}] "
        "evaluation.resamples=5 evaluation.before=false evaluation.perturbations=[] training.max_steps=1 "
        f"training.eval_steps=1 training.save_steps=1 training.per_device_train_batch_size=4 {NONE}",
    ),
    "restoration": (
        "tiny/face_restoration",
        "model.hidden_sizes=[6,8] model.depths=[1,1] data.size=24 data.repeats=1 training.max_steps=1 "
        "training.per_device_train_batch_size=4 training.warmup_steps=0 training.eval_strategy='no' "
        "evaluation.size=32 evaluation.repeats=1 evaluation.before=false evaluation.cleanups=[] "
        f"report.examples=0 control.unrelated_targets=false {NONE}",
    ),
    "edit_vit": (
        "tiny/edit_vit",
        "model.digits.epochs=1 hypernetwork.blocks=1 meta.inner_steps=1 meta.outer_steps=1 training.max_steps=1 "
        f"training.per_device_train_batch_size=2 evaluation=null {NONE}",
    ),
    "distill": (
        "tiny/distill_rate_utility",
        "model.samples_per_class=1 model.widths=[4] data.train_per_class=10 data.test_per_class=3 "
        "warm_up.iterations=2 warm_up.candidates=1 fit.max_steps=2 training.max_steps=2 utility.batch_real=2 "
        "utility.depth=1 utility.width=4 evaluation.images=20 evaluation.seeds=[0] evaluation.architectures=[] "
        f"choice.seeds=[1000] choice.checkpoints=0 baselines.names=[] rate.bits_per_class=900 {NONE}",
    ),
    "cldyb": (
        "tiny/cldyb",
        "data.digits.domains=[orig] data.digits.sizes=[8,6,6] model.tiny.hidden_sizes=[12,8] model.tiny.epochs=5 "
        "learners=[simplecil] search.tasks=2 individual=false search.classes_per_task=3 search.starts=2 "
        "search.clusters=2 search.simulations=2 baselines.names=[] replay.seeds=[1001] replay.held_out=[] "
        f"report.png=null {NONE}",
    ),
    "coto_llm": ("tiny/coto_llm", LLM),
    "coto_grpo": (
        "tiny/coto_llm_grpo",
        f"{LLM} training.num_generations=2 training.max_completion_length=5",
    ),
    "coto_vlm": ("tiny/coto_vlm", VLM),
    "visualquality_r1": (
        "tiny/visualquality_r1",
        f"{VLM} evaluation.n_samples=1 training.num_generations=2 training.max_completion_length=4 "
        "sampler.block_size=2",
    ),
}


def words_of(text: str) -> list[str]:
    """Overrides by spaces, those inside brackets left alone."""
    words, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == " " and not depth:
            words.append("")
        else:
            words[-1] += letter
    return [word for word in words if word]


def same_weights(first, second) -> None:
    """Two models have the same names and the same bits."""
    one, two = first.state_dict(), second.state_dict()
    assert list(one) == list(two) and one
    assert all(torch.equal(one[name], two[name]) for name in one)


def afine(folder, name):
    from thurl.iqa.afine import AFine

    same_weights(AFine.from_pretrained(folder).model, AFine.from_pretrained(name).model)


def exif(folder, name):
    from thurl.forensics.exif import FaceDetector
    from thurl.forensics.exif.loading import load_model

    same_weights(load_model(folder), load_model(name))
    one = FaceDetector.from_pretrained(folder, Path(folder) / "detector.safetensors")
    two = FaceDetector.from_pretrained(name, name)
    picture = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    scores = [detector.score([picture])[0] for detector in (one, two)]
    assert repr(scores[0]) == repr(scores[1])


def deepfake(folder, name):
    from thurl.forensics.deepfake.loading import load_model, load_processor

    same_weights(load_model(folder), load_model(name))
    assert load_processor(folder).to_dict() == load_processor(name).to_dict()


def restoration(folder, name):
    from thurl.restoration import Restorer

    one, two = Restorer.from_pretrained(folder), Restorer.from_pretrained(name)
    same_weights(one.model, two.model)
    assert one.processor.to_dict() == two.processor.to_dict()


def edit_vit(folder, name):
    from thurl.editing.hypernetwork import MaskHypernetworkConfig, load_hypernetwork

    config = MaskHypernetworkConfig.from_pretrained(folder)
    own = (config.base_fingerprint, config.units)
    same_weights(load_hypernetwork(Path(folder), *own), load_hypernetwork(name, *own))


def distill(folder, name):
    from thurl.distillation import ddr

    one, two = ddr.load(Path(folder) / "data.ddr"), ddr.load(name)
    assert torch.equal(one.images, two.images) and torch.equal(one.labels, two.labels) and len(one)


def cldyb(folder, name):
    from thurl.continual.sequence_file import read_sequence

    assert read_sequence(Path(folder) / "sequence.json") == read_sequence(name)


def text_adapter(folder, name):
    from thurl.coto.adapters import read_adapter
    from thurl.text.loading import load_language_model

    base = f"{folder}/start"
    one = load_language_model(folder)[0]
    same_weights(one, load_language_model(name, base_model=base)[0])
    assert read_adapter(name).config["base_model_name_or_path"] is None
    # The base has a repository, too: then the name of the adapter is enough.
    push_folder(Path(base), Destination("me/base"))
    push_folder(Path(folder), Destination(f"{name}-named", base_model="me/base"))
    same_weights(one, load_language_model(f"{name}-named")[0])


def scorer(folder, name):
    from thurl.rl import QualityScorer

    options = {} if Path(folder, "config.json").is_file() else {"base_model": f"{folder}/start"}
    one, two = QualityScorer.from_pretrained(folder), QualityScorer.from_pretrained(name, **options)
    same_weights(one.model, two.model)
    assert one.preset == two.preset and one.preset.name != "official"
    assert one.processor.to_dict() == two.processor.to_dict()


CHECKS = {
    "afine": afine,
    "exif": exif,
    "blades": exif,
    "deepfake": deepfake,
    "restoration": restoration,
    "edit_vit": edit_vit,
    "distill": distill,
    "cldyb": cldyb,
    "coto_llm": text_adapter,
    "coto_grpo": text_adapter,
    "coto_vlm": scorer,
    "visualquality_r1": scorer,
}


def main() -> None:
    folder, *names = sys.argv[1:]
    os.chdir(folder)
    for name in names:
        name, _, repo = name.partition("=")
        repo = repo or f"me/{name}"
        folder = repo.rpartition("/")[2]
        path, text = RUNS[name]
        push = [f"training.output_dir={folder}", "training.push_to_hub=true", f"training.hub_model_id={repo}"]
        push += ["hub.license=apache-2.0", "hub.datasets=[me/pictures]", "hub.tags=[tiny]"]
        clock = time.process_time()
        code = run_recipe(str(find_recipe(path)), [*words_of(text), *push])
        ran = time.process_time()
        if code == 0:
            CHECKS[name](folder, repo)
        row = {"name": name, "repo": repo, "code": code, "seconds": ran - clock, "load": time.process_time() - ran}
        with Path("runs.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
