"""Corpora of your own: local files."""

import glob
from dataclasses import dataclass
from pathlib import Path

from research.data.documents import Document


@dataclass(frozen=True, kw_only=True)
class TextFiles:
    """Local UTF-8 text files, one document each, exactly as they are (but for a leading BOM).

    Attributes:
        pattern: a shell-style pattern, `**` matches folders at any depth, `~` is your home; a
            relative one is taken from the working folder.
    """

    pattern: str

    def documents(self, data_dir: str | Path | None = None) -> tuple[Document, ...]:
        """The documents, named by their path below the pattern's fixed part.

        Args:
            data_dir: not used; it is there so that corpora are interchangeable.

        Raises:
            ValueError: nothing matches, or a file is unreadable, empty, binary or not UTF-8.
        """
        pattern = Path(self.pattern).expanduser()
        fixed = pattern.parent
        while glob.has_magic(str(fixed)):
            fixed = fixed.parent
        found = (Path(path) for path in glob.iglob(str(pattern), recursive=True))
        paths = {path.relative_to(fixed).as_posix(): path for path in found if path.is_file()}
        if not paths:
            raise ValueError(
                f"TextFiles.pattern {self.pattern!r} matches no file (seen from {Path.cwd()}), "
                "expected at least one; change TextFiles.pattern"
            )
        return tuple(Document(name, _text(path)) for name, path in sorted(paths.items()))


def _text(path: Path) -> str:
    """The text of a UTF-8 file; raises one-line ValueErrors that say what is wrong and where."""
    try:
        raw = path.read_bytes()
        text = raw.decode().removeprefix("\ufeff")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}, expected a readable text file") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: byte {raw[error.start]:#04x} at offset {error.start} is not UTF-8 "
            f"({error.reason}), expected UTF-8 text; convert the file or narrow TextFiles.pattern"
        ) from error
    if b"\0" in raw:
        raise ValueError(
            f"{path}: a zero byte at offset {raw.index(0)}, expected text, not binary data; "
            "narrow TextFiles.pattern"
        )
    if not text.strip():
        raise ValueError(
            f"{path}: nothing but blanks in {len(raw)} bytes, expected text; "
            "remove the file or narrow TextFiles.pattern"
        )
    return text
