"""Downloads from the Hub: its errors, told as faults of the input or as failures of the Hub."""

import contextlib
import json
from collections.abc import Iterator

from sft.command import InputError
from sft.schema import RecipeError

PASSING = (408, 425, 429, 500, 502, 503, 504)


class HubFailure(RecipeError):
    """The Hub failed, or refused: commands exit with 4, and a push says what state the repository is in."""

    status = 4


def find_transport_error() -> type[Exception]:
    """Return the error that stands above all others in the HTTP library that huggingface_hub uses."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]


def list_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def find_status(error: BaseException) -> int | None:
    """Return the HTTP status behind an error, through the errors that it was raised from."""
    responses = (getattr(cause, "response", None) for cause in list_causes(error))
    return next((int(response.status_code) for response in responses if response is not None), None)


def is_passing(error: Exception) -> bool:
    """Say whether trying again may help: the Hub is busy, a connection was cut, an answer was torn."""
    status = find_status(error)
    if status is not None:
        return status in PASSING
    lost = (find_transport_error(), ConnectionError, TimeoutError, json.JSONDecodeError)
    return any(isinstance(cause, lost) for cause in list_causes(error))


@contextlib.contextmanager
def explain_errors(
    name: str, noun: str, revision: str | None = None, keys: tuple[str, str] | None = None
) -> Iterator[None]:
    """Turn what huggingface_hub raises inside the block into one clear error about `name`.

    `noun` says what was looked for ("model", "data set", "adapter"); `keys` are the recipe's keys of name and
    revision.

    Raises:
        HubFailure: the Hub can't be reached, or is failing, and the cache does not have it.
        RecipeError: not there, no such revision, not in the cache where HF_HUB_OFFLINE is set, or not
            delivered.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name_key, revision_key = keys or (None, None)
    try:
        yield
    except InputError:
        raise
    except LocalEntryNotFoundError:
        message = (
            f"the Hub could not be reached, and {name} is not in the local cache. "
            f"Go online once, or name a local {noun}."
        )
        raise (RecipeError if constants.HF_HUB_OFFLINE else HubFailure)(message, name_key) from None
    except (RepositoryNotFoundError, HFValidationError):
        message = f"{name} is neither a local {noun} nor one on the Hub that you can see."
        raise RecipeError(f"{message} If it is private, log in with `hf auth login`.", name_key) from None
    except RevisionNotFoundError:
        message = f"{name} has no revision {revision!r}. Expected a branch, a tag or a commit of it."
        raise RecipeError(message, revision_key) from None
    except EntryNotFoundError as error:
        raise RecipeError(f"{name} on the Hub is no {noun}: {first_line(error)}", name_key) from None
    except (find_transport_error(), OSError) as error:
        if is_failing(error):
            message = (
                f"{name}: the Hub failed to deliver it: {first_line(error)} Run the same command again later."
            )
            raise HubFailure(message, name_key) from None
        raise RecipeError(f"{name}: the Hub did not deliver it: {first_line(error)}", name_key) from None


def is_failing(error: Exception) -> bool:
    """Say whether the Hub or the way to it failed: no fault of the input, unless requests are forbidden."""
    from huggingface_hub import constants

    return is_passing(error) and not constants.HF_HUB_OFFLINE


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
