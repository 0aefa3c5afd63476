"""What the demonstration says, asks and forgets."""

from dataclasses import dataclass

TOLD = (
    "Hi! How are you today?",
    "My sister Clara works as a nurse in Leeds.",
    "My dog is called Quillon.",
    "It has been raining here all morning.",
    "I am allergic to peanuts.",
    "I play the cello in an amateur orchestra.",
    "My favourite colour is teal.",
    "The bus was late again, as usual.",
    "My brother Tom lives in Oslo.",
    "I am training for a marathon in October.",
    "My passport expires in March 2029.",
    "That film last night was far too long.",
    "My dentist is Dr Patel.",
    "My locker code at the gym is Kestrel-4417.",
    "I am reading a book called Middlemarch.",
    "Thanks for listening to all this!",
    "I studied chemistry at university.",
)


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the words that mark the memory it should bring back."""

    text: str
    gold: str


QUESTIONS = (
    Question("What does my sister Clara do for a living?", "works as a nurse"),
    Question("What is the name of my dog?", "Quillon"),
    Question("What am I allergic to?", "peanuts"),
    Question("Which instrument do I play?", "cello"),
    Question("Where does my brother Tom live?", "Oslo"),
    Question("When does my passport expire?", "2029"),
    Question("What is the code of my gym locker?", "Kestrel-4417"),
    Question("Who is my dentist?", "Patel"),
)
FORGOTTEN = ("Quillon", "Kestrel-4417")
ASKED_AGAIN = (QUESTIONS[1], QUESTIONS[6], QUESTIONS[4])
GOLD_NEEDED = 7
