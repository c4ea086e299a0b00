import json
from pathlib import Path

import pytest

from features.errors import UsageError
from features.sentence_files import sentence_policy

BERT = {"model_type": "bert", "max_position_embeddings": 512}


def folder_with(root: Path, pooling: dict, kinds: tuple[str, ...] = ("Transformer", "Pooling"), **files: dict) -> Path:
    modules = [
        {"path": f"{index}_{kind}" if index else "", "type": f"sentence_transformers.models.{kind}"}
        for index, kind in enumerate(kinds)
    ]
    (root / "1_Pooling").mkdir()
    (root / "modules.json").write_text(json.dumps(modules))
    (root / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    for name, content in files.items():
        (root / f"{name}.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, "last"),
        ({"pooling_mode": "cls", "embedding_dimension": 384}, "cls"),
        ({"pooling_mode": ["lasttoken"]}, "last"),
        ({"word_embedding_dimension": 384}, "mean"),
    ],
)
def test_old_and_new_files_of_a_pooling_say_the_same(tmp_path: Path, pooling: dict, expected: str):
    assert sentence_policy(folder_with(tmp_path, pooling), BERT).pooling == expected


@pytest.mark.parametrize(
    ("pooling", "word"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, r"max\+mean"),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len_tokens"),
        ({"pooling_mode": "mean", "include_prompt": False}, "without the prompt"),
    ],
)
def test_another_pooling_is_refused_by_its_name(tmp_path: Path, pooling: dict, word: str):
    with pytest.raises(UsageError, match=word):
        sentence_policy(folder_with(tmp_path, pooling), BERT)


@pytest.mark.parametrize(
    "kinds",
    [
        ("Transformer", "Pooling", "Dense"),
        ("Transformer", "Pooling", "Dense", "Normalize"),
        ("WordEmbeddings", "Pooling"),
    ],
)
def test_another_module_is_refused_by_its_name(tmp_path: Path, kinds: tuple[str, ...]):
    with pytest.raises(UsageError, match=r"modules\.json lists: " + ".*".join(kinds)):
        sentence_policy(folder_with(tmp_path, {}, kinds), BERT)


@pytest.mark.parametrize("content", ["", "{}", "[{}]", "[1]"])
def test_a_list_of_modules_that_is_none_is_refused(tmp_path: Path, content: str):
    folder = folder_with(tmp_path, {})
    (folder / "modules.json").write_text(content)
    with pytest.raises(UsageError, match=r"modules\.json"):
        sentence_policy(folder, BERT)


@pytest.mark.parametrize(
    ("config", "stated", "limit"),
    [
        (BERT, 256, 256),
        (BERT, None, 512),
        (BERT, 1024, 512),
        ({"model_type": "mpnet", "max_position_embeddings": 514}, 384, 384),
        ({"model_type": "mpnet", "max_position_embeddings": 514}, None, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512, 512),
        ({"model_type": "modernbert"}, None, 8192),
    ],
)
def test_the_limit_is_that_of_the_files_and_of_the_positions(tmp_path: Path, config: dict, stated: int, limit: int):
    folder = folder_with(tmp_path, {}, sentence_bert_config={"max_seq_length": stated, "do_lower_case": False})
    assert sentence_policy(folder, config).max_tokens == limit


def test_without_a_stated_limit_the_tokenizers_counts(tmp_path: Path):
    folder = folder_with(tmp_path, {}, tokenizer_config={"model_max_length": 128})
    assert sentence_policy(folder, BERT).max_tokens == 128


def test_a_long_limit_reads_more_characters(tmp_path: Path):
    folder = folder_with(tmp_path, {})
    short, long = sentence_policy(folder, BERT | {"max_position_embeddings": 128}), sentence_policy(folder, BERT)
    assert (short.characters, long.characters) == (2000, 4096)


def test_lower_case_and_prefix_come_from_the_files(tmp_path: Path):
    prompts = {"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": "passage"}
    files = {"sentence_bert_config": {"do_lower_case": True}, "config_sentence_transformers": prompts}
    assert sentence_policy(folder_with(tmp_path, {}, **files), BERT).prepared("A Cake") == "passage: a cake"


def test_a_prompt_that_is_no_default_is_no_prefix(tmp_path: Path):
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": None}
    assert sentence_policy(folder_with(tmp_path, {}, config_sentence_transformers=prompts), BERT).prefix == ""
