"""What starting vLLM ends with where there is nothing to serve: a try that may be repeated."""

from pathlib import Path

import pytest

from taskmix_server.engine.config import EngineConfig
from taskmix_server.engine.vllm.engine import VllmEngine
from taskmix_server.runtime.supervisor import EXPECTED


@pytest.mark.parametrize("dtype", ["auto", "float32"])
async def test_a_base_that_is_away(tmp_path: Path, dtype: str) -> None:
    """vLLM looks at the base's files before it starts a process."""
    config = EngineConfig(tmp_path / "away", tmp_path / "bank", dtype=dtype)
    with pytest.raises(EXPECTED, match="away"):
        await VllmEngine.start(config)
