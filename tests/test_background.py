"""What is done in the background is done in order, and nothing of it is lost."""

import threading

import pytest

from vaegan.training.background import Background


def test_jobs_are_done_in_order_and_by_the_end():
    done = []
    background = Background(waiting=3)
    for i in range(50):
        background.do(done.append, i)
    background.close()
    assert done == list(range(50))


def test_the_queue_is_bounded():
    gate, done = threading.Event(), []
    background = Background(waiting=2)
    background.do(gate.wait)
    background.do(done.append, 1)
    third = threading.Thread(target=background.do, args=(done.append, 2))
    third.start()
    third.join(0.05)
    assert third.is_alive() and not done  # it waits for the first
    gate.set()
    third.join()
    background.flush()
    assert done == [1, 2]
    background.close()


def fail():
    raise OSError("the disk is full")


def test_an_error_comes_out_at_the_next_call_and_later_jobs_are_done():
    done, background = [], Background()
    background.do(fail)
    with pytest.raises(OSError, match="full"):
        background.flush()
    background.flush()  # it has been told
    background.do(fail)
    background.do(done.append, 1)
    with pytest.raises(OSError, match="full"):
        background.close()
    assert done == [1]
