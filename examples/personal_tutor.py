"""A tutor of Spanish that starts each lesson with what was wrong in the last one.

    python examples/personal_tutor.py [BANK]

The pupil is played by a script: it gets a word wrong the first time and right once it was reminded. All
that the tutor knows lies in the bank, so run it again on the same bank and it goes on with the next
lesson. Each lesson is a session; mistakes are memories with a tag, erased when they are mastered.
"""

import sys
from tempfile import mkdtemp

from mnemos import Agent, MemoryBank
from mnemos.attention.sampling import Sampling

PUPIL = "pupil"
BRIEF = Sampling(max_tokens=30, repetition_penalty=1.1)
LESSONS = (  # English, Spanish, what the pupil says at first
    (("the map", "el mapa", "la mapa"), ("the house", "la casa", "la casa")),
    (("the hand", "la mano", "el mano"), ("the water", "el agua", "el agua")),
    (("the problem", "el problema", "la problema"), ("the dog", "el perro", "el perro")),
    (("the photo", "la foto", "el foto"), ("the day", "el día", "la día")),
)


def review(bank: MemoryBank, agent: Agent) -> None:
    """Ask again for what was wrong; what is right now is no mistake any more."""
    for mistake in bank.list(PUPIL, tags=["mistake"], newest_first=False):
        found = Agent(
            bank, namespace=PUPIL, model=agent.model, recall="tag:mistake", k=1, sampling=BRIEF
        ).run_sync(f"Which mistake did I make with {mistake.title}?", incognito=True)
        print(f"  tutor: {found.text}")
        for recalled in found.memories:
            print(f"    recalled: {recalled.memory.text}")
        print(f"  pupil, reminded, gets it right: {mistake.title}")
        bank.forget(bank.plan_forget(namespace=PUPIL, ids=[mistake.id]))
        agent.remember(f"Mastered in Spanish: {mistake.title}.", title=mistake.title, tags=["mastered"])


def teach(agent: Agent, exercises: tuple[tuple[str, str, str], ...]) -> None:
    for english, spanish, answer in exercises:
        if answer == spanish:
            print(f"  {english}? {answer}: right")
            agent.remember(f"Mastered in Spanish: {english}.", title=english, tags=["mastered"])
        else:
            print(f"  {english}? {answer}: wrong, it is {spanish}")
            words = f"My mistake with {english} in Spanish: I said {answer}, but it is {spanish}."
            agent.remember(words, title=english, tags=["mistake"])


def lesson(bank: MemoryBank, model: str | None = None) -> None:
    number = sum((session.title or "").startswith("Lesson") for session in bank.sessions(PUPIL)) + 1
    session = bank.create_session(PUPIL, f"Lesson {number}")
    print(f"Lesson {number}")
    agent = Agent(bank, namespace=PUPIL, model=model, session=session.id)
    review(bank, agent)
    if number <= len(LESSONS):
        teach(agent, LESSONS[number - 1])
    counts = {tag: len(bank.list(PUPIL, tags=[tag])) for tag in ("mastered", "mistake")}
    print(f"  mastered: {counts['mastered']}, to repeat: {counts['mistake']}")


def main(path: str) -> None:
    for _ in range(2):  # two days: nothing passes from one to the next but the bank
        with MemoryBank.open(path) as bank:
            lesson(bank)
    print(f"the bank is in {path}; run this again on it to go on")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else mkdtemp(prefix="mnemos-"))
