"""`thurl edit manifest`: groups of failures of a model out of a folder, as a file that benchmarks and recipes read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thurl.cli.devices import usable_device
from thurl.cli.edit.options import (
    Classes,
    Debug,
    Device,
    Json,
    Model,
    OfficialLayout,
    Overwrite,
    SkipCorrupt,
    Template,
    open_classifier,
)
from thurl.cli.output import check_new, echo_json, table
from thurl.errors import DataError, UsageError


if TYPE_CHECKING:
    from thurl.editing.classifier_files import LoadedClassifier
    from thurl.editing.groups import Labelled
    from thurl.editing.manifest import Manifest

__all__ = ["Builder", "classes_of_folders", "manifest"]


@dataclass(frozen=True)
class Builder:
    """How a benchmark is made of a folder; see `thurl.editing.groups`.

    Args:
        official_layout: folders are named by class numbers.
        stronger: model whose predictions are the right classes, in place of the folders.
        smallest: failures of a group.
        threshold: margin of a picture to keep.
        largest: pictures to keep at most.
        skip_corrupt: leave out what cannot be read.
        seed: of the draw of pictures to keep.
        batch_size: pictures at a time.
    """

    official_layout: bool = False
    stronger: str | None = None
    smallest: int = 8
    threshold: float = 0.05
    largest: int | None = None
    skip_corrupt: bool = False
    seed: int = 0
    batch_size: int = 64

    def build(self, loaded: LoadedClassifier, model: str, pictures: Path, device: str) -> Manifest:
        """The benchmark of a classifier, which is on the device."""
        from thurl.editing.groups import failure_groups, predict, sensitive
        from thurl.editing.manifest import Manifest

        corrupt = "skip" if self.skip_corrupt else "error"
        labelled = self._labelled(loaded, pictures, device, corrupt)
        found = predict(
            loaded.classifier, labelled, pictures, loaded.read, batch_size=self.batch_size, on_corrupt=corrupt
        )
        settings = {"model": model, "stronger": self.stronger, "smallest": self.smallest, "threshold": self.threshold}
        return Manifest(
            loaded.classifier.fingerprint(),
            tuple(failure_groups(found, self.smallest)),
            tuple(sensitive(found, threshold=self.threshold, largest=self.largest, seed=self.seed)),
            settings,
        )

    def _labelled(self, loaded: LoadedClassifier, pictures: Path, device: str, corrupt: str) -> list[Labelled]:
        from thurl.data.image_files import find_images
        from thurl.editing.groups import Labelled, labelled_folder, official_folder, predict, relabelled

        if self.stronger is not None:
            judge = open_classifier(self.stronger, None, None)
            if judge.names != loaded.names or judge.classifier.classes != loaded.classifier.classes:
                raise UsageError(
                    f"--stronger {self.stronger}: has other classes than the model; take one with the same"
                )
            judge.classifier.to(device)
            files = find_images([pictures], recursive=True)
            plain = [Labelled(file.relative_to(pictures).as_posix(), 0) for file in files]
            return relabelled(
                predict(judge.classifier, plain, pictures, judge.read, batch_size=self.batch_size, on_corrupt=corrupt)
            )
        if self.official_layout:
            return official_folder(pictures, loaded.classifier.classes)
        return labelled_folder(pictures, classes_of_folders(loaded))


def classes_of_folders(loaded: LoadedClassifier) -> dict[str, int]:
    """Class of a folder's name: the name of the class, or its number.

    Raises:
        DataError: two classes of one name.
    """
    numbers = {str(index): index for index in range(loaded.classifier.classes)}
    if len(set(loaded.names)) < len(loaded.names):
        raise DataError("several classes of the model have one name; use --official-layout or --classes")
    return {**numbers, **{name: index for index, name in enumerate(loaded.names)}}


def manifest(
    pictures: Annotated[Path, typer.Argument(help="Folder of <class>/<picture>; with --stronger of any layout.")],
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, .json.")],
    official_layout: OfficialLayout = False,
    stronger: Annotated[
        str | None, typer.Option("--stronger", help="Model whose predictions are right, for pictures without labels.")
    ] = None,
    smallest: Annotated[int, typer.Option("--smallest", min=1, help="Failures a group needs.")] = 8,
    threshold: Annotated[float, typer.Option("--threshold", help="Margin of a picture that should stay.")] = 0.05,
    largest: Annotated[
        int | None, typer.Option("--keep", min=1, help="Pictures that should stay at most, drawn with --seed.")
    ] = None,
    classes: Classes = None,
    template: Template = None,
    skip_corrupt: SkipCorrupt = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of --keep.")] = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Pictures at a time.")] = 64,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Find groups of failures of the model and pictures it is only just right about; each with its SHA-256."""
    check_new("--output", output, overwrite)
    if official_layout and stronger is not None:
        raise UsageError("--official-layout and --stronger: the right classes come from one of them; drop the other")
    from thurl.editing.manifest import write_manifest

    loaded = open_classifier(model, classes, template)
    where = usable_device(device)
    loaded.classifier.to(where)
    builder = Builder(official_layout, stronger, smallest, threshold, largest, skip_corrupt, seed, batch_size)
    found = builder.build(loaded, model, pictures, where)
    write_manifest(output, found)
    groups = [(group.name, len(group.pictures)) for group in found.groups]
    if as_json:
        echo_json({"output": str(output), "base": found.base, "groups": dict(groups), "stay": len(found.locality)})
        return
    table(["group", "failures"], groups)
    typer.echo(f"{len(groups)} groups, {len(found.locality)} pictures that should stay; written to {output}", err=True)
