"""Typed results of exports and imports."""

from pydantic import BaseModel, ConfigDict, Field


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ExportReport(_Frozen):
    """What an archive holds."""

    namespaces: int
    sessions: int
    memories: int
    traces: int
    traces_left_out: int = Field(
        default=0, description="damaged ones, which are made again from the text where they are imported"
    )
    encrypted: bool
    bytes: int = Field(description="of the archive")


class ImportProblem(_Frozen):
    """A record that was left out, by its number from 1."""

    record: int
    reason: str


class ImportReport(_Frozen):
    """What became of an import's memories."""

    format: str = Field(description="archive, chatgpt, claude or jsonl")
    added: int = 0
    known: int = Field(default=0, description="held already, by id or by content")
    erased_before: int = Field(default=0, description="forgotten here earlier, and left out")
    replies_withheld: int = Field(
        default=0, description="added without a reply that was made with something forgotten here"
    )
    expired: int = Field(default=0, description="left out because their time is over")
    sessions: int = Field(default=0, description="new ones")
    traces: int = Field(default=0, description="taken over; the others are made when the model is next used")
    skipped_messages: int = Field(default=0, description="of system and tools, or without words")
    problems: tuple[ImportProblem, ...] = ()
