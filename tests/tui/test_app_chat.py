"""The chat on the whole screen: keys go to the prompt that has the focus, the bank is a real one."""

import threading
from pathlib import Path
from typing import Any

import pytest
from tests.tui.driving import answered, drive, say, screen_text, until
from tests.tui.scripted import loader_with, opener_at
from textual.pilot import Pilot
from textual.widgets import Button, OptionList

from mnemos import MemoryBank
from mnemos.errors import InvalidTextError, ModelError
from mnemos.tui.app.app import ChatApp
from mnemos.tui.app.conversation import Card, Said
from mnemos.tui.app.forget_dialog import ForgetDialog
from mnemos.tui.app.inspector import Inspector

FACT = "My sister Clara works as a nurse in Leeds."
REPLY = "Clara works as a nurse."
LONG = "word " * 120


@pytest.fixture
def place(tmp_path: Path) -> Path:
    with MemoryBank.open(tmp_path / "bank") as bank:
        bank.remember(FACT)
    return tmp_path / "bank"


def chat(place: Path, *replies: str, session: str | None = None, **settings: Any) -> ChatApp:
    return ChatApp(
        opener_at(place), loader_with(*(replies or (REPLY,)), **settings), "default", session=session
    )


def cards(app: ChatApp) -> list[str]:
    return [str(card.content) for card in app.conversation.query(Card)]


def test_a_reply_streams_and_carries_its_memories(place: Path) -> None:
    app = chat(place, "Clara is a **nurse**.\n\n```python\nprint(1)\n```")

    async def script(pilot: Pilot[Any]) -> None:
        assert app.focused is app.prompt.area
        await pilot.press("W", "h", "o", "space", "i", "s", "space", "C", "l", "a", "r", "a", "enter")
        await answered(pilot, app, 1)
        shown = screen_text(app)
        assert "Clara is a nurse." in shown and "**" not in shown and "print(1)" in shown
        assert "1 memory" in shown and "recall 12 ms" in shown and "tokens/s" in shown
        await pilot.press("f2")
        await until(pilot, lambda: app.panel.current is not None)
        shown = screen_text(app)
        assert FACT in shown and "100% attention" in shown and "cited" in shown and "score" in shown

    drive(app, script, (140, 40))
    with MemoryBank.open(place) as bank:
        assert bank.list(limit=1)[0].reply.startswith("Clara is a **nurse**.")  # type: ignore[union-attr]


def test_a_memory_is_forgotten_with_two_keys_and_a_yes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = chat(place)
    monkeypatch.chdir(place.parent)

    async def script(pilot: Pilot[Any]) -> None:
        await say(pilot, "What does Clara do?")
        await answered(pilot, app, 1)
        await pilot.press("f2")
        await until(pilot, lambda: app.panel.current is not None)
        await pilot.press("f")
        await until(pilot, lambda: isinstance(app.screen, ForgetDialog))
        assert app.focused is app.screen.query_one("#no"), "Enter by mistake forgets nothing"
        shown = screen_text(app)
        assert FACT in shown and "reply to: What does Clara do?" in shown and "1 reply made with it" in shown
        await pilot.press("enter")
        await until(pilot, lambda: not isinstance(app.screen, ForgetDialog))
        assert app.bank.list(matching=FACT)
        await pilot.press("f")
        await until(pilot, lambda: isinstance(app.screen, ForgetDialog))
        await pilot.press("right", "enter")
        await until(pilot, lambda: app.screen.query_one("#close", Button).display)
        assert "✓ receipt" in screen_text(app) and app.focused is app.screen.query_one("#close")
        await pilot.press("right", "enter")
        await until(pilot, lambda: list(place.parent.glob("receipt-*.json")))
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, ForgetDialog))
        shown = screen_text(app)
        assert REPLY not in shown and FACT not in shown
        assert "What does Clara do?" in shown and "reply forgotten" in shown
        assert not app.bank.list(matching="nurse")

    drive(app, script, (120, 40))


def test_what_another_program_forgets_is_marked(place: Path) -> None:
    app = chat(place)

    async def script(pilot: Pilot[Any]) -> None:
        await say(pilot, "What does Clara do?")
        await answered(pilot, app, 1)
        with MemoryBank.open(place) as elsewhere:
            elsewhere.forget(elsewhere.plan_forget(matching="nurse in Leeds", cascade="none"))
        app.refresh_marks()
        await until(pilot, lambda: "1 memory forgotten since" in screen_text(app))

    drive(app, script)


def test_enter_sends_and_shift_enter_breaks_the_line(place: Path) -> None:
    app = chat(place)

    async def script(pilot: Pilot[Any]) -> None:
        await pilot.press("o", "n", "e", "shift+enter", "t", "w", "o", "ctrl+j", "3")
        assert app.prompt.text == "one\ntwo\n3"
        await pilot.press("enter")
        await answered(pilot, app, 1)
        assert app.conversation.query_one(Said).words == "one\ntwo\n3"
        await pilot.press("up")
        assert app.prompt.text == "one\ntwo\n3"
        await pilot.press("down")
        assert app.prompt.text == ""
        await pilot.press("enter")
        assert len(app.conversation.query(Said)) == 1, "an empty prompt sends nothing"

    drive(app, script)


def test_escape_stops_the_reply_and_the_prompt_goes_on(place: Path) -> None:
    app = chat(place, LONG, pause_s=0.2)

    async def script(pilot: Pilot[Any]) -> None:
        await say(pilot, "Tell me a story")
        await until(pilot, lambda: app.conversation.answers and app.conversation.answers[0].words)
        await pilot.press("h", "i", "escape")
        await until(pilot, lambda: not app.turns.is_running)
        assert app.prompt.text == "hi" and app.focused is app.prompt.area
        await until(pilot, lambda: "interrupted" in screen_text(app))
        (kept,) = app.bank.list(matching="Tell me a story")
        assert kept.status == "interrupted" and kept.reply and len(kept.reply) < len(LONG)
        assert app.conversation.answers[0].exchange_id == kept.id

    drive(app, script)


def test_a_message_waits_for_the_model_and_for_the_reply_before(place: Path) -> None:
    gate = threading.Event()
    app = chat(place, before=gate.wait)

    async def script(pilot: Pilot[Any]) -> None:
        await say(pilot, "first")
        await say(pilot, "second")
        await say(pilot, "third")
        assert "loading the model" in screen_text(app) and not app.conversation.answers
        gate.set()
        await answered(pilot, app, 3)
        await until(pilot, lambda: not app.turns.waiting and not app.turns.is_running)
        said = [memory.text for memory in app.bank.list(newest_first=False)]
        assert said == [FACT, "first", "second", "third"]

    try:
        drive(app, script)
    finally:
        gate.set()


def test_escape_takes_back_what_waits(place: Path) -> None:
    gate = threading.Event()
    app = chat(place, before=gate.wait)

    async def script(pilot: Pilot[Any]) -> None:
        await say(pilot, "first")
        await pilot.press("escape")
        await until(pilot, lambda: app.prompt.text == "first")
        assert not app.conversation.query(Said)
        gate.set()
        await until(pilot, lambda: app.loaded)
        assert not app.conversation.answers

    try:
        drive(app, script)
    finally:
        gate.set()


def test_a_model_that_fails_to_load_leaves_the_message_in_the_prompt(place: Path) -> None:
    attempts: list[int] = []
    sent = threading.Event()

    def before() -> None:
        attempts.append(1)
        if len(attempts) == 1:
            sent.wait(30)
            raise ModelError("no weights there")

    app = chat(place, before=before)

    async def script(pilot: Pilot[Any]) -> None:
        await say(pilot, "hello")
        await until(pilot, lambda: app.turns.waiting)
        sent.set()
        await until(pilot, lambda: cards(app) and app.prompt.text == "hello")
        assert "no weights there" in cards(app)[0]
        await pilot.press("enter")
        await until(pilot, lambda: len(cards(app)) == 2 and app.prompt.text == "hello")
        app.prompt.write("")
        await say(pilot, "/model ")
        await until(pilot, lambda: app.loaded)
        await say(pilot, "hello")
        await answered(pilot, app, 1)

    drive(app, script)


def test_an_error_is_a_card_and_what_was_not_stored_goes_back(place: Path) -> None:
    app = chat(place, error=InvalidTextError("the text is too large"))

    async def script(pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: app.loaded)
        await say(pilot, "hello")
        await until(pilot, lambda: cards(app) and app.prompt.text)
        assert cards(app) == ["the text is too large"]
        assert app.prompt.text == "hello" and not app.conversation.query(Said)

    drive(app, script)


def test_a_large_paste_is_an_attachment(place: Path) -> None:
    app = chat(place)

    async def script(pilot: Pilot[Any]) -> None:
        from textual import events

        await pilot.press("s", "e", "e")
        app.prompt.area.post_message(events.Paste("line\n" * 40))
        await until(pilot, lambda: app.prompt.attachments)
        assert "pasted text, 41 lines" in screen_text(app) and app.prompt.text == "see"
        app.prompt.area.post_message(events.Paste("x" * 5_000_000))
        await until(pilot, lambda: len(app.prompt.attachments) == 2)
        app.prompt.write("")
        await pilot.press("backspace")
        assert len(app.prompt.attachments) == 1
        app.prompt.write("see")
        await pilot.press("enter")
        await answered(pilot, app, 1)
        assert app.bank.list(limit=1)[0].text == "see\n\n" + "line\n" * 40

    drive(app, script)


def test_slash_commands_complete_and_run(place: Path) -> None:
    app = chat(place)

    async def script(pilot: Pilot[Any]) -> None:
        await pilot.press("slash", "r")
        assert app.prompt.query_one(OptionList).display
        await pilot.press("tab")
        assert app.prompt.text == "/remember "
        await say(pilot, "I keep bees.")
        await until(pilot, lambda: app.bank.list(matching="I keep bees."))
        bees = app.bank.list(matching="bees")[0].id
        await say(pilot, f"/pin {bees[:8]}")
        await until(pilot, lambda: app.bank.get(bees).pinned)
        await say(pilot, "/forget bees")
        await until(pilot, lambda: isinstance(app.screen, ForgetDialog))
        await pilot.press("escape")
        await say(pilot, "/frobnicate now")
        await until(pilot, lambda: any("there is no /frobnicate" in card for card in cards(app)))
        assert app.prompt.text == "/frobnicate now"
        app.prompt.write("")
        await say(pilot, "/theme light")
        await until(pilot, lambda: app.theme == "mnemos-light")
        await say(pilot, "//etc is a folder")
        await answered(pilot, app, 1)
        assert app.bank.list(limit=1)[0].text == "/etc is a folder"
        await say(pilot, "/memories Clara")
        await until(pilot, lambda: isinstance(app.screen, Inspector))

    drive(app, script)


def test_sessions_are_listed_named_and_switched(place: Path) -> None:
    app = chat(place)

    async def script(pilot: Pilot[Any]) -> None:
        await say(pilot, "about the boat")
        await answered(pilot, app, 1)
        first = app.session_id
        assert first is not None
        await pilot.press("ctrl+n")
        await until(pilot, lambda: app.session_id is None and not app.conversation.answers)
        await say(pilot, "about the cellar")
        await answered(pilot, app, 1)
        await pilot.press("ctrl+b")
        await until(pilot, lambda: app.sidebar.display)
        assert [line.title for line in app.sidebar.sessions] == ["about the cellar", "about the boat"]
        await pilot.press("r")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        await pilot.press("home", "shift+end", "C", "o", "a", "l", "enter")
        await until(pilot, lambda: app.sidebar.sessions[0].title == "Coal")
        await pilot.press("down", "enter")
        await until(pilot, lambda: app.session_id == first)
        assert [said.words for said in app.conversation.query(Said)] == ["about the boat"]
        assert app.prompt.history == ["about the boat"] and app.focused is app.prompt.area
        await say(pilot, "and more")
        await answered(pilot, app, 2)
        assert app.bank.get_session(first).turns == 2

    drive(app, script)


def test_a_session_is_taken_up_where_it_was_left(place: Path) -> None:
    app = chat(place)

    async def begin(pilot: Pilot[Any]) -> None:
        await say(pilot, "What does Clara do?")
        await answered(pilot, app, 1)

    drive(app, begin)
    again = chat(place, session=app.session_id)

    async def take_up(pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: again.conversation.answers)
        await until(pilot, lambda: "1 memory" in screen_text(again))
        assert REPLY in screen_text(again)

    drive(again, take_up)


def test_the_view_stays_where_the_person_reads(place: Path) -> None:
    app = chat(place, "\n\n".join(f"line {at}" for at in range(60)), LONG, pause_s=0.002)

    async def script(pilot: Pilot[Any]) -> None:
        await say(pilot, "one")
        await answered(pilot, app, 1)
        assert app.conversation.scroll_y == app.conversation.max_scroll_y > 0
        await say(pilot, "two")
        await until(pilot, lambda: len(app.conversation.answers) == 2)
        await pilot.press("pageup", "pageup")
        before = app.conversation.scroll_y
        await answered(pilot, app, 2)
        assert app.conversation.scroll_y == before < app.conversation.max_scroll_y

    drive(app, script)


def test_walking_through_messages_and_copying(place: Path) -> None:
    app = chat(place, "Use\n```sh\nls -l\n```\nthere.")

    async def script(pilot: Pilot[Any]) -> None:
        await say(pilot, "how?")
        await answered(pilot, app, 1)
        await pilot.press("ctrl+up")
        assert app.focused is app.conversation.answers[0]
        await pilot.press("b")
        assert app.clipboard == "ls -l\n"
        await pilot.press("c")
        assert app.clipboard.startswith("Use")
        await pilot.press("up", "e")
        await until(pilot, lambda: app.prompt.text == "how?")
        assert app.focused is app.prompt.area

    drive(app, script)


@pytest.mark.parametrize(
    ("size", "theme"),
    [((60, 20), "mnemos-light"), ((100, 30), "mnemos-dark"), ((160, 50), "mnemos-light")],
    ids=["60x20", "100x30", "160x50"],
)
def test_what_must_be_on_the_screen_is_there_at_every_size(
    place: Path, size: tuple[int, int], theme: str
) -> None:
    app = chat(place)

    async def script(pilot: Pilot[Any]) -> None:
        app.theme = theme
        await say(pilot, "What does Clara do?")
        await answered(pilot, app, 1)
        for wanted in ("mnemos", "What does Clara do?", REPLY, "1 memory", "Say something", "Send"):
            assert wanted in screen_text(app), wanted
        await pilot.press("f2")
        await until(pilot, lambda: app.panel.current is not None)
        shown = screen_text(app)
        assert "1 memory of this reply" in shown and "Clara works as a nurse in" in shown
        assert "Forget" in shown
        await pilot.press("escape", "f3")
        await until(pilot, lambda: isinstance(app.screen, Inspector) and app.screen.table.count == 2)
        await until(pilot, lambda: FACT[:30] in screen_text(app))
        assert "2 memories" in screen_text(app) and "Mark" in screen_text(app)

    drive(app, script, size)


def test_resizing_while_a_reply_streams(place: Path) -> None:
    app = chat(place, LONG, pause_s=0.003)

    async def script(pilot: Pilot[Any]) -> None:
        await say(pilot, "a story")
        for width, height in ((60, 20), (20, 5), (160, 50), (1, 1), (100, 30)):
            await pilot.resize_terminal(width, height)
            await pilot.pause(0.05)
        await answered(pilot, app, 1)
        assert app.conversation.answers[0].words == LONG

    drive(app, script)


def test_ctrl_c_stops_the_reply_first_and_leaves_at_the_second_time(place: Path) -> None:
    app = chat(place, LONG, pause_s=0.2)

    async def script(pilot: Pilot[Any]) -> None:
        await say(pilot, "a story")
        await until(pilot, lambda: app.conversation.answers and app.conversation.answers[0].words)
        await pilot.press("ctrl+c")
        await until(pilot, lambda: not app.turns.is_running)
        assert app.is_running
        await pilot.press("ctrl+c")
        await until(pilot, lambda: app.is_closing)

    drive(app, script)


def test_a_memory_can_not_drive_the_screen(tmp_path: Path) -> None:
    evil = "Clara [bold]x[/] \x1b[2J\x07 [link=javascript:1]y"
    with MemoryBank.open(tmp_path / "bank") as bank:
        bank.remember(evil)
    app = chat(tmp_path / "bank", "Clara \x1b]0;owned\x07 [/] [red]z")

    async def script(pilot: Pilot[Any]) -> None:
        await say(pilot, "Clara [/] [b]who")
        await answered(pilot, app, 1)
        await pilot.press("f2")
        await until(pilot, lambda: app.panel.current is not None)
        shown = screen_text(app)
        assert "\x1b" not in shown and "\x07" not in shown
        assert "[bold]x[/]" in shown and "[b]who" in shown

    drive(app, script, (140, 40))
