"""A lexicon learnt from pairs of texts: a planted dictionary comes out again."""

import random

from adapters_hub.text.lexicon import learn_lexicon


def planted(words=40, pairs=300, seed=0):
    """Texts, and their translations word by word, in another order of neighbours."""
    draw = random.Random(seed)
    letters = "abcdefghijklmnoprstuvz"
    there = ["".join(draw.choices(letters, k=5)) for _ in range(words)]
    dictionary = {f"w{letters[n % 22]}{letters[n // 22]}": word for n, word in enumerate(there)}
    texts = []
    for _ in range(pairs):
        source = draw.choices([*dictionary], k=draw.randint(4, 9))
        target = [dictionary[word] for word in source]
        for place in range(0, len(target) - 1, 3):
            target[place], target[place + 1] = target[place + 1], target[place]
        texts.append((" ".join(source).capitalize() + " .", " ".join(target) + " !"))
    return dictionary, texts


def test_a_planted_dictionary_is_recovered_in_both_directions():
    dictionary, texts = planted()
    forth, back = learn_lexicon(texts, ("en", "yo"))
    best = {word: max(some, key=lambda t: t.weight).text for word, some in forth.items()}
    assert sum(best.get(word) == other for word, other in dictionary.items()) >= 38
    reverse = {word: max(some, key=lambda t: t.weight).text for word, some in back.items()}
    right = sum(reverse.get(other, "").casefold() == word for word, other in dictionary.items())
    assert right >= 38
    assert {t.language for some in forth.values() for t in some} == {"yo"}
    assert {t.language for some in back.values() for t in some} == {"en"}


def test_signs_and_words_that_stay_are_left_out():
    _, texts = planted()
    texts = [(f"{text} Paris 7", f"{other} Paris 7") for text, other in texts]
    forth, _ = learn_lexicon(texts, ("en", "yo"))
    assert not {".", "!", "paris", "7"} & forth.keys()
    assert not {t.text for some in forth.values() for t in some} & {".", "!", "Paris", "7"}


def test_characters_that_mean_one_word_go_together():
    names = {"room": "房间", "clean": "干净", "quiet": "安静", "large": "宽敞", "water": "清水"}
    draw = random.Random(1)
    pairs = []
    for _ in range(120):
        words = draw.sample([*names], k=3)
        pairs.append((" ".join(words), "".join(names[word] for word in words)))
    forth, _ = learn_lexicon(pairs, ("en", "zh"))
    best = {word: max(some, key=lambda t: t.weight).text for word, some in forth.items()}
    assert sum(best.get(word) == other for word, other in names.items()) >= 4


def test_nothing_is_learnt_from_nothing():
    assert learn_lexicon([], ("en", "yo")) == ({}, {})
    assert learn_lexicon([("", "one"), ("one", "")], ("en", "yo")) == ({}, {})
