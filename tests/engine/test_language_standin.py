"""The messages of the stand-in for the language plugin; test_language_plugin.py tests the contract."""

import pytest

from daskstack.engine import VERSION

PLUGIN = "language", "python", VERSION
pytestmark = pytest.mark.usefixtures("stand_in")


def test_an_uncaught_error_shows_no_frames_of_the_stand_in(project):
    project.write("raise ValueError('of the program')\n")
    output = project.run("preview", succeeds=False)
    report = output[output.index("Diagnostics") :]
    assert "Program failed with an unhandled exception" in report
    assert "ValueError: of the program" in report
    assert "language_python" not in report
    assert "runpy" not in report


def test_a_program_cannot_import_modules_of_the_stand_in(project):
    project.write(
        "import importlib.util\n"
        "print('reached', [name for name in ('serving', 'command') if importlib.util.find_spec(name)])\n"
    )
    assert "reached []" in project.run("preview")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("{virtualenv: not-there}", ["{folder}/not-there/bin/python", "python3 -m venv not-there"]),
        ("{toolchain: uv}", ["the stand-in for language-python supports only pip; install the official plugin"]),
    ],
)
def test_a_missing_interpreter_is_reported_with_a_remedy(project, options, words):
    project.write("", options=options)
    output = project.run("preview", succeeds=False)
    assert all(each.format(folder=project.folder) in output for each in words)
