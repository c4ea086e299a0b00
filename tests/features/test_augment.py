"""Random crops: mild, never mirrored, the same for the same seed."""

import torch

from features.augment import random_crops


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def ramp(n=16, size=20):
    """Pictures that grow lighter from left to right and from top to bottom."""
    shade = torch.arange(size, dtype=torch.uint8) * 6
    return (shade[None, :] + shade[:, None]).expand(n, 3, size, size).contiguous()


def test_one_seed_gives_one_crop_and_another_seed_another():
    first, again, other = (random_crops(ramp(), generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_pictures_of_a_batch_are_cropped_differently():
    crops = random_crops(ramp(2), generator())
    assert not torch.equal(crops[0], crops[1])


def test_nothing_is_mirrored():
    crops = random_crops(ramp(), generator())
    assert (crops.diff(dim=3) >= 0).all()
    assert (crops.diff(dim=2) >= 0).all()


def test_an_even_picture_stays_as_it_is():
    even = torch.full((4, 3, 8, 8), 93, dtype=torch.uint8)
    assert torch.allclose(random_crops(even, generator()), even.float(), atol=1e-3)


def test_a_crop_keeps_most_of_the_picture():
    """The ramp spans 114 grey levels on each axis; a crop of at least 80 % of the area spans at least 70 % of them."""
    row = random_crops(ramp(64), generator())[:, 0, 10]
    assert ((row[:, -1] - row[:, 0]) > 0.7 * 114).all()
    assert (row[:, -1] - row[:, 0]).std() > 1


def test_a_picture_is_cropped_alike_however_batches_are_cut():
    whole, parts = generator(), generator()
    cut = torch.cat([random_crops(ramp(6), parts), random_crops(ramp(10), parts)])
    assert torch.equal(random_crops(ramp(16), whole), cut)
