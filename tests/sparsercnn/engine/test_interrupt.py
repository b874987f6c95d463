"""Signals: the first is noted or acted on at once, the second does what it always does."""

import signal

import pytest

from sparsercnn.engine.interrupt import FORWARDED, STOPPING, Stopped, StopSignals, forward_signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_first_signal_is_noted_and_the_second_acts_as_ever(number, code, capfd):
    seen = []
    previous = signal.signal(number, lambda number, frame: seen.append(number))
    try:
        with StopSignals() as signals:
            signal.raise_signal(number)
            assert signals.received == number and not seen
            assert "Once more stops at once" in capfd.readouterr().err
            signal.raise_signal(number)
            assert seen == [number]
        signal.raise_signal(number)
        assert seen == [number, number]
        assert Stopped(number).code == code
    finally:
        signal.signal(number, previous)


def test_a_signal_that_nohup_has_it_ignore_stays_ignored():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with forward_signals() as forwarded, StopSignals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert not signals.received and not forwarded
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_during_an_evaluation_a_signal_acts_at_once():
    with StopSignals() as signals:
        with pytest.raises(Stopped) as stop, signals.act_at_once():
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("the signal did nothing")
        assert stop.value.code == 143
        # Noted during the iteration before, for example.
        with pytest.raises(Stopped), signals.act_at_once():
            raise AssertionError("the signal was forgotten")


def test_among_several_processes_sigterm_after_another_signal_is_the_launchers(monkeypatch):
    seen = []
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    previous = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with StopSignals() as signals:
            for number in (FORWARDED, FORWARDED, signal.SIGTERM):
                signal.raise_signal(number)
            assert signals.received == FORWARDED and not seen
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_the_first_signal_goes_on_to_the_processes_that_were_started(monkeypatch):
    class Child:
        pid = 12345

    sent = []
    monkeypatch.setattr("multiprocessing.active_children", lambda: [Child])
    monkeypatch.setattr("os.kill", lambda *signal: sent.append(signal))
    before = [signal.getsignal(number) for number in STOPPING]
    with forward_signals() as received:
        signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM] and sent == [(12345, FORWARDED)]
        assert [signal.getsignal(number) for number in STOPPING] == before
    assert [signal.getsignal(number) for number in STOPPING] == before
