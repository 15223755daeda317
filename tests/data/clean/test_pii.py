"""Personal data and secrets: what is found in sentences and in clean code, exact places, and nothing found twice."""

from __future__ import annotations

import base64
import random
import string
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from uplift.core.prepare_section import Pii
from uplift.data.clean.pii import FINDERS, PiiScrubber, find, passes_luhn

KINDS = tuple(FINDERS)
ITEMS = 600
SENTENCES = [
    "You can reach the office at {} on weekdays between nine and five.",
    "Please forward the invoice to {}, as agreed last Tuesday.",
    "{} was written on the back of the photograph.",
    "The report (see {}) lists 14 incidents in 2021 and 3 in 2022.",
    "Nobody answered; I had noted: {}",
    "In the log of 2021-03-04 12:30:45 we saw {} twice.",
    "Contact: {}.",
    "Her old one, {}; the new one was never printed.",
]


def letters(chance: random.Random, alphabet: str, count: int) -> str:
    return "".join(chance.choices(alphabet, k=count))


BASE62 = string.ascii_letters + string.digits
HEX = "0123456789abcdef"


def email(chance: random.Random) -> str:
    first, last = chance.choice(["anna", "J", "li.wei", "o'brien", "Søren", "max_m"]), chance.choice(["", "smith", "77", "k-l"])
    joint = chance.choice([".", "_", "-", "+"]) if last else ""
    host = chance.choice(
        ["gmail.com", "web.de", "mail.uni-ulm.de", "acme.co.uk", "firma.museum", "x1.io", "bücher.de", "a.b.c.org"]
    )
    return f"{first}{joint}{last}@{host}"


PHONES = """+49 30 #######|+49 (0)89 ### ## ##|+1 (2##) 5##-####|2##-5##-####|(3##) 6##-####|0171 #######|01 23 45 67 89|
+33 1 4# ## ## ##|020 79## ####|0049 89 #######|+81-3-5###-####|+44 (0)20 7### ####|+61 2 9### ####|+91 98### #####|06-1#######|
+4915#########|1-8##-5##-####|+39 06 4### ####|030/#######|+86 138 #### ####|+55 (11) 9####-####|4##.7##.####|+7 495 ###-##-##|
(030) 4## ## ##|+420 6## ### ###|+358 9 #######|0# ## ## ## ##""".replace("\n", "").split("|")


def phone(chance: random.Random) -> str:
    number = "".join(str(chance.randint(1, 9)) if mark == "#" else mark for mark in chance.choice(PHONES))
    return phone(chance) if len(set(filter(str.isdigit, number))) < 3 else number


def ip(chance: random.Random) -> str:
    if chance.random() < 0.5:
        first = chance.choice([each for each in range(11, 223) if each not in (100, 127, 169, 172, 192, 198, 203)])
        return f"{first}.{chance.randint(0, 255)}.{chance.randint(0, 255)}.{chance.randint(0, 255)}"
    groups = [f"{chance.randint(0x2400, 0x2FFF):x}", *(f"{chance.randint(1, 0xFFFF):x}" for _ in range(7))]
    return ":".join(groups) if chance.random() < 0.5 else ":".join(groups[: chance.randint(2, 4)]) + "::" + groups[-1]


CARDS = {
    "4": 16,
    "51": 16,
    "55": 16,
    "2221": 16,
    "2720": 16,
    "34": 15,
    "37": 15,
    "6011": 16,
    "65": 16,
    "36": 14,
    "3530": 16,
    "62": 16,
}


def card(chance: random.Random) -> str:
    start = chance.choice(list(CARDS))
    digits = start + letters(chance, string.digits, CARDS[start] - len(start) - 1)
    digits = next(digits + check for check in string.digits if passes_luhn(digits + check))
    gap = chance.choice(["", " ", "-"])
    sizes = {16: (4, 4, 4, 4), 15: (4, 6, 5), 14: (4, 6, 4)}[len(digits)]
    ends = [sum(sizes[:count]) for count in range(len(sizes) + 1)]
    return gap.join(digits[start:end] for start, end in zip(ends, ends[1:], strict=False))


def key(chance: random.Random) -> str:
    def coded(count: int) -> str:
        return base64.urlsafe_b64encode(chance.randbytes(count)).decode().rstrip("=")

    body = "\n".join(base64.b64encode(chance.randbytes(48)).decode() for _ in range(chance.randint(3, 25)))
    kind = chance.choice(["RSA ", "", "EC ", "OPENSSH "])
    return chance.choice(
        [
            "AKIA" + letters(chance, string.ascii_uppercase + "234567", 16),
            "ghp_" + letters(chance, BASE62, 36),
            "github_pat_" + letters(chance, BASE62, 22) + "_" + letters(chance, BASE62, 59),
            f"xoxb-{letters(chance, string.digits, 12)}-{letters(chance, BASE62, 24)}",
            "AIza" + letters(chance, BASE62 + "_-", 34) + "x",
            "sk_live_" + letters(chance, BASE62, 24),
            "sk-proj-" + letters(chance, BASE62, 48),
            "hf_" + letters(chance, string.ascii_letters, 34),
            f"eyJhbGciOi{letters(chance, BASE62, 20)}.eyJ{coded(60)}.{coded(32)}",
            f"-----BEGIN {kind}PRIVATE KEY-----\n{body}\n-----END {kind}PRIVATE KEY-----",
        ]
    )


MAKERS: dict[str, Callable[[random.Random], str]] = {"email": email, "phone": phone, "ip": ip, "card": card, "key": key}


@pytest.mark.parametrize("kind", KINDS)
def test_recall_on_generated_items_in_sentences(kind: str) -> None:
    chance = random.Random(7)
    found, missed = 0, []
    for number in range(ITEMS):
        item = MAKERS[kind](chance)
        text = SENTENCES[number % len(SENTENCES)].replace("{}", item)
        start = text.index(item)
        edits = find(text, KINDS)
        exact = [(edit.start, edit.end, edit.rule) for edit in edits] == [(start, start + len(item), kind)]
        found += exact
        missed += [] if exact else [(text, edits)]
    print(f"{kind}: {found} of {ITEMS} found, each with exactly its place; missed: {missed[:5]}")
    assert found >= 0.95 * ITEMS, missed[:10]


@pytest.mark.parametrize("quote", ["'", '"', ""])
def test_random_values_assigned_to_secret_names(quote: str) -> None:
    chance = random.Random(3)
    names = [
        "api_key",
        "API-KEY",
        "aws_secret_access_key",
        "authToken",
        "client_secret",
        "password",
        "DB_PASSWORD",
        "accessKey",
    ]
    found = 0
    for number in range(ITEMS):
        value = letters(chance, BASE62 if number % 2 else HEX, chance.choice([20, 32, 40, 64]))
        text = f"host = 'a'\n{names[number % len(names)]}{chance.choice([' = ', '=', ': '])}{quote}{value}{quote}\nport = 80\n"
        edits = find(text, ["key"])
        found += [text[edit.start : edit.end] for edit in edits] == [value]
    print(f"assigned, quote {quote!r}: {found} of {ITEMS}")
    assert found >= 0.95 * ITEMS


NOTHING = """On 2021-03-04 at 12:30:45.123456 the build 20210304123045 took 1,234,567.89 ms; pi is 3.14159265358979.
v1.22.33.44 and version 10.22.33.44, section 8.2.4.44, 192.168.178.33, 127.0.0.1, 10.20.30.40, 203.0.113.77, 255.255.255.0.
ISBN 978-3-16-148410-0, ISBN 0-306-40615-2, DOI 10.1000/182, order no. 4929123456781234, 1234567890123456.
someone@example.com, foo@bar.test, git@github.com:python/cpython.git, @property, user@localhost, logo@2x.png, a@b.T()
https://user:password@www.python.org/ ssh://git@host.example.org/x
12 24 48 96 192 384 768 1536 3072; 00 11 22 33 44 55 66 77; 0x0123 4567 89ab cdef; +0100; 1e+10; 2001:db8::1; fe80::1; ::1
01.02.2003 01-02-2003 2003-01-02 07/08/2021; 12:30:45:12; 00:1b:44:11:3a:b7; 10-20-30; 1990-2005; 100 000 000; 4.12.2020 18.30
token = tokenize.generate_tokens(readline); key = "some_dictionary_key"; password = getpass.getpass(prompt="Password: ")
secret_key = os.environ["SECRET_KEY"]; API_KEY = "your-api-key-goes-here-please"; token: str = "<placeholder>"; "key": "value"
sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"; sk-circle-fade-dot-container-animation-name
x = a +1234567 +89; tel: none; 5 000 000; #1234567890; 123456789012; 49301234567; lat 52.5200066, lon 13.404954
"""


def test_nothing_is_found_where_nothing_is() -> None:
    found = [(edit.rule, NOTHING[edit.start : edit.end]) for edit in find(NOTHING, KINDS)]
    assert found == []


def test_places_are_exact_and_replacing_again_finds_nothing() -> None:
    chance = random.Random(11)
    for _ in range(300):
        items = [(kind, MAKERS[kind](chance)) for kind in chance.choices(KINDS, k=chance.randint(1, 6))]
        joint = chance.choice([" ", ", ", "\n", " and ", "", ";", "(", "/"])
        text = "Dear all, " + joint.join(item for _, item in items) + " thanks."
        verdict = PiiScrubber(Pii()).judge(0, text)
        assert verdict.text is not None and verdict.edits is not None
        rebuilt, at = [], 0
        for edit in verdict.edits:
            assert edit.start >= at and edit.new == f"[{edit.rule}]"
            rebuilt += [text[at : edit.start], edit.new]
            at = edit.end
        assert "".join([*rebuilt, text[at:]]) == verdict.text
        assert sum(verdict.counts.values()) == len(verdict.edits)
        assert find(verdict.text, KINDS) == [], verdict.text


def test_kinds_can_be_chosen_and_a_row_can_be_dropped() -> None:
    text = "Ask ann@firm.de or +49 30 1234567."
    assert PiiScrubber(Pii(kinds=["phone"])).judge(0, text).text == "Ask ann@firm.de or [phone]."
    verdict = PiiScrubber(Pii(action="drop")).judge(0, text)
    assert verdict.text is None and verdict.counts == {"email": 1} and verdict.detail == "found: 1 email, 1 phone"
    assert PiiScrubber(Pii(action="drop")).judge(0, "Ask Ann.").text == "Ask Ann."


def test_a_private_key_without_end_goes_with_its_body() -> None:
    text = "a\n-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7\nabc+/=\n"
    assert PiiScrubber(Pii()).judge(0, text).text == "a\n[key]\n"


@pytest.mark.parametrize(
    "number, valid",
    [("4111111111111111", True), ("4111111111111112", False), ("79927398713", True), ("79927398710", False), ("0", True)],
)
def test_luhn(number: str, valid: bool) -> None:
    assert passes_luhn(number) is valid


HOSTILE = [
    "@",
    "a@",
    "@a.",
    "a.",
    "+1",
    "+",
    "1 ",
    "(1",
    "0 ",
    "1.",
    "1:",
    "2001:",
    "-----BEGIN PRIVATE KEY-----",
    "api_key=",
    "eyJ",
]
HOSTILE += ["sk-", "[", "://", "key: '", "4 ", "01 ", "'", "AKIA", "a", "9", " "]


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_text_takes_no_long_time(piece: str) -> None:
    text = piece * (100_000 // len(piece))
    start = time.process_time()
    verdict = PiiScrubber(Pii()).judge(0, text)
    assert find(verdict.text or "", KINDS) == []
    assert time.process_time() - start < 5


REAL_FALSE = {"phone": {"0031 2044 0034"}, "email": {"Pass", "pass", "password"}}
"""What was found in the standard library by mistake: code points, and what follows a user name in addresses of pages."""


@pytest.mark.slow
def test_precision_on_the_standard_library() -> None:
    library = Path(sys.base_prefix) / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    hits: list[tuple[str, str]] = []
    for path in sorted(library.rglob("*.py")):
        if "site-packages" in path.parts:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        hits += [(edit.rule, text[edit.start : edit.end]) for edit in find(text, KINDS)]
    wrong = [hit for hit in hits if hit[1].partition("@")[0] in REAL_FALSE.get(hit[0], ())]
    others = [hit for hit in hits if hit[0] in ("card", "key")]
    print(f"{len(hits)} found in {library}, {len(wrong)} by mistake; cards and keys: {others}")
    assert len(hits) > 300 and len(wrong) <= 0.02 * len(hits) and not others
