"""Find personal data and secrets in a text: e-mail addresses, phone numbers, IP addresses, payment cards and keys.

What is not found, on purpose, because no person is behind it: addresses at domains reserved for examples (example.com, .test),
``git@`` of repository addresses; IP addresses that are private, reserved or for documentation, and those with three parts of
one digit (``1.2.3.4``, ``8.2.4.44``: versions, sections, placeholders); phone numbers with no plus sign, bracket or separator,
which nothing tells from other long numbers; cards that fail the checksum of Luhn or begin as no issuer's do; keys that are
public.

Names, addresses and numbers of identity cards are not looked for: patterns do not tell them from other words and numbers.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from uplift.core.prepare_section import Pii, PiiKind
from uplift.data.clean.step import CleaningStep, Edit, Verdict, dropped, edited

Spans = Iterator[tuple[int, int]]

# -- e-mail addresses --------------------------------------------------------------------------------------------------
DOMAIN = re.compile(r"@((?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,6}(?:[^\W\d_]{2,24}|xn--[a-z0-9-]{2,50}))(?![\w-]|[(\[])")
LOCAL = re.compile(r"[\w.+%'&=~-]{1,64}")
"""Read backwards from the @."""
RESERVED = re.compile(r"(?:^|\.)(?:example\.(?:com|net|org|edu)|(?:example|test|invalid|localhost|local))$", re.IGNORECASE)
URL_USER = re.compile(r"://[^\s/@]{0,100}\Z")
"""Before the @ of ``https://user:password@host``, which is no e-mail address."""
FILE_ENDINGS = frozenset(
    [
        "png",
        "jpg",
        "jpeg",
        "gif",
        "svg",
        "webp",
        "ico",
        "css",
        "js",
        "ts",
        "py",
        "html",
        "htm",
        "json",
        "xml",
        "yaml",
        "yml",
        "md",
        "txt",
        "so",
        "dll",
        "exe",
        "whl",
        "zip",
    ]
)


def emails(text: str) -> Spans:
    """Addresses whose domain has a top level."""
    if "@" not in text:
        return
    for domain in DOMAIN.finditer(text):
        at = domain.start()
        local = LOCAL.match(text[max(0, at - 65) : at][::-1])
        name = local[0][::-1].lstrip(".'&=~-%") if local else ""
        if not name or len(name) > 64 or name.endswith(".") or name == "git" or not any(map(str.isalnum, name)):
            continue
        if RESERVED.search(domain[1]) or domain[1].rpartition(".")[2].lower() in FILE_ENDINGS:
            continue
        if not URL_USER.search(text, max(0, at - 120), at):
            yield at - len(name), domain.end()


# -- phone numbers -----------------------------------------------------------------------------------------------------
INTERNATIONAL = re.compile(r"(?:\+(?<![\w.+]\+)|0(?<![\w.+/:=-]0)0)[1-9][\d .\-/()\xa0]{6,24}")
AMERICAN = re.compile(
    r"[(1-9](?<![\w.+/:(-][(1-9])(?<!\d [(1-9])"
    r"(?:(?<=1)[ .-](?:\([2-9]\d\d\) ?|[2-9]\d\d[ .-])|(?<=\()[2-9]\d\d\)[ -]?|(?<=[2-9])\d\d[ .-])"
    r"[2-9]\d\d[ .-]\d{4}(?!\w|[ .-]\d)"
)
TRUNK = re.compile(
    r"[(0](?<![\w.+/:,-][(0])(?:(?<=\()0)?[1-9]\d{0,4}(?:\) ?|[ /.\xa0-]| - | / )\d{2,8}(?:[ .\xa0-]\d{2,8}){0,4}"
    r"(?![\w:%]|[.,/-]\d| [\da-f]{2}\b)"
)
DATE = re.compile(r"\(?\d{1,2}[./ -]\d{1,2}[./ -](?:19|20)\d\d")
COUNTRIES = re.compile(
    r"1(?=\D{0,3}[2-9](?:\D{0,3}\d){9}\Z)|7|2[07]|21[12368]|2[2-46]\d|25[0-8]|29[01789]|3[0-469]|3[57]\d|38[0-35-79]|4[013-9]|42[013]"
    r"|5[1-8]|5[09]\d|6[0-6]|67[02-9]|68\d|69[0-2]|80[08]|8[1246]|85[02356]|87[08]|88[0-368]|9[0-58]|96\d|97[0-79]|99[2-68]"
)
"""Calling codes of countries (E.164) that are in use; after the American 1 come ten digits."""


def phones(text: str) -> Spans:
    """Numbers with a country's code; American ones; national ones with a leading 0 and separators."""
    for found in INTERNATIONAL.finditer(text):
        end = _international_end(found[0])
        if end and not text[found.start() + end : found.start() + end + 1].isalnum():
            yield found.start(), found.start() + end
    for found in AMERICAN.finditer(text):
        if len(set(re.sub(r"\D", "", found[0]))) > 2:
            yield found.span()
    for found in TRUNK.finditer(text):
        if found[0].lstrip("(")[0] == "0" and not DATE.match(found[0]) and _is_national(found[0]):
            yield found.span()


def _international_end(candidate: str) -> int:
    """Where the number ends in it, or 0: it is none. A group of digits that would make more than 15 belongs to what follows."""
    prefix = 1 if candidate[0] == "+" else 2
    digits, end = 0, prefix
    for group in re.finditer(r"\d+", candidate[prefix:]):
        start = prefix + group.start()
        if digits and start - end > 3 or digits + len(group[0]) > 15:
            break
        digits, end = digits + len(group[0]), prefix + group.end()
    number = candidate[prefix:end]
    is_decimal = re.fullmatch(r"\d+\.\d+", number)
    return end if digits >= 8 and COUNTRIES.match(number) and not is_decimal and number.count("(") == number.count(")") else 0


def _is_national(number: str) -> bool:
    """Of the right length, and grouped as numbers are: not a column of figures or an address."""
    groups = re.findall(r"\d+", number)
    if not 9 <= sum(map(len, groups)) <= 12 or len(set("".join(groups))) < 3:
        return False
    if all(len(group) == 2 for group in groups):
        return len(groups) == 5
    if re.fullmatch(r"\d+\.\d+", number) or len(groups) > 2 and all(len(group) == 3 for group in groups):
        return False
    return len(groups[0]) > 2 or len(groups[1]) > 2


# -- IP addresses ------------------------------------------------------------------------------------------------------
IPV4 = re.compile(r"\d(?<![\w.-]\d)\d{0,2}(?:\.\d{1,3}){3}(?![\w]|\.\d|-\d)")
IPV6 = re.compile(r"[23](?<![\w:.][23])[0-9a-fA-F]{3}:(?:[0-9a-fA-F]{0,4}:){1,6}[0-9a-fA-F]{0,4}(?![\w:]|\.\d)")
VERSION_BEFORE = re.compile(r"(?:version|release|section|chapter|ver|rev)s?\.?[\s:=\"'(v]{0,4}\Z", re.IGNORECASE)


def ip_addresses(text: str) -> Spans:
    """Public addresses of both versions."""
    for found in IPV4.finditer(text):
        parts = found[0].split(".")
        before = text[max(0, found.start() - 16) : found.start()]
        if sum(len(part) == 1 for part in parts) >= 3 or VERSION_BEFORE.search(before) or not _is_public(found[0]):
            continue
        yield found.span()
    for found in IPV6.finditer(text):
        if _is_public(found[0]):
            yield found.span()


def _is_public(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return parsed.is_global and not parsed.is_multicast


# -- payment cards -----------------------------------------------------------------------------------------------------
CARD = re.compile(
    r"[2-6](?<![\w.+-][2-6])(?:\d{12,18}|\d{3}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|\d{3}([ -])\d{6}\2\d{4,5})(?![\w]|[.-]\d)"
)
ISSUERS: Mapping[str, tuple[str, frozenset[int]]] = {
    "visa": (r"4", frozenset({13, 16, 19})),
    "mastercard": (r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720", frozenset({16})),
    "american express": (r"3[47]", frozenset({15})),
    "discover": (r"6011|64[4-9]|65", frozenset(range(16, 20))),
    "diners club": (r"30[0-5]|3[689]", frozenset(range(14, 20))),
    "jcb": (r"35(?:2[89]|[3-8])", frozenset(range(16, 20))),
    "unionpay": (r"62", frozenset(range(16, 20))),
    "maestro": (r"50(?:18|20|38)|5893|6304|6759|676[1-3]", frozenset(range(13, 20))),
}
"""Issuer -> how its numbers begin, and how long they are."""


def cards(text: str) -> Spans:
    """Numbers, plain or in the groups that cards show, with an issuer's beginning and the right check digit."""
    for found in CARD.finditer(text):
        digits = re.sub(r"\D", "", found[0])
        if len(set(digits)) > 2 and _has_issuer(digits) and passes_luhn(digits):
            yield found.span()


def _has_issuer(digits: str) -> bool:
    return any(len(digits) in lengths and re.match(start, digits) for start, lengths in ISSUERS.values())


def passes_luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of those before it (ISO/IEC 7812)."""
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


# -- keys --------------------------------------------------------------------------------------------------------------
KEY = re.compile(
    r"(?:(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}"  # Amazon
    r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_\w{22,255}|glpat-[\w-]{20,64}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,250}|xapp-\d-[A-Za-z0-9-]{20,250}"  # Slack
    r"|AIza[\w-]{35}|GOCSPX-[\w-]{28}|ya29\.[\w-]{20,500}"  # Google
    r"|(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,250}|whsec_[A-Za-z0-9]{24,64}"  # Stripe
    r"|sk-(?:proj-|ant-)?(?=[A-Za-z_-]{0,60}\d)[A-Za-z0-9][\w-]{30,250}|hf_[A-Za-z0-9]{30,40}|npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,250}"
    r"|SG\.[\w-]{16,32}\.[\w-]{16,64}|dop_v1_[0-9a-f]{64}"
    r"|eyJ[\w-]{10,2000}\.eyJ[\w-]{10,4000}\.[\w-]{10,2000})"  # a signed token (JWT)
    r"(?![\w-])"
)
KEY_SIGNS = (
    *("AKIA", "ASIA", "ABIA", "ACCA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "xox", "xapp-", "AIza"),
    *("GOCSPX-", "ya29.", "sk_", "rk_", "whsec_", "sk-", "hf_", "npm_", "pypi-", "SG.", "dop_v1_", "eyJ"),
)
"""A text without any of them holds no such key."""
SLACK_HOOK = re.compile(r"(?<=hooks\.slack\.com/services/)T\w{6,14}/B\w{6,14}/\w{16,40}")
BLOCK = re.compile(r"-----BEGIN ((?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?)-----")
BLOCK_LIMIT = 20_000
BLOCK_BODY = re.compile(r"[\w+/=:, \r\n\\-]*+")
"""What may follow of a block without end."""
ASSIGNED = re.compile(
    r"(?:key|token|secret|passwd|password|pwd|credentials?)[\"']?[ \t]{0,3}(?:=>|:=|=|:)[ \t]{0,3}"
    r"(?:[\"']([\w+/=.~!@#$%^&*-]{16,200})[\"']|([\w+/=-]{16,200})(?=[\s,;&]|\Z))",
    re.IGNORECASE,
)
SECRET_NAME = re.compile(
    r"(?:(?:api|access|secret|private|auth|encryption|signing|account|service|master|app|client)[_. -]?key|token|secret|passwd|"
    r"password|pwd|credentials?)\Z",
    re.IGNORECASE,
)
ASSIGNED_SIGNS = ("key", "token", "secret", "passw", "pwd", "credential")
ENTROPY = 3.0
"""Bits a character has at least in a secret: twenty random hexadecimal digits have 3.4. Words have more, but no digits."""
WORD_LIKE = re.compile(r"[a-z]{9}|[A-Z]{9}|[A-Z]?[a-z]{4,}[_.-][a-z]{4,}|\.\.|/.*/")


def keys(text: str) -> Spans:
    """Keys of known services by their form, blocks of private keys, and random values assigned to a name such as `api_key`."""
    if any(sign in text for sign in KEY_SIGNS):
        for found in KEY.finditer(text):
            before = text[max(0, found.start() - 1) : found.start()]
            if not (before.isalnum() or before in ("_", "-")) and _is_random(found[0][3:], 2.5):
                yield found.span()
    if "hooks.slack.com" in text:
        yield from (found.span() for found in SLACK_HOOK.finditer(text))
    if "-----BEGIN " in text:
        yield from _blocks(text)
    lower = text.lower()
    if any(sign in lower for sign in ASSIGNED_SIGNS):
        for found in ASSIGNED.finditer(text):
            name = re.split(r"[\"'=: \t]", found[0], maxsplit=1)[0]
            value = 1 if found[1] else 2
            if SECRET_NAME.search(text[max(0, found.start() - 12) : found.start()] + name) and _is_secret(found[value]):
                yield found.span(value)


def _blocks(text: str) -> Spans:
    free = 0
    for begin in BLOCK.finditer(text):
        if begin.start() < free:
            continue
        end_mark = f"-----END {begin[1]}-----"
        end = text.find(end_mark, begin.end(), begin.end() + BLOCK_LIMIT)
        if end >= 0:
            free = end + len(end_mark)
        else:
            body = BLOCK_BODY.match(text, begin.end(), begin.end() + BLOCK_LIMIT)
            free = begin.end() + len(body[0].rstrip() if body else "")
        yield begin.start(), free


def _is_secret(value: str) -> bool:
    """Random letters and digits; not a name, a path, a template or a word."""
    digits = sum(map(str.isdigit, value))
    letters = sum(map(str.isalpha, value))
    return digits >= 2 and letters >= 2 and not WORD_LIKE.search(value) and _is_random(value, ENTROPY)


def _is_random(value: str, least: float) -> bool:
    counts = Counter(value).values()
    return -sum(count / len(value) * math.log2(count / len(value)) for count in counts) >= least


# -- all together ------------------------------------------------------------------------------------------------------
FINDERS: Mapping[PiiKind, Callable[[str], Spans]] = {
    "key": keys,
    "email": emails,
    "ip": ip_addresses,
    "card": cards,
    "phone": phones,
}
"""In the order in which they may claim a place."""


def find(text: str, kinds: Sequence[PiiKind]) -> list[Edit]:
    """Where the kinds are, as edits that put their names there; in order, not overlapping.

    What was found is masked before the search goes on, by as many characters as it has and between the brackets of its
    replacement: so the places stay, and a text in which everything is replaced is a text in which nothing is found.
    """
    edits: list[Edit] = []
    searching = True
    while searching:
        searching = False
        for kind in (kind for kind in FINDERS if kind in kinds):
            spans = _apart(FINDERS[kind](text))
            if spans:
                searching = True
                edits += [Edit(start, end, f"[{kind}]", kind) for start, end in spans]
                text = _masked(text, spans)
    return sorted(edits, key=lambda edit: edit.start)


def _apart(spans: Spans) -> list[tuple[int, int]]:
    """In order; of two that overlap, the one that begins first, or else the longer one."""
    apart: list[tuple[int, int]] = []
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if not apart or start >= apart[-1][1]:
            apart.append((start, end))
    return apart


def _masked(text: str, spans: Sequence[tuple[int, int]]) -> str:
    pieces, at = [], 0
    for start, end in spans:
        pieces += [text[at:start], "[", "#" * (end - start - 2), "]"]
        at = end
    return "".join([*pieces, text[at:]])


class PiiScrubber(CleaningStep):
    """Replaces what it finds by its kind in brackets, or drops the text; each kind is counted."""

    def __init__(self, settings: Pii) -> None:
        self._kinds, self._drops = tuple(settings.kinds), settings.action == "drop"

    def judge(self, row: int, text: str) -> Verdict:
        """The text without personal data and secrets."""
        edits = find(text, self._kinds)
        if edits and self._drops:
            counts = Counter(edit.rule for edit in edits)
            return dropped(edits[0].rule, "found: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
        return edited(text, edits)
