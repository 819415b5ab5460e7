"""What a row becomes: the fields of JSON, Parquet and Hugging Face data that make a document or a record."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from research.data.documents import Document, Item, Record, Speaker, Turn


@dataclass(frozen=True, kw_only=True)
class Tabular:
    """What a row of a file becomes: a document of one field, a record of two, or a dialogue of a list of messages.

    This is what `JSONLines`, `Parquet` and `HuggingFace` share. Fields are named by their key; `a.b` is the key b in
    the object at a.

    Attributes:
      text: the field of a free text; it is read where neither of the following is set.
      inputs, target: the fields of what is given and of what is to be learned: both, or neither.
      messages: the field of a dialogue: a list of objects with the strings `role` ("system", "user" or "assistant") and
        `content`.
      name: the field of a name that no other row has; None: rows are named by their file and number.
      group: the field of what may not straddle splits (an author, a source); None: every row is its own.
      skip_blank: leave out rows without text (null, or nothing but blanks) instead of raising.
    """

    text: str = "text"
    inputs: str | None = None
    target: str | None = None
    messages: str | None = None
    name: str | None = None
    group: str | None = None
    skip_blank: bool = False

    def __post_init__(self):
        kind = type(self).__name__
        if (self.inputs is None) != (self.target is None):
            raise ValueError(
                f"{kind}.inputs = {self.inputs!r}, {kind}.target = {self.target!r}: expected fields for both, or None"
            )
        if self.messages is not None and self.inputs is not None:
            raise ValueError(
                f"{kind}.messages = {self.messages!r}, {kind}.inputs = {self.inputs!r}: expected only one of them"
            )

    def documents(self, data_dir: str | Path | None = None) -> tuple[Item, ...]:
        """The documents or records, sorted by name.

        Args:
          data_dir: where `HuggingFace` keeps its cache; the others do not use it.

        Raises:
          ValueError: nothing is found, a file is damaged, or a row is not as the attributes say.
        """
        items, places = [], {}
        for place, number, row in self._rows(data_dir):
            item = self._item(row, place, number)
            if item is None:
                continue
            if item.name in places:
                raise ValueError(
                    f"{place}: its name {item.name!r} is also that of {places[item.name]}, expected names that differ; "
                    f"change {type(self).__name__}.name"
                )
            places[item.name] = place
            items.append(item)
        if not items:
            raise ValueError(f"{self}: every row is blank, expected some text; change the fields")
        return tuple(sorted(items, key=lambda item: item.name))

    def _rows(self, data_dir: str | Path | None) -> Iterator[tuple[str, str, Any]]:
        """Each row with its place, for messages, and its default name."""
        raise NotImplementedError

    def _columns(self, place: str, present: list[str]) -> list[str]:
        """The columns of a table that are read: the fields, and of a field `a.b` a."""
        roles = ["text"] if self.inputs is None else ["inputs", "target"]
        roles = roles if self.messages is None else ["messages"]
        fields = {role: getattr(self, role) for role in (*roles, "name", "group")}
        columns = {role: field.partition(".")[0] for role, field in fields.items() if field is not None}
        for role, column in columns.items():
            if column not in present:
                raise self._absent(place, role, f"there are {', '.join(map(repr, present))}")
        return sorted(set(columns.values()))

    def _item(self, row: Any, place: str, number: str) -> Item | None:
        """What a row becomes, or None where it is blank and may be."""
        name = number if self.name is None else self._key(row, "name", place)
        group = "" if self.group is None else self._key(row, "group", place)
        if self.messages is not None:
            turns = self._turns(row, place)
            return None if turns is None else Record(name, turns, group)
        if self.inputs is None:
            text = self._string(row, "text", place)
            return None if text is None else Document(name, text, group)
        inputs, target = self._string(row, "inputs", place), self._string(row, "target", place, digits=True)
        return None if inputs is None or target is None else Record.pair(name, inputs, target, group)

    def _turns(self, row: Any, place: str) -> tuple[Turn, ...] | None:
        messages, setting = self._value(row, "messages", place)
        if not isinstance(messages, list | tuple):
            raise ValueError(f"{place}: {setting} is {_shown(messages)}, expected a list of messages")
        turns = []
        for i, message in enumerate(messages):
            said = message if isinstance(message, dict) else {}
            speaker = next((known for known in get_args(Speaker) if known == said.get("role")), None)
            content = said.get("content")
            if speaker is None or not isinstance(content, str):
                raise ValueError(
                    f"{place}: message {i} of {setting} is {_shown(message)}, expected an object with a role of "
                    f"{', '.join(get_args(Speaker))} and a string as content"
                )
            turns.append(Turn(speaker, _encodable(content, f"{place}: message {i} of {setting}")))
        learned = [turn.text for turn in turns if turn.speaker == "assistant"]
        if any(text.strip() for text in learned):
            return tuple(turns)
        if self.skip_blank:
            return None
        raise ValueError(
            f"{place}: the assistant says nothing in {setting}, expected a text to learn; "
            f"repair it or set {type(self).__name__}.skip_blank = True"
        )

    def _string(self, row: Any, role: str, place: str, digits: bool = False) -> str | None:
        """The text of a field, or None where it is blank and may be; `digits` writes out integers."""
        value, setting = self._value(row, role, place)
        if digits and isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value is None or (isinstance(value, str) and not value.strip()):
            if self.skip_blank:
                return None
            raise ValueError(
                f"{place}: {setting} is blank, expected text; repair it or set {type(self).__name__}.skip_blank = True"
            )
        if not isinstance(value, str):
            raise ValueError(f"{place}: {setting} is {_shown(value)}, expected a string")
        return _encodable(value, f"{place}: {setting}")

    def _key(self, row: Any, role: str, place: str) -> str:
        """A name or a group: a string that is not empty, or an integer."""
        value, setting = self._value(row, role, place)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str) or not value:
            raise ValueError(f"{place}: {setting} is {_shown(value)}, expected a string or an integer")
        return _encodable(value, f"{place}: {setting}")

    def _value(self, row: Any, role: str, place: str) -> tuple[Any, str]:
        """What stands in the field for `role`, and how to speak of that field."""
        field = getattr(self, role)
        value = row
        for key in field.split("."):
            if not isinstance(value, dict):
                raise self._absent(place, role, f"{_shown(value)} is no object")
            if key not in value:
                raise self._absent(place, role, f"there are {', '.join(map(repr, value))}")
            value = value[key]
        return value, f"field {field!r}"

    def _absent(self, place: str, role: str, found: str) -> ValueError:
        setting = f"{type(self).__name__}.{role}"
        return ValueError(
            f"{place}: no field {getattr(self, role)!r} ({found[:200]}); change {setting} or the file"
        )


def _encodable(text: str, place: str) -> str:
    """The text itself; JSON can hold halves of characters, which no file or tokenizer can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{place}: half a character ({text[error.start]!a}) at character {error.start}, expected text; repair it"
        ) from error
    return text


def _shown(value: Any) -> str:
    """A value in a message: its type and how it begins."""
    text = repr(value)
    return f"{type(value).__name__} {text[:40]}{'...' if len(text) > 40 else ''}"
