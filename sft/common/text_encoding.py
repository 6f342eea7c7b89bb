"""How the text of a file is encoded: as its first bytes mark it, UTF-8, or Windows-1252 where that is certain."""

import codecs
import re
from pathlib import Path

from sft.common.command import UserError

# Longer marks first: that of UTF-32 begins as that of UTF-16.
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
TITLES = {"utf-8-sig": "UTF-8", "cp1252": "Windows-1252"}
# Signs and letters that are the same bytes in Windows-1252 and -1250 (Central Europe), two for which -1250 has
# accents that never stand alone, and letters of loanwords and names (Ménière, Jørgensen). Text in a language of
# -1250 has others too: it does without neither š, ž and ů, nor ł and ż, nor ő, nor ş. In text of several bytes a
# letter (UTF-8, Shift-JIS, GBK), such bytes stand side by side. Between two letters, quotation marks and the like
# are letters of another code page: DOS has ö at ”. And no character of UTF-8 stands among them, as in a file of two
# encodings.
_MARKS, _LETTERS = "€…‘’“”•–—™\xa0", "§©«®°±²´µ·»½ÁÂÄÇÉËÍÎÓÔÖ×ÚÜßáâäçéëíîóôö÷úüýàèêïñøåæÀÈÊÑØÅÆ"
_NOT_CP1252 = re.compile(
    b"[^\\0-\x7f%b%b]|[%b]{2}|(?<=[A-Za-z])[%b](?=[A-Za-z])|[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}"
    % tuple(text.encode("cp1252") for text in (_MARKS, _LETTERS, _LETTERS, "€…‘“”•™"))
)


def titled(encoding: str) -> str:
    """An encoding as people write it."""
    return TITLES.get(encoding, encoding.upper())


def encoding_of(file: Path, named: str | None = None) -> str:
    """The name of the codec that decodes a text file; `named` is what the user says of files that do not show theirs.

    Without a mark, a file is UTF-8 if all of it decodes; Windows-1252 if its other bytes are signs and letters that
    no usual code page has otherwise; else UTF-8 with faults, which the reader of its rows refuses. Raises
    `UserError` if `named` is no encoding, or the file is UTF-8 beyond ASCII and `named` differs.
    """
    try:
        named = codecs.lookup(named).name if named else None
        "".encode(named or "ascii")
    except (LookupError, UnicodeError) as error:
        raise UserError(f"--encoding {named}: give the name of a text encoding, such as cp1252 or utf-16") from error
    with open(file, "rb") as content:
        head = content.read(4096)
        for mark, encoding in MARKS.items():
            if head.startswith(mark):
                return encoding
        even, odd = set(head[:40:2]), set(head[1:40:2])
        if not named and odd and even != odd and {0} in (even, odd):  # ASCII in UTF-16
            return "utf-16-be" if even == {0} else "utf-16-le"
        content.seek(0)
        decoder, ascii_alone, utf8 = codecs.getincrementaldecoder("utf-8")(), True, True
        try:
            while block := content.read(1 << 20):
                ascii_alone &= block.isascii()
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            utf8 = False
    if named and not (utf8 and ascii_alone):
        if utf8 and not named.startswith("utf-8"):
            raise UserError(f"{file}: --encoding {named}, and it is UTF-8: read it by itself, without --encoding")
        if named.startswith("iso8859") and re.search(rb"[\x80-\x9f]", file.read_bytes()):
            raise UserError(f"{file}: it holds bytes for which {named} has no sign: is it cp1252?")
        return named
    if not utf8 and not _NOT_CP1252.search(file.read_bytes()):
        return "cp1252"
    return named or "utf-8"
