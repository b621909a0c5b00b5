"""The stress cases: what counts as kept and what does not."""

import pytest

from eval.stress import (
    BEGINNING,
    GROUPS,
    cut_marked,
    is_clean,
    is_clean_beginning,
    judge_outputs,
    list_texts,
    plain,
)


def test_marks_are_not_in_what_the_model_gets() -> None:
    texts = list_texts()
    assert not any(mark in text for text in texts for mark in "[]|")
    assert plain("a [sh1t|shit] day") == "a sh1t day"
    assert len(texts) == len(set(texts)) == sum(len(group.texts) for group in GROUPS)


def test_copying_keeps_clean_text_and_no_other_rule() -> None:
    judged = {group.group: (group.passed, group.of) for group in judge_outputs(list_texts())}
    for name in ("disguised swearing", "shouting", "emoji", "very long"):
        assert judged[name][0] == 0, name
    for name in ("clean sentences", "instructions", "our own prompt"):
        assert judged[name][0] == judged[name][1], name
    assert judged["nothing"] == (1, 3)


def test_saying_nothing_keeps_no_rule_but_that_of_nothing() -> None:
    judged = judge_outputs([""] * len(list_texts()))
    assert {group.group for group in judged if group.passed} == {"nothing"}


def test_saying_ok_keeps_no_rule() -> None:
    assert not any(group.passed for group in judge_outputs(["ok"] * len(list_texts())))


def test_the_text_without_its_marked_words_keeps_every_rule() -> None:
    outputs = [cut_marked(text) for group in GROUPS for text in group.texts]
    assert all(group.passed == group.of for group in judge_outputs(outputs))


def test_a_swear_word_is_found_in_each_spelling() -> None:
    text = "what the [f*ck|fuck] is this"
    assert is_clean(text, "what is this")
    for word in ("F*CK", "fuck", "f u c k", "fück", "hell", "sh1t"):
        assert not is_clean(text, f"what the {word} is this"), word
    assert not is_clean("the whole plan is [bullsh*t|bullshit]", "the whole plan is shit")


def test_part_of_another_word_is_no_swear_word() -> None:
    assert is_clean("say [hell]", "say hello")
    assert is_clean("say [hell]", "say he ll")


@pytest.mark.parametrize(
    ("text", "rewrite"),
    [
        (
            "he is a complete [1d1ot|idiot] when it comes to computers",
            "He is not good when it comes to computers.",
        ),
        ("WHO THE [HELL] ASKED YOU", "Who asked you?"),
        ("go to [hell] with your new rules 👿", "Go away with your new rules 👿"),
    ],
)
def test_a_rewrite_in_other_words_keeps_the_rule_and_another_sentence_does_not(
    text: str, rewrite: str
) -> None:
    assert is_clean(text, rewrite)
    assert not is_clean(text, "This is not a good thing to say.")


def test_an_answer_to_a_very_long_text_may_stop_but_not_loop() -> None:
    (texts,) = [group.texts for group in GROUPS if group.name == "very long"]
    for text in texts:
        for length in (BEGINNING, 120, 400):
            assert is_clean_beginning(text, cut_marked(text)[:length])
            assert not is_clean_beginning(text, plain(text)[:length])
            assert not is_clean_beginning(text, cut_marked(text)[-length:])
        assert not is_clean_beginning(text, " ".join([cut_marked(text)[:40]] * 3))


def test_each_case_is_told() -> None:
    outputs = [f"output {number}" for number in range(len(list_texts()))]
    cases = [case for group in judge_outputs(outputs) for case in group.cases]
    assert [case.text for case in cases] == list_texts()
    assert [case.output for case in cases] == outputs
