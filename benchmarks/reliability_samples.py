"""Small valid files of every kind that thurl reads, and how it reads them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image


RECIPES = Path(__file__).resolve().parents[1] / "recipes" / "tiny"
_FORMATS = {"PNG": "png", "JPEG": "jpg", "GIF": "gif", "TIFF": "tif", "WEBP": "webp", "BMP": "bmp"}


@dataclass(frozen=True)
class Sample:
    """One kind of input.

    Args:
        group: what the tables call it, such as "images".
        name: of this kind within the group.
        folder: a folder with valid files.
        targets: the files of it that are damaged, in turn.
        read: opens what is in a folder like it.
    """

    group: str
    name: str
    folder: Path
    targets: tuple[str, ...]
    read: Callable[[Path], Any]


def make_samples(root: Path, *, models: bool = True) -> list[Sample]:
    """All samples, or those without models and adapters, with their files below `root`; the same each time."""
    makers = (_images, _labels, _recipes, _manifests, _containers, *((_models, _adapters) if models else ()))
    return [sample for maker in makers for sample in maker(root)]


def picture(seed: int = 0, size: tuple[int, int] = (24, 20)) -> Image.Image:
    smooth = np.linspace(0, 200, size[0] * size[1] * 3).reshape(size[1], size[0], 3)
    noise = np.random.default_rng(seed).integers(0, 50, smooth.shape)
    return Image.fromarray((smooth + noise).astype(np.uint8))


def _place(root: Path, *parts: str) -> Path:
    folder = root.joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _images(root: Path) -> Iterator[Sample]:
    from thurl.data.images import open_image
    from thurl.forensics.exif.reader import read_exif

    for name, ending in _FORMATS.items():
        folder = _place(root, "images", ending)
        (folder / f"a.{ending}").write_bytes(_encoded(name))
        yield Sample("images", name, folder, (f"a.{ending}",), lambda at, file=f"a.{ending}": open_image(at / file))
    folder = _place(root, "images", "exif")
    (folder / "a.jpg").write_bytes(_encoded("JPEG"))
    yield Sample("images", "EXIF", folder, ("a.jpg",), lambda at: read_exif(at / "a.jpg").settings())


def _encoded(name: str) -> bytes:
    target = io.BytesIO()
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0112] = "Maker", "Model", 6
    exif.get_ifd(0x8769).update({0x829A: (1, 60), 0x829D: (28, 10), 0x8827: 200, 0x920A: (35, 1), 0x9209: 16})
    picture().save(target, name, **({"exif": exif} if name in ("JPEG", "PNG", "WEBP", "TIFF") else {}))
    return target.getvalue()


def _labels(root: Path) -> Iterator[Sample]:
    from thurl.data.labels import read_labels

    texts = {
        "csv": ("a.csv", "image,mos,std,dataset\na.png,3.5,0.2,mine\nb.png,1.25,0.1,mine\nc.png,4.75,0.3,mine\n"),
        "official": ("KADID-10K_mos.txt", "I01.png I01_23_05.png 4.57 0.7\nI01.png I01_23_01.png 4 0\n"),
        "jsonl": ("a.jsonl", "".join(_official_line(name, mos) for name, mos in (("a.png", 3.5), ("b.png", 1.0)))),
        "kadid": ("dmos.csv", "dist_img,ref_img,dmos,var\nI01_01_01.png,I01.png,4.57,0.496\n"
                              "I02_25_05.png,I02.png,1.1,0.3\n"),
        "koniq": ("koniq10k_scores_and_distributions.csv",
                  '"image_name","c1","c2","c3","c4","c5","c_total","MOS","SD","MOS_zscore"\n'
                  '"1.jpg",0,0,25,73,7,105,3.83,0.53,77.4\n"2.jpg",0,5,20,73,7,105,3.5,0.6,70.1\n'),
        "tid2013": ("mos_with_names.txt", "5.51429 I01_01_1.bmp\n5.56757 I25_24_5.bmp\n"),
        "agiqa": ("data.csv", "name,prompt,adj1,adj2,style,mos_quality,std_quality,mos_align,std_align\n"
                              'a.jpg,"a cat, sitting",nice,,anime,0.97,0.22,1.5,0.4\n'),
        "clive": ("a.csv", "image_name,MOS,std\nt1.bmp,63.9,18.3\n3.bmp,48.9,18.9\n"),
    }  # fmt: skip
    for name, (file, text) in texts.items():
        folder = _place(root, "labels", name)
        (folder / file).write_text(text)
        yield Sample(
            "label files", name, folder, (file,), lambda at, file=file, name=name: read_labels(at / file, format=name)
        )
    yield from _workbook(root)
    yield from _lists(root)


def _official_line(image: str, mos: float) -> str:
    talk = [{"from": "human", "value": "<image>Rate it."}, {"from": "gpt", "value": mos}]
    return json.dumps({"id": 1, "image": [image], "conversations": talk}) + "\n"


def _workbook(root: Path) -> Iterator[Sample]:
    from openpyxl import Workbook

    from thurl.data.labels import read_labels

    folder = _place(root, "labels", "spaq")
    book = Workbook()
    for row in (("Image name", "MOS"), ("00001.jpg", 33.7), ("00002.jpg", 61.2)):
        book.active.append(row)
    book.save(folder / "MOS.xlsx")
    yield Sample("label files", "spaq", folder, ("MOS.xlsx",), lambda at: read_labels(at / "MOS.xlsx", format="spaq"))


def _lists(root: Path) -> Iterator[Sample]:
    from thurl.coto.text_loss import read_texts
    from thurl.text.labelled import read_examples
    from thurl.text.questions import read_questions
    from thurl.training.results import read_results, write_results

    texts: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
        "labelled text": ("a.txt", "0 good film\n1 bad film\n0 fine\n", read_examples),
        "questions": ("a.jsonl", "".join(json.dumps({"prompt": f"{i} + 2?", "completion": str(i + 2)}) + "\n"
                                         for i in range(3)), lambda path: read_questions("prompt_completion", path)),
        "texts": ("a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in ("one", "two")), read_texts),
    }  # fmt: skip
    for name, (file, text, read) in texts.items():
        folder = _place(root, "labels", name.replace(" ", "_"))
        (folder / file).write_text(text)
        yield Sample("label files", name, folder, (file,), lambda at, file=file, read=read: read(at / file))
    folder = _place(root, "labels", "results")
    write_results(folder / "a.json", recipe="recipes/tiny/afine.yaml", runs=[{"seed": 1, "srcc": 0.5}])
    yield Sample("label files", "results", folder, ("a.json",), lambda at: read_results(at / "a.json"))


def _recipes(root: Path) -> Iterator[Sample]:
    from thurl.recipe.validate import load_recipe

    for path in sorted(RECIPES.glob("*.yaml")):
        folder = _place(root, "recipes", path.stem)
        (folder / path.name).write_bytes(path.read_bytes())
        yield Sample("recipes", path.stem, folder, (path.name,), lambda at, file=path.name: load_recipe(at / file))


def _manifests(root: Path) -> Iterator[Sample]:
    from thurl.continual.pool import Sample as PoolSample
    from thurl.continual.pool import make_pool, read_pool
    from thurl.editing.groups import FailureGroup, Labelled, Predicted
    from thurl.editing.manifest import Manifest
    from thurl.editing.manifest import read_manifest as read_failures
    from thurl.editing.manifest import write_manifest as write_failures
    from thurl.forensics.deepfake.graph import load_graph
    from thurl.forensics.deepfake.manifest import FaceItem
    from thurl.forensics.deepfake.manifest import read_manifest as read_items
    from thurl.forensics.deepfake.manifest import write_manifest as write_items
    from thurl.forensics.exif.manifest import FaceRecord
    from thurl.forensics.exif.manifest import read_manifest as read_records
    from thurl.forensics.exif.manifest import write_manifest as write_records

    folder = _place(root, "manifests", "exif")
    records = [FaceRecord(f"{i}.jpg", group=f"g{i}", size=(20, 30), box=(1.0, 2.0, 10.0, 12.0)) for i in range(4)]
    write_records(folder / "a.jsonl", records)
    yield Sample("manifests", "EXIF faces", folder, ("a.jsonl",), lambda at: read_records(at / "a.jsonl"))

    graph = load_graph("ffpp")
    folder = _place(root, "manifests", "deepfake")
    real, fake = (0,) * len(graph.names), tuple(graph.vector("Deepfakes"))
    items = [
        FaceItem(str(folder / f"{i}.png"), fake if i % 2 else real, video=f"v{i}", frame=0, dataset="d", split="train")
        for i in range(4)
    ]
    write_items(folder / "a.jsonl", items, graph)
    yield Sample("manifests", "DeepFake faces", folder, ("a.jsonl",), lambda at: read_items(at / "a.jsonl", graph))

    folder = _place(root, "manifests", "graph")
    shipped = resources.files("thurl.forensics.deepfake") / "graphs" / "ffpp.yaml"
    (folder / "graph.yaml").write_text(shipped.read_text())
    yield Sample("manifests", "label graph", folder, ("graph.yaml",), lambda at: load_graph(str(at / "graph.yaml")))

    folder = _place(root, "manifests", "failures")
    pictures = tuple(Predicted(Labelled(f"a/{i}.png", 0, "t"), "0" * 64, 1, 0.5) for i in range(2))
    write_failures(folder / "a.json", Manifest("f" * 64, (FailureGroup(0, 1, "t", pictures),), pictures, {"seed": 0}))
    yield Sample("manifests", "failures", folder, ("a.json",), lambda at: read_failures(at / "a.json"))

    folder = _place(root, "manifests", "pool")
    found = [PoolSample("d", name, f"{i}.png", f"{name}/{i}.png", f"{name}{i}".encode().hex().ljust(64, "0"))
             for name in ("owl", "jay") for i in range(8)]  # fmt: skip
    make_pool(found, folder).save(folder / "pool.jsonl")
    yield Sample("manifests", "class pool", folder, ("pool.jsonl",), lambda at: read_pool(at / "pool.jsonl"))


def _containers(root: Path) -> Iterator[Sample]:
    from thurl.continual.sequence_file import read_sequence, write_sequence
    from thurl.distillation import ddr
    from thurl.distillation.coded import CodedDataset, CodedGroup, CodedSlice, group_shapes
    from thurl.distillation.geometry import CodecConfig
    from thurl.editing.delta import Delta, UnitChange
    from thurl.editing.delta_files import load_delta, save_delta
    from thurl.editing.units import Unit

    rng = np.random.default_rng(7)
    config = CodecConfig(9, 12, 3, context=8, depth=2, widths=(5,))
    latents = tuple(rng.integers(-3, 4, (3, *size)).astype(np.int32) for size in config.level_sizes)
    nets = {
        name: CodedGroup(6, tuple(rng.integers(-20, 21, shape).astype(np.int32) for shape in shapes))
        for name, shapes in group_shapes(config).items()
    }
    slices = (CodedSlice(config, np.array([0, 0, 1], np.int32), latents, nets),)
    folder = _place(root, "containers", "ddr")
    ddr.write(CodedDataset(slices, ("a", "b"), (0.5,) * 3, (0.25,) * 3), folder / "a.ddr")
    yield Sample("containers", "distilled data set", folder, ("a.ddr",), lambda at: ddr.load(at / "a.ddr")[0][0])

    folder = _place(root, "containers", "delta")
    units = tuple(Unit(i, "fc1", f"blocks.{i}.fc1.weight", 0, 12) for i in range(2))
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 6, generator=generator)
    save_delta(
        folder / "a.safetensors", Delta("f" * 64, units, (UnitChange(units[0], torch.tensor([1, 4]), rows, rows),))
    )
    yield Sample("containers", "edit", folder, ("a.safetensors",), lambda at: load_delta(at / "a.safetensors"))

    folder = _place(root, "containers", "sequence")
    tasks = [["a", "b"], ["c", "d"]]
    found = {"builder": "search", "tasks": tasks, "rewards": [0.1, 0.2], "accuracies": {}, "metrics": {},
             "trainings": 3, "training_seconds": 1.0, "wall_seconds": 1.0}  # fmt: skip
    write_sequence(folder / "a.json", {
        "format": 1, "pool_hash": "f" * 64, "classes": 4, "tasks": tasks, "seed": 0, "learner_seed": 0, "split": "val",
        "mode": "joint", "encoder": "", "learners": [{"name": "simplecil"}], "search": {}, "definitions": {},
        "found": found, "baselines": [found], "versions": {},
    })  # fmt: skip
    yield Sample("containers", "class sequence", folder, ("a.json",), lambda at: read_sequence(at / "a.json"))


def _models(root: Path) -> Iterator[Sample]:
    from thurl.forensics.deepfake.loading import load_model as load_deepfake
    from thurl.forensics.deepfake.model import DeepFakeModel
    from thurl.forensics.deepfake.tiny import tiny_config
    from thurl.forensics.exif.config import ExifOrdinalConfig
    from thurl.forensics.exif.loading import load_model as load_exif
    from thurl.forensics.exif.ordinal import ExifOrdinalModel
    from thurl.iqa.afine.config import AFineConfig
    from thurl.iqa.afine.metric import load_afine
    from thurl.iqa.afine.model import AFineModel
    from thurl.restoration.config import RestorationConfig
    from thurl.restoration.model import RestorationModel
    from thurl.restoration.processing import RestorationImageProcessor
    from thurl.restoration.restorer import Restorer

    encoder = {"depths": (1, 1), "hidden_sizes": (8, 16), "stem_channels": 8, "feature_size": 24}
    made: dict[str, tuple[Callable[[], Any], Callable[[str], Any]]] = {
        "A-FINE": (lambda: AFineModel(AFineConfig.tiny()), load_afine),
        "EXIF": (lambda: ExifOrdinalModel(ExifOrdinalConfig(encoder_config=encoder)), load_exif),
        "DeepFake": (lambda: DeepFakeModel(tiny_config()), load_deepfake),
        "restoration": (
            lambda: RestorationModel(RestorationConfig(hidden_sizes=[4, 8], depths=[1, 1])),
            Restorer.from_pretrained,
        ),
    }
    for name, (build, load) in made.items():
        folder = _place(root, "models", name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            build().eval().save_pretrained(folder)
        if name == "restoration":
            RestorationImageProcessor().save_pretrained(folder)
        yield Sample(
            "checkpoints", name, folder, ("config.json", "model.safetensors"), lambda at, load=load: load(str(at))
        )


def _adapters(root: Path) -> Iterator[Sample]:
    from peft import LoraConfig, get_peft_model

    from thurl.coto.adapters import read_adapter
    from thurl.text.tiny import build_tiny_language_model

    folder = _place(root, "adapters", "lora")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, _ = build_tiny_language_model(0, hidden=16, layers=1, heads=2)
        get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
    yield Sample("adapters", "LoRA", folder, ("adapter_config.json", "adapter_model.safetensors"), read_adapter)
