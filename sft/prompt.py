"""The instruction format, which training, evaluation, card and `eval.detoxify` share."""

# The text stands on a line of its own, and the answer starts right after a newline: a byte-level BPE keeps
# "\n" and the word behind it apart, so the prompt's tokens are the same with and without an answer. A
# trailing space here would merge with the answer's first word and break that (trl#1920).
TEMPLATE = "### Rewrite this without the toxicity:\n{text}\n\n### Rewritten:\n"


def format_prompt(text: str) -> str:
    """Return the prompt that asks for a rewrite of `text`.

    `text` is one cleaned line (see `sft.data.clean_text`): a newline inside it could forge the answer's
    heading.

    Raises:
        ValueError: `text` holds a line break.
    """
    if len(text.splitlines()) > 1 or text.endswith("\n"):
        raise ValueError(
            "the text of a prompt must be a single line: pass it through sft.data.clean_text first"
        )
    return TEMPLATE.replace("{text}", text)
