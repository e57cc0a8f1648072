"""The blocks of a GGUF file inside a predictor: the same numbers as the decoder's, and what of them is trained."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch

from edgepd.adapt.block import Rows
from edgepd.adapt.decoder import Decoder
from edgepd.adapt.functional import rotary_turns
from edgepd.errors import ModelError
from edgepd.intent.backbone import GGUFBlocks
from edgepd.intent.batches import batch_of
from edgepd.intent.population import PopulationTraining, train_population
from edgepd.intent.predictor import Predictor
from edgepd.intent.shape import Shape
from edgepd_quant.reader import GGUFFile
from tests.intent.intent_helpers import windows
from tests.tiny_gguf import tiny_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> GGUFFile:
    path: Path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    tiny_llama(path, qtype=int(gguf.GGMLQuantizationType.Q4_1), seed=0)
    return GGUFFile.open(path)


def shape_for(model: GGUFFile, layers: int = 2) -> Shape:
    hidden = int(model.metadata["llama.embedding_length"])
    return Shape(5, 5, 0, width=hidden // 4, layers=layers, window=16, rank=4)


@pytest.mark.parametrize("rank", [None, 4])
def test_blocks_compute_what_the_decoder_computes(model: GGUFFile, rank: int | None) -> None:
    shape = shape_for(model)
    x = torch.randn(2, 7, shape.hidden, generator=torch.Generator().manual_seed(0))
    decoder = Decoder(model)
    arch = decoder.architecture
    turns = rotary_turns(7, arch.rope_dims, arch.rope_base, None)
    rows, expected = Rows(2, turns, turns, None), x.flatten(0, 1)
    for block in decoder.blocks[: shape.layers]:
        expected = block.forward(expected, rows, changed=False)
    found = GGUFBlocks(model, shape, rank)(x)
    torch.testing.assert_close(found.flatten(0, 1), expected, rtol=1e-4, atol=1e-4)


def test_frozen_blocks_keep_their_weights_and_lora_beside_them_is_trained(model: GGUFFile) -> None:
    shape = shape_for(model)
    torch.manual_seed(0)
    made = Predictor(shape, lambda of: GGUFBlocks(model, of, 4))
    before = {name: p.detach().clone() for name, p in made.blocks.named_parameters()}
    train_population(made, windows(8), PopulationTraining(epochs=2, rows=4))
    for name, parameter in made.blocks.named_parameters():
        changed = not torch.equal(parameter, before[name])
        assert changed == name.endswith((".a", ".b")), name


def test_tuned_blocks_are_trained_themselves(model: GGUFFile) -> None:
    torch.manual_seed(0)
    made = Predictor(shape_for(model), lambda of: GGUFBlocks(model, of, None))
    before = [p.detach().clone() for p in made.blocks.parameters()]
    train_population(made, windows(8), PopulationTraining(epochs=2, rows=4))
    assert all(not torch.equal(p, b) for p, b in zip(made.blocks.parameters(), before, strict=True))


def test_a_width_that_the_model_does_not_have_is_refused(model: GGUFFile) -> None:
    with pytest.raises(ModelError, match="width"):
        GGUFBlocks(model, Shape(5, 5, 0, width=3, layers=1, heads=2))


def test_a_place_of_such_a_predictor_depends_on_nothing_after_it(model: GGUFFile) -> None:
    made = Predictor(shape_for(model), lambda of: GGUFBlocks(model, of, 4)).eval()
    window = windows(1)[0]
    with torch.no_grad():
        torch.testing.assert_close(
            made(batch_of([window.part(0, 5)]))[0], made(batch_of([window]))[0, :5], rtol=1e-4, atol=1e-4
        )
