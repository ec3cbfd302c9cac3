"""Requests that are no task for a tool: general knowledge, opinions, chat."""

from __future__ import annotations

import random

FIELDS: dict[str, tuple[str, ...]] = {
    "thing": (
        "volcanoes", "rainbows", "tides", "glaciers", "black holes", "magnets", "coral reefs",
        "thunderstorms", "comets", "fireflies", "octopuses", "honeybees", "deserts", "fossils",
        "penguins", "bats", "bamboo", "lightning", "echoes", "snowflakes",
    ),
    "process": (
        "photosynthesis", "evaporation", "erosion", "digestion", "fermentation", "migration",
        "pollination", "combustion", "magnetism", "gravity", "hibernation", "echolocation",
    ),
    "person": (
        "Marie Curie", "Galileo", "Frida Kahlo", "Mozart", "Ada Lovelace", "Cleopatra", "Confucius",
        "Nikola Tesla", "Jane Goodall", "Leonardo da Vinci", "Homer", "Rosa Parks",
    ),
    "era": (
        "the Roman Empire", "the Bronze Age", "the Renaissance", "the French Revolution",
        "the Cold War", "the Industrial Revolution", "the Ottoman Empire", "the Viking Age",
    ),
    "pair": (
        "cats and dogs", "tea and coffee", "a frog and a toad", "jam and jelly",
        "a novel and a short story", "a moth and a butterfly", "fog and mist", "a lake and a pond",
        "irony and sarcasm", "mass and weight", "a crow and a raven", "sleet and hail",
    ),
    "topic": (
        "the sea", "autumn", "friendship", "my grandmother", "a lost umbrella", "the moon",
        "rainy Mondays", "an old bicycle", "silence", "a lighthouse", "growing up", "winter",
    ),
    "skill": (
        "stay calm before an exam", "learn to juggle", "make friends at a new school",
        "fall asleep faster", "say no politely", "keep a diary", "stop procrastinating",
        "fold a paper crane", "get better at chess", "remember names", "write a thank-you note",
    ),
    "feeling": (
        "tired", "nervous about tomorrow", "really happy", "a bit lost", "bored", "grateful",
        "proud of myself", "homesick",
    ),
    "word": (
        "serendipity", "ephemeral", "ubiquitous", "melancholy", "paradox", "nostalgia", "quorum",
        "resilience", "candid", "hubris",
    ),
}  # fmt: skip
FORMS = (
    "Why do {thing} exist?", "How are {thing} formed, in simple words?",
    "What makes {thing} so fascinating?", "Tell me a fun fact about {thing}.",
    "Explain {process} to a ten-year-old.", "How does {process} work?",
    "Is {process} the same everywhere?", "What is {process} good for?",
    "Who was {person}?", "Why is {person} remembered?", "When did {person} live?",
    "What would {person} think of our time?", "How did {era} begin?", "What ended {era}?",
    "Who held power during {era}?", "What was daily life like in {era}?",
    "What's the difference between {pair}?", "Which do you prefer, {pair}?",
    "How can I tell apart {pair}?", "Write a short poem about {topic}.",
    "Write two sentences about {topic}.", "Give me a metaphor for {topic}.",
    "How do I {skill}?", "Any advice on how to {skill}?", "What is the best way to {skill}?",
    "I'm feeling {feeling}.", "I'm {feeling} today, just wanted to say it.",
    "Can you cheer me up? I'm {feeling}.", "What does '{word}' mean?",
    "Use the word {word} in a sentence.", "What is the opposite of {word}?",
    "Is '{word}' a common word?",
)  # fmt: skip
CHAT = (
    "Thanks, that was helpful!", "Good morning!", "Hello there, how are you?", "What can you do?",
    "Who made you?", "You are very kind.", "Never mind, forget it.", "Tell me a joke.",
    "Ok, sounds good.", "That is wrong.", "Are you a robot?", "See you later.", "What do you think?",
    "I changed my mind.", "Nice work!", "Do you ever sleep?", "hi", "hmm", "Can you be honest?",
    "Let's talk about something else.", "Say something nice.", "I don't understand.",
)  # fmt: skip
OPENINGS = ("", "", "", "", "Hey, ", "Quick question: ", "Just curious, ", "I was wondering: ")


def request(generator: random.Random) -> str:
    """A question or remark that needs no tool."""
    if generator.random() < 0.12:
        return generator.choice(CHAT)
    form = generator.choice(FORMS)
    text = form.format(**{key: generator.choice(values) for key, values in FIELDS.items()})
    opening = generator.choice(OPENINGS) if text.endswith("?") else ""
    return opening + (text[0].lower() + text[1:] if opening else text)
