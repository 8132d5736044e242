"""Work in threads that runs ahead, but not far, and stops when nobody wants the rest."""

import threading

import pytest

from m2d_bench.parallel import map_ahead


def test_results_come_in_order_and_never_more_than_wanted_wait():
    begun = []
    results = map_ahead(lambda number: begun.append(number) or number**2, range(50), jobs=4, ahead=5)
    for number in range(50):
        assert next(results) == number**2
        assert len(begun) <= number + 7


@pytest.mark.parametrize("weights", [[1] * 12, [5, 1, 1, 9, 1, 3, 3, 3, 0, 12, 2], [20, 20, 1, float("inf"), 0]])
def test_what_is_begun_is_never_heavier_than_wanted_unless_it_is_alone(weights):
    begun = []
    results = map_ahead(
        lambda item: begun.append(item) or item[0], enumerate(weights), 4, 3, weight=lambda item: item[1], heaviest=6
    )
    for number in range(len(weights)):
        assert next(results) == number
        waiting = [weight for index, weight in begun if index > number]
        assert len(waiting) < 2 or sum(waiting) <= 6
    assert len(begun) == len(weights)


def test_left_early_what_waits_is_dropped():
    begun, gate = [], threading.Event()

    def work(number):
        begun.append(number)
        if number:
            gate.wait(10)

    results = map_ahead(work, range(100), jobs=1, ahead=50)
    next(results)
    threading.Timer(0.1, gate.set).start()
    results.close()
    assert len(begun) <= 3


def test_an_error_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        list(map_ahead(lambda number: 1 / number, [1, 0, 2], jobs=2, ahead=2))
