"""The workflows of GitHub, and how a release is made."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ai_agent_service import __version__

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
BIN = Path(sys.executable).parent


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(
        (ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8")
    )
    return found


def steps(job: dict[str, Any]) -> list[dict[str, Any]]:
    return list(job.get("steps", []))


def test_the_workflows_are_as_github_describes_them() -> None:
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "release.yml"]
    for schema in ("vendor.github-workflows", "custom.github-workflows-require-timeout"):
        command = [BIN / "check-jsonschema", "--builtin-schema", schema, *WORKFLOWS]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_jobs_may_do_little_and_use_what_is_pinned(path: Path) -> None:
    workflow = read(path.name)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        used = [step["uses"] for step in steps(job) if "uses" in step]
        assert [
            each for each in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", each)
        ] == []
        # What others write - a branch's name, a title - reaches no shell but as a variable.
        assert not [step for step in steps(job) if "${{" in step.get("run", "")]


def test_ci_runs_what_everybody_runs() -> None:
    [job] = read("ci.yml")["jobs"].values()
    commands = [step["run"] for step in steps(job) if "run" in step]
    assert commands == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def git(folder: Path, *arguments: str) -> None:
    who = {
        f"GIT_{role}_{part}": value
        for role in ("AUTHOR", "COMMITTER")
        for part, value in (("NAME", "A"), ("EMAIL", "a@a.invalid"))
    }
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env={**os.environ, **who},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def released(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.run(
        ["scripts/release"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_release_is_built_once_version_changelog_and_tag_agree(tmp_path: Path) -> None:
    for name in ("requirements.lock", "pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(
        ROOT / "ai_agent_service",
        tmp_path / "ai_agent_service",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "release", tmp_path / "scripts" / "release")
    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text("# Changelog\n\n## [Unreleased]\n\n- not yet\n", encoding="utf-8")
    git(tmp_path, "init", "--quiet")

    def refusal() -> str:
        done = released(tmp_path)
        assert (done.returncode, done.stdout, (tmp_path / "dist").exists()) == (2, "", False)
        return done.stderr

    assert refusal() == "release: there are changes that are not committed\n"
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "One")
    assert refusal() == f"release: CHANGELOG.md has no heading '## [{__version__}] - YYYY-MM-DD'\n"
    headings = (
        "Unreleased]\n\n- not yet",
        f"{__version__}] - 2026-11-28\n\n### Added\n\n- this",
        "0.0.1] - 2026-01-01\n\n- that",
    )
    changelog.write_text(
        "# Changelog\n\n" + "".join(f"## [{each}\n\n" for each in headings), encoding="utf-8"
    )
    git(tmp_path, "commit", "--quiet", "--all", "--message", "Two")
    git(tmp_path, "tag", "v9.9.9")
    assert refusal() == f"release: this commit has no tag v{__version__}\n"
    git(tmp_path, "tag", f"v{__version__}")
    done = released(tmp_path)
    assert done.returncode == 0, done.stderr
    dist = tmp_path / "dist"
    wheel, sdist = (
        f"ai_agent_service-{__version__}-py3-none-any.whl",
        f"ai_agent_service-{__version__}.tar.gz",
    )
    listed = (wheel, sdist, "sbom.cdx.json")
    assert {path.name for path in dist.iterdir()} == {*listed, "SHA256SUMS", "NOTES.md"}
    assert (dist / "NOTES.md").read_text(encoding="utf-8").strip() == "### Added\n\n- this"
    digests = {name: hashlib.sha256((dist / name).read_bytes()).hexdigest() for name in listed}
    parts = json.loads((dist / "sbom.cdx.json").read_text())["components"]
    locked = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert {part["name"] for part in parts} == set(re.findall(r"^([^\s=#]+)==", locked, re.M))
    assert done.stdout.splitlines() == [f"{digest}  {name}" for name, digest in digests.items()]
    assert released(tmp_path).stdout == done.stdout  # the same to the byte
