"""Every error Mnemos raises on purpose, in one tree.

    MnemosError (exit code 1)
    ├── NotFoundError                     nothing by that id, name or selector
    ├── UsageError (2)                    the request itself is wrong
    │   ├── InvalidNamespaceError
    │   ├── InvalidTextError              empty, too large, not UTF-8
    │   ├── InvalidSelectorError
    │   ├── InvalidSchemaError            a tool or output type that JSON can't express
    │   └── AmbiguousIdError
    ├── StalePlanError                    the bank moved on since the plan was made
    ├── QuotaExceededError                the namespace may hold no more
    ├── PolicyError                       a write policy failed
    ├── GeneratorError                    a remote generator
    │   ├── GeneratorUnreachableError
    │   ├── GeneratorTimeoutError
    │   ├── GeneratorRefusedError         an HTTP error; `status` has its number
    │   └── GeneratorResponseError        what came back can't be read
    ├── ArchiveError                      cut off, damaged, newer, or another passphrase
    ├── InterruptedTurnError (130)
    ├── BusyError                         as many turns at once as there may be
    ├── ModelError
    │   ├── UnknownModelError
    │   ├── ModelDownloadError
    │   ├── InvalidWeightsError           truncated, foreign or unsupported weights
    │   ├── InvalidTokenizerError
    │   ├── ContextOverflowError
    │   └── InvalidOutputError            a reply that never fitted its output type
    └── BankError (3)                     the bank can't be read or written
        ├── BankUnreadableError
        ├── BankVersionError              made by a newer Mnemos
        ├── BankLockedError
        ├── BankReadOnlyError
        ├── BankFullError                 the disk is full
        ├── BankKeyError                  no key, or the wrong one
        ├── ModelMismatchError            traces of another model
        ├── ErasePendingError             a reader is in the way of an erase
        └── DamageFoundError (4)          verify found damage

A message says what happened, to what, and what to do next. It never holds the words of a memory.
"""


class MnemosError(Exception):
    """Base of every error raised on purpose. `exit_code` is what the `mnemos` command ends with."""

    exit_code = 1


class NotFoundError(MnemosError):
    """No memory, namespace, session or model goes by that name."""


class UsageError(MnemosError):
    """The request is wrong in itself; repeating it can't help."""

    exit_code = 2


class InvalidNamespaceError(UsageError):
    """A namespace name that is empty, too long, or has characters that are not allowed."""


class InvalidTextError(UsageError):
    """A text that is empty, over the size limit, or not valid UTF-8."""


class InvalidSelectorError(UsageError):
    """A selector that selects by nothing, or contradicts itself."""


class InvalidSchemaError(UsageError):
    """A tool's parameters or an output type that can't be expressed as a JSON schema and decoded by it."""


class AmbiguousIdError(UsageError):
    """An id prefix that more than one memory starts with."""


class StalePlanError(MnemosError):
    """The bank changed since the plan was shown; plan again."""


class QuotaExceededError(MnemosError):
    """The namespace's quota allows no more; nothing of the write was kept."""


class PolicyError(MnemosError):
    """A write policy raised, or returned what is no draft; what it was given was not written."""


class GeneratorError(MnemosError):
    """A remote generator gave no reply. The message is kept, and may be sent again."""


class GeneratorUnreachableError(GeneratorError):
    """Nobody answers at the address, or the connection broke."""


class GeneratorTimeoutError(GeneratorError):
    """The server was silent for too long."""


class GeneratorRefusedError(GeneratorError):
    """The server answered with an HTTP error."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class GeneratorResponseError(GeneratorError):
    """What the server sent is not what the protocol says."""


class ArchiveError(MnemosError):
    """An archive, or an export of another program, that can't be read as what it should be."""


class InterruptedTurnError(MnemosError):
    """The person or the program stopped a turn half-way."""

    exit_code = 130


class BusyError(MnemosError):
    """As many turns run and wait as may; the request can be made again later."""


class ModelError(MnemosError):
    """Something about a model."""


class UnknownModelError(ModelError):
    """No model by that name or at that path."""


class ModelDownloadError(ModelError):
    """The weights could not be fetched, or were not what they should be."""


class InvalidWeightsError(ModelError):
    """The weights are truncated, corrupt, foreign, or of an architecture that is not supported."""


class InvalidTokenizerError(ModelError):
    """The tokenizer is missing, or does not fit the weights."""


class ContextOverflowError(ModelError):
    """More tokens than the model's window holds."""


class InvalidOutputError(ModelError):
    """The model did not manage a reply of the output type that was asked for."""


class BankError(MnemosError):
    """The bank could not be read or written."""

    exit_code = 3


class BankUnreadableError(BankError):
    """The directory is not a bank, or its files can't be read."""


class BankVersionError(BankError):
    """The bank was written by a newer version of Mnemos."""


class BankLockedError(BankError):
    """Another process holds the writer's lock."""


class BankReadOnlyError(BankError):
    """The bank, or its disk, can't be written."""


class BankFullError(BankError):
    """The disk has no room for the write; nothing of it was kept."""


class BankKeyError(BankError):
    """The key that opens the bank is missing, too widely readable, or wrong."""


class ModelMismatchError(BankError):
    """The bank's traces were made by another model."""


class ErasePendingError(BankError):
    """The words are out of reach, but a reader still keeps the last bytes from being cleared."""


class DamageFoundError(BankError):
    """`bank verify` found damage."""

    exit_code = 4
