"""The clock of guests: who has run for too long, and who has not."""

import os
import signal
import subprocess
import threading
import time

import pytest

from vmm.execution.guesttime import GuestClock, GuestEndlessError


def test_a_guest_in_time_is_left_alone() -> None:
    clock = GuestClock(60)
    clock.begin()
    clock.check()
    clock.end()


def test_a_guest_out_of_time_is_interrupted_wherever_it_runs() -> None:
    clock = GuestClock(0.05)
    found: list[str] = []

    def run() -> None:
        clock.begin()
        try:
            while True:
                time.sleep(0.01)
                clock.check()
        except GuestEndlessError as error:
            found.append(str(error))
        finally:
            clock.end()

    thread = threading.Thread(target=run)
    handler = signal.getsignal(signal.SIGALRM)
    with clock.ticking():
        thread.start()
        run()
        thread.join()
    assert found == ["the guest has no exit within 0.05 s"] * 2
    assert signal.getsignal(signal.SIGALRM) == handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_system_call_of_the_main_thread_is_interrupted() -> None:
    clock = GuestClock(0.05)
    read_end, write_end = os.pipe()
    interrupted: list[int] = []
    with clock.ticking():
        before = signal.getsignal(signal.SIGALRM)
        assert callable(before)

        def tick(number: int, frame: object) -> None:
            interrupted.append(number)
            os.write(write_end, b"x")

        signal.signal(signal.SIGALRM, tick)
        os.read(read_end, 1)
    assert interrupted
    os.close(read_end)
    os.close(write_end)


def test_another_thread_than_the_main_one_has_no_timer() -> None:
    ended: list[bool] = []

    def run() -> None:
        with GuestClock(0.01).ticking():
            ended.append(signal.getitimer(signal.ITIMER_REAL) == (0, 0))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert ended == [True]


def test_a_clock_that_has_not_begun_is_never_over() -> None:
    with pytest.raises(GuestEndlessError):
        _over().check()
    GuestClock(0).check()


def _over() -> GuestClock:
    clock = GuestClock(0)
    clock.begin()
    time.sleep(0.001)
    return clock


def test_a_guest_has_no_less_time_where_its_process_was_stopped() -> None:
    clock = GuestClock(0.4)
    with clock.ticking():
        clock.begin()
        going_on = subprocess.Popen(["sh", "-c", f"sleep 1; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)
        clock.check()
        going_on.wait()
    assert clock.paused_s > 0.5
