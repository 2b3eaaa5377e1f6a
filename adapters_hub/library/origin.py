"""Where an adapter was pulled from, kept with it: the source, and which revision of it this is."""

from dataclasses import dataclass

from adapters_hub.library.json_fields import Fields, as_line


@dataclass(frozen=True)
class Origin:
    """A source and the revision that was taken.

    ``source`` is what `Library.pull` takes, without secrets: ``hf://user/repo``, a URL, a path. A
    branch or tag that was asked for is part of it (``hf://user/repo@v2``), a commit is not.
    ``revision`` is the commit on the Hub, and elsewhere a hash of the header and what the store
    says of the file.
    """

    source: str
    revision: str

    @classmethod
    def from_json(cls, data: object) -> "Origin":
        """From an object of its fields; raises `TypeError` that names what is wrong."""
        fields = Fields(data)
        return cls(fields.need("source", as_line), fields.need("revision", as_line))


@dataclass(frozen=True)
class Outdated:
    """A pulled adapter whose source has another revision by now, or could not be asked."""

    name: str
    source: str
    pinned: str
    newest: str | None
    """The source's revision; None where it could not be asked."""

    problem: str | None = None
    """Why it could not be asked."""
