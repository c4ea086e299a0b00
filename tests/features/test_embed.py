"""Every row gets the vector of its own source, however rows are batched, repeated or broken."""

import hashlib
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features import embed
from features.embed import Device, EncodedRows, ShardEncoder, Stopwatch, Tokenized
from features.errors import WorkersFailedError
from features.preprocess import Thumbnail
from features.status import Status
from features.text_layout import TextLayout
from features.texts import Prompt

QUICK = settings(
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the fixtures are classes
)


SIDE, DIM = 2, 3
NO_DONOR = type("NoDonor", (), {"find": lambda _, source_digest: None})()


def picture(shade: int) -> Thumbnail:
    """A thumbnail that is different for every shade above 0."""
    pixels = np.full((3, SIDE, SIDE), shade, np.uint8)
    pixels[1] = 255 - shade
    return Thumbnail(pixels, Status.OK, hashlib.sha256(bytes([shade])).digest()[:16])


def without_pixels(status: Status) -> Thumbnail:
    return Thumbnail(None, status, bytes([status]) * 16)


@pytest.fixture
def recorder(fake_encoder):
    """The fake encoder, which keeps what it was asked to encode."""

    class Recorder(fake_encoder):
        def __init__(self):
            super().__init__()
            self.pictures, self.token_batches = [], []

        def encode_images(self, pixels):
            self.pictures.append(pixels)
            return super().encode_images(pixels)

        def encode_tokens(self, tokens, pad_to):
            self.token_batches.append(tokens)
            return super().encode_tokens(tokens, pad_to)

        @property
        def shades(self):
            return [batch[:, 0, 0, 0].tolist() for batch in self.pictures]

    return Recorder


@contextmanager
def shard_encoder(encoder, batch_size, dim=DIM, donors=NO_DONOR, *, tell=lambda units: None, in_flight=1):
    device = Device(batch_size, in_flight)
    yield ShardEncoder(encoder=encoder, device=device, dim=dim, donors=donors, watch=Stopwatch(), tell=tell)
    device.close()


def encode_images(encoder, thumbnails, batch_size, donors=NO_DONOR, **options) -> EncodedRows:
    with shard_encoder(encoder, batch_size, donors=donors, **options) as shards:
        return shards.images(iter(thumbnails).__next__, len(thumbnails)).finished()


def encode_texts(encoder, texts, batch_size, donors=NO_DONOR, **options) -> EncodedRows:
    prompts = [text if isinstance(text, Prompt) else Prompt(text, repaired=False) for text in texts]
    digests = np.array([list(hashlib.sha256(p.text.encode()).digest()[:16]) for p in prompts], np.uint8)
    with shard_encoder(encoder, batch_size, 4, donors, **options) as shards:
        return shards.texts(Tokenized.by(encoder, prompts), digests.reshape(-1, 16)).finished()


ANY_PICTURES = st.lists(
    st.integers(1, 6).map(picture) | st.sampled_from([Status.MISSING, Status.TRUNCATED]).map(without_pixels),
    min_size=1,
    max_size=14,
)


@QUICK
@given(thumbnails=ANY_PICTURES, batch_size=st.integers(1, 5))
def test_a_thumbnail_gets_the_vector_that_it_would_get_alone(recorder, thumbnails, batch_size):
    encoder = recorder()
    rows = encode_images(encoder, thumbnails, batch_size)
    for row, (pixels, status, digest) in enumerate(thumbnails):
        alone = np.zeros((1, DIM)) if pixels is None else encoder.encode_images(pixels[None])
        assert np.array_equal(rows.embedding[row], alone[0].astype(np.float16))
        assert (rows.status[row], rows.source_digest[row].tobytes()) == (status, digest)


@QUICK
@given(texts=st.lists(st.text("ab", max_size=24), min_size=1, max_size=14), batch_size=st.integers(1, 5))
def test_a_text_gets_the_vector_that_it_would_get_alone(recorder, texts, batch_size):
    encoder = recorder()
    rows = encode_texts(encoder, texts, batch_size)
    for row, text in enumerate(texts):
        alone = encoder.encode_tokens(encoder.tokenize([text])[0], 24)
        assert np.array_equal(rows.embedding[row], alone[0].astype(np.float16))
        assert rows.status[row] == (Status.OK if text else Status.EMPTY_TEXT)
        assert rows.source_digest[row].tobytes() == hashlib.sha256(text.encode()).digest()[:16]


def test_batches_end_with_their_shard_and_are_filled_up_with_black(recorder):
    encoder = recorder()
    feed = iter([picture(shade) for shade in range(1, 12)])
    with shard_encoder(encoder, 4) as shards:
        for rows in (6, 5):
            shards.images(feed.__next__, rows)
    assert encoder.shades == [[1, 2, 3, 4], [5, 6, 0, 0], [7, 8, 9, 10], [11, 0, 0, 0]]
    assert not encoder.pictures[1][2:].any()


def test_rows_without_pixels_take_no_place_in_a_batch(recorder):
    encoder = recorder()
    encode_images(encoder, [picture(1), without_pixels(Status.MISSING), picture(2), picture(3)], 3)
    assert encoder.shades == [[1, 2, 3]]


def test_a_shard_without_a_single_picture_asks_nothing_of_the_encoder(recorder):
    encoder = recorder()
    rows = encode_images(encoder, [without_pixels(Status.MISSING)] * 3, 2)
    assert encoder.pictures == []
    assert rows.status.tolist() == [Status.MISSING] * 3


def test_equal_files_are_encoded_once_in_a_shard_and_again_in_the_next(recorder):
    """What another shard holds must not matter, or a resumed cache would differ from an undisturbed one."""
    encoder = recorder()
    feed = iter([picture(shade) for shade in (5, 5, 6, 6, 5, 5)])
    with shard_encoder(encoder, 2) as shards:
        first, second = (shards.images(feed.__next__, 3).finished() for _ in range(2))
    assert encoder.shades == [[5, 6], [6, 5]]
    assert np.array_equal(first.embedding[[0, 0, 2]], first.embedding)
    assert np.array_equal(second.embedding, first.embedding[[2, 0, 0]])


def test_equal_texts_are_encoded_once(recorder):
    encoder = recorder()
    rows = encode_texts(encoder, ["b", "a", "b", "b", "a"], 2)
    assert [[ids.tobytes() for ids in batch] for batch in encoder.token_batches] == [
        [ids.tobytes() for ids in encoder.tokenize(["b", "a"])[0]]
    ]
    assert np.array_equal(rows.embedding, rows.embedding[[0, 1, 0, 0, 1]])


def test_short_texts_are_batched_with_short_ones_and_each_batch_is_padded_to_the_next_multiple(recorder):
    encoder = recorder()  # a text of n letters has n + 2 tokens, at most 20
    encode_texts(
        encoder, [letter * length for letter, length in zip("abcdefg", [30, 1, 7, 6, 13, 15, 18], strict=True)], 2
    )
    lengths = [[len(ids) for ids in batch] for batch in encoder.token_batches]
    assert lengths == [[3, 8], [9, 15], [17, 20], [20, 20]]
    assert encoder.pads == [8, 16, 20, 20]


def test_an_encoder_that_must_see_all_padding_gets_all_of_it(recorder):
    encoder = recorder()
    encoder.text_layout = TextLayout.whole(20)
    encode_texts(encoder, ["a", "b", "c"], 2)
    assert encoder.pads == [20, 20]


@QUICK
@given(lengths=st.lists(st.integers(0, 18), min_size=1, max_size=30), batch_size=st.integers(1, 5))
def test_packed_batches_all_have_one_number_of_tokens_and_no_padding(recorder, lengths, batch_size):
    encoder = recorder()
    encoder.text_layout = TextLayout(20, step=1, packed=True)
    texts = [chr(ord("a") + row) * length for row, length in enumerate(lengths)]
    rows = encode_texts(encoder, texts, batch_size)
    plain = encode_texts(recorder(), texts, batch_size)
    assert np.array_equal(rows.embedding, plain.embedding)
    assert set(encoder.pads) <= {None}
    room = 16 if batch_size == 1 else round(16 * batch_size / 20) * 20
    for batch in encoder.token_batches:
        assert sum(map(len, batch)) == room or (len(batch) == 1 and len(batch[0]) > room)


def test_without_room_for_a_packed_batch_it_is_encoded_in_parts(fake_encoder):
    seen = []

    class Cramped(fake_encoder):
        text_layout = TextLayout(20, step=1, packed=True)

        def encode_tokens(self, tokens, pad_to):
            seen.append(len(tokens))
            if len(tokens) > 3:
                raise OutOfMemoryError("tried to allocate 20 GiB")
            return super().encode_tokens(tokens, pad_to)

    texts = ["a", "b", "cc", "ddd", "eeee"]  # 3 + 3 + 4 + 5 + 6 tokens, and 19 to fill up
    rows = encode_texts(Cramped(), texts, 2)
    assert seen == [24, 12, 6, *[3] * 8]
    assert np.array_equal(rows.embedding, encode_texts(fake_encoder(), texts, 2).embedding)


@QUICK
@given(rows=st.integers(1, 12), batch_size=st.integers(1, 5))
def test_a_vector_does_not_depend_on_how_full_its_batch_is(fake_encoder, rows, batch_size):
    """Real encoders give other last bits for other batch shapes; this one gives another vector altogether."""

    class DependsOnShape(fake_encoder):
        def encode_images(self, pixels):
            return super().encode_images(pixels) + 256 * len(pixels)

        def encode_tokens(self, tokens, pad_to):
            return super().encode_tokens(tokens, pad_to) + 256 * len(tokens)

    encoder, plain = DependsOnShape(), fake_encoder()
    shades = [picture(shade) for shade in range(1, rows + 1)]
    letters = [chr(ord("a") + row) for row in range(rows)]
    assert np.array_equal(
        encode_images(encoder, shades, batch_size).embedding,
        encode_images(plain, shades, batch_size).embedding + 256 * batch_size,
    )
    assert np.array_equal(
        encode_texts(encoder, letters, batch_size).embedding,
        encode_texts(plain, letters, batch_size).embedding + 256 * batch_size,
    )


def test_truncated_and_repaired_texts_are_counted_row_by_row(recorder):
    long, broken = "a" * 19, Prompt("b", repaired=True)
    assert encode_texts(recorder(), [long, "a" * 18, long, broken, broken, ""], 4).notes == {
        "truncated": 2,
        "repaired": 2,
    }


def test_vectors_made_earlier_are_taken_as_they_are_instead_of_encoding(recorder):
    class Donor:
        def find(self, source_digest):
            given = {picture(2).source_sha256: 7.5, hashlib.sha256(b"old").digest()[:16]: -3.25}
            value = given.get(source_digest)
            return None if value is None else np.full(DIM if value > 0 else 4, value, np.float16)

    encoder = recorder()
    images = encode_images(encoder, [picture(1), picture(2), picture(3)], 2, Donor())
    texts = encode_texts(encoder, ["new", "old"], 1, Donor())
    assert encoder.shades == [[1, 3]]
    assert len(encoder.token_batches) == 1
    assert images.embedding[1].tolist() == [7.5] * 3
    assert texts.embedding[1].tolist() == [-3.25] * 4
    assert (images.copied, texts.copied) == (1, 1)


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (65504.0, Status.OK),
        (65519.9, Status.OK),
        (65520.0, Status.NONFINITE),
        (-1e30, Status.NONFINITE),
        (np.inf, Status.NONFINITE),
        (-np.inf, Status.NONFINITE),
        (np.nan, Status.NONFINITE),
        (1e-30, Status.OK),
    ],
)
def test_a_number_that_float16_cannot_hold_marks_its_row_and_no_other(fake_encoder, value, status):
    class Bursting(fake_encoder):
        def encode_images(self, pixels):
            vectors = super().encode_images(pixels)
            vectors[pixels[:, 0, 0, 0] == 2, 1] = value
            return vectors

    rows = encode_images(Bursting(), [picture(1), picture(2), picture(3), picture(2)], 2)
    assert rows.status.tolist() == [Status.OK, status, Status.OK, status]
    expected = [2, np.float16(value), 2] if status is Status.OK else [0, 0, 0]
    assert rows.embedding[1].tolist() == rows.embedding[3].tolist() == expected
    assert rows.embedding[[0, 2], 0].tolist() == [1, 3]
    assert np.isfinite(rows.embedding).all()


def test_the_bottleneck_is_the_part_that_took_longest_apart_from_loading():
    watch = Stopwatch()
    assert watch.bottleneck == ""
    watch.seconds.update(load=9.0, decode=1.0, encode=2.0)
    assert watch.bottleneck == "encode"
    watch.seconds["decode"] = 3.0
    assert watch.bottleneck == "decode"


def test_a_stopwatch_adds_up_the_time_of_a_part_and_hands_its_result_on(monkeypatch):
    times = iter([0.0, 1.0, 10.0, 12.5, 20.0, 20.25])
    monkeypatch.setattr(embed, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    watch = Stopwatch()
    assert [watch.timed("read", lambda: "done"), watch.timed("read", lambda: 5)] == ["done", 5]
    assert watch.timed("write", lambda: None) is None
    assert watch.seconds == {"read": 3.5, "write": 0.25}


@pytest.mark.parametrize("in_flight", [1, 2])
def test_rows_are_told_batch_by_batch_and_in_the_end_all_of_them_are(recorder, in_flight):
    told = []
    thumbnails = [picture(1), without_pixels(Status.MISSING), picture(2), picture(3), picture(1)]
    encode_images(recorder(), thumbnails, 2, tell=told.append, in_flight=in_flight)
    assert told == [2, 1, 2]


def test_rows_that_need_no_batch_are_told_as_they_pass(recorder):
    """A shard of repeats or missing files takes long to read; its worker must not be taken for hung."""
    told = []
    encode_images(recorder(), [without_pixels(Status.MISSING)] * 5 + [picture(1)] * 3, 2, tell=told.append)
    assert told == [2, 2, 2, 1, 1]


def test_two_batches_are_on_the_device_at_a_time_if_it_can_take_them(fake_encoder):
    both = threading.Barrier(2, timeout=10)

    class Waiting(fake_encoder):
        def encode_images(self, pixels):
            both.wait()
            return super().encode_images(pixels)

    thumbnails = [picture(shade) for shade in range(1, 9)]
    rows = encode_images(Waiting(), thumbnails, 2, in_flight=2)
    assert np.array_equal(rows.embedding, encode_images(fake_encoder(), thumbnails, 2).embedding)


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


@pytest.mark.parametrize("error", [MemoryError(), OutOfMemoryError("CUDA out of memory")])
@pytest.mark.parametrize(("room", "sizes"), [(3, [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]), (1, [8, 4, 2, *[1] * 16])])
def test_what_does_not_fit_is_encoded_in_halves_and_the_size_is_remembered(fake_encoder, error, room, sizes):
    seen = []

    class Cramped(fake_encoder):
        def encode_images(self, pixels):
            seen.append(len(pixels))
            if len(pixels) > room:
                raise error
            return super().encode_images(pixels)

    thumbnails = [picture(shade) for shade in range(1, 13)]
    with shard_encoder(Cramped(), 8) as shards:
        rows = shards.images(iter(thumbnails).__next__, 12).finished()
        assert shards.device.fits == sizes[-1]
    assert seen == sizes
    assert np.array_equal(rows.embedding, encode_images(fake_encoder(), thumbnails, 8).embedding)


def test_a_device_that_cannot_hold_one_row_is_given_up(fake_encoder):
    class Full(fake_encoder):
        def encode_tokens(self, tokens, pad_to):
            raise OutOfMemoryError("tried to allocate 20 GiB")

    with pytest.raises(WorkersFailedError, match=r"not even one row .*20 GiB.*choose another device"):
        encode_texts(Full(), ["a", "b"], 2)


def test_any_other_error_of_the_encoder_is_not_taken_for_a_lack_of_memory(fake_encoder):
    class Broken(fake_encoder):
        def encode_images(self, pixels):
            raise RuntimeError("an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        encode_images(Broken(), [picture(1), picture(2)], 2)


def test_pieces_are_joined_in_their_order_with_their_counts():
    pieces = [EncodedRows.without_vector(Status(status), bytes([status]) * 16, 2) for status in (3, 10)]
    counted = EncodedRows(np.ones((2, 2), np.float16), np.zeros(2, np.uint8), np.ones((2, 16), np.uint8), {"cut": 2}, 1)
    whole = EncodedRows.joined([pieces[0], counted, pieces[1]])
    assert whole.embedding.tolist() == [[0, 0], [1, 1], [1, 1], [0, 0]]
    assert whole.status.tolist() == [3, 0, 0, 10]
    assert whole.source_digest[:, 0].tolist() == [3, 1, 1, 10]
    assert (whole.notes, whole.copied) == ({"cut": 2}, 1)
