"""Model of the record ring: the engine writes entries and never waits, the recorder reads them and gives their places back."""

from __future__ import annotations

from .given import Backend, End, Given
from .machine import Machine, Order

TORN = "the recorder reads an entry with bytes of another one"


def record_ring(given: Given, engine_backend: Backend, recorder_backend: Backend, entries: int = 4) -> Machine:
    """A ring with room for two entries of two words; a full ring drops the entry. Both ends are Python code."""
    machine = Machine()
    engine = End(machine.thread("engine"), given, engine_backend)
    recorder = End(machine.thread("recorder"), given, recorder_backend)
    room = 2
    places = [(f"entry {place} word 0", f"entry {place} word 1") for place in range(room)]
    for words in places:
        for word in words:
            machine.plain_word(word)

    thread = engine.thread
    thread.at("RecordRingWriter.write")
    thread.set("written", 0)
    for entry in range(1, entries + 1):
        full, done = thread.unique("full"), thread.unique("done")
        thread.load("read", "read", engine.load)
        if given.keeps("record ring: a full ring drops the entry"):
            thread.jump_if(lambda written, read: written - read >= room, full)
        for place, words in enumerate(places):
            elsewhere = thread.unique("elsewhere")
            thread.jump_if(lambda written, place=place: written % room != place, elsewhere)
            early = not given.keeps("record ring: the entry before its count")
            if early:
                thread.store("written", lambda written: written + 1, engine.store)
            for word in words:
                thread.store(word, entry, engine.store)
            engine.fence("RecordRingWriter.write fence")
            if not early:
                thread.store("written", lambda written: written + 1, engine.store)
            thread.set("written", lambda written: written + 1)
            thread.jump(done)
            thread.label(elsewhere)
        thread.label(full)
        thread.label(done)
    thread.store("engine ended", 1, Order.RELEASE)

    thread = recorder.thread
    thread.at("RecordRingReader.try_next")
    thread.set("at", 0)
    thread.set("last", 0)
    thread.label("next")
    thread.load("ended", "engine ended", Order.ACQUIRE)
    thread.load("written", "written", recorder.load)
    thread.jump_if(lambda written, at: written != at, "entry")
    thread.jump_if(lambda ended: ended == 1, "end")
    thread.jump("next")
    thread.label("entry")
    recorder.fence("RecordRingReader.try_next fence")
    for place, words in enumerate(places):
        elsewhere = thread.unique("elsewhere")
        thread.jump_if(lambda at, place=place: at % room != place, elsewhere)
        for index, word in enumerate(words):
            thread.load(f"word{index}", word, recorder.load)
        if given.keeps("record ring: the copy before its place is given back"):
            recorder.fence("RecordRingReader.try_next fence#2")
            thread.store("read", lambda at: at + 1, recorder.store)
        else:
            thread.store("read", lambda at: at + 1, recorder.store)
            recorder.fence("RecordRingReader.try_next fence#2")
        thread.label(elsewhere)
    thread.check(lambda word0, word1, last: word0 == word1 > last, TORN)
    thread.set("last", "word0")
    thread.set("at", lambda at: at + 1)
    thread.jump("next")
    return machine
