"""Inputs made to do harm, one function each: it writes its files into a folder and reads them as thurl does.

Each raises what the reader raises. A case that returns is one that the reader took; those that must be refused raise
an `AssertionError` then, which the campaign counts as a crash.
"""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reliability_samples import picture


def _refused(read: Callable[[], Any]) -> None:
    read()
    raise AssertionError("it was read")


def yaml_aliases(folder: Path) -> None:
    """Ten levels of nine: a text of a few hundred bytes that unfolds to three thousand million entries."""
    from thurl.recipe.validate import load_recipe

    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    (folder / "a.yaml").write_text("method: afine\n" + "\n".join(lines) + "\n")
    _refused(lambda: load_recipe(folder / "a.yaml"))


def yaml_depth(folder: Path) -> None:
    from thurl.recipe.validate import load_recipe

    (folder / "a.yaml").write_text("method: " + "[" * 20_000 + "]" * 20_000 + "\n")
    _refused(lambda: load_recipe(folder / "a.yaml"))


def yaml_object(folder: Path) -> None:
    from thurl.recipe.validate import load_recipe

    (folder / "a.yaml").write_text(f"method: !!python/object/apply:os.mkdir ['{folder / 'made'}']\n")
    try:
        _refused(lambda: load_recipe(folder / "a.yaml"))
    finally:
        if (folder / "made").exists():
            raise AssertionError("code of the file was run")


def graph_aliases(folder: Path) -> None:
    from thurl.forensics.deepfake.graph import load_graph

    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    (folder / "a.yaml").write_text("\n".join(lines) + "\n")
    _refused(lambda: load_graph(str(folder / "a.yaml")))


def json_depth(folder: Path) -> None:
    """A sequence file nested deeper than any parser's stack."""
    from thurl.continual.sequence_file import read_sequence

    (folder / "a.json").write_text("[" * 100_000 + "]" * 100_000)
    _refused(lambda: read_sequence(folder / "a.json"))


def json_lines_depth(folder: Path) -> None:
    from thurl.forensics.exif.manifest import read_manifest

    (folder / "a.jsonl").write_text("[" * 100_000 + "]" * 100_000 + "\n")
    _refused(lambda: read_manifest(folder / "a.jsonl"))


def results_depth(folder: Path) -> None:
    from thurl.training.results import read_results

    (folder / "a.json").write_text("[" * 100_000 + "]" * 100_000)
    _refused(lambda: read_results(folder / "a.json"))


def failures_depth(folder: Path) -> None:
    from thurl.editing.manifest import read_manifest

    (folder / "a.json").write_text("[" * 100_000 + "]" * 100_000)
    _refused(lambda: read_manifest(folder / "a.json"))


def path_in_labels(folder: Path) -> None:
    """A label file that names a file outside the folder of pictures."""
    from thurl.data.labels import read_labels

    (folder / "a.csv").write_text("image,mos\n../../../../etc/hostname,3\na.png,2\n")
    _refused(lambda: read_labels(folder / "a.csv", format="csv"))


def path_in_manifest(folder: Path) -> None:
    from thurl.forensics.exif.manifest import FaceRecord, read_manifest, write_manifest

    write_manifest(folder / "a.jsonl", [FaceRecord("../../../../etc/hostname")])
    _refused(lambda: read_manifest(folder / "a.jsonl"))


def path_in_faces(folder: Path) -> None:
    from thurl.forensics.deepfake.graph import load_graph
    from thurl.forensics.deepfake.manifest import read_manifest

    graph = load_graph("ffpp")
    row = {"path": "/etc/hostname", "labels": dict.fromkeys(graph.names, 0), "video": "v"}
    (folder / "a.jsonl").write_text(json.dumps(row) + "\n")
    _refused(lambda: read_manifest(folder / "a.jsonl", graph))


def path_in_pool(folder: Path) -> None:
    from thurl.continual.pool import Sample, make_pool, read_pool

    found = [Sample("d", name, f"{i}.png", f"{name}/{i}.png", f"{name}{i}".encode().hex().ljust(64, "0"))
             for name in ("owl", "jay") for i in range(8)]  # fmt: skip
    make_pool(found, folder).save(folder / "pool.jsonl")
    text = (folder / "pool.jsonl").read_text()
    (folder / "pool.jsonl").write_text(text.replace("owl/0.png", "../../../etc/hostname"))
    _refused(lambda: read_pool(folder / "pool.jsonl"))


def link_loop(folder: Path) -> None:
    from thurl.data.images import open_image

    (folder / "a.png").symlink_to(folder / "b.png")
    (folder / "b.png").symlink_to(folder / "a.png")
    _refused(lambda: open_image(folder / "a.png"))


def endless_file(folder: Path) -> None:
    """A link to a device that never ends."""
    from thurl.data.images import open_image

    (folder / "a.png").symlink_to("/dev/zero")
    _refused(lambda: open_image(folder / "a.png"))


def endless_labels(folder: Path) -> None:
    from thurl.data.labels import read_labels

    (folder / "a.csv").symlink_to("/dev/zero")
    _refused(lambda: read_labels(folder / "a.csv", format="csv"))


def named_pipe(folder: Path) -> None:
    """A pipe that nobody writes to."""
    from thurl.data.images import open_image

    os.mkfifo(folder / "a.png")
    _refused(lambda: open_image(folder / "a.png"))


def named_pipe_of_labels(folder: Path) -> None:
    from thurl.data.labels import read_labels

    os.mkfifo(folder / "a.csv")
    _refused(lambda: read_labels(folder / "a.csv", format="csv"))


def png_of_a_million_pixels_a_side(folder: Path) -> None:
    from thurl.data.images import open_image

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 1_000_000, 1_000_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10_000_000))) + chunk(b"IEND", b"")
    (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    _refused(lambda: open_image(folder / "a.png"))


def png_with_a_long_text(folder: Path) -> None:
    """Two hundred megabytes of compressed comment beside a small picture."""
    from thurl.data.images import open_image

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    plain = io.BytesIO()
    picture().save(plain, "PNG")
    content = plain.getvalue()
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200_000_000), 1))
    (folder / "a.png").write_bytes(content[:33] + bomb + content[33:])
    _refused(lambda: open_image(folder / "a.png"))


def workbook_bomb(folder: Path) -> None:
    """A workbook whose sheet unfolds to more than half a gigabyte."""
    from openpyxl import Workbook

    from thurl.data.labels import read_labels

    Workbook().save(folder / "plain.xlsx")
    with zipfile.ZipFile(folder / "plain.xlsx") as old:
        parts = {name: old.read(name) for name in old.namelist()}
    sheet = "xl/worksheets/sheet1.xml"
    parts[sheet] = parts[sheet].replace(b"<sheetData", b" " * 600_000_000 + b"<sheetData")
    with zipfile.ZipFile(folder / "a.xlsx", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
        for name, content in parts.items():
            new.writestr(name, content)
    _refused(lambda: read_labels(folder / "a.xlsx", format="spaq"))


def exif_loop(folder: Path) -> None:
    """EXIF whose directory names itself as the next one, and entries that count to four thousand million."""
    from thurl.forensics.exif.reader import read_exif

    entries = [(0x8769, 4, 1, 8), (0x0110, 2, 0xFFFFFFFF, 8), (0x829A, 5, 0x7FFFFFFF, 8)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    tiff = b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 8)
    plain = io.BytesIO()
    picture().save(plain, "JPEG", exif=b"Exif\0\0" + tiff)
    (folder / "a.jpg").write_bytes(plain.getvalue())
    read_exif(folder / "a.jpg").settings()


def exif_loop_in_a_picture(folder: Path) -> None:
    from thurl.data.images import open_image

    exif_loop(folder)
    open_image(folder / "a.jpg")


def _safetensors(folder: Path, header: bytes, length: int | None = None, body: bytes = bytes(64)) -> None:
    (folder / "a.safetensors").write_bytes(
        struct.pack("<Q", len(header) if length is None else length) + header + body
    )


def _delta(folder: Path) -> None:
    from thurl.editing.delta_files import load_delta

    _refused(lambda: load_delta(folder / "a.safetensors"))


def safetensors_length(folder: Path) -> None:
    """A header that says it is sixteen exabytes long."""
    _safetensors(folder, b"{}", 2**64 - 1)
    _delta(folder)


def safetensors_overlap(folder: Path) -> None:
    """Two tensors of the same bytes."""
    entry = {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}
    _safetensors(folder, json.dumps({"a": entry, "b": entry}).encode())
    _delta(folder)


def safetensors_size(folder: Path) -> None:
    """A shape whose size does not fit its bytes, nor 64 bits."""
    entry = {"dtype": "F64", "shape": [2**40, 2**40], "data_offsets": [0, 64]}
    _safetensors(folder, json.dumps({"a": entry}).encode())
    _delta(folder)


def safetensors_metadata(folder: Path) -> None:
    """Metadata that are JSON, nested too deeply."""
    metadata = {"thurl": "[" * 100_000 + "]" * 100_000, "format": "pt"}
    entry = {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}
    _safetensors(folder, json.dumps({"__metadata__": metadata, "a": entry}).encode())
    _delta(folder)


def pickled_weights(folder: Path) -> None:
    """A checkpoint that is a pickle where safetensors belong; unpickling it would make a folder."""
    from thurl.coto.adapters import read_adapter

    config = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    # A call of os.mkdir, as protocol 0 writes it.
    (folder / "adapter_model.bin").write_bytes(f"cposix\nmkdir\n(V{folder / 'made'}\ntR.".encode())
    try:
        _refused(lambda: read_adapter(folder))
    finally:
        if (folder / "made").exists():
            raise AssertionError("code of the file was run")


def model_of_its_own_code(folder: Path) -> None:
    """A model folder that asks for its own Python file to be run."""
    from thurl.rl.loading import load_vision_language_model

    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForImageTextToText": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(folder / 'made')!r})\nclass Own: pass\n")
    try:
        _refused(lambda: load_vision_language_model(str(folder)))
    finally:
        if (folder / "made").exists():
            raise AssertionError("code of the folder was run")


HOSTILE: dict[str, Callable[[Path], None]] = {
    function.__name__.replace("_", " "): function
    for function in (
        yaml_aliases, yaml_depth, yaml_object, graph_aliases, json_depth, json_lines_depth, results_depth,
        failures_depth, path_in_labels, path_in_manifest, path_in_faces, path_in_pool, link_loop, endless_file,
        endless_labels, named_pipe, named_pipe_of_labels, png_of_a_million_pixels_a_side, png_with_a_long_text,
        workbook_bomb, exif_loop, exif_loop_in_a_picture, safetensors_length, safetensors_overlap, safetensors_size,
        safetensors_metadata, pickled_weights, model_of_its_own_code,
    )
}  # fmt: skip
