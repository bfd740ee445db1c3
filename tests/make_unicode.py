"""Write unicode_tables.h: python tests/make_unicode.py > text/unicode_tables.h

The truth is what Hugging Face tokenizers does, so the tables are read off the `tokenizers` package
itself: general categories as its regular expression engine (Oniguruma) sees them, which is Unicode
16.0 in tokenizers 0.23, and NFC as its older normaliser does it, which knows Unicode 9.0:
decompositions and combining classes come from the standard library's unicodedata and are dropped
where tokenizers does not apply them."""
import sys
import unicodedata

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

# Order and names are those of the table in pattern.c. Cw is our own: the control characters that
# are white space.
NAMES = ["Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe",
         "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cw", "Cf", "Cs", "Co",
         "Cn"]
WORD = 32  # added for what [\w] matches; Oniguruma's \w alone matches a little more
BERT = 64  # times: 1 for what BERT's normaliser drops, 2 for its accents, 3 for its punctuation
ALL = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
TEXT = "".join(map(chr, ALL))
BLOCK = 128


def members(pattern):
    """The code points that tokenizers' engine matches with a one-character pattern."""
    split = pre_tokenizers.Split(Regex(f"(?:{pattern})+"), "removed")
    out = set(ALL)
    for _, (start, end) in split.pre_tokenize_str(TEXT):
        out.difference_update(ALL[start:end])
    return out


def categories():
    cat = [NAMES.index("Cn")] * 0x110000
    for name in NAMES:
        if name not in ("Cw", "Cs", "Cn"):
            for c in members(rf"\p{{{name}}}"):
                cat[c] = NAMES.index(name)
    for c in range(0xD800, 0xE000):
        cat[c] = NAMES.index("Cs")
    space = members(r"\s")
    for c in space:
        if cat[c] == NAMES.index("Cc"):
            cat[c] = NAMES.index("Cw")
    # What pattern.c takes \s for; fails if an update of tokenizers changes it.
    assert space == {c for c in ALL if NAMES[cat[c]] in ("Zs", "Zl", "Zp", "Cw")}
    for c in members(r"[\w]"):
        cat[c] |= WORD
    for c, kind in bert_classes().items():
        cat[c] += BERT * kind
    return cat


def bert_normalizer(**wanted):
    off = dict.fromkeys(("clean_text", "handle_chinese_chars", "strip_accents", "lowercase"), False)
    return normalizers.BertNormalizer(**off | wanted).normalize_str


def bert_classes():
    clean, strip = bert_normalizer(clean_text=True), bert_normalizer(strip_accents=True)
    split, out = pre_tokenizers.BertPreTokenizer().pre_tokenize_str, {}
    for c in ALL:
        if not clean(chr(c)):
            out[c] = 1
        elif strip("a" + chr(c)) == "a":
            out[c] = 2
        elif len(split(f"a{chr(c)}b")) == 3:
            out[c] = 3
    # What wordpiece.c takes for white space; fails if an update of tokenizers changes it.
    space = {c for c in ALL if clean(chr(c)) == " "}
    assert space == members(r"[\p{Zs}\p{Zl}\p{Zp}\t\n\r]")
    return out


def newer_lower():
    """Runs of what tokenizers brings to lower case and this Python, which is older, does not."""
    lower = bert_normalizer(lowercase=True)
    new = {c: lower(chr(c)) for c in ALL if lower(chr(c)) != chr(c).lower()}
    assert all(chr(c).lower() == chr(c) and len(to) == 1 for c, to in new.items())
    return case_runs({c: ord(to) for c, to in new.items()})


def runs_of(members):
    """Code points as rows first, last."""
    runs = []
    for c in sorted(members):
        if runs and runs[-1][1] == c - 1:
            runs[-1][1] = c
        else:
            runs.append([c, c])
    return runs


def nfc_data():
    nfc, nfd = normalizers.NFC().normalize_str, normalizers.NFD().normalize_str
    ccc, pairs, quick = [0] * 0x110000, [], [0] * 0x110000
    for c in ALL:
        ch = chr(c)
        n = unicodedata.combining(ch)
        # A mark that tokenizers knows is reordered with one of a lower or of a higher class.
        if n and (nfd("a\u0345" + ch) != "a\u0345" + ch
                  or nfd("a" + ch + "\u0334") != "a" + ch + "\u0334"):
            ccc[c] = n
        d = unicodedata.decomposition(ch)
        if d and not d.startswith("<") and nfd(ch) != ch:
            parts = [int(x, 16) for x in d.split()] + [0]
            composes = parts[1] and nfc(ch) == ch
            pairs.append((c, parts[0], parts[1], int(bool(composes))))
            quick[c] |= not composes
            if composes:
                quick[parts[1]] = 1
    # Hangul vowels and finals may compose
    for c in list(range(0x1161, 0x1176)) + list(range(0x11A8, 0x11C3)):
        quick[c] = 1
    return ccc, pairs, quick


def case_runs(mapped):
    """{code point: code point} as rows first, last, step, difference."""
    runs = []
    for c, to in sorted(mapped.items()):
        last = runs[-1] if runs else None
        if last and to - c == last[3] and (c - last[1] == last[2] or last[0] == last[1]) \
                and c - last[1] <= 2:
            last[1:3] = c, c - last[1]
        else:
            runs.append([c, c, 1, to - c])
    return runs


def case_rows():
    """How Python changes the case of a character: runs of upper, lower and title case (where that
    is not upper case), and {case, code point, up to 3 characters} where there are several."""
    runs, special = [], []
    for number, change in enumerate((str.upper, str.lower, str.title)):
        mapped = {}
        for c in ALL:
            to = change(chr(c))
            plain = chr(c).upper() if change == str.title else chr(c)
            if len(to) > 1 and to != plain:
                special.append((number, c, *map(ord, to.ljust(3, "\0"))))
            elif to != plain:
                mapped[c] = ord(to)
        runs.append(case_runs(mapped))
    return runs, special


def two_stage(values):
    blocks, index = {}, []
    for i in range(0, 0x110000, BLOCK):
        index.append(blocks.setdefault(tuple(values[i:i + BLOCK]), len(blocks)))
    return index, [v for b in blocks for v in b]


def array(kind, name, values):
    print(f"static const {kind} {name}[{len(values)}] = {{")
    line = "   "
    for v in values:
        if len(line) + len(str(v)) + 2 > 100:
            print(line)
            line = "   "
        line += f" {v},"
    print(line + "\n};\n")


def table(kind, name, rows):
    print(f"static const {kind} {name}[{len(rows)}][{len(rows[0])}] = {{")
    for i in range(0, len(rows), 3):
        print("    " + " ".join("{" + ", ".join(map(str, row)) + "}," for row in rows[i:i + 3]))
    print("};\n")


def main():
    cat = categories()
    ccc, pairs, quick = nfc_data()
    # ccc is 0 to 240; 255 marks a starter that normalisation must look at.
    attention = [k or (255 if q else 0) for k, q in zip(ccc, quick)]
    first = {c: a for c, a, _, _ in pairs}
    for c in (c for c in first if not attention[c]):  # nfc() begins a stretch at such a one
        while c in first:
            c = first[c]
        assert not attention[c]
    print("/* unicode_tables.h - made by tests/make_unicode.py from tokenizers "
          f"{tokenizers.__version__}; do not edit.\n"
          " *\n"
          " * unicode_category: the general category of a code point, numbered as in pattern.c, +\n"
          " * 32 for a word character (Unicode 16.0), + 64 times what BERT's normaliser, which\n"
          " * knows Unicode 8.0, takes it for: 1 to be dropped, 2 an accent, 3 punctuation.\n"
          " * unicode_ccc: its canonical combining class, or 255 for a starter that NFC may\n"
          " * change or join to the one before it.\n"
          " * unicode_pairs: {code point, first, second or 0, composes} sorted by code point\n"
          " * (Unicode 9.0); unicode_pairs_by_parts: their numbers sorted by (first, second).\n"
          " * No code point of class 0 in unicode_ccc decomposes to one that begins with another\n"
          " * class.\n"
          " * unicode_cases: {first, last, step, difference} of the code points that upper, lower\n"
          " * and title case change, title case where it is not upper case; unicode_case_starts:\n"
          " * where each of the three begins; unicode_case_special: {case, code point, up to\n"
          f" * 3 characters}} (Unicode {unicodedata.unidata_version}); unicode_newer_lower: rows\n"
          " * for the lower case of characters that are newer.\n"
          " * unicode_han: {first, last} of the code points of the script Han (Unicode 16.0).\n"
          " * The tables are in two stages: data[index[c / BLOCK] * BLOCK + c % BLOCK]. */\n"
          f"#define UNICODE_BLOCK {BLOCK}\n")
    for name, values in (("category", cat), ("ccc", attention)):
        index, data = two_stage(values)
        array("uint16_t" if max(index) > 255 else "uint8_t", f"unicode_{name}_index", index)
        array("uint8_t", f"unicode_{name}_data", data)
    table("uint32_t", "unicode_pairs", pairs)
    by_parts = sorted(range(len(pairs)), key=lambda i: pairs[i][1:3])
    array("uint16_t", "unicode_pairs_by_parts", by_parts)
    runs, special = case_rows()
    table("int32_t", "unicode_cases", [row for part in runs for row in part])
    starts = [sum(map(len, runs[:i])) for i in range(4)]
    array("uint16_t", "unicode_case_starts", starts)
    table("uint32_t", "unicode_case_special", special)
    table("int32_t", "unicode_newer_lower", newer_lower())
    table("uint32_t", "unicode_han", runs_of(members(r"\p{Han}")))


if __name__ == "__main__":
    sys.exit(main())
