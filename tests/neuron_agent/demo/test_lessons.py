"""What the demo model is shown."""

from itertools import islice
from random import Random

from neuron_agent.demo.lessons import epoch, exam
from neuron_agent.demo.texts import CONVERSATIONS


def test_one_seed_gives_the_same_lessons():
    assert list(epoch(Random(3))) == list(epoch(Random(3)))
    assert list(epoch(Random(3))) != list(epoch(Random(4)))


def test_every_epoch_shows_every_conversation_and_prompts_that_are_none():
    known = {conversation.reply for conversation in CONVERSATIONS}
    for seed in range(5):
        shown = [lesson.reply for lesson in epoch(Random(seed))]
        assert known <= set(shown)
        assert len(shown) > len(CONVERSATIONS) + 5


def test_what_went_astray_is_never_empty():
    for seed in range(30):
        lessons = islice(epoch(Random(seed)), len(CONVERSATIONS), None)
        assert all(lesson.spoiled or lesson.reply for lesson in lessons)


def test_the_exam_asks_each_conversation_with_and_without_a_system_prompt():
    assert len(exam()) == 2 * len(CONVERSATIONS)
    assert sum(lesson.messages[0]["role"] == "system" for lesson in exam()) == len(CONVERSATIONS)
