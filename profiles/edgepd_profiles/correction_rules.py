"""The rules that notice a follow-up which asks for another form of the answer before it.

The idea: whoever corrects is brief and says it first: "shorter, please", "no, in German", "that's wrong". So a rule
must match the first sentence as a whole, apart from politeness around it ("can you make it a bit ..., please"), and
what follows must be short. A rule is a list of phrases in English, German, French and Spanish, with an example to read.
The invariant: a question about the same words ("what is a short story?"), a new task ("write a formal letter to Ann"),
a wish for more of the same ("tell me more") and a text that was pasted are no corrections. A miss does less harm than a
false alarm, for corrections are the exception.
What this does not do: know the answer, understand sentences, or take "translate it into German" for a correction: that
is as often the next task as a complaint. It imports nothing of edgepd, so that everybody can import it.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

MAX_WORDS = 12  # of the first sentence; longer ones are new questions
MAX_REST_WORDS = 24  # of what follows it; more is a new task, or pasted
MAX_PASTED_WORDS = 4  # of what follows on lines of its own
MAX_CHARS = 400  # of the whole; longer ones are not looked at


class Rule(NamedTuple):
    """A rule: a regular expression for the words that ask for a form, without case, and an example that it notices.

    `too` are the words that complain after "too ...", `alone` those that stand without "make it ..." and the like, and
    `asked` those that ask for a form only with it: alone, "formal" may as well answer a question.
    """

    name: str
    words: str
    example: str
    too: str = ""
    alone: str = ""
    asked: str = ""

    @property
    def pattern(self) -> str:
        """What the user is shown: the words, without the politeness around them."""
        parts = (self.words, self.too and f"too (?:{self.too})", self.alone, self.asked and f"make it (?:{self.asked})")
        return "|".join(filter(None, parts))


def _language(code: str, names: str, example: str) -> Rule:
    return Rule(f"language:{code}", rf"(?:in|auf|en) (?:{names})(?: language)?", example)


RULES: tuple[Rule, ...] = (
    _language("en", "english|englisch|anglais|inglés|ingles", "auf Englisch, bitte"),
    _language("de", "german|deutsch|deutscher sprache|allemand|alemán|aleman", "no, in German"),
    _language("fr", "french|französisch|francais|français|francés|frances", "answer in French"),
    _language("es", "spanish|spanisch|espagnol|español|espanol|castellano", "en español, por favor"),
    _language("it", "italian|italienisch|italien|italiano", "in Italian please"),
    Rule(
        "shorter",
        r"(?:a )?shorter(?: version)?|briefer|more (?:concise|brief|compact)|(?:use )?(?:fewer|less) words|less "
        r"(?:text|wordy|verbose|long)|in (?:one|a single|two|three) sentences?|tl;?dr|kürzer|knapper|weniger text|in "
        r"(?:einem|zwei|drei) (?:satz|sätzen)|(?:plus|en plus) (?:court|courte|bref|concis)|en (?:une|deux|trois) "
        r"phrases?|más (?:corto|corta|breve|conciso)|en (?:una|dos|tres) frases?",
        "shorter, please",
        too="long|wordy|verbose|much text|lang|langatmig|viel text|longue?|largo|larga|extenso",
        alone=r"shorten (?:it|that|this)|cut (?:it|this|that) down|trim it(?: down)?|kürze? (?:es|das)|fass dich "
        r"kürzer|raccourcis(?:-le)?|acórtalo",
        asked="short|brief|concise|kurz|knapp|bref|court|breve|corto",
    ),
    Rule(
        "longer",
        r"longer|(?:in |with |a bit |some )?more (?:details?|detailed|depth|thorough|explanation)|länger|"
        r"ausführlicher|detaillierter|genauer|(?:mit )?mehr (?:details|einzelheiten)|plus (?:long|longue|détaillée?)|"
        r"(?:avec )?plus de détails|más (?:largo|larga|detallado|detallada|extenso)|(?:con )?más detalles?",
        "more detail please",
        too="short|brief|kurz|knapp|court|courte|bref|corto|corta|breve",
        alone=r"elaborate(?: on (?:it|that))?|expand (?:it|on that|that)|go into (?:more )?detail|développe(?: un "
        r"peu)?",
    ),
    Rule(
        "simpler",
        r"simpler|more simply|easier(?: to understand)?|in (?:simple|simpler|plain|easy) (?:words|terms|english|"
        r"language)|less technical|like i(?:'m| am) (?:five|5)|eli5|einfacher|(?:leichter )?verständlicher|leichter "
        r"verständlich|in einfachen worten|weniger technisch|plus simple(?:ment)?|en termes simples|avec des mots "
        r"simples|moins technique|más (?:simple|sencillo|sencilla|fácil)|en palabras (?:simples|sencillas)|menos "
        r"técnico",
        "explain it in simpler terms",
        too="complicated|complex|technical|kompliziert|technisch|compliqué|technique|complicado|técnico",
        alone=r"i (?:don't|do not|didn't) (?:understand|get)(?: (?:it|that|this|your answer))?|das verstehe ich "
        r"nicht|ich verstehe (?:das |es )?nicht|je ne comprends pas|no (?:lo )?entiendo",
    ),
    Rule(  # before "list": the "no" of "no bullet points" is not politeness
        "plain",
        r"(?:without|no|not as|not in|skip the|drop the|lose the|stop using) (?:an? |the |any )?(?:lists?|bullets|"
        r"bullet points|headings|headers|tables?|markdown|formatting)|(?:in|as) (?:plain text|prose|running text|"
        r"full sentences)|(?:ohne|keine) (?:eine |die )?(?:listen?|aufzählung|stichpunkte|überschriften|tabelle|"
        r"formatierung|markdown)|als fließtext|in ganzen sätzen|(?:sans|pas de) (?:liste|puces|titres|tableau|mise "
        r"en forme|markdown)|sin (?:listas?|viñetas|títulos|tabla|formato|markdown)",
        "no bullet points",
    ),
    Rule(
        "list",
        r"(?:as|in|with|into) (?:an? )?(?:(?:bulleted|numbered|bullet|short) )?(?:list|bullets|bullet points|points)|"
        r"(?:als|in) (?:eine[r]? )?(?:liste|stichpunkten?|aufzählung)|(?:sous forme de|en|avec une) (?:liste|puces|"
        r"points)|(?:como|en) (?:una )?(?:lista|puntos|viñetas)",
        "as a list",
        alone="(?:use )?bullet points",
    ),
    Rule(
        "table",
        r"(?:as|in|into|with) an? table|als tabelle|in (?:einer|eine) tabelle|(?:sous forme de|en|dans un) tableau|"
        r"(?:como|en) (?:una )?tabla",
        "put it in a table",
    ),
    Rule(
        "code",
        r"(?:just|only) the code|(?:the )?code only|nur (?:den |der )?code|(?:seulement|juste|uniquement) le code|"
        r"(?:solo|sólo|solamente) el código",
        "just the code",
    ),
    Rule(
        "casual",
        r"less (?:formal|stiff|official)|more (?:casual(?:ly)?|informal(?:ly)?|relaxed|friendly|personal)|friendlier|"
        r"lockerer|weniger (?:förmlich|formell|steif)|freundlicher|persönlicher|moins (?:formel(?:le)?|guindé)|plus "
        r"(?:décontracté|amical|familier)|menos formal|más (?:informal|cercano|amistoso|relajado)",
        "less formal",
        too="formal|stiff|förmlich|steif|formell|formel|guindé",
        asked="casual|informal|friendly|locker|amical",
    ),
    Rule(
        "formal",
        r"more (?:formal(?:ly)?|polite(?:ly)?|professional(?:ly)?)|less (?:casual|informal)|formeller|förmlicher|"
        r"höflicher|professioneller|sachlicher|plus (?:formel(?:le)?|polie?|professionnel|soutenu)|más (?:formal|"
        r"educado|profesional|cortés)",
        "make it more formal",
        too="casual|informal|locker|familier",
        asked="formal|formally|polite|professional|förmlich|formell|formel",
    ),
    Rule(
        "no-emoji",
        r"(?:(?:without|no|drop the|skip the|stop using|fewer) (?:any )?|ohne |keine |sans |pas d'|sin )(?:[eé]mojis?|"
        r"smileys?)",
        "without emojis",
    ),
    Rule(
        "wrong",
        "",
        "no, that's wrong",
        alone=r"(?:(?:that|this|it|your answer|the answer)(?:'s| is| was) (?:(?:just|simply|completely|totally|still|"
        r"plain|also) )?(?:wrong|incorrect|false|not (?:right|correct|true|what i (?:asked|meant|wanted)(?: for)?))|"
        r"wrong(?: answer)?|incorrect|not correct|you(?:'re| are) wrong|that (?:isn't|wasn't) (?:right|correct|true|"
        r"what i (?:asked|meant|wanted)(?: for)?)|you (?:misunderstood(?: me| my question)?|didn't answer my "
        r"question)|that doesn't answer my question|(?:das|deine antwort|die antwort) (?:ist|war|stimmt) "
        r"(?:(?:leider|immer noch|so|ganz|doch|aber) )*(?:falsch|nicht|nicht richtig|nicht korrekt|nicht was ich "
        r"(?:meinte|wollte))|falsch|stimmt nicht|das (?:habe|hab) ich nicht gefragt|(?:da )?(?:irrst du dich|du "
        r"irrst dich)|c'est (?:complètement |encore )?(?:faux|incorrect|inexact)|ce n'est pas (?:juste|correct|vrai|"
        r"ce que j'ai demandé|ce que je voulais)|(?:eso |esto )?(?:es|está) (?:mal|incorrecto|equivocado)|(?:eso "
        r")?no es (?:correcto|cierto|verdad|lo que (?:pedí|quería))|te equivocas|incorrecto)(?:\s*[,:–—-].*)?",
    ),
    Rule(
        "again",
        "",
        "try again",
        alone=r"(?:try|do it|do that|say it|write it|answer) (?:it )?(?:again|once more|differently|one more time)|"
        r"try another (?:one|version|answer)|(?:another|a different) (?:version|answer|wording)|rephrase (?:it|that)|"
        r"say it differently|regenerate|redo (?:it|that)|rewrite (?:it|that)|versuch(?:e)? es (?:nochmal|noch mal|"
        r"noch einmal|erneut|anders)|noch ?mal(?: neu)?|noch einmal|mach es (?:nochmal|noch mal|anders)|"
        r"formulier(?:e)? (?:es|das) (?:um|anders|neu)|eine andere (?:fassung|antwort|version)|réessaie|réessayez|"
        r"essaie encore|encore une fois|recommence|refais(?:-le)?|reformule|une autre version|(?:inténtalo|prueba|"
        r"hazlo) (?:de nuevo|otra vez)|otra vez|de nuevo|otra versión|reformúlalo|dilo de otra (?:forma|manera)",
    ),
)

# What may stand before a request and after it, as often as it likes.
_BEFORE = (
    r"(?:no|nope|not quite|hm+|ok|okay|well|sorry|please|pls|but|and|now|actually|thanks|thank you|just|rather|great|"
    r"nice|good|i meant|i said|i want(?:ed)? it|i(?: would|'d) (?:like|prefer)(?: it| that)?|nein|nee|doch|bitte|aber|"
    r"und|danke|gut|lieber|eher|jetzt|noch ?mal|noch einmal|ich meinte|ich will es|ich hätte es gern|non|mais|et|merci|"
    r"s'il te plaît|s'il vous plaît|stp|svp|plutôt|maintenant|d'accord|je voulais|je préfère|pero|y|ahora|gracias|"
    r"por favor|mejor|vale|bueno|lo quiero|prefiero)[\s,:–—-]+"
)
_AFTER = (
    r"(?<![\s,:–—-])[\s,:–—-]+(?:please|pls|thanks|thank you|then|instead|though|now|again|this time|next time|bitte|"
    r"danke|diesmal|jetzt|stattdessen|noch ?mal|noch einmal|s'il te plaît|s'il vous plaît|stp|svp|merci|cette fois|"
    r"plutôt|por favor|gracias|esta vez|ahora|mejor)$"
)
# "can you", "it", "make", "a bit", "that is too".
_ASK = (
    r"(?:(?:can|could|would|will) you|(?:kannst|könntest) du|können sie|peux-tu|pourrais-tu|tu peux|pouvez-vous|puedes|"
    r"podrías) "
)
_PLEASE = r"(?:please|bitte) "
_THAT = (
    r"(?:it|that|this|them|(?:the|your|that|this) (?:(?:last|first|second|whole|previous) )?(?:answer|reply|response|"
    r"text|version|email|mail|letter|paragraph|sentence|explanation|summary)|es|das|(?:die|deine|diese|den|der|dein) "
    r"(?:(?:ganze|letzte|erste) )?(?:antwort|text|fassung|mail|brief|absatz|satz|erklärung|zusammenfassung)|ça|cela|"
    r"(?:la|ta|votre) réponse|le texte|la lettre|le résumé|eso|esto|(?:la|tu) respuesta|el texto|la carta|"
    r"el resumen) "
)
_VERB = (
    r"(?:make|keep|write|phrase|say|put|do|answer|reply|explain|rewrite|redo|rephrase|try|give me|show me|mache?|"
    r"schreibe?|sag|formuliere?|antworte|erkläre?|fass|le faire|faire|dire|écrire|expliquer|répondre|reformuler|"
    r"(?:fais|rends|écris|dis|explique|réponds|reformule|mets|faites|écrivez|répondez)(?:-(?:le|la|moi))?|hazlo|"
    r"hazla|haz|ponlo|escríbelo|dilo|explícalo|responde|contesta|hacerlo|escribirlo|decirlo|explicarlo|responder) "
)
_ADVERBS = (
    r"(?:(?:much|even|a bit|a little|a lot|way|far|still|slightly|viel|etwas|noch|ein bisschen|ein wenig|deutlich|"
    r"un peu|beaucoup|bien|encore|un poco|mucho|bastante|algo|todavía) )+"
)
_LAST_VERB = r" (?:machen|formulieren|schreiben|fassen|erklären|sagen|antworten)$"
_TOO = (
    r"(?:(?:(?:that|this|it|your answer|the answer|das|die antwort|la réponse|eso|la respuesta)(?:'s| is| was| ist| "
    r"war| est| es)|c'est|es) )?(?:(?:way|much|a bit|a little|far|viel|etwas|un peu|beaucoup|un poco) )*(?:too|zu|"
    r"trop|demasiado) "
)


def rules() -> list[dict[str, str]]:
    """Return every rule as {"name", "pattern", "example"}, in the order in which they are tried."""
    return [{"name": rule.name, "pattern": rule.pattern, "example": rule.example} for rule in RULES]


def match(text: str) -> str | None:
    """Return the name of the first rule that notices a correction in a user's message, or None.

    The time is bounded whatever the text: only the first MAX_WORDS words of a short message are matched.
    """
    if len(text) > MAX_CHARS:
        return None
    plain = " ".join(re.split("[ \t]+", text.replace("\u2019", "'").casefold())).strip()
    first, rest = _first_sentence(plain.lstrip("¿¡ "))
    sentence = first.rstrip(" .!?…,;")
    if not sentence or len(sentence.split()) > MAX_WORDS or first.endswith(":") or _is_new_task(rest):
        return None
    if plain.startswith("¿") and not sentence.startswith(("puedes", "podrías")):
        return None  # "¿es más corto?" asks
    ways = _ways(sentence)
    for rule in RULES:
        if rule.name == "wrong" and first.endswith("?"):
            continue  # so does "that is wrong?"
        patterns = (rule.words, rule.too, rule.alone, rule.asked)
        if any(_matches(pattern, texts) for pattern, texts in zip(patterns, ways, strict=True) if pattern):
            return rule.name
    return None


def _first_sentence(text: str) -> tuple[str, str]:
    """Return the first sentence with the mark that ends it, and the rest."""
    end = re.search(r"[.!?…;]+(?=\s)|:?(?=\n)", text)
    return (text[: end.end()], text[end.end() :]) if end else (text, "")


def _is_new_task(rest: str) -> bool:
    """Say whether what follows the first sentence is more than an explanation of it."""
    pasted = rest.partition("\n")[2]
    quoted = any(mark in rest for mark in '"“„«`')
    return quoted or len(rest.split()) > MAX_REST_WORDS or len(pasted.split()) > MAX_PASTED_WORDS


def _ways(sentence: str) -> tuple[set[str], set[str], set[str], set[str]]:
    """Return what is left of a sentence without politeness, for each of a rule's words, too, alone and asked."""
    cores = {sentence}
    for pattern in (_BEFORE, _AFTER):
        for _ in range(MAX_WORDS):
            cores = _without(cores, pattern)
    alone = _without(cores, _ASK, _PLEASE)
    asked = _without(_cut(alone, _VERB), _THAT, _PLEASE)
    words = _without(alone, _THAT, _PLEASE, _VERB, _THAT, _PLEASE, _ADVERBS, _LAST_VERB)
    return words, _cut(cores, _TOO), alone, asked


def _without(texts: set[str], *patterns: str) -> set[str]:
    """Return the texts, and what is left of them where one pattern after the other is taken off or not."""
    for pattern in patterns:
        texts = texts | _cut(texts, pattern)
    return texts


def _cut(texts: set[str], pattern: str) -> set[str]:
    """Return what is left of those texts that begin with a pattern, or end with one that has a $."""
    found = ((text, _compiled(pattern).search(text)) for text in texts)
    return {text[: at.start()] + text[at.end() :] for text, at in found if at}


def _matches(pattern: str, texts: set[str]) -> bool:
    return any(_compiled(pattern).fullmatch(text) for text in texts)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """Compile a pattern when it is needed first: it takes a millisecond, which an idle daemon does without."""
    return re.compile(pattern if pattern.endswith("$") else rf"\A(?:{pattern})")
