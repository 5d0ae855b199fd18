"""Pictures named on a command line or in lists, and their face boxes."""

from __future__ import annotations

import os

import pytest

from thurl.errors import DataError
from thurl.forensics.exif.inputs import content_marks, find_pictures, read_picture_list


@pytest.fixture
def tree(tmp_path):
    for name in ("b.JPG", "a.png", "notes.txt", ".hidden.jpg", "sub/c.webp", "sub/deep/d.jpg", ".git/e.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


def names(found, root):
    return [path.relative_to(root).as_posix() for path in found.paths]


def test_folders(tree):
    assert names(find_pictures([tree]), tree) == ["a.png", "b.JPG"]
    assert names(find_pictures([tree], recursive=True), tree) == ["a.png", "b.JPG", "sub/c.webp", "sub/deep/d.jpg"]
    assert find_pictures([tree]).boxes == [None, None]


def test_a_file_that_is_named_counts_whatever_its_ending(tree):
    assert names(find_pictures([tree / "notes.txt", tree / ".hidden.jpg"]), tree) == ["notes.txt", ".hidden.jpg"]


def test_patterns(tree):
    assert names(find_pictures([str(tree / "*")]), tree) == ["a.png", "b.JPG", "sub/c.webp"]
    assert names(find_pictures([str(tree / "**" / "*.jpg")]), tree) == ["sub/deep/d.jpg"]
    strange = tree / "what[1].jpg"
    strange.write_bytes(b"x")
    assert names(find_pictures([strange]), tree) == ["what[1].jpg"]


def test_every_picture_once(tree):
    os.symlink(tree / "a.png", tree / "sub" / "same.png")
    given = [tree / "a.png", tree, str(tree / "*.png"), tree / "sub" / ".." / "a.png", tree / "sub"]
    assert names(find_pictures(given), tree) == ["a.png", "b.JPG", "sub/c.webp"]


def test_links_that_lead_nowhere_are_pictures_that_cannot_be_read(tree):
    os.symlink(tree / "loop.jpg", tree / "loop.jpg")
    os.symlink(tree / "gone.jpg", tree / "dangling.jpg")
    assert names(find_pictures([tree]), tree) == ["a.png", "b.JPG", "dangling.jpg", "loop.jpg"]
    assert len(content_marks(find_pictures([tree]).paths)) == 2


def test_csv_lists(tree):
    path = tree / "list.csv"
    path.write_text("\ufeffmos,image,left,top,right,bottom\n3,sub/c.webp,1,2,30.5,40\n4,gone.jpg,,,,\n\n", "utf-8")
    found = find_pictures([path])
    assert names(found, tree) == ["sub/c.webp", "gone.jpg"] and found.boxes == [(1.0, 2.0, 30.5, 40.0), None]
    assert names(find_pictures([path], images=tree / "sub"), tree) == ["sub/sub/c.webp", "sub/gone.jpg"]


def test_manifests_and_other_json_lines(tree):
    path = tree / "list.jsonl"
    path.write_text('{"image": "a.png", "box": [0, 0, 5, 5], "iso": 100}\n\n{"image": "a.png", "box": [1, 1, 5, 5]}\n')
    found = find_pictures([path])
    assert names(found, tree) == ["a.png", "a.png"] and found.boxes == [(0, 0, 5, 5), (1, 1, 5, 5)]


def test_all_bad_rows_at_once(tree):
    path = tree / "list.jsonl"
    rows = ['{"image": "a.png"}', "[1]", "{",
            '{"box": null}', '{"image": "../x.png"}', '{"image": "a", "box": [1, 2]}',
            '{"image": "a", "box": [3, 3, 2, 4]}', '{"image": "a", "box": [0, 0, 1, NaN]}']  # fmt: skip
    path.write_text("\n".join(rows))
    with pytest.raises(DataError) as caught:
        find_pictures([path, tree / "none.jpg", str(tree / "*.gif")])
    text = str(caught.value)
    assert "7 rows cannot be used" in text and all(f"row {row}: " in text for row in range(2, 9))
    assert "--allow-outside" in text and "none.jpg" in text and "*.gif" in text
    path.write_text('{"image": "../x.png"}\n')
    assert read_picture_list(path, allow_outside=True)[0][0] == tree.parent / "x.png"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", b"path\nx.png\n", "one must be called image"),
        ("a.csv", b"image\n\xff\xfe.png\n", "not UTF-8"),
        ("a.csv", b"image,left,top,right,bottom\na.png,1,x,3,4\n", "four finite numbers"),
        ("a.csv", b"image,left,top,right,bottom\na.png,1,,3,4\n", "four finite numbers"),
        ("a.txt", b"a.png\n", "ends in .csv or .jsonl"),
    ],
)
def test_lists_that_cannot_be_used(tree, name, content, reason):
    (tree / name).write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read_picture_list(tree / name)


def test_boxes_go_to_the_pictures_they_belong_to(tree):
    boxes = tree / "sub" / "boxes.csv"
    boxes.write_text("image,left,top,right,bottom\n../a.png,0,0,4,4\n../a.png,5,5,9,9\n../sub/c.webp,,,,\n")
    found = find_pictures([tree], recursive=True, boxes=boxes, allow_outside=True)
    assert names(found, tree) == ["a.png", "a.png", "b.JPG", "sub/c.webp", "sub/deep/d.jpg"]
    assert found.boxes == [(0, 0, 4, 4), (5, 5, 9, 9), None, None, None]


def test_nothing_found(tree):
    (tree / "empty").mkdir()
    with pytest.raises(DataError, match="--recursive"):
        find_pictures([tree / "empty"])
    with pytest.raises(DataError, match="nothing given"):
        find_pictures([])


def test_marks_are_those_of_the_content(tree):
    (tree / "copy.png").write_bytes((tree / "a.png").read_bytes())
    one = content_marks([tree / "a.png"])
    assert one == content_marks([tree / "copy.png", tree / "a.png", tree / "gone.png"]) and len(one[0]) == 12
    assert content_marks([tree / "b.JPG"]) != one
