"""Conversations that chat templates are tested with: each a name, messages and keyword arguments of
apply_chat_template (tools and the template's own variables)."""
from __future__ import annotations

from typing import Any

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Get the weather of a city, \"now\" or later.",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "The city & its country <code>"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
            "days": {"type": "integer", "description": "How many days", "minimum": 1},
            "exact": {"type": ["boolean", "null"]},
            "places": {"type": "array", "items": {"type": "object", "properties": {
                "lat": {"type": "number"}, "lon": {"type": "number"}}, "required": ["lat"]}}},
        "required": ["city"]},
    "return": {"type": "string", "description": "A sentence"}}}
TIME = {"type": "function", "function": {
    "name": "now", "description": "The time", "parameters": {"type": "object", "properties": {}}}}
TOOLS = [WEATHER, TIME]


def call(name: str, arguments: Any, i: str = "call00001") -> dict[str, Any]:
    return {"id": i, "type": "function", "function": {"name": name, "arguments": arguments}}


USER = {"role": "user", "content": "What is the capital of France?"}
PARIS = {"role": "assistant", "content": "Paris."}
SYSTEM = {"role": "system", "content": "You are terse."}
ASK = {"role": "user", "content": "How is the weather in Zürich?"}
CALLS = {"role": "assistant", "content": "", "tool_calls": [
    call("get_weather", {"city": "Zürich", "days": 2, "exact": True, "x": None, "y": 1.5,
                         "places": [{"lat": 47.4, "lon": 8.5}], "quote": "a \"b\" 'c'\n"})]}
RESULT = {"role": "tool", "tool_call_id": "call00001", "name": "get_weather",
          "content": "{\"degrees\": 21.5, \"sky\": \"klar ☀\"}"}

CONVERSATIONS: list[tuple[str, list[dict[str, Any]], dict[str, Any]]] = [
    ("user", [USER], {}),
    ("system", [SYSTEM, USER], {}),
    ("turns", [USER, PARIS, {"role": "user", "content": "And of Spain?"},
               {"role": "assistant", "content": "Madrid."},
               {"role": "user", "content": "Thanks"}], {}),
    ("system and turns", [SYSTEM, USER, PARIS, {"role": "user", "content": "And of Spain?"}], {}),
    ("closed", [SYSTEM, USER, PARIS], {"add_generation_prompt": False}),
    ("empty", [{"role": "system", "content": ""}, {"role": "user", "content": ""}], {}),
    ("white space", [{"role": "system", "content": "  \n"},
                     {"role": "user", "content": "\n  two\r\nlines\t \n\n"}], {}),
    ("unicode", [{"role": "system", "content": "Ð ß ǅ \u00a0\u2028 İ"},
                 {"role": "user",
                  "content": "日本語 👩\u200d👧 e\u0301 \u200f ’“”"}], {}),
    ("quotes", [{"role": "user", "content": "it's \"x\" & <b> \\n {{ x }} {% y %} \\u0041 \x7f"}],
     {}),
    ("tools", [SYSTEM, ASK], {"tools": TOOLS}),
    ("tools without system", [ASK], {"tools": [WEATHER]}),
    ("calls", [SYSTEM, ASK, CALLS, RESULT], {"tools": TOOLS}),
    ("calls and answer", [ASK, CALLS, RESULT, {"role": "assistant", "content": "21 degrees."},
                          {"role": "user", "content": "Thanks"}], {"tools": TOOLS}),
    ("arguments as text", [ASK, {"role": "assistant", "content": None, "tool_calls": [
        call("get_weather", "{\"city\": \"Zürich\"}")]}, RESULT], {"tools": TOOLS}),
    ("two calls", [ASK, {"role": "assistant", "content": "Let me see.", "tool_calls": [
        call("get_weather", {"city": "Bern"}), call("now", {}, "call00002")]}, RESULT,
        {"role": "tool", "tool_call_id": "call00002", "name": "now", "content": "12:00"}],
     {"tools": TOOLS}),
    ("calls without tools", [ASK, CALLS, RESULT], {}),
    ("parts", [{"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
               {"role": "user", "content": [{"type": "text", "text": "Look: "},
                                            {"type": "text", "text": "two parts"}]}], {}),
    ("image", [{"role": "user", "content": [{"type": "image"},
                                            {"type": "text", "text": "What is this?"}]}], {}),
    ("reasoning", [USER, {"role": "assistant", "content": "Paris.",
                          "reasoning_content": "It is\nParis."},
                   {"role": "user", "content": "Sure?"}], {}),
    ("thinking", [USER, {"role": "assistant", "content": "Paris.", "thinking": "Hm. Paris."}],
     {"add_generation_prompt": False}),
    ("think tags", [USER, {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nParis."},
                    {"role": "user", "content": "Sure?"}], {}),
    ("thinking and calls", [ASK, CALLS | {"reasoning": "I need the tool."}, RESULT],
     {"tools": TOOLS}),
    ("no thinking", [SYSTEM, USER], {"enable_thinking": False}),
    ("variables", [USER], {"enable_thinking": True, "reasoning_effort": "high",
                           "thinking": True, "date_string": "1 Jan 2024", "keep_cot": True}),
    ("numbers", [USER], {"tools": [{"type": "function", "function": {
        "name": "f", "description": "d", "parameters": {"type": "object", "properties": {
            "a": {"type": "number", "default": 1e16, "minimum": -0.1, "maximum": 1e-7},
            "b": {"type": "integer", "default": 12345678901234567890123, "enum": [1, 2.0, 3e22]}},
            "required": ["a", "b"]}}}]}),
    ("assistant first", [PARIS, USER], {}),
    ("twice", [USER, {"role": "user", "content": "Again."}], {}),
    ("unknown role", [SYSTEM, {"role": "critic", "content": "Bad."}], {}),
    ("developer", [{"role": "developer", "content": "Say no."}, USER], {}),
    ("documents", [USER], {"documents": [{"title": "A", "text": "It is B.", "data": {
        "x": 1}}, {"title": "C", "text": "D", "data": "d"}]}),
]
