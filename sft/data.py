"""ParaDetox rows -> clean sentences with their rewrites -> token rows."""

import functools
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import regex

from sft.prompt import format_prompt
from sft.schema import DataConfig
from sft.source import Source, Table, read_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What Unicode says is not shown (joiners, soft hyphens, selectors), and control characters but white space.
INVISIBLE = regex.compile(r"[\p{Default_Ignorable_Code_Point}\uFFF9-\uFFFB]|[^\P{Cc}\s\x1c-\x1f\x85]")


@dataclass(frozen=True)
class Example:
    """One toxic source sentence and all its human rewrites, cleaned."""

    toxic: str
    references: tuple[str, ...]

    @property
    def id(self) -> str:
        """The first 16 hex digits of the sentence's SHA-256: the same in every split, file and run."""
        return hashlib.sha256(self.toxic.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Corpus:
    """Cleaned examples, and what the cleaning dropped."""

    source: Source
    examples: list[Example]
    counts: dict[str, int]
    columns: tuple[str, ...] = ()  # of a streamed one: the toxic column, and the neutral ones


def clean_text(text: str) -> str:
    """Return `text` in Unicode NFC on one line: each run of white space is one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def show_text(text: str) -> str:
    """Return what a reader sees of a text: cleaned, and without INVISIBLE characters.

    Texts are compared by it; they keep these characters, as some scripts and emoji need joiners.
    """
    return clean_text(text if text.isascii() and text.isprintable() else INVISIBLE.sub("", text))


@functools.cache
def map_look_alikes() -> dict[int, str]:
    """Return the lower-case ASCII letter for each that looks like one by Unicode's confusables (UTS 39).

    A letter whose capital alone looks like one counts, so that case does not matter. ASCII's own look-alikes,
    such as 0 and O, stay apart.
    """
    from confusable_homoglyphs.confusables import confusables_data

    found = {
        character: other["c"].lower()
        for character, others in confusables_data.items()
        for other in others
        if len(character) == 1 and character.isalpha() and not character.isascii()
        if len(other["c"]) == 1 and other["c"].isalpha() and other["c"].isascii()
    }
    lower = {character.lower(): letter for character, letter in found.items() if len(character.lower()) == 1}
    return {ord(character): letter for character, letter in (lower | found).items()}


def normalise(text: str) -> str:
    """Return the lower-cased words of `text`, or itself where it has none: the key that splits go by.

    What can't be seen is left out, and what looks like an ASCII letter is that letter.
    """
    shown = show_text(text)
    folded = unicodedata.normalize("NFKC", shown).casefold()
    if not folded.isascii():
        folded = folded.translate(map_look_alikes())
    return " ".join(re.findall(r"[^\W_]+", folded)) or shown


def read_corpus(config: DataConfig) -> Corpus:
    """Read and clean the data set that a recipe names.

    Raises:
        DataError: the source is missing, empty, not UTF-8, lacks a column, or has a broken row.
    """
    return clean_rows(read_table(config))


def clean_rows(table: Table) -> Corpus:
    """Clean the rows, merge those of one sentence, and count all that is dropped.

    Counts:
        rows: rows read. pairs: cells with a rewrite. changed_text: cells that NFC or white space changed.
        empty_toxic: rows without a toxic sentence. empty_neutral: rows without any rewrite.
        duplicate_pairs: pairs that stood there before. identical_pairs: pairs whose two sides are the same.
        merged_rows: rows whose sentence, as it is shown, had a row before.
        no_reference_left: sentences that lost all rewrites.
        examples, references: what is left.
    """
    counts: Counter[str] = Counter(rows=len(table.rows))
    texts: dict[str, str] = {}  # of each sentence, by what is shown of it: as it stood there first
    rewrites: dict[str, dict[str, str]] = {}  # of each sentence; so with its rewrites
    seen_identical: set[str] = set()
    for raw_toxic, raw_neutrals in table.rows:
        toxic = clean_text(raw_toxic)
        neutrals = [clean_text(cell) for cell in raw_neutrals]
        counts["changed_text"] += (toxic != raw_toxic) + sum(
            a != b for a, b in zip(neutrals, raw_neutrals, strict=True)
        )
        shown = show_text(toxic)
        neutrals = [neutral for neutral in neutrals if show_text(neutral)]
        counts["pairs"] += len(neutrals)
        if not shown:
            counts["empty_toxic"] += 1
            continue
        if not neutrals:
            counts["empty_neutral"] += 1
            continue
        counts["merged_rows"] += shown in rewrites
        texts.setdefault(shown, toxic)
        known = rewrites.setdefault(shown, {})
        for neutral in neutrals:
            if show_text(neutral) == shown:
                counts["duplicate_pairs" if shown in seen_identical else "identical_pairs"] += 1
                seen_identical.add(shown)
            elif show_text(neutral) in known:
                counts["duplicate_pairs"] += 1
            else:
                known[show_text(neutral)] = neutral
    examples = [Example(texts[shown], tuple(known.values())) for shown, known in rewrites.items() if known]
    counts["no_reference_left"] = len(rewrites) - len(examples)
    counts["examples"] = len(examples)
    counts["references"] = sum(len(example.references) for example in examples)
    order = [
        "rows",
        "pairs",
        "changed_text",
        "empty_toxic",
        "empty_neutral",
        "merged_rows",
        "duplicate_pairs",
    ]
    order += ["identical_pairs", "no_reference_left", "examples", "references"]
    return Corpus(table.source, examples, {name: counts[name] for name in order})


@dataclass(frozen=True)
class TokenRows:
    """The rows of a split that are trained on, and the lengths in tokens of all its pairs."""

    rows: list[dict[str, list[int]]]
    lengths: list[int]
    longest_answer: int  # in tokens, its end included

    @property
    def too_long(self) -> int:
        return len(self.lengths) - len(self.rows)


def tokenise_texts(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", is_start: bool = True
) -> list[list[int]]:
    """Return each text's token ids. A text that spells a special token ("</s>") stays text.

    An end token that the tokenizer itself appends is left out: a prompt goes on, and an answer gets its own.
    """
    if not texts:
        return []
    options = {"add_special_tokens": is_start, "split_special_tokens": True, "return_attention_mask": False}
    rows, end = tokenizer(list(texts), **options)["input_ids"], tokenizer.eos_token_id
    return [ids[:-1] if ids and ids[-1] == end else ids for ids in rows]


def tokenise_pairs(
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int | None,
    completion_only: bool = True,
) -> TokenRows:
    """Return a row for each (sentence, rewrite) pair of at most `max_length` tokens: an answer is never cut.

    A row holds `input_ids` and `labels`, two lists of the same length: prompt, answer, EOS. Prompt labels are
    -100 (not scored) unless `completion_only` is false. Prompt and answer are tokenised apart, so the prompt
    has the very tokens it has at generation.
    """
    prompts = tokenise_texts([format_prompt(example.toxic) for example in examples], tokenizer)
    # Each rewrite once: further training pairs (see sft/augment.py) have the same rewrites as the split's.
    texts = list(dict.fromkeys(text for example in examples for text in example.references))
    answers = dict(zip(texts, tokenise_texts(texts, tokenizer, is_start=False), strict=True))
    rows, lengths, longest = [], [], 0
    for example, prompt in zip(examples, prompts, strict=True):
        for reference in example.references:
            answer = answers[reference]
            ids = [*prompt, *answer, tokenizer.eos_token_id]
            lengths.append(len(ids))
            if max_length is None or len(ids) <= max_length:
                longest = max(longest, len(answer) + 1)
                labels = [-100] * len(prompt) + ids[len(prompt) :] if completion_only else ids
                rows.append({"input_ids": ids, "labels": labels})
    return TokenRows(rows, lengths, longest)
