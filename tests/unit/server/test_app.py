"""Loops that last as long as the server."""

import asyncio
import logging

import pytest

from taskmix_server.app import begun


async def defective() -> None:
    raise KeyError("guardrail")


async def endless() -> None:
    await asyncio.Event().wait()


async def test_a_defect_that_ends_a_loop_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    await asyncio.wait({begun(defective())})
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "defective has ended and will not run again; restart the server"
    assert record.exc_info is not None
    assert record.exc_info[0] is KeyError


async def test_a_loop_that_is_cancelled_is_not(caplog: pytest.LogCaptureFixture) -> None:
    loop = begun(endless())
    await asyncio.sleep(0)
    loop.cancel()
    await asyncio.wait({loop})
    assert not caplog.records
