"""Which objects does a caption mention, whatever it calls them?

A vocabulary maps words to objects: "alligator", "crocodiles" and "croc" are one object, `alligator`. A caption is cut into
words, each word is made singular, and names are looked for from left to right, the longest first, as whole words: "a sea
lion" is no lion, "hot dog" no dog. Words may be mentioned repeatedly; each mention counts.

Source: Rohrbach et al. 2018, "Object Hallucination in Image Captioning" (CHAIR), arXiv:1809.02156; its released code,
utils/chair.py:98-140 (singular forms, double words, synonyms).

Differs from the source: the objects are those that sound, in av_objects.json beside this file (there: COCO's 80 classes);
names of any number of words are matched (there: two); the singular is made by a few rules (there: by the library pattern). Its
special case of the toilet's seat is not needed, since no seat is in the list.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources

from avlens.errors import MetricError

Lemmatiser = Callable[[str], str]


def singular(word: str) -> str:
    """The singular of an English noun in lower case; a word that is no plural comes back as it is.

    By rules and a list of exceptions: enough for the names of things, not for all of English.
    """
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word in _NO_PLURAL or len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if len(word) == 4:  # "pies", "toes": too short to have lost more than the s
        return word[:-1]
    for ending, instead in _ENDINGS:
        if word.endswith(ending):
            return word[: -len(ending)] + instead
    return word[:-1]


@dataclass(frozen=True)
class Mention:
    """One mention of an object.

    Attributes:
        object: Its one name.
        words: What the text calls it, in the singular.
        start: Index of its first word in the text.
        end: Index after its last word.
    """

    object: str
    words: str
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Objects and what they are called.

    Attributes:
        names: The names of each object, by the one that stands for it.
        ignored: Phrases that hold an object's name but mean something else, such as "hot dog".
        lemmatise: What makes a word singular: `singular`, or such as nltk's `WordNetLemmatizer().lemmatize`.
    """

    names: Mapping[str, Collection[str]]
    ignored: Collection[str] = ()
    lemmatise: Lemmatiser = singular

    @classmethod
    def sounding(cls, lemmatise: Lemmatiser = singular) -> "Vocabulary":
        """Everyday animals, people, instruments, vehicles, machines and natural things that can be seen and heard."""
        data = json.loads((resources.files("avlens.metrics") / "av_objects.json").read_text(encoding="utf-8"))
        return cls(data["objects"], data["ignored"], lemmatise)

    def with_objects(self, names: Mapping[str, Collection[str]]) -> "Vocabulary":
        """The same and further objects, or further names of an object."""
        merged = {
            name: tuple(self.names.get(name, ())) + tuple(names.get(name, ())) for name in {**self.names, **names}
        }
        return Vocabulary(merged, self.ignored, self.lemmatise)

    def only(self, objects: Iterable[str]) -> "Vocabulary":
        """These objects alone, as where a metric should count no others.

        Raises:
            MetricError: If one is not in the vocabulary.
        """
        wanted = list(dict.fromkeys(objects))
        if unknown := [name for name in wanted if name not in self.names]:
            raise MetricError(
                f"{unknown[0]!r} is no object of this vocabulary of {len(self.names)}. "
                f"Add it with with_objects({{{unknown[0]!r}: ()}})."
            )
        return Vocabulary({name: self.names[name] for name in wanted}, self.ignored, self.lemmatise)

    def mentions(self, text: str) -> list[Mention]:
        """Every mention in a text, in order; of names that overlap, the first and longest."""
        return list(self._found([self.lemmatise(word) for word in words(text)]))

    def objects(self, text: str) -> frozenset[str]:
        """Which objects a text mentions."""
        return frozenset(mention.object for mention in self.mentions(text))

    def __repr__(self) -> str:
        return f"Vocabulary({len(self.names)} objects, {sum(map(bool, self._lookup.values()))} names)"

    def _found(self, lemmas: list[str]) -> Iterator[Mention]:
        at = 0
        while at < len(lemmas):
            end = next((end for end in self._ends(at, lemmas) if tuple(lemmas[at:end]) in self._lookup), None)
            if end is None:
                at += 1
                continue
            found = self._lookup[tuple(lemmas[at:end])]
            if found is not None:
                yield Mention(found, " ".join(lemmas[at:end]), at, end)
            at = end

    def _ends(self, at: int, lemmas: list[str]) -> range:
        return range(min(len(lemmas), at + self._longest), at, -1)

    @cached_property
    def _lookup(self) -> dict[tuple[str, ...], str | None]:
        """Names as singular words, to their object; to None where they are to be passed over."""
        table: dict[tuple[str, ...], str | None] = {self._key(phrase): None for phrase in self.ignored}
        for name, others in self.names.items():
            for phrase in (name, *others):
                before = table.setdefault(self._key(phrase), name)
                if before not in (name, None):
                    raise MetricError(f"{phrase!r} names both {before!r} and {name!r}. Leave it to one of them.")
        return table

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._lookup), default=0)

    def _key(self, phrase: str) -> tuple[str, ...]:
        return tuple(self.lemmatise(word) for word in words(phrase))


def words(text: str) -> list[str]:
    """The words of a text: lower case, without accents, possessive 's and punctuation; hyphens separate."""
    owned = re.sub(r"['\u2019]s\b", "", text.lower())
    return re.findall(r"[a-z0-9]+", unicodedata.normalize("NFKD", owned).encode("ascii", "ignore").decode())


_IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "people": "people", "geese": "goose", "mice": "mouse",
    "feet": "foot", "teeth": "tooth", "oxen": "ox", "wolves": "wolf", "calves": "calf", "knives": "knife",
    "hooves": "hoof", "leaves": "leaf", "thieves": "thief", "halves": "half", "loaves": "loaf", "elves": "elf",
    "scarves": "scarf", "wives": "wife", "dice": "die", "policemen": "policeman", "firemen": "fireman",
    "firefighters": "firefighter", "sportsmen": "sportsman", "fishermen": "fisherman", "drummers": "drummer",
    "movies": "movie", "cookies": "cookie", "zombies": "zombie", "budgies": "budgie", "collies": "collie",
    "birdies": "birdie", "doggies": "doggie", "kookies": "kookie", "magpies": "magpie", "selfies": "selfie",
    "buses": "bus", "busses": "bus", "minibuses": "minibus", "gases": "gas", "lenses": "lens", "walruses": "walrus",
    "octopuses": "octopus", "platypuses": "platypus", "choruses": "chorus", "viruses": "virus", "circuses": "circus",
    "hippopotamuses": "hippopotamus", "rhinoceroses": "rhinoceros", "cactuses": "cactus", "hippopotami": "hippopotamus",
    "quizzes": "quiz", "waltzes": "waltz", "axes": "axe", "pickaxes": "pickaxe", "headaches": "headache",
    "avalanches": "avalanche", "shoes": "shoe", "horseshoes": "horseshoe", "toes": "toe", "canoes": "canoe",
    "oboes": "oboe", "hoes": "hoe", "moustaches": "moustache", "caches": "cache", "does": "does", "goes": "goes",
}  # fmt: skip
_NO_PLURAL = frozenset(
    ["series", "species", "news", "lens", "gas", "was", "has", "always", "bagpipes", "binoculars", "scissors", "pliers"]
)
_ENDINGS = (
    ("shes", "sh"), ("ches", "ch"), ("sses", "ss"), ("xes", "x"), ("zzes", "zz"), ("oes", "o"), ("ies", "y"),
)  # fmt: skip
