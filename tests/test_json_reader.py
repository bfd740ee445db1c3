"""base/json_read.c against Python's json: what is JSON, which value it has and where the value's
bytes are, on written cases, generated documents and damaged ones."""
from __future__ import annotations

import fractions
import json
import math
import random
import struct
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import ROOT

MAX_DEPTH = 64
Read = Callable[[list[bytes]], list[str]]


@pytest.fixture(scope="module", params=["plain", "sanitize"])
def read(request: pytest.FixtureRequest, driver) -> Read:
    """read(texts) -> a line of tests/json_driver.c for each."""
    exe = (driver("json_driver") if request.param == "plain"
           else ROOT / "build-sanitize" / "json_driver")
    assert exe.exists(), "make sanitize-test first"

    def lines(texts: list[bytes]) -> list[str]:
        data = b"".join(struct.pack("<I", len(t)) + t for t in texts)
        done = subprocess.run([exe], input=data, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr.decode()[:3000]
        out = done.stdout.decode().split("\n")
        assert out.pop() == "" and len(out) == len(texts)
        return out

    return lines


class Pairs(list):
    """An object: its (name, value) pairs, repeated names too."""


def no_constant(name: str) -> None:
    raise ValueError(name)


def number(text: str) -> tuple[float, int | None]:
    """(the double, the whole number where 64 bits hold it)."""
    mantissa, _, exponent = text.lower().partition("e")
    v = float(text)
    if abs(int(exponent or 0)) > 5000:  # too far to be written out; then it is no such number
        return v, 0 if not mantissa.strip("-0.") else None
    exact = fractions.Fraction(mantissa) * fractions.Fraction(10) ** int(exponent or 0)
    whole = exact.denominator == 1 and -2**63 <= exact < 2**63
    return v, int(exact) if whole else None


def depth_of(text: str) -> int:
    """Of brackets outside strings, in a text that is JSON."""
    deepest = depth = 0
    quoted = escaped = False
    for c in text:
        if quoted:
            escaped, quoted = c == "\\" and not escaped, c != '"' or escaped
        elif c == '"':
            quoted = True
        elif c in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif c in "]}":
            depth -= 1
    return deepest


def strict(raw: bytes) -> Any:
    """The value by Python's json, numbers by number(); ValueError for what RFC 8259 or UTF-8 does
    not have."""
    text = raw.decode()
    v = json.loads(text, object_pairs_hook=Pairs, parse_constant=no_constant, parse_int=number,
                   parse_float=number)
    json.dumps(v, ensure_ascii=False).encode()  # a surrogate alone fails
    return v


def ours(line: str, raw: bytes) -> Any:
    """The value that the driver shows; each value's bytes must be that value by themselves."""
    words = iter(line.split())

    def value(letter: str, words: Iterator[str]) -> tuple[str, Any]:
        start, length = int(next(words)), int(next(words))
        own = raw[start:start + length]
        key = bytes.fromhex(next(words)[1:]).decode()
        v: Any
        if letter in "ntf":
            v = {"n": None, "t": True, "f": False}[letter]
            assert own == {"n": b"null", "t": b"true", "f": b"false"}[letter]
        elif letter == "#":
            v, whole = float.fromhex(next(words)), next(words)
            v = (v, None if whole == "-" else int(whole))
            assert own.decode() == own.decode().strip("\t\n\r ,:]}")
        elif letter == "s":
            v = bytes.fromhex(next(words)[1:]).decode()
            assert own[:1] == own[-1:] == b'"' and len(own) >= 2
        else:
            items = []
            while (inner := next(words)) != "]":
                items.append(value(inner, words))
            v = Pairs(items) if letter == "{" else [item for _, item in items]
            assert own[:1] + own[-1:] == (b"{}" if letter == "{" else b"[]")
        if len(raw) < 2000 or letter not in "[{":
            assert same(strict(own), v), own
        return key, v

    key, v = value(next(words), words)
    assert not key and not list(words)
    return v


def same(a: Any, b: Any) -> bool:
    """Equal, with types and signs of zeros."""
    if isinstance(a, tuple):
        return (isinstance(b, tuple) and a == b
                and math.copysign(1, a[0]) == math.copysign(1, b[0]))
    if isinstance(a, (Pairs, list)):
        if isinstance(a, Pairs) and a and isinstance(b, Pairs):
            return len(a) == len(b) and all(
                x[0] == y[0] and same(x[1], y[1]) for x, y in zip(a, b))
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def compare(read: Read, texts: list[bytes]) -> tuple[int, int]:
    """(texts that are JSON, texts that are not); both readers must say the same of each."""
    good = bad = 0
    for raw, line in zip(texts, read(texts)):
        try:
            want = strict(raw)
        except (ValueError, RecursionError):
            assert line.startswith("! JSON at byte "), (raw[:200], line[:200])
            at = int(line.split()[4].rstrip(":"))
            assert 1 <= at <= len(raw) + 1, (raw[:200], line)
            bad += 1
            continue
        if depth_of(raw.decode()) > MAX_DEPTH:
            assert "more than 64 objects and lists" in line, (raw[:200], line[:200])
            bad += 1
            continue
        assert not line.startswith("!"), (raw[:200], line)
        assert same(want, ours(line, raw)), (raw[:200], line[:200])
        good += 1
    return good, bad


# ---- written cases, by the parts of the grammar that JSONTestSuite visits ------------------------

YES = [
    # white space and the top level
    "1", "-0", '"x"', "true", " null", "\t[\r\n]\n", "[]", "{}", "[ ]", "{ \n}", '""', "[null]\n",
    # lists and objects
    "[[]]", "[[],[[]]]", "[1,null,true,false,\"\",{},[]]", '{"":0}', '{"a":1,"a":1}',
    '{"a":1,"a":2}', '{"a":{"a":{"a":[]}}}', '{"\\u0000":"\\u0000"}', '{"a":"","b":[]}',
    "{\"k\" \n: \t1 , \"l\":2 }", "[" + "[{}]," * 100 + "0]",
    "[" * 64 + "]" * 64, '{"a":' * 63 + "[]" + "}" * 63,
    # numbers
    "0", "-1", "[0,-0,0.0,-0.0]", "123", "1e1", "1E1", "1e+1", "1e-1", "1.5E+002", "0e1", "0E-0",
    "0.1", "20e1", "-123.456e-7", "1e00001", "0.00000000000000000000000000000000000001",
    "123456789012345678901234567890", "-98765432109876543210e-11", "1e400", "-1e400", "1e-400",
    "0.4e006699999999999999999999", "1.7976931348623157e308", "1.7976931348623159e308",
    "4.9e-324", "2.4703282292062327e-324", "2.4703282292062328e-324", "9007199254740993",
    "9223372036854775807", "-9223372036854775808", "9223372036854775808", "1.0", "100e-2",
    "2.2250738585072011e-308", "6.6312368714696275e-316", "1" + "0" * 308, "1" + "0" * 400,
    "0." + "0" * 400 + "1e401", "9" * 1000 + "e-1000",
    # strings
    '"\\"\\\\\\/\\b\\f\\n\\r\\t"', '"\\u0060\\u012a\\u12AB\\uaBcD"', '"\\ud801\\udc37"',
    '"\\uD83D\\uDE39\\ud83d\\ude39"', '"\\uDBFF\\uDFFE"', '"\\u0000"', '"\\u001f"', '"\\uFFFF"',
    '"\\u2028\\u2029"', '"/*not a comment*/"', '"\\\\u0041"', '"\\\\a"', '"\x7f"', '"a\x7fb"',
    '"\u20ac\U0001d11e\u2028\u2029\ufeff\ufffe\uffff\U0010ffff"', '"\\u0022\\u005C"', '" "',
    '"new\\u000Aline"', '"\\ud7ff\\ue000"', '"\u0080\u07ff\u0800\ud7ff\ue000\U00010000"',
]

NO = [
    # nothing, or too much
    "", " ", "\n", "[1]x", "[][]", "{}{}", '""""', "1 2", "[]]", "{}}", "[1],", "[] #", "/**/[]",
    "[1]//x", "nulll", "true1", "]", "}", ",", ":", "\\u0031", "abc", "'a'", "*", "[1]\0", "\0",
    "\x0b[]", "\x0c[]", "\u00a0[]", "\u2060[]", "\ufeff[]", "[\ufeff]", "\u2028[]",
    # lists
    "[", "[1", "[1,", "[,", "[,1]", "[1,]", "[1,,2]", "[1,,]", "[1 true]", "[1:2]", '["a":1]',
    '["a" "b"]', "[}", "[1}", "(1)", "[\n1\n,1\n,", '["', '["a', "[*]", "[a", "[\x0b]", "[-]",
    # objects
    "{", '{"', '{"a', '{"a"', '{"a":', '{"a":1', '{"a":1,', '{"a":1,}', '{"a":1,,}', '{,"a":1}',
    '{"a",1}', '{"a"}', '{"a" "b"}', '{"a"::1}', '{"a":1 "b":2}', "{a:1}", "{'a':1}", "{1:1}",
    "{null:1}", "{[]:1}", '{"a":}', '{"a":1]', "{]", '{"a":1}#', '{"a":1}/**/', '{"a":/**/1}',
    '{"a":1,"a"}', '{"a":a}', '{"a":"b"}}', "{9999E9:1}", '{"\\ud800":1}', '{"a\n":1}',
    # words
    "nul", "tru", "fals", "True", "NULL", "nan", "NaN", "[NaN]", "Infinity", "-Infinity", "[+Inf]",
    "inf", "undefined", "n", "t", "f", "falsy", "t\0ue",
    # numbers
    "+1", "++1", "-", "--1", "- 1", "-a", "01", "-01", "00", "0x1", "0b1", "1_000", "1,000", ".5",
    "-.5", "1.", "[1.]", "1.e1", ".e1", "0.", "0.e1", "0e", "0e+", "1e", "1E", "1e+", "1e-", "1eE2",
    "1e1.5", "1.2.3", "1ea", "1+2", "1 000", "0x", "1f", "1L", "\uff11", "1\u0661", "2.e+3", "9.e",
    "1e\u0661", "-1x", "[1e]", "[0.1.2]", "1/2", "0\0",
    # strings
    '"', '"\\', '"\\"', '"a\\', '"\\a"', '"\\x00"', '"\\0"', '"\\u"', '"\\u1"', '"\\u12"',
    '"\\u123"', '"\\u123g"', '"\\u 123"', '"\\u+123"', '"\\U0041"', '"\\\U0001f300"', '"\\\n"',
    '"\\\'"', '"\t"', '"\n"', '"\0"', '"\x1f"', '"a\0a"', '"\\u00A', '"\\u000"', '"\\\0"',
    '"\\\\\\"',
    # halves of surrogate pairs
    '"\\ud800"', '"\\udc00"', '"\\udfaa"', '"\\ud800\\ud800"', '"\\ud800\\n"', '"\\ud800x"',
    '"\\ud800\\u"', '"\\ud800\\u1"', '"\\ud800\\u1x"', '"\\ud800\\', '"\\uD888\\u1234"',
    '"\\ud800\\ud800\\udc00"', '"\\udc00\\ud800"', '"\\udc00\\udc00"',
    '"\\ud800\\\\udc00"', '"\\uDBFF\\uE000"',
    # too deep
    "[" * 65 + "]" * 65, "[" * 100000, '{"":' * 100000, "[" * 500 + "]" * 500,
    '[{"":' * 33 + "1" + "}]" * 33,
]

# Bytes in a string that are no UTF-8.
NOT_UTF8 = [b"\xff", b"\x80", b"\xbf", b"\xc0\x80", b"\xc0\xaf", b"\xc1\xbf", b"\xc3", b"\xe9",
            b"\xe0\x80\x80", b"\xe0\x9f\xbf", b"\xe2\x82", b"\xed\xa0\x80", b"\xed\xbf\xbf",
            b"\xed\xa0\x81\xed\xb0\x80", b"\xf0\x80\x80\x80", b"\xf0\x8f\xbf\xbf", b"\xf0\x9f\x98",
            b"\xf4\x90\x80\x80", b"\xf4\xbf\xbf\xbf", b"\xf5\x80\x80\x80", b"\xf8\x88\x80\x80\x80",
            b"\xfc\x83\xbf\xbf\xbf\xbf", b"\xfe", b"\xe5", b"\xc3(", b"\xe2(\xa1", b"\xf0(\x8c\xbc"]


def test_what_is_json(read: Read) -> None:
    assert compare(read, [t.encode() for t in YES]) == (len(YES), 0)


def test_what_is_not(read: Read) -> None:
    texts = [t.encode("utf-8", "surrogatepass") for t in NO]
    for bad in NOT_UTF8:
        texts += [b'"' + bad + b'"', b'["a' + bad + b'b"]', b'{"' + bad + b'":1}',
                  b"[" + bad + b"]",
                  b'"' + bad, b'"\\n' + bad + b'"', bad]
    texts += [t.encode(code) for code in ("utf-16", "utf-16-le", "utf-16-be", "utf-32")
              for t in ('["\u00e9"]', "[1]", '"x"')]
    assert compare(read, texts) == (0, len(texts))


def test_every_cut(read: Read) -> None:
    text = '{"a\\n\\ud83d\\ude39":[-1.5e+3,true,false,null,"\u00e9\U0001f600\\u0041",{}], "b" : ""}'
    raw = text.encode()
    assert compare(read, [raw[:n] for n in range(len(raw) + 1)]) == (1, len(raw))


# ---- generated documents -------------------------------------------------------------------------

LETTERS = ['"', "\\", "/", "\b", "\f", "\n", "\r", "\t", "\0", "\x1f", "\x7f", "a", "bc", " ", "u",
           "\u00e9", "\u20ac", "\ufffd", "\uffff", "\U0001f600", "\U0010ffff", "{", "]", ",", ":"]


def number_text(rng: random.Random) -> str:
    def digits(most: int) -> str:
        return "".join(rng.choices("0123456789", [5, *[1] * 9], k=rng.randint(1, most)))

    kind = rng.randrange(6)
    if kind == 0:
        return repr(struct.unpack("<d", rng.randbytes(8))[0]).replace("nan", "0").replace(
            "inf", "1e309")
    if kind == 1:
        return str(rng.choice([0, 1, -1, 10, 2**31, 2**53, 2**63, -2**63, 2**64])
                   + rng.randint(-2, 2))
    if kind == 2:  # a midpoint between two doubles, or beside it
        v = abs(struct.unpack("<d", rng.randbytes(8))[0])
        if not 1e-320 < v < 1e308:
            v = 1.5
        middle = (fractions.Fraction(v) + fractions.Fraction(math.nextafter(v, math.inf))) / 2
        scale = middle.denominator.bit_length() - 1
        return f"{middle.numerator * 5**scale + rng.randint(-1, 1)}e-{scale}"
    whole = digits(rng.choice([3, 20, 400])).lstrip("0") or "0"
    text = rng.choice(["", "-"]) + whole
    if rng.random() < 0.5:
        text += "." + digits(rng.choice([3, 20, 900]))
    if rng.random() < 0.5:
        text += rng.choice("eE") + rng.choice(["", "+", "-"]) + digits(rng.choice([1, 3, 4]))
    return text


def string_text(rng: random.Random) -> str:
    text = "".join(rng.choices(LETTERS, k=rng.choice([0, 1, 3, 40])))
    if rng.random() < 0.3:  # every character escaped, surrogate pairs by their halves
        units = text.encode("utf-16-be")
        return '"' + "".join(rng.choice(["\\u{:04x}", "\\u{:04X}"]).format(
            units[i] << 8 | units[i + 1]) for i in range(0, len(units), 2)) + '"'
    return json.dumps(text, ensure_ascii=rng.random() < 0.5)


def document(rng: random.Random, depth: int) -> str:
    def space() -> str:
        return "".join(rng.choices(" \t\n\r", k=rng.choice([0, 0, 0, 1, 3])))

    kind = rng.randrange(7 if depth else 4)
    if kind == 0:
        return space() + rng.choice(["null", "true", "false"]) + space()
    if kind < 3:
        return space() + number_text(rng) + space()
    if kind == 3:
        return space() + string_text(rng) + space()
    items = [document(rng, depth - 1) for _ in range(rng.choice([0, 1, 2, 5]))]
    if kind == 4:
        return space() + "[" + (",".join(items) or space()) + "]" + space()
    pairs = [space() + string_text(rng) + space() + ":" + i for i in items]
    if pairs and rng.random() < 0.2:
        pairs.append(rng.choice(pairs))
    return space() + "{" + (",".join(pairs) or space()) + "}" + space()


def damaged(rng: random.Random, raw: bytes) -> bytes:
    out = bytearray(raw)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            out[at:at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            out[at:at] = bytes([rng.choice(b'"\\[]{},:0123456789.eE+- \tnulltrue\x00\x80\xed')])
        elif kind == 2:
            del out[at:at + rng.choice([1, 1, 2, 10])]
        else:
            other = rng.randrange(len(out) + 1)
            out[at:at] = out[other:other + rng.randint(1, 8)]
    return bytes(out)


def test_generated(read: Read) -> None:
    rng = random.Random(1)
    texts = [document(rng, 4).encode() for _ in range(4000)]
    assert compare(read, texts) == (len(texts), 0)


def test_numbers(read: Read) -> None:
    rng = random.Random(2)
    texts = [number_text(rng).encode() for _ in range(6000)]
    assert compare(read, texts) == (len(texts), 0)


def test_damaged(read: Read) -> None:
    rng = random.Random(3)
    short = [t for t in (document(rng, 3).encode() for _ in range(6000)) if len(t) < 300]
    good, bad = compare(read, [damaged(rng, t) for t in short])
    assert good > 700 and bad > 1500


@pytest.mark.parametrize("depth", [1, 10, 63, 64, 65, 80])
def test_depth(read: Read, depth: int) -> None:
    rng = random.Random(depth)
    texts = []
    for _ in range(50):
        kinds = rng.choices(["[%s]", '{"k":%s}', "[1,%s,2]", '{"a":1,"b":%s}'], k=depth)
        text = "0"
        for kind in kinds:
            text = kind % text
        texts.append(text.encode())
    assert compare(read, texts) == ((50, 0) if depth <= MAX_DEPTH else (0, 50))
