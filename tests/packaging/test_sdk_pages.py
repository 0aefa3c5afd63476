"""The pages on sessions, policies and generators: their examples run as they are, in their order."""

import re
from pathlib import Path

import pytest
from tests.agent.serving import says, serving

from mnemos import Agent
from mnemos.attention.sampling import Sampling

SDK = Path(__file__).resolve().parents[2] / "docs" / "sdk"
PAGES = ("sessions.md", "policies.md", "generators.md")


@pytest.mark.model
@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(
        Agent.__init__.__kwdefaults__, "sampling", Sampling(max_tokens=8)
    )  # nobody reads them
    blocks = re.findall(r"```python\n(.*?)```", (SDK / page).read_text(encoding="utf-8"), re.S)
    assert blocks
    names: dict[str, object] = {"__name__": page}
    with serving(says("She is a nurse.")) as server:
        for block in blocks:
            code = block.replace("http://localhost:8000/v1", server.url)
            exec(compile(code, f"docs/sdk/{page}", "exec"), names)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (SDK / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert (SDK / target).exists(), target
