"""Make the embedded base: a small BLOOM, from scratch, from plain text (a sentence a line), by denoising.

    python recipes/bloom-tiny/pretrain.py TEXT… --corpus paradetox.tsv --output_dir recipes/bloom-tiny

A tenth of the rows are plain text, and a few words at random, to be copied. The others ask, in the prompt of
sft/prompt.py, for the clean sentence behind a noisy one: foreign words put in, words dropped, replaced or swapped, case and
punctuation worn down. Such a base can copy, drop what does not belong and mend style; it was never told what is toxic,
which is left to the recipe.

The matrices of the blocks are trained by Muon (Jordan et al. 2024), all else by AdamW. BLOOM's query, key and value lie in
one matrix, head by head, and are trained as one.

Deterministic by seed on one kind of machine. An interrupted run goes on from its last checkpoint when started again.
"""

import argparse
import dataclasses
import itertools
import math
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<pad>"]  # BLOOM's own, with BLOOM's ids
PLAIN_SHARE = 0.1
SALAD_SHARE = (
    0.03  # words at random, to be copied as they are: no guess helps there, and copying is learnt early
)
POOL = 4096  # sentences drawn, noised and sorted by length at a time


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "texts",
        nargs="+",
        type=Path,
        metavar="TEXT",
        help="UTF-8 text, a sentence a line; named twice, drawn twice as often",
    )
    parser.add_argument(
        "--corpus", nargs="*", default=[], type=Path, metavar="FILE",
        help="ParaDetox files: of the splits of recipes/tiny.yaml, test and validation are left out of all text, and the "
        "training split's sentences and rewrites are text, too, unpaired",
    )  # fmt: skip
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch_tokens", type=int, default=4096, help="tokens of a step, padding included")
    parser.add_argument("--learning_rate", type=float, default=4e-3, help="of both optimizers, at its peak")
    parser.add_argument("--hidden_size", type=int, default=256)
    parser.add_argument("--n_layer", type=int, default=6)
    parser.add_argument("--n_head", type=int, default=8)
    parser.add_argument("--vocab_size", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save_steps", type=int, default=500)
    return parser.parse_args()


def read_sentences(texts: Sequence[Path], corpora: Sequence[Path]) -> list[str]:
    """Return the distinct sentences of each text and of each corpus's training split, in no way paired.

    What stands in the validation and test splits of a corpus, as recipes/tiny.yaml splits it, is left out everywhere.
    The sentences of a file that is named twice are there twice.
    """
    from sft.data import clean_text, normalise, read_corpus
    from sft.recipe import load_recipe
    from sft.splits import split_examples
    from sft.storage import PROJECT

    def make_key(text: str) -> str:
        return normalise(tidy(clean_text(text).lower()))  # "Do n't" and "don't" are one

    config = load_recipe(PROJECT / "recipes" / "tiny.yaml").data
    hidden: set[str] = set()
    lines = {path: path.read_text(encoding="utf-8").splitlines() for path in texts}
    for path in corpora:
        examples = read_corpus(dataclasses.replace(config, source=str(path))).examples
        splits = split_examples(examples, config.validation, config.test, config.seed)
        found = {
            split: [text for example in splits[split] for text in (example.toxic, *example.references)]
            for split in splits
        }
        hidden.update(make_key(text) for split in ("validation", "test") for text in found[split])
        lines[path] = found["train"]
    sentences: list[str] = []
    for path, times in Counter([*texts, *corpora]).items():
        tidied = [tidy(clean_text(line)) for line in lines[path]]
        kept = list(dict.fromkeys(line for line in tidied if line and make_key(line) not in hidden))
        print(
            f"{path.name}: {len(kept):,} sentences; {len(tidied) - len(kept):,} empty, repeated or held out",
            flush=True,
        )
        sentences += kept * times
    return sentences


def tidy(sentence: str) -> str:
    """Return a lower-cased sentence with spaced punctuation as a person would write it; others but for their quotes.

    Such sentences are half of the text at hand, and as answers they would teach the base not to mend style.
    """
    sentence = sentence.translate({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'})
    if sentence != sentence.lower():
        return sentence
    sentence = re.sub(r" ([.,!?;:)'])", r"\1", sentence).replace("( ", "(").replace(" n't", "n't")
    sentence = re.sub(r"\bi\b", "I", sentence)
    return sentence[:1].upper() + sentence[1:]


def train_tokenizer(sentences: Sequence[str], vocab_size: int):
    """Return a byte-level BPE tokenizer with BLOOM's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from sft.prompt import format_prompt

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    # The prompt, often enough that each of its words is one token.
    bpe.train_from_iterator([*sentences, *[format_prompt("x")] * 2000], trainer)
    unk, bos, eos, pad = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, unk_token=unk, bos_token=bos, eos_token=eos, pad_token=pad
    )


def wear_down(text: str, rng: random.Random) -> str:
    """Return the text as tweets have it: lower case, spaced punctuation, apostrophes and the full stop often gone."""
    text = text.lower()
    if rng.random() < 0.4:
        text = text.replace("'", "")
    text = " ".join(re.sub(r"([.,!?\"()])", r" \1 ", text.replace("'", " '")).split())
    return text.removesuffix(" .") if rng.random() < 0.6 else text


def find_followers(sentences: Sequence[str]) -> dict[str, list[str]]:
    """Return the words that come after each word, as often as they do; "" stands for the beginning of a sentence."""
    followers = defaultdict(list)
    for sentence in sentences:
        for word, follower in itertools.pairwise(["", *map(sys.intern, sentence.split())]):
            followers[word].append(follower)
    return dict(followers)


def add_noise(
    sentence: str, sentences: Sequence[str], followers: Mapping[str, Sequence[str]], rng: random.Random
) -> str:
    """Return a noisy form of `sentence`; an eighth of them stay as they are but for style.

    Half of the time, what is put in is one word that in the text follows the word before it, as a rude word fits its place.
    """

    def draw_words(count: int) -> list[str]:
        near = followers.get(noisy[-1] if noisy else "")
        if near and rng.random() < 0.5:
            return [rng.choice(near)]
        span = rng.choice(sentences).split()
        start = rng.randrange(len(span))
        return span[start : start + count]

    noisy: list[str] = []
    heavy = rng.choice([0.0, 0.6, 1.0, 1.0, 1.0, 1.0, 1.4, 2.0])
    for word in sentence.split():
        draw = rng.random() / heavy if heavy else 1.0
        if draw < 0.13:  # foreign words in front of this one: what the answer must leave out
            noisy += draw_words(rng.choice([1, 1, 1, 2, 2, 3]))
        elif draw < 0.16:
            continue
        elif draw < 0.20:
            noisy += draw_words(1)
            continue
        elif draw < 0.22 and noisy:
            noisy[-1], word = word, noisy[-1]
        noisy.append(word)
    text = " ".join(noisy) or sentence
    return wear_down(text, rng) if rng.random() < 0.6 else text


def make_salad(sentences: Sequence[str], rng: random.Random) -> str:
    """Return 3 to 20 words, each from a sentence of its own."""
    return " ".join(rng.choice(rng.choice(sentences).split()) for _ in range(rng.randint(3, 20)))


def make_batches(
    sentences: Sequence[str], tokenizer, batch_tokens: int, seed: int
) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Yield batches of (context, answer) token lists without end: like lengths together, in random order."""
    from sft.prompt import format_prompt

    followers = find_followers(sentences)
    for pool in itertools.count():
        rng = random.Random(f"{seed}-{pool}")
        contexts: list[str] = []
        answers: list[str] = []
        for sentence in rng.sample(sentences, min(POOL, len(sentences))):
            kind = rng.random()
            if kind < PLAIN_SHARE:
                context = tokenizer.bos_token
            elif kind < PLAIN_SHARE + SALAD_SHARE:
                sentence = make_salad(sentences, rng)
                context = format_prompt(sentence)
            else:
                context = format_prompt(add_noise(sentence, sentences, followers, rng))
            contexts.append(context)
            answers.append(sentence)
        rows = [
            (context, answer + [tokenizer.eos_token_id])
            for context, answer in zip(
                tokenizer(contexts)["input_ids"], tokenizer(answers)["input_ids"], strict=True
            )
        ]
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        batches: list[list[tuple[list[int], list[int]]]] = [[]]
        for row in rows:
            if batches[-1] and (len(row[0]) + len(row[1])) * (len(batches[-1]) + 1) > batch_tokens:
                batches.append([])
            batches[-1].append(row)
        rng.shuffle(batches)
        yield from batches


def describe_training(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what decides the weights: each argument, and of the texts their SHA-256."""
    from sft.storage import hash_file

    values = {key: value for key, value in vars(arguments).items() if key not in ("output_dir", "save_steps")}
    return values | {key: [hash_file(path) for path in values[key]] for key in ("texts", "corpus")}


def pretrain(arguments: argparse.Namespace) -> None:
    """Train and save.

    Raises:
        InputError: an interrupted training with other arguments or texts is there.
    """
    import torch
    import torch.nn.functional as functional
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from transformers import BloomConfig, BloomForCausalLM

    from sft.command import InputError
    from sft.machine import has_bfloat16

    checkpoint = arguments.output_dir / "checkpoint.pt"
    training = describe_training(arguments)
    state: dict[str, Any] = {}
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        before = state.get("training", {})
        if changed := [key for key in training if key not in before or before[key] != training[key]]:
            raise InputError(
                f"{checkpoint}: the interrupted training began with another {', '.join(changed)}. "
                "Go on with what it began with, or remove that file to start again."
            )
    sentences = read_sentences(arguments.texts, arguments.corpus)
    tokenizer = train_tokenizer(sentences, arguments.vocab_size)
    _, bos, eos, pad = tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS)
    torch.manual_seed(arguments.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    in_bfloat16 = device == "cuda" or has_bfloat16()
    model = BloomForCausalLM(
        BloomConfig(
            vocab_size=len(tokenizer),
            hidden_size=arguments.hidden_size,
            n_layer=arguments.n_layer,
            n_head=arguments.n_head,
            bos_token_id=bos,
            eos_token_id=eos,
            pad_token_id=pad,
            use_cache=False,
        )
    ).to(device)
    for block in model.transformer.h:
        block.mlp.gelu_impl = torch.nn.GELU(
            "tanh"
        )  # BLOOM's own formula in one kernel: a quarter of the step on a CPU
    print(f"{model.num_parameters():,} parameters on {device}", flush=True)
    matrices = {
        name: weight for name, weight in model.transformer.h.named_parameters(prefix="h") if weight.ndim == 2
    }
    others = [weight for name, weight in model.transformer.named_parameters() if name not in matrices]
    rate = arguments.learning_rate
    optimizers = [
        torch.optim.Muon(list(matrices.values()), lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
    ]
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    first_step = 0
    if state:
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first_step = state["step"]

    batches = make_batches(sentences, tokenizer, arguments.batch_tokens, arguments.seed)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    losses: list[float] = []
    with Progress(*columns, disable=not sys.stdout.isatty()) as progress:
        bar = progress.add_task("pretraining", total=arguments.steps)
        for step, batch in enumerate(batches):
            progress.update(bar, completed=step)
            if step == arguments.steps:
                break
            if step < first_step:
                continue
            width = max(len(context) + len(answer) for context, answer in batch)
            ids = torch.full((len(batch), width), pad)
            labels = torch.full((len(batch), width), -100)
            mask = torch.zeros((len(batch), width), dtype=torch.long)
            for i, (context, answer) in enumerate(batch):
                end = len(context) + len(answer)
                ids[i, :end] = torch.tensor(context + answer)
                labels[i, len(context) : end] = torch.tensor(answer)
                mask[i, :end] = 1
            # A cosine, cut off at five sixths of its way: its tail is time for little.
            scale = min(1, (step + 1) / 200) * (
                0.02 + 0.49 * (1 + math.cos(math.pi * step / (1.2 * arguments.steps)))
            )
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = rate * scale
            with torch.autocast(device, torch.bfloat16, enabled=in_bfloat16):
                hidden = model.transformer(
                    input_ids=ids.to(device), attention_mask=mask.to(device)
                ).last_hidden_state[:, :-1]
                targets = labels[:, 1:].to(device)
                scored = targets != -100  # the head is the costly part: only what is scored passes through it
                loss = functional.cross_entropy(model.lm_head(hidden[scored]).float(), targets[scored])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            model.zero_grad()
            losses.append(loss.item())
            if (step + 1) % 100 == 0:
                progress.print(f"step {step + 1}: loss {sum(losses) / len(losses):.3f}")
                sys.stdout.flush()
                losses = []
            if (step + 1) % arguments.save_steps == 0:
                state = {
                    "model": model.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                    "step": step + 1,
                    "training": training,
                }
                torch.save(state, checkpoint.with_suffix(".tmp"))
                checkpoint.with_suffix(".tmp").replace(checkpoint)
    model.config.use_cache = model.generation_config.use_cache = True
    model.to(torch.bfloat16).save_pretrained(arguments.output_dir)
    tokenizer.save_pretrained(arguments.output_dir)
    checkpoint.unlink(missing_ok=True)


if __name__ == "__main__":
    from sft.command import run_command

    run_command(lambda: pretrain(parse_arguments()))
