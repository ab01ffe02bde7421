"""The OpenAPI description of the server, made of the models that read and write its bodies."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from m1agent.serve.wire import ChatRequest, CompletionRequest
from m1agent.serve.wire_out import ChatChunk, ChatCompletion, Failure, Health, ModelCard, ModelList, TextCompletion

REFUSALS = {
    "400": "The request is wrong, or cannot be followed; `error` says which field and what to do.",
    "404": "There is no such model, or no such path.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "429": "Too many requests; `Retry-After` says when to try again.",
    "500": "The server failed.",
    "502": "The model failed, or wrote nothing that fits.",
}
LOCKED = {"401": "There is no API key, or a wrong one.", "403": "The Host header names another machine."}
IN = (ChatRequest, CompletionRequest)
OUT = (ChatCompletion, ChatChunk, TextCompletion, ModelList, ModelCard, Health, Failure)


def description(name: str) -> bytes:
    """The description, as JSON; `name` is the model's."""
    inputs: list[tuple[type[BaseModel], Any]] = [(model, "validation") for model in IN]
    outputs: list[tuple[type[BaseModel], Any]] = [(model, "serialization") for model in OUT]
    _, schemas = models_json_schema([*inputs, *outputs], ref_template="#/components/schemas/{model}")
    definitions = schemas["$defs"]
    for request in IN:
        definitions[request.__name__]["properties"]["model"] |= {"enum": [name]}
    return json.dumps(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "m1agent",
                "version": version("m1agent"),
                "description": "A model behind the chat and completion requests of OpenAI's API.",
            },
            "security": [{"key": []}, {}],
            "paths": _paths(name),
            "components": {
                "schemas": definitions,
                "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            },
        }
    ).encode()


def _paths(name: str) -> dict[str, Any]:
    return {
        "/v1/chat/completions": _asked("chat", "One reply to a conversation, or several.", ChatRequest, ChatCompletion),
        "/v1/completions": _asked("complete", "A text goes on.", CompletionRequest, TextCompletion),
        "/v1/models": _read("models", "The models there are.", _json(ModelList)),
        "/v1/models/{id}": {
            "get": {
                **_read("model", "One model.", _json(ModelCard), {"404": REFUSALS["404"]})["get"],
                "parameters": [
                    {
                        "name": "id",
                        "in": "path",
                        "required": True,
                        "schema": {"type": "string", "minLength": 1},
                        "example": name,
                    }
                ],
            }
        },
        "/health": _read("health", "Whether the server is up.", _json(Health), public=True),
        "/openapi.json": _read("describe", "This description.", _any("application/json"), public=True),
        "/metrics": _read("metrics", "Counters, in Prometheus' text format.", _any("text/plain")),
    }


def _asked(id: str, summary: str, request: type[BaseModel], answer: type[BaseModel]) -> dict[str, Any]:
    # What one event holds, OpenAPI 3.1 cannot say: the data of each but the last, [DONE], is a chunk.
    content: dict[str, Any] = _json(answer) | {"text/event-stream": {}}
    return {
        "post": {
            "operationId": id,
            "summary": summary,
            "requestBody": {"required": True, "content": _json(request)},
            "responses": {
                "200": {"description": "The answer; with `stream`, its chunks as events.", "content": content},
                **_refusals(REFUSALS | LOCKED),
            },
        }
    }


def _read(
    id: str, summary: str, content: dict[str, Any], more: dict[str, str] | None = None, *, public: bool = False
) -> dict[str, Any]:
    refusals = {"403": LOCKED["403"]} if public else LOCKED
    responses = {"200": {"description": summary, "content": content}, **_refusals(refusals | (more or {}))}
    operation: dict[str, Any] = {"operationId": id, "summary": summary, "responses": responses}
    return {"get": operation | ({"security": []} if public else {})}


def _refusals(told: dict[str, str]) -> dict[str, Any]:
    return {status: {"description": text, "content": _json(Failure)} for status, text in told.items()}


def _json(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}


def _any(kind: str) -> dict[str, Any]:
    return {kind: {"schema": {}}}
