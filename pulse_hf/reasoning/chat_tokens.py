"""From a conversation to token ids, so that nothing a person wrote can pose as a control token."""

from __future__ import annotations

import re
from collections.abc import Sequence as Series
from typing import TYPE_CHECKING, Any

from pulse_hf.reasoning.prompts import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokenizers also keep runs of spaces and the like as added tokens; only those that mark something are control.
_MARKER_SHAPE = re.compile(r"[<\[{|＜｜].*\S", re.DOTALL)


class ChatTokens:
    """Templates and tokenises conversations for one model.

    Control strings in message contents are broken by a space, to the same effect for every tokenizer;
    the template's own control strings become control tokens. Text is otherwise tokenised as one piece,
    exactly as the model was trained.

    Args:
        tokenizer: The model's tokenizer; without a chat template, contents are joined by line ends.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        control = {
            token.content
            for token in added
            if len(token.content) > 1 and (token.special or _MARKER_SHAPE.match(token.content))
        }
        control |= {str(token) for token in tokenizer.all_special_tokens if len(str(token)) > 1}
        longest_first = sorted(control, key=lambda token: (-len(token), token))
        self._control = re.compile("|".join(re.escape(token) for token in longest_first)) if control else None

    def inert(self, text: str) -> str:
        """The text with every control string broken up, however they are nested."""
        while self._control is not None:
            broken = self._control.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
            if broken == text:
                break
            text = broken
        return text

    def text(self, messages: Series[Message]) -> str:
        """The conversation as the model reads it, up to where its reply begins.

        Raises:
            ValueError: The tokenizer's chat template is broken, or does what templates may not.
        """
        from jinja2 import TemplateError

        safe: Any = [{"role": message["role"], "content": self.inert(message["content"])} for message in messages]
        if self.tokenizer.chat_template is None:
            return "\n".join(message["content"] for message in safe) + "\n"
        # Families that can think aloud first are asked not to; the other templates ignore the word.
        try:
            written = self.tokenizer.apply_chat_template(
                safe, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        except TemplateError as error:
            name = self.tokenizer.name_or_path
            raise ValueError(f"the chat template of {name} fails: {error}; take a model with a sound one") from error
        return str(written)

    def encode(self, conversations: Series[Series[Message]]) -> list[list[int]]:
        """Token ids of every conversation."""
        texts = [self.text(messages) for messages in conversations]
        # A template writes the beginning-of-text token itself; without one the tokenizer must.
        begin = self.tokenizer.chat_template is None
        encoded: list[list[int]] = self.tokenizer(texts, add_special_tokens=begin, return_attention_mask=False)[
            "input_ids"
        ]
        return encoded

    def decode(self, ids: Series[int]) -> str:
        """The text of written tokens, without control tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
