"""What kind of thing a question asks for, by rules on its words: the first rule that matches decides.

The rules are for the questions of PMC-VQA; docs/evaluation.md lists them. They sort, they do not judge: a question
that no rule knows is "other".
"""

import re

_COLOURS = "red|green|blue|yellow|black|white|orange|purple|pink|brown|gr[ae]y|cyan|magenta"
_SHAPES = "arrows?|arrow ?heads?|asterisks?|stars?|circles?|box(es)?|rectangles?|triangles?|dots?|lines?|curves?|bars?"
_RULES = [
    ("count", r"\bhow (many|often)\b|\bnumber of\b|\bcount of\b"),
    ("organ/structure", r"^where\b"),
    # Marks and colours of the figure, and what they stand for.
    (
        "colour/label",
        rf"\bcolou?r(s|ed|ing)?\b|\b({_COLOURS})\b|\b({_SHAPES})\b|\blabel(s|l?ed)?\b|\b(marked|denoted?|annotat\w+)\b",
    ),
    (
        "modality",
        r"\b(imag(e|ing)|radiograph\w*|microscop\w+|scan|technique|mri|ct|pet) (modalit\w+|technique|method|type|test)"
        r"|\bmodalit\w+|\b(type|kind|sort) of (\w+ ){0,3}(imag\w+|scan|x-?ray|mri|ct|pet|ultraso\w+|radiogra\w+"
        r"|\w*graphy|microscop\w+|view|transducer|echo\w*|sequence|stain\w*|tomogra\w+|plot|graph|map|chart)\b"
        r"|\b(technique|method|procedure|stain\w*|view|plane|projection|sequence|magnification|microscope)\b"
        r".*\b(used|shown|performed|obtained|displayed|illustrated|presented|taken)\b"
        r"|\b(which|what) (\w+ )?(stain|staining|view|plane|projection|magnification|sequence|technique)\b",
    ),
    (
        "organ/structure",
        r"\b(organs?|structures?|anatom\w+|located|location|region|lobe|bones?|arter(y|ies)|veins?|nerves?"
        r"|muscles?|joints?|tissues?|body|valves?|ventricles?|lungs?|site|side)\b|\bpart of\b",
    ),
    (
        "finding",
        r"\b(findings?|abnormalit\w+|diagnos\w+|lesions?|tumou?rs?|mass(es)?|disease|fracture|patholog\w+|condition"
        r"|features?|appearance|appear|show(s|n|ing|ed)?|seen|visible|observed|found|reveal\w*|demonstrat\w+|indicat\w+"
        r"|represent\w*|depict\w+|present|detected|suggest\w*|identified|noted|evident)\b",
    ),
]
_RULES = [(name, re.compile(rule, re.IGNORECASE)) for name, rule in _RULES]
TYPES = ("modality", "organ/structure", "finding", "colour/label", "count", "other")


def question_type(question: str) -> str:
    """The type of a question, one of `TYPES`."""
    return next((name for name, rule in _RULES if rule.search(question)), "other")
