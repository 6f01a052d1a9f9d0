"""The page's endpoints as tools of an MCP server, through a client of the protocol: pip install "mcp<2"."""

from __future__ import annotations

import asyncio
import base64
from io import BytesIO

import pytest
from tiny_models import picture


pytest.importorskip("gradio", reason="the page needs the extra demo")
pytest.importorskip("mcp.server.lowlevel.helper_types", reason="tools need mcp 1")

from demo_pages import INSTRUCTION, served, tiny_pair  # noqa: E402
from mcp import ClientSession  # noqa: E402
from mcp.client.streamable_http import streamable_http_client  # noqa: E402


def uploaded(image) -> str:
    file = BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


async def nothing(progress, total, message):
    """Whoever asks for progress is sent images; Gradio 6.31 sends others their addresses."""


async def with_tools(address: str, use):
    """What `use` makes of a session with the server."""
    async with streamable_http_client(f"{address}gradio_api/mcp/") as (read, write, _):
        async with ClientSession(read, write) as session:
            await session.initialize()
            return await use(session)


def test_the_endpoints_are_tools():
    pair, image = tiny_pair(), uploaded(picture(64, 48))

    async def use(session: ClientSession):
        tools = {tool.name: tool for tool in (await session.list_tools()).tools}
        answer = await session.call_tool("ask", {"picture": image, "question": "what is this"})
        request = {"picture": image, "instruction": INSTRUCTION, "seed": 7, "steps": 3}
        edit = await session.call_tool("edit", request, progress_callback=nothing)
        bad = await session.call_tool("edit", {"picture": image, "instruction": ""})
        stolen = await session.call_tool("ask", {"picture": "/etc/passwd", "question": "what is this"})
        return tools, answer, edit, bad, stolen

    with served(pair, mcp_server=True) as (_, address):
        tools, answer, edit, bad, stolen = asyncio.run(with_tools(address, use))
    assert set(tools) == {"edit", "ask", "generate", "why"}
    assert tools["edit"].description.startswith("Edits an image by an instruction")
    asked = tools["edit"].inputSchema["properties"]
    assert {"picture", "instruction", "seed", "steps"} <= set(asked)
    assert "may contain questions about the image" in asked["instruction"]["description"]
    expected = pair.base.answer(picture(64, 48), "what is this", max_new_tokens=16)
    assert not answer.isError and expected in text_of(answer)
    assert not edit.isError and [part.type for part in edit.content].count("image") == 2
    assert bad.isError and "write an instruction first" in text_of(bad)
    assert stolen.isError and "root:" not in text_of(stolen)


def text_of(result) -> str:
    return "\n".join(part.text for part in result.content if part.type == "text")
