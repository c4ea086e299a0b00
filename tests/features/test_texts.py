import json

from hypothesis import given, settings
from hypothesis import strategies as st

from features.texts import MAX_CHARACTERS, TextPolicy, joined

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)


def test_title_and_description_are_joined_by_one_space():
    assert joined("A title", "and more").text == "A title and more"


def test_a_lonely_title_or_description_has_no_blank_around_it():
    assert joined("A title", "").text == "A title"
    assert joined("", "words").text == "words"


def test_nothing_to_read_is_an_empty_text():
    assert joined("", "") == ("", False)
    assert joined("  \n", "\t").text == ""


def test_entities_from_the_api_become_characters_once():
    assert joined("Don&#39;t &amp; won&apos;t", "&lt;3").text == "Don't & won't <3"
    assert joined("&amp;amp;", "").text == "&amp;"


def test_surrogates_are_replaced_and_nuls_removed_and_both_count_as_repairs():
    assert joined("a\ud800b", "") == ("a\ufffdb", True)
    assert joined("a\0b", "") == ("ab", True)
    assert not joined("😱 ok", "").repaired


def test_combining_marks_are_composed():
    assert joined("cafe\u0301", "").text == "caf\u00e9"


def test_a_long_text_is_cut():
    assert joined("x" * 100_000, "y").text == "x" * MAX_CHARACTERS


@settings(max_examples=60)
@given(ANY_TEXT, ANY_TEXT)
def test_every_text_can_be_written_and_joining_it_again_changes_nothing_but_entities(title: str, description: str):
    text = joined(title, description).text
    text.encode("utf-8")
    assert "\0" not in text
    assert text == text.strip()
    assert len(text) <= MAX_CHARACTERS
    if "&" not in text:
        assert joined(text, "") == (text, False)


def test_the_policy_is_ready_for_json_and_tells_two_limits_apart():
    short, long = TextPolicy(max_tokens=64).to_dict(), TextPolicy(max_tokens=77).to_dict()
    assert json.loads(json.dumps(long)) == long
    assert short != long


def test_letters_are_left_alone_unless_an_encoder_wants_them_otherwise():
    policy = TextPolicy(max_tokens=77)
    assert policy.prepared("The  Cake?!") == "The  Cake?!"
    assert TextPolicy(max_tokens=64, letters="lower-case").prepared("The  Cake?!") == "the  cake?!"
    assert TextPolicy(max_tokens=64, letters="lower-case, no punctuation").prepared("The - Cake?!\n") == "the cake"


@settings(max_examples=60)
@given(ANY_TEXT)
def test_preparing_a_text_again_changes_nothing(text: str):
    for letters in ("as written", "lower-case", "lower-case, no punctuation"):
        policy = TextPolicy(max_tokens=64, letters=letters)
        assert policy.prepared(policy.prepared(text)) == policy.prepared(text)


def test_a_longer_limit_keeps_more_of_a_text():
    assert len(joined("x" * 10_000, "", characters=4096).text) == 4096


def test_what_a_family_does_not_use_is_not_in_its_record():
    plain = TextPolicy(max_tokens=77).to_dict()
    assert {"letters", "padding", "pooling", "prefix"}.isdisjoint(plain)
    assert TextPolicy(max_tokens=77, pooling="cls", prefix="query: ").to_dict() == plain | {
        "pooling": "cls",
        "prefix": "query: ",
    }
