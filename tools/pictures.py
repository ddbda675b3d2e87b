"""Regenerates docs/pictures from real runs on this computer: python -m tools.pictures [machines] [kubernetes]

    up.svg         the tree that `pulumi up` prints for stack dev
    dashboard.png  the dashboard of that cluster during a job
    jupyter.png    a notebook on that cluster, next to the task stream of its job
    notebook.png   a notebook on a rehearsed Kubernetes, with a job that ran on its workers

Each run has its own XDG_DATA_HOME, so your own stack dev is not touched. Everything is removed at the end, also after
Ctrl-C.
"""

import io
import itertools
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path
from unittest import mock

import pyte
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

import daskstack
from daskstack import engine
from daskstack.configuration import KEY
from daskstack.engine import PROJECT
from daskstack.route import way_to
from tools.rehearse import Rehearsal
from tools.running import say

PICTURES = PROJECT / "docs" / "pictures"
COLUMNS, ROWS = 100, 150  # of the terminal; lines beyond ROWS scroll away and are lost
LIMIT = 200_000  # bytes of a picture
PATIENCE = 180_000  # milliseconds for a page to show something
CELLS = [
    "from dask.distributed import Client\n\nclient = Client()  # the cluster of this notebook server\nclient",
    "import dask\n\nframe = dask.datasets.timeseries()\nframe.groupby('name')[['x', 'y']].mean().compute().head()",
]


def main(words: list[str]) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    PICTURES.mkdir(exist_ok=True)
    for word in words or ["machines", "kubernetes"]:
        with (
            tempfile.TemporaryDirectory(prefix="daskstack-") as folder,
            mock.patch.dict(os.environ, XDG_DATA_HOME=folder),
        ):
            {"machines": machines, "kubernetes": kubernetes}[word](Path(folder))


def machines(_: Path) -> None:
    make = ["make", "--no-print-directory", "STACK=dev"]
    try:
        draw_tree(in_terminal([*make, "up"]))
        with daskstack.connect("dev") as client, browser(1200, 680) as page:
            import dask.array

            page.goto(client.dashboard_link)
            numbers = dask.array.random.random((30_000, 30_000), chunks=(1500, 1500))
            job = client.compute((numbers + numbers.T)[::2].std(axis=0).sum())
            page.wait_for_timeout(20_000)
            if job.done():
                raise RuntimeError("the job was over before the picture was taken; make it longer")
            photograph(page, "dashboard.png")
            del job
        notebook_with_task_stream()
    finally:
        subprocess.run([*make, "destroy"], cwd=PROJECT, check=True, stdout=sys.stderr)


def notebook_with_task_stream() -> None:
    outputs = engine.cluster("dev")
    with way_to(outputs["client"], [outputs["client"].jupyter]) as way, browser(1400, 760) as page:
        run_notebook(page, f"http://127.0.0.1:{way.ports[0]}", outputs["jupyterPassword"])
        page.keyboard.press("Control+Shift+c")
        page.keyboard.type("Launch Dask Dashboard Layout")
        page.keyboard.press("Enter")
        page.wait_for_timeout(5000)
        page.locator(".jp-CodeCell .cm-content").nth(1).click()
        page.keyboard.press("Shift+Enter")
        page.wait_for_timeout(20_000)
        photograph(page, "jupyter.png")


def kubernetes(folder: Path) -> None:
    stack = "kubernetes"
    rehearsal = Rehearsal(stack, folder / "rehearsal")
    try:
        rehearsal.start({"config": {KEY: rehearsal.read()}})
        with mock.patch.dict(os.environ, rehearsal.environ, clear=True):
            rehearsal.up()
            client, password = rehearsal.client(), rehearsal.outputs()["jupyterPassword"]
            assert client.jupyter
            with way_to(client, [client.jupyter]) as way, browser(1200, 860) as page:
                run_notebook(page, f"http://127.0.0.1:{way.ports[0]}", password)
                photograph(page, "notebook.png")
            rehearsal.destroy()
    finally:
        rehearsal.stop()


def in_terminal(command: list[str]) -> pyte.Screen:
    """Runs a command in a terminal; returns the screen after it has ended."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    environ = os.environ | {"TERM": "xterm-256color"}
    # In its own session, so that it gets Ctrl-C only from here: after a second one Pulumi does not write its state.
    process = subprocess.Popen(
        command, cwd=PROJECT, stdin=theirs, stdout=theirs, stderr=theirs, env=environ, start_new_session=True
    )
    os.close(theirs)
    try:
        read_all(ours, stream)
    except BaseException:
        os.killpg(process.pid, signal.SIGINT)
        read_all(ours, stream)
        raise
    finally:
        os.close(ours)
        process.wait()
    if process.returncode:
        raise RuntimeError("\n".join([f"{' '.join(command)} failed", *(line.rstrip() for line in screen.display)]))
    return screen


def read_all(terminal: int, stream: pyte.ByteStream) -> None:
    while True:
        try:
            said = os.read(terminal, 65536)
        except OSError:  # Linux reports the end of a terminal as an error
            return
        os.write(sys.stderr.fileno(), said)
        stream.feed(said)


def draw_tree(screen: pyte.Screen) -> None:
    lines = [line.rstrip() for line in screen.display]
    first = next(number for number, line in enumerate(lines) if re.match(r" +Type +Name +Status", line))
    last = next(number for number in range(first, ROWS) if not lines[number])
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text("$ make up", style="bold"))
    for number in range(first, last):
        console.print(styled(screen.buffer[number]), soft_wrap=True)
    # Pages that show the picture as an image load no fonts for it.
    format = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    console.save_svg(str(PICTURES / "up.svg"), title="a cluster of three machines", code_format=format)


def styled(line: dict[int, pyte.screens.Char]) -> Text:
    text = Text()
    characters = [line[column] for column in range(COLUMNS)]
    for (colour, bold), run in itertools.groupby(characters, lambda each: (each.fg, each.bold)):
        colour = {"brown": "yellow"}.get(colour, colour)
        colour = f"#{colour}" if re.fullmatch("[0-9a-f]{6}", colour) else colour.replace("bright", "bright_")
        text.append("".join(each.data for each in run), f"{colour} {'bold' if bold else ''}")
    text.rstrip()
    return text


@contextmanager
def browser(width: int, height: int) -> Iterator[Page]:
    sandbox = [] if os.geteuid() else ["--no-sandbox"]  # Chromium's sandbox refuses root
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=sandbox)
        page = chromium.new_page(viewport={"width": width, "height": height}, device_scale_factor=1.5)
        page.set_default_timeout(PATIENCE)
        yield page
        chromium.close()


def run_notebook(page: Page, server: str, password: str) -> None:
    page.goto(f"{server}/login")
    page.fill("input[name=password]", password)
    page.click("button[type=submit]")
    page.wait_for_url("**/lab*")
    cell = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": kernel},
        "cells": [cell | {"id": f"cell-{number}", "source": source} for number, source in enumerate(CELLS)],
    }
    [token] = [cookie["value"] for cookie in page.context.cookies() if cookie["name"] == "_xsrf"]
    no_news = {"raw": json.dumps({"fetchNews": "false"})}  # else a question of Jupyter covers the notebook
    for path, content in {
        "api/contents/first-job.ipynb": {"type": "notebook", "content": notebook},
        "lab/api/settings/@jupyterlab/apputils-extension:notification": no_news,
    }.items():
        headers = {"X-XSRFToken": token}
        page.request.put(f"{server}/{path}", headers=headers, data=content, fail_on_status_code=True)
    page.goto(f"{server}/lab/tree/first-job.ipynb")
    page.get_by_text("| Idle").wait_for()
    page.keyboard.press("Control+b")  # hides the sidebar
    for code in page.locator(".jp-CodeCell").all()[: len(CELLS)]:
        code.locator(".cm-content").click()
        page.keyboard.press("Shift+Enter")
        code.locator(".jp-OutputArea-output").first.wait_for()
    page.wait_for_timeout(1000)


def photograph(page: Page, name: str) -> None:
    """Saves a screenshot with 256 colours, which take a third of the bytes."""
    taken = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    taken.quantize(256, dither=Image.Dither.NONE).save(PICTURES / name, optimize=True)
    if (size := (PICTURES / name).stat().st_size) > LIMIT:
        raise RuntimeError(f"{name} has {size} bytes, more than {LIMIT}")
    say(f"{name}: {size} bytes")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (engine.EngineError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
