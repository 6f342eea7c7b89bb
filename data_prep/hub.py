"""Put a prepared folder on the Hub: one commit, privately unless told otherwise, nothing but the listed files."""

from pathlib import Path

from data_prep.command import UserError, first_line
from data_prep.writing import FILES


def check_push(repo: str, public: bool, overwrite: bool) -> None:
    """Ask the Hub whether `push` will be allowed: before the work, not after.

    Raises:
        UserError: no such name, not logged in, no connection, or a data set that exists, or is public, and must not.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import HFValidationError, LocalTokenNotFoundError

    api = HfApi()
    try:
        api.whoami()
        exists = api.repo_exists(repo, repo_type="dataset")
        private = not exists or api.repo_info(repo, repo_type="dataset").private
    except HFValidationError as error:
        raise UserError(f"--push_to_hub {repo}: give OWNER/NAME: {first_line(error)}") from error
    except LocalTokenNotFoundError as error:
        raise UserError(f"--push_to_hub {repo}: not logged in: run `hf auth login` first") from error
    except Exception as error:  # whatever its HTTP library raises: no connection, no right, no service
        raise UserError(f"--push_to_hub {repo}: the Hub refuses: {first_line(error)}") from error
    if exists and not overwrite:
        raise UserError(f"--push_to_hub {repo} exists already: pass --overwrite to replace its data")
    if not private and not public:
        raise UserError(f"--push_to_hub {repo} is public: pass --public if that is meant")


def push(folder: Path, repo: str, public: bool) -> str:
    """Upload the prepared folder as a data set, in one commit; returns its address.

    Raises:
        UserError: the Hub refuses. The folder on the disk stays.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo, repo_type="dataset", private=not public, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=[*FILES, "*/*.parquet"],
            delete_patterns=["*.parquet"],
            commit_message="Prepared questions",
        )
    except Exception as error:  # as above; hours of work must not end in a traceback
        raise UserError(f"--push_to_hub {repo}: {first_line(error)}; the data is whole in {folder}") from error
    return str(commit)
