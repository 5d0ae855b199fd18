"""Where tokens go in packed rows, and back."""

import torch

from thurl.rl.shared_prefix.layout import gather_segments, group_rows, pack_rows, packed_positions


def test_a_row_holds_the_prompt_once_and_a_segment_per_completion():
    # Prompt of 3 tokens in a width of 4, completions of 2 and 0 tokens; then a prompt of 1 with a completion of 1.
    layout = pack_rows([3, 3, 1], [2, 0, 1], [[0, 1], [2]], 4)
    assert layout.source_column.tolist() == [[1, 2, 3, 4, 5, 3], [3, 4, 0, 0, 0, 0]]
    assert layout.source_row.tolist() == [[0, 0, 0, 0, 0, 1], [2, 2, 2, 2, 2, 2]]
    assert layout.segment.tolist() == [[0, 0, 1, 1, 1, 2], [1, 1, -1, -1, -1, -1]]
    assert layout.group.tolist() == [0, 0, 1] and layout.start.tolist() == [2, 5, 0]
    prompt = torch.tensor([[[0, 0, 1, 5], [0, 0, 0, 0]]])  # a picture took positions 1 to 4
    positions = packed_positions(layout, prompt, torch.tensor([6, 1]))
    assert positions.tolist() == [[[0, 1, 5, 6, 7, 5], [0, 1, 0, 0, 0, 0]]]
    values = torch.arange(10.0).view(2, 5) + 1
    found = gather_segments(values, layout, torch.tensor([[1, 1], [0, 0], [1, 0]]))
    assert found.tolist() == [[3, 4], [0, 0], [6, 0]]


def test_a_row_of_one_token_still_has_a_place_to_gather_from():
    layout = pack_rows([1], [0], [[0]], 1)
    assert layout.segment.tolist() == [[1, -1]]
    assert gather_segments(torch.ones(1, 1), layout, torch.zeros(1, 3)).tolist() == [[0, 0, 0]]


def test_rows_are_grouped_by_tokens_grids_and_pixels():
    ids = torch.tensor([[9, 1, 2], [9, 1, 2], [8, 1, 2], [9, 1, 2], [9, 1, 3], [9, 1, 2]])
    mask = torch.tensor([[0, 1, 1]] * 6)
    grid, other = torch.tensor([[1, 2, 4]]), torch.tensor([[1, 4, 2]])
    ones, zeros = torch.ones(8, 2), torch.zeros(8, 2)
    pixels = [ones, zeros, ones, ones, ones, ones]
    assert group_rows(ids, mask, pixels, [grid] * 5 + [other]) == [[0, 2, 3], [1], [4], [5]]
    assert group_rows(ids[:2], mask[:2], [None, ones], [None, grid]) == [[0], [1]]
    assert group_rows(ids, mask, [None] * 6, [None] * 6) == [[0, 1, 2, 3, 5], [4]]
