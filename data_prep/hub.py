"""Put a prepared folder on the Hub: one commit, privately unless told otherwise, nothing but the listed files."""

from pathlib import Path

from data_prep.command import UserError

UPLOADED = ["README.md", "report.json", "report.html", "rejected.csv", "examples.json", "*/*.parquet"]


def check_login(repo: str) -> None:
    """Raise `UserError` if the Hub cannot be reached or does not know who is asking: before the work, not after."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, validate_repo_id

    try:
        validate_repo_id(repo)
        HfApi().whoami()
    except HFValidationError as error:
        raise UserError(f"--push_to_hub {repo}: give OWNER/NAME: {str(error).splitlines()[0]}") from error
    except LocalTokenNotFoundError as error:
        raise UserError(f"--push_to_hub {repo}: not logged in: run `hf auth login` first") from error
    except (HfHubHTTPError, OSError) as error:
        raise UserError(f"--push_to_hub {repo}: the Hub refuses: {str(error).splitlines()[0]}") from error


def push(folder: Path, repo: str, public: bool, overwrite: bool) -> str:
    """Upload the prepared folder as a data set; returns its address. An existing one is replaced only if told so.

    Raises:
        UserError: the repository exists, is public and must not be, or the Hub refuses. The folder on the disk stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import HfHubHTTPError

    api = HfApi()
    try:
        if api.repo_exists(repo, repo_type="dataset"):
            if not overwrite:
                raise UserError(
                    f"--push_to_hub {repo} exists already: pass --overwrite to replace its data; {folder} is ready"
                )
            if not public and not api.repo_info(repo, repo_type="dataset").private:
                raise UserError(f"--push_to_hub {repo} is public: pass --public if that is meant; {folder} is ready")
        else:
            api.create_repo(repo, repo_type="dataset", private=not public)
        commit = api.upload_folder(
            repo_id=repo,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=UPLOADED,
            delete_patterns=["*.parquet"],
            commit_message="Prepared questions",
        )
    except (HfHubHTTPError, OSError) as error:
        raise UserError(
            f"--push_to_hub {repo}: {str(error).splitlines()[0]}; the data is whole in {folder}"
        ) from error
    return str(commit)
