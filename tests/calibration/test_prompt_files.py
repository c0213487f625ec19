"""Prompt files in the layouts of published sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sdcompress.calibration.prompt_files import read_prompts
from sdcompress.errors import EvaluationError

REFERENCE = Path(__file__).resolve().parents[2].parent / "shared" / "reference" / "prompts"

FILES = {
    "parti.tsv": 'Prompt\tCategory\tChallenge\tNote\na "big\tAnimals\tBasic\t\na dog\tAnimals\tBasic\tx\n',
    "drawbench.csv": '\ufeffPrompts,Category\n"a ""big",Colors\na dog,Colors\n',
    "geneval.jsonl": '{"tag": "x", "prompt": "a \\"big"}\n\n{"prompt": "a dog"}\n',
    "captions_val.json": json.dumps({"annotations": [{"id": 1, "caption": 'a "big'}, {"caption": "a dog\n"}]}),
    "list.json": '["a \\"big", "a dog"]',
    "objects.json": '[{"prompt": "a \\"big"}, {"prompt": "a dog"}]',
    "plain.txt": 'a "big\n\na dog\n',
    "noending": 'a "big\r\na dog',
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_known_layouts(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FILES[name], encoding="utf-8", newline="")
    found = read_prompts(tmp_path / name)
    assert found.prompts == ('a "big', "a dog") and found.default_count == 2 and found.name == name


BAD = {
    "a.csv": ("caption text,b\nx,y\n", r"has no column named prompt or .* \(its first line names caption text, b\)"),
    "empty.tsv": ("", "its first line names nothing"),
    "header.csv": ("prompt,category\n", "holds no prompt"),
    "a.jsonl": ('{"prompt": "x"}\n{"prompt": \n', "line 2: is not valid JSON"),
    "b.jsonl": ('{"promt": "x"}\n', "line 1: is neither a text nor an object with prompt"),
    "a.json": ('{"captions": []}', "is neither a list nor COCO captions"),
    "b.json": ('[{"id": 1}]', "entry 1: is neither"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said(name: str, tmp_path: Path) -> None:
    content, words = BAD[name]
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(EvaluationError, match=words):
        read_prompts(tmp_path / name)


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the published prompt sets are not in ../shared/reference/prompts")
def test_the_published_files() -> None:
    sizes = {"PartiPrompts.tsv": 1632, "drawbench_imagen.csv": 200, "geneval_generation_prompts.txt": 553}
    for name, size in sizes.items():
        prompts = read_prompts(REFERENCE / name).prompts
        assert len(prompts) == size and all(prompts), name
    assert read_prompts(REFERENCE / "drawbench_imagen.csv").prompts[0] == "A red colored car."
