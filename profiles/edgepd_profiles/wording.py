"""Words and marks of a text in English, German, French and Spanish: its topic, its language and its form.

The idea: what can be read off a text with word lists and patterns, so that it costs microseconds and can be checked by
reading. The invariant: the same text gives the same result; no phrase or word that is returned is part of a secret, an
address or a number.
What this does not do: understand. Languages are told apart by their little words; a text in a script without spaces
has no words here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from edgepd import secrets

READ_CHARS = 4000  # of a text, for its words and language: what follows is mostly pasted
MAX_PHRASE_WORDS, MAX_PHRASE_CHARS = 8, 60
AROUND_CHARS = 300  # of the begin and end of a text, where secrets are looked for

GREETING = re.compile(
    r"\s*(?:dear|hello|hi|hey|good (?:morning|afternoon|evening|day)|greetings|hallo|guten (?:morgen|tag|abend)"
    r"|liebe[rs]?|sehr geehrte\w*|bonjour|bonsoir|salut|ch[eè]re?|hola|estimad[oa]s?|querid[oa]s?|buen[oa]s)\b",
    re.IGNORECASE,
)
FAREWELL = re.compile(
    r"\b(?:regards|sincerely|faithfully|truly|wishes|respectfully|cheers|thanks|cordially|grüßen|grüße|hochachtungsvoll"
    r"|cordialement|salutations|saludos?|atentamente|cordialmente)\b[^.?]{0,40}$",
    re.IGNORECASE,
)
ITEM = re.compile(r"^\s*(?:[-*•–]|\d+[.)])\s+", re.MULTILINE)
NUMBERED = re.compile(r"^\s*\d+[.)]\s+", re.MULTILINE)
_HEADING = re.compile(r"^#{1,6}\s+\S", re.MULTILINE)
_TABLE = re.compile(r"^\s*\|?\s*:?-{3,}:?\s*\|", re.MULTILINE)
_FORMAL = re.compile(
    r"\b(?:sincerely|faithfully|hochachtungsvoll|sehr geehrte\w*|cordialement|atentamente|estimad[oa]s?)\b", re.I
)
_ADDRESS = re.compile(r"\S+://\S+|\S+@\S+|\bwww\.\S+")

# Words that say nothing of a topic or a style.
STOP_WORDS = {
    "en": frozenset(
        re.findall(
            r"\w+",
            "a about after all also am an and any are aren as at be because been before being but by can could couldn "
            "did didn do does doesn doing don done down each else every explain few find first for from get getting "
            "give go good got had has hasn have haven he hello help her here hers him his how i if in into is isn it "
            "its just keep know let like list little ll look made make making many may me mean might mine more most "
            "much must my need new no nor not now of off often ok okay on once one only or other our out over own "
            "please put re really same say see shall she should show so some something still such sure take tell than "
            "thank thanks that the their them then there these they thing things this those through time to too try "
            "two under until up us use used using ve very want was wasn way we well were weren what when where "
            "whether which while who whom whose why will with without won work would wouldn write yes you your yours",
        )
    ),
    "de": frozenset(
        re.findall(
            r"\w+",
            "aber alle allem allen aller alles als also am an ander andere auch auf aus bei beim bin bis bist bitte "
            "da damit danke dann das dass dein deine dem den denn der des dich die dies diese dieser dieses dir doch "
            "du durch ein eine einem einen einer eines er erkläre es etwas euch für gegen gib habe haben hallo hat "
            "hatte hier hin hinter ich ihm ihn ihr ihre im in ins ist ja jede jetzt kann kannst kein keine können "
            "könnte machen man mehr mein meine mich mir mit muss nach nein nicht nichts noch nun nur ob oder ohne sag "
            "schon schreib schreibe sehr sein seine sich sie sind so soll sollte sondern um und uns unser unter viel "
            "vom von vor war warum was weg weil welche wenn wer werden wie wieder will wir wird wo wurde zeig zu zum "
            "zur zwischen über",
        )
    ),
    "fr": frozenset(
        re.findall(
            r"\w+",
            "ai alors au aussi aux avec avoir bonjour car ce cela ces cet cette chez comme comment dans de des dis "
            "donc donne du elle elles en encore entre est et eu explique faire fait faut ici il ils je la le les leur "
            "leurs lui ma mais me merci mes moi moins mon même ne nos notre nous on ont ou où par parce pas peut peux "
            "plus pour pourquoi quand que quel quelle quelles quels qui quoi sa sans se sera ses si soit son sont "
            "sous suis sur svp ta te tes toi ton tous tout toute très tu un une vers voici voilà vos votre voudrais "
            "vous écris été être",
        )
    ),
    "es": frozenset(
        re.findall(
            r"\w+",
            "al algo algunos ante antes aquí como con cuando cuál cuándo cuánto de del desde donde dos durante dónde "
            "el ella ellas ellos en entre era eres es esa escribe ese eso esta este esto estos está están explica "
            "favor fue gracias ha hace hacer hacia hasta hay hola la las le les lo los me mi mis mucho muy más nada "
            "ni no nos nosotros o os otra otro para pero poco por porque puede puedes que quien quiero quién qué se "
            "según ser si sin sobre son soy su sus sí también tan te tiene tienes todo todos tu tus tú un una uno "
            "unos y ya yo él",
        )
    ),
}
ALL_STOP_WORDS = frozenset[str]().union(*STOP_WORDS.values())


def content_words(text: str) -> Iterator[str]:
    """Yield the words that tell a topic, lower case and in order, each as often as it is there.

    They have 3 to 40 letters and are no stop words of the four languages.
    """
    text = text[:READ_CHARS]
    for secret in reversed(secrets.find(text)):
        text = f"{text[: secret.start]} {text[secret.end :]}"
    for word in re.findall(r"\w+", _ADDRESS.sub(" ", unicodedata.normalize("NFC", text)).lower()):
        # Letters without case are those of scripts in which a long run is a sentence, not a word.
        word_like = len(word) <= 6 or word != word.upper()
        if 3 <= len(word) <= 40 and word.isalpha() and word_like and word not in ALL_STOP_WORDS:
            yield word


def language(text: str) -> str | None:
    """Return "en", "de", "fr" or "es" by the little words in a text; None if they do not tell clearly."""
    words = re.findall(r"[^\W\d_]+", text[:READ_CHARS].lower())
    scores = sorted(((sum(w in stop for w in words), name) for name, stop in STOP_WORDS.items()), reverse=True)
    (most, name), (second, _) = scores[:2]
    return name if most >= 2 and most > second and 10 * most >= len(words) else None


def traits(text: str) -> Iterator[str]:
    """Yield the names of what can be said of the form of an answer, stripped and not empty, each once."""
    formats = [
        *(["numbered list"] if len(NUMBERED.findall(text)) >= 2 else ["list"] if len(ITEM.findall(text)) >= 2 else []),
        *(["code"] if "```" in text else []),
        *(["headings"] if _HEADING.search(text) else []),
        *(["table"] if _TABLE.search(text) else []),
    ]
    yield from (f"format:{name}" for name in formats or ["plain"])
    if GREETING.match(text):
        yield "tone:greeting"
    if _FORMAL.search(text):
        yield "tone:formal"
    if FAREWELL.search(text):
        yield "tone:farewell"
    if any(unicodedata.category(c) == "So" for c in text):
        yield "tone:emoji"
    if "!" in text:
        yield "tone:exclamation"
    if text == text.lower() != text.upper():
        yield "tone:lower case"
    spoken = language(text)
    if spoken:
        yield f"language:{spoken}"
    words = text.split()
    if len(words) > MAX_PHRASE_WORDS:  # a shorter text has no opening apart from itself
        ends = (("opening", _until_mark(words)), ("closing", _last_sentence(words)))
        told = [f"{name}:{' '.join(phrase)}" for name, phrase in ends if _tells(phrase)]
        # Half a secret would not look like one, so what is around is looked at too.
        if told and not secrets.find(f"{text[:AROUND_CHARS]}\n{text[-AROUND_CHARS:]}"):
            yield from told


def _until_mark(words: Sequence[str]) -> Sequence[str]:
    """Return the words up to the first punctuation mark if that is near, or else the first three."""
    for n, word in enumerate(words[:MAX_PHRASE_WORDS], 1):
        if word[-1] in ".,:;!?":
            return words[:n]
    return words[:3]


def _last_sentence(words: Sequence[str]) -> Sequence[str]:
    """Return the last sentence if it is short, or else the last three words."""
    for n in range(2, MAX_PHRASE_WORDS + 2):
        if words[-n][-1] in ".!?":
            return words[1 - n :]
    return words[-3:]


def _tells(words: Sequence[str]) -> bool:
    """Say whether a phrase may stand for a style: not too long, without a number, no list item, and not only filler."""
    phrase = " ".join(words)
    bare = [word.strip(".,;:!?").lower() for word in words]
    filler = words[-1][-1] not in ":!," and all(word in ALL_STOP_WORDS for word in bare if word)
    return not filler and len(phrase) <= MAX_PHRASE_CHARS and not re.search(r"\d", phrase) and not ITEM.match(phrase)
