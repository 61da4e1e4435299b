"""`from_pretrained`, `save_pretrained` and `push_to_hub` for HSTL, by huggingface_hub's mixin."""

from pathlib import Path
from typing import Any

from huggingface_hub import PyTorchModelHubMixin
from safetensors.torch import save_file
from torch import Tensor

CARD = (Path(__file__).parent / "card.md.j2").read_text()
"""Model card; `save_pretrained(folder, model_card_kwargs={"facts": {...}})` fills in data, recipe and metrics."""


def metadata(variant: str, num_classes: int, step: int | None = None) -> dict[str, str]:
    """What our safetensors files say of themselves."""
    said = {"format": "hstl-1", "variant": variant, "num_classes": str(num_classes)}
    return said if step is None else {**said, "step": str(step)}


class HubMixin(
    PyTorchModelHubMixin,
    library_name="hstl",
    tags=["gait-recognition", "silhouettes", "hstl"],
    license="apache-2.0",
    model_card_template=CARD,
):
    """The hub's mixin with our file format, and without its tolerance for missing tensors."""

    def _save_pretrained(self, save_directory: Path) -> None:
        state: dict[str, Tensor] = self.state_dict()  # type: ignore[attr-defined]
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        said = metadata(self.variant.name, self.num_classes)  # type: ignore[attr-defined]
        save_file(tensors, save_directory / "model.safetensors", said)

    @classmethod
    def _from_pretrained(cls, **arguments: Any) -> Any:
        # The mixin would fill a network from half a file without a word.
        return super()._from_pretrained(**{**arguments, "strict": True})
