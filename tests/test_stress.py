"""The stress cases: what counts as kept and what does not."""

from eval.stress import GROUPS, is_clean, judge_outputs, list_texts, plain


def test_marks_are_not_in_what_the_model_gets() -> None:
    texts = list_texts()
    assert not any(mark in text for text in texts for mark in "[]|")
    assert plain("a [sh1t|shit] day") == "a sh1t day"
    assert len(texts) == len(set(texts)) == sum(len(group.texts) for group in GROUPS)


def test_copying_keeps_clean_text_and_no_other_rule() -> None:
    judged = {group["group"]: (group["passed"], group["of"]) for group in judge_outputs(list_texts())}
    for name in ("disguised swearing", "shouting", "emoji", "very long"):
        assert judged[name][0] == 0, name
    for name in ("clean sentences", "instructions", "our own prompt"):
        assert judged[name][0] == judged[name][1], name
    assert judged["nothing"] == (1, 3)


def test_saying_nothing_keeps_no_rule_but_that_of_nothing() -> None:
    judged = judge_outputs([""] * len(list_texts()))
    assert {group["group"] for group in judged if group["passed"]} == {"nothing"}


def test_a_marked_word_is_found_in_each_spelling() -> None:
    text = "what the [f*ck|fuck] is this"
    assert is_clean(text, "what is this")
    for output in ("", "what the F*CK is this", "what the fuck is this", "what the f u c k"):
        assert not is_clean(text, output)


def test_each_case_is_told() -> None:
    outputs = [f"output {number}" for number in range(len(list_texts()))]
    cases = [case for group in judge_outputs(outputs) for case in group["cases"]]
    assert [case["text"] for case in cases] == list_texts()
    assert [case["output"] for case in cases] == outputs
