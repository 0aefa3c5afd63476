"""What an agent may recall: a condition applied before routing, so that the best are of those allowed."""

from mnemos.errors import InvalidSelectorError
from mnemos.memory.where import parse_where
from mnemos.store.selectors import Condition, Like, conditions


def recall_filter(where: Condition | str | None) -> Condition | None:
    """The condition, of selector text such as `tag:work and not kind:document and since:30d`.

    InvalidSelectorError for text that can't be read, and for `like`: the router judges what is alike.
    """
    if where is None:
        return None
    condition = parse_where(where) if isinstance(where, str) else where
    if any(isinstance(node, Like) for node in conditions(condition)):
        raise InvalidSelectorError(
            "a recall filter takes no `like`, which is for the router to judge; filter by tag, source, kind, "
            "session or time"
        )
    return condition
