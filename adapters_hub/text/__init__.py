"""Texts as a model reads them: prompts, token ids, words, language tokens.

Knows tokenizers and templates; does not know tasks.
"""
