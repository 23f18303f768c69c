"""What a program says into a pipe whose reader leaves."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TALK = """
from experiments.cli.terminal import Terminal
terminal = Terminal()
for line in range(3):
    terminal.print(f"line {line}")
    input()
"""


def test_a_reader_who_leaves_stops_nothing():
    process = subprocess.Popen(
        [sys.executable, "-c", TALK + "print('unheard')"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "line 0\n"
    process.stdout.close()
    process.stdin.write("\n\n\n")
    process.stdin.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr.read() == ""
