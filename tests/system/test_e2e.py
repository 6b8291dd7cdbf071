"""That the end-to-end tests say so where there is no browser for them."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def _run(folder: Path, user: str, *commands: str) -> "subprocess.CompletedProcess[str]":
    """What scripts/e2e comes to for the user with this id on a system that has `commands` alone."""
    (folder / "id").write_text(f"#!/bin/sh\necho {user}\n", encoding="utf-8")
    (folder / "id").chmod(0o755)
    for command in ("bash", "dirname"):
        (folder / command).symlink_to(str(shutil.which(command)))
    for command in commands:
        (folder / command).write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
        (folder / command).chmod(0o755)
    return subprocess.run(
        [ROOT / "scripts" / "e2e"],
        env={"PATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_without_a_browser_and_without_apt_one_line_says_that_they_are_skipped(
    tmp_path: Path,
) -> None:
    done = _run(tmp_path, "0")
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        "e2e: skipped: no chromium here, and it cannot be installed (no apt)\n",
        "",
    )


def test_a_user_who_may_not_install_a_browser_is_told_so(tmp_path: Path) -> None:
    done = _run(tmp_path, "1000", "apt-get")
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        "e2e: skipped: no chromium here, and it cannot be installed (not root)\n",
        "",
    )


def test_an_apt_that_cannot_get_a_browser_is_named(tmp_path: Path) -> None:
    done = _run(tmp_path, "0", "apt-get")
    line = "e2e: skipped: no chromium here, and it cannot be installed (apt-get does not get it)\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, line, "")
