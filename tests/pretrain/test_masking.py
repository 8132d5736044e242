"""Masks: the right counts in every sample, every patch once, the shapes their names say."""

import pytest
import torch

from m2d_bench.errors import UsageError
from m2d_bench.pretrain.masking import SPAN, draw, n_visible

KINDS = ("uniform", "structured", "spans")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ratio", [0.1, 0.6, 0.7, 0.75])
@pytest.mark.parametrize("grid_size", [(5, 38), (1, 200), (5, 50), (14, 14)])
def test_every_sample_has_the_same_counts_and_every_patch_once(kind, ratio, grid_size):
    mask = draw(kind, 6, grid_size, ratio, torch.Generator().manual_seed(0))
    n = grid_size[0] * grid_size[1]
    assert mask.visible.shape == (6, int(n * (1 - ratio)))
    both = torch.cat(list(mask), dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(n).expand(6, n))


@pytest.mark.parametrize("kind", KINDS)
def test_samples_differ_and_a_generator_repeats_them(kind):
    first, again = (draw(kind, 4, (5, 38), 0.7, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.masked, again.masked)
    other = draw(kind, 4, (5, 38), 0.7, torch.Generator().manual_seed(4))
    assert not torch.equal(first.masked, other.masked)
    assert len({tuple(sorted(row.tolist())) for row in first.masked}) == 4


def test_uniform_masking_takes_every_patch_alike():
    mask = draw("uniform", 4000, (5, 8), 0.7, torch.Generator().manual_seed(0))
    share = torch.bincount(mask.masked.flatten(), minlength=40) / 4000
    assert float((share - 0.7).abs().max()) < 0.03  # four standard deviations of a share


def masked_grid(mask, grid_size):
    grid = torch.zeros(len(mask.masked), grid_size[0] * grid_size[1], dtype=torch.bool)
    return grid.scatter(1, mask.masked, True).unflatten(1, grid_size)


def test_structured_masking_takes_whole_rows_and_columns_but_for_one():
    grid_size = (5, 38)
    for grid in masked_grid(draw("structured", 50, grid_size, 0.7, torch.Generator().manual_seed(0)), grid_size):
        rows, columns = grid.all(1), grid.all(0)
        rest = grid & ~rows[:, None] & ~columns[None]
        lines = rest.any(1).sum(), rest.any(0).sum()
        assert min(lines) <= 1  # what is left over lies in one line


def test_spans_take_whole_columns_side_by_side():
    grid_size = (5, 38)
    for grid in masked_grid(draw("spans", 50, grid_size, 0.6, torch.Generator().manual_seed(0)), grid_size):
        columns = grid.all(0)
        assert int((grid.any(0) & ~columns).sum()) <= 1  # of the span that is cut
        edges = int((columns[1:] != columns[:-1]).sum())
        assert edges <= 2 * -(-38 // SPAN)
        runs = [len(run) for run in "".join("x" if c else " " for c in columns.tolist()).split()]
        assert sum(run >= SPAN for run in runs) >= len(runs) - 3  # but for the borders and the cut span


def test_the_number_of_visible_patches_is_rounded_down():
    assert [n_visible(65, 0.7), n_visible(190, 0.6), n_visible(190, 0.7), n_visible(200, 0.6)] == [19, 76, 57, 80]


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 0.999])
def test_an_impossible_ratio_is_refused(ratio):
    with pytest.raises(UsageError, match="mask_ratio="):
        n_visible(65, ratio)


def test_an_unknown_kind_is_refused():
    with pytest.raises(UsageError, match="Did you mean uniform"):
        draw("unifrom", 1, (5, 13), 0.7)
