import pytest
from datasets import Dataset
from datasets import Image as Picture
from PIL import Image

from thurl.data.images import ImageError
from thurl.data.records import RatedImage
from thurl.errors import DataError, UsageError
from thurl.rl.dataset import build_answer_dataset, build_rank_dataset, check_pictures, shuffle_mos
from thurl.rl.parsing import parse_score
from thurl.rl.prompts import DIRECT_SUFFIX, PRESETS, QUESTION, THINK_SUFFIX, PromptPreset


def test_columns(rated_images):
    dataset = build_rank_dataset(rated_images)
    row = dataset[3]
    assert row["prompt"] == [{"role": "user", "content": f"{QUESTION} {THINK_SUFFIX}"}]
    assert isinstance(row["image"], Image.Image) and row["image"].size == (56, 84)
    assert row["mos"] == rated_images[3].mos and row["mos_std"] is None and row["dataset"] == "five"
    assert len(set(dataset.with_format(None)["image_id"][:])) == len(rated_images)


def test_repeated_rows_share_one_decoded_picture(rated_images):
    rows = build_rank_dataset(rated_images).__getitems__([2, 2, 2, 5])
    assert rows[0]["image"] is rows[1]["image"] is rows[2]["image"] is not rows[3]["image"]


def test_small_sides_are_enlarged_picture_by_picture(tmp_path):
    # The official code resizes every later picture of the batch to the first small one's size.
    sizes = [(1, 1), (100, 10), (64, 64)]
    records = []
    for index, size in enumerate(sizes):
        Image.new("RGB", size).save(tmp_path / f"{index}.png")
        records.append(RatedImage(str(tmp_path / f"{index}.png"), float(index)))
    rows = build_rank_dataset(records).__getitems__([0, 1, 2])
    assert rows[0]["image"].size == (28, 28)
    assert min(rows[1]["image"].size) == 28
    assert rows[2]["image"].size == (64, 64)


def test_system_prompt_and_direct_mode(rated_images):
    preset = PromptPreset(question="How good?", system="Be brief.", direct_suffix="Number only.")
    prompt = build_rank_dataset(rated_images[:2], preset, mode="direct")[0]["prompt"]
    assert prompt == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How good? Number only."},
    ]


def test_answers_are_what_the_parser_reads(rated_images):
    five = rated_images[:12]
    rows = build_answer_dataset(five)
    assert rows.column_names == ["prompt", "completion", "image"]
    assert rows[3]["prompt"] == [{"role": "user", "content": f"{QUESTION} {DIRECT_SUFFIX}"}]
    assert rows[3]["completion"] == [{"role": "assistant", "content": "<answer>1.50</answer>"}]
    assert isinstance(rows[3]["image"], Image.Image) and rows[3]["image"].size == (56, 84)
    for row, record in zip(rows, five, strict=True):
        assert parse_score(row["completion"][0]["content"]) == pytest.approx(record.mos, abs=0.005)


def test_answers_outside_the_scale_are_refused(rated_images):
    with pytest.raises(DataError, match=r"12 of 24 .* outside 1 to 5, the first is 48 .*normalise: true"):
        build_answer_dataset(rated_images)
    with pytest.raises(DataError, match="no images to train on"):
        build_answer_dataset([])
    with pytest.raises(UsageError, match="vision_id: false"):
        build_answer_dataset(rated_images[:12], PRESETS["official"])


def test_refusals(rated_images, tmp_path):
    with pytest.raises(DataError, match="no images to train on"):
        build_rank_dataset([])
    with pytest.raises(UsageError, match="vision_id: false"):
        build_rank_dataset(rated_images, PRESETS["official"])
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(ImageError, match="broken.png"):
        build_rank_dataset([RatedImage(str(broken), 1.0)])[0]


def test_rows_without_a_picture_are_refused(rated_images):
    whole = build_rank_dataset(rated_images)
    check_pictures(whole)
    check_pictures(whole.remove_columns("image"))
    paths = [record.image for record in rated_images]
    some = Dataset.from_dict({"image": [*paths * 50, None, paths[0], None]})
    with pytest.raises(UsageError, match=r"2 of 1203 rows have no picture in `image`, the first are \[1200, 1202\]"):
        check_pictures(some)
    check_pictures(some.select(range(1200)))
    with pytest.raises(UsageError, match=r"\[0\]"):
        check_pictures(some.select([1200, 3]))
    with pytest.raises(UsageError, match=r"2 of 3 rows have no picture in `images`, the first are \[0, 2\]"):
        check_pictures(Dataset.from_dict({"images": [[], paths[:2], None]}))
    pictures = Dataset.from_dict({"image": [paths[0], None]}).cast_column("image", Picture())
    with pytest.raises(UsageError, match=r"\[1\]"):
        check_pictures(pictures)


def test_shuffled_labels_keep_each_datasets_values_and_lose_their_order(rated_images):
    shuffled = shuffle_mos(rated_images, seed=0)
    assert shuffled == shuffle_mos(rated_images, seed=0) != shuffle_mos(rated_images, seed=1)
    assert [record.image for record in shuffled] == [record.image for record in rated_images]
    for name in ("five", "hundred"):
        before = [record.mos for record in rated_images if record.dataset == name]
        after = [record.mos for record in shuffled if record.dataset == name]
        assert sorted(before) == sorted(after) and before != after
