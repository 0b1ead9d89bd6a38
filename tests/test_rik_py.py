"""`rik.py`, run for real in small checkouts of their own that need no package index."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import rik

ROOT = Path(__file__).parent.parent
RIK_PY = ROOT / "rik.py"
LIMIT_S = 120.0  # for making a virtual environment on a busy machine; 3 s on an idle one

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""

# A build backend whose package is the checkout itself, as an installed path; `needs` is what it depends on.
BACKEND = """
import os, zipfile

def get_requires_for_build_editable(config_settings=None):
    return []

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    here = os.path.dirname(os.path.abspath(__file__))
    files = {
        "rik.pth": [here],
        "rik-1.dist-info/METADATA": ["Metadata-Version: 2.1", "Name: rik", "Version: 1", "Provides-Extra: test"],
        "rik-1.dist-info/WHEEL": ["Wheel-Version: 1.0", "Root-Is-Purelib: true", "Tag: py3-none-any"],
    }
    files["rik-1.dist-info/METADATA"] += open(os.path.join(here, "needs")).read().splitlines()
    files["rik-1.dist-info/RECORD"] = [path + ",," for path in files] + ["rik-1.dist-info/RECORD,,"]
    name = "rik-1-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(wheel_directory, name), "w") as wheel:
        for path, lines in files.items():
            wheel.writestr(path, os.linesep.join(lines) + os.linesep)
    return name
"""

MAIN = """
import os, sys
print("rik", sys.argv[1:], sys.prefix, os.getcwd())
sys.exit(7)
"""


def make_checkout(folder: Path) -> Path:
    (folder / "rik").mkdir(parents=True)
    shutil.copy(RIK_PY, folder / "rik.py")
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "backend.py").write_text(BACKEND)
    (folder / "needs").write_text("")
    (folder / "rik" / "__init__.py").write_text("")
    (folder / "rik" / "__main__.py").write_text(MAIN)
    (folder / "pytest.py").write_text("import sys, os\nprint('pytest', sys.argv[1:], os.getcwd())\n")
    return folder


def environment(**changes: str) -> dict[str, str]:
    """Without what this run of pytest, or a virtual environment, may have set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return kept | changes


def command(checkout: Path, *arguments: str) -> list[str]:
    base_python = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    return [str(base_python), str(checkout / "rik.py"), *arguments]


def run(checkout: Path, *arguments: str, cwd: Path | None = None, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(checkout, *arguments),
        capture_output=True,
        text=True,
        env=environment(**changes),
        cwd=cwd,
        timeout=LIMIT_S,
        check=False,
    )


def sitecustomize(folder: Path, code: str) -> str:
    """A PYTHONPATH that makes Python other than it is before `rik.py` starts."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    return str(folder)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout after its first use."""
    checkout = make_checkout(tmp_path_factory.mktemp("installed") / "checkout")
    first = run(checkout, "serve", "--demo", "a b")
    assert first.returncode == 7, first.stderr
    assert first.stdout == f"rik {['serve', '--demo', 'a b']} {checkout / '.venv'} {os.getcwd()}\n"
    assert first.stderr.splitlines()[0].startswith("rik.py: first use: installing RIK's libraries into ")
    assert first.stderr.splitlines()[-1].startswith("rik.py: done in ")
    return checkout


def test_the_second_use_is_silent_and_fast(installed: Path) -> None:
    """Once installed, it becomes `python -m rik` with the same arguments, exit code and nothing on standard error."""
    durations = []
    for _ in range(5):
        started = time.monotonic()
        again = run(installed, "get", "nodes")
        durations.append(time.monotonic() - started)
        assert (again.returncode, again.stderr) == (7, "")
        assert again.stdout.startswith("rik ['get', 'nodes']")
    assert min(durations) < 0.5


def test_the_users_folder_does_not_shadow_libraries(installed: Path, tmp_path: Path) -> None:
    """Started in a folder that holds a `rik` or a `json.py` of its own, it runs the checkout's package."""
    (tmp_path / "rik").mkdir()
    (tmp_path / "rik" / "__main__.py").write_text("print('the wrong one')")
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong one')")
    assert run(installed, cwd=tmp_path).stdout == f"rik [] {installed / '.venv'} {tmp_path}\n"


def test_a_changed_pyproject_is_installed_again(tmp_path: Path, installed: Path) -> None:
    """A new list of dependencies is noticed by its text; then all is quiet again."""
    with (installed / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    changed = run(installed)
    assert changed.returncode == 7
    assert "rik.py: bringing " in changed.stderr
    assert run(installed).stderr == ""


def test_the_test_command_hands_over_to_pytest(installed: Path, tmp_path: Path) -> None:
    """`rik.py test ARGS` runs pytest in the checkout, and says first which tests cannot run here, and why."""
    empty = tmp_path / "empty"
    empty.mkdir()
    result = run(installed, "test", "-k", "a b", PATH=str(empty))
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"pytest ['-k', 'a b'] {installed}\n"
    assert (
        "cannot run the tests of images made with umoci: `umoci` is missing (Debian package umoci); " in result.stderr
    )
    assert "cannot run the tests of the process runtime" in result.stderr
    assert run(installed).stderr == "", "what the tests need includes what a run needs"


@pytest.mark.require("root", reason="only root may install packages")
@pytest.mark.skipif(not Path("/etc/debian_version").exists(), reason="Debian's packages")
def test_root_on_debian_gets_the_packages(installed: Path, tmp_path: Path) -> None:
    """The packages are named while they are installed, no service of theirs may start, and what apt-get could not do
    is said."""
    places = [Path("/usr/sbin/policy-rc.d"), Path("/etc/systemd/system/docker-registry.service")]
    before = [os.path.lexists(place) for place in places]
    seen = f'for f in {" ".join(map(str, places))}; do test -e "$f" && echo "$f" >> {tmp_path}/seen; done'
    answer = f'echo "$@" >> {tmp_path}/calls\necho "E: no such luck"\nexit 100'
    (tmp_path / "apt-get").write_text(f"#!/bin/sh\n{seen}\n{answer}\n")
    (tmp_path / "apt-get").chmod(0o755)
    result = run(installed, "test", PATH=str(tmp_path))
    assert result.stdout.startswith("pytest []")
    assert "rik.py: installing Debian packages: umoci skopeo" in result.stderr
    assert "E: no such luck" in result.stderr
    assert "`umoci` is missing (Debian package umoci); apt-get could not install it" in result.stderr
    install, update, again = (tmp_path / "calls").read_text().splitlines()
    assert install == again
    assert install.startswith("install -y -qq --no-install-recommends umoci")
    assert update == "update -qq"
    assert {*map(str, places)} == {*(tmp_path / "seen").read_text().split()}
    assert [os.path.lexists(place) for place in places] == before, "nothing stays behind where nothing was installed"


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    folder = make_checkout(tmp_path / "checkout")
    yield folder
    if folder.exists():
        folder.chmod(0o755)  # a test may have made it unwritable, and pytest wants to remove it


def test_a_killed_first_use_is_made_good(checkout: Path) -> None:
    """Killed while it installs, with all its children, it starts from scratch the next time."""
    with subprocess.Popen(
        command(checkout), env=environment(), stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        until = time.monotonic() + LIMIT_S
        while not (checkout / ".venv" / "bin" / "python").exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    assert (checkout / ".venv" / "rik-unfinished").exists()
    again = run(checkout)
    assert again.returncode == 7, again.stderr
    assert "making it anew" in again.stderr


def test_two_first_uses_at_once_take_turns(checkout: Path) -> None:
    """One installs, the other waits for it, and both run."""
    processes = [
        subprocess.Popen(
            command(checkout), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=LIMIT_S) for process in processes]
    assert [process.returncode for process in processes] == [7, 7], outputs
    assert sorted("first use" in stderr for _, stderr in outputs) == [False, True]
    assert sorted("another run is installing" in stderr for _, stderr in outputs) == [False, True]


def test_a_moved_checkout_is_installed_again(checkout: Path, tmp_path: Path) -> None:
    """A virtual environment holds its own path; in a folder that was moved it is made anew."""
    assert run(checkout).returncode == 7
    moved = checkout.rename(tmp_path / "moved")
    result = run(moved)
    assert "making it anew" in result.stderr
    assert result.stdout == f"rik [] {moved / '.venv'} {os.getcwd()}\n"


def test_no_index_is_told(checkout: Path) -> None:
    """Without a package index: exit 1, pip's own words, what to do; and no half-made environment stays."""
    (checkout / "needs").write_text("Requires-Dist: no-such-package-for-rik\n")
    nowhere = "http://127.0.0.1:9/simple"
    result = run(checkout, PIP_INDEX_URL=nowhere, PIP_CONFIG_FILE="/dev/null", PIP_NO_CACHE_DIR="1", PIP_FIND_LINKS="")
    assert result.returncode == 1
    assert result.stdout == ""
    assert "error: the package index cannot be reached, so RIK's libraries cannot be installed:" in result.stderr
    assert "(PIP_INDEX_URL), and run this again." in result.stderr
    assert not (checkout / ".venv").exists()


def test_a_python_without_venv_is_told(checkout: Path, tmp_path: Path) -> None:
    """Debian ships Python without venv: the package is named."""
    path = sitecustomize(tmp_path / "site", "import sys\nsys.modules['ensurepip'] = None\n")
    result = run(checkout, PYTHONPATH=path, PATH=str(tmp_path))
    assert result.returncode == 1
    assert "comes without the `venv` module" in result.stderr
    assert "sudo apt-get install python3-venv" in result.stderr
    assert not (checkout / ".venv").exists()


def test_an_old_python_is_told(checkout: Path, tmp_path: Path) -> None:
    """A Python before 3.11 is told which one RIK needs, instead of a syntax error."""
    path = sitecustomize(tmp_path / "site", "import sys\nsys.version_info = (3, 9, 2, 'final', 0)\n")
    result = run(checkout, PYTHONPATH=path)
    assert result.returncode == 1
    assert "error: RIK needs Python 3.11 or newer, and " in result.stderr
    assert result.stderr.splitlines()[0].endswith(" is Python 3.9.2")
    ast.parse(RIK_PY.read_text(), feature_version=(3, 7))


@pytest.mark.require("ordinary-user", reason="root may write anywhere")
def test_an_unwritable_checkout_is_told(checkout: Path) -> None:
    """Somebody else's checkout, not yet used: exit 1, and the way to one's own."""
    checkout.chmod(0o555)
    result = run(checkout)
    assert result.returncode == 1
    assert "cannot write there: Permission denied" in result.stderr
    assert f"cp -r {checkout} ~/rik" in result.stderr


def test_it_imports_the_standard_library_only() -> None:
    """Nothing is installed yet when it runs, and it holds no logic of RIK."""
    imported = set()
    for node in ast.walk(ast.parse(RIK_PY.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).partition(".")[0])
    assert imported <= sys.stdlib_module_names
    assert "rik" not in imported


def test_the_version_is_the_same_everywhere() -> None:
    """`pyproject.toml` and the package name one version."""
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == rik.__version__
