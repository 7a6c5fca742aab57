"""docs/hybrid.md: its flags and tests exist."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "hybrid.md").read_text(encoding="utf-8")
FILES = {"configurator": "hybrid_configurator", "settings": "hybrid_settings", "training": "hybrid_training", "data": "hybrid_data",
         "evaluation": "hybrid_evaluation", "example": "train_rwkv_example", "groups": "parameter_groups"}  # fmt: skip


def test_tests_that_are_named_exist():
    named = 0
    for part, tests in re.findall(r"(\w+): ((?:`test_\w+`(?:, )?)+)", PAGE):
        source = (ROOT / "tests" / "py" / f"test_{FILES[part]}.py").read_text(encoding="utf-8")
        for test in re.findall(r"test_\w+", tests):
            assert f"def {test}(" in source, f"{part}: {test}"
            named += 1
    assert named > 50


def test_flags_that_are_named_exist():
    source = (ROOT / "examples" / "train_rwkv.py").read_text(encoding="utf-8")
    used = re.findall(r"(--\w+)", PAGE.split("python examples/train_rwkv.py")[1].split("```")[0])
    assert len(used) == 9 and all(f'"{flag}"' in source for flag in used)
