"""What a pull asks the Hugging Face hub: the files of a repository at a commit, and their bytes.

``huggingface_hub`` 2.4 begins an interrupted file anew, over plain HTTP and over Xet (its temporary names are unique
to the process), so files are fetched here with its ``http_get``, which resumes from a given byte. That leaves Xet out:
one protocol, served for every file, whose partial files mean something.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, get_token, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils.tqdm import disable_progress_bars

from server.pull.errors import PullError

#: Told how many bytes came; less than zero when bytes are thrown away.
Count = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One file at one commit."""

    name: str
    size: int
    #: SHA-256 of its bytes for files in large-file storage, git's SHA-1 for the others, with the name in front:
    #: "sha256:…", "git:…".
    digest: str


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A repository at one commit."""

    commit: str
    files: Mapping[str, RemoteFile]


class Hub:
    """Addresses and token are those of ``huggingface_hub``: HF_ENDPOINT, HF_TOKEN or a login."""

    def __init__(self) -> None:
        self._endpoint = constants.ENDPOINT

    def list(self, repository: str, revision: str) -> Listing:
        """The files and what the revision is at the moment. Raises ``PullError``."""
        with self._explained(repository):
            info = HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=30.0)
        if info.sha is None or info.siblings is None:
            raise PullError(f"{self._endpoint} does not answer as a hub does: {repository} has no commit or no files")
        files = {}
        for sibling in info.siblings:
            digest = f"sha256:{sibling.lfs.sha256}" if sibling.lfs else f"git:{sibling.blob_id}"
            size = sibling.lfs.size if sibling.lfs else sibling.size
            files[sibling.rfilename] = RemoteFile(name=sibling.rfilename, size=size or 0, digest=digest)
        return Listing(commit=info.sha, files=files)

    def fetch(self, repository: str, commit: str, file: RemoteFile, part: Path, count: Count) -> None:
        """Brings ``part``, of which the first bytes may be there, to the file's size. Raises ``PullError``."""
        # Ours show instead.
        disable_progress_bars()
        url = hf_hub_url(repository, file.name, revision=commit)
        # Compressed answers could not be resumed.
        headers = {"Accept-Encoding": "identity"}
        if (token := get_token()) is not None:
            headers["Authorization"] = f"Bearer {token}"
        with self._explained(repository), _Counted(part, count) as stream:
            http_get(
                url,
                stream,
                resume_size=stream.tell(),
                headers=headers,
                expected_size=file.size,
                displayed_filename=file.name,
            )

    @contextmanager
    def _explained(self, repository: str) -> Iterator[None]:
        page = f"{self._endpoint}/{repository}"
        try:
            yield
        except GatedRepoError:
            raise PullError(
                f"{repository} is gated: accept its licence at {page} and set HF_TOKEN to a token of that account"
            ) from None
        except RepositoryNotFoundError:
            raise PullError(f"{page} is not there, or is private and HF_TOKEN has no access to it") from None
        except RevisionNotFoundError:
            raise PullError(f"{page} has no such revision") from None
        except HFValidationError:
            raise PullError(f"{repository!r} is no hub id (owner/name)") from None
        except OfflineModeIsEnabled:
            raise PullError("HF_HUB_OFFLINE is set: nothing can be pulled") from None
        except HfHubHTTPError as error:
            raise PullError(f"{page} answers {error.response.status_code}; try again later") from None
        except httpx2.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise PullError(f"{self._endpoint} cannot be reached ({reason}); what was fetched is kept") from None


class _Counted(io.BufferedRandom):
    """A partial file, positioned at its end, that tells how it grows."""

    def __init__(self, path: Path, count: Count) -> None:
        path.touch()
        super().__init__(io.FileIO(path, "r+"))
        self.seek(0, io.SEEK_END)
        self._count = count

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        written = super().write(data)
        self._count(written)
        return written

    def truncate(self, size: int | None = None, /) -> int:
        """``http_get`` throws away what is there when a server does not resume."""
        position = self.tell()
        end = self.seek(0, io.SEEK_END)
        self.seek(position)
        self._count((position if size is None else size) - end)
        return super().truncate(size)
