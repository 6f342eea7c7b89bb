"""What counts as an answer: a table of texts that models write, and what each of them states."""

import pytest

from sft.inference.parsing import parse_answer

STAINS = ["Congo red", "Prussian blue", "Oil Red O", "Giemsa"]
IRON = ["Iron", "Iron oxide", "Zinc", "Calcium"]
PANELS = ["B", "A", "D", "C"]
VITAMINS = ["Vitamin A", "Vitamin D", "Vitamin C", "None of the above"]
CELLS = ["B cell lymphoma", "A blood clot", "T cell lymphoma", "C-reactive protein"]
COUNTS = ["2", "4", "12", "24"]
THREE = ["Cornea", "Retina", "Lens"]

NOTHING, CUT = "unparsed", "truncated"

# (text, options, index of the option that it states, or why it states none)
TABLE = [
    # As the answer formats train it.
    ("B", STAINS, 1),
    ("B. Prussian blue", STAINS, 1),
    ("Prussian blue", STAINS, 1),
    ("D. Giemsa", STAINS, 3),
    ("A", STAINS, 0),
    # Marks around the letter.
    ("(B)", STAINS, 1),
    ("(b)", STAINS, 1),
    ("b)", STAINS, 1),
    ("b", STAINS, 1),
    ("a", STAINS, 0),
    ("B)", STAINS, 1),
    ("[C]", STAINS, 2),
    ("B: Prussian blue", STAINS, 1),
    ("B - Prussian blue", STAINS, 1),
    ("B Prussian blue", STAINS, 1),
    ('"B"', STAINS, 1),
    ("B.", STAINS, 1),
    # Markdown and LaTeX.
    ("**B**", STAINS, 1),
    ("**B. Prussian blue**", STAINS, 1),
    ("**Answer:** B", STAINS, 1),
    ("### Answer\n\n**B**", STAINS, 1),
    ("`C`", STAINS, 2),
    ("\\boxed{B}", STAINS, 1),
    ("$\\boxed{\\text{B}}$", STAINS, 1),
    ("The iron is stained, so \\boxed{B. Prussian blue}.", STAINS, 1),
    ("\\boxed{Prussian blue}", STAINS, 1),
    ("A or B? \\boxed{C}", STAINS, 2),
    ("\\boxed{B} or \\boxed{C}", STAINS, NOTHING),
    # Declared in a sentence.
    ("The answer is B.", STAINS, 1),
    ("The answer is (c).", STAINS, 2),
    ("The correct answer is **D**.", STAINS, 3),
    ("Answer: B", STAINS, 1),
    ("answer: b", STAINS, 1),
    ("The correct option is A because amyloid is red.", STAINS, 0),
    ("The correct choice would be option B.", STAINS, 1),
    ("The answer is: B. Prussian blue", STAINS, 1),
    ("The answer to the question is Prussian blue.", STAINS, 1),
    ("So the answer must be Giemsa.", STAINS, 3),
    ("B is correct, since iron turns blue.", STAINS, 1),
    ("A is wrong. B is the right answer.", STAINS, 1),
    ("I think it is B.", STAINS, 1),
    ("It's (B).", STAINS, 1),
    ("Option B.", STAINS, 1),
    ("Congo red shows amyloid and Giemsa shows parasites.\nTherefore the answer is B.", STAINS, 1),
    ("The answer could be A. Let me check. Final answer: B", STAINS, 1),
    ("B. Prussian blue\n\nIt shows iron in tissue.", STAINS, 1),
    ("B, because iron turns blue.", STAINS, 1),
    ("It must be B.", STAINS, 1),
    ("Ans: B", STAINS, 1),
    ("The answer is ‘B’.", STAINS, 1),
    ("The image is most consistent with option B.", STAINS, 1),
    ("Prussian Blue (Option B)", STAINS, 1),
    ("Looking at them: A. Congo red is for amyloid\nB. Prussian blue is for iron\n\nAnswer: B", STAINS, 1),
    # Negation.
    ("A is incorrect because amyloid is red. So B.", STAINS, NOTHING),
    ("A? No. B? Yes.", STAINS, NOTHING),
    ("A is wrong.", STAINS, NOTHING),
    ("Not option B.", STAINS, NOTHING),
    ("The answer is not B but C.", STAINS, 2),
    ("The answer is not B.", STAINS, NOTHING),
    ("The answer isn't B, it's C.", STAINS, 2),
    ("The answer is B, not C.", STAINS, 1),
    ("It is not Congo red.", STAINS, NOTHING),
    ("Not Congo red but Prussian blue.", STAINS, 1),
    ("Congo red is not right here; Prussian blue shows iron.", STAINS, 1),
    ("Giemsa is wrong.", STAINS, NOTHING),
    # The text of an option without its letter.
    ("prussian BLUE.", STAINS, 1),
    ("The stain is Prussian blue.", STAINS, 1),
    ("This is a Giemsa stain.", STAINS, 3),
    ("Prussian blue or Congo red", STAINS, NOTHING),
    ("Iron oxide", IRON, 1),
    ("Iron", IRON, 0),
    ("The deposit is iron oxide.", IRON, 1),
    ("The deposit is iron, not iron oxide.", IRON, 0),
    ("The answer is iron oxide.", IRON, 1),
    ("12", COUNTS, 2),
    ("There are 12.", COUNTS, 2),
    ("There are 2 or 4.", COUNTS, NOTHING),
    # Letters that are no answer.
    ("Answer", STAINS, NOTHING),
    ("A stain for iron.", STAINS, NOTHING),
    ("A B cell was seen.", STAINS, NOTHING),
    ("A blood clot", CELLS, 1),
    ("The answer is a blood clot.", CELLS, 1),
    ("The answer is A blood clot.", CELLS, 1),
    ("B cell lymphoma", CELLS, 0),
    ("The answer is B cell lymphoma.", CELLS, 0),
    ("C-reactive protein", CELLS, 3),
    ("Vitamin D", VITAMINS, 1),
    ("The answer is Vitamin D.", VITAMINS, 1),
    ("E", STAINS, NOTHING),
    ("The answer is E.", STAINS, NOTHING),
    ("D", THREE, NOTHING),
    ("B", PANELS, NOTHING),
    ("B. A", PANELS, 1),
    ("Diagnosis", STAINS, NOTHING),
    # Several letters.
    ("A, B, C, or D", STAINS, NOTHING),
    ("A and B", STAINS, NOTHING),
    ("A: B", STAINS, NOTHING),
    ("Option A or option B", STAINS, NOTHING),
    ("The answer is B or C.", STAINS, NOTHING),
    ("Either A or B.", STAINS, NOTHING),
    ("A. Congo red\nB. Prussian blue\nC. Oil Red O\nD. Giemsa", STAINS, NOTHING),
    ("The answer is A. The answer is B.", STAINS, NOTHING),
    ("ABCD", STAINS, NOTHING),
    # A letter with another option's text.
    ("A. Prussian blue", STAINS, NOTHING),
    ("The answer is C. Congo red", STAINS, NOTHING),
    # No answer at all.
    ("", STAINS, NOTHING),
    ("None of the above", STAINS, NOTHING),
    ("None of the above", VITAMINS, 3),
    ("All of the above", STAINS, NOTHING),
    ("I cannot tell without the image.", STAINS, NOTHING),
    ("Prusian blu", STAINS, NOTHING),
    ("Answer the question with the letter of the correct option.", STAINS, NOTHING),
    # Rejected, doubted or conditional: not stated.
    ("A. Congo red is incorrect because it stains amyloid.", STAINS, NOTHING),
    ("A and B are wrong", STAINS, NOTHING),
    ("The wrong answer is A.", STAINS, NOTHING),
    ("The least likely answer is A.", STAINS, NOTHING),
    ("I don't think the answer is A.", STAINS, NOTHING),
    ("I don't think it is Congo red.", STAINS, NOTHING),
    ("It cannot be Congo red.", STAINS, NOTHING),
    ("Congo red can be excluded.", STAINS, NOTHING),
    ("Congo red is less likely.", STAINS, NOTHING),
    ("If A is correct then iron is red.", STAINS, NOTHING),
    ("Neither A nor C is correct.", STAINS, NOTHING),
    ("What is Congo red?", STAINS, NOTHING),
    ("The image is most consistent with Congo red, not Giemsa.", STAINS, 0),
    # Two named, none credited.
    ("B or maybe D", STAINS, NOTHING),
    ("The answer is B as well as D.", STAINS, NOTHING),
    ("The answer is B, and also D.", STAINS, NOTHING),
    ("B. Prussian blue and D. Giemsa", STAINS, NOTHING),
    ("Option A and option B is correct", STAINS, NOTHING),
    ("The answer is A, no wait, B.", STAINS, NOTHING),
    ("Prussian blue (A)", STAINS, NOTHING),
    ("B\n\nQuestion: which stain?\nA. x\nAnswer: C", STAINS, NOTHING),
    # Letters and numbers inside other things.
    ("Vitamin A is correct.", VITAMINS, 0),
    ("A is the best known amyloid stain", STAINS, NOTHING),
    ("C is right next to the liver", STAINS, NOTHING),
    ("The answer is: C. difficile", ["E. coli", "C. difficile", "S. aureus", "B. subtilis"], 1),
    ("The answer is A", PANELS, NOTHING),
    ("Answer: (a)", ["(b)", "(a)", "(c)", "(d)"], NOTHING),
    ("It measures 0.5 cm", ["1.5 cm", "15 cm", "1 cm", "5 cm"], NOTHING),
    ("The answer is 4.5", COUNTS, NOTHING),
    ("4-5", COUNTS, NOTHING),
    ("p < 0.05", ["<0.05", ">0.05", "0.05", "0.5"], 0),
    ("There is no answer.", ["Yes", "No", "Maybe", "Never"], NOTHING),
    ("No, it is not.", ["Yes", "No", "Maybe", "Never"], 1),
    # Explained.
    ("B. Prussian blue\n\nExplanation:\nA. Congo red shows amyloid.\nC. Oil Red O shows fat.", STAINS, 1),
    ("The correct answer is B.\n\nOption A: Congo red shows amyloid.", STAINS, 1),
    ("My first choice was A. The correct answer is B.", STAINS, 1),
    ("The correct answer is:\nB", STAINS, 1),
    ("The answer is Prussian blue because Congo red is for amyloid.", STAINS, 1),
    ("Prussian blue is the correct answer. Congo red is for amyloid.", STAINS, 1),
    ("The answer is clearly B.", STAINS, 1),
    ("<answer>B</answer>", STAINS, 1),
    ('{"answer": "B"}', STAINS, 1),
    ("B<|im_end|>", STAINS, 1),
    ("Answer：（B）", STAINS, 1),
    ("It is an X ray.", ["CT", "MRI", "X-ray", "Ultrasound"], 2),
    # Thinking.
    ("<think>\nIt could be A.\n</think>\n\nB. Prussian blue", STAINS, 1),
    ("<think>\n</think>\n\nB", STAINS, 1),
    ("It could be A.\n</think>\n\nC", STAINS, 2),
    ("<think>The answer is A.</think>", STAINS, NOTHING),
    ("<think>one</think> A <think>two</think> B", STAINS, 1),
    ("<think>\nThe answer is B, but wait", STAINS, CUT),
    ("<think>", STAINS, CUT),
    ("A</think>B</think>", STAINS, NOTHING),
]


@pytest.mark.parametrize(("text", "choices", "expected"), TABLE, ids=[repr(row[0][:40]) for row in TABLE])
def test_answers(text, choices, expected):
    parsed = parse_answer(text, choices)
    assert parsed == ((expected, "answered") if isinstance(expected, int) else (None, expected))


def test_at_the_token_limit_no_answer_counts():
    assert parse_answer("B. Prussian blue", STAINS, hit_limit=True) == (None, "truncated")


def test_every_answer_of_training_is_read_back():
    from sft.common.prompts import ANSWER_FORMATS, answer_text

    greek, letters = ["α", "β", "γ", "δ"], ["D", "E", "F", "G"]
    for choices in (STAINS, IRON, VITAMINS, CELLS, COUNTS, greek):
        for answer_format in ANSWER_FORMATS:
            for index in range(len(choices)):
                assert parse_answer(answer_text(choices, index, answer_format), choices).index == index
    # "D" could be the option at that letter; the others cannot.
    assert [parse_answer(letter, letters).index for letter in letters] == [None, 1, 2, 3]


def test_long_rambling_is_read_in_time_that_grows_with_its_length():
    import time

    for text in ("A, ", "Congo red and option B. ", "the answer is ", "x is correct "):
        start = time.perf_counter()
        parse_answer(text * (60_000 // len(text)), STAINS)
        assert time.perf_counter() - start < 5
