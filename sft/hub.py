"""Downloads from the Hub: its errors, told as faults of the input."""

import contextlib
from collections.abc import Iterator

from sft.recipe import InputError, RecipeError


@contextlib.contextmanager
def explain_errors(name: str, noun: str, revision: str | None = None, keys: tuple[str, str] | None = None) -> Iterator[None]:
    """Turn what huggingface_hub raises inside the block into one clear error about `name`.

    `noun` says what was looked for ("model", "data set", "adapter"); `keys` are the recipe's keys of name and revision.

    Raises:
        RecipeError: not there, no such revision, not reachable and not in the cache, or not delivered.
    """
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
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
        message = f"the Hub could not be reached, and {name} is not in the local cache. Go online once, or name a local {noun}."
        raise RecipeError(message, name_key) from None
    except (RepositoryNotFoundError, HFValidationError):
        message = f"{name} is neither a local {noun} nor one on the Hub that you can see."
        raise RecipeError(f"{message} If it is private, log in with `hf auth login`.", name_key) from None
    except RevisionNotFoundError:
        message = f"{name} has no revision {revision!r}. Expected a branch, a tag or a commit of it."
        raise RecipeError(message, revision_key) from None
    except EntryNotFoundError as error:
        raise RecipeError(f"{name} on the Hub is no {noun}: {first_line(error)}", name_key) from None
    except (HfHubHTTPError, OSError) as error:
        raise RecipeError(f"{name}: the Hub did not deliver it: {first_line(error)}", name_key) from None


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
