"""Constrained output: JSON schemas. Every text validates with the jsonschema package, and the
matcher says of texts what llguidance says."""
from __future__ import annotations

import itertools
import json
import os
import random
import re
import subprocess
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator, Draft202012Validator

from command import error_of, run, text_of
from schemas import all_schemas

SCHEMAS = all_schemas()
ALL = os.environ.get("ATTNC_SCHEMAS") == "all"  # else a sample
SEEDS = 5 if ALL else 1
TEXTS = 60 if ALL else 8  # random texts of each schema
COMPARED = 120 if ALL else 30  # those that both matchers see, as many again with an edit
WHITE = r"( |\n[ \t]{0,20})?"  # what json_expr.h says


def check(schema: Any, text: str) -> Any:
    """The value, which must be valid."""
    draft7 = isinstance(schema, dict) and "draft-07" in schema.get("$schema", "")
    cls = Draft7Validator if draft7 else Draft202012Validator
    value = json.loads(text)
    cls(schema, format_checker=cls.FORMAT_CHECKER).validate(value)
    return value


def write(folder: Path, schema: Any) -> Path:
    path = folder / "schema.json"
    path.write_text(json.dumps(schema, ensure_ascii=len(str(schema)) % 2 == 0))
    return path


def ask(driver: Path, path: Path, lines: list[str]) -> list[str]:
    done = subprocess.run([driver, "schema", path], input="".join(f"{x}\n" for x in lines),
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_enough() -> None:
    assert len(SCHEMAS) >= 200


def test_generated_with_a_random_model(run_bin: Path, tiny_model: Path, tmp_path: Path) -> None:
    """What a random model writes under each schema: each text that it finishes is valid, and most
    are finished."""
    finished = total = 0
    for name, schema in SCHEMAS.items():
        path = write(tmp_path, schema)
        for seed in range(SEEDS):
            done = run(run_bin, tiny_model, "-i", "a", "-n", "240", "-s", str(seed), "--temp", "2",
                       "--top-k", "0", "--json-schema-file", path, "-v", "-t", "1")
            assert done.returncode == 0, (name, done.stderr)
            total += 1
            if b"ended by: -n" not in done.stderr and b"ended by: the context" not in done.stderr:
                finished += 1
                check(schema, done.stdout.decode())
    assert finished > 0.6 * total, (finished, total)


def test_generated_with_smollm2(run_bin: Path, smollm2_path: Path, tmp_path: Path) -> None:
    finished = total = 0
    names = sorted(SCHEMAS)[::6] if ALL else sorted(SCHEMAS)[::28]
    for name in names:
        path = write(tmp_path, SCHEMAS[name])
        for seed in range(SEEDS):
            done = run(run_bin, smollm2_path, "-i", "An example, as JSON: ", "-n", "100", "-s",
                       str(seed), "--json-schema-file", path, "-v")
            total += 1
            if b"ended by: -n" not in done.stderr:
                finished += 1
                check(SCHEMAS[name], done.stdout.decode())
    assert finished > 0.5 * total


def test_random_texts_are_valid(driver, tmp_path: Path) -> None:
    """Random texts of each grammar, byte by byte."""
    drive, n = driver("grammar_driver"), 0
    for name, schema in SCHEMAS.items():
        for line in ask(drive, write(tmp_path, schema), [f"walk {i}" for i in range(TEXTS)]):
            if line != "-":
                check(schema, bytes.fromhex(line).decode())
                n += 1
    assert n > 0.8 * TEXTS * len(SCHEMAS)


# ---- llguidance ----------------------------------------------------------------------------------


def for_llguidance(schema: Any) -> Any:
    """The same schema with what we take for granted said: objects are closed, required properties
    come first, tuples have all their items."""
    if isinstance(schema, list):
        return [for_llguidance(x) for x in schema]
    if not isinstance(schema, dict):
        return schema
    out = {k: v if k in ("enum", "const") else for_llguidance(v) for k, v in schema.items()}
    if isinstance(out.get("properties"), dict) and isinstance(schema.get("type"), (str, list)):
        required = out.get("required", [])
        named = {k: v for k, v in out["properties"].items()}
        if required and any(name not in named for name in required):
            named |= {k: True for k in required if k not in named}
        out["properties"] = {k: named[k] for k in sorted(named, key=lambda k: k not in required)}
        out.setdefault("additionalProperties", False)
    if "prefixItems" in out:
        out.setdefault("items", False)
        least = len(out["prefixItems"])
        out.setdefault("minItems", min(least, out.get("maxItems", least)))
    if "oneOf" in out:
        out["x-guidance"] = {"coerce_one_of": True}
    return out


class LLGuidance:
    def __init__(self, schema: Any) -> None:
        from llguidance import LLMatcher, LLTokenizer

        grammar = LLMatcher.grammar_from_json_schema(json.dumps(for_llguidance(schema)),
                                                     defaults={"whitespace_pattern": WHITE})
        self.matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0)
        assert not self.matcher.get_error(), self.matcher.get_error()

    def accepts(self, text: bytes) -> bool:
        self.matcher.reset()
        n = self.matcher.try_consume_tokens(list(text))
        return n == len(text) and self.matcher.is_accepting()


# Not compared: what llguidance refuses or orders otherwise, numbers that it spells otherwise, and
# ranges of fractions, of which it leaves some out (0.7 from 0.5 to 0.75); these have a test of
# their own below.
OTHERWISE = {"combined 5", "combined 6", "combined 9", "combined 18", "member 19", "member 21",
             "member 22", "value 3", "list of 3"}
# Longer numbers, and in names other escapes, than ours have.
LONG = re.compile(rb"\d{15}|\d\.\d{12}|[eE][+-]?\d{3}|\\u(?!00[01]|007[fF])")


def has_fractions(schema: Any) -> bool:
    """Whether a range of fractions is in it."""
    if isinstance(schema, list):
        return any(map(has_fractions, schema))
    if not isinstance(schema, dict):
        return False
    return ("number" in str(schema.get("type")) and any("imum" in k for k in schema)
            or any(map(has_fractions, schema.values())))


def edit(rng: random.Random, text: bytes) -> bytes:
    """One byte added, removed or changed, or two changed over."""
    at = rng.randrange(len(text) + 1)
    c = rng.choice([b'"', b",", b"{", b"}", b"[", b"]", b":", b" ", b"0", b"1", b"9", b"-", b".",
                    b"a", b"b", b"x", b"\\", b"\n", b"e", b"\xc3", bytes([rng.randrange(256)])])
    return rng.choice([text[:at] + c + text[at:], text[:at] + text[at + 1:],
                       text[:at] + c + text[at + 1:],
                       text[:at] + text[at:][:2][::-1] + text[at + 2:]])


def test_verdicts_of_llguidance(driver, tmp_path: Path) -> None:
    """Random texts of each grammar and others one byte away: both matchers accept the same."""
    drive, n, n_accepted = driver("grammar_driver"), 0, 0
    for name, schema in SCHEMAS.items():
        if name in OTHERWISE or has_fractions(schema):
            continue
        path, rng, other = write(tmp_path, schema), random.Random(name), LLGuidance(schema)
        own = [bytes.fromhex(x) for x in ask(drive, path, [f"walk {i}" for i in range(COMPARED)])
               if x != "-"]
        texts = [t for t in own + [edit(rng, t) for t in own] if not LONG.search(t)]
        for text, line in zip(texts, ask(drive, path, [t.hex() for t in texts]), strict=True):
            assert other.accepts(text) == (line[0] == "1"), (name, schema, text)
            n += 1
            n_accepted += line[0] == "1"
    assert n >= 10000 and n / 4 < n_accepted < n * 3 / 4, (n, n_accepted)


NUMERIC = {n: s for n, s in SCHEMAS.items() if n.split()[0] in ("number", "integer", "whole")}


@pytest.mark.parametrize("name", NUMERIC)
def test_numbers(name: str, driver, tmp_path: Path) -> None:
    """Every number of up to 4 characters, and others near the bounds: accepted if it is in the
    range, written without an exponent and as a whole number where it has to be."""
    schema = NUMERIC[name]
    integer = schema["type"] == "integer"
    low, high = (Decimal(str(schema.get(k, d))) for k, d in (("minimum", "-inf"),
                                                             ("maximum", "inf")))
    over, under = (Decimal(str(schema.get(k, d))) for k, d in (("exclusiveMinimum", "-inf"),
                                                               ("exclusiveMaximum", "inf")))
    texts = ["".join(t) for n in range(5) for t in itertools.product("-.0159", repeat=n)]
    for bound in (low, high, over, under):
        if bound.is_finite():
            for step in ("0", "1", "0.1", "0.01", "0.0001", "0.0000001", "10"):
                texts += [f"{bound + Decimal(step):f}", f"{bound - Decimal(step):f}",
                          f"{bound + Decimal(step):f}0"]

    def allowed(text: str) -> bool:
        form = r"-?(0|[1-9]\d*)" + ("" if integer else r"(\.\d+)?")
        if not re.fullmatch(form, text) or re.fullmatch(r"-[0.]+", text):
            return False
        return low <= Decimal(text) <= high and over < Decimal(text) < under

    hexes = [t.encode().hex() for t in texts]
    lines = ask(driver("grammar_driver"), write(tmp_path, schema), hexes)
    for text, line in zip(texts, lines, strict=True):
        assert allowed(text) == (line[0] == "1"), text


@pytest.mark.parametrize("name", sorted(SCHEMAS)[::20])
def test_masks(name: str, driver, tmp_path: Path, tiny_model: Path, smollm2_path: Path) -> None:
    path, drive = write(tmp_path, SCHEMAS[name]), driver("grammar_driver")
    texts = [x for x in ask(drive, path, [f"walk {i}" for i in range(9)]) if x != "-"]
    for model, n in ((tiny_model, 3), (smollm2_path, 1)):
        for text in sorted(texts, key=len)[:n]:
            done = subprocess.run([drive, "schema", path, model], input=text + "\n", text=True,
                                  capture_output=True, timeout=120)
            accepted, _, n_allowed, wrong = map(int, done.stdout.split())
            assert accepted and n_allowed and not wrong


# ---- errors --------------------------------------------------------------------------------------

REFUSED = {
    '{"type": "string", "not": {}}': '#: the keyword "not" is not supported',
    '{"properties": {"a": {"if": true}}}': '#/properties/a: the keyword "if" is not supported',
    '{"type": "array", "uniqueItems": true}': '"uniqueItems" is not supported',
    '{"type": "array", "contains": {}}': '"contains" is not supported',
    '{"type": "object", "patternProperties": {}}': '"patternProperties" is not supported',
    '{"type": "object", "minProperties": 1}': '"minProperties" is not supported',
    '{"type": "object", "propertyNames": {}}': '"propertyNames" is not supported',
    '{"type": "object", "dependentRequired": {}}': '"dependentRequired" is not supported',
    '{"type": "object", "unevaluatedProperties": false}': '"unevaluatedProperties" is not supp',
    '{"type": "integer", "multipleOf": 3}': '"multipleOf" is not supported',
    '{"type": "string", "contentEncoding": "base64"}': '"contentEncoding" is not supported',
    '{"typ": "string"}': '"typ" is not supported',
    '{"type": "string", "format": "uri"}': '#/format: the format "uri" is not supported',
    '{"type": "str"}': '#/type: the type "str" is none',
    '{"type": ["string", 3]}': '#/type/1: the type "3" is none',
    '{"$ref": "http://x.y/z"}': 'the reference "http://x.y/z" is not supported',
    '{"$ref": "#/$defs/a"}': 'leads nowhere',
    '{"$ref": "#"}': "no text at all matches",
    '{"anyOf": [{"type": "null"}, {"$ref": "#"}]}': "rule # begins with itself",
    '{"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"const": 1}]}}}':
        "rule a begins with itself",
    '{"allOf": [{"$ref": "#"}, {"type": "object"}]}': "joined here, or one with itself",
    '{"type": "object", "anyOf": [{"$ref": "#"}, {"minimum": 3}]}': "too many alternatives",
    '{"type": "integer", "minimum": 3, "maximum": 2}': '#: no number is in the range',
    '{"type": "number", "exclusiveMinimum": 3, "maximum": 3}': '#: no number is in the range',
    '{"type": "number", "minimum": 0.12345678901234567}': "more than 15 digits",
    '{"type": "integer", "minimum": "3"}': '#/minimum: want a number',
    '{"type": "integer", "minimum": 2.2, "maximum": 2.8}': "no text at all matches",
    '{"type": "string", "minLength": 4, "maxLength": 3}': '#: maxLength is less than minLength',
    '{"type": "string", "minLength": -1}': '#/minLength: want a whole number',
    '{"type": "string", "maxLength": 3, "pattern": "a"}': '#/pattern: minLength or maxLength',
    '{"type": "string", "pattern": "(?=a)"}': "lookaround is not supported",
    '{"type": "string", "pattern": "(a)\\\\1"}': "references to groups are not supported",
    '{"type": "string", "pattern": "\\\\bword"}': "\\b is not supported",
    '{"type": "string", "pattern": "\\\\p{L}"}': "\\p is not supported",
    '{"type": "string", "pattern": "(a"}': "no closing parenthesis",
    '{"type": "string", "pattern": "a)"}': "no opening parenthesis",
    '{"type": "string", "pattern": "[a"}': "no closing bracket",
    '{"type": "string", "pattern": "a(^b)"}': "an anchor is supported only at the ends",
    '{"type": "string", "pattern": "*"}': "nothing to repeat",
    '{"type": "string", "pattern": "a{2,1}"}': "want a closing brace",
    '{"type": "string", "pattern": 3}': "#/pattern: want a string",
    '{"type": "string", "format": "date", "pattern": "a"}': "a pattern beside a format",
    '{"type": "array", "items": 3}': "#/items: want a schema",
    '{"type": "array", "items": {}, "minItems": 3, "maxItems": 2}': "less than minItems",
    '{"type": "array", "items": false, "minItems": 1}': "more than there are items",
    '{"type": "array", "prefixItems": [{}], "minItems": 2}': "more than there are items",
    '{"type": "array", "prefixItems": []}': "want a list that is not empty",
    '{"type": "object", "properties": []}': "#/properties: want an object",
    '{"type": "object", "properties": {"a": 1}}': "#/properties/a: want a schema",
    '{"type": "object", "required": "a"}': "#/required: want a list of names",
    '{"type": "object", "properties": {}, "required": ["a"], "additionalProperties": false}':
        'the property "a" is required and not among',
    '{"type": "string", "enum": [1]}': "no value of enum or const is allowed",
    '{"type": "string", "enum": ["a"], "minLength": 1}': "beside enum or const",
    '{"enum": []}': "want a list that is not empty",
    '{"type": "string", "allOf": [{"type": "integer"}]}': "no type is allowed",
    '{"oneOf": [{"type": "integer"}, {"type": "number"}]}': "#/oneOf: a value may be of both",
    '{"oneOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}': "alternatives 0 and 1",
    '{"allOf": [{"properties": {"a": {}}, "additionalProperties": false}, '
    '{"properties": {"b": {}}}]}': "additionalProperties beside the properties of other schemas",
    '{"allOf": [{"properties": {"a": {"type": "string"}}}, '
    '{"properties": {"a": {"minLength": 2}}}]}': 'the property "a" is there twice',
    '{"allOf": [{"pattern": "a"}, {"pattern": "b"}]}': "there twice",
    "false": "no text at all matches",
    "3": "#: want a schema",
    "{": "JSON at byte 2",
    "": "JSON at byte 1",
}


@pytest.mark.parametrize("schema", REFUSED)
def test_refused(schema: str, any_run: Path, tiny_model: Path) -> None:
    line = error_of(any_run, tiny_model, "-i", "a", "--json-schema", schema, code=2)
    assert line.startswith("--json-schema: ") and REFUSED[schema] in line, line


def chain(n: int, form: str) -> str:
    """Definitions that each refer to the next one, which {} stands for."""
    link = ", ".join(f'"d{i}": ' + form.replace("{}", f'{{"$ref": "#/$defs/d{i + 1}"}}')
                     for i in range(n))
    return f'{{"$ref": "#/$defs/d0", "$defs": {{{link}, "d{n}": {{"type": "null"}}}}}}'


HOSTILE = {
    "doubling references": chain(200, '{"properties": {"a": {"allOf": [{}, {"title": "x"}]}, '
                                      '"b": {"allOf": [{}, {"title": "x"}]}}}'),
    "doubling alternatives": chain(200, '{"type": "object", "anyOf": [{}, {}]}'),
    "long chain": chain(20000, "{}"),
    "long chain of members": chain(20000, '{"properties": {"a": {"allOf": [{}, {}]}}}'),
    "long strings": '{"type": "string", "minLength": 1000000, "maxLength": 1000000}',
    "many items": '{"type": "array", "minItems": 1000000, "items": {"type": "array", '
                  '"minItems": 1000000, "items": {}}}',
    "many members": '{"type": "object", "properties": {' + ", ".join(
        f'"{i}": {{}}' for i in range(100000)) + "}}",
    "many values": '{"enum": [' + ", ".join(f'"{i}"' for i in range(200000)) + "]}",
    "many alternatives": '{"oneOf": [' + ", ".join(
        f'{{"const": {i}}}' for i in range(499)) + "]}",
    "too many alternatives": '{"oneOf": [' + ", ".join(
        f'{{"const": {i}}}' for i in range(5000)) + "]}",
    "many values compared": '{"oneOf": [{"enum": [' + ", ".join(
        str(i) for i in range(100000)) + ']}, {"enum": [' + ", ".join(
        str(-1 - i) for i in range(100000)) + "]}]}",
    "a long name": '{"type": "object", "properties": {"' + "a" * 100000
                   + '": {}}, "additionalProperties": true}',
    "names within names": '{"type": "object", "properties": {' + ", ".join(
        '"' + "a" * i + '": {}' for i in range(256)) + '}, "additionalProperties": true}',
    "the same keyword": "{" + ", ".join('"title": "x"' for _ in range(200000)) + "}",
    "groups": '{"type": "string", "pattern": "' + "(" * 50000 + '"}',
    "repeated repetitions": '{"type": "string", "pattern": "^((((a{99}){99}){99}){99}){99}$"}',
    "long pointer": '{"$ref": "#' + "/a" * 500000 + '"}',
    "ambiguous pattern": '{"type": "string", "pattern": "((a?b?){0,3000}){0,10}(x|y)*.*z"}',
    "big numbers": '{"type": "number", "minimum": -1e400, "maximum": ' + "9" * 100000 + "}",
    "zeros": '{"type": "integer", "minimum": 1' + "0" * 100000 + "}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_schemas_end(name: str, any_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(HOSTILE[name])
    begin = time.monotonic()
    done = run(any_run, tiny_model, "-i", "a", "-n", "3", "-s", "1",
               "--json-schema-file", path)
    seconds = time.monotonic() - begin
    assert done.returncode in (0, 2), done.stderr
    assert (done.returncode == 0) == (done.stderr == b"") and b"no such flag" not in done.stderr
    assert seconds < (20 if "sanitize" in str(any_run) else 2), seconds
    print(name, done.returncode, seconds, done.stderr[-150:])


def test_order(run_bin: Path, tiny_model: Path) -> None:
    """Required properties first, then the others, both as the schema has them."""
    schema = {"required": ["d", "b"], "type": "object",
              "properties": {k: {"type": "boolean"} for k in "abcde"}}
    for seed in range(12):
        text = text_of(run_bin, tiny_model, "-i", "a", "-s", str(seed), "--temp", "2", "-j",
                       json.dumps(schema))
        keys = list(json.loads(text))
        assert keys[:2] == ["b", "d"] and keys[2:] == sorted(keys[2:]) and set(keys[2:]) <= {*"ace"}
