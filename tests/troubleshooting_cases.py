"""The failures that docs/troubleshooting.md quotes, on tiny inputs through the real functions and commands.

A case takes a folder and pytest's monkeypatch, and returns what the program says. Patched is only what a machine has
(GPUs, packages, a login) and what the Hub answers.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner


__all__ = ["PROVOKED"]

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "recipes" / "tiny" / "visualquality_r1.yaml"


@contextmanager
def failing():
    """Gives a list that holds the text of the error afterwards."""
    said = []
    with pytest.raises(Exception) as caught:
        yield said
    said.extend(getattr(caught.value, "problems", [str(caught.value)]))


def says(function, *arguments, **options):
    with failing() as said:
        function(*arguments, **options)
    return "\n".join(said)


def recipe(*overrides, path=TINY):
    from thurl.recipe.validate import load_recipe

    return says(load_recipe, path, overrides)


def tiny(name, *overrides):
    return recipe(*overrides, path=TINY.with_name(f"{name}.yaml"))


def command(*words):
    from thurl.cli import app

    done = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "400", "NO_COLOR": "1"})
    assert done.exit_code, "the command was to fail"
    return done.output


def lacking(*overrides, path=TINY):
    from thurl.recipe.preflight import missing_requirements
    from thurl.recipe.validate import load_recipe

    return "\n".join(missing_requirements(load_recipe(path, overrides)))


def on_a_gpu(monkeypatch, count=1, bf16=True):
    """A machine as the checks before a run see it."""
    import torch

    monkeypatch.setattr("thurl.recipe.preflight._gpu_in_sight", lambda: True)
    monkeypatch.setattr("thurl.recipe.preflight._installed", lambda name: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "old GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.delenv("RANK", raising=False)


GPU = ("training.use_cpu=false", "training.bf16=true")


def no_bf16(place, patch):
    on_a_gpu(patch, bf16=False)
    return lacking(*GPU)


def several_gpus(place, patch):
    on_a_gpu(patch, count=4)
    return says(lacking, *GPU)


def deepspeed_alone(place, patch):
    on_a_gpu(patch)
    return says(lacking, *GPU, f"training.deepspeed={ROOT}/deepspeed_configs/zero2.json")


def no_gpu(place, patch):
    patch.setenv("CUDA_VISIBLE_DEVICES", "")
    return lacking(*GPU)


def no_vllm(place, patch):
    patch.setattr("thurl.recipe.preflight._installed", lambda name: False)
    return lacking()


def offline(place, patch):
    patch.setenv("HF_HUB_OFFLINE", "1")
    return lacking("model={name_or_path: nobody/nothing}")


def empty_model(place, patch):
    return lacking(f"model={{name_or_path: {place}}}")


def no_pyav(place, patch):
    from thurl.forensics.deepfake.video import require_pyav

    patch.setitem(sys.modules, "av", None)
    return says(require_pyav)


def labels(text="image,mos\na.png,3\n", images=None, encoding="utf-8", **options):
    def provoke(place, patch):
        from thurl.data.sources import load_source

        (place / "labels.csv").write_bytes(text.encode(encoding))
        (place / "a.png").write_bytes(b"no picture")
        source = {"format": "csv", "labels": place / "labels.csv", "images": images or place}
        return says(load_source, **source | options)

    return provoke


def picture(make, **options):
    def provoke(place, patch):
        from PIL import Image

        from thurl.data.images import open_image

        path = place / "a.png"
        Image.new("RGB", (64, 64)).save(path)
        make(path)
        return says(open_image, path, **options)

    return provoke


def two_parts(place, patch):
    from thurl.data.records import RatedImage
    from thurl.data.splits import check_no_leak

    row = RatedImage(image="a.png", mos=1.0, dataset="d", reference="r", source="f", row=1)
    return says(check_no_leak, {"train": [row], "test": [row]})


def strange_questions(place, patch):
    from thurl.text.questions import read_questions

    (place / "q.jsonl").write_text('{"x": 1}\n')
    return says(read_questions, "gsm8k", place / "q.jsonl")


def scan(place, patch):
    from PIL import Image

    Image.new("RGB", (64, 64)).save(place / "a.jpg")
    return command("exif", "scan", place)


def exif(block):
    def provoke(place, patch):
        import io

        from PIL import Image

        from thurl.forensics.exif.reader import read_exif

        file = io.BytesIO()
        Image.new("RGB", (64, 64)).save(file, "JPEG", **({"exif": block} if block else {}))
        return read_exif(file.getvalue()).problem

    return provoke


def few_photographs(place, patch):
    from thurl.forensics.exif.calibration import Calibration

    return says(Calibration.of, range(5), rates=[0.01])


def graph():
    from thurl.forensics.deepfake.graph import load_graph

    return load_graph("ffpp")


def illegal(place, patch):
    row = dict.fromkeys(graph().names, 1)
    return says(graph().check, row | {graph().names[0]: 0})


def ffpp(place, patch):
    from thurl.forensics.deepfake.ffpp import read_ffpp_folders

    return says(read_ffpp_folders, place, graph())


def twice(place, patch):
    from thurl.forensics.deepfake.deepfakebench import read_deepfakebench

    (place / "d.json").write_text('{"a": 1, "a": 2}')
    return says(read_deepfakebench, place / "d.json", graph())


def dfdc(place, patch):
    from thurl.forensics.deepfake.video_lists import read_dfdc_list

    (place / "list.txt").write_text("")
    return says(read_dfdc_list, place / "list.txt", graph())


def faces_again(place, patch):
    (place / "per_image.csv").write_text("x")
    return command("faces", "evaluate", "--restored", place, "--out", place)


def no_model(place, patch):
    from thurl.rl.loading import load_vision_language_model

    return says(load_vision_language_model, place)


def pickle_alone(place, patch):
    from thurl.vision_models.files import check_weights

    (place / "pytorch_model.bin").write_bytes(b"")
    return says(check_weights, place)


def broken_checkpoint(place, patch):
    from thurl.training.released_files import read_checkpoint

    (place / "a.pth").write_bytes(b"broken")
    return says(read_checkpoint, place / "a.pth")


def ddr(content):
    def provoke(place, patch):
        from thurl.distillation.ddr import decode

        return says(decode, content)

    return provoke


def other_settings(place, patch):
    from thurl.rl.score_files import _prepare

    _prepare(place / "s.csv", {"seed": 0}, retry_failed=False, overwrite=False)
    return says(_prepare, place / "s.csv", {"seed": 1}, retry_failed=False, overwrite=False)


def no_numbers(place, patch):
    import numpy as np

    from thurl.restoration.evaluation import _bytes

    return says(_bytes, np.full((1, 3, 2, 2), np.nan))


def no_server(place, patch):
    from thurl.rl.vllm_server import wait_for_server

    return says(wait_for_server, "http://127.0.0.1:9", 0, "vllm serve")


def small_pool(place, patch):
    from thurl.continual.mdp import SearchSettings

    return says(SearchSettings(tasks=10, classes_per_task=2).check_pool, [0, 1, 2])


def other_pool(place, patch):
    from thurl.continual.sequence_file import benchmark_tasks

    return says(benchmark_tasks, {"pool_hash": "a" * 64}, SimpleNamespace(pool_hash="b" * 64))


def other_encoder(place, patch):
    import torch

    from thurl.continual.features import read_features
    from thurl.training.tensor_files import write_tensors

    write_tensors(place / "f.safetensors", {"features": torch.zeros(1, 2)}, {"pictures": '["a"]', "encoder": "one"})
    return says(read_features, place / "f.safetensors", "two")


def not_whole(place, patch):
    from thurl.training import checkpoints

    said = []
    patch.setattr(checkpoints.logger, "warning", lambda text, *rest: said.append(text % rest))
    (place / "checkpoint-3").mkdir()
    assert checkpoints.last_whole_checkpoint(place) is None
    return "\n".join(said)


def resumed(wanted, damage=False, **settings):
    def provoke(place, patch):
        from thurl.training.checkpoints import choose_checkpoint, write_manifest

        folder = place / "checkpoint-3"
        folder.mkdir()
        (folder / "weights").write_bytes(b"12")
        write_manifest(folder, step=3, settings={"seed": 0})
        if damage:
            (folder / "weights").write_bytes(b"13")
        return says(choose_checkpoint, "auto" if wanted == "auto" else str(folder), place, settings)

    return provoke


def pushed(code):
    def provoke(place, patch):
        import httpx
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        def refuse(*arguments, **options):
            if code is None:
                raise httpx.ConnectError("no route")
            request = httpx.Request("POST", "https://hub.example/api")
            raise HfHubHTTPError("refused", response=httpx.Response(code, request=request))

        patch.setattr(HfApi, "create_repo", refuse)
        return push(place, token="hf_abcdefghijklmnop")

    return provoke


def push(place, name="ann/model", **options):
    from thurl.hub.push import Destination, push_folder

    (place / "config.json").write_text("{}")
    (place / "model.safetensors").write_bytes(b"x")
    return says(push_folder, place, Destination(name, None, None, None), **options)


def not_logged_in(place, patch):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        patch.delenv(name, raising=False)
    patch.setattr("huggingface_hub.get_token", lambda: None)
    return push(place)


def hub_offline(place, patch):
    from thurl.hub.push import login_problem

    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return login_problem()


def token_inside(place, patch):
    (place / "README.md").write_text("my token is unusual-token-123\n")
    return push(place, token="unusual-token-123")


def simple(function, *arguments, **options):
    return lambda place, patch: function(*arguments, **options)


PROVOKED = {
    "reading videos needs PyAV; pip install thurl[video]": no_pyav,
    "unknown key `KEY`; did you mean `NAME`?": simple(recipe, "training.learning_rat=1"),
    "unknown section; it belongs under `training:` (`training.KEY`)": simple(recipe, "learning_rate=1"),
    "required key `KEY` is missing": simple(recipe, "data.train=[{format: csv}]"),
    "is for `kind: NAME`; remove it": simple(tiny, "distill_rate_utility", "utility.inner_steps=2"),
    "must be a whole number": simple(recipe, "training.max_steps=many"),
    "override `TEXT` must look like `section.key=value`": simple(recipe, "max_steps"),
    "not valid YAML: REASON": simple(recipe, "training.max_steps=[1"),
    "FILE does not exist (looked in the working directory and around the recipe)": simple(
        recipe, "data.train=[{format: csv, labels: nowhere.csv}]"
    ),
    "recipe NAME is neither a file nor a recipe that ships": simple(command, "validate", "no_recipe"),
    "rows per generation batch": simple(recipe, "training.num_generations=5"),
    "must name the repository to push to, `user/name`": simple(recipe, "training.push_to_hub=true"),
    "thurl never does": simple(recipe, "training.trust_remote_code=true"),
    "NAME is not here; get it from PLACE": simple(lacking, path=ROOT / "recipes" / "visualquality_r1.yaml"),
    "model weights: folder FOLDER does not exist": simple(lacking, "model={name_or_path: ./nowhere}"),
    "model weights: folder FOLDER lacks LIST": empty_model,
    "model weights: NAME is not on this machine (REASON) and HF_HUB_OFFLINE is set": offline,
    "package NAME is not installed: COMMAND": no_vllm,
    "GPU: this recipe needs a CUDA GPU for LIST; none found on this machine": no_gpu,
    "has no bf16; set": no_bf16,
    "N GPUs are visible to a single process": several_gpus,
    "training.deepspeed: ZeRO needs the processes of a launcher": deepspeed_alone,
    "label file FILE does not exist": labels(labels="nowhere.csv"),
    "label format 'NAME' does not exist": labels(format="koniq11"),
    "no column LIST. Columns found: LIST.": labels("picture,score\na.png,3\n"),
    "the file is UTF-16; label files must be UTF-8": labels(encoding="utf-16"),
    "it must be a finite number": labels("image,mos\na.png,good\n"),
    "N of N pictures are missing": labels("image,mos\nb.png,3\n"),
    "N of N pictures cannot be used": labels(),
    "lies outside the picture folder": labels("image,mos\n../a.png,3\n"),
    "the picture is truncated or corrupt (REASON)": picture(lambda path: path.write_bytes(path.read_bytes()[:60])),
    "not a picture in one of the formats LIST": picture(lambda path: path.write_bytes(b"text")),
    "at most N pixels are decoded": picture(lambda path: None, max_pixels=100),
    "references are in two parts, so results would be too good": two_parts,
    "rows are no `NAME` rows": strange_questions,
    "files can be used, no manifest was written": scan,
    "no EXIF in the file": exif(b""),
    "corrupt EXIF (no TIFF header)": exif(b"Exif\0\0broken block of no kind"),
    "calibration photographs are too few for a false-alarm rate of N": few_photographs,
    "no frames in FOLDER: looked for": ffpp,
    "is in one object twice; give two videos two names": twice,
    "lists of DFDC are metadata.json and labels.csv": dfdc,
    "illegal labels for the label graph NAME": illegal,
    "--out FOLDER holds results: add --resume to go on there": faces_again,
    "holds no model (no config.json) and no adapter": no_model,
    "a pickle, which can run code and is not read": pickle_alone,
    "not a checkpoint of tensors and plain values (REASON)": broken_checkpoint,
    "this is not a .ddr file, or its start is damaged": ddr(b"version https://git-lfs.github.com/spec/v1"),
    "it is truncated or damaged. Copy it again": ddr(b"DDR1"),
    "this thurl reads 1 to N; update thurl": ddr(b"DDR1\x63" + bytes(60)),
    "was written with other settings (LIST): scores of both would be mixed": other_settings,
    "the model returned pixels that are no numbers": no_numbers,
    "No vLLM server answered at URL within N s": no_server,
    "tasks of N classes need N; the pool has N": small_pool,
    "the sequence was found in a pool with hash": other_pool,
    "made with encoder NAME, not NAME; give another folder": other_encoder,
    "FOLDER is not whole and is left out: REASON": not_whole,
    "FOLDER cannot be resumed from: REASON": resumed("folder", damage=True),
    "belongs to a run with other settings: LIST": resumed("auto", seed=1),
    "must be `auto` (the last whole checkpoint in": simple(recipe, "training.resume_from_checkpoint=nowhere"),
    "401, the token is not accepted": pushed(401),
    "402, the account would have to pay for it": pushed(402),
    "403, it is not allowed": pushed(403),
    "404, there is no such repository for this token": pushed(404),
    "409, the repository is being changed": pushed(409),
    "413, the request is larger than the Hub takes": pushed(413),
    "429, there were too many requests": pushed(429),
    "507, the storage is full": pushed(507),
    "503, the Hub failed": pushed(503),
    "run `hf auth login`, or set HF_TOKEN to a token that may write": not_logged_in,
    "HF_HUB_OFFLINE is set, so nothing can be pushed": hub_offline,
    "is no name of a repository; give `user/name`": lambda place, patch: push(place, name="a b"),
    "holds your token of the Hub, which would be published": token_inside,
    "the connection broke (REASON)": pushed(None),
}
