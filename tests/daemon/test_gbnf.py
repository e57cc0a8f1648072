"""Grammars that clients write: what llama.cpp survives passes, what it does not is refused."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edgepd.errors import RequestError
from edgepd_daemon.structured import checked_grammar
from tests.daemon.llama_grammar import verdicts

ARITHMETIC = r"""
root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*
"""
LIST = r"""
root ::= item+   # a comment
item ::= "- " [^\r\n\x0b\x0c\x85\u2028\u2029]+ "\n"
"""
RECURSIVE = 'root ::= "[" (root ("," root)*)? "]" | [0-9]+'
DISCRIMINATED = 'root ::= "(add " root root ")" | "(mul " root root ")" | [0-9] " "?'


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        ('root ::= "yes" | "no"', "no"),
        ('root ::= "yes" |\n  "yep"', "yep"),
        ('root ::= a-1{2,3} "\\x41\\u00e9\\n"\r\na-1 ::= [^b-z\\]]', "aaAé\n"),
        ('root ::= ("a" "b"?){ 2 } .', "aba!"),
        ('root ::= ""', ""),
        ("root ::= ws ws [a-z]\nws ::= [ ]*", "   x"),
        ('root ::= x{1000}\nx ::= "a"? "b"', "ab" * 1000),
        (ARITHMETIC, "a +b= ( b1 )\n"),
        (LIST, "- milk\n- eggs\n"),
        (RECURSIVE, "[1,[2,[]],3]"),
        (DISCRIMINATED, "(add (mul 1 2)3)"),
    ],
)
def test_a_sound_grammar_passes_and_llama_follows_it(tmp_path: Path, grammar: str, text: str) -> None:
    checked = checked_grammar(grammar)
    assert verdicts(tmp_path, [(checked, text), (checked, text + "~~~~")]) in (
        ["accepted", "refused"],
        ["accepted", "accepted"] if grammar == LIST else [],
    )


# What llama.cpp 0.3.36 does with each: hangs (h), overflows its stack (s), ends the process when sampling gets there
# (e), changes its meaning (m), or refuses it as well (r).
REFUSED = {
    "": "no rule `root`",  # m
    'x ::= "a"': "no rule `root`",  # r
    "root ::= foo": "uses the rule `foo` but does not define it",  # r
    'root ::= root "a" | "b"': "rule `root` can call itself before",  # r
    'root ::= x "a" | "b"\nx ::= root "c"': "can call itself before",  # r
    'root ::= e root "a" | "b"\ne ::= "x"?': "rule `root` can call itself before",  # h
    'root ::= ws a "x"\nws ::= [ ]*\na ::= ws a "b" | "c"': "rule `a` can call itself before",  # h
    'root ::= "a"\nx ::= x "b"': "rule `x` can call itself before",  # r
    "root ::= [a]{5,2}": "its largest count before its smallest",  # h
    "root ::= [a]{0,5000}": "more than 2000 repetitions",  # m
    "root ::= [a]{99999999999999999999}": "a repetition has to be",  # r
    "root ::= [a]{,3}": "a repetition has to be",  # r
    'root ::= ""*': "a repetition of nothing",  # r
    "root ::= " + "(" * 100_000 + '"a"' + ")" * 100_000: "more than 64 nested parentheses",  # s
    "root ::= " + "(" * 80 + '"a"' + ")" * 80: "more than 64 nested parentheses",
    "root ::= [z-a]": "ends before it starts",  # e
    "root ::= []": "an empty character class",  # m
    "root ::= [^\\x01-\\U0010FFFF]": "cannot occur in text",  # e
    'root ::= "\\uD800"': "cannot occur in text",  # e
    'root ::= "a\0"': "cannot occur in text",  # m
    'root ::= "a" # \ud800': "cannot occur in text",
    'root ::= "\\UFFFFFFFF"': "cannot occur in text",  # e
    'root ::= "a': "the text ends inside",  # r
    "root ::= [a": "the text ends inside",  # r
    'root ::= "\\/"': "unknown escape",  # r
    'root ::= "\\u12"': "needs 4 hexadecimal digits",  # r
    "root ::= a_b": "cannot go on with '_'",  # r
    "root = a": "`::=` is missing",  # r
    'root ::= ("a"': r"`\)` is missing",  # r
    "root ::= <[5]>": "references to tokens",
    "root ::= " + '"a"' * 200_000: "larger than 512 KiB",
    "root ::= [a]{2000} [a]{2000}\n" + "".join(f"r{i} ::= [a]{{1999}}\n" for i in range(200)): "too large once",
    "root ::= r0\n"
    + "".join(f"r{i} ::= r{i + 1}\n" for i in range(8000))
    + 'r8000 ::= "a"': "4000 deep",  # s if longer
    "root ::= r0\n"
    + "".join(f'r{i} ::= r{i + 1} "x" | r{i + 1} "y"\n' for i in range(30))
    + 'r30 ::= "a"': "ambig",  # h
    'root ::= "a" root "b" | "a" root "c" | "a"': "too ambiguous",  # h
    'root ::= (" "+)*': "too ambiguous",  # h at a token of many spaces
    'root ::= ([a-z]+ | [a-z0-9]+)* "."': "too ambiguous",  # h at a token of many equal letters
    "root ::= " + '"a"? ' * 1000: "too ambiguous",  # h
    # Each digit may belong to the word or end it, so the ways to read a text are its subsequences.
    'root ::= w "1" root "b" | w "2" root "c" | "."\nw ::= [a-z0-9]+': "too ambiguous",  # h
    'root ::= e\ne ::= "(" e "x)" | "(" e "y)" | "z"': "too ambiguous",  # h
    "root ::= .{0,900} [,] .{0,900} [,] .{0,900}": "too ambiguous",
}


@pytest.mark.parametrize("grammar", REFUSED, ids=lambda grammar: grammar[:40])
def test_what_llama_does_not_survive_is_refused(grammar: str) -> None:
    started = time.monotonic()
    with pytest.raises(RequestError, match=REFUSED[grammar]):
        checked_grammar(grammar)
    assert time.monotonic() - started < 60


def test_the_place_of_an_error_is_told() -> None:
    with pytest.raises(RequestError, match="line 2, column 10: unknown escape"):
        checked_grammar('root ::= x\nx ::= "\\q"')
