"""Schemas for tests/test_schema.py: by keyword, in combinations, and such as people write for
extraction, tools and configuration (after the manner of public collections, written anew)."""
from __future__ import annotations

from typing import Any

Schema = Any


def obj(required: str = "", closed: bool | None = None, **properties: Schema) -> Schema:
    """An object; `required` are the names of required properties."""
    schema: Schema = {"type": "object", "properties": properties}
    if required:
        schema["required"] = required.split()
    return schema if closed is None else schema | {"additionalProperties": not closed}


def array(items: Schema, least: int | None = None, most: int | None = None) -> Schema:
    return {"type": "array", "items": items} | ({} if least is None else {"minItems": least}) | (
        {} if most is None else {"maxItems": most})


def text(least: int = 0, most: int | None = None, **more: Schema) -> Schema:
    return {"type": "string"} | ({"minLength": least} if least else {}) | (
        {} if most is None else {"maxLength": most}) | more


def whole(low: int | None = None, high: int | None = None) -> Schema:
    return {"type": "integer"} | ({} if low is None else {"minimum": low}) | (
        {} if high is None else {"maximum": high})


STRING, INTEGER, NUMBER, BOOLEAN = ({"type": t} for t in ("string", "integer", "number", "boolean"))
SHORT = text(1, 12)

RANGES = [(0, 0), (0, 9), (0, 10), (1, 99), (7, 123), (-5, 5), (-123, -7), (-10, 0), (100, 1000),
          (999, 1001), (-1, 100000), (18, None), (None, -3), (None, 250), (-40, None), (5, 5),
          (2147483640, 2147483647), (1999, 2031), (-20, 20), (50, 149)]
BOUNDS = [{"minimum": 0, "maximum": 1}, {"minimum": 0.5, "maximum": 0.75}, {"minimum": -1.5},
          {"maximum": 2.25}, {"exclusiveMinimum": 0}, {"exclusiveMaximum": 0},
          {"exclusiveMinimum": 0, "exclusiveMaximum": 1}, {"minimum": -90, "maximum": 90},
          {"minimum": -180.0, "exclusiveMaximum": 180}, {"minimum": 0.001, "maximum": 0.0015},
          {"minimum": 99.5, "maximum": 1000.25}, {"exclusiveMinimum": -2.5, "maximum": -0.125},
          {"minimum": 1e2, "maximum": 1.5e3}, {"exclusiveMinimum": 36.6, "maximum": 42}]
PATTERNS = ["^[a-z]{3}$", "^[A-Z]{2}[0-9]{4}$", "^\\d{3}-\\d{4}$", "^(foo|bar)+$", "^a?b*c+$",
            "^[^a-z]{2,5}$", "^\\S+@\\S+$", "ab", "^x", "y$", "^$|^none$", "^(a|b(c|d)?){1,3}$",
            "^#[0-9a-fA-F]{6}$", "^v?\\d+\\.\\d+\\.\\d+$", "^[\\w.-]{1,10}$", "^\"quoted\"$",
            "^\\\\path\\\\[a-z]+$", "^[äöüß]{2,4}$", "^.{4}$", "^\\u0041\\x42C$", "^[\\]\\[^-]+$",
            "^(?:\\+\\d{1,3} )?\\d{6,10}$", "^[\\n\\t ]{3}$", "^/[a-z/]*$", "a.c|^d",
            "^[A-Za-z_][A-Za-z0-9_]*$", "^(?:[a-c]{2}){2,3}?$", "^é+😀?$"]
VALUES: list[Schema] = [
    {"enum": ["red", "green", "blue"]}, {"const": 42}, {"const": "a \"b\" \\ c\n\t\u0001é"},
    {"enum": [1, 2.5, -3e2, None, True, "x", [], {}, [1, [2]], {"a": {"b": None}}]},
    {"const": {"kind": "none", "list": [1, 2]}}, {"enum": [""]}, {"type": "null"}, BOOLEAN,
    {"type": ["string", "null"], "maxLength": 5}, {"type": ["integer", "boolean"], "minimum": 3},
    {"type": "string", "enum": ["a", 1, "b"]}, {"type": "number", "const": 1.50},
    {"enum": [f"option {i}" for i in range(40)]}]
FORMATS = ["date", "time", "date-time", "uuid", "ipv4", "email"]
STRINGS = [text(), text(3), text(0, 3), text(2, 4), text(0, 0), text(5, 5), text(1, 60), text(20)]
ARRAYS = [array(INTEGER), array(BOOLEAN, 2), array(STRING, 0, 2), array(whole(0, 9), 3, 3),
          array(array(BOOLEAN, 1, 2), 1, 3), array({"enum": ["x", "y"]}, 0, 0), array(NUMBER, 1, 4),
          {"type": "array", "items": False}, {"type": "array", "maxItems": 2},
          {"type": "array", "prefixItems": [STRING, INTEGER]},
          {"type": "array", "prefixItems": [BOOLEAN, {"type": "null"}], "items": whole(0, 5)},
          {"type": "array", "prefixItems": [BOOLEAN, INTEGER], "items": False, "minItems": 1},
          {"type": "array", "prefixItems": [SHORT, SHORT], "items": BOOLEAN, "maxItems": 4},
          {"type": "array", "items": [INTEGER, STRING], "additionalItems": False,
           "$schema": "http://json-schema.org/draft-07/schema#"},
          {"type": "array", "prefixItems": [obj("a", a=BOOLEAN)], "minItems": 0, "items": False}]
OBJECTS = [
    obj(a=INTEGER), obj("a", a=INTEGER), obj("b", a=INTEGER, b=BOOLEAN),
    obj("a b", a=SHORT, b=SHORT),
    obj("c a", a=BOOLEAN, b=BOOLEAN, c=BOOLEAN, d=BOOLEAN), obj(closed=True),
    obj(a=BOOLEAN, b=BOOLEAN, c=BOOLEAN, d=BOOLEAN), obj("a", closed=False, a=INTEGER, ab=BOOLEAN),
    {"type": "object"}, {"type": "object", "additionalProperties": whole(0, 99)},
    {"type": "object", "additionalProperties": {"type": "array", "items": BOOLEAN}},
    obj("x", x=obj("y", y=obj("z", z=whole(0, 3)))),
    {"properties": {"a": BOOLEAN}, "required": ["a", "extra"], "type": "object"},
    obj(**{"quote\"d é\n": BOOLEAN, "": INTEGER}) | {"required": ["quote\"d é\n"]},
    obj("a", a=True, b=False, c=BOOLEAN),
    {"type": "object", "properties": {"a": BOOLEAN}, "additionalProperties": INTEGER},
    obj("id", id=whole(1), tags=array(SHORT, 0, 3), parent=obj("id", id=whole(1))),
]
TREE: Schema = {
    "$defs": {"tree": obj("value", value=whole(0, 9),
                          children={"type": "array", "items": {"$ref": "#/$defs/tree"},
                                    "maxItems": 2})},
    "$ref": "#/$defs/tree"}
COMBINED: list[Schema] = [
    {"anyOf": [STRING, INTEGER]}, {"oneOf": [SHORT, {"type": "null"}]},
    {"oneOf": [obj("kind r", kind={"const": "circle"}, r=whole(0, 99)),
               obj("kind w h", kind={"const": "box"}, w=whole(0, 99), h=whole(0, 99))]},
    {"oneOf": [whole(0, 4), whole(10, 14), BOOLEAN]},
    {"anyOf": [array(BOOLEAN, 1, 2), obj("a", a=BOOLEAN)]},
    {"type": "object", "properties": {"a": BOOLEAN, "b": INTEGER},
     "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
    {"allOf": [obj("a", a=INTEGER), obj("b", b=BOOLEAN)]},
    {"allOf": [{"type": "integer"}, {"minimum": 5}, {"maximum": 12}, {"minimum": 7}]},
    {"allOf": [{"$ref": "#/$defs/base"}], "$defs": {"base": obj("a", a=SHORT)}},
    {"allOf": [{"$ref": "#/$defs/base"}, obj("b", b=BOOLEAN)],
     "$defs": {"base": obj("a", a=SHORT)}},
    {"type": "string", "allOf": [{"minLength": 2}, {"maxLength": 4}]},
    TREE,
    {"$defs": {"list": obj("head", head=whole(0, 9), tail={"$ref": "#/$defs/list"})},
     "$ref": "#/$defs/list"},
    {"type": "object", "properties": {"next": {"$ref": "#"}, "v": BOOLEAN}, "required": ["v"]},
    {"definitions": {"a/b": array({"$ref": "#/definitions/c~d"}, 0, 2),
                     "c~d": {"anyOf": [whole(0, 9), {"$ref": "#/definitions/a~1b"}]}},
     "$ref": "#/definitions/a~1b"},
    {"$defs": {"e": {"anyOf": [whole(0, 9), obj("op left right", op={"enum": ["+", "-", "*"]},
                                                 left={"$ref": "#/$defs/e"},
                                                 right={"$ref": "#/$defs/e"})]}},
     "$ref": "#/$defs/e"},
    {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}, {"required": ["x"]}]},
               "b": obj("", x=SHORT, y={"$ref": "#/$defs/a"})}, "$ref": "#/$defs/a"},
    {"properties": {"a": {"$ref": "#/properties/b"}, "b": whole(1, 2)}, "type": "object",
     "required": ["a", "b"]},
    True, {}, {"title": "Anything", "description": "at all", "examples": [1]},
    {"minLength": 2, "maxLength": 3}, {"minimum": 3, "maximum": 30}, {"required": ["a"]},
    {"oneOf": [{"enum": ["a", "b"]}, {"enum": ["c"]}, {"const": 3}]},
    {"anyOf": [{"enum": ["a", "b"]}, {"enum": ["b", "c"]}]},
    {"type": "object", "additionalProperties": {"oneOf": [whole(0, 9), {"type": "null"}]}},
    {"type": ["object", "null"], "properties": {"a": BOOLEAN}, "required": ["a"]},
    {"anyOf": [{"type": "null"}, {"allOf": [{"$ref": "#/$defs/p"}]}],
     "$defs": {"p": obj("q", q=BOOLEAN)}},
]
PERSON = obj("name age", name=SHORT, age=whole(0, 130), email=text(format="email"),
             height={"type": "number", "exclusiveMinimum": 0, "maximum": 2.75})
PUBLIC: list[Schema] = [
    PERSON, array(PERSON, 1, 2),
    obj("type coordinates", type={"const": "Point"},
        coordinates={"type": "array", "prefixItems": [
            {"type": "number", "minimum": -180, "maximum": 180},
            {"type": "number", "minimum": -90, "maximum": 90}], "items": False}),
    array({"oneOf": [obj("op path value", True, op={"enum": ["add", "replace", "test"]},
                         path=text(pattern="^(/[a-z0-9]+)*$"), value=whole(0, 99)),
                     obj("op path", True, op={"const": "remove"},
                         path=text(pattern="^(/[a-z0-9]+)*$")),
                     obj("op from path", True, op={"enum": ["move", "copy"]}, path=SHORT,
                         **{"from": SHORT})]}, 1, 3),
    obj("name version", name=text(pattern="^[a-z0-9-]{1,20}$"),
        version=text(pattern="^\\d{1,2}\\.\\d{1,2}\\.\\d{1,2}$"), private=BOOLEAN,
        dependencies={"type": "object", "additionalProperties": text(pattern="^[~^]?\\d\\.\\d$")}),
    obj("invoice date lines", invoice=text(pattern="^INV-[0-9]{5}$"), date=text(format="date"),
        lines=array(obj("item quantity price", item=SHORT, quantity=whole(1, 99),
                        price={"type": "number", "minimum": 0, "maximum": 9999.99}), 1, 2)),
    obj("name arguments", name={"enum": ["get_weather", "search", "send_mail"]},
        arguments=obj("city", city=SHORT, unit={"enum": ["C", "F"]})),
    {"oneOf": [obj("name arguments", name={"const": "get_weather"},
                   arguments=obj("city", True, city=SHORT)),
               obj("name arguments", name={"const": "now"}, arguments=obj("", True))]},
    obj("label confidence", label={"enum": ["positive", "negative", "neutral"]},
        confidence={"type": "number", "minimum": 0, "maximum": 1}),
    obj("entities", entities=array(obj("text type", text=SHORT, type={
        "enum": ["person", "place", "organisation", "date"]}, start=whole(0, 9999)), 0, 3)),
    obj("id created status", id=text(format="uuid"), created=text(format="date-time"),
        status={"enum": ["open", "closed"]}, closed_at={"type": ["string", "null"],
                                                         "format": "date-time"}),
    obj("title ingredients steps", title=SHORT, minutes=whole(1, 600), steps=array(SHORT, 1, 2),
        ingredients=array(obj("what", what=SHORT, grams={"type": ["number", "null"], "minimum": 0}),
                          1, 2)),
    obj("host port", host={"anyOf": [text(format="ipv4"), text(pattern="^[a-z]+\\.example$")]},
        port=whole(1, 65535), tls=BOOLEAN, users={"type": "object", "additionalProperties": obj(
            "role", role={"enum": ["admin", "reader"]})}),
    obj("question answer", question=SHORT, answer={"enum": ["A", "B", "C", "D"]}, why=text(0, 30)),
    obj("start end", start=text(format="time"), end=text(format="time"), weekdays=array(
        {"enum": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]}, 0, 7)),
    obj("columns rows", columns=array(SHORT, 1, 2), rows=array(array(
        {"type": ["string", "number", "null"], "maxLength": 4}, 1, 2), 0, 2)),
    {"$defs": {"node": {"oneOf": [
        obj("tag children", True, tag={"enum": ["p", "b", "i"]},
            children=array({"$ref": "#/$defs/node"}, 0, 2)), text(0, 8)]}},
     "$ref": "#/$defs/node"},
    {"title": "Movie", "description": "written by pydantic", "type": "object",
     "$defs": {"Genre": {"enum": ["drama", "comedy"], "title": "Genre", "type": "string"}},
     "properties": {"title": {"title": "Title", "type": "string", "maxLength": 20},
                    "genre": {"allOf": [{"$ref": "#/$defs/Genre"}], "default": "drama"},
                    "rating": {"anyOf": [{"type": "number", "minimum": 0, "maximum": 10},
                                         {"type": "null"}], "default": None, "title": "Rating"}},
     "required": ["title", "genre"]},
    obj("language code", language={"enum": ["python", "c", "rust"]}, code=text(1, 40)),
    obj("rgb", rgb=array(whole(0, 255), 3, 3),
        alpha={"type": "number", "minimum": 0, "maximum": 1}),
    obj("score", score=whole(1, 5), reasons=array(text(3, 20), 1, 2), flagged=BOOLEAN),
    obj("lat lon", lat={"type": "number", "minimum": -90, "maximum": 90},
        lon={"type": "number", "exclusiveMinimum": -180, "maximum": 180}, name=SHORT),
    obj("select from", select=array(text(pattern="^[a-z_]{1,8}$"), 1, 3), limit=whole(1, 1000),
        where=array(obj("column op value", column=text(pattern="^[a-z_]{1,8}$"),
                        op={"enum": ["=", "<", ">"]}, value={"type": ["string", "integer"]}), 0, 2),
        **{"from": text(pattern="^[a-z_]{1,8}$")}),
]


def all_schemas() -> dict[str, Schema]:
    lists: dict[str, list[Schema]] = {
        "integer": [whole(*r) for r in RANGES],
        "number": [{"type": "number"} | b for b in BOUNDS],
        "whole number": [{"type": "integer"} | b for b in BOUNDS if b not in (BOUNDS[1], BOUNDS[6],
                                                                             BOUNDS[9])],
        "pattern": [text(pattern=p) for p in PATTERNS], "value": VALUES, "string": STRINGS,
        "format": [text(format=f) for f in FORMATS], "array": ARRAYS, "object": OBJECTS,
        "combined": COMBINED, "public": PUBLIC,
        "list of": [array(s, 1, 2) for s in [*VALUES[:8], *OBJECTS[:8]]],
        "member": [obj("v", v=s, w=s) for s in [*STRINGS, *ARRAYS[:8], *COMBINED[:8]]]}
    # references inside what was moved would lead elsewhere
    return {f"{name} {i}": s for name, list_ in lists.items() for i, s in enumerate(list_)
            if not (name in ("member", "list of") and "$ref" in str(s))}
