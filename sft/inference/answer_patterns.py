"""Where a text names an option by its letter, and the words around it that say so, or deny it."""

import re
from functools import lru_cache
from typing import NamedTuple

from sft.common.prompts import LETTERS

DENIAL = (
    r"(?:\w*n['’]t|\w*n t|not|never|no|nor|neither|cannot|without|unlike|except|rather than|instead of|exclud\w+"
    r"|eliminat\w+|rul(?:e|ed|es|ing) (?:\w+ )?out|incorrect\w*|wrong\w*|false\w*|doubt\w*|unlikely|less likely|least"
    r"|second[ -]best|worst(?=\s*$|\s(?:answer|choice|option|fit))|negative for|absence|if|whether|contraindicated)"
)
NOUN = r"(?:option|choice|answer|alternative|response|letter)"
# "is the correct answer", "would be best": what is said of an option, by letter or text; not "is right next to", and
# not "is correct only if". A denial ("is not correct", "is incorrect") has other words in between.
IS_RIGHT = (
    r"(?:\s*:\s+|\s+(?:is|was|would be|will be|must be|should be|has to be|remains|(?:seems|appears|looks)(?: to be)?)"
    r"\s+(?:(?:clearly|therefore|thus|hence|indeed|definitely|certainly|obviously|probably|(?:most )?likely|also|the"
    r"|my|single|only|one|final)\s+)*)(?:correct|right|best|answer|most (?:likely|appropriate|accurate|probable"
    rf"|suitable|plausible))\b\s*(?:(?:possible )?(?:{NOUN}|one|selection|candidate|diagnosis|explanation|description"
    r"|interpretation|cause|match|fit|finding|because|since|as|too(?!\s+\w)|given|based|according|among|here"
    r"|of (?:the|these|all)|(?:in|for|to) th(?:is|e))\b"
    r"|(?=[.,;:!)—–])|$)(?!\W*(?:but )?(?:only|if|unless|when|provided|assuming|\?)(?!\w))"
)

# What may not follow the letter I, since the pronoun is meant: "I'd say", "I think", "I, as a student".
_NOT_A_PRONOUN = (
    r"(?!…|\.\.|['’]\w|,?\s+(?!(?:is|seems|appears|looks|remains|because|since|due to|as it)\b"
    r"|(?:and|or|not|nor|but not|rather than) (?:option )?\W?[A-J]\b)(?-i:[a-z]))"
)


class AnswerPatterns(NamedTuple):
    """Where a text names an option by its letter."""

    letter: re.Pattern[str]
    follows: re.Pattern[str]
    further: re.Pattern[str]
    bracketed: re.Pattern[str]
    subordinate: re.Pattern[str]
    declared: re.Pattern[str]
    called_right: re.Pattern[str]
    so_is: re.Pattern[str]
    option: re.Pattern[str]


@lru_cache
def answer_patterns(count: int) -> AnswerPatterns:
    """The patterns for questions with `count` options; with few, A to D are read, so that "D" of three names none."""
    letters = LETTERS[: max(4, count)]
    plain = letters.replace("I", "")
    capital, small, further, article = f"[{plain}]", f"[{letters.lower()}]", f"[{plain[1:]}]", "A"
    if "I" in letters:
        capital = rf"(?:{capital}|I{_NOT_A_PRONOUN})"
        article = rf"A|(?:(?<=and )|(?<=or )|(?<=[,/&] )|(?<=[,/&]))I{_NOT_A_PRONOUN}"  # and not "type I"
    return AnswerPatterns(
        # "B", "(b)", "B)", "b.": a capital letter, or a small one that is marked as an option or stands alone.
        letter=re.compile(
            rf"[\"'“‘(\[]*(?:({capital})(?!\w|['’]\w|-|\.\w\.)|({small})(?!\.\w\.)(?=\s*[).:\]]|\W*$))(?P<mark>[\"'”’)\].:]*)"
        ),
        # What may follow a letter without a mark. Otherwise it begins a term: "A blood clot", "B cell lymphoma".
        follows=re.compile(
            rf"(?i)[^\w?]*$|\s*[,;!—–(}}]|\s*[-/&]\s|\s*/\s*{capital}\b"
            r"|\s+(?:because|since|as|and|or|for|due|which|with|but|not|rather|maybe|possibly|also)\b"
        ),
        # Another letter in the same clause: then two options are named.
        further=re.compile(
            rf"(?<![\w'’-])(?:[(\[]({capital})[)\]]|({further})(?![\w'’-])|({article})(?=\s*(?:[.,;:)!/&]|$|and\b|or\b)))"
        ),
        bracketed=re.compile(rf"[(\[]({capital})[)\]]"),
        # A clause of reasons with a denial of its own, which is no denial of the clause that follows.
        subordinate=re.compile(
            r"(?i)\A\W*(?=(?:(?:even )?though|although|while|whereas|since|because|as|without|unlike)\b)"
            rf"(?:[^,]|(?<=\b{capital}),)*?\b{DENIAL}\b[^,]*,"
        ),
        declared=re.compile(
            r"(?i)(?P<final>\bfinal\s+)?(?:\b(?:answer|ans)\b[\"']?|(?<!second[ -])(?<!next )\b(?:correct|right|best"
            r"|appropriate|likely)\s+(?:option|choice|response|one|letter|fit|match)\b"
            r"|(?<!each )(?<!every )\b(?:option|choice|response)(?=[\"']?\s*:)[\"']?"
            rf"|\b(?:correct|right)(?=\s*:\s*\W?{capital}\b))(?:\s+[a-z]{{2,}}){{0,4}}?[\"']?\s*"
            r"(?:\b(?:is|was|would be|should be|must be|will be|has to be|(?:appears|seems) to be)"
            r"(?P<not>\s+not\b|n['’]t\b)?"
            rf"|:|=|→|[-–—](?=\s*\W?{capital}\b))\s*:?"
        ),
        called_right=re.compile(
            rf"(?im)(?:(?:^|[.,;!?\n]\s*|\b(?:so|thus|therefore|hence|that|but|only)\s+)[(\"']?((?-i:{capital}))"
            rf"|\b{NOUN}\s*:?\s*[(\[\"']?({capital}))(?!\w)[)\].\"':]*(?:{IS_RIGHT}|\s+best\s+\w{{3,}}s\b)"
        ),
        # "B is correct, and so is option C": of an answer beside the first.
        so_is=re.compile(
            rf"\b(?:correct|right|best|answer|is \W?{capital})(?:\s{NOUN})?\b\W{{1,4}}(?:and |but )?"
            rf"(?:[Ss]o|as) (?:is|would be)\s+(?:{NOUN}\s)?\(?({capital})(?![\w'’-])"
        ),
        option=re.compile(rf"\b{NOUN}\s+(?=[(\[]?(?:{capital}|{small})\b)", re.IGNORECASE),
    )
