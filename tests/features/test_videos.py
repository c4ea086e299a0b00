"""The videos of one split: what is kept, what is repaired and counted, what is refused."""

import csv
import hashlib
import os
import pickle
import tracemalloc
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.config import DatasetConfig
from features.errors import DataError, UsageError
from features.status import Status
from features.videos import VideoTable, VideoText, check_overlap, exact_number, has_split, read_videos
from tests.mutations import damaged

HEADER = "id,channel,title,date,description,views,year"
TODAY = date(2025, 6, 1)


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., VideoTable]:
    """Writes a CSV file of the given lines and reads it."""

    def read(*lines: str, split: str = "train_val", non_negative: bool = True, **options: Any) -> VideoTable:
        (tmp_path / f"{split}.csv").write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
        config = DatasetConfig(data=tmp_path, **options)
        return read_videos(config, split, target_must_be_non_negative=non_negative, today=TODAY)

    return read


def labelled(*views: str) -> list[str]:
    return ["id,title,year,views", *(f'v{row},t,2020,"{cell}"' for row, cell in enumerate(views))]


def refusal(read: Callable[..., VideoTable], *lines: str, **options: Any) -> str:
    with pytest.raises(DataError) as refused:
        read(*lines, **options)
    return str(refused.value)


def test_a_row_of_the_challenge_is_read_whole(read):
    videos = read(HEADER, 'ckI-a7O0bmQ,CBS,"A title, ""quoted""",2025-03-01,"two\nlines",15685415432,2025')
    assert (len(videos), videos.ids, videos.channel, videos.line.tolist()) == (1, ["ckI-a7O0bmQ"], ["CBS"], [2])
    assert videos.views is not None
    assert (videos.views.dtype, videos.views.tolist()) == (np.int64, [15685415432])
    assert videos.published.tolist() == np.array(["2025-03-01"], "datetime64[s]").tolist()
    assert videos.year.tolist() == [2025]
    assert videos.texts(0, 1) == [VideoText('A title, "quoted"', "two\nlines")]
    assert videos.has_text
    assert videos.thumbnails is None
    assert videos.counts == {}


def test_ids_stay_exactly_as_written(read):
    ids = ["00123456789", "NA", "null", "nan", "1e10", "-Abc_12345", "=1+1", " x ", "None", "日本"]
    assert read(HEADER, *(f"{video_id},,t,,,1,2020" for video_id in ids)).ids == ids


def test_column_order_is_free_and_other_columns_are_ignored(read):
    videos = read(",year,likes,views, title ,id,likes", "0,2020,5,7,hello,a,6")
    assert (videos.ids, videos.year.tolist(), videos.texts(0, 1)) == (["a"], [2020], [("hello", "")])


def test_test_videos_have_no_views_even_where_the_column_is_there(read):
    assert read("id,title,year,views", "a,t,2020,", split="test").views is None


ROWS = st.lists(
    st.tuples(st.text(max_size=8), st.text(st.characters(codec="utf-8"), max_size=30)), min_size=1, max_size=8
)


@settings(max_examples=50, deadline=None)
@given(rows=ROWS, newline=st.sampled_from(["\n", "\r\n"]), encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_any_slice_of_the_texts_is_read_back_as_written(tmp_path_factory, rows, newline, encoding):
    folder = tmp_path_factory.mktemp("data")
    with (folder / "test.csv").open("w", newline="", encoding=encoding, errors="surrogatepass") as file:
        table = csv.writer(file, lineterminator=newline, quoting=csv.QUOTE_ALL)
        table.writerow(["description", "id", "year", "title"])
        table.writerows([description, row, 2020, title] for row, (title, description) in enumerate(rows))
    videos = read_videos(DatasetConfig(data=folder, encoding=encoding), "test")
    for start in range(len(rows) + 1):
        assert videos.texts(start, start + 2) == rows[start : start + 2]
    slow = [hashlib.sha256(f"{t}\0{d}".encode("utf-8", "surrogatepass")).digest()[:16] for t, d in rows]
    assert [digest.tobytes() for digest in videos.text_digest] == slow


def test_equal_titles_have_equal_digests_whatever_stands_beside_them_and_blank_ones_zeros(read):
    titles = ["Vlog", " Vlog\t", "vlog", "", " \t", "Vlog 2", "\ud800"]
    videos = read("id,title,description,year,views", *(f'v{row},"{t}",d{row},2020,1' for row, t in enumerate(titles)))
    digests = [digest.tobytes() for digest in videos.title_digest]
    assert digests[0] == digests[1] == hashlib.sha256(b"Vlog").digest()[:16]
    assert digests[3] == digests[4] == bytes(16)
    assert len(set(digests)) == 5


def test_without_a_title_column_no_video_has_a_title_digest(read):
    assert not read("id,description,year,views", "a,d,2020,1", "b,d,2020,1").title_digest.any()


def test_a_missing_text_column_is_an_empty_text(read):
    assert read("id,description,year,views", "a,d,2020,1").texts(0, 1) == [("", "d")]
    assert not read("id,title,year,views", "a, ,2020,1").has_text


def test_nul_and_surrogates_in_texts_are_kept_and_counted(read):
    videos = read("id,title,description,year,views,channel", "a,x\0y,\ud83d,2020,1,c\ud83d", "b,t,d,2020,1,")
    assert videos.texts(0, 1) == [("x\0y", "\ud83d")]
    assert videos.channel == ["c\ufffd", ""]
    assert videos.counts == {"nul_removed": 1, "surrogates_replaced": 2}


def test_a_long_text_is_read_whole(read):
    assert read(HEADER, f"a,,{'é' * 200_000},,,1,2020").texts(0, 1)[0].title == "é" * 200_000


def test_memory_does_not_grow_with_the_texts(read):
    path = read(HEADER, *(f"v{row},,t,,{'long text ' * 5_000},1,2020" for row in range(200))).path
    tracemalloc.start()
    read_videos(DatasetConfig(data=path.parent), "train_val")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < path.stat().st_size / 10


def test_dates_are_believed_repaired_or_counted(read):
    cells = ["2025-03-01T18:20:14Z,2019", "soon,2020", "1900-01-01,2021.0", ",2022", "2031-01-01,2031", "soon,", ","]
    videos = read("id,title,views,date,year", *(f"v{row},t,1,{cell}" for row, cell in enumerate(cells)))
    assert np.isnat(videos.published).tolist() == [False] + [True] * 6
    assert videos.year.tolist() == [2025, 2020, 2021, 2022, 0, 0, 0]
    assert videos.counts == {"bad_date": 2, "date_out_of_range": 2}
    assert videos.newest() == np.datetime64("2025-03-01T18:20:14")
    ages = videos.ages_years(np.datetime64("2025-03-01T18:20:14"))
    np.testing.assert_array_equal(ages, [0, 5, 4, 3, np.nan, np.nan, np.nan])


def test_the_first_date_that_is_not_believed_is_kept_with_what_would_be(read):
    cells = [f"{day}.12.2020," for day in range(10, 31)] + ["1900-01-01,2021", "2031-01-01,", "2020-12-31,"]
    videos = read("id,title,views,date,year", *(f"v{row},t,1,{cell}" for row, cell in enumerate(cells)))
    assert videos.first_of == {
        "bad_date": "(first: line 2, '10.12.2020'); dates are ISO 8601, such as 2020-12-31, and years whole numbers, "
        "such as 2020; these count as unknown",
        "date_out_of_range": "(first: line 23, '1900-01-01'); dates lie between 1990-01-01 and 2025-06-02; these count "
        "as unknown",
    }
    assert read("id,title,views,year", "a,t,1,twenty").first_of["bad_date"].startswith("(first: line 2, 'twenty');")


def test_one_decimal_makes_the_views_floats(read):
    views = read(*labelled("0", "12.0", "3.5", "2e3")).views
    assert views is not None
    assert (views.dtype, views.tolist()) == (np.float64, [0, 12, 3.5, 2000])


def test_integers_beyond_float_precision_stay_exact(read):
    views = read(*labelled(str(2**53 + 1), str(2**63 - 1), "007")).views
    assert views is not None
    assert views.tolist() == [2**53 + 1, 2**63 - 1, 7]


BAD_LABELS = ["-1", "NaN", "inf", "1e400", "1,234", "many", "", " ", str(2**63), "9" * 5000, "1_000", "0x10", "１２"]


@pytest.mark.parametrize("cell", BAD_LABELS)
def test_a_label_that_is_no_count_is_refused_with_its_line(read, cell):
    message = refusal(read, *labelled("1", cell))
    assert "train_val.csv: views must be a finite number below 2^63, at least 0, however 1 are not (line 3: " in message
    assert "--on-bad-label drop" in message


def test_five_bad_labels_are_listed_and_all_are_counted(read):
    message = refusal(read, *labelled(*BAD_LABELS))
    assert (
        f"however {len(BAD_LABELS)} are not (line 2: '-1'; line 3: 'NaN'; line 4: 'inf'; line 5: '1e400'; " in message
    )
    assert "line 6: '1,234')" in message


def test_bad_labels_can_be_dropped_and_are_counted(read):
    videos = read(*labelled("1", *BAD_LABELS, "2"), on_bad_label="drop")
    assert videos.views is not None
    assert videos.views.tolist() == [1, 2]
    assert videos.texts(0, 2) == [("t", "")] * 2
    assert videos.counts == {"bad_labels_dropped": len(BAD_LABELS)}


def test_a_table_of_which_nothing_is_left_is_refused(read):
    assert "must hold at least one video" in refusal(read, *labelled("x"), on_bad_label="drop")


def test_a_target_may_be_negative_where_that_is_said(read):
    views = read(*labelled("-1", "2"), non_negative=False).views
    assert views is not None
    assert views.tolist() == [-1, 2]


@given(number=st.integers(-(2**63), 2**63 - 1))
def test_every_integer_of_64_bits_is_read_exactly(number):
    assert exact_number(str(number)) == number


@given(number=st.floats(-(2.0**62), 2.0**62))
def test_every_decimal_is_read_exactly(number):
    assert exact_number(repr(number)) == number


def test_a_long_row_of_digits_takes_no_long_time():
    assert exact_number("1" * 1_000_000 + "x") is None


def test_a_duplicate_in_training_names_both_lines(read):
    message = refusal(read, "id,title,year,views", "a,t,2020,1", 'b,"x\ny",2020,2', "a,t,2020,1")
    assert "train_val.csv, line 5: an id must occur once, however 'a' is also on line 2; " in message
    assert "--on-duplicate first" in message


def test_a_duplicate_with_the_same_views_can_be_dropped(read):
    videos = read("id,title,year,views", "a,first,2020,1", "a,t,2020,1.0", "b,t,2020,2", on_duplicate="first")
    assert (videos.ids, videos.line.tolist()) == (["a", "b"], [2, 4])
    assert videos.texts(0, 2) == [("first", ""), ("t", "")]
    assert videos.counts == {"duplicate_rows_dropped": 1}


def test_a_duplicate_with_other_views_is_always_refused(read):
    message = refusal(read, "id,title,year,views", "a,t,2020,1", "a,t,2020,2", on_duplicate="first")
    assert "their views differ (1 and 2)" in message


def test_a_duplicate_in_the_test_split_is_always_refused(read):
    rows = ["id,title,year", "a,t,2020", "a,t,2020"]
    assert "test.csv, line 3: an id must occur once" in refusal(read, *rows, split="test", on_duplicate="first")


@pytest.mark.parametrize(
    ("cell", "words"), [("", "blank"), (" ", "blank"), ("a\0b", "NUL"), ("a\ud800", "surrogate"), ('"\n"', "blank")]
)
def test_an_id_that_nothing_could_carry_is_refused(read, cell, words):
    message = refusal(read, "id,title,year,views", "a,t,2020,1", f"{cell},t,2020,1")
    assert "line 3: the id must " in message
    assert words in message


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("title,year,views", "must have a column 'id', however its columns are: 'title', 'year', 'views'"),
        ("id,title,year", "must have a column 'views'"),
        ("id,year,views", "must have 'title' or 'description'"),
        ("id,title,views", "must have 'date' or 'year'"),
        ("ID,Title,year,views", "must have a column 'id' and 'title' or 'description'"),
        ("id,title,title,year,views", "the column 'title' must occur once"),
        ("id;title;year;views", "one column named 'id;title;year;views' - the delimiter is ';'? pass --sep ';'"),
        ("id\ttitle\tyear\tviews", r"one column named 'id\ttitle\tyear\tviews' - the delimiter is '\t'? pass --sep"),
    ],
)
def test_columns_that_do_not_fit_are_named(read, header, words):
    assert words in refusal(read, header, header)


def test_a_header_alone_is_refused(read):
    assert "must hold at least one video" in refusal(read, HEADER)


def test_columns_can_be_renamed(read):
    columns = {"id": "video_id", "views": "likes", "description": "text"}
    rows = ["video_id,likes,views,title,text,year", "a,5,x,t,d,2020"]
    videos = read(*rows, columns=columns)
    assert (videos.ids, videos.texts(0, 1)) == (["a"], [("t", "d")])
    assert videos.views is not None
    assert videos.views.tolist() == [5]
    assert len(read("video_id,title,text,year", "a,t,d,2020", split="test", columns=columns)) == 1


def test_a_renamed_column_must_be_there(read):
    message = refusal(read, HEADER, "a,c,t,,d,1,2020", columns={"channel": "author"})
    assert "must have a column 'author', however its columns are: 'id', 'channel'" in message


def test_only_our_columns_can_be_renamed(read):
    with pytest.raises(UsageError, match=r"may rename id, channel, .*, however: 'titel'"):
        read(HEADER, columns={"titel": "title"})


def test_texts_of_a_file_that_changed_are_refused(read, tmp_path):
    videos = read("id,title,year,views", "a,t,2020,1")
    (tmp_path / "train_val.csv").write_text("id,title,year,views\na,other,2020,1")
    with pytest.raises(DataError, match="has changed since it was read"):
        videos.texts(0, 1)


def test_another_text_of_the_same_length_and_time_is_noticed(read, tmp_path):
    videos, path = read("id,title,year,views", "a,t,2020,1"), tmp_path / "train_val.csv"
    facts = path.stat()
    path.write_text("id,title,year,views\na,u,2020,1")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    with pytest.raises(DataError, match="has changed since it was read"):
        videos.texts(0, 1)


def test_a_table_travels_to_another_process(read):
    videos = read("id,title,year,views", "a,t,2020,1")
    assert pickle.loads(pickle.dumps(videos)).texts(0, 1) == [("t", "")]


def test_a_table_that_is_not_there_names_the_option_of_its_folder(tmp_path):
    with pytest.raises(DataError, match=r"test\.csv does not exist: --data names the folder that holds it$"):
        read_videos(DatasetConfig(data=tmp_path), "test")


def test_a_split_is_there_when_its_file_is(tmp_path):
    config = DatasetConfig(data=tmp_path)
    assert not has_split(config, "test")
    (tmp_path / "test.csv").touch()
    assert has_split(config, "test")


def test_ids_in_both_splits_are_counted_or_refused(read):
    train = read("id,title,year,views", "a,t,2020,1", "b,t,2020,1", "c,t,2020,1")
    test = read("id,title,year", "c,t,2020", "x,t,2020", "a,t,2020", split="test")
    assert check_overlap(train, test, forbid=False) == 2
    with pytest.raises(DataError, match=r"test\.csv: .* however 2 are \(line 2: 'c'; line 4: 'a'\)"):
        check_overlap(train, test, forbid=True)
    assert check_overlap(train, read("id,title,year", "x,t,2020", split="test"), forbid=True) == 0


# Thumbnails


def drawn(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"image")
    return folder


def with_ids(read: Callable[..., VideoTable], *ids: str) -> VideoTable:
    return read("id,title,year,views", *(f'"{video_id}",t,2020,1' for video_id in ids))


def test_a_thumbnail_is_named_as_its_video_and_jpg_comes_first(read, tmp_path):
    folder = drawn(tmp_path / "train_val", "a.png", "a.jpg", "-b.webp", "c.jpeg", "d.gif", "e.bmp")
    videos = with_ids(read, "a", "-b", "c", "d", "e")
    found = [folder / name for name in ("a.jpg", "-b.webp", "c.jpeg", "d.gif")]
    assert [videos.thumbnail(row) for row in range(5)] == [*found, Status.MISSING]
    assert videos.thumbnails == folder


def test_a_thumbnail_may_end_in_capitals_and_small_letters_come_first(read, tmp_path):
    folder = drawn(tmp_path / "train_val", "a.JPG", "b.JPG", "b.gif", "c.PNG", "d.JPEG", "e.WEBP")
    videos = with_ids(read, *"abcde")
    found = [folder / name for name in ("a.JPG", "b.gif", "c.PNG", "d.JPEG", "e.WEBP")]
    assert [videos.thumbnail(row) for row in range(5)] == found


@pytest.mark.parametrize(
    "video_id",
    ["../secret", "/etc/passwd", "a/b", "..", ".", r"C:\x", "%2e%2e", "a.b", "é", "x" * 65, "x" * 5000, "a\nb"],
)
def test_an_id_that_is_no_plain_name_is_never_part_of_a_path(read, tmp_path, video_id):
    drawn(tmp_path, "secret.jpg")
    drawn(tmp_path / "train_val")
    assert with_ids(read, video_id).thumbnail(0) is Status.BAD_ID


def test_without_the_folder_every_thumbnail_is_missing(read):
    videos = with_ids(read, "a")
    assert (videos.thumbnails, videos.thumbnail(0)) == (None, Status.MISSING)


def test_a_link_may_stay_inside_the_dataset_but_not_leave_it(read, tmp_path, tmp_path_factory):
    folder = drawn(tmp_path / "train_val")
    pool = drawn(tmp_path / "pool", "in.jpg")
    outside = drawn(tmp_path_factory.mktemp("outside"), "out.jpg")
    for name, target in {"in": pool / "in.jpg", "out": outside / "out.jpg", "none": pool / "none.jpg"}.items():
        (folder / f"{name}.jpg").symlink_to(target)
    (folder / "loop.jpg").symlink_to("loop.jpg")
    videos = with_ids(read, "in", "out", "none", "loop")
    expected = [pool / "in.jpg", Status.OUTSIDE_ROOT, Status.MISSING, Status.UNREADABLE]
    assert [videos.thumbnail(row) for row in range(4)] == expected


def test_the_folder_of_the_split_may_be_a_link_to_another_place_but_nothing_beyond_it(read, tmp_path, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    drawn(elsewhere / "thumbnails", "a.jpg")
    drawn(elsewhere, "secret.jpg")
    (elsewhere / "thumbnails" / "b.jpg").symlink_to(elsewhere / "secret.jpg")
    (tmp_path / "train_val").symlink_to(elsewhere / "thumbnails", target_is_directory=True)
    videos = with_ids(read, "a", "b")
    assert [videos.thumbnail(row) for row in range(2)] == [tmp_path / "train_val" / "a.jpg", Status.OUTSIDE_ROOT]


def test_the_dataset_itself_may_be_reached_through_a_link(read, tmp_path):
    with_ids(read, "a")
    drawn(tmp_path / "train_val", "a.jpg")
    (tmp_path / "alias").symlink_to(tmp_path, target_is_directory=True)
    videos = read_videos(DatasetConfig(data=tmp_path / "alias"), "train_val")
    assert videos.thumbnail(0) == tmp_path / "alias" / "train_val" / "a.jpg"


def test_a_mapped_column_names_thumbnails_relative_to_the_folder_of_the_split(read, tmp_path, tmp_path_factory):
    drawn(tmp_path / "train_val", "one.png")
    drawn(tmp_path / "pool", "two.jpg")
    outside = drawn(tmp_path_factory.mktemp("outside"), "three.jpg") / "three.jpg"
    names = ["one.png", "../pool/two.jpg", f"{outside}", "../../etc/passwd", "none.jpg", "", "a\0b"]
    rows = [f"v{row},t,2020,1,{name}" for row, name in enumerate(names)]
    videos = read("id,title,year,views,image", *rows, columns={"thumbnail": "image"})
    assert [videos.thumbnail(row) for row in range(7)] == [
        tmp_path / "train_val" / "one.png",
        tmp_path / "pool" / "two.jpg",
        *[Status.OUTSIDE_ROOT] * 2,
        *[Status.MISSING] * 3,
    ]


def test_a_mapped_column_needs_no_folder_of_the_split(read, tmp_path):
    found = drawn(tmp_path / "pool", "a.jpg") / "a.jpg"
    videos = read("id,title,year,views,file", "a,t,2020,1,../pool/a.jpg", columns={"thumbnail": "file"})
    assert videos.thumbnail(0) == found


def test_an_unmapped_thumbnail_column_is_ignored(read, tmp_path):
    folder = drawn(tmp_path / "train_val", "a.jpg", "b.jpg")
    assert read("id,title,year,views,thumbnail", "a,t,2020,1,b.jpg").thumbnail(0) == folder / "a.jpg"


SOUND = """id,channel,title,date,description,views,year
abc,a channel,"a ""quoted"", title
of two lines",2020-01-01,d,5,2020
NA,,😀,2021-05-05T10:00:00Z,,1e3,
-Abc,,x,,y,7,2019
"""
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "latin-1", "cp1252", "gb18030", "shift_jis")


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    raw=st.sampled_from(ENCODINGS).flatmap(lambda name: damaged(SOUND.encode(name, "replace")))
    | st.binary(max_size=60),
    encoding=st.sampled_from(ENCODINGS),
    options=st.fixed_dictionaries(
        {
            "sep": st.sampled_from([",", ",", ";", "\\t", "a"]),
            "on_bad_label": st.sampled_from(["error", "drop"]),
            "on_duplicate": st.sampled_from(["error", "first"]),
            "columns": st.sampled_from([{}, {}, {"thumbnail": "channel"}, {"title": "description", "id": "title"}]),
        }
    ),
)
def test_any_bytes_are_a_table_or_are_refused_with_a_message_of_one_line(tmp_path_factory, raw, encoding, options):
    folder = tmp_path_factory.getbasetemp() / "any-bytes"
    (folder / "train_val").mkdir(parents=True, exist_ok=True)
    (folder / "train_val.csv").write_bytes(raw)
    try:
        videos = read_videos(DatasetConfig(data=folder, encoding=encoding, **options), "train_val", today=TODAY)
    except (DataError, UsageError) as error:
        said = str(error)
        videos = None
    if videos is None:
        assert "\n" not in said
        return
    assert len(videos.texts(0, len(videos))) == len(set(videos.ids)) == len(videos) > 0
    assert all(isinstance(videos.thumbnail(row), Path | Status) for row in range(len(videos)))
