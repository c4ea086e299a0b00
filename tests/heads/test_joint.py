"""Several modalities read as one."""

import numpy as np
import pytest

from heads.inputs import JOINT, Block, Category, Inputs, Joint
from heads.joint import JointReader, joined
from heads.readers import FoldReaders, fit_readers, reader_from


def draw() -> tuple[Inputs, FoldReaders]:
    rng = np.random.default_rng(0)
    here = rng.random((2, 40)) > 0.4
    inputs = Inputs(
        (
            Block.embedding("image@a.b", rng.normal(size=(40, 3)), here[0]),
            Block.scalar("age", np.where(here[1], rng.uniform(1, 9, 40), np.nan)),
            Category(modality="channel", codes=rng.integers(0, 3, 40), present=np.ones(40, dtype=bool)),
        )
    )
    fitted = fit_readers(inputs, rng.normal(size=40), np.arange(30), rng)
    # In another order than the readers, as columns that are added later stand last.
    columns = {**fitted.columns, "image@a.b": inputs.blocks[0].values}
    return inputs, FoldReaders(fitted.readers, columns)


def test_columns_stand_side_by_side_in_the_order_of_the_readers_and_are_zero_where_absent():
    inputs, fitted = draw()
    block = inputs.block(JOINT)
    both = joined(fitted, block)
    read = both.readers[JOINT].read(block)
    assert read.shape == (40, both.readers[JOINT].width)
    start = 0
    for part in inputs.blocks:
        reader = fitted.readers[part.modality]
        own = read[:, start : start + reader.width]
        np.testing.assert_array_equal(own[part.present], reader.read(part)[part.present])
        assert not own[~part.present].any()
        start += reader.width
    unseen = np.arange(30, 40)  # training rows read their channel out of fold
    np.testing.assert_array_equal(both.columns[JOINT][unseen], read[unseen])


def test_it_is_present_where_two_modalities_are():
    inputs, _ = draw()
    block = inputs.block(JOINT)
    counts = inputs.present.sum(axis=0)
    assert block.present.tolist() == (counts >= 2).tolist()
    assert 0 < block.present.sum() < 40
    rows = np.array([7, 3])
    assert block.take(rows).present.tolist() == block.present[rows].tolist()
    assert block.take(rows).n_videos == 2


def test_a_reader_that_was_written_down_reads_the_same_to_the_bit():
    inputs, fitted = draw()
    block = inputs.block(JOINT)
    reader = joined(fitted, block).readers[JOINT]
    again = reader_from(reader.kind, dict(reader.tensors()))
    assert isinstance(again, JointReader)
    assert again.kind == reader.kind == "joint image@a.b=as_is age=knots channel=category_means"
    np.testing.assert_array_equal(again.read(block), reader.read(block))
    with pytest.raises(KeyError, match="knots"):
        reader_from(reader.kind, {k: v for k, v in reader.tensors() if k != "age.knots"})


def test_a_single_modality_is_refused():
    inputs, fitted = draw()
    with pytest.raises(ValueError, match="several modalities"):
        joined(fitted, inputs.block(JOINT)).readers[JOINT].read(inputs.blocks[0])
    with pytest.raises(TypeError, match="of its modalities"):
        fit_readers(Inputs((Joint(blocks=inputs.blocks),)), np.zeros(40), np.arange(30), np.random.default_rng(0))
