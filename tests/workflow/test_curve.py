"""A training's progress, as its driver reads it."""

from __future__ import annotations

from pfray.workflow.curve import add_line, report_epochs, report_running, report_words, write_running, write_words


def test_epochs_and_shares_of_epochs_are_reported_once_and_never_backwards(tmp_path):
    seen: list[tuple[float, float | None, str]] = []

    def report(done: float, loss: float | None, words: str) -> None:
        seen.append((done, loss, words))

    epochs, told = 0, 0.0

    def look() -> tuple[int, float]:
        nonlocal epochs, told
        epochs = report_epochs(tmp_path, epochs, report)
        told = report_running(tmp_path, max(epochs, told), report)
        return epochs, told

    assert look() == (0, 0.0)  # nothing there yet
    write_running(tmp_path, {"done": 0.25, "images_per_second": 40.0, "waiting": 0.75, "loaders": 1})
    assert look() == look() == (0, 0.25)
    add_line(tmp_path, epoch=1, loss=2.5, images_per_second=41.0, waiting=0.1, loaders=1)
    assert look() == (1, 1)  # the share of the first epoch is old
    write_running(tmp_path, {"done": 2.5})
    assert look() == (1, 2.5)
    add_line(tmp_path, epoch=2, loss=1.5)  # seen after the third one had begun
    assert look() == (2, 2.5)
    assert seen == [
        (0.25, None, "epoch 1, 25 %, 40 images/s, 75 % of it waiting for data (resources.loaders: 1)"),
        (1, 2.5, "loss 2.5000, 41 images/s"),
        (2.5, None, "epoch 3, 50 %"),
        (2, 1.5, "loss 1.5000"),
    ]


def test_the_words_before_a_training_are_reported_when_they_change(tmp_path):
    seen: list[tuple[float, float | None, str]] = []

    def report(done: float, loss: float | None, words: str) -> None:
        seen.append((done, loss, words))

    told = report_words(tmp_path, "", report)
    for words in ("layer 1 of 2", "layer 1 of 2", "layer 2 of 2"):
        write_words(tmp_path, words)
        told = report_words(tmp_path, told, report)
    assert seen == [(0.0, None, "layer 1 of 2"), (0.0, None, "layer 2 of 2")]
    assert report_running(tmp_path, 0.0, report) == 0.0
