"""Signals become one exception, at moments that harm nothing. Each case is a program of its own, since they end it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PRELUDE = """
import os, signal, sys, time
from contextlib import ExitStack, contextmanager
from parbake.core import interrupts
def send(number=signal.SIGINT):
    os.kill(os.getpid(), number)
def press():  # as a person does: not within the time that counts as one
    interrupts._state.last -= 1
    send()
interrupts.install()
"""


def program(text: str, *arguments: str, ignored: signal.Signals | None = None) -> subprocess.CompletedProcess[str]:
    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if ignored:
            signal.signal(ignored, signal.SIG_IGN)

    return subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(text), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=prepare,
    )


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_before_the_command_begins(number: str) -> None:
    done = program(f"send(signal.{number}); time.sleep(60)", "bake", "--json")
    assert done.returncode == 130
    assert json.loads(done.stdout)["error"] == "Interrupted"
    assert "run the same command again" in done.stderr
    assert program(f"send(signal.{number}); time.sleep(60)").stdout == ""


def test_it_is_raised_where_the_program_waits() -> None:
    done = program("""
        interrupts.begin()
        try:
            send(signal.SIGTERM)
            time.sleep(60)
        except interrupts.Stop as stop:
            print("stopped", stop, interrupts.reason())
    """)
    assert done.stdout == "stopped stopped by SIGTERM stopped by SIGTERM\n", done


def test_a_module_is_loaded_whole(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time; send(); time.sleep(0.1); whole = True", encoding="utf-8")
    done = program(
        """
        import builtins
        builtins.send = send
        sys.path.insert(0, sys.argv[1])
        interrupts.begin()
        try:
            import slow
            time.sleep(60)
        except interrupts.Stop:
            print("stopped", sys.modules["slow"].whole)
        """,
        str(tmp_path),
    )
    assert done.stdout == "stopped True\n", done


def test_what_cleans_up_is_not_disturbed() -> None:
    done = program("""
        @interrupts.guarded
        def clean():
            send()
            time.sleep(0.1)
            print("cleaned")
        class Thing:
            def __enter__(self): pass
            def __exit__(self, *_):
                clean()
                press()
                time.sleep(0.1)
                print("left")
        @contextmanager
        @interrupts.guarded
        def folder():
            send(); time.sleep(0.1); print("made")
            yield
            print("removed")
        interrupts.begin()
        try:
            with Thing():
                pass
            time.sleep(60)
        except interrupts.Stop:
            print("stopped")
        interrupts.begin()
        try:
            with folder():
                print("in it")
                time.sleep(60)
        except interrupts.Stop:
            print("stopped")
    """)
    assert done.stdout.split("\n")[:3] == ["cleaned", "left", "stopped"]
    assert done.stdout.split("\n")[3:] == ["made", "in it", "stopped", ""], "a generator without finally just ends"
    assert "once more leaves at once" in done.stderr


def test_one_that_was_swallowed_comes_again() -> None:
    done = program("""
        interrupts.begin()
        try:
            send()
            time.sleep(60)
        except BaseException:
            pass
        try:
            time.sleep(60)
        except interrupts.Stop:
            print("again")
    """)
    assert done.stdout == "again\n"


def test_one_on_its_way_does_not_come_again() -> None:
    done = program("""
        interrupts.begin()
        try:
            try:
                send()
                time.sleep(60)
            finally:
                time.sleep(0.7)
                print("cleaned")
                try:
                    raise OSError("as cleaning up may")
                except OSError:
                    time.sleep(0.7)
                    print("all")
        except interrupts.Stop:
            print("stopped")
    """)
    assert done.stdout == "cleaned\nall\nstopped\n"


def test_wrappers_that_repeat_a_signal_and_people_who_insist() -> None:
    done = program("""
        interrupts.begin()
        try:
            send()
            time.sleep(60)
        except interrupts.Stop:
            for _ in range(5):
                send()
            print("still here", flush=True)
            press()
            print("and now", flush=True)
            press()
            print("never")
    """)
    assert (done.returncode, done.stdout) == (130, "still here\nand now\n")


def test_after_the_end_the_exit_code_stays() -> None:
    assert program("interrupts.begin(); interrupts.end(3); send(); time.sleep(60)").returncode == 3
    late = """
        import atexit
        class Last:
            def __del__(self): os.kill(os.getpid(), signal.SIGTERM)
        sys.modules["last"] = Last()
        interrupts.begin(); interrupts.end(3); sys.exit(3)
    """
    assert program(late).returncode == 3


def test_what_was_ignored_from_the_start_stays_so() -> None:
    done = program("interrupts.begin(); send(); time.sleep(0.1); print('on')", ignored=signal.SIGINT)
    assert (done.returncode, done.stdout) == (0, "on\n")


def test_whatever_is_entered_is_left() -> None:
    """Signals at any instant of entering and leaving."""
    done = program("""
        import random, threading
        held = []
        @contextmanager
        @interrupts.guarded
        def thing(name):
            held.append(name)
            try:
                yield
            finally:
                held.remove(name)
        class Other:
            def __enter__(self): held.append(self)
            def __exit__(self, *_): held.remove(self)
        def work():
            for _ in range(50):
                len("here nothing is held")
            with thing(1), ExitStack() as stack:
                stack.enter_context(thing(2))
                with Other():
                    stack.enter_context(Other())
                    with thing(3):
                        pass
        stopped = 0
        for number in range(80):
            interrupts.begin()
            delay = random.Random(number).uniform(0, 0.0004)
            thread = threading.Thread(target=lambda: (time.sleep(delay), send()))
            thread.start()
            try:
                while True:
                    work()
            except interrupts.Stop:
                stopped += 1
            finally:
                interrupts.end(0)
            thread.join()
            assert held == [], number
        print(stopped)
    """)
    assert done.stdout == "80\n", done.stderr


def test_what_is_done_is_told_before_a_signal_ends_the_run() -> None:
    done = program("""
        interrupts.begin()
        try:
            interrupts.hold()
            send()
            time.sleep(0.1)
            print("told")
            interrupts.resume()
            print("never")
        except interrupts.Stop:
            print("stopped")
        interrupts.begin()
        try:
            interrupts.hold()
            interrupts.resume()
            send()
            time.sleep(60)
        except interrupts.Stop:
            print("as ever")
    """)
    assert done.stdout == "told\nstopped\nas ever\n", done


def test_who_is_not_listened_to_waits_no_longer_than_a_limit_and_may_insist() -> None:
    done = program("""
        interrupts._LONGEST_TELLING = 0.2
        interrupts.begin()
        try:
            interrupts.hold()
            send()
            time.sleep(60)
        except interrupts.Stop:
            print("stopped")
        interrupts._LONGEST_TELLING = 60
        interrupts.begin()
        interrupts.hold()
        send(); press(); sys.stdout.flush(); press()
        print("never")
    """)
    assert (done.returncode, done.stdout) == (130, "stopped\n")


def test_an_interruption_is_told_once_however_slowly() -> None:
    done = program(
        """
        from parbake.cli import app as door
        from parbake.core.errors import ParbakeError
        def command(*_, **__):
            try:
                send()
                time.sleep(60)
            except interrupts.Stop:
                pass
            raise ParbakeError("what a library made of it")
        def slow(text, **more):
            say(text, **more)
            time.sleep(0.4)  # longer than until a signal that was swallowed comes again
        door.app, say, door.typer.echo = command, door.typer.echo, slow
        sys.exit(door.run(["bake", "--json"]))
        """
    )
    assert (done.returncode, json.loads(done.stdout)["error"]) == (130, "Interrupted"), done.stderr
    assert done.stderr.count("next:") == 1
