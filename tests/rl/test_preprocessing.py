import inspect

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageColumn
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, BaseImageProcessor, Trainer
from transformers.image_processing_base import BatchFeature
from trl import GRPOTrainer

from thurl.data import images
from thurl.rl import RankGRPOConfig, RankGRPOTrainer, build_rank_dataset
from thurl.rl.preprocessing import FetchedOnce, PreprocessedOnce, repeat_pictures


class Rows:
    """A dataset that notes what is read of it."""

    def __init__(self, size):
        self.size, self.read = size, []

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.read.append(index)
        return {"prompt": [{"role": "user", "content": str(index)}], "image": object()}


class Batches(Rows):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


@pytest.mark.parametrize("kind", [Rows, Batches])
def test_a_row_is_read_once_while_batches_repeat_it(kind):
    dataset = kind(9)
    once = FetchedOnce(dataset)
    assert len(once) == 9
    batch = [3, 3, 1, 1, 7, 7]
    first, second = once.__getitems__(batch), once.__getitems__(batch)
    assert dataset.read == [3, 1, 7]
    assert [row["prompt"][0]["content"] for row in first] == [str(index) for index in batch]
    assert first[0]["image"] is first[1]["image"] is second[0]["image"] is not first[2]["image"]
    once.__getitems__([7, 5, 5])
    assert dataset.read == [3, 1, 7, 5]
    once.__getitems__([3, 7])  # 3 was not in the batch before: nothing older is kept
    assert dataset.read == [3, 1, 7, 5, 3]
    assert once[7]["prompt"][0]["content"] == "7" and dataset.read == [3, 1, 7, 5, 3]


def test_a_changed_row_changes_no_other():
    once = FetchedOnce(Rows(2))
    first, second = once.__getitems__([0, 0])
    first["prompt"][0]["content"] = "changed"
    first["prompt"].append("more")
    first["extra"] = 1
    assert second["prompt"] == [{"role": "user", "content": "0"}] == once[0]["prompt"] and "extra" not in once[0]


def test_a_worker_starts_without_pictures():
    once = FetchedOnce(Rows(3))
    once[1]
    function, arguments = once.__reduce__()
    function(*arguments)[1]
    assert once.dataset.read == [1, 1]


def test_a_column_of_encoded_pictures_is_decoded_once(tmp_path, monkeypatch):
    paths = []
    for index in range(3):
        paths.append(str(tmp_path / f"{index}.png"))
        Image.new("RGB", (8, 8), (index, 0, 0)).save(paths[-1])
    dataset = Dataset.from_dict({"image": paths, "mos": [1.0, 2.0, 3.0]}).cast_column("image", ImageColumn())
    decode, decoded = ImageColumn.decode_example, []
    monkeypatch.setattr(
        ImageColumn,
        "decode_example",
        lambda self, value, **options: decoded.append(value["path"]) or decode(self, value, **options),
    )
    once = FetchedOnce(dataset)
    rows = once.__getitems__([2, 2, 2, 0, 0, 0])
    once.__getitems__([0, 0, 2])
    assert decoded == [paths[2], paths[0]] and rows[0]["image"].getpixel((0, 0)) == (2, 0, 0)


# -- the image processor -----------------------------------------------------------------------------------------


def _noise(height, width, seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture
def counted(tiny_folder):
    """A processor, and the pictures its image processor really worked on."""
    processor = AutoProcessor.from_pretrained(tiny_folder)
    worked, plain = [], processor.image_processor._preprocess

    def preprocess(images, *args, **kwargs):
        worked.extend(images)
        return plain(images, *args, **kwargs)

    processor.image_processor._preprocess = preprocess
    return processor, worked


SIZES = {
    "one size": [(84, 112)] * 4,
    "sizes": [(56, 84), (84, 56), (140, 56), (56, 84)],
    "resized": [(300, 200), (20, 40), (300, 200), (57, 83)],
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("k", [1, 3, 6])
def test_the_processor_returns_the_same_bits(counted, sizes, k):
    processor, worked = counted
    pictures = [_noise(*size, seed) for seed, size in enumerate(sizes)]
    # Three prompts: a picture, two pictures, and one of them again.
    rows = [row for row in ([pictures[0]], [pictures[1], pictures[2]], [pictures[3]]) for _ in range(k)]
    rows += [[pictures[1]]]
    image = {"type": "image"}
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [image] * len(row) + [{"type": "text", "text": "Rate"}]}],
            add_generation_prompt=True,
        )
        for row in rows
    ]
    calls = [{}, {"padding": True, "return_tensors": "pt"}]
    plain = [processor(images=rows, text=texts, **call) for call in calls]
    assert len(worked) == 2 * sum(map(len, rows))
    worked.clear()
    once = PreprocessedOnce(processor)
    with once.batch():
        shared = [processor(images=rows, text=texts, **call) for call in calls]
        assert len(worked) == 4
        worked.clear()
        processor(images=rows[:1], text=texts[:1])  # other pictures together: another call
        assert len(worked) == 1
    for left, right in zip(plain, shared, strict=True):
        assert left.keys() == right.keys()
        for name, value in left.items():
            if isinstance(value, torch.Tensor):
                assert value.dtype == right[name].dtype and torch.equal(value, right[name]), name
            else:
                assert value == right[name], name


def test_results_are_not_shared_with_the_caller_nor_with_the_next_batch(counted):
    processor, worked = counted
    picture = _noise(56, 56, 0)
    once = PreprocessedOnce(processor)
    with once.batch():
        first = processor.image_processor(images=[picture, picture])
        first["pixel_values"].zero_()
        assert processor.image_processor(images=[picture])["pixel_values"].any()
        assert len(worked) == 1
    with once.batch():
        processor.image_processor(images=[picture])
    assert len(worked) == 2 and "preprocess" not in vars(processor.image_processor)


def test_other_settings_and_other_inputs_take_the_plain_way(counted):
    processor, worked = counted
    picture, once = _noise(56, 84, 0), PreprocessedOnce(processor)
    array = np.array(picture)
    with once.batch():
        one = processor.image_processor(images=[picture])
        raw = processor.image_processor(images=[picture, picture], do_normalize=False)
        assert len(worked) == 2 and not torch.equal(one["pixel_values"], raw["pixel_values"][:24])
        processor.image_processor(images=[array, array])
        assert len(worked) == 4, "arrays are not recognised"
        assert isinstance(processor.image_processor(images=[picture], return_tensors="np")["pixel_values"], np.ndarray)
    assert isinstance(one, BatchFeature)


def test_the_image_processor_is_put_back_after_an_error(counted):
    processor, _ = counted
    with pytest.raises(KeyError), PreprocessedOnce(processor).batch():
        raise KeyError
    assert "preprocess" not in vars(processor.image_processor)


def test_what_has_no_known_layout_is_left_alone(tiny_folder):
    class Other:
        model_input_names = ["pixel_values"]

    class Processor:
        image_processor = Other()

    for processing_class in (Processor(), AutoProcessor.from_pretrained(tiny_folder).tokenizer):
        once = PreprocessedOnce(processing_class)
        assert not once.active
        with once.batch():
            assert "preprocess" not in vars(Processor.image_processor)


def test_repeat_pictures():
    features = {"pixel_values": torch.arange(10.0)[:, None], "image_grid_thw": torch.tensor([[1, 2, 2], [1, 2, 3]])}
    repeated = repeat_pictures(features, [1, 0, 1])
    assert repeated["pixel_values"].flatten().tolist() == [4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert repeated["image_grid_thw"].tolist() == [[1, 2, 3], [1, 2, 2], [1, 2, 3]]


# -- inside the trainer --------------------------------------------------------------------------------------------


def _trainer(tiny_folder, records, tmp_path, processor=None, dtype=torch.float32, **fields):
    defaults = {
        **{"use_cpu": True, "bf16": False, "per_device_train_batch_size": 8, "steps_per_generation": 2},
        **{"num_generations": 4, "max_steps": 4, "max_completion_length": 4, "report_to": [], "save_strategy": "no"},
        **{"gradient_checkpointing": False, "disable_tqdm": True, "seed": 1},
    }
    return RankGRPOTrainer(
        AutoModelForImageTextToText.from_pretrained(tiny_folder, dtype=dtype),
        reward_funcs=lambda completions, **_: [float(len(completion[0]["content"])) for completion in completions],
        args=RankGRPOConfig(str(tmp_path), **{**defaults, **fields}),
        train_dataset=build_rank_dataset(records),
        processing_class=processor or AutoProcessor.from_pretrained(tiny_folder),
        block_size=4,
    )


def test_a_run_opens_and_preprocesses_every_picture_once_per_generation_batch(
    counted, tiny_folder, rated_images, tmp_path, monkeypatch
):
    processor, worked = counted
    opened, decode = [], images.open_image
    monkeypatch.setattr(images, "open_image", lambda path, **options: opened.append(path) or decode(path, **options))
    _trainer(tiny_folder, rated_images, tmp_path, processor, num_iterations=2, max_steps=8).train()
    # Two generation batches of 4 pictures with 4 completions, each used for 4 steps.
    assert len(opened) == len(set(opened)) == 8 + 4, "accelerate reads one batch ahead"
    assert len(worked) == 8


def test_plain_trl_opens_and_preprocesses_every_copy(counted, tiny_folder, rated_images, tmp_path, monkeypatch):
    """The control of the test above: were it otherwise, there would be nothing to save."""
    processor, worked = counted
    trainer = _trainer(tiny_folder, rated_images, tmp_path, processor)
    trainer._pictures.active = False
    opened, decode = [], images.open_image
    monkeypatch.setattr(images, "open_image", lambda path, **options: opened.append(path) or decode(path, **options))
    monkeypatch.setattr("thurl.rl.trainer.FetchedOnce", lambda dataset: dataset)
    trainer.train()
    assert len(worked) == 2 * (2 * 4 * 4), "two generation batches, two passes, 4 copies of 4 pictures"
    assert len(opened) == (4 + 1) * 4 and len(set(opened)) == 12, "the loader reads the batch again for each step"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_generation_batch_is_bit_by_bit_that_of_trl(tiny_folder, rated_images, tmp_path, dtype):
    trainer = _trainer(tiny_folder, rated_images, tmp_path, dtype=dtype)
    rows = next(iter(trainer.get_train_dataloader()))
    several = [
        {
            **{name: value for name, value in row.items() if name != "image"},
            "images": [row["image"], rows[-1]["image"]] if index < 8 else [row["image"]],
        }
        for index, row in enumerate(rows)
    ]
    for batch in (rows, several):
        found = []
        for method in (RankGRPOTrainer, GRPOTrainer):
            torch.manual_seed(5)
            found.append(method._generate_and_score_completions(trainer, batch))
        ours, theirs = found
        assert ours.keys() == theirs.keys() and {"pixel_values", "image_grid_thw", "prompt_ids"} <= ours.keys()
        for name, value in theirs.items():
            if isinstance(value, torch.Tensor):
                assert value.dtype == ours[name].dtype and torch.equal(value, ours[name]), name
            else:
                assert value == ours[name], name


def test_evaluation_with_its_own_dataset(tiny_folder, rated_images, tmp_path):
    trainer = _trainer(tiny_folder, rated_images, tmp_path, per_device_eval_batch_size=8, num_generations_eval=2)
    dataset = build_rank_dataset(rated_images[:8])
    loader = trainer.get_eval_dataloader(dataset)
    seen = [row["image_id"] for rows in loader for row in rows]
    assert len(seen) == 16 and all(left == right for left, right in zip(seen[::2], seen[1::2], strict=True))
    stream = Dataset.from_dict({"prompt": ["a", "b"]}).to_iterable_dataset()
    assert [row["prompt"] for rows in trainer.get_eval_dataloader(stream) for row in rows] == ["a", "a", "b", "b"]


def test_loader_workers_share_the_picture_between_copies(tiny_folder, rated_images, tmp_path):
    trainer = _trainer(tiny_folder, rated_images, tmp_path, dataloader_num_workers=1)
    rows = next(iter(trainer.get_train_dataloader()))
    assert len({id(row["image"]) for row in rows}) == 4 and rows[0]["image"] is rows[3]["image"]


def test_hooks_of_transformers_still_have_their_signatures():
    parameters = list(inspect.signature(Trainer._get_dataloader).parameters)
    assert parameters[:2] == ["self", "dataset"] and "sampler_fn" in parameters
    assert "sampler_fn(dataset)" in inspect.getsource(Trainer._get_dataloader)
    assert "return self.preprocess(images, *args, **kwargs)" in inspect.getsource(BaseImageProcessor.__call__)
    # One deep copy of all prompts keeps the copies of a picture one object.
    assert "prompts = copy.deepcopy(prompts)" in inspect.getsource(GRPOTrainer._generate)
