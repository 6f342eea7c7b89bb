"""What counts as an answer: a table of texts that models write, and what each of them states."""

import time

import pytest

from sft.common.prompts import ANSWER_FORMATS, answer_text
from sft.inference.parsing import parse_answer

STAINS = ["Congo red", "Prussian blue", "Oil Red O", "Giemsa"]
IRON = ["Iron", "Iron oxide", "Zinc", "Calcium"]
PANELS = ["B", "A", "D", "C"]
VITAMINS = ["Vitamin A", "Vitamin D", "Vitamin C", "None of the above"]
CELLS = ["B cell lymphoma", "A blood clot", "T cell lymphoma", "C-reactive protein"]
COUNTS = ["2", "4", "12", "24"]
THREE = ["Cornea", "Retina", "Lens"]
TWO = ["Yes, there is", "There is none"]
FIVE = [*STAINS, "Masson trichrome"]
TEN = [*FIVE, "Alcian blue", "Sudan black", "Von Kossa", "Gram", "Ziehl-Neelsen"]

SIGNS, ARROWS = ["CD34+", "CD34-", "CD19+", "CD19-"], ["↑ TSH", "↓ TSH", "↑ T4", "↓ T4"]
GENERA = [
    "Proteus",
    "Escherichia coli",
    "Clostridioides difficile",
    "Klebsiella",
    "Shigella",
    "Vibrio",
    "Giardia",
    "Yersinia",
]
SPECIES = ["C. difficile", "E. coli", "H. pylori", "S. aureus"]

NOTHING, CUT = "unparsed", "truncated"


def states(expected, *texts, of=STAINS):
    """Rows of the table: texts, the options, and the index of the option that they state, or why they state none."""
    return [(text, of, expected) for text in texts]


TABLE = [
    # As the answer formats train it.
    *states(1, "B", "B. Prussian blue", "Prussian blue"),
    *states(3, "D. Giemsa"),
    *states(0, "A"),
    # Marks around the letter.
    *states(1, "(B)", "(b)", "b)", "b", "B)", "B: Prussian blue", "B - Prussian blue", "B Prussian blue", '"B"', "B."),
    *states(0, "a"),
    *states(2, "[C]"),
    # Markdown and LaTeX.
    *states(1, "**B**", "**B. Prussian blue**", "**Answer:** B", "### Answer\n\n**B**", "\\boxed{B}"),
    *states(1, "$\\boxed{\\text{B}}$", "The iron is stained, so \\boxed{B. Prussian blue}.", "\\boxed{Prussian blue}"),
    *states(2, "`C`", "A or B? \\boxed{C}"),
    *states(NOTHING, "\\boxed{B} or \\boxed{C}"),
    # Declared in a sentence.
    *states(1, "The answer is B.", "Answer: B", "answer: b", "The correct choice would be option B."),
    *states(1, "The answer is: B. Prussian blue", "The answer to the question is Prussian blue."),
    *states(1, "B is correct, since iron turns blue.", "A is wrong. B is the right answer.", "I think it is B."),
    *states(1, "It's (B).", "Option B."),
    *states(1, "Congo red shows amyloid and Giemsa shows parasites.\nTherefore the answer is B."),
    *states(1, "The answer could be A. Let me check. Final answer: B", "B. Prussian blue\n\nIt shows iron in tissue."),
    *states(1, "B, because iron turns blue.", "It must be B.", "Ans: B", "The answer is ‘B’."),
    *states(1, "The image is most consistent with option B.", "Prussian Blue (Option B)"),
    *states(1, "Looking at them: A. Congo red is for amyloid\nB. Prussian blue is for iron\n\nAnswer: B"),
    *states(2, "The answer is (c)."),
    *states(3, "The correct answer is **D**.", "So the answer must be Giemsa."),
    *states(0, "The correct option is A because amyloid is red."),
    # An option called right, in any case of letters.
    *states(2, "**Option C is correct.**", "Choice C is the best answer.", "Answer C is correct.", "C IS CORRECT"),
    *states(2, "option c is correct.", "OPTION C IS CORRECT.", "Choice (c) is correct!", "**Option C:** is right"),
    *states(
        2, "Alternative C is correct.", "Only C is correct.", "Option C is the only correct answer.", "(C) is best."
    ),
    *states(2, "Option C was correct", "Option C would be the best choice.", "Option C seems to be the right option."),
    *states(
        2, "Option C is the most likely diagnosis.", "Option C is most likely.", "Option C remains the best answer."
    ),
    *states(
        2, "Option C is probably correct.", "C is the answer.", "Option C is my answer.", "Answer choice C is correct."
    ),
    *states(
        2, "Option C best describes the stain.", "Option C is correct because fat is red.", "Response C is correct."
    ),
    *states(2, "Option C (Oil Red O) is correct.", "Option C: Oil Red O is the best answer.", "OIL RED O IS CORRECT."),
    *states(2, "Final answer: Option C is correct.", "Answer: **Choice C is the best answer.**", "Alternative C."),
    *states(2, "Option A is wrong. Option B is wrong. Option C is correct.", "Option C is correct, not option B."),
    *states(2, '{"choice": "C"}', "So, Option C is right.", "Response C is correct.", "Answer choice C is correct."),
    *states(NOTHING, "Option C is not correct.", "OPTION C IS INCORRECT.", "Option C isn't the best answer."),
    *states(NOTHING, "Option C is correct only if iron is red.", "Option C is only correct if iron is red."),
    *states(NOTHING, "Option C would be the best answer if iron were red.", "Option C is correct, but only if red."),
    *states(NOTHING, "Option C may be correct.", "Option C is partly correct.", "Option C is hardly the best answer."),
    *states(NOTHING, "Is Option C correct?", "Option C is correct?", "If Option C is correct, iron is red."),
    *states(NOTHING, "I don't think Option C is correct.", "Neither Choice B nor Choice C is correct."),
    *states(NOTHING, "Option B is correct. Option C is correct.", "Choice B is best. Answer C is correct."),
    *states(NOTHING, "Options B and C are correct.", "Either Choice B or Choice C is the best answer."),
    *states(NOTHING, "Option C is most likely wrong.", "Option C is the least likely.", "Option C is best avoided."),
    *states(NOTHING, "Option B (Oil Red O) is correct.", "Option E is correct.", "Option C is best known for fat."),
    # Negation.
    *states(NOTHING, "A is incorrect because amyloid is red. So B.", "A? No. B? Yes.", "A is wrong.", "Not option B."),
    *states(NOTHING, "The answer is not B.", "It is not Congo red.", "Giemsa is wrong."),
    *states(2, "The answer is not B but C.", "The answer isn't B, it's C."),
    *states(1, "The answer is B, not C.", "Not Congo red but Prussian blue."),
    *states(1, "Congo red is not right here; Prussian blue shows iron."),
    # The text of an option without its letter.
    *states(1, "prussian BLUE.", "The stain is Prussian blue."),
    *states(3, "This is a Giemsa stain."),
    *states(NOTHING, "Prussian blue or Congo red"),
    *states(1, "Iron oxide", "The deposit is iron oxide.", "The answer is iron oxide.", of=IRON),
    *states(0, "Iron", "The deposit is iron, not iron oxide.", of=IRON),
    *states(2, "12", "There are 12.", of=COUNTS),
    *states(NOTHING, "There are 2 or 4.", of=COUNTS),
    # Letters that are no answer.
    *states(NOTHING, "Answer", "A stain for iron.", "A B cell was seen.", "E", "The answer is E.", "Diagnosis"),
    *states(1, "A blood clot", "The answer is a blood clot.", "The answer is A blood clot.", of=CELLS),
    *states(0, "B cell lymphoma", "The answer is B cell lymphoma.", of=CELLS),
    *states(3, "C-reactive protein", of=CELLS),
    *states(1, "Vitamin D", "The answer is Vitamin D.", of=VITAMINS),
    *states(NOTHING, "D", of=THREE),
    *states(NOTHING, "B", of=PANELS),
    *states(1, "B. A", of=PANELS),
    # Several letters.
    *states(NOTHING, "A, B, C, or D", "A and B", "A: B", "Option A or option B", "The answer is B or C."),
    *states(NOTHING, "Either A or B.", "A. Congo red\nB. Prussian blue\nC. Oil Red O\nD. Giemsa"),
    *states(NOTHING, "The answer is A. The answer is B.", "ABCD"),
    # A letter with another option's text.
    *states(NOTHING, "A. Prussian blue", "The answer is C. Congo red"),
    # No answer at all.
    *states(NOTHING, "", "None of the above", "All of the above", "I cannot tell without the image.", "Prusian blu"),
    *states(NOTHING, "Answer the question with the letter of the correct option."),
    *states(3, "None of the above", of=VITAMINS),
    # Rejected, doubted or conditional: not stated.
    *states(NOTHING, "A. Congo red is incorrect because it stains amyloid.", "A and B are wrong"),
    *states(NOTHING, "The wrong answer is A.", "The least likely answer is A.", "I don't think the answer is A."),
    *states(NOTHING, "I don't think it is Congo red.", "It cannot be Congo red.", "Congo red can be excluded."),
    *states(NOTHING, "Congo red is less likely.", "If A is correct then iron is red.", "Neither A nor C is correct."),
    *states(NOTHING, "What is Congo red?"),
    *states(0, "The image is most consistent with Congo red, not Giemsa."),
    # Two named, none credited.
    *states(NOTHING, "B or maybe D", "The answer is B as well as D.", "The answer is B, and also D."),
    *states(NOTHING, "B. Prussian blue and D. Giemsa", "Option A and option B is correct"),
    *states(NOTHING, "The answer is A, no wait, B.", "Prussian blue (A)"),
    *states(NOTHING, "B\n\nQuestion: which stain?\nA. x\nAnswer: C"),
    # Letters and numbers inside other things.
    *states(0, "Vitamin A is correct.", of=VITAMINS),
    *states(NOTHING, "A is the best known amyloid stain", "C is right next to the liver"),
    *states(1, "The answer is: C. difficile", of=["E. coli", "C. difficile", "S. aureus", "B. subtilis"]),
    *states(NOTHING, "The answer is A", of=PANELS),
    *states(NOTHING, "Answer: (a)", of=["(b)", "(a)", "(c)", "(d)"]),
    *states(NOTHING, "It measures 0.5 cm", of=["1.5 cm", "15 cm", "1 cm", "5 cm"]),
    *states(NOTHING, "The answer is 4.5", "4-5", of=COUNTS),
    *states(0, "p < 0.05", of=["<0.05", ">0.05", "0.05", "0.5"]),
    *states(NOTHING, "There is no answer.", of=["Yes", "No", "Maybe", "Never"]),
    *states(1, "No, it is not.", of=["Yes", "No", "Maybe", "Never"]),
    # Explained.
    *states(1, "B. Prussian blue\n\nExplanation:\nA. Congo red shows amyloid.\nC. Oil Red O shows fat."),
    *states(1, "The correct answer is B.\n\nOption A: Congo red shows amyloid."),
    *states(1, "My first choice was A. The correct answer is B.", "The correct answer is:\nB"),
    *states(1, "The answer is Prussian blue because Congo red is for amyloid."),
    *states(1, "Prussian blue is the correct answer. Congo red is for amyloid.", "The answer is clearly B."),
    *states(1, "<answer>B</answer>", '{"answer": "B"}', "B<|im_end|>", "Answer：（B）"),
    *states(2, "It is an X ray.", of=["CT", "MRI", "X-ray", "Ultrasound"]),
    # Thinking.
    *states(1, "<think>\nIt could be A.\n</think>\n\nB. Prussian blue", "<think>\n</think>\n\nB"),
    *states(1, "<think>one</think> A <think>two</think> B"),
    *states(2, "It could be A.\n</think>\n\nC"),
    *states(NOTHING, "<think>The answer is A.</think>", "A</think>B</think>"),
    *states(CUT, "<think>\nThe answer is B, but wait", "<think>"),
    # Thinking in other tags.
    *states(1, "<thinking>It is A.</thinking>B", "<reasoning>\nIt is A.\n</reasoning>\n\nB", "[THINK]A[/THINK]B"),
    *states(1, "<|channel|>analysis<|message|>A<|end|><|start|>assistant<|channel|>final<|message|>B"),
    *states(1, "<|channel|>analysis It is A.<|channel|>final: B"),
    *states(1, "<answer>B</answer>\n<reasoning>The answer is not A.</reasoning>"),
    *states(NOTHING, "<thinking>It is A.</thinking>", "[THINK]It is A.[/THINK]", "<reasoning>A</reasoning>"),
    *states(CUT, "<thinking>The answer is A.", "[THINK]The answer is A.", "<|channel|>analysis<|message|>It is A."),
    # A denial in another clause than the statement.
    *states(1, "Although I cannot see the image, the best choice is B.", "It is not amyloid, so B is correct."),
    *states(1, "A, C and D are incorrect, so the answer is B.", "Since it is not amyloid, the answer is B."),
    *states(1, "Because A doesn't stain iron, B is correct.", "Since it's not A, C or D, the answer is B."),
    *states(1, "There's no doubt that the answer is B.", "Without a doubt, the answer is B."),
    *states(1, "If I'm not mistaken, the answer is B.", "Unless I am mistaken, the answer is B."),
    *states(1, "Although I cannot see the image, Prussian blue is most likely."),
    *states(1, "Because Congo red does not stain iron, Prussian blue is correct."),
    *states(NOTHING, "B is not the answer", "I doubt that the answer is B", "I cannot say that the answer is B."),
    *states(
        NOTHING, "Since it is not amyloid, I don't think, however, the answer is B.", "I doubt, frankly, B is correct."
    ),
    *states(NOTHING, "Although it is blue, I don't think, as you do, the answer is B."),
    *states(NOTHING, "It is not true, therefore, that the answer is B.", "I can't say, so far, that the answer is B."),
    *states(NOTHING, "If it is not amyloid, B is correct.", "If I am mistaken, the answer is B."),
    # Other words for it.
    *states(
        1, "I would go with B.", "We choose B.", "That would be B.", "Correct answer - B", "Answer- B", "Answer – B"
    ),
    *states(1, "The correct letter is B", "The best fit is B.", "Incorrect: A. Correct: B.", "\ufeffB", "\\fbox{B}"),
    *states(1, '{"final_answer": "B"}', '{"answer_letter": "B"}', '{"reason": "iron", "correct_answer": "B"}'),
    *states(NOTHING, "I would not go with B.", "Incorrect: A.", '{"wrong_answer": "B"}', "Answer - B or C"),
    # Two called right.
    *states(NOTHING, "A is correct. B is also correct.", "B is correct. So is C.", "B is correct, as is C."),
    *states(NOTHING, "Option B is correct, and so is option C.", "B is correct. C is correct too."),
    *states(NOTHING, "B is correct, but so is C.", "B is correct, C is correct."),
    *states(1, "A is wrong. So is C. B is correct.", "B is correct. A is wrong, and so is C."),
    # Called wrong behind it.
    *states(NOTHING, "The answer is A, which is incorrect.", "The answer is Congo red, which is wrong."),
    *states(NOTHING, "The second best answer is B.", "The second-best choice is B.", "The next best match is C."),
    *states(NOTHING, "The worst answer is A.", "A - No\nB - Yes\nC - No\nD - No"),
    *states(
        1, "$\\boxed{A}$ is wrong; the answer is B", "\\boxed{B}\n\nIncorrect options: A, C", "\\boxed{B}. Wrong: A"
    ),
    *states(1, "The answer is Prussian blue, which is not used for amyloid.", "The answer is B, which is not red."),
    # The letters are those of the question.
    *states(
        1, "B", "B. There is none", "The answer is (b).", "Option B is correct.", "A is wrong. B is right.", of=TWO
    ),
    *states(NOTHING, "C", "The answer is D.", "A or B", "\\boxed{E}", of=TWO),
    *states(
        4,
        "E",
        "e)",
        "**E.** Masson trichrome",
        "The answer is E.",
        "Option E is correct.",
        "The answer is not D but E.",
        of=FIVE,
    ),
    *states(4, "\\boxed{E}", "A, B, C and D are wrong. E is correct.", "Correct: E", "It must be E.", of=FIVE),
    *states(NOTHING, "F", "The answer is F.", "D or E", "The answer is E or A.", "E is wrong.", "E. Giemsa", of=FIVE),
    *states(3, "I'd say D", "D, and I am sure", "I, as a student, choose option D.", of=FIVE),
    *states(9, "J", "(j)", "J. Ziehl-Neelsen", "The answer is J.", "Final answer: J", "J is the best answer.", of=TEN),
    *states(7, "Option H is correct.", "It is H.", "I think it is H.", "I am certain that the answer is H.", of=TEN),
    *states(NOTHING, "H or J", "Options G and J are correct.", "K", "The answer is not J.", "E and I", of=TEN),
    # The letter I, and the pronoun.
    *states(8, "I", "I.", "(I)", "i)", "I. Gram", "I: Gram", "I Gram", "**I**", "\\boxed{I}", "Option I.", of=TEN),
    *states(8, "The answer is I.", "I is correct.", "So I is the best answer.", "Answer: I", "I, since it is", of=TEN),
    *states(
        8, "I, not J", "I because of the wall", "I think that I is correct.", "I think it is I.", "So, I.", of=TEN
    ),
    *states(1, "I think B", "I believe the answer is B.", "I'd go with B.", "I am sure: the answer is B.", of=TEN),
    *states(
        1, "I, as a student, choose option B.", "I also think that B is correct.", "B, and I am sure of it.", of=TEN
    ),
    *states(
        1, "B. I chose it because iron is blue.", "The answer is B, I think.", "I... think that B is correct.", of=TEN
    ),
    *states(1, "I for one say the answer is B.", "I and my colleagues say: the answer is B.", of=TEN),
    *states(NOTHING, "I don't know.", "I cannot say.", "I see.", "I, as a student, don't know.", "I think so", of=TEN),
    *states(
        NOTHING, "I or J", "I and J", "B or I", "B/I", "The answer is B and I.", "A is best, and so is I.", of=TEN
    ),
    *states(NOTHING, "I'm not sure", "As far as I know", "Type I collagen", "I was right", "So do I.", of=TEN),
    # Signs tell options apart, words for them do not.
    *states(0, "CD34+", "The answer is CD34+.", of=SIGNS),
    *states(1, "CD34-", "The answer is CD34-.", of=SIGNS),
    *states(NOTHING, "CD34 positive", "CD34", of=SIGNS),
    *states(NOTHING, "The TSH is low", of=ARROWS),
    *states(1, "The answer is ↓ TSH", of=ARROWS),
    # A species is no letter, unless it is an option.
    *states(NOTHING, "E. coli", "H. pylori", "The answer is C. difficile.", of=GENERA),
    *states(2, "C. Clostridioides difficile", "C. clostridioides", of=GENERA),
    *states(1, "E. coli", "The most likely organism is E. coli.", of=SPECIES),
    *states(NOTHING, "E. coli is wrong.", "E. coli or C. difficile", of=SPECIES),
    # Abbreviations at the start are no letters.
    *states(NOTHING, "i.e. none of them", "e.g. iron", "I.V. contrast", "G.I. bleed", of=TEN),
    # "Each option:" declares nothing.
    *states(1, "Let's evaluate each option:\nA. Congo red - no.\nB. yes.\n\nThe correct answer is B."),
    *states(NOTHING, "Let's evaluate each option:\nA. Congo red - it stains amyloid.\nB. Prussian blue - iron."),
]


CLAUSES = [
    "although it is not A, ",
    "so - ",
    "\\boxed{A} is ",
    "B is correct, as is ",
    "<|channel|>analysis ",
    "x <reasoning>",
]


@pytest.mark.parametrize(("text", "choices", "expected"), TABLE, ids=[repr(row[0][:40]) for row in TABLE])
def test_answers(text, choices, expected):
    parsed = parse_answer(text, choices)
    assert parsed == ((expected, "answered") if isinstance(expected, int) else (None, expected))


def test_at_the_token_limit_no_answer_counts():
    assert parse_answer("B. Prussian blue", STAINS, hit_limit=True) == (None, "truncated")


def test_every_answer_of_training_is_read_back():
    greek, letters = ["α", "β", "γ", "δ"], ["D", "E", "F", "G"]
    for choices in (STAINS, IRON, VITAMINS, CELLS, COUNTS, greek, TWO, THREE, FIVE, TEN):
        for answer_format in ANSWER_FORMATS:
            for index in range(len(choices)):
                assert parse_answer(answer_text(choices, index, answer_format), choices).index == index
    # "D" could be the option at that letter; the others cannot.
    assert [parse_answer(letter, letters).index for letter in letters] == [None, 1, 2, 3]


def test_long_rambling_is_read_in_time_that_grows_with_its_length():
    for text in (
        "A, ",
        "Congo red and option B. ",
        "the answer is ",
        "x is correct ",
        "Option C is also the ",
        *CLAUSES,
    ):
        start = time.perf_counter()
        parse_answer(text * (60_000 // len(text)), STAINS)
        assert time.perf_counter() - start < 5
