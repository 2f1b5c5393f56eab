"""What a model is for, such as "chat" or "embedding", from what catalogues say of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

# The modes in LiteLLM's words, and what other catalogues write for them.
_WRITTEN = {
    "chat": (
        *(
            "text",
            "text_generation",
            "chat_completion",
            "generatecontent",
            "generatemessage",
            "llm",
        ),
        *("vlm", "language", "conversational", "image_text_to_text", "openai", "anthropic"),
        *("gemini", "completion_chat"),
    ),
    "completion": ("generate", "generatetext", "code", "completion_fim"),
    "responses": ("openai_response", "openai_responses"),
    "embedding": (
        *(
            "embeddings",
            "embed",
            "embed_image",
            "embedcontent",
            "text_embedding",
            "text_embeddings",
        ),
        *("feature_extraction", "sentence_similarity"),
    ),
    "rerank": ("reranking", "jina_rerank", "text_ranking"),
    "image_generation": ("image", "images", "text_to_image", "predict", "generateimages"),
    "image_edit": ("image_to_image",),
    "video_generation": ("video", "text_to_video", "image_to_video", "predictlongrunning"),
    "audio_transcription": (
        *("transcription", "transcribe", "speech_to_text", "automatic_speech_recognition"),
    ),
    "audio_speech": ("audio", "speech", "text_to_speech", "tts", "text_to_audio"),
    "realtime": ("bidigeneratecontent",),
    "moderation": ("classify",),
    "ocr": (),
}
_MODES = {word: mode for mode, words in _WRITTEN.items() for word in (mode, *words)}
# Where a mode may stand: keys of the entry, and keys of objects in it. In the first places any word is
# a mode; in the others are words for other things, too.
_ONLY_MODES = (("mode",), ("pipeline_tag",), ("task", "name"))
_PLACES = (
    *_ONLY_MODES,
    *(("type",), ("task",), ("supportedGenerationMethods",), ("supported_generation_methods",)),
    *(("endpoints",), ("supported_endpoint_types",), ("capabilities",)),
    *(
        ("architecture", "output_modalities"),
        ("architecture", "modality"),
        ("modalities", "output"),
    ),
    *(("output_modalities",), ("supported_output_modalities",), ("outputModalities",)),
)


def modes_of(entry: Mapping[str, object]) -> frozenset[str]:
    """Return the modes of an entry in LiteLLM's words; none if it does not say any."""
    for place in _PLACES:
        said: object = entry
        for key in place:
            said = said.get(key) if isinstance(said, Mapping) else None
        found = mode_words(_texts(said))
        if place not in _ONLY_MODES:
            found &= _WRITTEN.keys()
        if found == {"chat"} and "embed" in str(entry.get("family")).lower():
            return frozenset(("embedding",))  # models.dev says that their output is text
        if found:
            return found
    return frozenset()


def mode_words(words: Iterable[str]) -> frozenset[str]:
    """Return words for modes as LiteLLM writes them."""
    plain = (re.sub(r"[^a-z0-9]+", "_", word.lower()).strip("_") for word in words)
    return frozenset(_MODES.get(word, word) for word in plain if word)


def _texts(said: object) -> Iterable[str]:
    """Return the texts in a place: a text, a list of them, or the names of switches that are on."""
    if isinstance(
        said, str
    ):  # OpenRouter writes text+image->text: what goes in, and what comes out
        return said.rpartition("->")[2].split("+") if "->" in said else [said]
    if isinstance(said, Mapping):
        return [key for key, value in said.items() if value is True]
    return [text for text in said if isinstance(text, str)] if isinstance(said, list) else []
