import pytest
from hypothesis import given
from hypothesis import strategies as st

from avlens.errors import MetricError
from avlens.metrics.vocabulary import Vocabulary, singular, words

SOUNDING = Vocabulary.sounding()
SMALL = Vocabulary({"dog": ["puppy"], "sea lion": ["seal"], "lion": [], "fire truck": ["fire engine"]}, ["hot dog"])

PLURALS = {
    "dogs": "dog", "horses": "horse", "houses": "house", "buses": "bus", "foxes": "fox", "finches": "finch",
    "bushes": "bush", "glasses": "glass", "buzzes": "buzz", "mosquitoes": "mosquito", "canoes": "canoe", "toes": "toe",
    "ponies": "pony", "donkeys": "donkey", "pies": "pie", "wolves": "wolf", "waves": "wave", "geese": "goose",
    "women": "woman", "children": "child", "mice": "mouse", "sheep": "sheep", "bus": "bus", "gas": "gas",
    "walrus": "walrus", "tennis": "tennis", "glass": "glass", "bagpipes": "bagpipes", "violas": "viola",
    "octopuses": "octopus", "sirens": "siren", "dog": "dog", "as": "as",
}  # fmt: skip


@pytest.mark.parametrize(("plural", "one"), PLURALS.items())
def test_plurals_become_singular(plural, one):
    assert singular(plural) == one


def test_mentions_are_whole_words_the_longest_first():
    text = "Two sea lions' pup, a lion, dogmatic hot dogs and a DOG; the puppies' dog-house, fire-engines."
    found = SMALL.mentions(text)
    assert [mention.object for mention in found] == ["sea lion", "lion", "dog", "dog", "dog", "fire truck"]
    assert [mention.words for mention in found][-3:] == ["puppy", "dog", "fire engine"]
    assert [words(text)[mention.start : mention.end] for mention in found][0] == ["sea", "lions"]
    assert SMALL.objects(text) == {"sea lion", "lion", "dog", "fire truck"}
    assert SMALL.mentions("") == []


def test_words_lose_case_accents_possessives_and_hyphens():
    assert words("The dog\u2019s caf\u00e9, a HI-HAT's 2nd beat") == [
        "the",
        "dog",
        "cafe",
        "a",
        "hi",
        "hat",
        "2nd",
        "beat",
    ]


@given(st.lists(st.sampled_from(sorted(SOUNDING.names)), max_size=6))
def test_every_object_is_found_by_its_name_in_any_order(names):
    text = "; and then , ".join(f"some {name}" for name in names)
    assert [mention.object for mention in SOUNDING.mentions(text)] == names


def test_every_name_leads_to_its_object_and_to_no_other():
    for name, others in SOUNDING.names.items():
        for other in others:
            assert SOUNDING.objects(other) == {name}, other
    assert len(SOUNDING.names) >= 150


@given(st.text(max_size=40))
def test_any_text_can_be_read(text):
    assert len(SOUNDING.mentions(text)) <= len(words(text))


def test_objects_can_be_added_and_left_out():
    more = SMALL.with_objects({"theremin": ["ether wave"], "dog": ["hound"]})
    assert more.objects("a hound, a puppy and ether waves") == {"dog", "theremin"}
    assert more.objects("a hot dog") == set()
    assert more.only(["theremin"]).objects("a hound and a theremin") == {"theremin"}
    with pytest.raises(MetricError, match=r"with_objects\(\{'gong': \(\)\}\)"):
        SMALL.only(["gong"])


def test_a_name_of_two_objects_is_refused():
    with pytest.raises(MetricError, match="Leave it to one of them"):
        Vocabulary({"bat": [], "club": ["bats"]}).objects("a bat")


def test_another_lemmatiser_can_be_used():
    assert Vocabulary({"ox": ["kine"]}, lemmatise=lambda word: {"kine": "ox"}.get(word, word)).objects("kine") == {"ox"}
    assert repr(SMALL) == "Vocabulary(4 objects, 7 names)"


@pytest.mark.parametrize(
    ("label", "object_"),
    [
        ("playing table tennis", "table tennis ball"), ("playing hockey", "hockey stick"), ("rope skipping", "skipping rope"),
        ("female singing", "person"), ("cutting hair with electric trimmers", "scissors"), ("firing muskets", "gun"),
        ("black capped chickadee calling", "chickadee"), ("cattle, bovinae cowbell", "cowbell"), ("a rooster crows", "chicken"),
    ],
)  # fmt: skip
def test_labels_of_sounds_name_what_sounds(label, object_):
    assert object_ in Vocabulary.sounding().objects(label)
    assert "crow" not in Vocabulary.sounding().objects(label)
