"""The site is built with every link checked, and asks nothing of other servers."""

import re
import subprocess
import sys

import pytest
from helpers import ROOT


@pytest.mark.slow
def test_the_site_builds_strictly_and_works_offline(tmp_path):
    pytest.importorskip("mkdocs", reason="needs pip install '.[docs]'")
    pytest.importorskip("mkdocstrings", reason="needs pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    pages = sorted(tmp_path.rglob("*.html"))
    assert {"index.html", "index.zh.html", "start.zh.html", "api.html"} <= {p.name for p in pages}
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)\b[^>]*>", text)
        loaded += re.findall(r"<link\b[^>]*(?:stylesheet|preconnect|icon)[^>]*>", text)
        assert not [tag for tag in loaded if re.search(r"(?:src|href)=\"?(?:https?:)?//", tag)]
    api = (tmp_path / "api.html").read_text(encoding="utf-8")
    for name in ("load_backbone", "AdaptedModel.generate", "Library.resolve", "Blend.parse"):
        assert name in api, name
