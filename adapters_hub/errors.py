"""Every error this library raises on purpose.

AdaptersHubError
├── SettingsError            a setting or argument has a value that cannot work
├── LanguageError            not a language
├── BlendError               a blend cannot be read
│   └── BlendFileError        a blend file is damaged, or not for these adapters
├── NotFoundError            no such adapter, language or domain in the library
├── AmbiguousTermError       a term of a blend could mean several adapters
├── HeadError                a row needs one task head and has none, or several
├── LibraryError             the library folder refused a change
│   └── AdapterNameError      an adapter name that cannot be a folder or a term
├── TransferError            an adapter could not be sent or fetched
│   ├── AccessError           no token, or one that may not do this
│   └── RemoteNotFoundError   no such repository, file or revision (a NotFoundError too)
├── AdapterFileError         an adapter's files are damaged or unsafe
│   └── UnsupportedAdapterError   sound files, but not a plain additive LoRA
├── SignatureError           a signature is missing, another key's, or not of these files
├── BackboneError            the backbone cannot be loaded as asked
│   └── BackboneMismatchError     the adapter belongs to another backbone
├── DataError                a data file, line or field is wrong
├── TrainingError            training cannot go on
└── MissingExtraError        a package that only some uses need is not installed
"""


class AdaptersHubError(Exception):
    """Base of all errors of this library; catch it to catch them all."""


class SettingsError(AdaptersHubError, ValueError):
    """A setting or argument has a value that cannot work."""


class LanguageError(AdaptersHubError, ValueError):
    """A text that names no language."""


class BlendError(AdaptersHubError, ValueError):
    """A blend that cannot be read."""


class BlendFileError(BlendError):
    """A blend file that is damaged or unsafe, or was made with other adapters than are there."""


class NotFoundError(AdaptersHubError, LookupError):
    """No such adapter, language or domain."""


class AmbiguousTermError(AdaptersHubError, LookupError):
    """A term of a blend that could mean several adapters."""


class HeadError(AdaptersHubError, ValueError):
    """A row needs exactly one task head and has none, or several."""


class LibraryError(AdaptersHubError, OSError):
    """The library folder refused a change."""


class AdapterNameError(LibraryError, ValueError):
    """An adapter name that cannot be a folder name and a term of a blend."""


class TransferError(AdaptersHubError, OSError):
    """An adapter could not be sent or fetched; nothing half-written is left."""


class AccessError(TransferError):
    """No token, or one that may not read or write there."""


class RemoteNotFoundError(TransferError, NotFoundError):
    """No such repository, file or revision where an adapter was to come from."""


class AdapterFileError(AdaptersHubError, ValueError):
    """An adapter's files are damaged, unsafe or incomplete."""


class UnsupportedAdapterError(AdapterFileError):
    """Sound files that hold something other than a plain additive LoRA."""


class SignatureError(AdaptersHubError, ValueError):
    """A signature that is missing, was made with another key, or is not of these files."""


class BackboneError(AdaptersHubError, RuntimeError):
    """The backbone cannot be loaded, or cannot do what was asked."""


class BackboneMismatchError(BackboneError):
    """The adapter belongs to another backbone."""


class DataError(AdaptersHubError, ValueError):
    """A data file, a line or a field is wrong."""


class TrainingError(AdaptersHubError, RuntimeError):
    """Training cannot start or go on."""


class MissingExtraError(AdaptersHubError, ImportError):
    """A package of one of the extras is not installed; the message has the command."""
