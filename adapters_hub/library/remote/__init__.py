"""Adapters somewhere else: on the Hub, in a store that fsspec reaches, in another folder.

Knows addresses and transfers of files; does not know a library. What comes in goes through
`Library.add`, whose checks are these files' only ones. Never imports torch.
"""
