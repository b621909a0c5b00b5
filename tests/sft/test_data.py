"""Reading, cleaning, splitting and tokenising; broken files each with their exact message."""

import json
import random
import re
from pathlib import Path

import pytest
from conftest import PARADETOX, SHARED, needs_paradetox

from sft.data import Example, clean_rows, clean_text, normalise, read_corpus, tokenise_pairs, tokenise_texts
from sft.files import DataError
from sft.prompt import format_prompt
from sft.schema import DataConfig
from sft.source import Source, Table, read_table
from sft.splits import find_leaks, group_sources, hash_examples, split_examples
from sft.storage import PROJECT, hash_file

HEAD = b"toxic\tneutral1\tneutral2\n"
KINDS = ".tsv, .csv, .jsonl, .parquet"

# file: (content, other data keys, the key at fault, the exact message); F stands for the file's path
BROKEN: dict[str, tuple[bytes | None, dict[str, object], str, str]] = {
    "missing.tsv": (
        None,
        {},
        "data.source",
        f"F: no such file or folder. Relative paths start at the working directory ({Path.cwd()}).",
    ),
    "empty.tsv": (b"", {}, "data.source", "F: the file is empty. Expected a header and at least one row."),
    "blank.tsv": (
        b" \n\n",
        {},
        "data.source",
        "F: the file is empty. Expected a header and at least one row.",
    ),
    "header.tsv": (HEAD, {}, "data.source", "F: a header and no rows."),
    "latin.tsv": (
        HEAD + b"a\tb\t\ncaf\xe9\tx\t\n",
        {},
        "data.source",
        "F:3: not UTF-8 (byte 0xe9). Convert it: iconv -f latin1 -t utf8.",
    ),
    "utf16.tsv": (
        "toxic\tneutral1\na\tb\n".encode("utf-16"),
        {},
        "data.source",
        "F:1: not UTF-8 (byte 0xff). Convert it: iconv -f utf16 -t utf8.",
    ),
    "column.tsv": (
        b"bad\tgood\na\tb\n",
        {},
        "data.toxic",
        "F: no toxic column; it has bad, good. Expected toxic or en_toxic_comment, "
        "or the names that the recipe gives as data.toxic and data.neutral.",
    ),
    "neutral.tsv": (
        b"toxic\tgood\na\tb\n",
        {},
        "data.neutral",
        "F: no column 'neutral1'; it has toxic, good. Other names go into the recipe, as data.toxic and data.neutral.",
    ),
    "named.tsv": (
        HEAD + b"a\tb\tc\n",
        {"toxic": "rude", "neutral": ("polite",)},
        "data.toxic",
        "F: no column 'rude' or 'polite'; it has toxic, neutral1, neutral2. "
        "Other names go into the recipe, as data.toxic and data.neutral.",
    ),
    "many.tsv": (
        HEAD + b"a\tb\tc\na\tb\tc\td\n",
        {},
        "data.source",
        "F:3: this row has 4 fields, expected 2 to 3. A field that holds a tab, a comma, a quote or a line break must be quoted.",
    ),
    "few.tsv": (
        HEAD + b'"two\nlines"\tb\tc\nalone\n',
        {},
        "data.source",
        "F:4: this row has 1 field, expected 2 to 3. A field that holds a tab, a comma, a quote or a line break must be quoted.",
    ),
    "quote.tsv": (
        HEAD + b'a\tb\t\n"open\tb\tc\nd\te\tf\n',
        {},
        "data.source",
        "F:3: broken quoting in the row that starts here (unexpected end of data). "
        'A quote inside a quoted field is written twice: "". '
        "Where quotation marks are text like any other, say data.quoting: false.",
    ),
    "one.csv": (
        b"toxic\na\n",
        {},
        "data.source",
        "F:1: only one column ('toxic'). Expected a toxic and a neutral one, with commas between them.",
    ),
    "twice.csv": (
        b"toxic,neutral1,toxic\na,b,c\n",
        {},
        "data.source",
        "F:1: the column 'toxic' stands there 2 times.",
    ),
    "half.jsonl": (
        b'{"toxic": "a", "neutral1": "b"}\n{"toxic": "a", \n',
        {},
        "data.source",
        "F:2: not JSON (Expecting property name enclosed in double quotes, column 16).",
    ),
    "list.jsonl": (
        b'{"toxic": "a", "neutral1": "b"}\n["a", "b"]\n',
        {},
        "data.source",
        'F:2: a list, expected an object such as {"toxic": "…", "neutral1": "…"}.',
    ),
    "number.jsonl": (
        b'{"toxic": "a", "neutral1": "b"}\n\n{"toxic": 2, "neutral1": "b"}\n',
        {},
        "data.source",
        "F:3: 'toxic' is 2, expected text or null.",
    ),
    "surrogate.jsonl": (
        b'{"toxic": "a \\ud800", "neutral1": "b"}\n',
        {},
        "data.source",
        "F:1: 'toxic' holds half of a surrogate pair.",
    ),
    "bad.parquet": (
        b"PAR1 no",
        {},
        "data.source",
        "F: not a Parquet file (Parquet file size is 7 bytes, smaller than the minimum file footer (8 bytes)).",
    ),
    "text.txt": (b"a\tb\n", {}, "data.source", f"F: unknown kind of file. Expected {KINDS}."),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file(name: str, tmp_path: Path) -> None:
    content, options, key, message = BROKEN[name]
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_corpus(DataConfig(source=str(path), **options))
    assert str(caught.value) == message.replace("F:", f"{path}:", 1)
    assert caught.value.key == key


def test_folder_without_data(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_corpus(DataConfig(source=str(tmp_path)))
    assert str(caught.value) == f"{tmp_path}: no data file in this folder. Expected {KINDS}."


ROWS = [("NA", ["null", ""]), ("123", ["456", ""]), ('a "q"\n b', ["x", "y"])]


def write_rows(path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    names = ("toxic", "neutral1", "neutral2")
    records = [dict(zip(names, (toxic, *neutrals), strict=True)) for toxic, neutrals in ROWS]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        lines = [
            separator.join('"' + record[name].replace('"', '""') + '"' for name in names)
            for record in records
        ]
        path.write_text("\ufeff" + separator.join(names) + "\n" + "\n\n".join(lines) + "\n")


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("folder", [False, True])
def test_same_rows_from_each_kind_of_file(suffix: str, folder: bool, tmp_path: Path) -> None:
    path = tmp_path / f"train{suffix}"
    write_rows(path)
    table = read_table(DataConfig(source=str(tmp_path if folder else path)))
    assert table.rows == ROWS
    assert list(table.source.files) == [path.name]


def test_folder_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    write_rows(tmp_path / "real" / "train.tsv")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    table = read_table(DataConfig(source=str(tmp_path / "link")))
    assert (table.rows, list(table.source.files)) == (ROWS, ["train.tsv"])


def test_splits_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("toxic\tneutral1\na\tb\n")
    (tmp_path / "test.tsv").write_text("toxic\tneutral1\nc\td\n")
    assert read_table(DataConfig(source=str(tmp_path), split="test")).rows == [("c", ["d"])]
    with pytest.raises(DataError, match=r"no split 'dev' in this folder; it has test, train\.$"):
        read_table(DataConfig(source=str(tmp_path), split="dev"))


def test_replaced_file_of_the_same_time_is_read_anew(tmp_path: Path) -> None:
    import os

    path = tmp_path / "a.tsv"
    for text in ("old", "new"):
        path.write_text(f"toxic\tneutral1\n{text}\tx\n")
        os.utime(path, (1e9, 1e9))
        assert read_table(DataConfig(source=str(path))).rows == [(text, ["x"])]


# A name of a folder, and the name that it would stand for as a pattern or as a chain of URLs.
PATTERNS = {
    "run[1]": "run1",
    "a*b": "axb",
    "a?b": "axb",
    "d{1,2}": "d1",
    "zip::x": "x",
    "file:": "file",
    "**": "deep",
}


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("suffix", [".tsv", ".parquet"])
def test_the_file_of_that_name_is_read_and_no_other(
    name: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its folder, or the working directory, would mean as a pattern."""
    import shutil

    here, other = tmp_path / name, tmp_path / PATTERNS[name]
    for folder in (here, other):
        folder.mkdir(exist_ok=True)
        write_rows(folder / f"data{suffix}")
    (other / f"data{suffix}").unlink()
    if suffix == ".tsv":
        (other / "data.tsv").write_text("toxic\tneutral1\tneutral2\nforeign\tx\ty\n")
    monkeypatch.chdir(here)
    for source in (f"data{suffix}", str(here / f"data{suffix}"), ".", str(here)):
        table = read_table(DataConfig(source=source))
        assert (table.rows, table.source.files) == (
            ROWS,
            {f"data{suffix}": hash_file(here / f"data{suffix}")},
        )
    shutil.move(f"data{suffix}", here / f"{name}{suffix}")
    for source in (f"{name}{suffix}", str(here)):
        assert read_table(DataConfig(source=source)).rows == ROWS


def test_index_columns_and_folders_in_folders(tmp_path: Path) -> None:
    (tmp_path / "d" / "sub").mkdir(parents=True)
    path = tmp_path / "d" / "sub" / "train.csv"
    path.write_text(",toxic,neutral1\n0,a,b\n")
    (tmp_path / "d" / "sub" / "round").symlink_to(tmp_path / "d")
    table = read_table(DataConfig(source=str(tmp_path / "d")))
    assert (table.rows, list(table.source.files)) == ([("a", ["b"])], ["sub/train.csv"])


# A file whose cell of a row may be two rows, its numbers of lines, and its sentences with quoting false.
SWALLOWED = {
    "tab.tsv": ('toxic\tneutral1\na\tb\n"c\td\ne"\tf\n', (3, 4), ["a", '"c', 'e"']),
    "three.tsv": ('toxic\tneutral1\n"c\td\nx\ty\ne"\tf\n', (2, 4), ['"c', "x", 'e"']),
    "return.tsv": ('toxic\tneutral1\r\n"c\td\r\ne"\tf\r\n', (2, 3), ['"c', 'e"']),
    "columns.tsv": ('toxic\tneutral1\tneutral2\tneutral3\na\t"c\nd"\te\n', (2, 3), ["a", 'd"']),
    "comma.csv": ('toxic,neutral1\n"c,d\ne",f\n', (2, 3), ['"c', 'e"']),
}


@pytest.mark.parametrize("name", SWALLOWED)
def test_a_cell_that_swallows_a_row_is_told(name: str, tmp_path: Path) -> None:
    content, (first, last), rows = SWALLOWED[name]
    path = tmp_path / name
    path.write_bytes(content.encode())
    opens = f"{path}:{first}: a quotation mark opens a cell here, and closes it in row {last}: one row with quoting"
    with pytest.raises(DataError, match=re.escape(opens)):
        read_corpus(DataConfig(source=str(path)))
    as_text = read_table(DataConfig(source=str(path), quoting=False)).rows
    assert [toxic for toxic, _ in as_text] == rows
    quoted = read_table(DataConfig(source=str(path), quoting=True)).rows
    assert len(quoted) == len(rows) - (last - first)


def test_a_quotation_that_never_closes_is_text_where_the_recipe_says_so(tmp_path: Path) -> None:
    path = tmp_path / "last.tsv"
    path.write_text('toxic\tneutral1\na\t"b\nsay "so\tc\n')
    with pytest.raises(DataError, match=r":2: broken quoting .* say data\.quoting: false\.$"):
        read_table(DataConfig(source=str(path)))
    assert read_table(DataConfig(source=str(path), quoting=False)).rows == [("a", ['"b']), ('say "so', ["c"])]


@pytest.mark.parametrize("suffix", [".tsv", ".csv"])
def test_quoted_line_ends_that_swallow_nothing_pass(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    lines = [
        ["toxic", "neutral1", "neutral2"],
        ['"a\nb"', '"c"', '""'],
        ["a", '"b\r\nc"', "d"],
        ['"x, ""y"""', "z", ""],
    ]
    path.write_text(
        "".join(("\t" if suffix == ".tsv" else ",").join(line) + "\n" for line in lines), newline=""
    )
    assert read_table(DataConfig(source=str(path))).rows == [
        ("a\nb", ["c", ""]),
        ("a", ["b\r\nc", "d"]),
        ('x, "y"', ["z", ""]),
    ]


def test_other_column_names(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,rude,polite,kind\n1,a,b,c\n")
    assert read_table(DataConfig(source=str(path), toxic="rude", neutral=("polite", "kind"))).rows == [
        ("a", ["b", "c"])
    ]


def test_source_name_holds_no_absolute_path(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("toxic\tneutral1\na\tb\n")
    assert read_table(DataConfig(source=str(tmp_path / "a.tsv"))).source.name == "a.tsv"
    assert (
        read_table(DataConfig(source=str(PROJECT / "recipes/tiny-corpus.tsv"))).source.name
        == "recipes/tiny-corpus.tsv"
    )


def test_cleaning_counts_all_that_it_drops() -> None:
    rows = [
        ("bad  one", ["good", "good", "fine\n one"]),  # white space twice, a duplicate
        ("bad one", ["fine one", "new"]),  # merged, a duplicate
        ("", ["x"]),
        ("no rewrite", ["", " "]),  # white space once
        ("same", ["same"]),
        ("cafe\u0301", ["caf\u00e9 x"]),  # NFC once
    ]
    corpus = clean_rows(Table(Source("x"), rows))
    assert corpus.examples == [
        Example("bad one", ("good", "fine one", "new")),
        Example("caf\u00e9", ("caf\u00e9 x",)),
    ]
    assert corpus.counts == {
        "rows": 6,
        "pairs": 8,
        "changed_text": 4,
        "empty_toxic": 1,
        "empty_neutral": 1,
        "merged_rows": 1,
        "duplicate_pairs": 2,
        "identical_pairs": 1,
        "no_reference_left": 1,
        "examples": 2,
        "references": 4,
    }
    # Each pair read is kept, dropped for a counted reason, or stood in a dropped row.
    assert corpus.counts["pairs"] == 4 + 2 + 1 + 1


def test_texts() -> None:
    assert clean_text(" a\u00a0b\t\nc\u2028") == "a b c"
    assert normalise("You're  NOT funny!!") == normalise("you re not funny .") == "you re not funny"
    assert normalise("ＳＨＩＴ") == "shit"
    assert normalise("!!!") == "!!!"


@pytest.mark.parametrize(
    "hidden",
    [
        "\u200b",
        "\u200c",
        "\u200d",
        "\u00ad",
        "\ufe0f",
        "\u2060",
        "\ufeff",
        "\u034f",
        "\u202e",
        "\U000e0041",
        "\x08",
        "\x7f",
    ],
    ids=ascii,
)
def test_what_cannot_be_seen_makes_no_other_sentence(hidden: str) -> None:
    plain, disguised = "you are a damn moron", f"you are a da{hidden}mn mor{hidden}on{hidden}"
    assert normalise(disguised) == plain
    splits = {"train": make_examples(plain), "validation": [], "test": make_examples(disguised)}
    assert find_leaks(splits) == [f"{plain!r} stands in test and train"]
    rows = [(plain, ["you are wrong"]), (disguised, [f"you are wr{hidden}ong", disguised]), (hidden, ["x"])]
    corpus = clean_rows(Table(Source("x"), rows))
    assert corpus.examples == [Example(plain, ("you are wrong",))]
    dropped = ("merged_rows", "duplicate_pairs", "identical_pairs", "empty_toxic")
    assert [corpus.counts[key] for key in dropped] == [1, 1, 1, 1]
    first = clean_rows(Table(Source("x"), rows[1::-1])).examples[0].toxic
    assert first == clean_text(disguised), "what is trained on stays as it was written"


@pytest.mark.parametrize(
    "disguised",
    [
        "y\u043eu m\u043er\u043en",
        "Y\u039fU M\u041eR\u041eN",
        "you \u043coron",
        "\uff59ou m\U0001d428ron",
        "you mor\u0585n",
    ],
    ids=ascii,
)
def test_what_looks_alike_is_one_sentence(disguised: str) -> None:
    """Cyrillic, Greek and Armenian letters by Unicode's confusables, case aside; wide and bold ones by NFKC."""
    assert normalise(disguised) == normalise(disguised.swapcase()) == "you moron"


def test_letters_that_only_resemble_stay_apart() -> None:
    assert normalise("caf\u00e9 na\u00efve 0 O 1 l") == "caf\u00e9 na\u00efve 0 o 1 l"


def make_examples(*texts: str) -> list[Example]:
    return [Example(text, (f"polite {number}",)) for number, text in enumerate(texts)]


def test_linked_sources_are_one_group() -> None:
    examples = make_examples(
        "shut up !",
        "Shut up",
        "i think that you are a very dumb person",
        "i think that you are a dumb person",
        "other",
    )
    examples.append(Example("what a mess", ("Other.",)))  # its rewrite is another's source
    assert group_sources(examples) == [0, 0, 2, 2, 4, 4]


def test_short_sentences_that_share_words_are_not_linked() -> None:
    assert group_sources(make_examples("what a jerk", "what a fool", "what a stupid day")) == [0, 1, 2]


def random_examples(number: int, seed: int) -> list[Example]:
    rng = random.Random(seed)
    words = [f"w{index}" for index in range(300)]
    return [Example(" ".join(rng.sample(words, 9)), (f"r{seed} {index}",)) for index in range(number)]


def place_examples(examples: list[Example], seed: int = 0) -> dict[str, str]:
    return {e.toxic: split for split, part in split_examples(examples, 0.1, 0.1, seed).items() for e in part}


def test_added_rows_move_no_other_row() -> None:
    examples = random_examples(500, 1)
    before = place_examples(examples)
    near = [Example(example.toxic + " !!", ("x",)) for example in examples[:100]]
    after = place_examples(examples + random_examples(500, 2) + near)
    assert all(after[text] == split for text, split in before.items())
    assert all(after[e.toxic] == before[e.toxic.removesuffix(" !!")] for e in near)


def test_order_of_rows_does_not_matter_and_the_seed_does() -> None:
    examples = random_examples(500, 1)
    assert place_examples(examples) == place_examples(examples[::-1])
    assert place_examples(examples) != place_examples(examples, seed=1)
    shares = list(place_examples(examples).values())
    assert 30 < shares.count("test") < 70
    assert 30 < shares.count("validation") < 70


def test_planted_leaks_are_found() -> None:
    train, test = make_examples("you are a fool", "b"), make_examples("You are a FOOL.", "c")
    splits = {"train": train, "validation": [], "test": test}
    assert find_leaks(splits) == ["'you are a fool' stands in test and train"]
    as_rewrite = {
        "train": [Example("x", ("you are a fool",))],
        "validation": [],
        "test": [Example("you are a fool!", ("y",))],
    }
    assert find_leaks(as_rewrite) == ["'you are a fool' stands in test and train"]
    assert find_leaks({"train": train, "validation": [], "test": make_examples("c")}) == []


@pytest.mark.slow
@needs_paradetox
def test_real_paradetox_in_both_layouts() -> None:
    by_sentence = read_corpus(DataConfig(source=str(PARADETOX)))
    by_pair = read_corpus(DataConfig(source=str(SHARED / "paradetox-hub")))
    assert by_sentence.counts["rows"] == 11346
    assert by_pair.counts["rows"] == by_sentence.counts["pairs"] == 18780
    assert hash_examples(by_sentence.examples) == hash_examples(by_pair.examples)
    splits = split_examples(by_sentence.examples, 0.05, 0.05, 0)
    assert find_leaks(splits) == []
    assert {split: len(part) for split, part in splits.items()} == {
        "train": 10086,
        "validation": 589,
        "test": 591,
    }


def test_tokens_are_prompt_answer_and_end(mini_base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(mini_base)
    examples = [Example("you damn fool", ("you are not wise .", "Not wise.")), Example("a " * 200, ("b",))]
    tokens = tokenise_pairs(examples, tokenizer, 60)
    rows = tokens.rows
    assert (tokens.too_long, len(tokens.lengths), max(tokens.lengths) > 60) == (1, 3, True)
    assert tokens.longest_answer == max(sum(label != -100 for label in row["labels"]) for row in rows)
    assert [tokenizer.decode(row["input_ids"]) for row in rows] == [
        format_prompt("you damn fool") + "you are not wise .</s>",
        format_prompt("you damn fool") + "Not wise.</s>",
    ]
    assert [tokenizer.decode([t for t in row["labels"] if t != -100]) for row in rows] == [
        "you are not wise .</s>",
        "Not wise.</s>",
    ]
    prompt = tokenizer(format_prompt("you damn fool"))["input_ids"]
    assert all(row["input_ids"][: len(prompt)] == prompt for row in rows)
    whole = tokenise_pairs(examples[:1], tokenizer, None, completion_only=False)
    assert all(row["labels"] == row["input_ids"] for row in whole.rows)
    assert whole.longest_answer == tokenise_pairs(examples[:1], tokenizer, None).longest_answer


def test_text_that_spells_a_special_token_stays_text(mini_base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(mini_base)
    (row,) = tokenise_pairs([Example("stop </s> now", ("a<pad>b</s>",))], tokenizer, None).rows
    assert [row["input_ids"].count(token) for token in (tokenizer.eos_token_id, tokenizer.pad_token_id)] == [
        1,
        0,
    ]
    assert tokenizer.decode(row["input_ids"]) == format_prompt("stop </s> now") + "a<pad>b</s></s>"


def test_tokens_are_those_of_trl(mini_base: Path, tmp_path: Path) -> None:
    """On ordinary rows, tokenising prompt and answer apart gives what SFTTrainer makes of plain prompt/completion rows."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(mini_base)
    examples = read_corpus(DataConfig(source=str(PROJECT / "recipes" / "tiny-corpus.tsv"))).examples[:50]
    pairs = [{"prompt": format_prompt(e.toxic), "completion": r} for e in examples for r in e.references]
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(mini_base),
        args=SFTConfig(str(tmp_path), use_cpu=True, report_to="none"),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
    )
    rows = tokenise_pairs(examples, tokenizer, None).rows
    assert rows == [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in trainer.train_dataset]


@pytest.mark.parametrize("template", ["$A:0 </s>:0", "<s>:0 $A:0 </s>:0", "<s>:0 $A:0"])
def test_a_prompt_never_ends_in_an_end_token(template: str, mini_base: Path) -> None:
    """As some tokenizers append one to each text."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(mini_base)
    plain = tokenise_texts(["you fool"], tokenizer)[0]
    specials = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=specials)
    start = [tokenizer.bos_token_id] if "<s>" in template else []
    assert tokenise_texts(["you fool"], tokenizer) == [[*start, *plain]]
    (row,) = tokenise_pairs([Example("you fool", ("you",))], tokenizer, None).rows
    assert row["input_ids"].count(tokenizer.eos_token_id) == 1
