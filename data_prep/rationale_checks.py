"""Whether a model's thinking is fit to be trained on: the reasons for which a sample is left out.

A sample that states the right option can still teach what it should not: to claim a figure that nobody showed, to
lean on an answer that was given, to name options by letters that the question does not have, to change the language.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from data_prep.questions import THINK_TAGS
from sft.common.prompts import LETTERS, clean_text


def _any_of(*patterns: str) -> re.Pattern[str]:
    """One pattern that finds complete words of any of these; ``THE FIGURE`` stands for a figure and its article."""
    figure = r"(?:the|this|that|these|given|provided|attached) (?:\w+ ){0,2}?"
    figure += r"(?:figure|image|picture|photo(?:graph|micrograph)?|micrograph|scan|panel|plot|diagram)s?"
    return re.compile(rf"(?i)\b(?:{'|'.join(patterns)})\b".replace("THE FIGURE", figure))


# What a figure is said to show. A sentence with one of `_HEDGE` says that it is not seen, or what it would show.
_SEES = _any_of(
    r"THE FIGURE (?:\w+ )?(?:shows?|depicts?|reveals?|displays?|demonstrates?|illustrates?|indicates?|presents?)",
    r"THE FIGURE (?:\w+ )?(?:appears?|looks?|contains?)",
    r"(?:look|looking) at THE FIGURE",
    r"(?:seen|shown|visible|depicted|observed|apparent|present|marked|labell?ed) (?:in|on|by) THE FIGURE",
    r"(?:i|we) (?:can )?(?:clearly )?(?:see|observe|notice)\b[^.;\n]{0,80}?\b(?:in|on) THE FIGURE",
    r"(?:in|from) THE FIGURE,? (?:i|we|one|there|the)",
)
_HEDGE = _any_of(
    r"(?:can ?not|can['’]t|could not|couldn['’]t|do(?:es)? not|do(?:es)?n['’]t|unable to) (?:\w+ )?"
    r"(?:see|view|access|have|know|look|tell)",
    r"without (?:seeing|access|THE FIGURE|the|an?|any)|no (?:figure|image|picture|access)",
    r"not (?:able|shown|given|provided|included|available)|missing|if|would|could|might|may|were",
)
# What refers to an answer that the model was given.
_TOLD = _any_of(
    r"answer key|ground[- ]truth|gold (?:answer|label)|reference (?:answer|solution)",
    r"(?:given|stated|provided|indicated|marked|labell?ed|listed|told)(?: to me)? as the (?:correct|right|answer)",
    r"(?:given|stated|provided|indicated|marked|listed) (?:by|in) the (?:answer|label|solution)",
    r"(?:correct|right) (?:answer|option|choice) (?:is|was|has been) (?:already )?(?:given|provided|marked|stated)",
    r"(?:i|we) (?:was|were|am|are|have been) (?:told|given|informed)\b[^.;\n]{0,40}\b(?:answer|option|correct)",
    r"according to the (?:answer|label|solution|key)",
    r"the (?:label|solution|answer) (?:says|states|indicates)",
    r"(?:provided|supplied) (?:answer|solution|label)",
    r"(?:my|the) (?:hint|instructions?) (?:says?|tells?|states?)",
)
# Words that every longer text of a language has.
_FUNCTION_WORDS = {
    "English": "the of and is that with which this are from would should because these its",
    "Spanish": "el los las una es por con para como esta pero más según porque también",
    "French": "le les des est une dans qui pour avec sur cette mais plus donc être",
    "German": "der die das und ist nicht ein eine mit von auf für dass wird auch",
    "Portuguese": "os uma não com para por são mais como mas ao pela porque então também",
    "Italian": "il della che è per con una sono nella gli più quindi perché questo anche",
}
# A share of foreign letters that symbols and names can have: α, β, µ.
FOREIGN = 0.05


class Sample(NamedTuple):
    """One generated answer: its reasoning, the option that it states by index (or None), its tokens."""

    reasoning: str
    answer: int | None
    outcome: str  # "answered", "unparsed" or "truncated"
    tokens: int


def script_of(letter: str) -> str:
    """The script of a letter, by the first word of its Unicode name: LATIN, CJK, CYRILLIC, ..."""
    name = unicodedata.name(letter, "").split(" ")[0]
    return {"HIRAGANA": "CJK", "KATAKANA": "CJK"}.get(name, name)


def scripts(text: str) -> Counter:
    """Letters of a text by script; Greek ones, which are symbols in medicine, are not counted beside Latin ones."""
    counts = Counter(map(script_of, filter(str.isalpha, text)))
    if counts["LATIN"] > counts["GREEK"]:
        del counts["GREEK"]
    return counts


def language_of(text: str) -> str | None:
    """The language whose function words a text in Latin letters has most; None where no language leads."""
    words = Counter(re.findall(r"[^\W\d_]+", text.lower()))
    votes = Counter({name: sum(words[word] for word in own.split()) for name, own in _FUNCTION_WORDS.items()})
    first, second = votes.most_common(2)
    return first[0] if first[1] > 2 * second[1] else None


def is_in_another_language(reasoning: str, question: str) -> bool:
    """Whether letters of a script that the question lacks exceed `FOREIGN`, or the function words are another's."""
    written, asked = scripts(reasoning), scripts(question)
    foreign = sum(count for script, count in written.items() if script not in asked)
    if foreign > FOREIGN * max(1, written.total()):
        return True
    languages = language_of(reasoning), language_of(question)
    return None not in languages and languages[0] != languages[1]


def claims_a_figure(reasoning: str) -> bool:
    """Whether a text states what a figure shows; that it cannot be seen, or what it would show, is no such claim."""
    for found in _SEES.finditer(reasoning):
        start = max(reasoning.rfind(mark, 0, found.start()) for mark in ".;!?\n") + 1
        end = min((place for mark in ".;!?\n" if (place := reasoning.find(mark, found.end())) >= 0), default=None)
        if not _HEDGE.search(reasoning[start:end]):
            return True
    return False


def named_letters(reasoning: str, count: int) -> list[tuple[int, str]]:
    """(index, text behind it) of every place where a text names an option by its letter."""
    letters = LETTERS[:count]
    named = re.compile(
        rf"(?:\b[Oo]ptions?|\b[Cc]hoices?|\b[Aa]nswers?(?: is)?)\s*:?\s*\(?([{letters}])\)?(?![\w'’])"
        rf"|\(([{letters}])\)|(?:^|(?<=[\s,;]))([{letters}])(?:[.):](?=\s)|(?= (?:is|are|was|would|because|and|or)\b))"
    )
    found = []
    for match in named.finditer(reasoning):
        letter = match[1] or match[2] or match[3]
        # "A is" and "A or" begin sentences that name no option.
        if match[3] == "A" and not re.match(r"[.):]", reasoning[match.end(3) : match.end(3) + 1]):
            continue
        found.append((LETTERS.index(letter), reasoning[match.end() : match.end() + 200]))
    return found


def names_another_order(reasoning: str, choices: Sequence[str]) -> bool:
    """Whether a letter stands right before the text of an option that has another letter."""
    texts = sorted(enumerate(map(str.casefold, map(clean_text, choices))), key=lambda pair: -len(pair[1]))
    for index, behind in named_letters(reasoning, len(choices)):
        behind = re.sub(r"^(?:[\s.):,\"'“‘(\[–—-]|\bis\b|\bthe\b)*", "", clean_text(behind).casefold())
        option = next((i for i, text in texts if re.match(rf"{re.escape(text)}(?!\w)", behind)), None)
        if option is not None and option != index:
            return True
    return False


def why_unfit(sample: Sample, question: dict, max_tokens: int | None, sighted: bool = False) -> str | None:
    """The first reason for which a sample is not trained on, or None.

    `question` is a row of the prepared data set that it answers; `sighted` if the model was shown its figure.
    """
    if sample.outcome == "truncated":
        return "not finished"
    if sample.answer is None:
        return "states no option"
    if sample.answer != question["gold"]:
        return "wrong answer"
    if not sample.reasoning:
        return "no thinking"
    if max_tokens is not None and sample.tokens > max_tokens:
        return "more than --max_tokens"
    if any(tag in sample.reasoning for tag in THINK_TAGS):
        return "holds a think tag"
    asked = "\n".join([question["question"], *question["choices"]])
    if is_in_another_language(sample.reasoning, asked):
        return "another language than the question"
    if _TOLD.search(sample.reasoning):
        return "refers to a given answer"
    if not sighted and claims_a_figure(sample.reasoning):
        return "claims to see a figure"
    if names_another_order(sample.reasoning, question["choices"]):
        return "names options by other letters"
    if "#" in question["id"] and named_letters(sample.reasoning, len(question["choices"])):
        return "names options by letters of a shuffled order"
    return None
