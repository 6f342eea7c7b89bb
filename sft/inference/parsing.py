"""From a generated text to the option that it states, strictly: a text that does not state one option is no answer."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Literal, NamedTuple

from sft.common.prompts import LETTERS
from sft.inference.answer_patterns import DENIAL, IS_RIGHT, NOUN, answer_patterns


class ParsedAnswer(NamedTuple):
    """The index of the option that a text states, or None and why."""

    index: int | None
    outcome: Literal["answered", "unparsed", "truncated"]


# How models open and close their reasoning; in gpt-oss's form, the final channel closes it.
_OPENED = re.compile(r"<(?:think|thinking|thought|reasoning)>|\[think\]|<\|channel\|>\s*analysis", re.IGNORECASE)
_CLOSED = re.compile(
    r"</(?:think|thinking|thought|reasoning)>|\[/think\]|<\|channel\|>\s*final(?:<\|message\|>)?:?", re.IGNORECASE
)
# Reasoning behind the answer, up to the end: "<answer>B</answer> <reasoning>...</reasoning>".
_EXPLAINED = re.compile(r"(?is)(?<=\S)\s{0,9}<(thinking|thought|reasoning)>(?:(?!<\1>).)*</\1>\s*\Z")
# Markup that says nothing: Markdown, LaTeX, HTML tags, special tokens, marks of width 0.
_MARKUP = re.compile(
    r"(?mi)<\|[^|>]*\|>|</?[a-z]+>|[*_`$\ufeff\u200b]|^[ \t]*(?:#+|>|[-•])[ \t]+|\\(?:text|textbf|mathrm|mathbf)\b"
    r"|[\[{]?\"(?=(?:final |correct )?(?:answer|choice|option))"
)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{+([^{}]*)\}+")
# Words, and numbers with their decimals and signs: "0.5" holds no "5", and "x-ray" is "x ray".
_NUMBER = r"\d+(?:[.,]\d+)*\s?%|\d+(?:[.,]\d+)*"
_TOKENS = re.compile(
    rf"(?:[<>=≤≥±~]\s?|[+\-^/])?(?:{_NUMBER})(?:\s?[-–]\s?(?:{_NUMBER}))?|[^\W_]+|[+%<>=±°µ≥≤↑↓]|(?<=\w)-(?!\w)"
)
# Words before an answer that say nothing of it.
_LEAD = re.compile(
    r"(?i)\A(?:(?:so|thus|therefore|hence|well|sure|okay|ok|(?:i|we) (?:think|believe|choose|pick|select)|my (?:choice"
    r"|pick) is|(?:(?:i|we) would|i['’]d) (?:say|choose|pick|select|go with)|i(?: wi|['’])ll go with"
    r"|(?:it|this|that) is|(?:it|this|that)['’]s|(?:it|this|that) (?:must|should|would|has to) be|most likely|likely"
    r"|probably|possibly|clearly|indeed|definitely|certainly|simply|the|correct|option|choice|alternative|letter|answer|ans)\b"
    r"[\s,:!.–—-]*)+"
)
# Characters around a mention in which a denial is looked for; so the time grows with the length of a text alone.
FAR = 400
_WHICH_IS_WRONG = r"(?:which|that) (?:is|was) (?:clearly |also )?(?:incorrect|wrong|false|not (?:correct|right))\b"
# A denial before a mention in its clause, or said of it right behind.
_DENIED_BEFORE = re.compile(rf"\b{DENIAL}\b(?!.*\b(?:but|rather,)\b)", re.IGNORECASE)
_DENIED_BEHIND = re.compile(
    r"(?i)\W*(?:(?:and|or)\s+\S+\s+)?"
    r"(?:(?:is|was|are|were|can|could|would|does|do|did|seems?|has|have|be)(?:n['’ ]t\b|\s+(?:\w+\s+){0,2}?"
    rf"{DENIAL}\b)|cannot\b|(?:incorrect|wrong|false|unlikely)\b|no(?=\s*(?:[.,;\n]|$))"
    rf"|{_WHICH_IS_WRONG})|\s*\?"
)
# What is no denial of the clause that follows: certainty, and a clause of reasons with a denial of its own.
_CERTAIN = re.compile(
    r"(?i)\b(?:(?:no|without|beyond)(?: an?| any| all)?(?: \w+)? doubt|if i(?: a|['’])m not mistaken"
    r"|unless i(?: a|['’])m mistaken)\b"
)
_MAIN_CLAUSE = re.compile(r"(?i),\s*(?:and )?(?:so|thus|therefore|hence|but|however)\b(?!\s*,| far\b| to\b)")
_NOT_THIS = re.compile(r"\A\s*(?:not|never|neither)\b.*?(?:\b(?:but|rather|instead|it is|it['’]s)\b|$)", re.IGNORECASE)
# Where a clause ends: at the end of a sentence (but not behind "B." or "E."), or where reasons begin.
_CLAUSE_END = re.compile(
    r"(?i)(?<!\b[A-Za-z])[.!?;](?=\s|$)|(?<=[)\]\"'”’])\.(?=\s|$)|\n|\s[—–]\s"
    rf"|,?\s+(?!{_WHICH_IS_WRONG})(?:because|since|(?<!well )as(?! well)|which|while|whereas|given that|due to)\b"
)
_TEXT_CALLED_RIGHT = re.compile(rf"(?im){IS_RIGHT}")


def _plain(text: str) -> str:
    """Tokens of `text` in small letters between spaces: ``" word " in`` it matches complete words alone."""
    return f" {' '.join(token.replace(' ', '') for token in _TOKENS.findall(text.casefold().replace('−', '-')))} "


def _before(text: str, place: int, choices: Sequence[str]) -> str:
    """What stands before a place in its main clause, at most 150 characters."""
    before = _CERTAIN.sub("", re.split(r"[.;!?\n]", text[max(0, place - 150) : place])[-1])
    return answer_patterns(len(choices)).subordinate.sub("", _MAIN_CLAUSE.split(before)[-1])


def _at(letter: str, choices: Sequence[str]) -> set[int]:
    """The option at a letter, if there are so many."""
    return {LETTERS.index(letter.upper())} & set(range(len(choices)))


def _same_text(text: str, choices: Sequence[str]) -> set[int]:
    """Options that `text` is, word for word; of options that are letters, also the one at that letter."""
    bare, *bare_choices = [value.strip().strip("()[]").rstrip(".").casefold() for value in (text, *choices)]
    options = {index for index, choice in enumerate(bare_choices) if choice == bare}
    return options | _at(bare, choices) if options and bare in [*LETTERS.lower()] else options


def _options_begun(text: str, choices: Sequence[str]) -> set[int]:
    """The option that `text` begins with, the longest of them."""
    plain = _plain(text[:400])
    longest = max((choice for choice in map(_plain, choices) if plain.startswith(choice)), key=len, default="")
    return {index for index, choice in enumerate(choices) if longest.strip() and _plain(choice) == longest}


def _options_named(text: str, choices: Sequence[str]) -> set[int]:
    """Options whose text stands in a clause and is not denied there; of one inside another, the longer."""
    plain = _plain(text)
    few_words = plain.count(" ") <= 7
    spans: list[tuple[int, int, int]] = []
    words = [(_plain(choice).strip(), index) for index, choice in enumerate(choices)]
    for word, index in sorted(words, key=lambda pair: -len(pair[0])):
        # A letter is no name, and a number or a word such as "no" is one only in a statement that says little else.
        if word in ("yes", "no") and not re.match(rf"\W*{word}\s*(?:$|[,.;!])", text, re.IGNORECASE):
            continue
        if (len(word) < 2 and not word.isdigit()) or (not few_words and (len(word) < 4 or word.isdigit())):
            continue
        for start, end in (match.span() for match in re.finditer(rf" {re.escape(word)}(?= )", plain)):
            if not any(low <= start and end <= high for low, high, _ in spans):
                spans.append((start, end, index))
    denied = [
        _DENIED_BEFORE.search(plain[max(0, start - FAR) : start]) or _DENIED_BEHIND.match(plain[end : end + FAR])
        for start, end, _ in spans
    ]
    return {index for (_, _, index), denial in zip(spans, denied, strict=True) if not denial}


def _letters(text: str, choices: Sequence[str]) -> set[int]:
    """Options that `text` begins with naming by letter: one, several ("B or C"), or none.

    Where another option is named beside the letter, in letter or text, both are: the answer contradicts itself.
    """
    of = answer_patterns(len(choices))
    letter = of.letter.match(text)
    if not letter:
        return set()
    rest, name = text[letter.end() : 400], (letter.group(1) or letter.group(2)).upper()
    options, named = _at(name, choices), _options_begun(rest, choices)
    # "C. difficile" may be an option's text, and not the letter.
    of_words = {i for i in _options_begun(text, choices) if len(_plain(choices[i]).split()) > 1}
    if of_words and not named:
        return _options_named(_CLAUSE_END.split(text[:FAR], maxsplit=1)[0], choices)
    # "E. coli", where no option begins so, is a species and not option E.
    species = letter["mark"] == "." and re.match(r"\s[a-z]{2,}(?:[ei]|us|um|is|ae|ans|ens)\b(?!\s+\w)", rest)
    marked = letter["mark"].strip("\"'“‘") and not species
    if not options or not (marked or named or of.follows.match(rest)):
        return set()
    for choice in (choices[i] for i in named):
        spelled = r"\W*".join(map(re.escape, _plain(choice).split()))
        rest = re.sub(rf"\A\W*{spelled}", "", rest, flags=re.IGNORECASE)
    if _DENIED_BEHIND.match(rest):  # said of the letter, or of its text
        return set()
    # Without a text, an option may be a letter itself: "A" could mean it.
    options |= named or {i for i, choice in enumerate(choices) if _plain(choice).strip() == name.lower()}
    clause = _CLAUSE_END.split(rest, maxsplit=1)[0]
    for further in of.further.finditer(clause):
        before = clause[: further.start()]
        if "wait" in before or not _DENIED_BEFORE.search(before):
            options |= _at(further[1] or further[2] or further[3], choices)
    return options


def _leading(text: str, choices: Sequence[str]) -> set[int]:
    """Options that `text` begins with naming by letter, words before them left out that say nothing."""
    return _letters(text, choices) or _letters(_LEAD.sub("", text), choices)


def _mentioned(clause: str, choices: Sequence[str]) -> set[int]:
    """Options that a clause names, by text, or by letter as in "option B" or "(B)", and does not deny."""
    if clause.rstrip().endswith("?"):
        return set()
    options = _options_named(clause, choices)
    for match in answer_patterns(len(choices)).option.finditer(clause):
        if not _DENIED_BEFORE.search(clause[max(0, match.start() - FAR) : match.start()]):
            options |= _letters(clause[match.end() :], choices)
    if options:  # a text with another option's letter contradicts itself
        options.update(*(_at(letter, choices) for letter in answer_patterns(len(choices)).bracketed.findall(clause)))
    return options


def _statement(text: str, choices: Sequence[str]) -> set[int]:
    """Options that a statement such as "not B but C", "(b)" or "Prussian blue, because ..." names."""
    text = _NOT_THIS.sub("", text).strip()
    clause = _CLAUSE_END.split(text, maxsplit=1)[0]
    return (
        _same_text(text, choices)
        or _leading(text, choices)
        or _called_right(text, choices)
        or _mentioned(clause, choices)
    )


def _called_right(text: str, choices: Sequence[str]) -> set[int]:
    """Options that are called right, as in "Option B is correct" or "Prussian blue would be the best answer"."""
    options: set[int] = set()
    for match in answer_patterns(len(choices)).called_right.finditer(text):
        before = _before(text, match.start(match.lastindex), choices)
        if not _DENIED_BEFORE.search(before) and not re.search(rf"(?i)\b(?:and|or)\s+(?:{NOUN}\s+)?\W*$", before):
            options |= _at(match[match.lastindex], choices)
    for match in _TEXT_CALLED_RIGHT.finditer(text):
        options |= _mentioned(_before(text, match.start(), choices), choices)
    return options


def _declared(answer: str, choices: Sequence[str]) -> set[int]:
    """Options of "the answer is ..." and "B is correct"; of final answers alone where there are some."""
    # "The wrong answer is", "I doubt that the answer is": nothing is stated.
    found = answer_patterns(len(choices)).declared.finditer(answer)
    every = [match for match in found if not _DENIED_BEFORE.search(_before(answer, match.start(), choices))]
    starts = [match.start() for match in every[1:]] + [len(answer)]
    final = any(match["final"] for match in every)
    options: set[int] = set()
    for match, end in zip(every, starts, strict=False):
        if match["final"] or not final:
            stated = answer[match.end() : end].lstrip().split("\n")[0]
            options |= _statement(f"not {stated}" if match["not"] else stated, choices)
    if not final:
        options |= _called_right(answer, choices)
    if options:
        options.update(*(_at(letter, choices) for letter in answer_patterns(len(choices)).so_is.findall(answer)))
    return options


def _marked(answer: str, choices: Sequence[str]) -> set[int]:
    """Options that the first line begins with naming, and the next line, if it goes on listing them."""
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    if len(lines) > 1 and _LEAD.fullmatch(f"{lines[0]} "):  # a heading
        del lines[0]
    options = _leading(lines[0], choices) if lines else set()
    of = answer_patterns(len(choices))
    if options and len(lines) > 1 and (letter := of.letter.match(lines[1])) and letter["mark"]:
        options |= _letters(lines[1], choices)
    return options


def parse_answer(text: str, choices: Sequence[str], hit_limit: bool = False) -> ParsedAnswer:
    """The option that a generated text answers with, by strict rules: no nearest string, no last character.

    `text` is the assistant's turn with its opening think tag, if there is one; only what stands behind the last tag
    that closes reasoning (``</think>``, ``[/THINK]`` and others) is read. The first of these that names an option
    decides, and naming two is no answer: an option's text and nothing else; boxed (``\\boxed{B}``); declared ("the
    answer is ...", "B is correct"; a final answer before others); a letter at the start ("B. ..."); the one option
    that is mentioned anywhere and not denied.
    """
    reply = _CLOSED.split(_EXPLAINED.sub("", text))[-1].strip()
    if hit_limit or _OPENED.search(reply):
        return ParsedAnswer(None, "truncated")
    words = re.sub(r"(?<=[a-z])_(?=[a-z])", " ", unicodedata.normalize("NFKC", reply))  # "final_answer"
    answer = _MARKUP.sub("", words).strip()
    declared, marked = _declared(answer, choices), _marked(answer, choices)
    if declared and len(marked) == 1:  # a model that writes on may answer a question of its own
        declared |= marked
    boxes = [(box[1], answer[box.end() : box.end() + FAR]) for box in _BOXED.finditer(answer)]
    boxed = [content for content, behind in boxes if not _DENIED_BEHIND.match(re.split(r"[.\n]", behind)[0])]
    clauses = re.split(r"(?<=[.!;])\s(?<!\b[A-Za-z]\.\s(?=[a-z]))|(?<=\?)\s|\n", answer)
    options = (
        _same_text(reply, choices)
        or set().union(*(_statement(content, choices) for content in boxed))
        or declared
        or marked
        or set().union(*(_mentioned(clause, choices) for clause in clauses if clause))
    )
    return ParsedAnswer(options.pop(), "answered") if len(options) == 1 else ParsedAnswer(None, "unparsed")
