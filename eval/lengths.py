"""Texts that a base has no positions for: told before anything is generated."""

from collections.abc import Mapping, Sequence

from eval.adapter import Adapter
from eval.standalone import load_tokenizer
from sft.command import InputError, count, tell_once
from sft.data import Example, clean_text, tokenise_texts
from sft.model import build_on_meta, find_positions, load_config
from sft.prompt import format_prompt


def check_lengths(adapter: Adapter, texts: Sequence[str], shots: Sequence[Example]) -> list[Example]:
    """Return as many of the shots as the base has positions for before each text.

    Raises:
        InputError: a text is too long without shots, too: see `refuse_long`.
    """
    positions = find_positions(build_on_meta(load_config(adapter.base)))
    if positions is None:
        return list(shots)
    tokenizer = load_tokenizer(adapter.base.path, adapter.base.revision, **adapter.tokens)
    prompts = dict(enumerate(tokenise_texts([format_prompt(clean_text(text)) for text in texts], tokenizer)))
    answer = adapter.settings.max_new_tokens
    refuse_long(texts, prompts, positions, answer)
    room = positions - answer - max(map(len, prompts.values()), default=0)
    kept: list[Example] = []
    for shot in shots:
        solved = tokenise_texts([format_prompt(shot.toxic) + shot.references[0]], tokenizer)[0]
        room -= len(solved) + 2  # its end, and a token that prompt and answer may share when written together
        if room < 0:
            tell_once(f"few_shot: {count(len(kept), 'shot')}, as the base has learnt {positions:,} positions")
            break
        kept.append(shot)
    return kept


def refuse_long(
    texts: Sequence[str], prompts: Mapping[int, Sequence[int]], positions: int | None, answer: int
) -> None:
    """Raise for the first text whose prompt (token ids, by its place) has no room for its answer.

    Raises:
        InputError: which text it is.
    """
    for index, ids in prompts.items():
        if positions is not None and len(ids) + answer > positions:
            raise InputError(
                f"text {index + 1} of {len(texts):,}, {texts[index][:40]!r}: prompt of {len(ids):,} tokens, "
                f"an answer of up to {answer:,}; the base has learnt {positions:,} positions. "
                "Shorten it."
            )
