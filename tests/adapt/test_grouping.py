"""Data grouping: choices that can be read off by hand, the autoencoder, and the model's own embeddings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgepd.adapt.decoder import Decoder
from edgepd.adapt.examples import Encoded
from edgepd.adapt.grouping import (
    LATENT,
    Autoencoder,
    embed,
    grouped,
    individual_grouping,
    single_sample_grouping,
)
from edgepd.errors import ConfigError, TrainingError
from tests.adapt.helpers import random_examples, tiny_decoder


def points(*values: float) -> Tensor:
    """Points on a line, (n, 1)."""
    return torch.tensor(values).unsqueeze(1)


def clusters(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Samples (count, 64) around four far centres that lie in a plane, and the number of the centre of each."""
    generator = torch.Generator().manual_seed(seed)
    plane = torch.randn(2, 64, generator=torch.Generator().manual_seed(99))
    corners = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0], [6.0, 6.0]])
    labels = torch.randint(4, (count,), generator=generator)
    return corners[labels] @ plane + 0.3 * torch.randn(count, 64, generator=generator), labels


def test_each_sample_takes_its_nearest_and_none_twice() -> None:
    general = points(0.0, 10.0, 11.0, 20.0, 30.0)
    # 10.4 takes 10 and leaves 11 to 10.6; the second round of 10.4 would be 11, were it not taken.
    assert single_sample_grouping(points(10.4, 10.6), general, 1) == [1, 2]
    # The first takes 1 and 2; for the second 3 (9.4 away) and then 0 (10.6 away) are what is left.
    assert single_sample_grouping(points(10.4, 10.6), general, 2) == [1, 2, 3, 0]
    assert single_sample_grouping(points(29.0), general, 2) == [4, 3]


def test_a_used_up_general_set_is_taken_whole_and_ties_go_in_order() -> None:
    assert sorted(single_sample_grouping(points(1.0, 2.0, 3.0), points(0.0, 5.0), 4)) == [0, 1]
    assert single_sample_grouping(points(1.0), points(2.0, 0.0, 2.0), 2) == [0, 1]


def test_a_limit_keeps_the_nearest_of_all_that_were_taken() -> None:
    general = points(0.0, 10.0, 20.0, 30.0)
    personal = points(4.0, 11.0, 20.5, 33.0)  # 4, 1, 0.5 and 3 away
    assert single_sample_grouping(personal, general, 1) == [2, 1, 3, 0]
    assert single_sample_grouping(personal, general, 1, limit=2) == [2, 1]


def test_distances_count_in_all_dimensions() -> None:
    general = torch.tensor([[3.0, 4.0], [0.0, 4.9]])  # 5 and 4.9 from the origin
    assert single_sample_grouping(torch.zeros(1, 2), general, 1) == [1]


def test_individuals_are_compared_by_their_means() -> None:
    personal = points(0.0, 10.0)  # mean 5
    individuals = [points(0.0), points(4.0, 8.0), points(-90.0, 100.0), points(9.0, 9.0, 9.0)]  # means 0, 6, 5, 9
    assert individual_grouping(personal, individuals, 2) == [2, 1]
    assert individual_grouping(personal, individuals, 9) == [2, 1, 3, 0]


def test_the_latent_code_keeps_apart_what_is_apart() -> None:
    samples, labels = clusters(48, seed=1)
    encoder = Autoencoder(samples, seed=3)
    others, other_labels = clusters(20, seed=2)
    codes = encoder.encode(samples)
    assert codes.shape == (48, LATENT)
    nearest = torch.cdist(encoder.encode(others), codes).argmin(1)
    assert torch.equal(labels[nearest], other_labels)


def test_what_is_decoded_is_near_to_what_was_encoded() -> None:
    samples, _ = clusters(48, seed=1)
    fresh, _ = clusters(48, seed=2)
    error = (Autoencoder(samples, seed=3).reconstruct(fresh) - fresh).square().mean()
    assert error < 0.1 * (fresh - samples.mean(0)).square().mean()  # of what the mean alone would leave


def test_the_autoencoder_depends_on_its_seed_alone_and_leaves_the_global_state() -> None:
    samples, _ = clusters(16, seed=1)
    torch.manual_seed(1)
    first = Autoencoder(samples, seed=3).encode(samples)
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(Autoencoder(samples, seed=3).encode(samples), first)
    assert not torch.equal(Autoencoder(samples, seed=4).encode(samples), first)
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_features_that_never_change_do_no_harm() -> None:
    samples, _ = clusters(3, seed=1)
    samples[:, :8] = 7.0
    with torch.no_grad():  # as a caller may have it
        assert torch.isfinite(Autoencoder(samples, seed=3).encode(samples)).all()


def test_one_sample_has_no_latent_space() -> None:
    with pytest.raises(TrainingError, match="at least 2 general examples, not 1"):
        Autoencoder(torch.zeros(1, 8), seed=0)


def test_an_embedding_is_the_mean_over_the_answers_own_states(tmp_path: Path) -> None:
    examples = random_examples(5, seed=3)
    with tiny_decoder(tmp_path) as decoder:
        found = embed(decoder, examples, micro_tokens=40)
        with torch.no_grad():
            for example, row in zip(examples, found, strict=True):
                alone = decoder.output_norm(decoder.hidden([example.tokens]))
                torch.testing.assert_close(row, alone[example.supervised_from :].mean(0), rtol=1e-4, atol=1e-5)


def test_embeddings_are_the_bases_and_the_deltas_stay(tmp_path: Path) -> None:
    examples = random_examples(3, seed=3)
    with tiny_decoder(tmp_path) as decoder:
        before = embed(decoder, examples)
        decoder.adapt("lora", rank=2, alpha=4.0, seed=0)
        with torch.no_grad():
            for parameter in decoder.parameters:
                parameter += 0.3
        assert torch.equal(embed(decoder, examples), before)
        with decoder.base():
            base = decoder.forward_logits(examples[0].tokens)
        assert (decoder.forward_logits(examples[0].tokens) - base).abs().max() > 0.1


def twins(decoder: Decoder) -> tuple[list[Encoded], list[Encoded]]:
    """Personal examples, and general ones of which the first have almost the same answers as they."""
    personal = random_examples(2, seed=1)
    near = [Encoded(f"near{i}", (*e.tokens[:-1], 9), e.supervised_from) for i, e in enumerate(personal)]
    far = [Encoded(f"far{e.id}", e.tokens, e.supervised_from) for e in random_examples(10, seed=2)]
    return personal, [*far[:5], *near, *far[5:]]


@pytest.mark.parametrize("distance", ["embedding", "autoencoder"])
def test_general_examples_that_are_like_yours_are_added(tmp_path: Path, distance: str) -> None:
    with tiny_decoder(tmp_path) as decoder:
        personal, general = twins(decoder)
        found = grouped("sg", distance, decoder, personal, general, seed=1)
        assert sorted(e.id for e in found) == ["near0", "near1"]
        assert grouped("sg", distance, decoder, personal, general, seed=1) == found


def test_individual_grouping_takes_as_many_and_never_more_than_a_quarter(tmp_path: Path) -> None:
    with tiny_decoder(tmp_path) as decoder:
        personal, general = twins(decoder)
        own, others = embed(decoder, personal).mean(0), embed(decoder, general)
        order = sorted(range(len(general)), key=lambda i: (others[i] - own).norm().item())
        found = grouped("ig", "embedding", decoder, personal, general, seed=1)
        assert found == [general[i] for i in order[:2]]
        for grouping in ("sg", "ig"):
            found = grouped(grouping, "embedding", decoder, personal, general, seed=1, per_example=5)
            assert len(found) == len({e.id for e in found}) == 3  # a quarter of twelve


def test_nothing_to_group(tmp_path: Path) -> None:
    with tiny_decoder(tmp_path) as decoder:
        personal, general = twins(decoder)
        assert grouped("none", "embedding", decoder, personal, general, seed=1) == []
        assert grouped("sg", "embedding", decoder, personal, [], seed=1) == []
        assert grouped("ig", "embedding", decoder, [], general, seed=1) == []
        assert grouped("sg", "autoencoder", decoder, personal, general[:1], seed=1) == general[:1]
        with pytest.raises(ConfigError, match="grouping is 'gg', but must be one of none, sg, ig"):
            grouped("gg", "embedding", decoder, personal, general, seed=1)
        with pytest.raises(ConfigError, match="group_distance is 'l1', but must be embedding or autoencoder"):
            grouped("sg", "l1", decoder, personal, general, seed=1)
