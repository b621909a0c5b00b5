"""The word penalty of generation: a beam pays for each listed word, so that other wordings win where the model doubts."""

import re
from collections.abc import Collection
from typing import Any


class WordPenalty:
    """A logits processor for `generate` with beams: takes `penalty` nats from a beam for each listed word that it ends.

    A word ends where the next token is no part of it, so the tokens that would end it pay; those that make another word
    of it do not. The source of this class stands in model cards and in Spaces, so it uses nothing outside itself.
    """

    # "can't", and the "can 't" of ParaDetox, are one word; a quoted word after a space is none with the one before it.
    WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+| ['’](?:t|s|m|d|re|ve|ll)\b)*", re.IGNORECASE)
    LOOK_BACK = 12  # tokens that hold the last word

    def __init__(self, tokenizer: Any, words: Collection[str], penalty: float) -> None:
        self.tokenizer, self.words, self.penalty = tokenizer, frozenset(words), penalty
        pieces = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
        endings = {word[start:] for word in words for start in range(len(word))}
        self.last = {token for token, piece in enumerate(pieces) if re.sub(r"[\W_]", "", piece.lower()) in endings}
        self.within = [token for token, piece in enumerate(pieces) if piece[:1].isalnum() and token != tokenizer.eos_token_id]
        self.fee: Any = None  # (vocabulary,), made where the first scores are

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return the scores (beams, vocabulary), in nats, of what follows `input_ids` (beams, tokens)."""
        tokens = input_ids[:, -self.LOOK_BACK :].tolist()
        paying = [row for row, ids in enumerate(tokens) if ids[-1] in self.last and self.ends_listed(ids)]
        if paying:
            if self.fee is None:
                self.fee = scores.new_full(scores.shape[1:], self.penalty)
                self.fee[self.within] = 0
            scores = scores.clone()
            scores[paying] -= self.fee
        return scores

    def ends_listed(self, ids: list[int]) -> bool:
        text = self.tokenizer.decode(ids)
        *_, last = [None, *self.WORD.finditer(text)]
        return last is not None and last.end() == len(text) and re.sub(r"[ '’]", "", last[0].lower()) in self.words
