"""What goes over the wire, as OpenAPI describes it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class PredictRequest(BaseModel):
    """Texts for one adapter."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"adapter": "sentiment", "text": "a moving, beautifully shot film"}]},
    )

    adapter: Annotated[str, Field(description="A name that GET /v1/adapters lists.", max_length=200)]
    text: Annotated[str | None, Field(description="One text; or texts.")] = None
    texts: Annotated[list[str] | None, Field(description="Several texts, answered in order.", min_length=1)] = None
    text_pair: Annotated[str | None, Field(description="Second part of text: a hypothesis, or the context.")] = None
    text_pairs: Annotated[list[str] | None, Field(description="Second parts of texts, one for each.")] = None
    top_k: Annotated[
        int | None,
        Field(description="So many labels, or answers to a question; default: all labels, one answer.", ge=1),
    ] = None


class Labels(BaseModel):
    """Classification: labels, best first. Where several may hold at once, every score stands for itself."""

    labels: list[str]
    scores: Annotated[list[float], Field(description="Probabilities.")]


class Value(BaseModel):
    """Regression."""

    value: float


class Word(BaseModel):
    """One word of a text, with the label of its first token."""

    text: str
    start: Annotated[int, Field(description="In characters of the text.")]
    end: int
    label: str
    score: float


class Words(BaseModel):
    """Tagging: every word of the text that was read."""

    words: list[Word]


class Span(BaseModel):
    """A part of the context."""

    text: str
    start: Annotated[int, Field(description="In characters of the context.")]
    end: int
    score: float


class Spans(BaseModel):
    """Question answering: parts of the context, best first."""

    answers: list[Span]
    no_answer: Annotated[float, Field(description="Score of the context not answering; compare it with the best.")]


Answer = Labels | Value | Words | Spans


class PredictResponse(BaseModel):
    """One answer for every text, in order."""

    adapter: str
    task: Annotated[
        str,
        Field(description="classification, multilabel_classification, regression, tagging or question_answering"),
    ]
    predictions: list[Answer]


class AdapterInfo(BaseModel):
    """An adapter that is served."""

    name: Annotated[str, Field(description="What requests call it.")]
    reference: Annotated[str, Field(description="What it was loaded from.")]
    version: str | None
    digest: Annotated[str | None, Field(description="sha256 of its manifest; null: a folder without one.")]
    signers: Annotated[list[str], Field(description="Keys that signed it and that were believed.")]
    task: Annotated[str | None, Field(description="As in answers; null: its head cannot be put into words here.")]
    labels: list[str]
    description: str | None


class AdapterList(BaseModel):
    """All adapters that are served."""

    base_model: str
    adapters: list[AdapterInfo]


class Health(BaseModel):
    """Whether requests are answered."""

    status: Annotated[str, Field(description='"ok", or "stopping" with status 503.')]
    adapters: int


class Wrong(BaseModel):
    """One thing that is wrong with a request."""

    where: Annotated[str, Field(description="Field, for example texts.3")]
    what: str


class Problem(BaseModel):
    """An error, as RFC 9457 describes it."""

    type: Annotated[str, Field(description='Always "about:blank".')] = "about:blank"
    title: str
    status: int
    code: Annotated[str, Field(description="What kind of problem it is, for programs.")]
    detail: str
    hint: str | None = None
    errors: list[Wrong] | None = None
