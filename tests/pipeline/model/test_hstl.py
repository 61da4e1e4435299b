import pytest
import torch

from pipeline.model import HSTL, VARIANTS, Level, Variant
from pipeline.model.layers import ARME, FTA, GeM, GlobalBatchNorm, PartLinear, RegionalConv3d, maximum_over_time

SHAPES = {"casia-b": (73, 128), "casia-b-17": (17, 128), "oumvlp": (50, 256), "grew": (50, 256), "gait3d": (46, 256)}


@pytest.fixture
def demo() -> HSTL:
    torch.manual_seed(0)
    return HSTL("demo", 5)


def random_silhouettes(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)).round()


@pytest.mark.parametrize(("name", "shape"), SHAPES.items())
def test_published_variants_have_their_parts_and_channels(name: str, shape: tuple[int, int]) -> None:
    assert (VARIANTS[name].parts, VARIANTS[name].channels) == shape


@pytest.mark.parametrize(
    ("name", "classes", "millions"), [("casia-b", 74, 4.75), ("oumvlp", 5153, 89.1), ("gait3d", 3000, 54.7)]
)
def test_parameter_counts_are_the_published_ones(name: str, classes: int, millions: float) -> None:
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in HSTL(name, classes).parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.005)


def test_output_shapes_and_types(demo: HSTL) -> None:
    output = demo(random_silhouettes(3, 7, 64, 44))
    assert output.embeddings.shape == (3, demo.variant.parts, demo.variant.channels)
    assert output.logits.shape == (3, demo.variant.parts, 5)
    assert output.embeddings.dtype == torch.float32


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 31])
def test_any_number_of_frames(demo: HSTL, frames: int) -> None:
    assert torch.isfinite(demo.eval().embed(random_silhouettes(1, frames, 64, 44))).all()


def test_one_and_two_frames_are_repeated(demo: HSTL) -> None:
    demo.eval()
    one, two = random_silhouettes(1, 1, 64, 44), random_silhouettes(1, 2, 64, 44)
    torch.testing.assert_close(demo.embed(one), demo.embed(one.repeat(1, 3, 1, 1)))
    torch.testing.assert_close(demo.embed(two), demo.embed(two.repeat(1, 2, 1, 1)))


def test_embed_equals_forward_in_evaluation(demo: HSTL) -> None:
    x = random_silhouettes(2, 6, 64, 44)
    demo.eval()
    assert torch.equal(demo.embed(x), demo(x).embeddings)


def test_a_sequence_alone_has_the_embedding_it_has_in_a_batch(demo: HSTL) -> None:
    x = random_silhouettes(4, 9, 64, 44)
    demo.eval()
    together = demo.embed(x)
    alone = torch.cat([demo.embed(sequence[None]) for sequence in x])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("height", [32, 63, 128])
def test_other_heights_are_refused_with_the_reason(demo: HSTL, height: int) -> None:
    with pytest.raises(ValueError, match=rf"{height} rows high.*64 rows.*normalise"):
        demo(random_silhouettes(1, 3, height, 44))


def test_wrong_dimensions_and_no_frames_are_refused(demo: HSTL) -> None:
    with pytest.raises(ValueError, match=r"\[n, frames, 64, width\]"):
        demo(random_silhouettes(2, 64, 44))
    with pytest.raises(ValueError, match="at least 1 frame"):
        demo(random_silhouettes(2, 0, 64, 44))


def test_unknown_variant_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'casiab'.*casia-b, .*gait3d"):
        HSTL("casiab", 3)


def test_a_variant_whose_regions_do_not_fill_the_body_is_refused() -> None:
    with pytest.raises(ValueError, match=r"level 2 sum to 60 rows.*64"):
        Variant(name="x", stem=(4,), halved=False, levels=(Level(regions=(40, 20), widths=(4,)),), strips=8)


def test_a_variant_of_one_level_works() -> None:
    variant = Variant(name="x", stem=(4,), halved=True, levels=(Level(regions=(16, 16), widths=(8,)),), strips=16)
    output = HSTL(variant, 3)(random_silhouettes(2, 6, 64, 44))
    assert output.embeddings.shape == (2, variant.parts, 8) and output.embeddings.isfinite().all()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_sequences_have_no_embeddings(precision: str) -> None:
    network = HSTL("casia-b", 3, precision=precision).eval()  # type: ignore[arg-type]
    assert network.embed(torch.empty(0, 6, 64, 44)).shape == (0, 73, 128)


def test_float64_stays_float64_where_bf16_is_asked_for() -> None:
    torch.manual_seed(0)
    network = HSTL("casia-b", 3).double().eval()
    x = random_silhouettes(1, 6, 64, 44).double()
    expected = network.embed(x)
    network.precision = "bf16"
    torch.testing.assert_close(network.embed(x), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 6, 100])
def test_micro_batch_changes_neither_result_nor_gradients(demo: HSTL, size: int) -> None:
    x = random_silhouettes(6, 6, 64, 44)
    reference = _outputs_and_gradients(demo, x)
    demo.micro_batch = size
    for whole, split in zip(reference, _outputs_and_gradients(demo, x), strict=True):
        torch.testing.assert_close(whole, split, rtol=1e-4, atol=1e-5)


def _outputs_and_gradients(model: HSTL, x: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    output = model(x)
    (output.embeddings.square().mean() + output.logits.square().mean() + output.embeddings[0, 0, 0]).backward()
    return [output.embeddings.detach(), output.logits.detach(), *(p.grad.clone() for p in model.parameters())]


def test_bf16_keeps_parameters_statistics_and_embeddings_in_fp32(demo: HSTL) -> None:
    demo.precision = "bf16"
    output = demo(random_silhouettes(4, 6, 64, 44))
    output.logits.float().square().mean().backward()
    assert output.embeddings.dtype == torch.float32 and output.logits.dtype == torch.bfloat16
    assert {t.dtype for t in (*demo.parameters(), demo.norm.running_mean, demo.norm.running_var)} == {torch.float32}
    assert {p.grad.dtype for p in demo.parameters()} == {torch.float32}


def test_bf16_embeddings_point_where_the_fp32_ones_do(demo: HSTL) -> None:
    x = random_silhouettes(4, 12, 64, 44)
    demo(x)  # statistics that are not the initial ones
    demo.eval()
    exact = demo.embed(x)
    demo.precision = "bf16"
    rounded = demo.embed(x)
    assert not torch.equal(exact, rounded)
    assert (1 - torch.cosine_similarity(exact.flatten(1), rounded.flatten(1))).max() < 1e-3


def test_autocast_from_outside_changes_nothing_that_must_stay_exact(demo: HSTL) -> None:
    demo.eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert demo.embed(random_silhouettes(2, 6, 64, 44)).dtype == torch.float32


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_lie_in_memory_as_their_parameters_do(precision: str) -> None:
    """DDP's buckets hold them so: any other gradient is copied, with a warning from every process."""
    network = HSTL("demo", 5, precision=precision)  # type: ignore[arg-type]
    output = network(random_silhouettes(2, 8, 64, 44))
    (output.embeddings.sum() + output.logits.sum()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.stride() == parameter.stride(), name


def test_regional_convolution_pads_each_region_alone() -> None:
    layer = RegionalConv3d(2, 3, (5, 3))
    x = torch.randn(2, 2, 4, 8, 6)
    rows = zip(x.split([5, 3], dim=3), layer.weight, strict=True)
    convolved = torch.cat([torch.nn.functional.conv3d(body, weight, padding=1) for body, weight in rows], dim=3)
    expected = torch.where(convolved > 0, convolved, 0.01 * convolved)
    for cut in ([x], list(x.split([5, 3], dim=3)), list(x.split([4, 4], dim=3))):
        features = layer(cut)
        torch.testing.assert_close(torch.cat(features, dim=3), expected)
        torch.testing.assert_close(maximum_over_time(features), expected.amax(dim=2))


def test_arme_is_its_convolutions_in_turn() -> None:
    layer, x = ARME(2, (3, 4), (5, 3)), torch.randn(2, 2, 4, 8, 6)
    torch.testing.assert_close(layer([x]), layer[1](layer[0]([x])))


def test_gem_is_the_power_mean_of_each_region() -> None:
    x = torch.rand(2, 3, 6, 4, dtype=torch.float64)
    pool = GeM((4, 2)).double()
    with torch.no_grad():
        pool.power[1] = 2.0
    expected_top = x[:, :, :4].pow(6.5).mean(dim=(2, 3)).pow(1 / 6.5)
    expected_bottom = x[:, :, 4:].square().mean(dim=(2, 3)).sqrt()
    torch.testing.assert_close(pool(x), torch.stack([expected_top, expected_bottom], dim=1))


@pytest.mark.parametrize("power", [6.5, 7.6, 12.0, 30.0])
def test_gem_of_background_alone_has_finite_gradients(power: float) -> None:
    pool, x = GeM((2, 2)), torch.zeros(1, 3, 4, 5, requires_grad=True)
    with torch.no_grad():
        pool.power.fill_(power)
    pool(x).sum().backward()
    assert torch.isfinite(pool.power.grad).all() and torch.isfinite(x.grad).all()


@pytest.mark.parametrize(
    ("arguments", "message"), [({"precision": "fp16"}, "'fp16'"), ({"micro_batch": 0}, "at least 1")]
)
def test_arguments_that_would_be_ignored_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HSTL("demo", 3, **arguments)


@pytest.mark.parametrize("frames", [3, 4, 5, 6, 7, 8, 30, 31])
def test_fta_shrinks_time_by_three_and_stays_between_its_pools(frames: int) -> None:
    x = torch.randn(2, 4, frames, 6, 5)
    pooled = torch.cat(FTA(4, (4, 2))([x]), dim=3)
    assert pooled.shape == (2, 4, frames // 3, 6, 5)
    short = torch.nn.functional.max_pool3d(x, (3, 1, 1), stride=(3, 1, 1))
    assert (pooled >= short - 1e-5).all()  # the long window holds the short one


def test_batch_norm_equals_torchs_over_sequences_and_parts() -> None:
    ours, theirs = GlobalBatchNorm(6), torch.nn.BatchNorm1d(6)
    theirs.load_state_dict(ours.state_dict())
    for _ in range(3):
        x = torch.randn(5, 4, 6) * 3 + 1
        torch.testing.assert_close(ours(x), theirs(x.transpose(1, 2)).transpose(1, 2))
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x), theirs(x.transpose(1, 2)).transpose(1, 2))


def test_part_linear_gives_each_part_its_own_matrix() -> None:
    layer, x = PartLinear(3, 4, 5), torch.randn(2, 3, 4)
    for part in range(3):
        torch.testing.assert_close(layer(x)[:, part], x[:, part] @ layer.weight[part])
