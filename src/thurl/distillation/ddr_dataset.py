"""The pictures of a `.ddr` file as a torch data set and as one of Hugging Face's, and its way to the Hub."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from thurl.distillation.ddr import DdrFile
from thurl.errors import UsageError
from thurl.hub.files import CARD
from thurl.training.results import write_atomically


if TYPE_CHECKING:
    import datasets

__all__ = ["DdrDataset", "png_bytes"]


class DdrDataset(torch.utils.data.Dataset[tuple[Any, int]]):
    """Pictures and labels of a distilled data set, all decoded when it is made.

    `ds[i]` is `(image, label)`: uint8 (channels, H, W), or what `transform` makes of it, and the class as an int.

    Args:
        file: of `thurl.distillation.ddr.inspect`; `thurl.distillation.ddr.load` does both.
        transform: applied to each picture.

    Raises:
        DataError: the pictures do not have the checksum in the file.
    """

    def __init__(self, file: DdrFile, transform: Callable[[torch.Tensor], Any] | None = None) -> None:
        self.coded = file.dataset
        self.transform = transform
        self.images = torch.from_numpy(file.images())
        """uint8 (N, channels, H, W)."""
        self.labels = torch.from_numpy(file.dataset.labels).long()
        """int64 (N,)."""
        self._rate, self._data = file.rate.row(), file.data

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.images[index]
        return image if self.transform is None else self.transform(image), int(self.labels[index])

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        return (self[i] for i in range(len(self)))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, one per label."""
        return self.coded.classes

    @property
    def hints(self) -> dict[str, Any]:
        """How to train on the set, from the file."""
        return self.coded.hints

    @property
    def soft_labels(self) -> torch.Tensor | None:
        """float32 logits (N, classes), where the file has them."""
        soft = self.coded.soft_labels
        return None if soft is None else torch.from_numpy(soft.astype("float32"))

    def rate(self) -> dict[str, Any]:
        """Bits of the file: `latents`, `nets`, `labels`, `header`, their sum `total_bits`, and `bpc`, per class."""
        return dict(self._rate)

    def normalised(self) -> torch.Tensor:
        """float32 (N, channels, H, W): (picture / 255 - mean) / std, as classifiers are trained on it."""
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.coded.mean, self.coded.std))
        return (self.images.float() / 255 - mean) / std

    def to_huggingface(self) -> datasets.Dataset:
        """A `datasets.Dataset` with the columns `image` (PNG, without loss), `label` (names), and `logits` if any."""
        import datasets

        features: dict[str, Any] = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(self.classes))}
        columns: dict[str, Any] = {
            "image": [{"bytes": png_bytes(image), "path": None} for image in self.images],
            "label": self.labels.tolist(),
        }
        if (soft := self.soft_labels) is not None:
            features["logits"] = datasets.Sequence(datasets.Value("float32"))
            columns["logits"] = soft.tolist()
        return datasets.Dataset.from_dict(columns, features=datasets.Features(features))

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, license: str | None = None, name: str = "", **card: Any
    ) -> Path:
        """Write what is pushed: the file as `data.ddr`, the pictures as Parquet for viewers, and the card.

        Args:
            folder: made if need be.
            license: of the data, an identifier of the Hub such as `cc-by-4.0`; None: not said.
            name: headline of the card; the folder's name if empty.
            card: further arguments of `thurl.distillation.dataset_card.dataset_card`.

        Raises:
            UsageError: `folder` is a file.
        """
        from thurl.distillation.dataset_card import dataset_card

        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder}: this is a file; give a folder")
        write_atomically(folder / "data.ddr", self._data)
        (folder / "data").mkdir(exist_ok=True)
        self.to_huggingface().to_parquet(folder / "data" / "train-00000-of-00001.parquet")
        headline = name or folder.resolve().name
        write_atomically(folder / CARD, dataset_card(self.coded, self.rate(), name=headline, license=license, **card))
        return folder

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, license: str | None = None, token: str | None = None
    ) -> str:
        """Upload the file, the pictures and the card as a data set of the Hub (`thurl.hub.push.push_folder`).

        Args:
            repo_id: `user/name`; made if it is not there.
            private: visible to its owner only; None: the account's setting.
            license: see `save_pretrained`.
            token: of the Hub; None: the one that is logged in.

        Returns:
            its address.

        Raises:
            ThurlError: see `push_folder`.
        """
        from thurl.hub.push import Destination, push_folder

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, license=license, name=repo_id.rpartition("/")[2])
            pushed = push_folder(
                Path(folder),
                Destination(repo_id, private),
                token=token,
                message="Distilled data set",
                again="call `push_to_hub` again",
            )
        return pushed.url


def png_bytes(image: torch.Tensor) -> bytes:
    """A picture, uint8 (channels, H, W), as a PNG file."""
    array = image.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(buffer, "PNG")
    return buffer.getvalue()
