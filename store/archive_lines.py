"""The lines of an archive, one JSON object each. docs/formats/archive.md is their specification."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from mnemos.errors import ArchiveError
from mnemos.store.records import Kind, Status

FORMAT: Literal["mnemos-archive"] = "mnemos-archive"
VERSION: Literal[1] = 1

MAX_LINE_BYTES = 16 << 20  # 1 MiB of text and of reply, each character escaped
GROUP_MEMORIES = 250  # what a writer puts between two check lines
GROUP_TEXT_BYTES = 4 << 20
GROUP_TRACE_BYTES = 32 << 20
MAX_GROUP_MEMORIES = 1000  # what a reader takes between two check lines
MAX_GROUP_LINE_BYTES = 64 << 20
MAX_TRACE_BYTES = 256 << 20  # of one memory
MAX_GROUP_TRACE_BYTES = MAX_TRACE_BYTES + GROUP_TRACE_BYTES
PART_BYTES = 3 << 20  # of a trace on one line, before base64

Id = Annotated[str, Field(pattern=r"^[a-z2-7]{26}$")]
Moment = Annotated[int, Field(ge=-62_135_596_800_000_000, le=253_402_300_799_999_999)]  # µs of Unix time
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=1 << 53)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class _Line(BaseModel):
    # Fields that a later writer adds are passed over.
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class HeaderLine(_Line):
    type: Literal["header"] = "header"
    format: Literal["mnemos-archive"] = FORMAT
    version: Literal[1] = VERSION
    created_us: Moment
    bank: Id
    traces: bool
    hidden: bool
    filtered: bool
    model: str | None = Field(default=None, max_length=256)
    fingerprint: str | None = Field(default=None, max_length=256)


class NamespaceLine(_Line):
    type: Literal["namespace"] = "namespace"
    name: str = Field(max_length=128)
    id: Id


class SessionLine(_Line):
    type: Literal["session"] = "session"
    id: str = Field(max_length=4096)
    title: str | None
    created_us: Moment
    updated_us: Moment


class UseLine(_Line):
    """One memory that a reply was made with; lies within a memory's line."""

    memory: Id
    rank: Annotated[int, Field(ge=0, le=1 << 31)]
    score: Number
    signals: Annotated[dict[str, Number], Field(max_length=64)]
    attention: Number | None
    cited: bool


class MemoryLine(_Line):
    type: Literal["memory"] = "memory"
    id: Id
    kind: Kind
    text: str
    reply: str | None
    speaker: str | None
    title: str | None
    source: str | None
    session: str | None
    created_us: Moment
    expires_us: Moment | None
    tags: Annotated[list[str], Field(max_length=1000)]
    status: Status
    pinned: bool
    hidden: bool
    content: Digest | None
    uses: Annotated[list[UseLine], Field(max_length=10_000)]


class TraceLine(_Line):
    type: Literal["trace"] = "trace"
    memory: Id
    fingerprint: str = Field(max_length=256)
    tokens: Annotated[int, Field(ge=1, le=1 << 31)]
    kv_bytes: Annotated[int, Field(ge=1, le=MAX_TRACE_BYTES)]
    route_bytes: Annotated[int, Field(ge=1, le=MAX_TRACE_BYTES)]
    sha256: Digest


class PartLine(_Line):
    type: Literal["part"] = "part"
    data: str


class CheckLine(_Line):
    type: Literal["check"] = "check"
    sha256: Digest


class EndLine(_Line):
    type: Literal["end"] = "end"
    namespaces: Count
    memories: Count
    traces: Count
    sha256: Digest


Line = HeaderLine | NamespaceLine | SessionLine | MemoryLine | TraceLine | PartLine | CheckLine | EndLine
_ANY: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="type")])


class _Version(BaseModel):
    """Of a header that this version may not know in full."""

    format: Literal["mnemos-archive"]
    version: int


def parse(data: bytes, number: int) -> Line:
    """One line. ArchiveError, which never repeats what the line holds."""
    try:
        return _ANY.validate_json(data)
    except ValidationError as error:
        if number == 1:
            _refuse_header(data)
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = next((part for part in reversed(first["loc"]) if part in _NAMES), "its form")
        raise ArchiveError(
            f"line {number} of the archive is damaged ({where}: {first['type']}). Take another copy of it"
        ) from None


def _refuse_header(data: bytes) -> None:
    try:
        found = _Version.model_validate_json(data)
    except ValidationError:
        raise ArchiveError("this is no archive of Mnemos; `--format` names other formats") from None
    if found.version > VERSION:
        raise ArchiveError(
            f"the archive is of version {found.version}; this Mnemos reads versions up to {VERSION}. Install "
            "a newer Mnemos to import it"
        )


_NAMES = {
    name
    for model in (HeaderLine, NamespaceLine, SessionLine, UseLine, MemoryLine, TraceLine, PartLine, EndLine)
    for name in model.model_fields
}
