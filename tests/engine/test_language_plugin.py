"""The contract of the language plugin for Python, Pulumi's own or the stand-in, tested with the real `pulumi`.

test_language_standin.py tests the stand-in's own messages.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.engine.support import descendants, wait_for


def test_a_program_supports_preview_up_refresh_and_destroy(project):
    project.write(
        "pulumi.Stash('kept', input='a value')\n"
        "config = pulumi.Config()\n"
        "print('said by the program')\n"
        "pulumi.export('stack', [pulumi.get_project(), pulumi.get_stack(), config.require('plain')])\n"
        "pulumi.export('secret', config.require_secret('hidden'))\n"
    )
    project.run("config", "set", "plain", "seen")
    project.run("config", "set", "--secret", "hidden", "very-private")
    for command in (["preview"], ["up", "--yes", "--refresh"]):
        output = project.run(*command)
        assert "very-private" not in output
        assert "said by the program" in output
    assert project.outputs() == {"stack": ["engine-tests", "test", "seen"], "secret": "[secret]"}
    project.run("destroy", "--yes", "--skip-preview")
    assert "very-private" not in project.stored()


def test_an_uncaught_error_is_shown_with_the_programs_own_traceback(project):
    project.write("def inner():\n    raise ValueError('of the program')\n\ninner()\n")
    output = project.run("up", "--yes", "--skip-preview", succeeds=False)
    report = output[output.index("Diagnostics") :]
    assert f'File "{project.folder}/__main__.py", line 9, in <module>' in report
    assert "ValueError: of the program" in report


def test_a_run_error_is_shown_without_a_traceback(project):
    assert "error: wrong settings: do this" in project.fails("raise pulumi.RunError('wrong settings: do this')")


def test_a_program_runs_in_its_folder_and_imports_its_own_modules(project):
    (project.folder / "wire.py").write_text("name = 'the program'\n")
    project.write(
        "import os, wire\nprint('from', wire.name, 'in', os.getcwd() == os.path.dirname(os.path.abspath(__file__)))\n"
    )
    assert "from the program in True" in project.run("preview")


def test_the_programs_own_virtual_environment_runs_it(project):
    environment = project.folder / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    site = next(environment.glob("lib/python3*/site-packages"))
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (site / "libraries.pth").write_text("\n".join(libraries) + "\n")
    project.write("import sys\nprint('prefix is', sys.prefix)\n", options="{virtualenv: .venv}")
    assert f"prefix is {environment}" in project.run("preview")
    assert f"{environment}/bin/python" in project.run("about")


def test_the_error_names_a_missing_virtual_environment(project):
    project.write("", options="{virtualenv: not-there}")
    assert "not-there" in project.run("preview", succeeds=False)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_cancelled_program_ends_quietly_and_leaves_no_process(project, ending):
    marker = f"begun-{time.time_ns()}"
    project.write(f"import pathlib, time\npathlib.Path('{marker}').touch()\ntime.sleep(60)\n")
    with project.started("preview") as engine:
        wait_for("the start of the program", (project.folder / marker).exists)
        family = descendants(engine.pid)
        assert len(family) >= 2, "the plugin and the program"
        engine.send_signal(ending)
        engine.wait(60)
        wait_for("the end of plugin and program", lambda: not any(Path(f"/proc/{pid}").exists() for pid in family))
        output = engine.stdout.read()
    assert "Traceback" not in output
    assert "KeyboardInterrupt" not in output
