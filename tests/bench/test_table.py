from rich.console import Console

from equipoise.bench.table import to_markdown, to_rich


def test_markdown_says_what_the_record_says(make_record):
    record = make_record(ratios={"gradnorm": 2.0, "paper": 30.0}, not_run={"libmtl": "no torchvision"})
    text = to_markdown([record])
    # The ratios are 2 (1 + r / 10) for r = 0..14; the median is r = 7's, the interval r = 3's to r = 11's.
    assert "| workload | T | plain | gradnorm |" in text
    assert "| mlp_3 | 3 | 200 ms | 3.40 (2.60 to 4.20) |" in text
    assert "| mlp_3 | 3 | 1 MiB | 1.25 |" in text
    assert "| workload | T | plain | paper | libmtl |" in text
    assert "| mlp_3 | 3 | 200 ms | 51.0 (39.0 to 63.0) | [1] |" in text
    assert "| mlp_3 | 3 | 1 MiB | 1.25 | [1] |" in text
    assert "\n1. no torchvision\n" in text
    assert "| mlp_3 | A network. | the sixth layer |" in text
    assert "rounds: 15 · torch: 2.13.0 · threads: 1 · date: 2026-01-02T03:04:05+00:00" in text


def test_markdown_of_several_workloads_shares_columns_and_notes(make_record):
    records = [
        make_record(not_run={"libmtl": "no torchvision", "paper": "61 s per step"}),
        make_record("segnet", device="cuda", ratios={"paper": 2.0}, not_run={"libmtl": "no torchvision"}, rounds=3),
    ]
    text = to_markdown(records)
    assert "| mlp_3 | 3 | 200 ms | 2.55 (1.95 to 3.15) |" in text
    assert "| mlp_3 | 3 | 200 ms | [2] | [1] |" in text
    assert "| segnet, cuda | 3 | 200 ms | 2.20 | [1] |" in text  # three rounds have no interval
    assert "\n1. no torchvision\n2. 61 s per step\n" in text
    assert "rounds: 3, 15" in text


def test_the_terminal_shows_every_method(make_record):
    console = Console(width=200, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(to_rich(make_record(ratios={"gradnorm": 2.0}, not_run={"libmtl": "no [torchvision]"})))
    shown = capture.get()
    for words in ("A network.", "plain", "200 ms", "3.40 (2.60 to 4.20)", "1.25", "no [torchvision]"):
        assert words in shown
