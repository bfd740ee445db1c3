"""GBNF once more, for tests: a parser, random texts of a grammar, and a matcher that tries
everything. Nothing in common with generate/gbnf.c but the notation, llama.cpp's."""
from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

# ("text", str) ("set", negated, [(first, last)...]) ("sequence" or "choice", [items])
# ("repeat", item, least, most or None) ("rule", name)
Item = tuple[Any, ...]
ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}
DIGITS = {"x": 2, "u": 4, "U": 8}


@dataclass
class Grammar:
    rules: dict[str, Item] = field(default_factory=dict)

    def matches(self, text: str) -> bool:
        """Whether the rule root matches the whole text. Left recursion is not for this."""

        @lru_cache(maxsize=None)
        def rule(name: str, at: int) -> frozenset[int]:
            return ends(self.rules[name], at)

        def ends(item: Item, at: int) -> frozenset[int]:
            kind = item[0]
            if kind == "text":
                found = text.startswith(item[1], at)
                return frozenset([at + len(item[1])] if found else [])
            if kind == "set":
                inside = at < len(text) and any(a <= ord(text[at]) <= b for a, b in item[2])
                return frozenset([at + 1] if at < len(text) and inside != item[1] else [])
            if kind == "rule":
                return rule(item[1], at)
            if kind == "choice":
                return frozenset().union(*(ends(x, at) for x in item[1]))
            if kind == "sequence":
                places = frozenset([at])
                for x in item[1]:
                    places = frozenset().union(*(ends(x, p) for p in places))
                return places
            _, x, least, most = item
            found: set[int] = set()
            now, n = {at}, 0
            while now and (most is None or n <= most):
                if n >= least:
                    if now <= found:
                        break
                    found |= now
                now, n = set().union(*(ends(x, p) for p in now)), n + 1
            return frozenset(found)

        return len(text) in rule("root", 0)

    def random_text(self, rng: random.Random, depth: int = 12) -> str | None:
        """A random text, None where it went too deep."""

        def pick(item: Item, left: int) -> str:
            if left < 0:
                raise RecursionError
            kind = item[0]
            if kind == "text":
                return item[1]
            if kind == "set":
                if not item[1]:
                    return chr(rng.randint(*rng.choice(item[2])))
                while True:
                    c = rng.choice([rng.randrange(32, 127), rng.randrange(0x250),
                                    rng.randrange(0xe000, 0x110000)])
                    if not any(a <= c <= b for a, b in item[2]):
                        return chr(c)
            if kind == "rule":
                return pick(self.rules[item[1]], left - 1)
            if kind == "choice":
                return pick(rng.choice(item[1]), left)
            if kind == "sequence":
                return "".join(pick(x, left) for x in item[1])
            _, x, least, most = item
            n = least
            while (most is None or n < most) and rng.random() < 0.5:
                n += 1
            return "".join(pick(x, left) for _ in range(n))

        try:
            return pick(("rule", "root"), depth)
        except RecursionError:
            return None


class Parser:
    def __init__(self, source: str) -> None:
        self.s, self.p = source, 0

    def space(self, newlines: bool) -> None:
        while self.p < len(self.s) and self.s[self.p] in (" \t#\r\n" if newlines else " \t#"):
            if self.s[self.p] == "#":
                while self.p < len(self.s) and self.s[self.p] not in "\r\n":
                    self.p += 1
            else:
                self.p += 1

    def char(self) -> str:
        c = self.s[self.p]
        if c != "\\":
            self.p += 1
            return c
        kind = self.s[self.p + 1]
        if kind in ESCAPES:
            self.p += 2
            return ESCAPES[kind]
        n = DIGITS[kind]
        self.p += 2 + n
        return chr(int(self.s[self.p - n:self.p], 16))

    def name(self) -> str:
        begin = self.p
        while self.p < len(self.s) and (self.s[self.p].isascii() and self.s[self.p].isalnum()
                                        or self.s[self.p] == "-"):
            self.p += 1
        assert self.p > begin, self.s[begin:begin + 20]
        return self.s[begin:self.p]

    def item(self) -> Item:
        c = self.s[self.p]
        if c == '"':
            self.p, text = self.p + 1, ""
            while self.s[self.p] != '"':
                text += self.char()
            self.p += 1
            return ("text", text)
        if c == "[":
            self.p += 1
            negated = self.s[self.p] == "^"
            self.p += negated
            ranges = []
            while self.s[self.p] != "]":
                first = last = self.char()
                if self.s[self.p] == "-" and self.s[self.p + 1] != "]":
                    self.p += 1
                    last = self.char()
                ranges.append((ord(first), ord(last)))
            self.p += 1
            return ("set", negated, ranges)
        if c == "(":
            self.p += 1
            self.space(True)
            inner = self.choice(True)
            assert self.s[self.p] == ")"
            self.p += 1
            return inner
        if c == ".":
            self.p += 1
            return ("set", True, [])
        return ("rule", self.name())

    def sequence(self, nested: bool) -> Item:
        items: list[Item] = []
        while self.p < len(self.s) and self.s[self.p] not in "|)\r\n":
            c = self.s[self.p]
            if c in "*+?":
                self.p += 1
                items[-1] = ("repeat", items[-1], int(c == "+"), 1 if c == "?" else None)
            elif c == "{":
                inner, _, rest = self.s[self.p + 1:].partition("}")
                least, comma, most = inner.partition(",")
                n = int(least)
                items[-1] = ("repeat", items[-1], n,
                             (int(most) if most.strip() else None) if comma else n)
                self.p = len(self.s) - len(rest)
            else:
                items.append(self.item())
            self.space(nested)
        return ("sequence", items)

    def choice(self, nested: bool) -> Item:
        choices = [self.sequence(nested)]
        while self.p < len(self.s) and self.s[self.p] == "|":
            self.p += 1
            self.space(True)
            choices.append(self.sequence(nested))
        return ("choice", choices)


def parse(source: str) -> Grammar:
    p, g = Parser(source), Grammar()
    p.space(True)
    while p.p < len(p.s):
        name = p.name()
        p.space(False)
        assert p.s.startswith("::=", p.p)
        p.p += 3
        p.space(True)
        g.rules[name] = p.choice(False)
        p.space(True)
    return g
