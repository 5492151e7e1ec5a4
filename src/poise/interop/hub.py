"""The Hugging Face Hub: policies shared by name. The one file that needs the extra `hub`."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from poise.extras import extra
from poise.interop.card import model_card
from poise.policies import Policy
from poise.policies.checkpoint import load
from poise.policies.saving import FILE

_TAGS = ["robotics", "imitation-learning", "diffusion-policy"]


def push_to_hub(
    policy: Policy,
    name: str,
    notes: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
    private: bool = False,
) -> str:
    """Share a policy with a model card.

    Args:
        policy: The policy.
        name: `owner/name`; the repository is made where there is none.
        notes: Of its checkpoint: recipe, data, training.
        results: The JSON of `poise evaluate`, shown on the card and kept beside it.
        private: A new repository is seen by its owner alone.

    Returns:
        The address of the commit.

    Raises:
        ImportError: huggingface_hub is missing.
        huggingface_hub.errors.HfHubHTTPError: The hub refuses; `hf auth login` signs in.
    """
    hub = _library()
    with tempfile.TemporaryDirectory() as folder:
        policy.save(folder, notes)
        card = hub.ModelCardData(
            library_name="poise", pipeline_tag="robotics", tags=_TAGS, **_index(hub, name, results)
        )
        text = model_card(policy, notes or {}, results, name)
        (Path(folder) / "README.md").write_text(f"---\n{card.to_yaml()}\n---\n\n{text}")
        if results:
            (Path(folder) / "evaluation.json").write_text(json.dumps(results, indent=2))
        api = hub.HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message="Share a policy").commit_url)


def from_pretrained(name: str | Path, revision: str | None = None) -> Policy:
    """A policy from the hub, or from a folder or file of this machine.

    Args:
        name: `owner/name`, or a path.
        revision: Branch, tag or commit of the hub; None means the newest.

    Raises:
        ImportError: The hub is asked, and huggingface_hub is missing.
        huggingface_hub.errors.HfHubHTTPError: The hub has no such model, or it is no policy of poise.
        ValueError: A broken checkpoint.
    """
    if Path(name).exists():
        return load(name)
    return load(_library().hf_hub_download(str(name), FILE, revision=revision))


def _index(hub: ModuleType, name: str, results: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the hub itself shows of an evaluation."""
    if not results:
        return {}
    figures = next(iter(results["policies"].values()))
    shown = {"success rate": figures["success"], "mean maximum reward": figures["reward_max_mean"]}
    found = [
        hub.EvalResult(
            task_type="robotics",
            dataset_type="closed-loop",
            dataset_name=f"{figures['episodes']} closed-loop episodes",
            metric_type=metric.replace(" ", "-"),
            metric_name=metric,
            metric_value=round(value, 4),
        )
        for metric, value in shown.items()
    ]
    return {"model_name": name, "eval_results": found}


def _library() -> ModuleType:
    with extra("hub", "the hub needs"):
        import huggingface_hub
    return huggingface_hub


__all__ = ["from_pretrained", "push_to_hub"]
