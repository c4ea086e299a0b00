"""A CLIP with random weights, small enough to build in a second: for demonstrations and tests, without a network.

It is written in the layout of the Hugging Face hub and read back through the same code as any other checkpoint. Random
layers keep much of what they see, so heads find colours and words in its vectors; they mean nothing beyond that.
"""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import safetensors.torch
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from features import durable
from features.errors import StorageError

IMAGE_SIZE = 64
MAX_TOKENS = 77
SEED = 20_260_101

WORDS = """
the a an and of to in for with on my your we i how why what when who best worst top new first last full live official
video music song trailer movie film episode season part chapter review reaction tutorial guide tips tricks hack hacks
challenge vlog day night week month year days hours minutes game gameplay minecraft roblox fortnite football soccer
basketball goals highlights match world cup record records fastest biggest smallest strongest most least only ever
never always every all one two three ten hundred thousand million money rich poor free cheap expensive buy sell price
made make making build building cook cooking food recipe recipes easy quick eat eating cake pizza chicken street house
home car cars bike plane train city town beach ocean water fire ice snow rain sun space moon earth mars science
history math physics chemistry biology art draw drawing paint painting dance dancing sing singing guitar piano drums
cover remix lyrics audio kids baby girl boy man woman mom dad family friends brother sister dog cat puppy kitten
animals animal wild lion shark bear dinosaur monster ghost scary horror funny comedy prank pranks fail fails win wins
try trying not laugh cry happy sad angry love hate life death survive survival island jungle desert mountain forest
river lake fishing hunting camping travel trip tour explore exploring secret secrets hidden truth story stories real
fake explained documentary news today tomorrow yesterday morning school college student teacher learn learning english
spanish french code coding python programming computer phone iphone android apple google amazon tesla ai robot robots
future technology tech gadgets unboxing test tested testing versus battle fight fighting boxing workout fitness gym
health body mind sleep relax relaxing meditation study focus sounds asmr makeup beauty hair style fashion outfit
clothes shopping haul room decor diy craft crafts garden plants grow farm luxury billionaire millionaire business
success motivation speech interview podcast debate president country usa america india japan china korea brazil europe
africa london paris york
"""
"""Common words of titles, from which the tokenizer learns its pieces."""


def build_tiny(folder: Path) -> None:
    """Write the tiny checkpoint, whole or not at all; two builds on one machine are equal byte by byte.

    Raises
    ------
    StorageError
        The folder cannot be written.
    """
    try:
        with durable.whole_folder(folder) as built:
            _write_model(built, _write_tokenizer(built))
            _write_processor(built)
    except StorageError:
        if not (folder / "config.json").is_file():  # else another process was faster, and its files are the same
            raise


def _write_tokenizer(folder: Path) -> dict[str, int]:
    letters = sorted(ByteLevel.alphabet())
    merges = _learn_merges(WORDS.split())
    pieces = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    # The end token comes last: old configurations find the end of a text by the largest id.
    vocabulary = {piece: index for index, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,  # type: ignore[arg-type]  # the hint says strings; what is behind it takes pairs
        model_max_length=MAX_TOKENS,
    )
    tokenizer.save_pretrained(folder)
    return vocabulary


def _learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair encoding until every word is one piece; ties go to the first pair in the alphabet.

    The trainer of `tokenizers` breaks ties in the order of a hash map, so that no two builds would be equal.

    >>> _learn_merges(["up", "cup"])
    [('u', 'p</w>'), ('c', 'up</w>')]
    """
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in sorted(set(words))]
    merges: list[tuple[str, str]] = []
    while counts := Counter(pair for pieces in spelled for pair in pairwise(pieces)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        spelled = [_merged(pieces, best) if best[0] in pieces else pieces for pieces in spelled]
    return merges


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def _write_model(folder: Path, vocabulary: dict[str, int]) -> None:
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 128, "intermediate_size": 256}
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    config = CLIPConfig(
        text_config={**layers, "vocab_size": len(vocabulary), "bos_token_id": start, "eos_token_id": end},
        vision_config={**layers, "image_size": IMAGE_SIZE, "patch_size": 16},
        projection_dim=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = CLIPModel(config)
    config.architectures = ["CLIPModel"]
    config.save_pretrained(folder)
    weights = safetensors.torch.save(model.state_dict(), metadata={"format": "pt"})
    (folder / "model.safetensors").write_bytes(weights)


def _write_processor(folder: Path) -> None:
    crop = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    options = CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=crop).to_dict()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": options}, indent=2), encoding="utf-8")
