"""Train rows changed at random as they are drawn: one file a method, found by its name.

Knows rows, words and what they are translated by. Does not know tokenizers, models or tasks: what
cuts texts into words, and what a lexicon is learnt with, is given; a method whose work is done
there just declares itself here.
"""
