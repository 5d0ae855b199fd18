"""From label files and folders to pictures that are there and decode, with everything that may be wrong in between."""

from __future__ import annotations

import logging

import pytest
from PIL import Image

from thurl.data.labels import RatedImage, read_labels
from thurl.data.sources import load_source, load_sources, normalise_mos, summary
from thurl.errors import DataError, MissingRequirementError, UsageError


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures of four references and their labels, in `labels.csv`."""
    lines = ["image,mos,std,reference"]
    (tmp_path / "p").mkdir()
    for index in range(12):
        Image.new("RGB", (8, 8), (20 * index, 0, 0)).save(tmp_path / "p" / f"{index}.png")
        lines.append(f"{index}.png,{10 * index},{index},R{index // 3}.png")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def _load(folder, **options):
    return load_source("csv", folder / "labels.csv", folder / "p", **options)


def _names(records):
    return [int(record.image.rsplit("/", 1)[1].removesuffix(".png")) for record in records]


def test_a_good_source_is_read_as_it_is(folder):
    assert _load(folder) == read_labels(folder / "labels.csv", format="csv", images=folder / "p")


def test_missing_pictures_are_listed_together(folder):
    for index in (3, 7):
        (folder / "p" / f"{index}.png").unlink()
    with pytest.raises(MissingRequirementError) as caught:
        _load(folder)
    text = str(caught.value)
    assert caught.value.exit_code == 3
    assert "2 of 12 pictures are missing" in text
    assert "3.png" in text and "labels.csv row 5" in text and "7.png" in text and "row 9" in text


def test_the_first_twenty_missing_pictures_and_the_count(tmp_path):
    (tmp_path / "a.csv").write_text("image,mos\n" + "".join(f"{i}.png,{i}\n" for i in range(50)))
    with pytest.raises(MissingRequirementError) as caught:
        load_source("csv", tmp_path / "a.csv")
    assert str(caught.value).count("a.csv row ") == 20
    assert "50 of 50" in str(caught.value) and "... and 30 more" in str(caught.value)


def test_an_empty_folder_and_no_folder_are_said_so(folder):
    (folder / "empty").mkdir()
    with pytest.raises(MissingRequirementError, match="12 of 12 (.|\n)*empty is empty; download"):
        load_source("csv", folder / "labels.csv", folder / "empty")
    with pytest.raises(MissingRequirementError, match="nowhere does not exist; download"):
        load_source("csv", folder / "labels.csv", folder / "nowhere")
    with pytest.raises(DataError, match="this is a folder; give the label file"):
        load_source("csv", folder / "empty")


def test_corrupt_pictures_are_named_with_their_row(folder):
    content = (folder / "p" / "4.png").read_bytes()
    (folder / "p" / "4.png").write_bytes(content[:50])
    (folder / "p" / "5.png").write_text("no picture")
    with pytest.raises(DataError) as caught:
        _load(folder)
    text = str(caught.value)
    assert "2 of 12 pictures cannot be used" in text
    assert "labels.csv row 6: " in text and "4.png: the picture is truncated" in text
    assert "labels.csv row 7: " in text and "5.png: not a picture" in text


def test_corrupt_pictures_are_skipped_only_when_asked_and_counted(folder, caplog):
    (folder / "p" / "4.png").write_text("no picture")
    with caplog.at_level(logging.WARNING):
        records = _load(folder, on_corrupt="skip")
    assert _names(records) == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]
    assert "1 of 12 pictures left out" in caplog.text and "row 6" in caplog.text
    assert len(_load(folder, check_images="none")) == 12
    for index in range(12):
        (folder / "p" / f"{index}.png").write_text("no picture")
    with pytest.raises(DataError, match="not one of the 12 pictures"):
        _load(folder, on_corrupt="skip")


def test_a_picture_above_the_pixel_cap_is_a_corrupt_picture(folder):
    with pytest.raises(DataError, match="12 of 12(.|\n)*8x8 = 64 pixels; at most 63"):
        _load(folder, max_pixels=63)


def test_one_picture_is_loaded_with_a_warning(folder, caplog):
    with caplog.at_level(logging.WARNING):
        assert len(_load(folder, max_images=1)) == 1
    assert "data set 'labels' has one picture: it has no partner" in caplog.text


def test_one_data_set_of_one_image_among_others(folder, caplog):
    (folder / "b.csv").write_text("image,mos\n0.png,3\n")
    source = {"format": "csv", "images": folder / "p"}
    with caplog.at_level(logging.WARNING):
        load_sources([{**source, "labels": folder / "labels.csv"}, {**source, "labels": folder / "b.csv"}])
    assert caplog.text.count("has one picture") == 1 and "data set 'b'" in caplog.text


def test_partners_are_counted_over_all_sources(folder, caplog):
    (folder / "b.csv").write_text("image,mos\n0.png,3\n")
    (folder / "c.csv").write_text("image,mos\n1.png,3\n")
    source = {"format": "csv", "images": folder / "p", "dataset": "X"}
    with caplog.at_level(logging.WARNING):
        records = load_sources([{**source, "labels": folder / name} for name in ("b.csv", "c.csv")])
    assert len(records) == 2 and "one picture" not in caplog.text


def test_the_same_picture_in_two_sources(folder):
    source = {"format": "csv", "labels": folder / "labels.csv", "images": folder / "p"}
    with pytest.raises(DataError, match="data sources: 12 rows(.|\n)*0.png is already rated in .*row 2"):
        load_sources([source, source])
    assert len(load_sources([source, {**source, "dataset": "other"}])) == 24


def test_wrong_sources_are_reported_together(folder):
    with pytest.raises(UsageError) as caught:
        load_sources([{"format": "csv", "label": "x"}, {"labels": "y", "max_image": 3}])
    assert caught.value.problems == [
        "source 0: unknown key 'label'; nearest: 'labels'",
        "source 0: 'labels' is missing",
        "source 1: unknown key 'max_image'; nearest: 'max_images'",
        "source 1: 'format' is missing",
    ]
    with pytest.raises(UsageError, match="no data source"):
        load_sources([])


@pytest.mark.parametrize(
    "options",
    [{"check_images": "some"}, {"on_corrupt": "ignore"}, {"max_images": 0}, {"split": "tset"}, {"options": {"x": 1}}],
)
def test_wrong_options(folder, options):
    with pytest.raises(UsageError):
        _load(folder, **options)


def test_references_select_pictures(folder):
    assert _names(_load(folder, references=["R1.png", "r3"])) == [3, 4, 5, 9, 10, 11]
    (folder / "refs.txt").write_text("R0\n\nR2.png\n")
    assert _names(_load(folder, references=folder / "refs.txt")) == [0, 1, 2, 6, 7, 8]
    with pytest.raises(UsageError, match="'R9' is in no row; nearest: 'R"):
        _load(folder, references=["R9", "R1"])


def test_splits_share_no_reference_and_cover_everything(folder):
    parts = [_load(folder, split=split, seed=3) for split in ("train", "validation", "test")]
    assert sorted(name for part in parts for name in _names(part)) == list(range(12))
    references = [{record.reference for record in part} for part in parts]
    assert [len(names) for names in references] == [2, 1, 1]
    assert _load(folder, split="all") == _load(folder)


def test_only_selected_pictures_need_to_be_there(folder):
    for index in range(3, 12):
        (folder / "p" / f"{index}.png").unlink()
    assert _names(_load(folder, references=["R0"])) == [0, 1, 2]


def test_the_draw_is_seeded_and_keeps_the_order(folder):
    first = _names(_load(folder, max_images=5, seed=1))
    assert first == sorted(first) and len(first) == 5
    assert first == _names(_load(folder, max_images=5, seed=1))
    assert any(first != _names(_load(folder, max_images=5, seed=seed)) for seed in (2, 3))
    # Turning the rows around draws the same pictures.
    header, *rows = (folder / "labels.csv").read_text().split()
    (folder / "labels.csv").write_text("\n".join([header, *rows[::-1]]))
    assert sorted(_names(_load(folder, max_images=5, seed=1))) == first


def test_normalisation_maps_the_whole_file_to_1_to_5(folder):
    records = _load(folder, normalise=True, references=["R1"])
    assert [record.mos for record in records] == pytest.approx([1 + 4 * x / 11 for x in (3, 4, 5)])
    assert records[0].std == pytest.approx(3 * 4 / 110)


def test_normalisation_is_per_data_set_and_needs_a_range():
    records = [
        RatedImage(f"{d}{m}", m, 1.0, d) for d, values in {"A": (0, 50, 100), "B": (2, 3)}.items() for m in values
    ]
    result = normalise_mos(records)
    assert [record.mos for record in result] == [1, 3, 5, 1, 5]
    assert [record.std for record in result] == [0.04, 0.04, 0.04, 4, 4]
    with pytest.raises(DataError, match="all MOS of C are equal"):
        normalise_mos([*records, RatedImage("c", 1.0, dataset="C"), RatedImage("d", 1.0, dataset="C")])


def test_pictures_are_found_in_the_folders_of_a_release(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "I01_01_01.png")
    (tmp_path / "dmos.csv").write_text("dist_img,ref_img,dmos,var\nI01_01_01.png,I01.png,4.57,0.496\n")
    (record,) = load_source("kadid", tmp_path / "dmos.csv")
    assert record.image == str(tmp_path / "images" / "I01_01_01.png")
    assert load_source("kadid", tmp_path / "dmos.csv", tmp_path / "images") == [record]


def test_pictures_are_found_in_another_spelling(tmp_path):
    (tmp_path / "distorted_images").mkdir()
    for name in ("i01_01_1.BMP", "I02_01_1.bmp"):
        Image.new("RGB", (8, 8)).save(tmp_path / "distorted_images" / name)
    (tmp_path / "mos_with_names.txt").write_text("5.5 I01_01_1.bmp\n5.6 i02_01_1.bmp\n")
    found = [record.image.rsplit("/", 1)[1] for record in load_source("tid2013", tmp_path / "mos_with_names.txt")]
    assert found == ["i01_01_1.BMP", "I02_01_1.bmp"]


def test_jsonl_with_a_folder_per_file(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "x.png")
        turns = '[{"from": "human", "value": "q"}, {"from": "gpt", "value": 3}]'
        (tmp_path / f"{name}.jsonl").write_text(f'{{"dataset_name": "D", "image": "x.png", "conversations": {turns}}}')
    labels, images = (f"{tmp_path}/a{end}:{tmp_path}/b{end}" for end in (".jsonl", ""))
    assert [record.image for record in load_source("jsonl", labels, images)] == [f"{tmp_path}/{n}/x.png" for n in "ab"]
    (tmp_path / "b" / "x.png").unlink()
    with pytest.raises(MissingRequirementError, match="1 of 2 pictures are missing"):
        load_source("jsonl", labels, images)


def test_summary_counts_ties_and_references(folder):
    assert summary(_load(folder)) == {
        "labels": {
            "images": 12,
            "mos_min": 0.0,
            "mos_max": 110.0,
            "mos_mean": 55.0,
            "mos_distinct": 12,
            "tied_pairs": 0.0,
            "references": 4,
            "with_std": 12,
        }
    }
    records = [RatedImage("a", 1.0, dataset="A"), RatedImage("b", 1.0, dataset="A"), RatedImage("c", 2.0, dataset="A")]
    assert summary(records)["A"]["tied_pairs"] == pytest.approx(1 / 3)
    assert summary(records[:1])["A"]["tied_pairs"] is None
    assert summary([]) == {}
