"""From a generated text to the option that it states, strictly: a text that does not state one option is no answer."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Literal, NamedTuple

from sft.common.prompts import LETTERS


class ParsedAnswer(NamedTuple):
    """The index of the option that a text states, or None and why."""

    index: int | None
    outcome: Literal["answered", "unparsed", "truncated"]


# Markup that says nothing: Markdown, LaTeX, HTML tags, special tokens.
_MARKUP = re.compile(
    r"(?mi)<\|[^|>]*\|>|</?[a-z]+>|[*_`$]|^[ \t]*(?:#+|>|[-•])[ \t]+|\\(?:text|textbf|mathrm|mathbf)\b"
    r"|[\[{]?\"(?=answer|choice|option)"
)
_BOXED = re.compile(r"\\boxed\s*\{+([^{}]*)\}+")
# Words, and numbers with their decimals and signs: "0.5" holds no "5", and "x-ray" is "x ray".
_NUMBER = r"\d+(?:[.,]\d+)*\s?%|\d+(?:[.,]\d+)*"
_TOKENS = re.compile(rf"(?:[<>=≤≥±~]\s?|[+\-^/])?(?:{_NUMBER})(?:\s?[-–]\s?(?:{_NUMBER}))?|[^\W_]+|[+%<>=±°µ≥≤]")
# Words before an answer that say nothing of it.
_LEAD = re.compile(
    r"(?i)\A(?:(?:so|thus|therefore|hence|well|sure|okay|ok|i (?:think|believe|choose|pick|select)|i would (?:say"
    r"|choose)|i(?: wi|['’])ll go with|i['’]d (?:say|choose|pick|select|go with)|my (?:choice|pick) is"
    r"|(?:it|this|that) is|(?:it|this|that)['’]s|it (?:must|should|would|has to) be|most likely|likely|probably"
    r"|possibly|clearly|indeed|definitely|certainly|simply|the|correct|option|choice|alternative|letter|answer|ans)\b[\s,:!.]*)+"
)
# "B", "(b)", "B)", "b.": a capital letter, or a small one that is marked as an option or stands alone.
_LETTER = re.compile(r"[\"'“‘(\[]*(?:([A-D])(?!\w|['’]\w|-)|([a-d])(?=\s*[).:\]]|\W*$))(?P<mark>[\"'”’)\].:]*)")
# What may follow a letter without a mark. Otherwise it begins a term: "A blood clot", "B cell lymphoma".
_FOLLOWS = re.compile(
    r"(?i)[^\w?]*$|\s*[,;!—–(}]|\s*[-/&]\s|\s*/\s*[A-D]\b|\s+(?:because|since|as|and|or|for|due|which|with|but|not"
    r"|rather|maybe|possibly|also)\b"
)
# Another letter in the same clause: then two options are named.
_FURTHER = re.compile(r"(?<![\w'’-])(?:[(\[]([A-D])[)\]]|([B-D])(?![\w'’-])|(A)(?=\s*(?:[.,;:)!/&]|$|and\b|or\b)))")
_DENIAL = (
    r"(?:\w*n['’]t|\w*n t|not|never|no|nor|neither|cannot|without|unlike|except|rather than|instead of|exclud\w+"
    r"|eliminat\w+|rul(?:e|ed|es|ing) (?:\w+ )?out|incorrect\w*|wrong\w*|false\w*|doubt\w*|unlikely|less likely|least"
    r"|negative for|absence|if|whether|contraindicated)"
)
# Characters around a mention in which a denial is looked for; so the time grows with the length of a text alone.
FAR = 400
# A denial before a mention in its clause, or said of it right behind.
_DENIED_BEFORE = re.compile(rf"\b{_DENIAL}\b(?!.*\b(?:but|rather,)\b)", re.IGNORECASE)
_DENIED_BEHIND = re.compile(
    r"(?i)\W*(?:(?:and|or)\s+\S+\s+)?"
    r"(?:(?:is|was|are|were|can|could|would|does|do|did|seems?|has|have|be)(?:n['’ ]t\b|\s+(?:\w+\s+){0,2}?"
    rf"{_DENIAL}\b)|cannot\b|(?:incorrect|wrong|false|unlikely)\b)|\s*\?"
)
_NOT_THIS = re.compile(r"\A\s*(?:not|never|neither)\b.*?(?:\b(?:but|rather|instead|it is|it['’]s)\b|$)", re.IGNORECASE)
# Where a clause ends: at the end of a sentence (but not behind "B." or "E."), or where reasons begin.
_CLAUSE_END = re.compile(
    r"(?i)(?<!\b[A-Za-z])[.!?;](?=\s|$)|(?<=[)\]\"'”’])\.(?=\s|$)|\n|\s[—–]\s"
    r"|,?\s+(?:because|since|(?<!well )as(?! well)|which|while|whereas|given that|due to)\b"
)
_DECLARED = re.compile(
    r"(?i)(?P<final>\bfinal\s+)?(?:\b(?:answer|ans)\b[\"']?|\b(?:correct|right|best|appropriate|likely)\s+(?:option"
    r"|choice|response|one)\b|\b(?:option|choice|response)(?=[\"']?\s*:)[\"']?)(?:\s+[a-z]{2,}){0,4}?\s*"
    r"(?:\b(?:is|was|would be|should be|must be|will be|has to be|(?:appears|seems) to be)(?P<not>\s+not\b|n['’]t\b)?"
    r"|:|=|→)\s*:?"
)
_NOUN = r"(?:option|choice|answer|alternative|response|letter)"
# "is the correct answer", "would be best": what is said of an option, by letter or text; not "is right next to", and
# not "is correct only if". A denial ("is not correct", "is incorrect") has other words in between.
_IS_RIGHT = (
    r"(?:\s*:\s+|\s+(?:is|was|would be|will be|must be|should be|has to be|remains|(?:seems|appears|looks)(?: to be)?)"
    r"\s+(?:(?:clearly|therefore|thus|hence|indeed|definitely|certainly|obviously|probably|(?:most )?likely|also|the"
    r"|my|single|only|one|final)\s+)*)(?:correct|right|best|answer|most (?:likely|appropriate|accurate|probable"
    rf"|suitable|plausible))\b\s*(?:(?:possible )?(?:{_NOUN}|one|selection|candidate|diagnosis|explanation|description"
    r"|interpretation|cause|match|fit|finding|because|since|as|given|based|according|among|here|of (?:the|these|all)"
    r"|(?:in|for|to) th(?:is|e))\b|[.,;:!)—–]|$)(?!\W*(?:but )?(?:only|if|unless|when|provided|assuming|\?)(?!\w))"
)
_CALLED_RIGHT = re.compile(
    rf"(?im)(?:(?:^|[.;!?\n]\s*|\b(?:so|thus|therefore|hence|that|but|only)\s+)[(\"']?((?-i:[A-D]))"
    rf"|\b{_NOUN}\s*:?\s*[(\[\"']?([A-D]))(?!\w)[)\].\"':]*(?:{_IS_RIGHT}|\s+best\s+\w{{3,}}s\b)"
)
_TEXT_CALLED_RIGHT = re.compile(rf"(?im){_IS_RIGHT}")
_OPTION = re.compile(rf"\b{_NOUN}\s+(?=[(\[]?[A-Da-d]\b)", re.IGNORECASE)


def _plain(text: str) -> str:
    """Tokens of `text` in small letters between spaces: ``" word " in`` it matches complete words alone."""
    return f" {' '.join(token.replace(' ', '') for token in _TOKENS.findall(text.casefold()))} "


def _before(text: str, place: int) -> str:
    """What stands before a place in its sentence, at most 150 characters."""
    return re.split(r"[.;!?\n]", text[max(0, place - 150) : place])[-1]


def _at(letter: str, choices: Sequence[str]) -> set[int]:
    """The option at a letter, if there are so many."""
    return {LETTERS.index(letter.upper())} & set(range(len(choices)))


def _same_text(text: str, choices: Sequence[str]) -> set[int]:
    """Options that `text` is, word for word; of options that are letters, also the one at that letter."""
    bare, *bare_choices = [value.strip().strip("()[]").rstrip(".").casefold() for value in (text, *choices)]
    options = {index for index, choice in enumerate(bare_choices) if choice == bare}
    return options | _at(bare, choices) if options and bare in [*"abcd"] else options


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
    letter = _LETTER.match(text)
    if not letter:
        return set()
    rest, name = text[letter.end() : 400], (letter.group(1) or letter.group(2)).upper()
    options, named = _at(name, choices), _options_begun(rest, choices)
    # "C. difficile" may be an option's text, and not the letter.
    of_words = {i for i in _options_begun(text, choices) if len(_plain(choices[i]).split()) > 1}
    if of_words and not named:
        return of_words
    if not options or not (letter["mark"].strip("\"'“‘") or named or _FOLLOWS.match(rest)):
        return set()
    for choice in (choices[i] for i in named):
        spelled = r"\W*".join(map(re.escape, _plain(choice).split()))
        rest = re.sub(rf"\A\W*{spelled}", "", rest, flags=re.IGNORECASE)
    if _DENIED_BEHIND.match(rest):  # said of the letter, or of its text
        return set()
    # Without a text, an option may be a letter itself: "A" could mean it.
    options |= named or {i for i, choice in enumerate(choices) if _plain(choice).strip() == name.lower()}
    clause = _CLAUSE_END.split(rest, maxsplit=1)[0]
    for further in _FURTHER.finditer(clause):
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
    for match in _OPTION.finditer(clause):
        if not _DENIED_BEFORE.search(clause[max(0, match.start() - FAR) : match.start()]):
            options |= _letters(clause[match.end() :], choices)
    if options:  # a text with another option's letter contradicts itself
        options.update(*(_at(letter, choices) for letter in re.findall(r"[(\[]([A-D])[)\]]", clause)))
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
    for match in _CALLED_RIGHT.finditer(text):
        before = _before(text, match.start(match.lastindex))
        if not _DENIED_BEFORE.search(before) and not re.search(rf"(?i)\b(?:and|or)\s+(?:{_NOUN}\s+)?\W*$", before):
            options |= _at(match[match.lastindex], choices)
    for match in _TEXT_CALLED_RIGHT.finditer(text):
        options |= _mentioned(_before(text, match.start()), choices)
    return options


def _declared(answer: str, choices: Sequence[str]) -> set[int]:
    """Options of "the answer is ..." and "B is correct"; of final answers alone where there are some."""
    # "The wrong answer is", "I doubt that the answer is": nothing is stated.
    every = [m for m in _DECLARED.finditer(answer) if not _DENIED_BEFORE.search(_before(answer, m.start()))]
    starts = [match.start() for match in every[1:]] + [len(answer)]
    final = any(match["final"] for match in every)
    options: set[int] = set()
    for match, end in zip(every, starts, strict=False):
        if match["final"] or not final:
            stated = answer[match.end() : end].lstrip().split("\n")[0]
            options |= _statement(f"not {stated}" if match["not"] else stated, choices)
    if not final:
        options |= _called_right(answer, choices)
    return options


def _marked(answer: str, choices: Sequence[str]) -> set[int]:
    """Options that the first line begins with naming, and the next line, if it goes on listing them."""
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    if len(lines) > 1 and _LEAD.fullmatch(f"{lines[0]} "):  # a heading
        del lines[0]
    options = _leading(lines[0], choices) if lines else set()
    if options and len(lines) > 1 and (letter := _LETTER.match(lines[1])) and letter["mark"]:
        options |= _letters(lines[1], choices)
    return options


def parse_answer(text: str, choices: Sequence[str], hit_limit: bool = False) -> ParsedAnswer:
    """The option that a generated text answers with, by strict rules: no nearest string, no last character.

    `text` is the assistant's turn with its opening think tag, if there is one; only what stands behind the last
    ``</think>`` is read. The first of these that names an option decides, and naming two is no answer: an option's
    text and nothing else; boxed (``\\boxed{B}``); declared ("the answer is ...", "B is correct"; a final answer before
    others); a letter at the start ("B. ..."); the one option that is mentioned anywhere and not denied.
    """
    reply = text.split("</think>")[-1].strip()
    if hit_limit or "<think>" in reply:
        return ParsedAnswer(None, "truncated")
    answer = _MARKUP.sub("", unicodedata.normalize("NFKC", reply)).strip()
    declared, marked = _declared(answer, choices), _marked(answer, choices)
    if declared and len(marked) == 1:  # a model that writes on may answer a question of its own
        declared |= marked
    clauses = re.split(r"(?<!\b[A-Za-z])(?<=[.!;])\s|(?<=\?)\s|\n", answer)
    options = (
        _same_text(reply, choices)
        or set().union(*(_statement(content, choices) for content in _BOXED.findall(answer)))
        or declared
        or marked
        or set().union(*(_mentioned(clause, choices) for clause in clauses if clause))
    )
    return ParsedAnswer(options.pop(), "answered") if len(options) == 1 else ParsedAnswer(None, "unparsed")
