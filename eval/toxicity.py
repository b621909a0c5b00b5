"""A small toxicity classifier, fitted on a training split alone, where the field's own are not at hand."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sft.command import InputError, count
from sft.data import Example
from sft.hub import first_line
from sft.lexicon import fit_lexicon, split_words
from sft.splits import hash_examples

# Word pairs and letters within words, so that "f ck" and "idiotic" are near to what was seen; of the words
# alone, as case, punctuation and spacing would tell ParaDetox's sides apart without a look at what is said.
WORDS, LETTERS = (1, 2), (2, 4)
# scikit-learn's C, the inverse of the regularisation. Held-out sentences of the same corpus would have it ten
# times as high; but surer of its corpus's words, the classifier takes for harmless what is left when just
# these are cut (eval/validate.py).
STRENGTH = 1.0


@dataclass(frozen=True)
class ToxicityModel:
    """What a training split knows of toxicity: the list of its words, and a classifier of sentences."""

    lexicon: frozenset[str]
    signature: str
    pipeline: Any = field(repr=False, compare=False)

    def predict(self, texts: Sequence[str]) -> list[float]:
        """Return each text's probability of being toxic; 0 for one without words."""
        words = [" ".join(split_words(text)) for text in texts]
        found: list[float] = self.pipeline.predict_proba(words)[:, 1].tolist() if words else []
        return [probability if text else 0.0 for probability, text in zip(found, words, strict=True)]

    def measure_accuracy(self, examples: Sequence[Example]) -> float | None:
        """Return the mean accuracy of toxic sentences and of rewrites; None without examples."""
        if not examples:
            return None
        toxic = self.predict([example.toxic for example in examples])
        neutral = self.predict([reference for example in examples for reference in example.references])
        right = sum(p > 0.5 for p in toxic) / len(toxic) + sum(p <= 0.5 for p in neutral) / len(neutral)
        return right / 2


def fit_toxicity(examples: Sequence[Example]) -> ToxicityModel:
    """Fit classifier and word list on toxic sentences and their rewrites; a sentence's weigh one together.

    Raises:
        InputError: too few sentences, or no word in two of them.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    texts = [example.toxic for example in examples] + [
        text for example in examples for text in example.references
    ]
    labels = [1] * len(examples) + [0] * (len(texts) - len(examples))
    weights = [1.0] * len(examples) + [
        1 / len(example.references) for example in examples for _ in example.references
    ]
    pipeline = make_pipeline(
        make_union(
            TfidfVectorizer(ngram_range=WORDS, sublinear_tf=True, min_df=2, token_pattern=r"\S+"),
            TfidfVectorizer(ngram_range=LETTERS, sublinear_tf=True, min_df=3, analyzer="char_wb"),
        ),
        # To the end: where the solver stops early, the number of threads shows in the fourth digit of a
        # probability.
        LogisticRegression(C=STRENGTH, solver="liblinear", tol=1e-7, random_state=0),
    )
    try:
        pipeline.fit(
            [" ".join(split_words(text)) for text in texts], labels, logisticregression__sample_weight=weights
        )
    except ValueError as error:  # of scikit-learn: no word, or no letters, that stand in two and three texts
        raise InputError(
            f"{count(len(examples), 'sentence')} to fit the toxicity classifier on, with too little in "
            f"common ({first_line(error)}). Expected a training corpus of some hundred sentences."
        ) from None
    version = importlib.metadata.version("scikit-learn")
    signature = f"toxicity|logistic:words{WORDS}letters{LETTERS}"
    signature += f"|fitted on:{hash_examples(examples)[:8]}|version:{version}"
    return ToxicityModel(frozenset(fit_lexicon(examples)), signature.replace(", ", "-"), pipeline)
